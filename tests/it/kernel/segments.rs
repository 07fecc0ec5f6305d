//! SIP over TCP in the kernel: connections are metered by their SYN, and the payload of segments is
//! sampled in both directions.

use std::net::Ipv4Addr;

use sip_xdp::dataplane::loader::Settings;
use sip_xdp::net::network::{address_of, source_of};
use sip_xdp_common::abi::layout::{CHUNKS, EventKind, KernelEvent, List, NEVER, SEGMENT};
use sip_xdp_common::limits::gcra::LimitKind;
use sip_xdp_common::packet::headers::tcp_flags::{ACK, FIN, RST, SYN};
use sip_xdp_common::verdict::Reason;

use crate::kernel::frames::{Ip, ethernet, request, segment, sip, vlan};
use crate::kernel::harness::{Kernel, SECOND, START, settings};

const HOST: &str = "192.0.2.7";
const US: &str = "198.51.100.1";

fn by_tcp(source: &str) -> Ip {
    Ip { protocol: 6, ..Ip::udp(source) }
}

fn syn(source: &str) -> Vec<u8> {
    by_tcp(source).frame(&segment((40_000, 5060), SYN, 1, 0, 5, b""))
}

fn data(source: &str, sequence: u32, payload: &[u8]) -> Vec<u8> {
    by_tcp(source).frame(&segment((40_000, 5060), ACK, sequence, 77, 3, payload))
}

fn answer(flags: u8, payload: &[u8]) -> Vec<u8> {
    by_tcp("192.0.2.1").frame(&segment((5060, 40_000), flags, 77, 9, 3, payload))
}

fn of(kernel: &mut Kernel, kind: EventKind) -> Vec<KernelEvent> {
    kernel.events().into_iter().filter(|event| event.kind == kind as u8).collect()
}

fn reasons(kernel: &mut Kernel, frame: &[u8], count: usize) -> Vec<Reason> {
    (0..count).map(|_| kernel.run(frame).reason).collect()
}

/// Connections, segments, sampled, unsampled, limited.
fn counted(kernel: &Kernel) -> [u64; 5] {
    let tcp = kernel.counted().tcp;
    [tcp.connections, tcp.segments, tcp.sampled, tcp.unsampled, tcp.limited]
}

#[test]
fn connections_are_limited_and_nothing_else_with_them() {
    for host in [HOST, "2001:db8:7::7"] {
        let mut kernel = Kernel::new(&settings());
        let passed = reasons(&mut kernel, &syn(host), 80);
        assert_eq!(passed[..60], [Reason::Unknown; 60], "{host}");
        assert_eq!(passed[60..], [Reason::Limited; 20], "{host}");
        // One event in 50 ms, which is of no flood.
        let events = of(&mut kernel, EventKind::Limited);
        assert_eq!(events.len(), 1, "{host}");
        assert_eq!(LimitKind::from_number(events[0].bucket), Some(LimitKind::Connections));
        assert_eq!((events[0].seen, events[0].limited), (0, 1), "no requests");
        // What is connected, and UDP, go on.
        assert_eq!(kernel.run(&data(host, 2, b"REGISTER")).reason, Reason::Unknown, "{host}");
        assert_eq!(kernel.run(&sip(host, &request("OPTIONS"))).reason, Reason::Unknown, "{host}");
        assert_eq!(counted(&kernel), [80, 1, 1, 0, 20], "{host}");
        // Six a second.
        kernel.set_clock(START + SECOND);
        let later = reasons(&mut kernel, &syn(host), 10);
        assert_eq!(later.iter().filter(|one| **one == Reason::Unknown).count(), 6, "{host}");
        // Any flags beside SYN, but an acknowledgement, which no connection begins with.
        let odd = segment((40_000, 5060), SYN | 0xc0, 1, 0, 0, b"");
        assert_eq!(kernel.run(&by_tcp(host).frame(&odd)).reason, Reason::Limited);
        let acknowledged = segment((40_000, 5060), SYN | ACK, 1, 1, 0, b"");
        assert_eq!(kernel.run(&by_tcp(host).frame(&acknowledged)).reason, Reason::Unknown);
    }
}

