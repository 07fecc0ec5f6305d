//! The generator does what its users count on.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use sip_xdp_tests::generator::{Sources, spread};
use sip_xdp_tests::programs::{Attached, DROP};
use sip_xdp_tests::topology::WAN;
use sip_xdp_tests::{Wire, require_root};

#[test]
fn packets_reach_a_socket_from_every_source_in_turn() {
    require_root().unwrap();
    let wire = Wire::new().unwrap();
    let socket = wire.receiver.enter(|| Ok(UdpSocket::bind("0.0.0.0:5060")?)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let sources: Vec<_> = (0..16).map(spread).collect();
    let mut generator = wire.generator(&Sources::InTurn(sources.clone()), b"hello").unwrap();
    let sent = generator.send(40).unwrap();
    assert_eq!(sent.packets, 40);
    assert_eq!(wire.received().unwrap(), sent.packets);
    assert_eq!(wire.delivered().unwrap(), sent.packets, "the checksum of every packet is right");

    let mut seen = BTreeSet::new();
    // A socket holds about fifty frames of a page each.
    for _ in 0..32 {
        let mut buffer = [0; 16];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
        seen.insert(from.ip());
    }
    assert_eq!(seen, sources.into_iter().map(Into::into).collect());
}

#[test]
fn every_packet_can_have_a_new_source() {
    require_root().unwrap();
    let wire = Wire::new().unwrap();
    let socket = wire.receiver.enter(|| Ok(UdpSocket::bind("0.0.0.0:5060")?)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    wire.generator(&Sources::EveryPacketNew, b"hello").unwrap().send(32).unwrap();
    let from = |_| socket.recv_from(&mut [0; 16]).unwrap().1.ip();
    assert_eq!((0..32).map(from).collect::<BTreeSet<_>>().len(), 32);
}

#[test]
fn nothing_passes_the_baseline() {
    require_root().unwrap();
    let wire = Wire::new().unwrap();
    let attached = Attached::new(&wire.receiver, WAN, DROP).unwrap();
    let sources = Sources::InTurn(vec![spread(0)]);
    let sent =
        wire.generator(&sources, b"hello").unwrap().send_for(Duration::from_millis(200)).unwrap();
    println!("{} packets in {:?}", sent.packets, sent.elapsed);
    assert!(wire.received().unwrap() > 0);
    assert_eq!(wire.reached_the_stack().unwrap(), 0);
    drop(attached);
    assert!(!wire.receiver.ip(["link", "show", WAN]).unwrap().contains("xdp"));
}
