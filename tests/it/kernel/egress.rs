//! The egress program: the server's responses are counted by class; every packet continues.

use std::net::IpAddr;

use sip_xdp::dataplane::loader::Settings;
use sip_xdp::net::network::address_of;
use sip_xdp_common::abi::layout::{EventKind, FRAGMENTED, HEAD};
use sip_xdp_common::packet::headers::Link;
use sip_xdp_common::pipeline::egress::Answer;

use crate::kernel::frames::{Ip, ethernet, extension, fragment, pppoe, request, udp_from, vlan};
use crate::kernel::harness::{Kernel, settings};

fn response(line: &str) -> Vec<u8> {
    udp_from(
        5060,
        40_000,
        format!("{line}\r\nVia: SIP/2.0/UDP 192.0.2.7\r\nCSeq: 1 REGISTER\r\n\r\n").as_bytes(),
    )
}

#[test]
fn responses_are_counted_by_what_they_say() {
    let mut kernel = Kernel::new(&settings());
    let (v4, v6) = (Ip::udp("198.51.100.1"), Ip::udp("2001:db8::1"));
    for (line, answer) in [
        ("SIP/2.0 200 OK", Answer::Accepted),
        ("SIP/2.0 202 Accepted", Answer::Accepted),
        ("SIP/2.0 401 Unauthorized", Answer::Challenged),
        ("SIP/2.0 407 Proxy Authentication Required", Answer::Challenged),
        ("SIP/2.0 403 Forbidden", Answer::Refused),
        ("SIP/2.0 404 Not Found", Answer::Refused),
        ("SIP/2.0 484 Address Incomplete", Answer::Refused),
        ("SIP/2.0 604 Does Not Exist Anywhere", Answer::Refused),
        ("SIP/2.0 100 Trying", Answer::Other),
        ("SIP/2.0 503 Service Unavailable", Answer::Other),
    ] {
        assert_eq!(kernel.leave(&v4.frame(&response(line))), Some(answer), "{line}");
        assert_eq!(kernel.leave(&v6.frame(&response(line))), Some(answer), "{line}, IPv6");
    }
    let tagged = ethernet(0x8100, vlan(7, 0x0800, v4.build(&response("SIP/2.0 200 OK"))));
    assert_eq!(kernel.leave(&tagged), Some(Answer::Accepted), "in a VLAN");
    let first = Ip { extensions: vec![(44, fragment(0, true))], ..v6.clone() };
    assert_eq!(
        kernel.leave(&first.frame(&response("SIP/2.0 200 OK"))),
        Some(Answer::Accepted),
        "a first fragment"
    );
}

#[test]
fn nothing_else_is_counted() {
    let mut kernel = Kernel::new(&settings());
    let v4 = Ip::udp("198.51.100.1");
    for (name, frame) in [
        ("our own request", v4.frame(&udp_from(5060, 5060, &request("OPTIONS")))),
        ("another port", v4.frame(&udp_from(5070, 5060, b"SIP/2.0 200 OK\r\n\r\n"))),
        ("a keepalive", v4.frame(&udp_from(5060, 5060, b"\r\n\r\n"))),
        ("too short", v4.frame(&udp_from(5060, 5060, b"SIP/2.0 20"))),
        ("TCP", Ip { protocol: 6, ..v4.clone() }.frame(&response("SIP/2.0 200 OK"))),
        (
            "a later fragment",
            Ip { fragment: 0x0010, ..v4.clone() }.frame(&response("SIP/2.0 200 OK")),
        ),
        ("ARP", ethernet(0x0806, vec![0; 46])),
    ] {
        assert_eq!(kernel.leave(&frame), None, "{name}");
    }
}

