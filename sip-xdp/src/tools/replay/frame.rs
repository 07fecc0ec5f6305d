//! What a captured packet is to the programs: an Ethernet frame, whatever it was captured with.

use sip_xdp_common::ip_key::Source;
use sip_xdp_common::lookup::search::Listed;
use sip_xdp_common::packet::headers::{self, ETH_IPV4, ETH_IPV6, Inspects, Link};
use sip_xdp_common::packet::reader::Bytes;
use sip_xdp_common::pipeline::egress;
use sip_xdp_common::pipeline::ingress::{self, Charged, FlowState, Sent, Site, Tables};
use sip_xdp_common::verdict::{Message, Reason};

use crate::dataplane::loader::Ports;

/// How much of a packet is shown to the programs: more than they look at or hand on, so that nothing else changes.
const SHOWN: usize = 2_048;

/// Link types (tcpdump.org/linktypes.html) that are read, and their names.
const LINKS: [(i32, &str); 10] = [
    (NULL, "null"),
    (ETHERNET, "ethernet"),
    (12, "raw"),
    (14, "raw"),
    (101, "raw"),
    (LOOP, "loop"),
    (SLL, "sll"),
    (228, "ipv4"),
    (229, "ipv6"),
    (SLL2, "sll2"),
];

/// BSD loopback: four bytes for the protocol family in the byte order of whoever wrote it.
const NULL: i32 = 0;
const ETHERNET: i32 = 1;
/// OpenBSD loopback: the same in network order.
const LOOP: i32 = 108;
/// Linux cooked capture.
const SLL: i32 = 113;
/// Linux cooked capture, version 2.
const SLL2: i32 = 276;

/// The name of a link type; none for one that is not read.
pub(super) fn link_name(link: i32) -> Option<&'static str> {
    LINKS.iter().find(|(number, _)| *number == link).map(|(_, name)| *name)
}

/// An Ethernet frame of a captured packet, made in `buffer` unless it is one already. `None` for what is none, or is cut
/// off within its link header. VLAN tags stay.
pub(super) fn ethernet<'a>(link: i32, data: &'a [u8], buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let shown = |bytes: &'a [u8]| &bytes[..bytes.len().min(SHOWN)];
    let by_version = |data: &[u8]| match data.first()? >> 4 {
        4 => Some(ETH_IPV4),
        6 => Some(ETH_IPV6),
        _ => None,
    };
    let be16 = |at: usize| Some(u16::from_be_bytes(*data.get(at..)?.first_chunk()?));
    let (protocol, header) = match link {
        ETHERNET => return (data.len() >= 14).then(|| shown(data)),
        SLL => (be16(14)?, 16),
        SLL2 => (be16(0)?, 20),
        NULL | LOOP => (by_version(data.get(4..)?)?, 4),
        _ => (by_version(data)?, 0),
    };
    buffer.clear();
    buffer.extend([0; 12]);
    buffer.extend(protocol.to_be_bytes());
    buffer.extend(shown(data.get(header..)?));
    Some(buffer)
}

/// Who sent a packet to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) source: Source,
    pub(super) destination: Source,
    /// The ports of both, where the packet shows them.
    pub(super) ports: Option<(u16, u16)>,
    pub(super) protocol: u8,
}

/// The ends of a frame; none if it is no IP packet.
pub(super) fn ends(frame: &[u8]) -> Option<Ends> {
    let packet = Bytes(frame);
    let ip = headers::locate(&packet, Link::Ethernet, Inspects::ALL)?;
    let ports = if matches!(ip.protocol, headers::UDP | headers::TCP) && !matches!(ip.piece, headers::Piece::Later) {
        ip.ports(&packet).map(|ports| (ports.source(), ports.destination()))
    } else {
        None
    };
    Some(Ends { source: ip.source(&packet)?, destination: ip.destination(&packet)?, ports, protocol: ip.protocol })
}

/// What the kernel's parser takes the UDP payload of a frame for.
pub(super) fn message(frame: &[u8]) -> Option<Message> {
    let packet = Bytes(frame);
    let ip = headers::locate(&packet, Link::Ethernet, Inspects::ALL)?;
    let (payload, end) = (ip.protocol == headers::UDP).then(|| ip.udp_payload(&packet)).flatten()?;
    Some(sip_xdp_common::sip::start_line(&packet, payload, end))
}

/// Knows by the kernel's own functions which packets mean nothing to the programs. Of those that arrive: everybody is
/// trusted here, and it trusts only those who are headed for a SIP port.
pub(super) struct Doorway {
    pub(super) ports: Ports,
    pub(super) inspects: Inspects,
}

impl Doorway {
    /// Why a packet passes without being looked at, if it does.
    pub(super) fn passes_by(&self, frame: &[u8]) -> Option<Reason> {
        let reason = ingress::judge(&Bytes(frame), self).reason;
        (reason != Reason::Trusted).then_some(reason)
    }

    /// Whether a packet that leaves may be worth a sample: a request, or a response that is told.
    pub(super) fn may_matter(&self, frame: &[u8]) -> bool {
        let leaving = egress::read(&Bytes(frame), self);
        leaving.is_some_and(|leaving| leaving.message != Message::Response || egress::is_told(leaving.status))
    }
}

impl Site for Doorway {
    fn link(&self) -> Link {
        Link::Ethernet
    }

    fn inspects(&self) -> Inspects {
        self.inspects
    }

    fn is_sip_port(&self, port: u16) -> bool {
        self.ports.contains(port)
    }
}

impl Tables for Doorway {
    type Place = ();

    fn scope_all(&self) -> bool {
        false
    }

    fn is_closed(&self) -> bool {
        false
    }

    fn listing(&self, _: &Source, _: Listed) -> Listed {
        Listed::new(Listed::TRUSTED)
    }

    fn flow(&self, _: &Source, _: u16) -> FlowState {
        FlowState::Stranger
    }

    fn was_asked(&self, _: &Source) -> bool {
        false
    }

    fn place(&self, _: &Source, _: &Listed) {}

    fn charge(&self, _: Message, _: &Sent, (): ()) -> Charged {
        Charged::Within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_matters_if_it_may_be_sampled() {
        let doorway = Doorway { ports: Ports::new([(5060, 5060)]), inspects: Inspects::ALL };
        let frame = |port: u16, payload: &str| {
            let mut frame = vec![0; 12];
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((28 + payload.len() as u16).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, headers::UDP, 0, 0, 192, 0, 2, 1, 192, 0, 2, 7]);
            frame.extend(port.to_be_bytes());
            frame.extend([0x9c, 0x40]);
            frame.extend((8 + payload.len() as u16).to_be_bytes());
            frame.extend([0, 0]);
            frame.extend(payload.as_bytes());
            frame
        };
        for (port, line, expected) in [
            (5060, "SIP/2.0 200 OK\r\n", true),
            (5060, "SIP/2.0 401 Unauthorized\r\n", true),
            (5060, "OPTIONS sip:a SIP/2.0\r\n", true),
            (5060, "SIP/2.0 100 Trying\r\n", false),
            (5060, "SIP/2.0 183 Session Progress\r\n", true),
            (5060, "\r\n\r\n", false),
            (5070, "SIP/2.0 200 OK\r\n", false),
        ] {
            assert_eq!(doorway.may_matter(&frame(port, line)), expected, "{port} {line}");
        }
    }
}