/// 8 KiB of payload at once, then 8 KiB/s, however it is cut; a segment that is longer than the
/// bucket passes when that is full. Known-good and admitted sources have no such limit.
#[test]
fn payload_of_strangers_is_limited_by_its_length() {
    for host in [HOST, "2001:db8:7::7"] {
        for (length, expected) in [(1, 128), (64, 128), (65, 64), (400, 18), (1_400, 5)] {
            let mut kernel = Kernel::new(&settings());
            let frame = data(host, 2, &vec![b'x'; length]);
            let passed = reasons(&mut kernel, &frame, 200);
            let count = passed.iter().filter(|one| **one == Reason::Unknown).count();
            assert_eq!(count, expected, "{host}, {length} bytes");
            let events = of(&mut kernel, EventKind::Limited);
            assert_eq!(LimitKind::from_number(events[0].bucket), Some(LimitKind::Stream));
            // Neither acknowledgements nor connections, nor UDP.
            let empty = data(host, 2, b"");
            assert_eq!(kernel.run(&empty).reason, Reason::Unknown, "{host}");
            assert_eq!(kernel.run(&syn(host)).reason, Reason::Unknown, "{host}");
            assert_eq!(kernel.run(&sip(host, &request("OPTIONS"))).reason, Reason::Unknown);
            kernel.set_clock(START + SECOND / 2);
            let later = reasons(&mut kernel, &frame, 200);
            let count = later.iter().filter(|one| **one == Reason::Unknown).count();
            let half = expected / 2;
            assert!((half.saturating_sub(1)..=half + 1).contains(&count), "{host}: {count}");
        }
    }
    let mut kernel = Kernel::new(&settings());
    let long = data(HOST, 2, &[b'x'; 9_000]);
    assert_eq!(reasons(&mut kernel, &long, 2), [Reason::Unknown, Reason::Limited]);
    kernel.list(List::Admit, "203.0.113.2", NEVER);
    let good = source_of("203.0.113.3".parse().unwrap());
    kernel.lists.know(good, START, |standing| standing.good_until = START + SECOND).unwrap();
    for (host, reason) in [("203.0.113.2", Reason::Unknown), ("203.0.113.3", Reason::Good)] {
        let frame = data(host, 2, &[b'x'; 1_400]);
        assert_eq!(reasons(&mut kernel, &frame, 90), [reason; 90], "{host}");
    }
}

/// Payload ahead of the handshake (TCP Fast Open) could be read by the host alone.
#[test]
fn strangers_send_no_payload_with_a_syn() {
    let mut kernel = Kernel::new(&settings());
    let fast = segment((40_000, 5060), SYN, 1, 0, 5, &request("REGISTER"));
    assert_eq!(kernel.run(&by_tcp(HOST).frame(&fast)).reason, Reason::Limited);
    assert_eq!(kernel.run(&syn(HOST)).reason, Reason::Unknown);
}

#[test]
fn the_limit_of_connections_is_one_of_its_own() {
    let mut kernel = Kernel::new(&settings());
    // Keepalives of UDP that anybody can forge cost no connection, nor the other way round.
    assert_eq!(*reasons(&mut kernel, &sip(HOST, b"\r\n"), 400).last().unwrap(), Reason::Limited);
    assert_eq!(reasons(&mut kernel, &syn(HOST), 60), [Reason::Unknown; 60]);
    assert_eq!(reasons(&mut kernel, &sip(HOST, &request("OPTIONS")), 50), [Reason::Unknown; 50]);
    assert_eq!(kernel.run(&syn(HOST)).reason, Reason::Limited);
}

#[test]
fn known_and_admitted_sources_have_the_generous_limit() {
    let mut kernel = Kernel::new(&settings());
    kernel.list(List::Trust, "203.0.113.1", NEVER);
    kernel.list(List::Admit, "203.0.113.2", NEVER);
    let good = source_of("203.0.113.3".parse().unwrap());
    kernel.lists.know(good, START, |standing| standing.good_until = START + SECOND).unwrap();
    for (host, reason) in [
        ("203.0.113.1", Reason::Trusted),
        ("203.0.113.2", Reason::Unknown),
        ("203.0.113.3", Reason::Good),
    ] {
        assert_eq!(reasons(&mut kernel, &syn(host), 90), [reason; 90], "{host}");
        let read = kernel.run(&data(host, 2, b"REGISTER")).reason;
        assert_eq!(read, reason, "{host}");
        let is_sampled = !of(&mut kernel, EventKind::Segment).is_empty();
        assert_eq!(is_sampled, reason != Reason::Trusted, "{host}");
    }
}