/// A response in each encapsulation: name, link type, frame, destination.
fn leaving(payload: &[u8]) -> Vec<(&'static str, Link, Vec<u8>, &'static str)> {
    let (v4, v6) = (Ip::udp("192.0.2.1"), Ip::udp("2001:db8::2"));
    let (to4, to6) = ("198.51.100.1", "2001:db8::1");
    let datagram = udp_from(5060, 40_000, payload);
    let (in4, in6) = (v4.build(&datagram), v6.build(&datagram));
    let options = Ip { options: vec![1; 8], ..v4.clone() };
    let first = Ip { fragment: 0x2000, ..v4.clone() };
    let extended = Ip { extensions: vec![(0, extension(0)), (60, extension(1))], ..v6.clone() };
    let session = |protocol, packet: &Vec<u8>| ethernet(0x8864, pppoe(0, protocol, packet.clone()));
    vec![
        ("IPv4", Link::Ethernet, v4.frame(&datagram), to4),
        ("IPv4 with options", Link::Ethernet, options.frame(&datagram), to4),
        ("a first fragment", Link::Ethernet, first.frame(&datagram), to4),
        ("IPv6", Link::Ethernet, v6.frame(&datagram), to6),
        ("IPv6 with extension headers", Link::Ethernet, extended.frame(&datagram), to6),
        ("VLAN, IPv4", Link::Ethernet, ethernet(0x8100, vlan(7, 0x0800, in4.clone())), to4),
        ("VLAN, IPv6", Link::Ethernet, ethernet(0x8100, vlan(7, 0x86dd, in6.clone())), to6),
        (
            "QinQ",
            Link::Ethernet,
            ethernet(0x88a8, vlan(7, 0x8100, vlan(8, 0x0800, in4.clone()))),
            to4,
        ),
        ("PPPoE, IPv4", Link::Ethernet, session(0x0021, &in4), to4),
        ("PPPoE, IPv6", Link::Ethernet, session(0x0057, &in6), to6),
        (
            "PPPoE in a VLAN",
            Link::Ethernet,
            ethernet(0x8100, vlan(7, 0x8864, pppoe(0, 0x0021, in4.clone()))),
            to4,
        ),
        ("no link header, IPv4", Link::Ip, in4, to4),
        ("no link header, IPv6", Link::Ip, in6, to6),
    ]
}

#[test]
fn outgoing_messages_are_sampled_in_any_encapsulation() {
    let short =
        b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 192.0.2.7\r\nCSeq: 1 REGISTER\r\n\r\n".to_vec();
    let long: Vec<u8> = short.iter().copied().chain(std::iter::repeat_n(b'x', 1_200)).collect();
    let mut kernels = [Link::Ethernet, Link::Ip]
        .map(|link| (link, Kernel::new(&Settings { link, ..settings() })));
    for payload in [short, long] {
        for (name, link, frame, to) in leaving(&payload) {
            let (_, kernel) = kernels.iter_mut().find(|(of, _)| *of == link).unwrap();
            assert_eq!(kernel.leave(&frame), Some(Answer::Accepted), "{name}");
            let events = kernel.events();
            assert_eq!(events.len(), 1, "{name}");
            let event = &events[0];
            assert_eq!(EventKind::from_number(event.kind), Some(EventKind::Answer), "{name}");
            assert_eq!(address_of(event.source), to.parse::<IpAddr>().unwrap(), "{name}");
            assert_eq!((event.port, event.local_port), (40_000, 5060), "{name}");
            let head = &event.head[..usize::from(event.head_length)];
            assert_eq!(head, &payload[..payload.len().min(HEAD)], "{name}");
            assert_eq!(usize::from(event.length), payload.len(), "{name}");
            assert_eq!(event.flags & FRAGMENTED != 0, name == "a first fragment", "{name}");
        }
    }
}

#[test]
fn our_requests_are_sampled_and_open_a_way_back() {
    let payload = request("OPTIONS");
    for to in ["198.51.100.1", "2001:db8::1"] {
        let mut kernel = Kernel::new(&settings());
        let us = Ip::udp(if to.contains(':') { "2001:db8::2" } else { "192.0.2.1" });
        kernel.leave(&us.frame(&udp_from(5060, 5070, &payload)));
        let events = kernel.events();
        assert_eq!(events.len(), 1, "{to}");
        let event = &events[0];
        assert_eq!(EventKind::from_number(event.kind), Some(EventKind::PendingRequest), "{to}");
        assert_eq!((address_of(event.source), event.port), (to.parse::<IpAddr>().unwrap(), 5070));
        assert_eq!(&event.head[..usize::from(event.head_length)], payload.as_slice(), "{to}");
    }
}
