//! What drivers say of their devices: what they can do for XDP, by generic netlink, and the rest by the ioctl of ethtool.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// Commands (`include/uapi/linux/ethtool.h`).
const GDRVINFO: u32 = 0x03;
const GFLAGS: u32 = 0x25;
const GGRO: u32 = 0x2b;
const GCHANNELS: u32 = 0x3c;

/// `ETH_FLAG_LRO`.
const FLAG_LRO: u32 = 1 << 15;

/// Of `NETDEV_A_DEV_XDP_FEATURES` (`include/uapi/linux/netdev.h`).
const XDP_BASIC: u64 = 1;
const XDP_RX_SG: u64 = 1 << 5;

/// What a driver can do for XDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct XdpFeatures {
    /// Run programs at all.
    pub(super) native: bool,
    /// Run programs on packets of more than one buffer, which long ones are.
    pub(super) long_packets: bool,
}

/// How packets are spread over CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Channels {
    /// How many queues are in use.
    pub(super) used: u32,
    /// How many there could be.
    pub(super) most: u32,
}

/// The driver's name.
pub(super) fn driver(interface: &str) -> io::Result<String> {
    // The command, and five texts of 32 bytes, of which the driver is the first.
    let mut words = [0_u32; 49];
    words[0] = GDRVINFO;
    ethtool(interface, &mut words)?;
    let name: Vec<u8> = words[1..9].iter().flat_map(|word| word.to_ne_bytes()).chain([0]).collect();
    Ok(CStr::from_bytes_until_nul(&name).map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned()))
}

/// Whether large receive offload is on.
pub(super) fn lro(interface: &str) -> io::Result<bool> {
    let mut words = [GFLAGS, 0];
    ethtool(interface, &mut words)?;
    Ok(words[1] & FLAG_LRO != 0)
}

/// Whether generic receive offload is on.
pub(super) fn gro(interface: &str) -> io::Result<bool> {
    let mut words = [GGRO, 0];
    ethtool(interface, &mut words)?;
    Ok(words[1] != 0)
}

/// The queues for packets that arrive.
pub(super) fn channels(interface: &str) -> io::Result<Channels> {
    // The command; the most of receiving, sending, other and combined ones; how many of each are used.
    let mut words = [0_u32; 9];
    words[0] = GCHANNELS;
    ethtool(interface, &mut words)?;
    Ok(Channels { used: words[5] + words[8], most: words[1] + words[4] })
}

/// The ioctl. All its structures are made of words of which the first is the command.
fn ethtool(interface: &str, words: &mut [u32]) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the kernel reads the name, and writes as many words as the command's structure has, which the caller gave.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `SIOCETHTOOL` (`include/uapi/linux/sockios.h`).
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// What the driver of an interface can do for XDP. `None` if the kernel does not say: before Linux 6.3.
pub(super) fn xdp_features(index: u32) -> Option<XdpFeatures> {
    // `CTRL_CMD_GETFAMILY` of the controller with the attribute `CTRL_ATTR_FAMILY_NAME`; `CTRL_ATTR_FAMILY_ID` is asked for.
    let family = ask(libc::GENL_ID_CTRL as u16, 3, 2, b"netdev\0", 1)?;
    let family = u16::from_ne_bytes(family.get(..2)?.try_into().ok()?);
    // `NETDEV_CMD_DEV_GET` with `NETDEV_A_DEV_IFINDEX`; `NETDEV_A_DEV_XDP_FEATURES` is asked for.
    let features = ask(family, 1, 1, &index.to_ne_bytes(), 3)?;
    let features = u64::from_ne_bytes(features.get(..8)?.try_into().ok()?);
    Some(XdpFeatures { native: features & XDP_BASIC != 0, long_packets: features & XDP_RX_SG != 0 })
}

/// Sends a request of one attribute by generic netlink, and returns an attribute of the answer.
fn ask(family: u16, command: u8, attribute: u16, value: &[u8], wanted: u16) -> Option<Vec<u8>> {
    /// The lengths of `struct nlmsghdr` and `struct genlmsghdr`.
    const HEADERS: usize = 16 + 4;
    let mut socket = Socket::new(NETLINK_GENERIC).ok()?;
    socket.bind_auto().ok()?;
    socket.connect(&SocketAddr::new(0, 0)).ok()?;
    let length = HEADERS + 4 + value.len().next_multiple_of(4);
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // The sequence number, and who asks: this socket asks but once.
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend((4 + value.len() as u16).to_ne_bytes());
    request.extend(attribute.to_ne_bytes());
    request.extend(value);
    request.resize(length, 0);
    socket.send(&request, 0).ok()?;
    let (answer, _) = socket.recv_from_full().ok()?;
    let is_error = u16::from_ne_bytes([*answer.get(4)?, *answer.get(5)?]) == libc::NLMSG_ERROR as u16;
    if is_error {
        None
    } else {
        crate::dataplane::attach::clsact::attribute(answer.get(HEADERS..)?, wanted).map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_says_what_it_can() {
        // It has no driver and no queues to speak of, but answers.
        assert!(channels("lo").is_err());
        assert!(!lro("lo").unwrap_or(false));
        assert!(driver("no-such-thing").is_err());
        if let Some(features) = xdp_features(1) {
            assert!(!features.native, "{features:?}");
        }
    }
}
