//! TCP sockets of this process's network namespace, by sock_diag(7): finding and destroying them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroI32;

use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, IPPROTO_TCP, SockDiagDestroy, SockDiagMessage};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rtnetlink::sys::{Socket, protocols::NETLINK_SOCK_DIAG};

/// Maximum length of what the kernel sends at once, in bytes: `NLMSG_GOODSIZE` at most
/// (`netlink_dump` in `net/netlink/af_netlink.c`).
const DATAGRAM: usize = 65_536;

/// Alignment of netlink messages, in bytes (`NLMSG_ALIGNTO` in `include/uapi/linux/netlink.h`).
const ALIGNMENT: usize = 4;

/// A socket with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TcpSocket {
    /// Our port.
    pub(crate) port: u16,
    /// The other side; of an IPv4-mapped socket the IPv4 address.
    pub(crate) peer: SocketAddr,
    family: u8,
    id: SocketId,
}

/// A connection to the kernel's sock_diag.
#[derive(Debug)]
pub(crate) struct SockDiag {
    socket: Socket,
}

/// What became of a socket that was to be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destruction {
    /// It is destroyed.
    Done,
    /// It had gone by itself.
    Gone,
}

impl SockDiag {
    /// Connects.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        Ok(Self { socket })
    }

    /// All sockets with a peer that satisfy `wanted`.
    pub(crate) fn connected(
        &self,
        mut wanted: impl FnMut(&TcpSocket) -> bool,
    ) -> io::Result<Vec<TcpSocket>> {
        let mut found = Vec::new();
        // Sockets that listen, are closed or wait out their time hold no worker of a server; those
        // in SYN_SENT are ours. Requests (`TCP_NEW_SYN_RECV`) come with SYN_RECV.
        let states = StateFlags::all()
            - StateFlags::LISTEN
            - StateFlags::CLOSE
            - StateFlags::TIME_WAIT
            - StateFlags::SYN_SENT;
        for family in [AF_INET, AF_INET6] {
            self.dump(family, states.clone(), |socket| {
                if wanted(&socket) {
                    found.push(socket);
                }
            })?;
        }
        Ok(found)
    }

    /// Lists the sockets of a family in certain states. IPv4-mapped ones are of the family IPv6.
    fn dump(
        &self,
        family: u8,
        states: StateFlags,
        mut each: impl FnMut(TcpSocket),
    ) -> io::Result<()> {
        let id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        let request = request(family, states, id);
        self.send(NLM_F_REQUEST | NLM_F_DUMP, SockDiagMessage::InetRequest(request))?;
        self.receive(|payload| {
            match payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let (family, id) = (response.header.family, response.header.socket_id);
                    each(TcpSocket {
                        port: id.source_port,
                        peer: SocketAddr::new(
                            id.destination_address.to_canonical(),
                            id.destination_port,
                        ),
                        family,
                        id,
                    });
                }
                NetlinkPayload::Done(done) => return Some(errno(NonZeroI32::new(done.code))),
                NetlinkPayload::Error(error) => return Some(errno(error.code)),
                _ => {}
            }
            None
        })
    }

    /// Destroys a socket: its owner's next call fails with ECONNABORTED, and the peer gets a reset.
    ///
    /// # Errors
    ///
    /// Without `CAP_NET_ADMIN`; `EOPNOTSUPP` from kernels without `CONFIG_INET_DIAG_DESTROY`.
    pub(crate) fn destroy(&self, socket: &TcpSocket) -> io::Result<Destruction> {
        // The cookie keeps another socket of the same addresses and ports safe, and the listening
        // one, which the kernel's look-up falls back to.
        let request = request(socket.family, StateFlags::all(), socket.id.clone());
        let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        self.send(NLM_F_REQUEST | NLM_F_ACK, message)?;
        let answer = self.receive(|payload| match payload {
            NetlinkPayload::Error(error) => Some(errno(error.code)),
            _ => None,
        });
        match answer.as_ref().map_err(io::Error::raw_os_error) {
            Err(Some(libc::ENOENT | libc::ESTALE)) => Ok(Destruction::Gone),
            _ => answer.map(|()| Destruction::Done),
        }
    }

    fn send<I>(&self, flags: u16, message: I) -> io::Result<()>
    where
        I: NetlinkSerializable + Into<NetlinkPayload<I>>,
    {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Reads messages until one is the last.
    fn receive(
        &self,
        mut last: impl FnMut(NetlinkPayload<SockDiagMessage>) -> Option<io::Result<()>>,
    ) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let mut rest = &buffer[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let length = (message.header.length as usize).next_multiple_of(ALIGNMENT);
                if let Some(result) = last(message.payload) {
                    return result;
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> InetRequest {
    let extensions = ExtensionFlags::empty();
    InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id }
}

/// What the kernel answered: 0, or the negative of an error number.
fn errno(code: Option<NonZeroI32>) -> io::Result<()> {
    code.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code.get().saturating_neg())))
}

/// Whether this kernel destroys sockets on request, by asking it to destroy one that does not
/// exist; `None` if it does not say.
pub(crate) fn can_destroy() -> Option<bool> {
    let diag = SockDiag::open().ok()?;
    // Without `tcp_diag` a look-up fails like one for a socket that does not exist.
    let listed = diag.dump(AF_INET, StateFlags::LISTEN, |_| {});
    match listed.map_err(|error| error.raw_os_error()) {
        Ok(()) => {}
        Err(Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)) => return Some(false),
        Err(_) => return None,
    }
    let nobody = TcpSocket {
        port: 0,
        peer: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0),
        family: AF_INET,
        id: SocketId { cookie: [1; 8], ..SocketId::new_v4() },
    };
    match diag.destroy(&nobody).map_err(|error| error.raw_os_error()) {
        Ok(_) => Some(true),
        // `EINVAL`: from before Linux 4.5, which has no such request.
        Err(Some(libc::EOPNOTSUPP | libc::EINVAL)) => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection over loopback.
    fn pair(listen: &str, connect: &str) -> (TcpStream, TcpStream, u16) {
        let listener = TcpListener::bind((listen, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((connect, port)).unwrap();
        (client, listener.accept().unwrap().0, port)
    }

    #[test]
    fn sockets_are_found_by_port_and_peer() {
        let diag = SockDiag::open().unwrap();
        // The last is an IPv4-mapped one.
        for (listen, to) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")] {
            let (client, _server, port) = pair(listen, to);
            let found = diag.connected(|socket| socket.port == port).unwrap();
            let [one] = &found[..] else { panic!("{found:?}") };
            assert_eq!(one.peer, client.local_addr().unwrap());
            assert_eq!(one.peer.ip(), to.parse::<IpAddr>().unwrap());
        }
    }

    #[test]
    fn what_is_gone_or_somebody_elses_stays() {
        let diag = SockDiag::open().unwrap();
        let (client, server, port) = pair("127.0.0.1", "127.0.0.1");
        let mut found = diag.connected(|socket| socket.port == port).unwrap();
        let mut one = found.pop().unwrap();
        one.id.cookie = [7; 8];
        // Without privileges the look-up comes first, too.
        assert_eq!(diag.destroy(&one).unwrap(), Destruction::Gone);
        assert!(server.peer_addr().is_ok());
        drop((client, server));
    }
}
