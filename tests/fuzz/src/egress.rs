//! Any bytes as an outgoing packet. The first byte is the [`Interface`].

use sip_xdp_common::packet::headers::{self, FastPathHeaders, Link};
use sip_xdp_common::packet::reader::Bytes;
use sip_xdp_common::pipeline::egress::{self, Leaves, Leaving, LeavingSegment};
use sip_xdp_common::pipeline::ingress::ProgramSettings;
use sip_xdp_common::verdict::Message;

use crate::site::Interface;

/// Parses any bytes as an outgoing packet, and panics if an invariant is violated.
pub fn run(bytes: &[u8]) {
    let Some((site, bytes)) = bytes.split_first() else {
        return;
    };
    let site = Interface(*site);
    if matches!(site.link(), Link::Ethernet)
        && let Some(FastPathHeaders { ip, source, ports }) = headers::parse_fast_path(&Bytes(bytes))
    {
        let located = headers::parse_headers(&Bytes(bytes), site.link(), site.inspects());
        assert_eq!(located, Some(ip), "the short way and the long one find different headers");
        assert_eq!(
            (ip.source(&Bytes(bytes)), ip.ports(&Bytes(bytes))),
            (Some(source), Some(ports))
        );
    }
    match egress::read(&Bytes(bytes), &site) {
        Some(Leaves::Message(leaving)) => check(bytes, &site, &leaving),
        Some(Leaves::Segment(leaving)) => check_segment(bytes, &site, &leaving),
        None => {}
    }
}

fn check_segment(bytes: &[u8], site: &Interface, leaving: &LeavingSegment) {
    let LeavingSegment { port, local_port, ip, transport, segment, .. } = *leaving;
    assert!(site.is_sip_port(local_port));
    assert!((20..=60).contains(&segment.header));
    assert!(ip + 20 <= transport && transport + 16 <= bytes.len());
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    assert_eq!((word(transport), word(transport + 2)), (local_port, port));
    assert!(!(segment.is_request() && (segment.is_read() || segment.is_handshake())));
}

fn check(bytes: &[u8], site: &Interface, leaving: &Leaving) {
    let Leaving { destination, port, local_port, message, status, payload, end, .. } = *leaving;
    assert!(site.is_sip_port(local_port));
    // Ports, length and checksum precede the payload, whose start line has at least a word.
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    assert_eq!((word(payload - 8), word(payload - 6)), (local_port, port));
    assert!(
        payload + 8 <= bytes.len() && payload + 11 <= end,
        "{payload} to {end} of {}",
        bytes.len()
    );
    assert!(end - payload <= usize::from(u16::MAX));
    match message {
        Message::Response => assert!(status < 1_000),
        _ => assert!(message.is_request() && status == 0),
    }
    // The destination ends before the payload, behind the possible link headers.
    let octets =
        if destination.is_v4() { &destination.octets()[12..] } else { &destination.octets()[..] };
    assert!(
        bytes[..payload - 8].windows(octets.len()).any(|part| part == octets),
        "a destination from nowhere"
    );
}