#[test]
fn a_flood_of_connections_from_everywhere_is_a_storm() {
    let mut kernel = Kernel::new(&settings());
    assert_eq!(kernel.run(&syn(HOST)).reason, Reason::Unknown);
    let mut counts = [0_u32; 2];
    for n in 0..20_000_u32 {
        kernel.set_clock(START + u64::from(n) * SECOND / 20_000);
        let source = Ipv4Addr::from(0x0b00_0000 + n * 7).to_string();
        match kernel.run(&syn(&source)).reason {
            Reason::Unknown => counts[0] += 1,
            Reason::Storm => counts[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    println!("of 20,000 SYNs {counts:?} passed, were dropped");
    assert!((2_000..3_200).contains(&counts[0]), "{counts:?}");
    let tracked = kernel.sources.tracked().unwrap();
    assert!(tracked < 3_000, "{tracked} meters");
    // Whoever has a meter does not notice; payload of others is within the storm's budget.
    assert_eq!(kernel.run(&syn(HOST)).reason, Reason::Unknown);
    assert_eq!(kernel.run(&data(HOST, 2, b"REGISTER")).reason, Reason::Unknown);
    assert_eq!(kernel.run(&data("192.0.2.99", 2, b"REGISTER")).reason, Reason::Storm);
    assert_eq!(kernel.run(&data("192.0.2.99", 2, b"")).reason, Reason::Unknown);
}

#[test]
fn blocked_sources_lose_connections_and_what_is_connected() {
    let mut kernel = Kernel::new(&Settings { closed: true, ..settings() });
    for frame in [syn(HOST), data(HOST, 2, b"REGISTER")] {
        assert_eq!(kernel.run(&frame).reason, Reason::Closed);
    }
    kernel.list(List::Block, HOST, NEVER);
    for frame in [syn(HOST), data(HOST, 2, b"REGISTER")] {
        assert_eq!(kernel.run(&frame).reason, Reason::Blocked);
    }
    assert_eq!(of(&mut kernel, EventKind::Segment).len(), 0);
    assert_eq!(counted(&kernel), [0; 5]);
}

/// A segment that arrives is handed on with its header, its numbers and both addresses.
#[test]
fn what_arrives_is_sampled_with_its_numbers() {
    let payload = request("REGISTER");
    for (source, us) in [(HOST, US), ("2001:db8:7::7", "2001:db8::1")] {
        let mut kernel = Kernel::new(&settings());
        let ip = by_tcp(source);
        let tcp = segment((40_000, 5060), ACK | 8, 0x1234_5678, 0x9abc_def0, 3, &payload);
        let tagged = ethernet(0x8100, vlan(7, ip.ethertype(), ip.build(&tcp)));
        for frame in [ip.frame(&tcp), tagged] {
            assert_eq!(kernel.run(&frame).reason, Reason::Unknown);
            let events = of(&mut kernel, EventKind::Segment);
            assert_eq!(events.len(), 1, "{source}");
            let event = &events[0];
            let (from, to) = event.addresses().unwrap();
            assert_eq!(
                (address_of(from).to_string(), address_of(to).to_string()),
                (source.to_owned(), us.to_owned())
            );
            assert_eq!(event.source, from);
            assert_eq!((event.port, event.local_port), (40_000, 5060));
            let found = event.segment().unwrap();
            assert_eq!((found.header, found.payload), tcp.split_at(32));
            assert_eq!(found.length, payload.len());
            assert_eq!((found.sequence, found.acknowledges), (0x1234_5678, 0x9abc_def0));
            assert_eq!(found.flags, ACK | 8);
        }
        // What says nothing is not handed on; what ends a connection is.
        for (flags, payload, expected) in [
            (ACK, &b""[..], 0),
            (SYN, b"", 0),
            (SYN | ACK, b"", 0),
            (ACK | FIN, b"", 1),
            (RST, b"", 1),
            (ACK, b"\r\n\r\n", 1),
        ] {
            let tcp = segment((40_000, 5060), flags, 1, 1, 0, payload);
            kernel.run(&ip.frame(&tcp));
            assert_eq!(of(&mut kernel, EventKind::Segment).len(), expected, "{flags:#x}");
        }
        // The padding of a short frame is no payload.
        let mut padded = ip.frame(&segment((40_000, 5060), ACK, 1, 1, 0, b""));
        padded.resize(padded.len() + 6, 0);
        kernel.run(&padded);
        assert_eq!(of(&mut kernel, EventKind::Segment).len(), 0);
    }
}

#[test]
fn what_leaves_is_sampled_and_so_is_our_half_of_a_handshake() {
    let mut kernel = Kernel::new(&settings());
    for (flags, payload, expected) in [
        (SYN | ACK, &b""[..], 1),
        (ACK, b"", 0),
        (RST, b"", 1),
        (ACK | FIN, b"", 1),
        (ACK, b"SIP/2.0 401 Unauthorized\r\n\r\n", 1),
        (SYN, b"", 0),
    ] {
        kernel.leave(&answer(flags, payload));
        let events = of(&mut kernel, EventKind::SegmentLeaving);
        assert_eq!(events.len(), expected, "{flags:#x}");
        let Some(event) = events.first() else {
            continue;
        };
        let found = event.segment().unwrap();
        assert_eq!((found.payload, found.flags, found.sequence), (payload, flags, 77));
        let (from, to) = event.addresses().unwrap();
        assert_eq!((from != to, event.source), (true, to));
        assert_eq!((event.port, event.local_port), (40_000, 5060));
    }
    // Of other ports, and to whom is trusted, nothing.
    kernel.leave(&by_tcp("192.0.2.1").frame(&segment(
        (443, 40_000),
        ACK,
        1,
        1,
        0,
        b"SIP/2.0 200 OK",
    )));
    assert_eq!(kernel.events().len(), 0);
    kernel.leave(&answer(ACK, b"x"));
    let to = address_of(kernel.events()[0].source).to_string();
    kernel.list(List::Trust, &to, NEVER);
    kernel.leave(&answer(ACK, b"SIP/2.0 401 Unauthorized\r\n\r\n"));
    assert_eq!(kernel.events().len(), 0);
}

/// Segments that are longer than an event come in several; the rest of an even longer one is said
/// to be missing. BPF_PROG_TEST_RUN takes no more than a page.
#[test]
fn long_segments_come_in_pieces() {
    let mut kernel = Kernel::new(&settings());
    // So that its payload is not limited.
    kernel.list(List::Admit, HOST, NEVER);
    let long: Vec<u8> = (0..3_300_u32).map(|n| (n % 251) as u8).collect();
    for length in [1, 1_448, SEGMENT - 32, SEGMENT - 31, 2 * SEGMENT - 32, 3_300] {
        let payload = &long[..length];
        for leaving in [false, true] {
            let kind = if leaving {
                kernel.leave(&answer(ACK | FIN, payload));
                EventKind::SegmentLeaving
            } else {
                let tcp = segment((40_000, 5060), ACK | FIN, 77, 9, 3, payload);
                kernel.run(&by_tcp(HOST).frame(&tcp));
                EventKind::Segment
            };
            let events = of(&mut kernel, kind);
            assert_eq!(events.len(), (length + 32).div_ceil(SEGMENT), "{length}");
            let mut seen = Vec::new();
            for (n, event) in events.iter().enumerate() {
                let found = event.segment().unwrap();
                assert_eq!(found.sequence as usize, 77 + seen.len(), "{length}");
                assert_eq!(found.length, found.payload.len(), "{length}");
                assert_eq!(found.header.is_empty(), n > 0);
                assert_eq!(found.flags & FIN != 0, n + 1 == events.len(), "{length}");
                seen.extend_from_slice(found.payload);
            }
            assert_eq!(seen, payload, "{length}");
        }
    }
    const { assert!(CHUNKS * SEGMENT >= 4_096 + 60) };
}

/// First fragments could hide what a segment carries: they have the limit of fragments.
#[test]
fn fragments_of_segments_are_limited() {
    let mut kernel = Kernel::new(&settings());
    let tcp = segment((40_000, 5060), ACK, 1, 1, 0, b"REGI");
    let first = Ip { fragment: 0x2000, ..by_tcp(HOST) };
    let seen = reasons(&mut kernel, &first.frame(&tcp), 20);
    assert_eq!(seen[..10], [Reason::Unknown; 10]);
    assert_eq!(seen[10..], [Reason::Limited; 10]);
    assert_eq!(of(&mut kernel, EventKind::Segment).len(), 10);
    // One that is too short for its flags may be anything.
    assert_eq!(kernel.run(&first.frame(&tcp[..8])).reason, Reason::Limited);
    kernel.set_clock(START + 2 * SECOND);
    assert_eq!(kernel.run(&first.frame(&tcp[..8])).reason, Reason::Unknown);
}
