//! HEP, by which SIP servers and capture agents send copies of messages to a collector such as
//! Homer: versions 1, 2 and 3 (HEP3 network protocol specification, revision 36). Pure: bytes in,
//! what they say out; and the other way round, version 3 only.
//!
//! More than 400 lines: both directions, so that each is tested by the other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::message::{Head, StartLine, first_via};
use super::transport::Transport;

/// What version 3 begins with.
pub const MAGIC: &[u8; 4] = b"HEP3";

/// The length of what version 3 begins with: [`MAGIC`] and the length of all of it.
pub const HEADER: usize = 6;

/// The protocol numbers of TCP and UDP (`/etc/protocols`).
///
/// TCP is also what Asterisk (`res/res_hep_pjsip.c`) writes for all that runs over it, and
/// FreeSWITCH (`libs/sofia-sip/libsofia-sip-ua/tport/tport_logging.c`) for WebSocket.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;

/// The number of XNS-IDP, which stands for what has no number: for TLS in FreeSWITCH and OpenSIPS
/// (`pipport2su` in `modules/tracer/tracer.c`), for TLS and WebSocket in Kamailio (`pipport2su` in
/// `src/modules/siptrace/siptrace_hep.c`; its answers by WebSocket say TCP).
const AS_TLS: u8 = 22;

/// The number of ESP, which OpenSIPS writes for WebSocket, with TLS or without.
const AS_WS: u8 = 50;

/// The chunks of version 3 that are written, in the order of their numbers (specification, section
/// "Generic chunk types"; `decoder/decoder.go` of heplify-server).
mod chunk {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const FROM_IPV4: u16 = 3;
    pub(super) const TO_IPV4: u16 = 4;
    pub(super) const FROM_IPV6: u16 = 5;
    pub(super) const TO_IPV6: u16 = 6;
    pub(super) const FROM_PORT: u16 = 7;
    pub(super) const TO_PORT: u16 = 8;
    pub(super) const SECONDS: u16 = 9;
    pub(super) const MICROSECONDS: u16 = 10;
    pub(super) const KIND: u16 = 11;
    pub(super) const AGENT: u16 = 12;
    pub(super) const KEY: u16 = 14;
    pub(super) const PAYLOAD: u16 = 15;
    pub(super) const PACKED_PAYLOAD: u16 = 16;
    pub(super) const CORRELATION: u16 = 17;
    pub(super) const NODE_NAME: u16 = 19;
}

/// The protocol types of what is written (chunk 11).
const SIP: u8 = 1;
const LOG: u8 = 100;

/// The longest payload that is written, in bytes: with all other chunks it fits into a datagram.
pub const MAX_PAYLOAD: usize = 60_000;

/// The longest text that is written to another chunk, in bytes.
pub const MAX_TEXT: usize = 256;

/// What one packet tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    /// When it was seen: seconds and microseconds since 1970.
    pub time: (u32, u32),
    /// Who sent it, by number.
    pub agent: u32,
    /// Who sent it, by name.
    pub node_name: Option<&'a [u8]>,
    /// What it belongs to: of SIP the Call-ID.
    pub correlation: Option<&'a [u8]>,
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
    let end = usize::from(be16(data, 4)?).min(data.len());
    let mut rest = data.get(HEADER..end)?;
    let mut packet = HepPacket { version: 3, is_sip: true, ..HepPacket::default() };
    let four = |value: &[u8]| Some(u32::from_be_bytes(*value.first_chunk()?));
    while let Some(head) = rest.first_chunk::<6>() {
        let [vendor, kind, length] =
            [0, 2, 4].map(|at| u16::from_be_bytes([head[at], head[at + 1]]));
        let value = rest.get(6..usize::from(length).min(rest.len()))?;
        match (vendor, kind) {
            (0, chunk::PROTOCOL) => packet.protocol = *value.first()?,
            (0, chunk::FROM_IPV4) => packet.from = Some(IpAddr::from(*value.first_chunk::<4>()?)),
            (0, chunk::TO_IPV4) => packet.to = Some(IpAddr::from(*value.first_chunk::<4>()?)),
            (0, chunk::FROM_IPV6) => packet.from = Some(IpAddr::from(*value.first_chunk::<16>()?)),
            (0, chunk::TO_IPV6) => packet.to = Some(IpAddr::from(*value.first_chunk::<16>()?)),
            (0, chunk::FROM_PORT) => packet.from_port = be16(value, 0)?,
            (0, chunk::TO_PORT) => packet.to_port = be16(value, 0)?,
            (0, chunk::SECONDS) => packet.time.0 = four(value)?,
            (0, chunk::MICROSECONDS) => packet.time.1 = four(value)?,
            (0, chunk::KIND) => packet.is_sip = *value.first()? == SIP,
            (0, chunk::AGENT) => packet.agent = four(value)?,
            (0, chunk::KEY) => packet.key = Some(value),
            (0, chunk::PAYLOAD) => packet.message = Some(value),
            (0, chunk::PACKED_PAYLOAD) => {
                (packet.message, packet.is_packed) = (Some(value), true);
            }
            (0, chunk::CORRELATION) => packet.correlation = Some(value),
            (0, chunk::NODE_NAME) => packet.node_name = Some(value),
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
        is_sip: true,
        message: Some(message),
        ..HepPacket::default()
    })
}

