//! The limits in the kernel: from the exact packet on, per source, and never for keepalives.

use sip_xdp::dataplane::loader::Settings;
use sip_xdp_common::abi::layout::{BY_ADDRESS, EventKind, KernelEvent, List, NEVER};
use sip_xdp_common::limits::gcra::LimitKind;
use sip_xdp_common::verdict::{Message, Reason};

use crate::kernel::frames::{Ip, fragment, request, sip, udp};
use crate::kernel::harness::{Kernel, SECOND, START, settings};

const STRANGER: &str = "192.0.2.7";

fn passed(kernel: &mut Kernel, source: &str, payload: &[u8], count: usize) -> usize {
    let frame = sip(source, payload);
    (0..count).filter(|_| !kernel.run(&frame).dropped).count()
}

/// Limits reported since the last call.
fn limited(kernel: &mut Kernel) -> Vec<KernelEvent> {
    kernel.events().into_iter().filter(|event| event.kind == EventKind::Limited as u8).collect()
}

#[test]
fn the_very_packet_over_the_limit_is_dropped_and_reported() {
    let mut kernel = Kernel::new(&settings());
    let frame = sip(STRANGER, &request("REGISTER"));
    for n in 0..50 {
        assert!(!kernel.run(&frame).dropped, "request {n}");
    }
    assert!(limited(&mut kernel).is_empty());
    let outcome = kernel.run(&frame);
    assert!(outcome.dropped);
    assert_eq!(outcome.reason, Reason::Limited);
    let events = limited(&mut kernel);
    let [event] = events.as_slice() else { panic!("{} events", events.len()) };
    assert_eq!((event.bucket, event.message), (LimitKind::Requests as u8, Message::Register as u8));
    assert_eq!((event.seen, event.registers, event.limited), (1, 1, 1));
    assert_eq!((event.port, event.local_port), (40_000, 5060));
    assert_eq!((event.time, event.first), (START, START));
    assert_eq!(sip_xdp::net::network::address_of(event.source).to_string(), STRANGER);
    let head = request("REGISTER");
    assert_eq!(&event.head[..usize::from(event.head_length)], head.as_slice());
}

#[test]
fn time_refills_what_was_used() {
    let mut kernel = Kernel::new(&settings());
    assert_eq!(passed(&mut kernel, STRANGER, &request("OPTIONS"), 60), 50);
    kernel.set_clock(START + SECOND);
    assert_eq!(passed(&mut kernel, STRANGER, &request("OPTIONS"), 60), 5);
    kernel.set_clock(START + 60 * SECOND);
    assert_eq!(passed(&mut kernel, STRANGER, &request("OPTIONS"), 60), 50);
}

#[test]
fn a_slow_flood_of_register_meets_its_own_limit() {
    let mut kernel = Kernel::new(&settings());
    let frame = sip(STRANGER, &request("REGISTER"));
    let dropped_at = (0..600).find(|n| {
        kernel.set_clock(START + n * SECOND / 4);
        kernel.run(&frame).dropped
    });
    assert!(dropped_at.is_some_and(|n| (100..=180).contains(&n)), "{dropped_at:?}");
    assert_eq!(limited(&mut kernel)[0].bucket, LimitKind::Register as u8);
    // Other requests go on.
    assert_eq!(kernel.run(&sip(STRANGER, &request("OPTIONS"))).reason, Reason::Unknown);
}

#[test]
fn keepalives_cost_no_requests_and_no_ban() {
    let mut kernel = Kernel::new(&settings());
    let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    stun.resize(20, 7);
    for payload in [&b"\r\n\r\n"[..], b"", &[0; 4], &stun, b"SIP/2.0 200 OK\r\n\r\n", b"noise"] {
        passed(&mut kernel, STRANGER, payload, 100);
    }
    assert_eq!(
        passed(&mut kernel, STRANGER, &request("REGISTER"), 50),
        50,
        "no request was used up"
    );
    // They have a limit of their own, which is reported as such.
    assert_eq!(kernel.run(&sip(STRANGER, b"\r\n\r\n")).reason, Reason::Limited);
    assert!(limited(&mut kernel).iter().all(|event| event.bucket == LimitKind::Other as u8));
}

