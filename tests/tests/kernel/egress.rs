//! The egress program: our own responses, counted by what they say; everything goes on.

use sip_xdp_common::egress::Answer;

use crate::frames::{Ip, ethernet, fragment, request, udp_from, vlan};
use crate::harness::{Kernel, settings};

fn response(line: &str) -> Vec<u8> {
    udp_from(5060, 40_000, format!("{line}\r\nVia: SIP/2.0/UDP 192.0.2.7\r\nCSeq: 1 REGISTER\r\n\r\n").as_bytes())
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
    assert_eq!(kernel.leave(&first.frame(&response("SIP/2.0 200 OK"))), Some(Answer::Accepted), "a first fragment");
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
        ("a later fragment", Ip { fragment: 0x0010, ..v4.clone() }.frame(&response("SIP/2.0 200 OK"))),
        ("ARP", ethernet(0x0806, vec![0; 46])),
    ] {
        assert_eq!(kernel.leave(&frame), None, "{name}");
    }
}
