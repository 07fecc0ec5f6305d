//! One table of named packets, run twice: for the verdict, and for the reason under which each is
//! counted.
//!
//! More than 400 lines: nearly one packet per line.

use sip_xdp::dataplane::loader::Settings;
use sip_xdp_common::abi::layout::{List, NEVER};
use sip_xdp_common::packet::headers::Link;
use sip_xdp_common::verdict::{Message, Reason, Verdict};

use crate::kernel::frames::{
    Ip, ethernet, extension, fragment, pppoe, request, sip, tcp, udp, udp_lying, vlan,
};
use crate::kernel::harness::{Kernel, settings};

/// Nothing is known of these.
const STRANGER: &str = "192.0.2.7";
const STRANGER_V6: &str = "2001:db8:7::7";
/// Blocked: the first as a host, the second inside a /24.
const BLOCKED: &str = "203.0.113.66";
const BLOCKED_NET: &str = "198.18.5.99";
const BLOCKED_V6: &str = "2001:db8:bad:1::66";
/// Trusted; the second lies in a blocked network.
const TRUSTED: &str = "192.0.2.200";
const TRUSTED_IN_BLOCKED: &str = "198.18.5.5";
const TRUSTED_V6: &str = "2001:db8:600d::1";

struct Row {
    name: String,
    link: Link,
    scope_all: bool,
    frame: Vec<u8>,
    reason: Reason,
    message: Option<Message>,
}

