//! Tests of the common wrappings, built byte by byte: each yields the same packet; and arbitrary
//! bytes cause no panic.

use proptest::prelude::*;

use super::frame;
use super::unwrap::{Unread, unwrap};

const MESSAGE: &[u8] =
    b"OPTIONS sip:100@198.51.100.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.7\r\n\r\n";

/// A UDP packet of one family, between hosts 7 and 1.
fn udp(is_v4: bool, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len() as u16).to_be_bytes();
    let udp = [&from.to_be_bytes()[..], &to.to_be_bytes(), &length, &[0, 0], payload].concat();
    ip(is_v4, 17, &udp)
}

/// An IP packet with a payload.
fn ip(is_v4: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    if is_v4 {
        let length = (20 + payload.len() as u16).to_be_bytes();
        let hosts = [192, 0, 2, 7, 198, 51, 100, 1];
        return [&[0x45, 0][..], &length, &[0, 9, 0, 0, 64, protocol, 0, 0], &hosts, payload]
            .concat();
    }
    let host = |last: u8| [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[last]].concat();
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[protocol, 64], &host(7), &host(1), payload].concat()
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &kind.to_be_bytes(), payload].concat()
}

fn kind(is_v4: bool) -> u16 {
    if is_v4 { 0x0800 } else { 0x86dd }
}

fn gre(flags: u16, kind: u16, rest: &[u8]) -> Vec<u8> {
    ip(true, 47, &[&flags.to_be_bytes()[..], &kind.to_be_bytes(), rest].concat())
}

fn hep3(is_v4: bool, protocol: u8, message: (u16, &[u8])) -> Vec<u8> {
    let chunk = |kind: u16, value: &[u8]| {
        [&[0, 0][..], &kind.to_be_bytes(), &(6 + value.len() as u16).to_be_bytes(), value].concat()
    };
    let v6 = |last: u8| [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[last]].concat();
    let hosts = match is_v4 {
        true => [chunk(3, &[192, 0, 2, 7]), chunk(4, &[198, 51, 100, 1])].concat(),
        false => [chunk(5, &v6(7)), chunk(6, &v6(1))].concat(),
    };
    let chunks = [
        chunk(1, &[if is_v4 { 2 } else { 10 }]),
        chunk(2, &[protocol]),
        hosts,
        chunk(7, &5_062_u16.to_be_bytes()),
        chunk(8, &5_060_u16.to_be_bytes()),
        chunk(11, &[1]),
        chunk(message.0, message.1),
    ];
    let chunks = chunks.concat();
    [&b"HEP3"[..], &(6 + chunks.len() as u16).to_be_bytes(), &chunks].concat()
}

