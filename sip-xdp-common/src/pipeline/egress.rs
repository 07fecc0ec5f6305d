//! The egress pipeline: classification of outgoing SIP messages. Nothing outgoing is ever dropped.

use crate::ip_key::IpKey;
use crate::packet::headers::{self, Fragmentation, TCP};
use crate::packet::reader::Reader;
use crate::pipeline::ingress::{ProgramSettings, Segment};
use crate::sip;
use crate::verdict::Message;

/// The class of a response of the server.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// 2xx.
    Accepted,
    /// 401 or 407 (RFC 3261, 22).
    Challenged,
    /// 403, 404, 484 or 604.
    Refused,
    /// Anything else: provisional, redirection, other failures.
    Other,
}

impl Answer {
    /// Number of classes.
    pub const COUNT: usize = 4;

    /// The class of a status code (RFC 3261, 21).
    #[inline(always)]
    pub const fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Accepted,
            401 | 407 => Self::Challenged,
            403 | 404 | 484 | 604 => Self::Refused,
            _ => Self::Other,
        }
    }
}

/// An outgoing SIP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaving {
    /// Destination address.
    pub destination: IpKey,
    /// Destination port, in host order.
    pub port: u16,
    /// Source port, in host order.
    pub local_port: u16,
    /// Message kind.
    pub message: Message,
    /// Status code of a response; 0 for requests.
    pub status: u16,
    /// Start of the UDP payload.
    pub payload: usize,
    /// End of the UDP payload.
    pub end: usize,
    /// Whether the payload continues in other fragments.
    pub first_fragment: bool,
}

/// An outgoing TCP segment from a SIP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeavingSegment {
    /// Destination address.
    pub destination: IpKey,
    /// Destination port, in host order.
    pub port: u16,
    /// Source port, in host order.
    pub local_port: u16,
    /// Offset of the IP header.
    pub ip: usize,
    /// Offset of the TCP header.
    pub transport: usize,
    /// End of the payload.
    pub end: usize,
    /// The segment.
    pub segment: Segment,
}

/// What leaves by a SIP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaves {
    /// A SIP message by UDP.
    Message(Leaving),
    /// A TCP segment.
    Segment(LeavingSegment),
}

/// The lowest final status code (RFC 3261, 7.2).
pub const FINAL: u16 = 200;

/// Whether the daemon needs responses with this status: final ones, 18x, since ringing proves that
/// the credentials were right, and 100 to strangers ([`is_for_strangers`]).
#[inline(always)]
pub const fn is_sampled(status: u16) -> bool {
    status >= FINAL || status.wrapping_sub(180) < 10 || is_for_strangers(status)
}

/// Whether a response with this status is needed for strangers alone: 100, since calls that the
/// server works on are no flood that it ignores.
#[inline(always)]
pub const fn is_for_strangers(status: u16) -> bool {
    status == 100
}

/// Whether a response with this status refuses a password, or asks for one.
#[inline(always)]
pub const fn is_refusal(status: u16) -> bool {
    matches!(status, 401 | 403 | 407)
}

