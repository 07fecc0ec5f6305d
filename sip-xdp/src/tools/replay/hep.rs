//! HEP in captures: a copy of a message becomes the UDP packet that it came in.

use std::net::IpAddr;

use crate::sip::hep::{self, HepPacket};

/// The contents of a HEP packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HepEnds {
    /// A SIP message over UDP, as an IP packet.
    Packet(Vec<u8>),
    /// Something else, by name.
    Other(&'static str),
}

/// The protocol number of UDP.
const UDP: u8 = 17;

/// Parses a HEP packet; `None` if it is none.
pub(super) fn read(data: &[u8]) -> Option<HepEnds> {
    let HepPacket { protocol, from, to, from_port, to_port, is_sip, is_packed, message, .. } =
        hep::read(data)?;
    if !is_sip {
        return Some(HepEnds::Other("HEP of something else than SIP"));
    }
    if is_packed {
        return Some(HepEnds::Other("HEP with compressed messages"));
    }
    if protocol != UDP {
        return Some(HepEnds::Other("HEP of TCP or TLS"));
    }
    Some(HepEnds::Packet(packet((from?, from_port), (to?, to_port), message?)?))
}

/// A UDP packet; `None` with addresses of two families, or if it would be too long.
fn packet(
    (from, from_port): (IpAddr, u16),
    (to, to_port): (IpAddr, u16),
    message: &[u8],
) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len() + 8).ok()?;
    let mut packet = Vec::with_capacity(message.len() + 48);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend(length.checked_add(20)?.to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([UDP, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => return None,
    }
    packet.extend(from_port.to_be_bytes());
    packet.extend(to_port.to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(message);
    Some(packet)
}