/// All wrappings: name, link type, and wrapped packet. The inner one is of the given family.
fn wrappings(is_v4: bool) -> Vec<(&'static str, i32, Vec<u8>)> {
    let inner = udp(is_v4, 5_062, 5_060, MESSAGE);
    let frame = ethernet(kind(is_v4), &inner);
    let label = |last: bool| [0, 1, u8::from(last), 64];
    let mpls = |inner: &[u8]| [&label(false)[..], &label(true), inner].concat();
    let tunnel = |port: u16, head: &[u8], inner: &[u8]| {
        ethernet(0x0800, &udp(true, 40_000, port, &[head, inner].concat()))
    };
    let tags = |count: usize| {
        let rest =
            [[0x81, 0, 0, 5].repeat(count).as_slice(), &kind(is_v4).to_be_bytes(), &inner].concat();
        [&frame[..12], &rest].concat()
    };
    let nflog = |family: u8, big: bool| {
        let two = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let tlv = |kind: u16, value: &[u8]| {
            let mut tlv = [&two(4 + value.len() as u16)[..], &two(kind), value].concat();
            tlv.resize(tlv.len().div_ceil(4) * 4, 0);
            tlv
        };
        [
            &[family, 0, 0, 5][..],
            &tlv(10, b"prefix\0"),
            &tlv(1, &[0x86, 0xdd, 3, 0]),
            &tlv(9, &inner),
        ]
        .concat()
    };
    let hep = |payload: &[u8]| ethernet(0x0800, &udp(true, 40_000, 9_060, payload));
    let old_hep = |version: u8, between: usize| {
        let (from, to) = if is_v4 {
            (inner[12..16].to_vec(), inner[16..20].to_vec())
        } else {
            (inner[8..24].to_vec(), inner[24..40].to_vec())
        };
        let length = 8 + 2 * from.len() as u8;
        let head = [version, length, if is_v4 { 2 } else { 10 }, 17, 0x13, 0xc6, 0x13, 0xc4];
        hep(&[&head[..], &from, &to, &vec![0; between], MESSAGE].concat())
    };
    let sll2 = [&kind(is_v4).to_be_bytes()[..], &[0; 18], &inner].concat();
    let sll = [&[0; 14][..], &kind(is_v4).to_be_bytes(), &inner].concat();
    let sll_tagged = [&[0; 14][..], &[0x81, 0, 0, 5], &kind(is_v4).to_be_bytes(), &inner].concat();
    let ppp: &[u8] = if is_v4 { &[0, 0x21] } else { &[0, 0x57] };
    let pppoe =
        [&[0x11, 0, 0, 1][..], &(2 + inner.len() as u16).to_be_bytes(), ppp, &inner].concat();
    let short_pppoe =
        [&[0x11, 0, 0, 1][..], &(1 + inner.len() as u16).to_be_bytes(), &ppp[1..], &inner].concat();
    let eth_ip = |packet: Vec<u8>| ethernet(0x0800, &packet);
    let inner_proto = if is_v4 { 4 } else { 41 };
    vec![
        ("ethernet", 1, frame.clone()),
        ("one tag", 1, tags(1)),
        ("two tags", 1, tags(2)),
        ("three tags", 1, tags(3)),
        ("eight tags", 1, tags(8)),
        ("an old tag", 1, [&frame[..12], &[0x91, 0, 0, 5], &frame[12..]].concat()),
        ("pppoe", 1, ethernet(0x8864, &pppoe)),
        ("pppoe, short protocol", 1, ethernet(0x8864, &short_pppoe)),
        ("mpls", 1, ethernet(0x8847, &mpls(&inner))),
        ("mpls, frame", 1, ethernet(0x8847, &mpls(&frame))),
        (
            "mpls, control word, frame",
            1,
            ethernet(0x8848, &mpls(&[&[0; 4][..], &frame[..]].concat())),
        ),
        ("802.1ah", 1, ethernet(0x88e7, &[&[0, 0, 0, 1][..], &frame[..]].concat())),
        ("ip in ip", 1, eth_ip(ip(true, inner_proto, &inner))),
        ("ip in ipv6", 1, ethernet(0x86dd, &ip(false, inner_proto, &inner))),
        ("ip in ip in ip", 1, eth_ip(ip(true, 4, &ip(true, inner_proto, &inner)))),
        ("mpls in ip", 1, eth_ip(ip(true, 137, &mpls(&inner)))),
        ("gre", 1, eth_ip(gre(0, kind(is_v4), &inner))),
        (
            "gre, all fields",
            1,
            eth_ip(gre(0xb000, kind(is_v4), &[&[0; 12][..], &inner[..]].concat())),
        ),
        ("gre, frame", 1, eth_ip(gre(0, 0x6558, &frame))),
        ("gre, mpls", 1, eth_ip(gre(0, 0x8847, &mpls(&inner)))),
        ("pptp", 1, eth_ip(gre(0x3081, 0x880b, &[&[0; 12][..], ppp, &inner].concat()))),
        ("erspan 1", 1, eth_ip(gre(0, 0x88be, &frame))),
        (
            "erspan 2",
            1,
            eth_ip(gre(
                0x1000,
                0x88be,
                &[&[0, 0, 0, 7][..], &[0x10, 0, 0, 0, 0, 0, 0, 0], &frame[..]].concat(),
            )),
        ),
        (
            "erspan 3",
            1,
            eth_ip(gre(0x1000, 0x22eb, &[&[0; 4][..], &[0x20], &[0; 11], &frame].concat())),
        ),
        (
            "erspan 3, more",
            1,
            eth_ip(gre(
                0x1000,
                0x22eb,
                &[&[0; 4][..], &[0x20], &[0; 10], &[1], &[0; 8], &frame].concat(),
            )),
        ),
        ("vxlan", 1, tunnel(4_789, &[8, 0, 0, 0, 0, 0, 42, 0], &frame)),
        ("vxlan, Linux's port", 1, tunnel(8_472, &[8, 0, 0, 0, 0, 0, 42, 0], &frame)),
        (
            "vxlan-gpe",
            1,
            tunnel(4_790, &[0xc, 0, 0, if is_v4 { 1 } else { 2 }, 0, 0, 42, 0], &inner),
        ),
        (
            "vxlan in vxlan",
            1,
            tunnel(
                4_789,
                &[8, 0, 0, 0, 0, 0, 42, 0],
                &tunnel(4_789, &[8, 0, 0, 0, 0, 0, 1, 0], &frame),
            ),
        ),
        ("geneve", 1, tunnel(6_081, &[1, 0, 0x65, 0x58, 0, 0, 1, 0, 1, 2, 3, 4], &frame)),
        ("gtp-u", 1, tunnel(2_152, &[0x30, 0xff, 0, 0, 0, 0, 0, 1], &inner)),
        (
            "gtp-u, extension",
            1,
            tunnel(2_152, &[0x34, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x85, 1, 0, 0, 0], &inner),
        ),
        ("tzsp", 1, tunnel(37_008, &[1, 0, 0, 1, 0, 10, 1, 0x55, 1], &frame)),
        ("hep3", 1, hep(&hep3(is_v4, 17, (15, MESSAGE)))),
        ("hep1", 1, old_hep(1, 0)),
        ("hep2", 1, old_hep(2, 12)),
        ("hep2, unpadded", 1, old_hep(2, 10)),
        ("null", 0, [&[2, 0, 0, 0][..], &inner[..]].concat()),
        ("loop", 108, [&[0, 0, 0, 2][..], &inner[..]].concat()),
        ("raw", 101, inner.clone()),
        ("raw, its own number", if is_v4 { 228 } else { 229 }, inner.clone()),
        ("sll", 113, sll),
        ("sll, tagged", 113, sll_tagged),
        ("sll2", 276, sll2),
        ("ppp", 9, [&[0xff, 3][..], ppp, &inner].concat()),
        ("ppp, bare", 9, [ppp, &inner[..]].concat()),
        ("ppp, short", 9, [&ppp[1..], &inner].concat()),
        ("ppp_hdlc", 50, [&[0xff, 3][..], ppp, &inner].concat()),
        ("pppoe, no ethernet", 51, pppoe),
        ("ppp_pppd", 166, [&[0, 3][..], ppp, &inner].concat()),
        ("c_hdlc", 104, [&[0xf, 0][..], &kind(is_v4).to_be_bytes(), &inner].concat()),
        ("enc", 109, [&[0; 12][..], &inner[..]].concat()),
        ("pflog", 117, [&[61][..], &[0; 63], &inner].concat()),
        ("nflog", 239, nflog(if is_v4 { 2 } else { 10 }, false)),
        ("nflog, big-endian", 239, nflog(0, true)),
        ("mpls alone", 219, mpls(&inner)),
        ("preamble", 274, [&[0x55; 8][..], &frame[..]].concat()),
    ]
}