/// Parses an outgoing packet. `None` if it is neither a SIP message by UDP from a SIP port nor a
/// TCP segment from one.
#[inline(always)]
pub fn read<R: Reader, S: ProgramSettings>(packet: &R, site: &S) -> Option<Leaves> {
    let ip = headers::parse_headers(packet, site.link(), site.inspects())?;
    let is_tcp = ip.protocol == TCP;
    if !(ip.is_udp() || is_tcp)
        || matches!(ip.fragmentation, Fragmentation::Later | Fragmentation::Hidden)
    {
        return None;
    }
    let ports = ip.ports(packet)?;
    let (local_port, port) = (ports.source(), ports.destination());
    if !site.is_sip_port(local_port) {
        return None;
    }
    if is_tcp {
        let tcp = ip.tcp(packet)?;
        let segment = Segment {
            sequence: tcp.sequence,
            acknowledges: tcp.acknowledges,
            header: packet.verifier_widen(tcp.header),
            flags: tcp.flags,
            payload: packet.verifier_widen(ip.end.saturating_sub(ip.transport + tcp.header)),
        };
        let destination = ip.destination(packet)?;
        let (at, transport, end) = (ip.at, ip.transport, ip.end);
        let leaving =
            LeavingSegment { destination, port, local_port, ip: at, transport, end, segment };
        return Some(Leaves::Segment(leaving));
    }
    let (payload, end) = ip.udp_payload(packet)?;
    // The server's messages begin with their start line: no blanks to skip.
    if payload + sip::STATUS_END > end {
        return None;
    }
    let message = sip::start_line(packet, payload, end);
    let status = match message {
        Message::Response => sip::status(packet, payload).unwrap_or(0),
        message if message.is_request() => 0,
        _ => return None,
    };
    let destination = ip.destination(packet)?;
    let first_fragment = matches!(ip.fragmentation, Fragmentation::First);
    let leaving =
        Leaving { destination, port, local_port, message, status, payload, end, first_fragment };
    Some(Leaves::Message(leaving))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::headers::{Inspects, Link, UDP};
    use crate::packet::reader::Bytes;

    struct Tun;

    impl ProgramSettings for Tun {
        fn link(&self) -> Link {
            Link::Ip
        }

        fn inspects(&self) -> Inspects {
            Inspects::ALL
        }

        fn is_sip_port(&self, port: u16) -> bool {
            port == 5060
        }
    }

    fn leaving(port: u16, payload: &str) -> Option<Leaving> {
        let mut packet = vec![0x45, 0];
        packet.extend((28 + payload.len() as u16).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, UDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 7]);
        packet.extend(port.to_be_bytes());
        packet.extend([0x9c, 0x40]);
        packet.extend((8 + payload.len() as u16).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(payload.as_bytes());
        match read(&Bytes(&packet), &Tun)? {
            Leaves::Message(leaving) => Some(leaving),
            Leaves::Segment(segment) => panic!("{segment:?}"),
        }
    }

    #[test]
    fn segments_are_read_with_their_numbers() {
        let segment = |port: u16, flags: u8, payload: &[u8]| {
            let mut packet = vec![0x45, 0];
            packet.extend((44 + payload.len() as u16).to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, TCP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 7]);
            packet.extend(port.to_be_bytes());
            packet.extend([0x9c, 0x40, 1, 2, 3, 4, 5, 6, 7, 8, 0x60, flags, 0, 0, 0, 0, 0, 0]);
            packet.extend([1; 4]);
            packet.extend(payload);
            match read(&Bytes(&packet), &Tun) {
                Some(Leaves::Segment(segment)) => Some(segment),
                _ => None,
            }
        };
        let found = segment(5060, 0x18, b"SIP/2.0 200").unwrap();
        assert_eq!((found.port, found.local_port), (0x9c40, 5060));
        assert_eq!((found.ip, found.transport, found.end), (0, 20, 55));
        let Segment { sequence, acknowledges, header, payload, .. } = found.segment;
        assert_eq!((sequence, acknowledges, header), (0x0102_0304, 0x0506_0708, 24));
        assert!(payload == 11 && found.segment.is_read() && !found.segment.is_handshake());
        assert_eq!(segment(5080, 0x18, b"x"), None);
        // ACK, FIN, RST, SYN/ACK, SYN: read, handshake, request.
        for (flags, expected) in [
            (0x10, [false, false, false]),
            (0x11, [true, false, false]),
            (0x14, [true, true, false]),
            (0x12, [false, true, false]),
            (0x02, [false, false, true]),
            (0xc2, [false, false, true]),
        ] {
            let found = segment(5060, flags, b"").unwrap().segment;
            let is = [found.is_read(), found.is_handshake(), found.is_request()];
            assert_eq!(is, expected, "{flags:#x}");
        }
    }

    #[test]
    fn responses_are_sampled_by_their_status() {
        let answer = |line| leaving(5060, line).map(|leaving| Answer::of(leaving.status));
        for (line, expected) in [
            ("SIP/2.0 200 OK\r\n", Some(Answer::Accepted)),
            ("SIP/2.0 299 Fine\r\n", Some(Answer::Accepted)),
            ("SIP/2.0 401 Unauthorized\r\n", Some(Answer::Challenged)),
            ("SIP/2.0 407 Proxy\r\n", Some(Answer::Challenged)),
            ("SIP/2.0 403 Forbidden\r\n", Some(Answer::Refused)),
            ("SIP/2.0 404 Not Found\r\n", Some(Answer::Refused)),
            ("SIP/2.0 484 Incomplete\r\n", Some(Answer::Refused)),
            ("SIP/2.0 604 Nowhere\r\n", Some(Answer::Refused)),
            ("SIP/2.0 100 Trying\r\n", Some(Answer::Other)),
            ("SIP/2.0 503 Busy\r\n", Some(Answer::Other)),
            ("SIP/2.0 x00 ?\r\n", Some(Answer::Other)),
            ("SIP/2.0 2\t0 ?\r\n", Some(Answer::Other)),
            ("SIP/2.0 200", Some(Answer::Accepted)),
            ("SIP/2.0 20", None),
            ("", None),
        ] {
            assert_eq!(answer(line), expected, "{line}");
        }
        assert_eq!(leaving(53, "SIP/2.0 200 OK\r\n"), None);
        let sampled: Vec<u16> = (0..700).filter(|status| is_sampled(*status)).collect();
        assert_eq!((sampled[0], sampled[1], sampled[10]), (100, 180, 189));
        assert_eq!((sampled[11], sampled.len()), (200, 511));
    }

    #[test]
    fn requests_say_where_they_go() {
        let leaving = leaving(5060, "OPTIONS sip:a SIP/2.0\r\n").unwrap();
        assert_eq!(leaving.destination, IpKey::v4(u32::from_le_bytes([192, 0, 2, 7])));
        assert_eq!((leaving.message, leaving.status), (Message::Options, 0));
        assert_eq!((leaving.local_port, leaving.port), (5060, 0x9c40));
        assert_eq!((leaving.payload, leaving.end), (28, 51));
    }
}
