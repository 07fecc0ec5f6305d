//! The verifier's work, with a margin. The limit is one million processed instructions.

use sip_xdp::dataplane::loader::Settings;
use sip_xdp_common::abi::layout::{List, NEVER};
use sip_xdp_common::packet::headers::Link;

use crate::kernel::frames::{Ip, request, sip, udp};
use crate::kernel::harness::{Kernel, settings};
use crate::kernel::machine::{Machine, Tally};

/// `enum xdp_action` (`include/uapi/linux/bpf.h`).
const XDP_DROP: u64 = 1;
const XDP_PASS: u64 = 2;

#[test]
fn the_verifier_accepts_it_with_room() {
    for (name, settings) in [
        ("as by default", settings()),
        ("with block_scope all", Settings { scope_all: true, ..settings() }),
        ("without Ethernet", Settings { link: Link::Ip, ..settings() }),
        ("with the policy closed", Settings { closed: true, ..settings() }),
        ("in a trial", Settings { trial: true, clock_from_map: false, ..settings() }),
        ("in a dry run", Settings { dry_run: true, clock_from_map: false, ..settings() }),
    ] {
        let instructions = Kernel::new(&settings).verified_instructions();
        println!("{name}: {instructions:?} instructions verified, ingress and egress");
        assert!(instructions.iter().all(|count| *count < 500_000), "{name}: {instructions:?}");
    }
}

/// Printed for people; never compared with a clock.
#[test]
fn print_nanoseconds_per_packet() {
    let mut kernel = Kernel::new(&settings());
    for (name, frame) in [
        ("another port", Ip::udp("192.0.2.7").frame(&udp(53, b"x"))),
        ("REGISTER, over the limit", sip("192.0.2.7", &request("REGISTER"))),
        ("keepalive, over the limit", sip("192.0.2.7", b"\r\n\r\n")),
        (
            "REGISTER behind 400 blanks",
            sip("192.0.2.7", &[b"\r\n".repeat(200), request("REGISTER")].concat()),
        ),
    ] {
        println!("{name}: {} ns", kernel.cost(&frame, 100_000));
    }
}

/// Instructions on each path, with their bounds: of the compiled program, without the kernel's
/// helpers. A longer path needs a change here. Of several sources the cheapest counts, since equal
/// fingerprints of two cost an extra comparison.
#[test]
fn every_path_is_as_short_as_it_was() {
    const SOURCES: usize = 16;
    let mut kernel = Kernel::new(&settings());
    let hosts =
        (0..900).map(|n| format!("203.0.{}.{}", n / 250, n % 250).parse().unwrap()).collect();
    kernel.lists.replace_feed("feed", hosts).unwrap();
    let networks = (0..SOURCES).map(|n| format!("2001:db8:{n}::/48").parse().unwrap()).collect();
    kernel.lists.replace_feed("others", networks).unwrap();
    for n in 0..SOURCES {
        kernel.list(List::Block, &format!("203.0.113.{n}"), NEVER);
        kernel.list(List::Trust, &format!("198.51.{n}.0/24"), NEVER);
    }
    let mut machine = Machine::new(&kernel);
    let late = [b"\r\n".repeat(200), request("REGISTER")].concat();
    let register = request("REGISTER");
    type Frames<'a> = &'a dyn Fn(usize) -> Vec<u8>;
    let rows: [(&str, Frames<'_>, u64, u64); 8] = [
        (
            "another UDP port",
            &|n| Ip::udp(&format!("192.0.2.{n}")).frame(&udp(53, b"x")),
            XDP_PASS,
            106,
        ),
        ("trusted", &|n| sip(&format!("198.51.{n}.7"), &register), XDP_PASS, 570),
        (
            "blocked by a feed, IPv4 host",
            &|n| sip(&format!("203.0.1.{n}"), &register),
            XDP_DROP,
            185,
        ),
        (
            "blocked by an operator, IPv4 host",
            &|n| sip(&format!("203.0.113.{n}"), &register),
            XDP_DROP,
            336,
        ),
        (
            "blocked by a feed, IPv6 network",
            &|n| sip(&format!("2001:db8:{n}::7"), &register),
            XDP_DROP,
            716,
        ),
        (
            "REGISTER of a stranger, the first",
            &|n| sip(&format!("192.0.2.{n}"), &register),
            XDP_PASS,
            860,
        ),
        (
            "REGISTER of a stranger, the second",
            &|n| sip(&format!("192.0.2.{n}"), &register),
            XDP_PASS,
            800,
        ),
        (
            "REGISTER behind 400 bytes of CRLF",
            &|n| sip(&format!("192.0.2.{}", n + SOURCES), &late),
            XDP_PASS,
            2_160,
        ),
    ];
    println!("instructions loads stores branches lookups helpers");
    for (name, frame, action, limit) in rows {
        let least = (0..SOURCES).map(|n| {
            let frame = frame(n);
            let (did, took) = machine.run(&frame);
            assert_eq!(did, action, "{name}");
            assert_eq!(u64::from(kernel.action(&frame)), action, "{name}, in the kernel");
            took
        });
        let least = least.min_by_key(|took| took.instructions).unwrap();
        let Tally { instructions, loads, stores, branches, lookups, helpers } = least;
        println!(
            "{instructions:12} {loads:5} {stores:6} {branches:8} {lookups:7} {helpers:7}  {name}"
        );
        assert!(instructions <= limit, "{name}: {instructions} instructions, at most {limit}");
    }
}
