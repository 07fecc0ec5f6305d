//! Storms in the kernel: a flood in which every packet has a new source must neither fill the table
//! of sources, nor push real ones out of it, nor be stopped at the price of those who are known.

use sip_xdp_common::abi::layout::{EventKind, IN_STORM, KernelEvent, List, NEVER};
use sip_xdp_common::verdict::Reason;

use crate::kernel::frames::{request, sip};
use crate::kernel::harness::{Kernel, SECOND, START, settings};

/// One of many forged sources.
fn forged(n: u32) -> String {
    std::net::Ipv4Addr::from(0x0b00_0000 + n * 7).to_string()
}

/// What became of a flood.
#[derive(Debug, PartialEq, Eq)]
struct Flood {
    passed: u32,
    /// How many events told of a storm.
    events: usize,
}

/// Sends one request from each of `count` new sources within a second that starts at `at`.
fn flood(kernel: &mut Kernel, from: u32, count: u32, at: u64) -> Flood {
    let mut flood = Flood { passed: 0, events: 0 };
    for n in 0..count {
        // Somebody reads events, as the daemon does: thousands of samples have no room in the ring.
        if n % 256 == 0 {
            flood.events += storms(kernel);
        }
        kernel.set_clock(at + u64::from(n) * SECOND / u64::from(count));
        let outcome = kernel.run(&sip(&forged(from + n), &request("REGISTER")));
        assert!(matches!(outcome.reason, Reason::Unknown | Reason::Storm), "{outcome:?}");
        flood.passed += u32::from(!outcome.dropped);
    }
    flood.events += storms(kernel);
    flood
}

fn storms(kernel: &mut Kernel) -> usize {
    kernel.events().iter().filter(|event| event.kind == EventKind::Storm as u8).count()
}

#[test]
fn a_flood_of_new_sources_is_a_storm() {
    let mut kernel = Kernel::new(&settings());
    let phone = "192.0.2.7";
    assert_eq!(kernel.run(&sip(phone, &request("REGISTER"))).reason, Reason::Unknown);
    kernel.list(List::Trust, "192.0.2.200", NEVER);

    let first = flood(&mut kernel, 0, 20_000, START);
    let after_first = kernel.sources.tracked().unwrap();
    let second = flood(&mut kernel, 20_000, 20_000, START + SECOND);
    let after_second = kernel.sources.tracked().unwrap();
    println!(
        "of 20,000 new sources a second: {first:?}, then {second:?}; meters: {after_first}, then \
         {after_second}"
    );
    assert!((2_000..3_200).contains(&first.passed), "{first:?}");
    assert!((400..1_100).contains(&second.passed), "{second:?}");
    let events = first.events + second.events;
    assert!((1..=3).contains(&events), "{events} storm events in two seconds");
    assert!(after_second - after_first < 120, "{after_first} meters, then {after_second}");

    // The detector is told which samples are a stranger's; who was known before goes on, and so do
    // those who are trusted.
    kernel.set_clock(START + 2 * SECOND + SECOND / 4);
    assert_eq!(kernel.run(&sip(&forged(50_000), &request("REGISTER"))).reason, Reason::Unknown);
    for n in 0..20 {
        assert_eq!(
            kernel.run(&sip(phone, &request("REGISTER"))).reason,
            Reason::Unknown,
            "request {n}"
        );
    }
    let samples = kernel.events();
    let is_strange = |event: &KernelEvent| event.flags & IN_STORM != 0;
    assert!(is_strange(&samples[0]) && !samples[1..].iter().any(is_strange), "{samples:?}");
    assert_eq!(samples.len(), 21);
    assert_eq!(kernel.run(&sip("192.0.2.200", &request("REGISTER"))).reason, Reason::Trusted);

    // And when it is calm again, strangers are welcome.
    kernel.set_clock(START + 10 * SECOND);
    assert_eq!(
        flood(&mut kernel, 50_000, 500, START + 10 * SECOND),
        Flood { passed: 500, events: 0 }
    );
}

#[test]
fn one_heavy_sender_is_no_storm() {
    let mut kernel = Kernel::new(&settings());
    let frame = sip("192.0.2.7", &request("REGISTER"));
    for _ in 0..20_000 {
        assert_ne!(kernel.run(&frame).reason, Reason::Storm);
    }
    assert_eq!(kernel.run(&sip("192.0.2.8", &request("REGISTER"))).reason, Reason::Unknown);
    assert_eq!(kernel.sources.tracked().unwrap(), 2);
}

#[test]
fn ipv6_sources_of_one_network_are_one() {
    let mut kernel = Kernel::new(&settings());
    for n in 0..5_000 {
        let outcome = kernel.run(&sip(&format!("2001:db8:7::{n:x}"), b"\r\n\r\n"));
        assert_ne!(outcome.reason, Reason::Storm);
    }
    let storm = (0..5_000).any(|n| {
        kernel.run(&sip(&format!("2001:db8:{n:x}::7"), &request("REGISTER"))).reason
            == Reason::Storm
    });
    assert!(storm, "5,000 networks at once are one");
}
