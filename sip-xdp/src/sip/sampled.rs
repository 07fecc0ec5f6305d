//! TCP segments as the kernel samples them.

use sip_xdp_common::abi::layout::{EventKind, FRAGMENTED, KernelEvent, SampledSegment};
use sip_xdp_common::packet::checksum;
use sip_xdp_common::packet::headers::tcp_flags::{ACK, FIN, RST, SYN};

use super::stream::{Direction, Segment};

/// The segment, or the part of one, in an event. None if it is an event of another kind, or of a
/// segment that the host throws away.
pub fn segment(event: &KernelEvent) -> Option<Segment<'_>> {
    let direction = match EventKind::from_number(event.kind)? {
        EventKind::Segment => Direction::In,
        EventKind::SegmentLeaving => Direction::Out,
        _ => return None,
    };
    let sampled = event.segment()?;
    let (source, destination) = event.addresses()?;
    if direction == Direction::In && !is_delivered(event, &sampled) {
        return None;
    }
    let local = if direction == Direction::In { destination } else { source };
    let has = |flag: u8| sampled.flags & flag != 0;
    Some(Segment {
        time: event.time,
        peer: event.source,
        peer_port: event.port,
        local,
        local_port: event.local_port,
        direction,
        sequence: sampled.sequence,
        acknowledges: has(ACK).then_some(sampled.acknowledges),
        syn: has(SYN),
        fin: has(FIN),
        rst: has(RST),
        payload: sampled.payload,
        length: sampled.length,
        is_fragment: event.flags & FRAGMENTED != 0,
    })
}

/// Whether the host takes a segment that arrived, as far as that is seen: of one that is all there
/// the checksum is right. A wrong one would otherwise hide what comes in its place.
fn is_delivered(event: &KernelEvent, sampled: &SampledSegment<'_>) -> bool {
    let is_whole = !sampled.header.is_empty()
        && sampled.payload.len() == sampled.length
        && event.flags & FRAGMENTED == 0;
    let Some((source, destination)) = event.addresses().filter(|_| is_whole) else {
        return true;
    };
    checksum::is_segment_delivered(&source, &destination, sampled.header, sampled.payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable as _;
    use sip_xdp_common::abi::layout::SEGMENT;
    use sip_xdp_common::ip_key::IpKey;

    /// 192.0.2.7:5060 to 198.51.100.1:5060, `hi`, with the checksum computed by hand: addresses
    /// c000 + 0207 + c633 + 6401, protocol and length 0006 + 0016, header 13c4 + 13c4 + 0000 + 0007
    /// + 0000 + 0009 + 5018 + 2000, payload 6869: 2_ec70 in all, folded ec72, inverted 138d.
    fn event(checksum: u16) -> KernelEvent {
        let mut event = KernelEvent::zeroed();
        event.kind = EventKind::Segment as u8;
        event.source = IpKey::v4(u32::from_le_bytes([192, 0, 2, 7]));
        (event.port, event.local_port) = (5_060, 5_060);
        event.ip[0] = 0x45;
        event.ip[12..20].copy_from_slice(&[192, 0, 2, 7, 198, 51, 100, 1]);
        let mut head = vec![0x13, 0xc4, 0x13, 0xc4, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x18, 0x20, 0];
        head.extend(checksum.to_be_bytes());
        head.extend([0, 0]);
        head.extend(b"hi");
        event.head[..head.len()].copy_from_slice(&head);
        event.head_length = head.len() as u16;
        (event.first, event.seen, event.registers) = (2, 7, 9);
        event.limited = 20 << 8 | 0x18;
        event
    }

    #[test]
    fn a_sampled_segment_is_read_as_it_was() {
        let event = event(0x138d);
        let found = segment(&event).unwrap();
        assert_eq!((found.peer, found.peer_port, found.local_port), (event.source, 5_060, 5_060));
        assert_eq!(found.local, IpKey::v4(u32::from_le_bytes([198, 51, 100, 1])));
        assert_eq!((found.sequence, found.acknowledges), (7, Some(9)));
        assert_eq!((found.payload, found.length, found.fin), (&b"hi"[..], 2, false));
        let leaving = KernelEvent { kind: EventKind::SegmentLeaving as u8, ..event };
        let found = segment(&leaving).unwrap();
        assert_eq!(found.direction, Direction::Out);
        assert_eq!(found.local, event.source, "the sender's");
        assert!(segment(&KernelEvent { kind: EventKind::Request as u8, ..event }).is_none());
    }

    #[test]
    fn what_the_host_throws_away_is_no_segment() {
        assert!(segment(&event(0x138c)).is_none());
        // As it was handed over without a wire: the sum of the pseudo header alone.
        let pseudo = 0xc000_u32 + 0x0207 + 0xc633 + 0x6401 + 6 + 22;
        let folded = (pseudo >> 16) + (pseudo & 0xffff);
        assert!(segment(&event(folded as u16)).is_some());
        // What is not all there cannot be checked.
        assert!(segment(&KernelEvent { first: 3, ..event(0) }).is_some());
        assert!(segment(&KernelEvent { flags: FRAGMENTED, ..event(0) }).is_some());
    }

    #[test]
    fn the_second_part_of_a_segment_has_no_header() {
        let mut event = event(0);
        event.limited = 0x18;
        (event.first, event.seen) = (22, 1_459);
        let found = segment(&event).unwrap();
        assert_eq!((found.sequence, found.payload.len(), found.length), (1_459, 22, 22));
        // Lengths that cannot be.
        event.limited = 60 << 8;
        assert!(segment(&event).is_none());
        event.head_length = SEGMENT as u16 + 1;
        assert!(segment(&event).is_none());
    }
}
