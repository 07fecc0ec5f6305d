//! What the verifier has to do, with room to spare. The limit is one million processed instructions.

use sip_xdp::object::Settings;
use sip_xdp_common::packet::Link;

use crate::frames::{Ip, request, sip, udp};
use crate::harness::{Kernel, settings};

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