fn rows() -> Vec<Row> {
    let register = request("REGISTER");
    let to_sip = udp(5060, &register);
    let mut rows = Vec::new();
    let mut add = |name: &str,
                   link: Link,
                   frame: Vec<u8>,
                   reason: Reason,
                   message: Option<Message>| {
        rows.push(Row { name: name.to_owned(), link, scope_all: false, frame, reason, message });
    };
    use Link::{Ethernet, Ip as NoHeader};
    use Message::{Keepalive, Other, Register, Response, Unparsed};
    let registers = Some(Register);

    // Link headers.
    let v4 = Ip::udp(STRANGER);
    let packet = v4.build(&to_sip);
    add("plain IPv4", Ethernet, v4.frame(&to_sip), Reason::Unknown, registers);
    add("second SIP port", Ethernet, v4.frame(&udp(5061, &register)), Reason::Unknown, registers);
    for tag in [0x8100, 0x88a8] {
        let frame = ethernet(tag, vlan(7, 0x0800, packet.clone()));
        add(&format!("VLAN tag {tag:x}"), Ethernet, frame, Reason::Unknown, registers);
    }
    let inner = vlan(7, 0x0800, packet.clone());
    add(
        "QinQ",
        Ethernet,
        ethernet(0x88a8, vlan(3, 0x8100, inner.clone())),
        Reason::Unknown,
        registers,
    );
    add(
        "two 802.1Q tags",
        Ethernet,
        ethernet(0x8100, vlan(3, 0x8100, inner.clone())),
        Reason::Unknown,
        registers,
    );
    let three = ethernet(0x88a8, vlan(1, 0x8100, vlan(3, 0x8100, inner)));
    add("three tags", Ethernet, three, Reason::Unknown, registers);
    let priority = |tags: usize, ip: &Ip| {
        let kind = if ip.source.is_ipv6() { 0x86dd } else { 0x0800 };
        let (kind, rest) = (1..tags)
            .fold((kind, ip.build(&to_sip)), |(kind, rest), _| (0x8100, vlan(0, kind, rest)));
        ethernet(0x8100, vlan(0, kind, rest))
    };
    for tags in [1, 2, 3, 4] {
        let name = format!("{tags} priority tags");
        add(&name, Ethernet, priority(tags, &v4), Reason::Unknown, registers);
        add(
            &format!("{name}, blocked"),
            Ethernet,
            priority(tags, &Ip::udp(BLOCKED)),
            Reason::Blocked,
            None,
        );
        add(
            &format!("{name}, IPv6"),
            Ethernet,
            priority(tags, &Ip::udp(STRANGER_V6)),
            Reason::Unknown,
            registers,
        );
    }
    for tags in [5, 8, 300] {
        add(&format!("{tags} priority tags"), Ethernet, priority(tags, &v4), Reason::Limited, None);
    }
    let v6 = Ip::udp(STRANGER_V6);
    let packet6 = v6.build(&to_sip);
    add("plain IPv6", Ethernet, v6.frame(&to_sip), Reason::Unknown, registers);
    add(
        "IPv6 in a VLAN",
        Ethernet,
        ethernet(0x8100, vlan(7, 0x86dd, packet6.clone())),
        Reason::Unknown,
        registers,
    );
    add(
        "PPPoE, IPv4",
        Ethernet,
        ethernet(0x8864, pppoe(0, 0x21, packet.clone())),
        Reason::Unknown,
        registers,
    );
    add(
        "PPPoE, IPv6",
        Ethernet,
        ethernet(0x8864, pppoe(0, 0x57, packet6.clone())),
        Reason::Unknown,
        registers,
    );
    let in_vlan = ethernet(0x8100, vlan(7, 0x8864, pppoe(0, 0x21, packet.clone())));
    add("PPPoE in a VLAN", Ethernet, in_vlan, Reason::Unknown, registers);
    let short = |protocol: u16, packet: &[u8]| {
        let mut session = pppoe(0, protocol, packet.to_vec());
        session.remove(6);
        ethernet(0x8864, session)
    };
    add(
        "PPPoE, IPv4, protocol of one byte",
        Ethernet,
        short(0x21, &packet),
        Reason::Unknown,
        registers,
    );
    add(
        "PPPoE, IPv6, protocol of one byte",
        Ethernet,
        short(0x57, &packet6),
        Reason::Unknown,
        registers,
    );
    let blocked_short = short(0x21, &Ip::udp(BLOCKED).build(&to_sip));
    add("PPPoE, protocol of one byte, blocked", Ethernet, blocked_short, Reason::Blocked, None);
    add(
        "PPPoE, LCP",
        Ethernet,
        ethernet(0x8864, pppoe(0, 0xc021, vec![0; 40])),
        Reason::NotSip,
        None,
    );
    add(
        "PPPoE, not a session",
        Ethernet,
        ethernet(0x8864, pppoe(9, 0x21, packet.clone())),
        Reason::NotSip,
        None,
    );
    add("tun, IPv4", NoHeader, packet.clone(), Reason::Unknown, registers);
    add("tun, IPv6", NoHeader, packet6, Reason::Unknown, registers);
    add("tun, neither", NoHeader, vec![0x90; 60], Reason::NotSip, None);
    add("ARP", Ethernet, ethernet(0x0806, vec![0; 46]), Reason::NotSip, None);
    add("nothing behind the header", Ethernet, ethernet(0x0800, Vec::new()), Reason::NotSip, None);
    add("a tag cut off", Ethernet, ethernet(0x8100, vec![0, 7]), Reason::NotSip, None);

    // IP headers.
    for words in [1_usize, 10] {
        let ip = Ip { options: vec![1; words * 4], ..v4.clone() };
        add(
            &format!("IPv4 with {} bytes of options", words * 4),
            Ethernet,
            ip.frame(&to_sip),
            Reason::Unknown,
            registers,
        );
    }
    let mut short = v4.frame(&to_sip);
    short[14] = 0x44;
    add("an IPv4 header that is too short", Ethernet, short, Reason::NotSip, None);
    for kind in [0, 43, 60, 135, 139, 140] {
        let ip = Ip { extensions: vec![(kind, extension(1))], ..v6.clone() };
        add(
            &format!("IPv6 extension {kind}"),
            Ethernet,
            ip.frame(&to_sip),
            Reason::Unknown,
            registers,
        );
    }
    // AH: length in 4 bytes less 2, so 4 is 24 bytes.
    let mut ah = vec![4];
    ah.resize(23, 0);
    let ip = Ip { extensions: vec![(51, ah)], ..v6.clone() };
    add("IPv6 with AH", Ethernet, ip.frame(&to_sip), Reason::Unknown, registers);
    for (count, reason, message) in
        [(8, Reason::Unknown, Register), (9, Reason::Unparsed, Unparsed)]
    {
        let ip = Ip { extensions: vec![(60, extension(0)); count], ..v6.clone() };
        add(
            &format!("IPv6 with {count} extensions"),
            Ethernet,
            ip.frame(&to_sip),
            reason,
            Some(message),
        );
    }
    let long_chain = Ip { extensions: vec![(60, extension(0)); 9], ..Ip::udp(BLOCKED_V6) };
    add("a chain too long, blocked", Ethernet, long_chain.frame(&to_sip), Reason::Blocked, None);
    let cut = Ip { extensions: vec![(60, vec![200])], ..v6.clone() };
    add("a chain that is cut off", Ethernet, cut.frame(&[]), Reason::Unparsed, Some(Unparsed));
    let cut = Ip { extensions: vec![(60, vec![200])], ..Ip::udp(BLOCKED_V6) };
    add("a chain that is cut off, blocked", Ethernet, cut.frame(&[]), Reason::Blocked, None);
    let esp = Ip { protocol: 50, ..v6.clone() };
    add("ESP", Ethernet, esp.frame(&[0; 64]), Reason::NotSip, None);

    // Fragments.
    let first = Ip { fragment: 0x2000, ..v4.clone() };
    add("first fragment", Ethernet, first.frame(&to_sip[..200]), Reason::Unknown, registers);
    add(
        "tiny first fragment: ports, no payload",
        Ethernet,
        first.frame(&to_sip[..8]),
        Reason::Unknown,
        Some(Other),
    );
    add(
        "tiny first fragment: half a method",
        Ethernet,
        first.frame(&to_sip[..12]),
        Reason::Unknown,
        Some(Other),
    );
    add(
        "tiny first fragment: half a header",
        Ethernet,
        first.frame(&to_sip[..6]),
        Reason::Unknown,
        Some(Other),
    );
    add(
        "tiny first fragment: no ports",
        Ethernet,
        first.frame(&to_sip[..3]),
        Reason::Unknown,
        Some(Other),
    );
    add(
        "first fragment to another port",
        Ethernet,
        first.frame(&udp(53, &register)),
        Reason::NotSip,
        None,
    );
    let later = Ip { fragment: 0x2010, ..v4.clone() };
    add("later fragment", Ethernet, later.frame(&to_sip), Reason::Fragment, None);
    let last = Ip { fragment: 0x0010, ..v4.clone() };
    add("last fragment", Ethernet, last.frame(&to_sip), Reason::Fragment, None);
    let later_icmp = Ip { protocol: 1, ..later.clone() };
    add("later fragment of ICMP", Ethernet, later_icmp.frame(&[0; 64]), Reason::NotSip, None);
    let blocked_later = Ip { fragment: 0x2010, ..Ip::udp(BLOCKED) };
    add("later fragment, blocked", Ethernet, blocked_later.frame(&to_sip), Reason::Blocked, None);
    let blocked_first = Ip { fragment: 0x2000, ..Ip::udp(BLOCKED) };
    add(
        "first fragment to another port, blocked",
        Ethernet,
        blocked_first.frame(&udp(53, b"x")),
        Reason::Blocked,
        None,
    );
    let trusted_later = Ip { fragment: 0x2010, ..Ip::udp(TRUSTED_IN_BLOCKED) };
    add("later fragment, trusted", Ethernet, trusted_later.frame(&to_sip), Reason::Fragment, None);
    let options_later =
        Ip { extensions: vec![(44, fragment(20, true))], protocol: 60, ..Ip::udp(BLOCKED_V6) };
    add(
        "IPv6 later fragment of options, blocked",
        Ethernet,
        options_later.frame(&to_sip),
        Reason::Blocked,
        None,
    );
    let fragmented =
        |offset, more| Ip { extensions: vec![(44, fragment(offset, more))], ..v6.clone() };
    add(
        "IPv6 first fragment",
        Ethernet,
        fragmented(0, true).frame(&to_sip[..96]),
        Reason::Unknown,
        registers,
    );
    add(
        "IPv6 tiny first fragment",
        Ethernet,
        fragmented(0, true).frame(&to_sip[..3]),
        Reason::Unknown,
        Some(Other),
    );
    add(
        "IPv6 later fragment",
        Ethernet,
        fragmented(20, true).frame(&to_sip),
        Reason::Fragment,
        None,
    );
    add(
        "IPv6 atomic fragment",
        Ethernet,
        fragmented(0, false).frame(&to_sip),
        Reason::Unknown,
        registers,
    );
    let hidden = Ip { extensions: vec![(44, fragment(0, true)), (60, vec![30])], ..v6.clone() };
    add(
        "IPv6 first fragment that ends among headers",
        Ethernet,
        hidden.frame(&[]),
        Reason::Unknown,
        Some(Other),
    );

    // Lengths that lie.
    let lying = |length: u16| v4.frame(&udp_lying(5060, &register, length));
    add("UDP length too long", Ethernet, lying(2_000), Reason::Unknown, registers);
    add("UDP length 8: empty", Ethernet, lying(8), Reason::Keepalive, Some(Keepalive));
    add("UDP length 7: no header", Ethernet, lying(7), Reason::Unparsed, Some(Unparsed));
    add("UDP length 0", Ethernet, lying(0), Reason::Unparsed, Some(Unparsed));
    let jumbo = v6.frame(&udp_lying(5060, &register, 0));
    add("IPv6 UDP length 0: all of it", Ethernet, jumbo, Reason::Unknown, registers);
    add("UDP length ends in the method", Ethernet, lying(14), Reason::Unparsed, Some(Unparsed));
    let ip = Ip { lie: 500, ..v4.clone() };
    add("IPv4 length too long", Ethernet, ip.frame(&to_sip), Reason::Unknown, registers);
    let ip = Ip { lie: -(register.len() as i32), ..v4.clone() };
    add(
        "IPv4 length ends before the payload",
        Ethernet,
        ip.frame(&to_sip),
        Reason::Keepalive,
        Some(Keepalive),
    );
    let mut padded = sip(STRANGER, b"");
    padded.extend(&register);
    add("padding that looks like SIP", Ethernet, padded, Reason::Keepalive, Some(Keepalive));

    // Start lines.
    let blanks = b"\r\n".repeat(200);
    let with = |prefix: &[u8], line: &[u8]| sip(STRANGER, &[prefix, line].concat());
    for (name, frame) in [
        ("lower case", with(b"", b"register sip:pbx.example SIP/2.0\r\n\r\n")),
        ("mixed case", with(b"", b"ReGiStEr sip:pbx.example SIP/2.0\r\n\r\n")),
        ("leading space", with(b" ", &register)),
        ("leading tab", with(b"\t", &register)),
        ("leading line ends", with(b"\r\n\r\n", &register)),
        ("leading NULs", with(b"\0\0\0", &register)),
        ("400 bytes of line ends", with(&blanks, &register)),
        ("bare line feeds", with(b"", b"REGISTER sip:pbx.example SIP/2.0\nTo: x\n\n")),
        ("two spaces before the version", with(b"", b"REGISTER sip:pbx.example  SIP/2.0\r\n\r\n")),
        ("sips", with(b"", b"REGISTER sips:pbx.example SIP/2.0\r\n\r\n")),
        (
            "another CSeq method",
            with(b"", b"REGISTER sip:pbx.example SIP/2.0\r\nCSeq: 1 INVITE\r\n\r\n"),
        ),
        (
            "two spaces behind the method, as pjsip takes it",
            with(b"", b"REGISTER  sip:pbx.example SIP/2.0\r\n\r\n"),
        ),
        (
            "a tab behind the method, as pjsip takes it",
            with(b"", b"REGISTER\tsip:pbx.example SIP/2.0\r\n\r\n"),
        ),
    ] {
        add(&format!("REGISTER, {name}"), Ethernet, frame, Reason::Unknown, registers);
    }
    let hidden = with(&b" ".repeat(700), &register);
    add("700 blanks before a method", Ethernet, hidden, Reason::Unknown, Some(Other));
    for message in
        Message::ALL.into_iter().filter(|message| message.is_request() && *message != Other)
    {
        let name = message.name().to_uppercase();
        add(&name, Ethernet, sip(STRANGER, &request(&name)), Reason::Unknown, Some(message));
    }
    for method in ["INFO", "PRACK", "UPDATE", "REFER", "REGISTERX", "X"] {
        add(method, Ethernet, sip(STRANGER, &request(method)), Reason::Unknown, Some(Other));
    }
    add(
        "response",
        Ethernet,
        sip(STRANGER, b"SIP/2.0 200 OK\r\n\r\n"),
        Reason::Response,
        Some(Response),
    );
    let lite = Ip { protocol: 136, ..v4.clone() };
    add("UDP-Lite", Ethernet, lite.frame(&to_sip), Reason::Limited, None);
    add(
        "UDP-Lite, blocked",
        Ethernet,
        Ip { protocol: 136, ..Ip::udp(BLOCKED) }.frame(&to_sip),
        Reason::Blocked,
        None,
    );
    add(
        "UDP-Lite to another port",
        Ethernet,
        lite.frame(&udp(53, &register)),
        Reason::NotSip,
        None,
    );
    add(
        "another version",
        Ethernet,
        sip(STRANGER, b"SIP/3.0 200 OK\r\n\r\n"),
        Reason::Unparsed,
        Some(Unparsed),
    );
    add(
        "HTTP",
        Ethernet,
        sip(STRANGER, b"GET / HTTP/1.1\r\n\r\n"),
        Reason::Unparsed,
        Some(Unparsed),
    );
    add("RTP", Ethernet, sip(STRANGER, &[0x80; 172]), Reason::Unparsed, Some(Unparsed));

    // Keepalives.
    let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    stun.resize(20, 7);
    for (name, payload) in [
        ("CRLF CRLF", &b"\r\n\r\n"[..]),
        ("CRLF", b"\r\n"),
        ("four NULs", &[0; 4]),
        ("STUN", &stun),
        ("empty", b""),
    ] {
        add(name, Ethernet, sip(STRANGER, payload), Reason::Keepalive, Some(Keepalive));
        add(
            &format!("{name}, IPv6"),
            Ethernet,
            sip(STRANGER_V6, payload),
            Reason::Keepalive,
            Some(Keepalive),
        );
    }

    // Other ports and protocols.
    add("another UDP port", Ethernet, v4.frame(&udp(53, &register)), Reason::NotSip, None);
    let tcp_ip = Ip { protocol: 6, ..v4.clone() };
    add("TCP to 5060", Ethernet, tcp_ip.frame(&tcp(5060)), Reason::Unknown, None);
    add("TCP to 443", Ethernet, tcp_ip.frame(&tcp(443)), Reason::NotSip, None);
    let icmp = Ip { protocol: 1, ..v4.clone() };
    add("ICMP", Ethernet, icmp.frame(&[8; 64]), Reason::NotSip, None);
    let icmp6 = Ip { protocol: 58, ..v6.clone() };
    add("neighbour discovery", Ethernet, icmp6.frame(&[135; 64]), Reason::NotSip, None);
    let sctp = Ip { protocol: 132, ..v4.clone() };
    add("SCTP", Ethernet, sctp.frame(&to_sip), Reason::NotSip, None);

    // Trust and blocks.
    for (name, source, reason) in [
        ("blocked host", BLOCKED, Reason::Blocked),
        ("host in a blocked network", BLOCKED_NET, Reason::Blocked),
        ("host in a blocked IPv6 network", BLOCKED_V6, Reason::Blocked),
        ("neighbour of a blocked host", "203.0.113.67", Reason::Unknown),
        ("neighbour of a blocked IPv6 network", "2001:db8:bae::66", Reason::Unknown),
        ("trusted", TRUSTED, Reason::Trusted),
        ("trusted, IPv6", TRUSTED_V6, Reason::Trusted),
        ("trusted inside a blocked network", TRUSTED_IN_BLOCKED, Reason::Trusted),
        ("its neighbour", "198.18.5.6", Reason::Blocked),
    ] {
        let message = (reason == Reason::Unknown).then_some(Register);
        add(name, Ethernet, sip(source, &register), reason, message);
    }
    let blocked = Ip::udp(BLOCKED);
    add(
        "blocked, TCP to 5060",
        Ethernet,
        Ip { protocol: 6, ..blocked.clone() }.frame(&tcp(5060)),
        Reason::Blocked,
        None,
    );
    add(
        "blocked, TCP to 22",
        Ethernet,
        Ip { protocol: 6, ..blocked.clone() }.frame(&tcp(22)),
        Reason::NotSip,
        None,
    );
    add(
        "blocked, keepalive",
        Ethernet,
        blocked.frame(&udp(5060, b"\r\n\r\n")),
        Reason::Blocked,
        None,
    );
    let tagged = ethernet(0x88a8, vlan(3, 0x8100, vlan(7, 0x0800, blocked.build(&to_sip))));
    add("blocked, in QinQ", Ethernet, tagged, Reason::Blocked, None);
    let session = ethernet(0x8864, pppoe(0, 0x21, blocked.build(&to_sip)));
    add("blocked, in PPPoE", Ethernet, session, Reason::Blocked, None);
    let options = Ip { options: vec![1; 40], ..blocked.clone() };
    add("blocked, behind IPv4 options", Ethernet, options.frame(&to_sip), Reason::Blocked, None);
    add("blocked, tun", NoHeader, blocked.build(&to_sip), Reason::Blocked, None);
    let first = Ip { fragment: 0x2000, ..blocked.clone() };
    add("blocked, first fragment", Ethernet, first.frame(&to_sip[..64]), Reason::Blocked, None);

    // Drop everything but ICMP from blocked sources (`block_scope = "all"`).
    let mut all = |name: &str, frame: Vec<u8>, reason: Reason| {
        let name = format!("block_scope all: {name}");
        rows.push(Row { name, link: Ethernet, scope_all: true, frame, reason, message: None });
    };
    all(
        "blocked, TCP to 22",
        Ip { protocol: 6, ..blocked.clone() }.frame(&tcp(22)),
        Reason::Blocked,
    );
    all("blocked, UDP to 53", blocked.frame(&udp(53, b"x")), Reason::Blocked);
    all("blocked, later fragment", blocked_later.frame(&to_sip), Reason::Blocked);
    all("blocked, GRE", Ip { protocol: 47, ..blocked.clone() }.frame(&[0; 64]), Reason::Blocked);
    all("blocked, ICMP", Ip { protocol: 1, ..blocked.clone() }.frame(&[8; 64]), Reason::NotSip);
    let blocked6 = Ip::udp(BLOCKED_V6);
    all(
        "blocked, neighbour discovery",
        Ip { protocol: 58, ..blocked6.clone() }.frame(&[135; 64]),
        Reason::NotSip,
    );
    all("blocked, IPv6 TCP", Ip { protocol: 6, ..blocked6 }.frame(&tcp(22)), Reason::Blocked);
    all("stranger, TCP to 22", tcp_ip.frame(&tcp(22)), Reason::NotSip);
    all("stranger, later fragment", later.frame(&to_sip), Reason::Fragment);
    all(
        "trusted, TCP to 22",
        Ip { protocol: 6, ..Ip::udp(TRUSTED) }.frame(&tcp(22)),
        Reason::NotSip,
    );
    all(
        "trusted in a blocked network, TCP to 22",
        Ip { protocol: 6, ..Ip::udp(TRUSTED_IN_BLOCKED) }.frame(&tcp(22)),
        Reason::NotSip,
    );
    all("ARP", ethernet(0x0806, vec![0; 46]), Reason::NotSip);
    rows
}

