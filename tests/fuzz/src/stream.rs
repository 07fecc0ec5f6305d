//! Any bytes as one side of a TCP connection: cut anywhere, out of order and repeated they give the
//! same messages as in one piece; and any script of segments, lost and forged ones too, stays
//! within the bounds.

use sip_xdp::sip::message::Head;
use sip_xdp::sip::stream::{Direction, MAX_BYTES, MAX_CONNECTIONS, MAX_HEAD, Segment, Streams};
use sip_xdp_common::ip_key::IpKey;

/// Bytes in front that say how the rest is sent.
const SCRIPT: usize = 16;

/// Takes any bytes, and panics if something that must hold does not.
pub fn run(bytes: &[u8]) {
    let (script, stream) = bytes.split_at(bytes.len().min(SCRIPT));
    let mut random = script.iter().fold(1_u64, |seed, byte| {
        (seed ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    });
    let mut next = |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % bound.max(1)
    };
    let whole = messages(stream, &[(0, stream.len())]);
    let mut cuts: Vec<usize> = (0..next(100)).map(|_| next(stream.len() + 1)).collect();
    cuts.extend([0, stream.len()]);
    cuts.sort_unstable();
    let mut parts: Vec<(usize, usize)> = cuts.windows(2).map(|two| (two[0], two[1])).collect();
    for _ in 0..next(30) {
        let (one, other) = (next(parts.len()), next(parts.len()));
        parts.swap(one, other);
    }
    for _ in 0..next(20) {
        let (from, to) = parts[next(parts.len())];
        let again = (from.saturating_sub(next(9)), (to + next(9)).min(stream.len()));
        parts.insert(next(parts.len() + 1), again);
    }
    assert_eq!(messages(stream, &parts), whole, "{parts:?}");
    anything_goes(stream, &mut next);
}

fn segment(direction: Direction, sequence: u32, payload: &[u8]) -> Segment<'_> {
    Segment {
        time: 1,
        peer: IpKey::v4(7),
        peer_port: 40_000,
        local: IpKey::v4(1),
        local_port: 5_060,
        direction,
        sequence,
        acknowledges: Some(1),
        syn: false,
        fin: false,
        rst: false,
        payload,
        length: payload.len(),
        is_fragment: false,
    }
}

/// The messages of a stream that is sent in these parts.
fn messages(stream: &[u8], parts: &[(usize, usize)]) -> Vec<(Vec<u8>, usize, bool, bool)> {
    const FIRST: u32 = u32::MAX - 100;
    let mut streams = Streams::default();
    let answer =
        Segment { syn: true, acknowledges: Some(FIRST), ..segment(Direction::Out, 0, b"") };
    streams.take(&answer, &mut |_| {});
    let mut found = Vec::new();
    for (from, to) in parts {
        let sequence = FIRST.wrapping_add(*from as u32);
        streams.take(&segment(Direction::In, sequence, &stream[*from..*to]), &mut |message| {
            assert!(message.bytes.len() <= MAX_HEAD && message.bytes.len() <= message.length);
            assert!(message.is_proven, "it acknowledged our SYN");
            if message.is_whole {
                assert!(Head::read(message.bytes).is_some_and(|head| head.complete));
            }
            let bytes = message.bytes.to_vec();
            found.push((bytes, message.length, message.is_whole, message.is_certain));
        });
    }
    assert_eq!(streams.counts().lost, 0);
    found
}

/// Segments of several connections in both directions, with any numbers and flags.
fn anything_goes(stream: &[u8], next: &mut impl FnMut(usize) -> usize) {
    let mut streams = Streams::default();
    for time in 0..next(200) {
        let (from, length) = (next(stream.len() + 1), next(200));
        let payload = &stream[from..(from + length).min(stream.len())];
        let direction = if next(2) == 0 { Direction::In } else { Direction::Out };
        let flags = next(64);
        let one = Segment {
            time: (time * next(4) * 1_000_000_000) as u64,
            peer: IpKey::v4(next(3) as u32),
            acknowledges: (flags & 3 != 0).then(|| next(1_000) as u32),
            syn: flags & 12 == 12,
            fin: flags & 48 == 48,
            rst: flags == 0,
            length: payload.len() + if next(8) == 0 { next(3_000) } else { 0 },
            ..segment(direction, next(2_000) as u32, payload)
        };
        streams.take(&one, &mut |message| {
            assert!(message.bytes.len() <= MAX_HEAD);
        });
        assert!(streams.connections() <= MAX_CONNECTIONS && streams.bytes() <= MAX_BYTES);
    }
    streams.tidy(u64::MAX);
    assert_eq!((streams.connections(), streams.bytes()), (0, 0), "nothing is left behind");
}
