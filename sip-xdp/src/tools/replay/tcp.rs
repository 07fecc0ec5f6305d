//! TCP segments of a capture, as `sip::stream` takes them.

use sip_xdp_common::packet::headers::{self, Fragmentation, Inspects, Link};
use sip_xdp_common::packet::reader::Bytes;

use crate::sip::stream::{Direction, Segment};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// The shortest header, in bytes (RFC 9293, section 3.1).
const HEADER: usize = 20;

/// The segment in a frame, or the beginning of one in a first fragment; none if there is no whole
/// header of one.
pub(super) fn segment(frame: &[u8], direction: Direction, time: u64) -> Option<Segment<'_>> {
    let packet = Bytes(frame);
    let ip = headers::parse_headers(&packet, Link::Ethernet, Inspects::ALL)?;
    let is_fragment = ip.fragmentation == Fragmentation::First;
    if ip.protocol != headers::TCP || ip.fragmentation != Fragmentation::Whole && !is_fragment {
        return None;
    }
    let header = frame.get(ip.transport..)?.first_chunk::<HEADER>()?;
    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|n| header[at + n]));
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (offset, flags) = (usize::from(header[12] >> 4) * 4, header[13]);
    let start = ip.transport + offset.max(HEADER);
    let payload = frame.get(start..ip.end.min(frame.len())).unwrap_or_default();
    let (source, destination) = (ip.source(&packet)?, ip.destination(&packet)?);
    let ends = [(source, port(0)), (destination, port(2))];
    let [(peer, peer_port), (local, local_port)] = match direction {
        Direction::In => ends,
        Direction::Out => [ends[1], ends[0]],
    };
    Some(Segment {
        time,
        peer,
        peer_port,
        local,
        local_port,
        direction,
        sequence: word(4),
        acknowledges: (flags & ACK != 0).then(|| word(8)),
        syn: flags & SYN != 0,
        fin: flags & FIN != 0,
        rst: flags & RST != 0,
        payload,
        length: ip.end.saturating_sub(start).max(payload.len()),
        is_fragment,
    })
}

/// The payload of a segment, as far as it is there.
pub(super) fn payload(frame: &[u8]) -> Option<&[u8]> {
    segment(frame, Direction::In, 0).map(|segment| segment.payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(flags: u8, options: usize, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((40 + options as u16 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 7, 198, 51, 100, 1]);
        frame.extend([0x9c, 0x40, 0x13, 0xc4, 0, 0, 0, 7, 0, 0, 0, 9]);
        frame.extend([(((20 + options) / 4) << 4) as u8, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(vec![1; options]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn a_segment_is_read_as_it_is() {
        let data = frame(ACK, 12, b"OPTIONS");
        let found = segment(&data, Direction::In, 5).unwrap();
        assert_eq!((found.peer_port, found.local_port), (40_000, 5_060));
        assert_eq!((found.sequence, found.acknowledges), (7, Some(9)));
        assert_eq!((found.payload, found.length), (&b"OPTIONS"[..], 7));
        let left = segment(&data, Direction::Out, 5).unwrap();
        assert_eq!((left.peer_port, left.local, left.peer), (5_060, found.peer, found.local));
        let syn = segment(&frame(SYN, 0, b""), Direction::In, 5).map(|one| (one.syn, one.fin));
        assert_eq!(syn, Some((true, false)));
        // Padded to the shortest frame, or cut off.
        let padded = [&data[..], &[0; 6]].concat();
        assert_eq!(payload(&padded), Some(&b"OPTIONS"[..]));
        let cut = segment(&data[..data.len() - 3], Direction::In, 5).unwrap();
        assert_eq!((cut.payload, cut.length), (&b"OPTI"[..], 7));
        (0..data.len()).for_each(|length| _ = segment(&data[..length], Direction::In, 5));
    }
}