#[test]
fn sources_are_metered_apart() {
    let mut kernel = Kernel::new(&settings());
    assert_eq!(passed(&mut kernel, "192.0.2.7", &request("INVITE"), 60), 50);
    assert_eq!(passed(&mut kernel, "192.0.2.8", &request("INVITE"), 60), 50);
}

#[test]
fn ipv6_is_metered_by_its_network() {
    let mut kernel = Kernel::new(&settings());
    let dropped = (0..200)
        .filter(|n| kernel.run(&sip(&format!("2001:db8:7::{n:x}"), &request("INVITE"))).dropped);
    assert_eq!(dropped.count(), 150);
    assert_eq!(passed(&mut kernel, "2001:db8:7:1::1", &request("INVITE"), 60), 50);
}

#[test]
fn ipv6_near_the_host_is_metered_by_address() {
    let mut kernel = Kernel::new(&settings());
    kernel.lists.set_by_address(["2001:db8:7::/64".parse().unwrap()].into()).unwrap();
    assert_eq!(passed(&mut kernel, "2001:db8:7::1", &request("INVITE"), 60), 50);
    assert_eq!(passed(&mut kernel, "2001:db8:7::2", &request("INVITE"), 60), 50);
    assert!(limited(&mut kernel).iter().all(|event| event.flags & BY_ADDRESS != 0));
    // Trust inside such a network, and around it, keeps its meaning.
    kernel.list(List::Trust, "2001:db8:7::1", NEVER);
    assert_eq!(kernel.run(&sip("2001:db8:7::1", &request("INVITE"))).reason, Reason::Trusted);
    kernel.list(List::Trust, "2001:db8::/32", NEVER);
    assert_eq!(kernel.run(&sip("2001:db8:7::2", &request("INVITE"))).reason, Reason::Trusted);
}

#[test]
fn events_keep_their_distance_and_losses_are_bounded() {
    let mut kernel = Kernel::new(&settings());
    let frame = sip(STRANGER, &request("REGISTER"));
    for n in 0..1_000 {
        kernel.set_clock(START + n * SECOND / 500);
        kernel.run(&frame);
    }
    let events = limited(&mut kernel).len();
    assert!((30..=40).contains(&events), "{events} events in two seconds");
}

#[test]
fn the_limits_are_the_configured_ones() {
    let mut limits = crate::kernel::harness::limits();
    limits.requests = sip_xdp_common::limits::gcra::Pace::new(3, SECOND);
    let mut kernel = Kernel::new(&Settings { limits, ..settings() });
    assert_eq!(passed(&mut kernel, STRANGER, &request("SUBSCRIBE"), 10), 3);
}

/// Messages that a sample does not hold entirely: first fragments, and those of more than 1,472
/// bytes.
#[test]
fn fragmented_and_overlong_messages_have_their_own_limit() {
    let long = [request("REGISTER"), vec![b'x'; 1_500]].concat();
    let first = |source: &str| {
        Ip { fragment: 0x2000, ..Ip::udp(source) }.frame(&udp(5060, &request("INVITE")))
    };
    let mut kernel = Kernel::new(&settings());
    // The packet that creates the meter is not charged.
    assert_eq!(passed(&mut kernel, "192.0.2.8", &long, 30), 11);
    let run =
        |kernel: &mut Kernel, frame: &[u8]| (0..30).filter(|_| !kernel.run(frame).dropped).count();
    assert_eq!(run(&mut kernel, &first("192.0.2.9")), 11);
    let first_v6 = Ip { extensions: vec![(44, fragment(0, true))], ..Ip::udp("2001:db8::9") };
    assert_eq!(run(&mut kernel, &first_v6.frame(&udp(5060, &request("INVITE")))), 11);
    // Complete messages of the same source pass.
    assert_eq!(passed(&mut kernel, "192.0.2.8", &request("OPTIONS"), 3), 3);
    kernel.set_clock(START + 10 * SECOND);
    assert_eq!(passed(&mut kernel, "192.0.2.8", &long, 30), 10);
}