/// Whether a text begins like a SIP message.
fn is_sip(text: &[u8]) -> bool {
    let line = text.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    line.starts_with(b"SIP/2.0 ")
        || line.ends_with(b" SIP/2.0") && line.first().is_some_and(u8::is_ascii_uppercase)
}

impl HepPacket<'_> {
    /// How the message was carried. UDP is what the protocol number says. Of what ran over TCP, or
    /// encrypted, most servers say no more; the topmost Via, in which a client may write what it
    /// likes, then only tells the names of these apart. None of other protocols.
    pub fn transport(&self) -> Option<Transport> {
        let named = || {
            let via = first_via(self.message.unwrap_or_default());
            via.and_then(Transport::from_name).filter(|one| one.is_stream())
        };
        match self.protocol {
            UDP => Some(Transport::Udp),
            AS_TLS => Some(named().filter(|one| *one != Transport::Tcp).unwrap_or(Transport::Tls)),
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

/// What is written as a packet of version 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing<'a> {
    /// The IP protocol that carried the message.
    pub protocol: u8,
    /// Where it came from.
    pub from: SocketAddr,
    /// Where it went.
    pub to: SocketAddr,
    /// When it was seen: seconds and microseconds since 1970.
    pub time: (u32, u32),
    /// The payload is a SIP message, else a log.
    pub is_sip: bool,
    /// Who sends it, by number.
    pub agent: u32,
    /// Who sends it, by name; empty for none. Cut at [`MAX_TEXT`], as the following two.
    pub node_name: &'a str,
    /// The authentication key; empty for none.
    pub key: &'a [u8],
    /// What it belongs to; empty for nothing.
    pub correlation: &'a [u8],
    /// The message; cut at [`MAX_PAYLOAD`].
    pub payload: &'a [u8],
}

impl Outgoing<'_> {
    /// The packet.
    pub fn write(&self) -> Vec<u8> {
        /// `AF_INET` and `AF_INET6` of Linux, as the specification has them.
        const FAMILIES: [u8; 2] = [2, 10];
        let mut packet = Vec::with_capacity(256 + self.payload.len().min(MAX_PAYLOAD));
        packet.extend(MAGIC);
        packet.extend([0; 2]);
        let mut add = |kind: u16, value: &[u8]| {
            // All are cut far below 65,535 bytes.
            let length = (value.len() + HEADER) as u16;
            packet.extend([0, kind, length].map(u16::to_be_bytes).concat());
            packet.extend(value);
        };
        let (from, to) = (self.from.ip().to_canonical(), self.to.ip().to_canonical());
        if let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) {
            add(chunk::FAMILY, &FAMILIES[..1]);
            add(chunk::FROM_IPV4, &from.octets());
            add(chunk::TO_IPV4, &to.octets());
        } else {
            let octets = |address| match address {
                IpAddr::V4(address) => Ipv4Addr::to_ipv6_mapped(&address).octets(),
                IpAddr::V6(address) => address.octets(),
            };
            add(chunk::FAMILY, &FAMILIES[1..]);
            add(chunk::FROM_IPV6, &octets(from));
            add(chunk::TO_IPV6, &octets(to));
        }
        add(chunk::PROTOCOL, &[self.protocol]);
        add(chunk::FROM_PORT, &self.from.port().to_be_bytes());
        add(chunk::TO_PORT, &self.to.port().to_be_bytes());
        add(chunk::SECONDS, &self.time.0.to_be_bytes());
        add(chunk::MICROSECONDS, &self.time.1.to_be_bytes());
        add(chunk::KIND, &[if self.is_sip { SIP } else { LOG }]);
        add(chunk::AGENT, &self.agent.to_be_bytes());
        let texts = [
            (chunk::NODE_NAME, self.node_name.as_bytes()),
            (chunk::KEY, self.key),
            (chunk::CORRELATION, self.correlation),
        ];
        for (kind, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            add(kind, &text[..text.len().min(MAX_TEXT)]);
        }
        add(chunk::PAYLOAD, &self.payload[..self.payload.len().min(MAX_PAYLOAD)]);
        let length = packet.len() as u16;
        packet[4..HEADER].copy_from_slice(&length.to_be_bytes());
        packet
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
            // What Kamailio writes for all that it encrypts or carries in WebSocket.
            (22, MESSAGE, Some(Transport::Wss)),
            (50, MESSAGE, Some(Transport::Wss)),
            (50, &lying[..], Some(Transport::Ws)),
            (17, MESSAGE, Some(Transport::Udp)),
            (132, MESSAGE, None),
        ] {
            let data = sample(protocol, message);
            assert_eq!(read(&data).unwrap().transport(), expected, "{protocol}");
        }
    }

    fn socket() -> impl Strategy<Value = SocketAddr> {
        any::<(IpAddr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let (key, payload) = ([b'k'; 1_000], vec![b'x'; 100_000]);
        let written = Outgoing {
            protocol: UDP,
            from: "192.0.2.7:5060".parse().unwrap(),
            to: "198.51.100.1:5060".parse().unwrap(),
            time: (1, 2),
            is_sip: true,
            agent: 2_001,
            node_name: "gateway",
            key: &key,
            correlation: b"",
            payload: &payload,
        };
        let data = written.write();
        assert_eq!(length(data.first_chunk().unwrap()), Some(data.len()));
        // The largest payload of a UDP datagram over IPv4.
        assert!(data.len() <= 65_507, "{}", data.len());
        let found = read(&data).unwrap();
        assert_eq!(found.message.map(<[u8]>::len), Some(MAX_PAYLOAD));
        assert_eq!((found.key.map(<[u8]>::len), found.correlation), (Some(MAX_TEXT), None));
        assert_eq!(found.transport(), Some(Transport::Udp));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            (from, to) in (socket(), socket()),
            (is_sip, is_tcp, agent, time) in any::<(bool, bool, u32, (u32, u32))>(),
            node_name in "[a-z0-9.-]{0,40}",
            key in prop::collection::vec(any::<u8>(), 0..40),
            correlation in prop::collection::vec(any::<u8>(), 0..40),
            payload in prop::collection::vec(any::<u8>(), 0..2_000),
        ) {
            let protocol = if is_tcp { TCP } else { UDP };
            let written = Outgoing {
                protocol, from, to, time, is_sip, agent, node_name: &node_name, key: &key,
                correlation: &correlation, payload: &payload,
            };
            let data = written.write();
            let found = read(&data).unwrap();
            let given = |text| Some(text).filter(|text: &&[u8]| !text.is_empty());
            prop_assert_eq!(length(data.first_chunk().unwrap()), Some(data.len()));
            prop_assert_eq!(found, HepPacket {
                version: 3,
                protocol,
                from: found.from,
                to: found.to,
                from_port: from.port(),
                to_port: to.port(),
                key: given(&key),
                is_sip,
                time,
                agent,
                node_name: given(node_name.as_bytes()),
                correlation: given(&correlation),
                is_packed: false,
                message: Some(&payload[..]),
            });
            let canonical = |ip: Option<IpAddr>| ip.map(|ip| ip.to_canonical());
            prop_assert_eq!(
                (canonical(found.from), canonical(found.to)),
                (Some(from.ip()), Some(to.ip()))
            );
        }

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