/// A filter for each way in which a row can want it.
struct Kernels {
    made: Vec<((Link, bool), Kernel)>,
}

impl Kernels {
    fn get(&mut self, row: &Row) -> &mut Kernel {
        let wanted = (row.link, row.scope_all);
        if let Some(at) = self.made.iter().position(|(kind, _)| *kind == wanted) {
            return &mut self.made[at].1;
        }
        let mut kernel =
            Kernel::new(&Settings { link: row.link, scope_all: row.scope_all, ..settings() });
        for network in [BLOCKED, "198.18.5.0/24", "2001:db8:bad::/48"] {
            kernel.list(List::Block, network, NEVER);
        }
        for network in [TRUSTED, TRUSTED_IN_BLOCKED, "2001:db8:600d::/48"] {
            kernel.list(List::Trust, network, NEVER);
        }
        self.made.push((wanted, kernel));
        &mut self.made.last_mut().unwrap().1
    }
}

/// Runs every row on a fresh meter, so that no limit plays a part.
fn each(mut check: impl FnMut(&Row, &mut Kernel)) {
    let mut kernels = Kernels { made: Vec::new() };
    for row in rows() {
        let kernel = kernels.get(&row);
        kernel.sources.forget_all().unwrap();
        check(&row, kernel);
    }
}

