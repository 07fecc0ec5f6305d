//! HEP, by which SIP servers and capture agents send copies of messages to a collector such as
//! Homer: versions 1, 2 and 3 (HEP3 network protocol specification, revision 36). Pure: bytes in,
//! what they say out.

use std::net::IpAddr;

use super::message::{Head, StartLine, first_via};
use super::transport::Transport;

/// What version 3 begins with.
pub const MAGIC: &[u8; 4] = b"HEP3";

/// The length of what version 3 begins with: [`MAGIC`] and the length of all of it.
pub const HEADER: usize = 6;

/// The protocol numbers of TCP and UDP (`/etc/protocols`).
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The numbers that Kamailio writes for TLS and WebSocket, which have none: those of XNS-IDP and
/// ESP.
const AS_TLS: u8 = 22;
const AS_WS: u8 = 50;

/// What one packet tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HepPacket<'a> {
    /// 1, 2 or 3.
    pub version: u8,
    /// The IP protocol that carried the message.
    pub protocol: u8,
    /// Where it came from.
    pub from: Option<IpAddr>,
    /// Where it went.
    pub to: Option<IpAddr>,
    /// The port that it came from.
    pub from_port: u16,
    /// The port that it went to.
    pub to_port: u16,
    /// The authentication key.
    pub key: Option<&'a [u8]>,
    /// The message is one of SIP.
    pub is_sip: bool,
    /// The message is compressed.
    pub is_packed: bool,
    /// The message.
    pub message: Option<&'a [u8]>,
}

/// Parses a HEP packet; `None` if it is none.
pub fn read(data: &[u8]) -> Option<HepPacket<'_>> {
    if data.starts_with(MAGIC) { version3(data) } else { version1_or_2(data) }
}

/// The length of a packet of version 3 that begins so, in bytes; none if none does.
pub fn length(head: &[u8; HEADER]) -> Option<usize> {
    let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
    (head.starts_with(MAGIC) && length >= HEADER).then_some(length)
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*data.get(at..)?.first_chunk()?))
}

/// Chunks of a vendor, a type, a length and a value.
fn version3(data: &[u8]) -> Option<HepPacket<'_>> {
    const SIP: u8 = 1;
    let end = usize::from(be16(data, 4)?).min(data.len());
    let mut rest = data.get(HEADER..end)?;
    let mut packet = HepPacket {
        version: 3,
        protocol: 0,
        from: None,
        to: None,
        from_port: 0,
        to_port: 0,
        key: None,
        is_sip: true,
        is_packed: false,
        message: None,
    };
    while let Some(head) = rest.first_chunk::<6>() {
        let [vendor, chunk, length] =
            [0, 2, 4].map(|at| u16::from_be_bytes([head[at], head[at + 1]]));
        let value = rest.get(6..usize::from(length).min(rest.len()))?;
        match (vendor, chunk) {
            (0, 2) => packet.protocol = *value.first()?,
            (0, 3) => packet.from = Some(IpAddr::from(*value.first_chunk::<4>()?)),
            (0, 4) => packet.to = Some(IpAddr::from(*value.first_chunk::<4>()?)),
            (0, 5) => packet.from = Some(IpAddr::from(*value.first_chunk::<16>()?)),
            (0, 6) => packet.to = Some(IpAddr::from(*value.first_chunk::<16>()?)),
            (0, 7) => packet.from_port = be16(value, 0)?,
            (0, 8) => packet.to_port = be16(value, 0)?,
            (0, 11) => packet.is_sip = *value.first()? == SIP,
            (0, 14) => packet.key = Some(value),
            (0, 15) => packet.message = Some(value),
            (0, 16) => (packet.message, packet.is_packed) = (Some(value), true),
            _ => {}
        }
        rest = rest.get(usize::from(length).max(6)..).unwrap_or_default();
    }
    Some(packet)
}

/// A fixed header: version, its length, family, protocol, ports, addresses, and in version 2 a
/// time.
fn version1_or_2(data: &[u8]) -> Option<HepPacket<'_>> {
    let [version, length, family, protocol, ports @ ..] = data.first_chunk::<8>()?;
    let (width, family_length) = match family {
        2 => (4, 16),
        10 => (16, 40),
        _ => return None,
    };
    let is_known = matches!(*protocol, TCP | UDP | AS_TLS | AS_WS | 132);
    if !matches!(version, 1 | 2) || usize::from(*length) < family_length || !is_known {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        let rest = data.get(at..)?;
        Some(match width {
            4 => IpAddr::from(*rest.first_chunk::<4>()?),
            _ => IpAddr::from(*rest.first_chunk::<16>()?),
        })
    };
    // Whether the length counts the time, which is 10 bytes or, padded, 12, is not agreed on: the
    // message tells.
    let starts = [usize::from(*length), family_length, family_length + 10, family_length + 12];
    let message = starts.into_iter().filter_map(|at| data.get(at..)).find(|rest| is_sip(rest))?;
    Some(HepPacket {
        version: *version,
        protocol: *protocol,
        from: address(8),
        to: address(8 + width),
        from_port: u16::from_be_bytes([ports[0], ports[1]]),
        to_port: u16::from_be_bytes([ports[2], ports[3]]),
        key: None,
        is_sip: true,
        is_packed: false,
        message: Some(message),
    })
}

