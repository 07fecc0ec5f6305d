//! What the verifier has to do, with room to spare. The limit is one million processed instructions.

use sip_xdp::object::Settings;
use sip_xdp_common::layout::{List, NEVER};
use sip_xdp_common::packet::Link;

use crate::frames::{Ip, request, sip, udp};
use crate::harness::{Kernel, settings};
use crate::machine::{Machine, Tally};

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
        ("REGISTER behind 400 blanks", sip("192.0.2.7", &[b"\r\n".repeat(200), request("REGISTER")].concat())),
    ] {
        println!("{name}: {} ns", kernel.cost(&frame, 100_000));
    }
}

/// What each path takes, and may take: instructions of the program as it is compiled, but not what the kernel does in its
/// helpers. Whoever makes a path longer has to say so here.
#[test]
fn every_path_is_as_short_as_it_was() {
    let mut kernel = Kernel::new(&settings());
    let hosts = (0..1_000).map(|n| format!("203.0.{}.{}", n / 250, n % 250).parse().unwrap()).collect();
    kernel.lists.replace_feed("feed", hosts).unwrap();
    kernel.lists.replace_feed("others", vec!["2001:db8:1::/48".parse().unwrap()]).unwrap();
    kernel.list(List::Block, "203.0.113.7", NEVER);
    kernel.list(List::Trust, "198.51.100.0/24", NEVER);
    let mut machine = Machine::new(&kernel);
    let late = [b"\r\n".repeat(200), request("REGISTER")].concat();
    let register = request("REGISTER");
    println!("instructions loads stores branches lookups helpers");
    for (name, frame, action, limit) in [
        ("another UDP port", Ip::udp("192.0.2.7").frame(&udp(53, b"x")), XDP_PASS, 130),
        ("trusted", sip("198.51.100.7", &register), XDP_PASS, 760),
        ("blocked by a feed, IPv4 host", sip("203.0.1.7", &register), XDP_DROP, 580),
        ("blocked by an operator, IPv4 host", sip("203.0.113.7", &register), XDP_DROP, 580),
        ("blocked by a feed, IPv6 network", sip("2001:db8:1::7", &register), XDP_DROP, 850),
        ("REGISTER of a stranger, the first", sip("192.0.2.7", &register), XDP_PASS, 1_250),
        ("REGISTER of a stranger, the second", sip("192.0.2.7", &register), XDP_PASS, 1_150),
        ("REGISTER behind 400 bytes of CRLF", sip("192.0.2.8", &late), XDP_PASS, 2_600),
    ] {
        let (did, took) = machine.run(&frame);
        let Tally { instructions, loads, stores, branches, lookups, helpers } = took;
        println!("{instructions:12} {loads:5} {stores:6} {branches:8} {lookups:7} {helpers:7}  {name}");
        assert_eq!(did, action, "{name}");
        assert_eq!(u64::from(kernel.action(&frame)), action, "{name}, in the kernel");
        assert!(instructions <= limit, "{name}: {instructions} instructions, at most {limit}");
    }
}