#[test]
fn the_same_packet_comes_out_of_every_wrapping() {
    for is_v4 in [true, false] {
        for (name, link, data) in wrappings(is_v4) {
            let mut buffer = Vec::new();
            let unwrapped = unwrap(link, &data, &mut buffer)
                .unwrap_or_else(|error| panic!("{name}: {error:?}"));
            let ends = frame::ends(unwrapped.frame)
                .unwrap_or_else(|| panic!("{name}: no IP: {unwrapped:?}"));
            let host =
                if is_v4 { ["192.0.2.7", "198.51.100.1"] } else { ["2001:db8::7", "2001:db8::1"] };
            let found = [ends.source, ends.destination]
                .map(|source| crate::net::network::address_of(source).to_string());
            assert_eq!(
                (found, ends.ports),
                (host.map(str::to_owned), Some((5_062, 5_060))),
                "{name}, IPv4 {is_v4}"
            );
            let start = unwrapped.frame.windows(7).position(|seven| seven == b"OPTIONS").unwrap();
            assert_eq!(&unwrapped.frame[start..], MESSAGE, "{name}");
            assert_eq!(unwrapped.closed, None, "{name}");
        }
    }
}

#[test]
fn supported_headers_stay() {
    for (name, link, data) in wrappings(true).into_iter().take(3) {
        let mut buffer = Vec::new();
        assert_eq!(unwrap(link, &data, &mut buffer).unwrap().frame, data, "{name}");
    }
}