/// Whether a text begins like a SIP message.
fn is_sip(text: &[u8]) -> bool {
    let line = text.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    line.starts_with(b"SIP/2.0 ")
        || line.ends_with(b" SIP/2.0") && line.first().is_some_and(u8::is_ascii_uppercase)
}

impl HepPacket<'_> {
    /// How the message was carried. UDP is what the protocol number says. Of what ran over TCP most
    /// servers say no more; the topmost Via, in which a client may write what it likes, then only
    /// tells the names of these apart. None of other protocols.
    pub fn transport(&self) -> Option<Transport> {
        let named = || {
            let via = first_via(self.message.unwrap_or_default());
            via.and_then(Transport::from_name).filter(|one| one.is_stream())
        };
        match self.protocol {
            UDP => Some(Transport::Udp),
            AS_TLS => Some(Transport::Tls),
            AS_WS => Some(named().filter(|one| *one == Transport::Wss).unwrap_or(Transport::Ws)),
            TCP => Some(named().unwrap_or(Transport::Tcp)),
            _ => None,
        }
    }

    /// Whether the message is a request; none if it is no message.
    pub fn is_request(&self) -> Option<bool> {
        let head = Head::read(self.message?)?;
        Some(matches!(head.start, StartLine::Request { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(vendor: u16, kind: u16, value: &[u8]) -> Vec<u8> {
        let length = value.len() as u16 + 6;
        [&[vendor, kind, length].map(u16::to_be_bytes).concat()[..], value].concat()
    }

    fn packet(chunks: &[Vec<u8>]) -> Vec<u8> {
        let body = chunks.concat();
        let length = (body.len() + HEADER) as u16;
        [MAGIC, &length.to_be_bytes()[..], &body].concat()
    }

    fn sample(protocol: u8, message: &[u8]) -> Vec<u8> {
        packet(&[
            chunk(0, 1, &[2]),
            chunk(0, 2, &[protocol]),
            chunk(0, 3, &[192, 0, 2, 7]),
            chunk(0, 4, &[198, 51, 100, 1]),
            chunk(0, 7, &40_000_u16.to_be_bytes()),
            chunk(0, 8, &5_061_u16.to_be_bytes()),
            chunk(77, 2, b"unknown"),
            chunk(0, 9_999, b""),
            chunk(0, 14, b"secret"),
            chunk(0, 15, message),
        ])
    }

    const MESSAGE: &[u8] = b"REGISTER sip:a SIP/2.0\r\nVia: SIP/2.0/WSS b;branch=1\r\n\r\n";

    #[test]
    fn reads_what_servers_send() {
        let data = sample(6, MESSAGE);
        let found = read(&data).unwrap();
        assert_eq!(found.from, Some("192.0.2.7".parse().unwrap()));
        assert_eq!((found.from_port, found.to_port), (40_000, 5_061));
        assert_eq!((found.key, found.message), (Some(&b"secret"[..]), Some(MESSAGE)));
        assert_eq!((found.is_request(), found.is_sip), (Some(true), true));
        assert_eq!(length(data.first_chunk().unwrap()), Some(data.len()));
        assert_eq!(length(b"HEP3\0\x05"), None);
    }

    #[test]
    fn a_client_cannot_say_that_it_is_read_on_the_wire() {
        let lying = b"REGISTER sip:a SIP/2.0\r\nv: SIP / 2.0 / UDP b\r\n\r\n";
        for (protocol, message, expected) in [
            (6, MESSAGE, Some(Transport::Wss)),
            (6, &lying[..], Some(Transport::Tcp)),
            (22, &lying[..], Some(Transport::Tls)),
            (50, MESSAGE, Some(Transport::Wss)),
            (50, &lying[..], Some(Transport::Ws)),
            (17, MESSAGE, Some(Transport::Udp)),
            (132, MESSAGE, None),
        ] {
            let data = sample(protocol, message);
            assert_eq!(read(&data).unwrap().transport(), expected, "{protocol}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_at_all(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            at in 0..120_usize,
            cut in 0..300_usize,
        ) {
            let mut data = sample(6, MESSAGE);
            let at = at.min(data.len());
            data.splice(at.., bytes.iter().copied());
            data.truncate(cut);
            for data in [data, bytes] {
                if let Some(found) = read(&data) {
                    let _ = (found.transport(), found.is_request());
                }
            }
        }
    }
}
