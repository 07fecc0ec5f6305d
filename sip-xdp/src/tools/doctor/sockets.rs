//! Listening sockets of this network namespace, from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

/// A socket that accepts packets from any address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listener {
    /// Name and id of the process; `None` if not accessible.
    pub(super) process: Option<(String, u32)>,
    pub(super) transport: Transport,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

impl Listener {
    /// The process's name.
    pub(super) fn name(&self) -> &str {
        self.process.as_ref().map_or("", |(name, _)| name)
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((name, pid)) => write!(f, "{name} (pid {pid})")?,
            None => f.write_str("somebody")?,
        }
        write!(f, " on {} {}", self.transport, std::net::SocketAddr::new(self.address, self.port))
    }
}

/// All of them without duplicates: workers of one server share sockets.
pub(super) fn listeners() -> Vec<Listener> {
    let owners = owners();
    let mut found = BTreeSet::new();
    for (file, transport) in [
        ("udp", Transport::Udp),
        ("udp6", Transport::Udp),
        ("tcp", Transport::Tcp),
        ("tcp6", Transport::Tcp),
    ] {
        // Missing on a host without IPv6.
        let text = fs::read_to_string(format!("/proc/self/net/{file}")).unwrap_or_default();
        for (address, port, inode) in
            text.lines().skip(1).filter_map(|line| listening(line, transport))
        {
            let process = owners.get(&inode).map(|pid| (name_of(*pid), *pid));
            found.insert(Listener { process, transport, address, port });
        }
    }
    found.into_iter().collect()
}

/// Address, port and inode in a line of `/proc/net/udp` or `tcp`, if the socket listens.
fn listening(line: &str, transport: Transport) -> Option<(IpAddr, u16, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    // include/net/tcp_states.h: an unconnected UDP socket is "closed".
    let state = match transport {
        Transport::Udp => "07",
        Transport::Tcp => "0A",
    };
    if *fields.get(3)? != state {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    Some((
        read_address(address)?,
        u16::from_str_radix(port, 16).ok()?,
        fields.get(9)?.parse().ok()?,
    ))
}

/// An address as the kernel prints it: words in the host's byte order.
fn read_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| -> Option<[u8; 4]> {
        Some(u32::from_str_radix(hex.get(8 * at..8 * at + 8)?, 16).ok()?.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (at, part) in octets.chunks_mut(4).enumerate() {
                part.copy_from_slice(&word(at)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
        }
        _ => None,
    }
}

/// The lowest process id by socket inode, as far as accessible.
fn owners() -> BTreeMap<u64, u32> {
    let mut owners = BTreeMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for inode in files.filter_map(|file| inode(fs::read_link(file.path()).ok()?.to_str()?)) {
            let first = owners.entry(inode).or_insert(pid);
            *first = pid.min(*first);
        }
    }
    owners
}

fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let udp = " 4711: 0100007F:13C4 00000000:0000 07 00000000:00000000 00:00000000 \
                   00000000     0        0 31337 2 0 0";
        if cfg!(target_endian = "little") {
            assert_eq!(
                listening(udp, Transport::Udp),
                Some(("127.0.0.1".parse().unwrap(), 5060, 31337))
            );
        }
        assert_eq!(listening(udp, Transport::Tcp), None);
        let tcp = "   0: 00000000000000000000000000000000:13C5 \
                   00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7 1 0";
        assert_eq!(listening(tcp, Transport::Tcp), Some(("::".parse().unwrap(), 5061, 7)));
        assert_eq!(listening(&tcp.replace("0A", "01"), Transport::Tcp), None);
        assert_eq!(listening("", Transport::Udp), None);
        assert_eq!(inode("socket:[42]"), Some(42));
        assert_eq!(inode("pipe:[42]"), None);
    }

    #[test]
    fn our_own_socket_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let all = listeners();
        let ours =
            all.iter().find(|one| one.port == port && one.transport == Transport::Udp).unwrap();
        assert_eq!(ours.process.as_ref().map(|(_, pid)| *pid), Some(std::process::id()));
        assert_eq!(ours.address, IpAddr::from(Ipv4Addr::LOCALHOST));
    }
}