#[test]
fn every_packet_gets_its_verdict() {
    each(|row, kernel| {
        let dropped = kernel.action(&row.frame) == 1;
        assert_eq!(dropped, row.reason.verdict() == Verdict::Drop, "{}", row.name);
    });
}

#[test]
fn every_packet_is_counted_under_its_reason() {
    each(|row, kernel| {
        let outcome = kernel.run(&row.frame);
        assert_eq!((outcome.reason, outcome.message), (row.reason, row.message), "{}", row.name);
        assert!(!outcome.would, "{}", row.name);
    });
    println!("{} named packets", rows().len());
}

#[test]
fn a_dry_run_passes_and_counts_everything() {
    let mut kernel = Kernel::new(&Settings { dry_run: true, ..settings() });
    kernel.list(List::Block, BLOCKED, NEVER);
    let frame = sip(BLOCKED, &request("REGISTER"));
    let outcome = kernel.run(&frame);
    assert!(!outcome.dropped && outcome.would);
    assert_eq!(outcome.reason, Reason::Blocked);
    for _ in 0..50 {
        assert!(!kernel.run(&sip(STRANGER, &request("OPTIONS"))).would);
    }
    let outcome = kernel.run(&sip(STRANGER, &request("OPTIONS")));
    assert!(!outcome.dropped && outcome.would);
    assert_eq!(outcome.reason, Reason::Limited);
}

#[test]
fn jumbo_frames_are_read_and_counted_whole() {
    let mut kernel = Kernel::new(&settings());
    let mut payload = request("REGISTER");
    payload.resize(8_500, b'x');
    let outcome = kernel.run(&sip(STRANGER, &payload));
    assert_eq!((outcome.reason, outcome.message), (Reason::Unknown, Some(Message::Register)));
}