#[test]
fn unsupported_contents_have_names() {
    let closed = |data: &[u8]| unwrap(1, data, &mut Vec::new()).unwrap().closed;
    assert_eq!(closed(&ethernet(0x0800, &ip(true, 50, &[0; 40]))), Some("ESP (encrypted)"));
    assert_eq!(
        closed(&ethernet(0x0800, &udp(true, 4_500, 4_500, &[1; 40]))),
        Some("ESP (encrypted)")
    );
    assert_eq!(closed(&ethernet(0x0800, &udp(true, 4_500, 4_500, &[0; 40]))), None, "key exchange");
    assert_eq!(closed(&ethernet(0x0800, &udp(true, 1_701, 1_701, &[1; 40]))), Some("L2TP"));
    assert_eq!(closed(&ethernet(0x88e5, &[1; 40])), Some("MACsec (encrypted)"));
    let hep = |protocol, message| {
        closed(&ethernet(0x0800, &udp(true, 1, 9_060, &hep3(true, protocol, message))))
    };
    assert_eq!(hep(6, (15, MESSAGE)), Some("HEP of TCP or TLS"));
    assert_eq!(hep(17, (16, MESSAGE)), Some("HEP with compressed messages"));
    assert_eq!(unwrap(127, &[0; 60], &mut Vec::new()), Err(Unread::LinkType));
    assert!(super::unwrap::unread_name(127).contains("radiotap"));
}

#[test]
fn lookalikes_of_tunnels_are_none() {
    for (port, payload) in
        [(4_789, MESSAGE), (6_081, MESSAGE), (37_008, MESSAGE), (2_152, MESSAGE), (9_060, MESSAGE)]
    {
        let data = ethernet(0x0800, &udp(true, 5_062, port, payload));
        let mut buffer = Vec::new();
        let unwrapped = unwrap(1, &data, &mut buffer).unwrap();
        assert_eq!((unwrapped.frame, unwrapped.tunnel), (&data[..], None), "{port}");
    }
}

proptest! {
    /// For any bytes, truncated anywhere: a result.
    #[test]
    fn no_bytes_upset_it(
        which in any::<prop::sample::Index>(),
        is_v4 in any::<bool>(),
        link in 0..300_i32,
        keeps in any::<bool>(),
        cut in any::<prop::sample::Index>(),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let all = wrappings(is_v4);
        let (_, own, mut data) = all[which.index(all.len())].clone();
        for (at, value) in changes {
            let at = at.index(data.len());
            data[at] = value;
        }
        data.truncate(cut.index(data.len() + 1));
        for data in [data, garbage] {
            let mut buffer = Vec::new();
            if let Ok(unwrapped) = unwrap(if keeps { own } else { link }, &data, &mut buffer) {
                let _ = frame::ends(unwrapped.frame);
                let _ = frame::message(unwrapped.frame);
            }
        }
    }
}
