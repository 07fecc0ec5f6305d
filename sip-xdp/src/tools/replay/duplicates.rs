//! Duplicate packets in a capture: of all interfaces of a host with containers, or of both
//! directions of a mirrored port. Copies are not counted as packets.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash as _, Hasher as _};

use sip_xdp_common::packet::headers::{self, Fragmentation, Inspects, Link};
use sip_xdp_common::packet::reader::Bytes;

/// Maximum delay of a copy, in nanoseconds. Clients retransmit after half a second at the earliest
/// (RFC 3261, section 17.1.1.2).
const WINDOW: u64 = 5_000_000;

/// Maximum number of copies per packet. An attacker may repeat a packet: further ones count as
/// packets.
const MOST_COPIES: u8 = 3;

/// Recently captured packets.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    /// Time of the first capture, and number of copies.
    seen: HashMap<u64, (u64, u8)>,
    order: VecDeque<(u64, u64)>,
}

impl Duplicates {
    /// Whether a packet is a copy of a recently captured one.
    ///
    /// In captures of several interfaces (`is_any`) copies have the same remote address, ports and
    /// message, which survive address translation and bridges. Elsewhere the IP identification must
    /// be equal as well, and not zero, which some systems send constantly.
    pub(super) fn is_copy(
        &mut self,
        frame: &[u8],
        at: u64,
        is_arriving: bool,
        is_any: bool,
    ) -> bool {
        while let Some((_, hash)) =
            self.order.pop_front_if(|(then, _)| at.saturating_sub(*then) > WINDOW || *then > at)
        {
            self.seen.remove(&hash);
        }
        let Some(hash) = hash(frame, is_arriving, is_any) else {
            return false;
        };
        match self.seen.get_mut(&hash) {
            Some((_, copies)) if *copies < MOST_COPIES => {
                *copies += 1;
                true
            }
            Some(first) => {
                *first = (at, 0);
                false
            }
            None => {
                self.seen.insert(hash, (at, 0));
                self.order.push_back((at, hash));
                false
            }
        }
    }
}

/// The hash of what copies share; `None` for anything but an unfragmented UDP packet.
fn hash(frame: &[u8], is_arriving: bool, is_any: bool) -> Option<u64> {
    let packet = Bytes(frame);
    let ip = headers::parse_headers(&packet, Link::Ethernet, Inspects::ALL)?;
    if ip.protocol != headers::UDP || ip.fragmentation != Fragmentation::Whole {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    if !is_any {
        let identification =
            frame.get(ip.at + 4..ip.at + 6).filter(|two| ip.v4 && *two != [0, 0])?;
        identification.hash(&mut hasher);
    }
    // The local address may be translated on the way.
    let peer = if is_arriving { ip.source(&packet)? } else { ip.destination(&packet)? };
    (is_arriving, peer.octets()).hash(&mut hasher);
    // Ports and message, without length and checksum, which may not be filled in yet.
    frame.get(ip.transport..ip.transport + 4)?.hash(&mut hasher);
    frame.get(ip.transport + 8..ip.end.min(frame.len()))?.hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(identification: u16, to: u8, message: &str) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((28 + message.len() as u16).to_be_bytes());
        frame.extend(identification.to_be_bytes());
        frame.extend([0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, to, 0x13, 0xc4, 0x13, 0xc4]);
        frame.extend((8 + message.len() as u16).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(message.as_bytes());
        frame
    }

    #[test]
    fn copies_are_told_from_what_is_sent_again() {
        const MS: u64 = 1_000_000;
        let mut any = Duplicates::default();
        let mut copies = |at: u64, id: u16, to: u8, message: &str| {
            any.is_copy(&frame(id, to, message), at, true, true)
        };
        assert!(!copies(1_000 * MS, 7, 1, "INVITE a"));
        assert!(copies(1_000 * MS + 10_000, 8, 2, "INVITE a"), "translated");
        assert!(copies(1_001 * MS, 9, 2, "INVITE a"));
        assert!(!copies(1_001 * MS, 9, 2, "INVITE b"));
        assert!(!copies(1_500 * MS, 10, 1, "INVITE a"), "sent again");
        // A flood of one packet stays a flood.
        let counted = (0..4_000)
            .filter(|number| !copies(2_000 * MS + number * MS / 4, 0, 1, "OPTIONS"))
            .count();
        assert!((1_000..=1_200).contains(&counted), "{counted}");
    }

    #[test]
    fn on_one_interface_the_identification_tells() {
        let mut one = Duplicates::default();
        let mut copies = |at: u64, id: u16| one.is_copy(&frame(id, 1, "OPTIONS"), at, true, false);
        assert!(!copies(1, 7) && copies(2, 7) && !copies(3, 8), "a mirror shows both directions");
        assert!(!copies(4, 0) && !copies(5, 0), "systems that do not count write zero");
    }
}
