//! What a sample of an arriving packet says beside its payload, and what is said of responses that
//! went unseen.

use sip_xdp::net::network::address_of;
use sip_xdp_common::abi::layout::{EventKind, KernelEvent, RESPONSE_UNSEEN_NS, RESPONSES_UNSEEN};
use sip_xdp_common::packet::checksum::Datagram;

use crate::kernel::frames::{Ip, ethernet, fragment, request, sip, udp, udp_from, vlan};
use crate::kernel::harness::{Kernel, START, settings};

fn samples(kernel: &mut Kernel, kind: EventKind) -> Vec<KernelEvent> {
    kernel.events().into_iter().filter(|event| event.kind == kind as u8).collect()
}

/// Whether the host would deliver what a sample shows.
fn is_delivered(event: &KernelEvent) -> bool {
    Datagram {
        source: event.source,
        destination: event.destination().unwrap(),
        source_port: event.port,
        destination_port: event.local_port,
        checksum: event.checksum(),
        payload: &event.head[..usize::from(event.head_length)],
    }
    .is_delivered()
}

/// The same with a checksum, which stands six bytes into the UDP header.
fn with_checksum(payload: &[u8], checksum: u16) -> Vec<u8> {
    let mut datagram = udp(5060, payload);
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    datagram
}

#[test]
fn a_sample_has_its_destination_and_checksum() {
    let mut kernel = Kernel::new(&settings());
    for (source, us) in [("192.0.2.7", "198.51.100.1"), ("2001:db8:7::7", "2001:db8::1")] {
        let ip = Ip::udp(source);
        let tagged = ethernet(
            0x8100,
            vlan(7, ip.ethertype(), ip.build(&with_checksum(&request("REGISTER"), 0x1234))),
        );
        for frame in [ip.frame(&with_checksum(&request("REGISTER"), 0x1234)), tagged] {
            kernel.run(&frame);
            let events = samples(&mut kernel, EventKind::Request);
            assert_eq!(events.len(), 1, "{source}");
            assert_eq!(address_of(events[0].destination().unwrap()).to_string(), us);
            assert_eq!(events[0].checksum(), 0x1234);
            assert!(!is_delivered(&events[0]), "one checksum in 65,536 is right");
        }
        // None at all is what IPv4 allows.
        kernel.run(&sip(source, &request("REGISTER")));
        let events = samples(&mut kernel, EventKind::Request);
        assert_eq!(is_delivered(&events[0]), source.contains('.'), "{source}");
    }
}

#[test]
fn every_response_that_arrives_is_sampled() {
    let mut kernel = Kernel::new(&settings());
    for source in ["192.0.2.7", "2001:db8:7::7"] {
        kernel.run(&sip(source, b"SIP/2.0 200 OK\r\n\r\n"));
        assert_eq!(samples(&mut kernel, EventKind::Response).len(), 1, "{source}");
    }
}

/// Whether our next response is marked: one that arrived went unseen.
fn is_marked(kernel: &mut Kernel) -> bool {
    let us = Ip::udp("198.51.100.1");
    kernel.leave(&us.frame(&udp_from(5060, 40_000, b"SIP/2.0 200 OK\r\nCSeq: 1 REGISTER\r\n\r\n")));
    let events = samples(kernel, EventKind::Answer);
    assert_eq!(events.len(), 1);
    events[0].flags & RESPONSES_UNSEEN != 0
}

#[test]
fn an_unseen_response_marks_outgoing_ones() {
    let tiny = Ip { fragment: 0x2000, ..Ip::udp("192.0.2.7") }.frame(&udp(5060, b""));
    let tiny_v6 = Ip { extensions: vec![(44, fragment(0, true))], ..Ip::udp("2001:db8:7::7") };
    let tiny_v6 = tiny_v6.frame(&udp(5060, b"SIP/"));
    for frame in [tiny, tiny_v6] {
        let mut kernel = Kernel::new(&settings());
        assert!(!is_marked(&mut kernel));
        kernel.run(&sip("192.0.2.8", b"SIP/2.0 200 OK\r\n\r\n"));
        assert!(!is_marked(&mut kernel), "it was seen");
        kernel.run(&frame);
        assert!(is_marked(&mut kernel));
        kernel.set_clock(START + RESPONSE_UNSEEN_NS - 1);
        assert!(is_marked(&mut kernel));
        kernel.set_clock(START + RESPONSE_UNSEEN_NS);
        assert!(!is_marked(&mut kernel), "it is long ago");
    }
}

/// One sender of responses spends the samples of its slice; its later ones are not seen.
#[test]
fn responses_beyond_the_budget_mark_what_leaves() {
    let mut kernel = Kernel::new(&settings());
    let mut seen = 0;
    for n in 0..16 {
        // The limit of what is not a request is 300 in 10 s for each source.
        for _ in 0..290 {
            kernel.action(&sip(&format!("192.0.2.{n}"), b"SIP/2.0 200 OK\r\n\r\n"));
        }
        seen += samples(&mut kernel, EventKind::Response).len();
    }
    let is_any_lost = seen < 16 * 290;
    assert_eq!(is_marked(&mut kernel), is_any_lost, "{seen} seen");
}
