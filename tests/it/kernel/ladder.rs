//! The ladder in the compiled program: tries are metered, and whoever is really there gets in.
//! Needs root.

use sip_xdp::net::network::{Network, source_of};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::ladder::{
    Digest, PORTS_SHARE, REFUSES_USERS, STEPS_NS, STRANGERS_SHARE,
};
use sip_xdp_common::packet::headers::tcp_flags::ACK;
use sip_xdp_common::verdict::Reason::{self, Good, Limited, Unknown};

use crate::kernel::frames::{Ip, request, segment, sip, udp, udp_from};
use crate::kernel::harness::{Kernel, SECOND, START, settings};

const HOST: &str = "192.0.2.7";
const HOUR: u64 = 3_600 * SECOND;

fn source(text: &str) -> IpKey {
    source_of(text.parse().unwrap())
}

/// A registration that echoes a nonce.
fn with_nonce(method: &str, nonce: &str) -> Vec<u8> {
    let credentials = format!(
        "Authorization: Digest username=\"a\", nonce=\"{nonce}\", uri=\"x\"\r\nContent-Length"
    );
    let text = String::from_utf8(request(method)).unwrap();
    text.replace("Content-Length", &credentials).into_bytes()
}

fn passed(kernel: &mut Kernel, frame: &[u8], times: usize) -> usize {
    (0..times).filter(|_| matches!(kernel.run(frame).reason, Unknown | Good)).count()
}

fn meter(kernel: &mut Kernel, network: &str, step: u32, strict: bool) {
    let modes = if strict { PORTS_SHARE } else { 0 };
    kernel.lists.meter(network.parse().unwrap(), step, modes, START + 30 * HOUR, START).unwrap();
}

#[test]
fn tries_have_the_pace_of_their_step_and_others_one_a_second() {
    for (step, interval) in (0..).zip(STEPS_NS) {
        let mut kernel = Kernel::new(&settings());
        meter(&mut kernel, "192.0.2.7/32", step, false);
        let guess = sip(HOST, &with_nonce("REGISTER", "borrowed"));
        assert_eq!(passed(&mut kernel, &guess, 9), 4, "step {step}");
        // Other requests are apart from that.
        assert_eq!(passed(&mut kernel, &sip(HOST, &request("REGISTER")), 9), 4, "step {step}");
        kernel.set_clock(START + interval);
        assert_eq!(passed(&mut kernel, &guess, 9), 1, "step {step}");
        // A neighbour is not concerned.
        assert_eq!(
            passed(&mut kernel, &sip("192.0.2.8", &with_nonce("REGISTER", "borrowed")), 9),
            9
        );
        // And after its time neither is the host.
        kernel.set_clock(START + 31 * HOUR);
        assert_eq!(passed(&mut kernel, &guess, 9), 9, "step {step}");
    }
}

#[test]
fn whoever_is_really_there_gets_in_with_a_nonce_of_its_own() {
    let mut kernel = Kernel::new(&settings());
    meter(&mut kernel, "192.0.2.7/32", 3, false);
    kernel.lists.own_nonce(source(HOST), Digest::of(b"own").0, true).unwrap();
    for (number, method) in (1..).zip(["REGISTER", "INVITE", "MESSAGE", "SUBSCRIBE", "FOO"]) {
        let guess = sip(HOST, &with_nonce(method, "borrowed"));
        passed(&mut kernel, &guess, 50);
        assert_eq!(
            passed(&mut kernel, &guess, 50),
            0,
            "a forger has used up what there is, by {method}"
        );
        kernel.set_clock(START + 10 * SECOND * number);
        let phone = sip(HOST, &with_nonce(method, "own"));
        assert_eq!(passed(&mut kernel, &phone, 4), 4, "the owner, by {method}");
    }
    // Somebody else's nonce is none, and neither is one that was given to others as well.
    assert_eq!(passed(&mut kernel, &sip("192.0.2.8", &with_nonce("REGISTER", "own")), 9), 9);
    kernel.lists.own_nonce(source(HOST), Digest::of(b"own").0, false).unwrap();
    assert_eq!(passed(&mut kernel, &sip(HOST, &with_nonce("REGISTER", "own")), 9), 0);
}

#[test]
fn what_may_hide_credentials_is_a_try() {
    let mut kernel = Kernel::new(&settings());
    meter(&mut kernel, "192.0.2.7/32", 3, false);
    passed(&mut kernel, &sip(HOST, &with_nonce("REGISTER", "borrowed")), 50);
    let text = String::from_utf8(request("OPTIONS")).unwrap();
    let long = text.replace("Via:", &format!("X: {}\r\nVia:", "x".repeat(1_460)));
    assert_eq!(passed(&mut kernel, &sip(HOST, long.as_bytes()), 9), 0);
    let fragment = Ip { fragment: 0x2000, ..Ip::udp(HOST) }.frame(&udp(5060, &request("OPTIONS")));
    assert_eq!(passed(&mut kernel, &fragment, 9), 0);
    assert_eq!(
        passed(&mut kernel, &sip(HOST, &request("OPTIONS")), 9),
        4,
        "what is there whole is told apart"
    );
}

#[test]
fn a_known_good_address_is_limited_in_nothing_but_tries_by_others() {
    let mut kernel = Kernel::new(&settings());
    let until = START + 20 * HOUR;
    kernel.lists.know(source(HOST), START, |standing| standing.good_until = until).unwrap();
    kernel.lists.know_flow(source(HOST), 5060, until).unwrap();
    kernel.lists.own_nonce(source(HOST), Digest::of(b"own").0, true).unwrap();
    for strict in [false, true] {
        meter(&mut kernel, "192.0.2.7/32", 2, strict);
        // Each second so many requests are scanned.
        let mut now = START + HOUR * u64::from(strict);
        let mut passed = |kernel: &mut Kernel, frame: &[u8], times| {
            now += 2 * SECOND;
            kernel.set_clock(now);
            passed(kernel, frame, times)
        };
        let from = |port: u16, payload: &[u8]| Ip::udp(HOST).frame(&udp_from(port, 5060, payload));
        assert_eq!(passed(&mut kernel, &from(5060, &request("REGISTER")), 50), 50);
        assert_eq!(
            passed(&mut kernel, &from(5060, &with_nonce("REGISTER", "own")), 50),
            50,
            "strict: {strict}"
        );
        let strange = if strict { 4 } else { 50 };
        assert_eq!(passed(&mut kernel, &from(7_000, &with_nonce("REGISTER", "own")), 50), strange);
        let rest = if strict { 0 } else { 4 };
        assert_eq!(passed(&mut kernel, &from(5060, &with_nonce("REGISTER", "borrowed")), 50), rest);
    }
}

/// A segment from this port; the sequence number does not matter.
fn over_tcp(host: &str, port: u16, payload: &[u8]) -> Vec<u8> {
    let tcp = Ip { protocol: 6, ..Ip::udp(host) };
    tcp.frame(&segment((port, 5060), ACK, 1, 77, 3, payload))
}

fn credentials(user: &str) -> String {
    format!(
        "REGISTER sip:x SIP/2.0\r\nVia: y\r\nAuthorization: Digest nonce=\"n\", \
         username=\"{user}\", uri=\"x\"\r\nContent-Length: 0\r\n\r\n"
    )
}

/// A known-good office on a step of the ladder, with a phone that is registered from port 40000,
/// and a refused user "a".
fn office(host: &str, step: u32) -> Kernel {
    let mut kernel = Kernel::new(&settings());
    let (from, until) = (source(host), START + 20 * HOUR);
    kernel.lists.know(from, START, |standing| standing.good_until = until).unwrap();
    kernel.lists.know_flow(from, 40_000, until).unwrap();
    kernel.lists.meter(Network::around(from, 128), step, REFUSES_USERS, until, START).unwrap();
    kernel.lists.refuse_user(from, Digest::of(b"a").0, START + HOUR).unwrap();
    kernel
}

#[test]
fn over_tcp_only_the_refused_user_is_stopped() {
    for host in [HOST, "2001:db8:7::7"] {
        let mut kernel = office(host, 2);
        let register = "REGISTER sip:x SIP/2.0\r\nVia: y\r\nContent-Length: 0\r\n\r\n";
        let [refused, other] = ["a", "b"].map(credentials);
        let passed = |kernel: &mut Kernel, port, text: &str| {
            passed(kernel, &over_tcp(host, port, text.as_bytes()), 9)
        };
        for (port, text, expected, what) in [
            (40_001, &*refused, 0, "the refused user"),
            (40_001, &*other, 9, "another user of the office"),
            (40_001, register, 9, "without credentials"),
            (40_001, "\r\n\r\n", 9, "a keepalive"),
            (40_000, &*refused, 0, "the refused user by a phone's connection"),
            (40_000, &*other, 9, "another user by a phone's connection"),
        ] {
            assert_eq!(passed(&mut kernel, port, text), expected, "{what}, {host}");
        }
        // A neighbour is not concerned.
        assert_eq!(passed(&mut Kernel::new(&settings()), 40_001, &refused), 9);
        // An acceptance ends it, and so does its time.
        kernel.lists.refuse_user(source(host), Digest::of(b"a").0, 0).unwrap();
        assert_eq!(passed(&mut kernel, 40_001, &refused), 9, "{host}");
        kernel.lists.refuse_user(source(host), Digest::of(b"a").0, START + HOUR).unwrap();
        kernel.set_clock(START + HOUR);
        assert_eq!(passed(&mut kernel, 40_001, &refused), 9, "{host}");
    }
}

/// Where ports share the ladder, so do connections.
#[test]
fn over_tcp_all_tries_share_the_ladder_where_ports_do() {
    let mut kernel = office(HOST, 2);
    meter(&mut kernel, "192.0.2.7/32", 2, true);
    let from = |port: u16| over_tcp(HOST, port, credentials("b").as_bytes());
    assert_eq!(passed(&mut kernel, &from(40_001), 3), 3);
    assert_eq!(passed(&mut kernel, &from(40_002), 9), 1);
    assert_eq!(passed(&mut kernel, &from(40_000), 9), 9, "a phone's connection");
    let register = over_tcp(HOST, 40_003, b"REGISTER sip:x SIP/2.0\r\n\r\n");
    assert_eq!(passed(&mut kernel, &register, 9), 9, "without credentials");
}

/// The strangers of an IPv6 network share its place by UDP and TCP; a known-good host of it is
/// judged by itself.
#[test]
fn over_tcp_all_tries_of_an_ipv6_network_share_the_ladder_where_ports_do() {
    let other = "2001:db8:0:1::ff";
    for (network, bits) in [("2001:db8:0:1::/64", 64), ("2001:db8::/56", 56), ("2001:db8::/48", 48)]
    {
        let mut kernel = office(other, 0);
        let place: Network = network.parse().unwrap();
        kernel.lists.meter(place, 2, STRANGERS_SHARE, START + 20 * HOUR, START).unwrap();
        let guess = |host: u16, text: &str| {
            over_tcp(&format!("2001:db8:0:1::{host:x}"), 40_001, text.as_bytes())
        };
        let tries = credentials("b");
        let passes = |kernel: &mut Kernel, from: u16| {
            (from..from + 20).filter(|host| passed(kernel, &guess(*host, &tries), 1) == 1).count()
        };
        assert_eq!(passes(&mut kernel, 1), 4, "/{bits}");
        let by_udp = sip("2001:db8:0:1::1", &with_nonce("REGISTER", "borrowed"));
        assert_eq!(passed(&mut kernel, &by_udp, 4), 0, "/{bits}");
        let without = guess(1, "REGISTER sip:x SIP/2.0\r\nVia: y\r\n\r\n");
        assert_eq!(passed(&mut kernel, &without, 9), 9, "/{bits}");
        assert_eq!(passed(&mut kernel, &guess(0xff, &tries), 9), 9, "a known-good host, /{bits}");
        kernel.lists.own_nonce(source(other), Digest::of(b"own").0, true).unwrap();
        let own = String::from_utf8(with_nonce("REGISTER", "own")).unwrap();
        let own = sip(other, own.replace("\"a\"", "\"b\"").as_bytes());
        assert_eq!(passed(&mut kernel, &own, 9), 9, "by UDP, with a nonce of its own, /{bits}");
        let refused = guess(0xff, &credentials("a"));
        assert_eq!(passed(&mut kernel, &refused, 9), 0, "its refused user, /{bits}");
        kernel.set_clock(START + HOUR);
        assert_eq!(passes(&mut kernel, 100), 4, "/{bits}");
        // Where its strangers do not share, only UDP is limited.
        let mut kernel = Kernel::new(&settings());
        meter(&mut kernel, network, 2, false);
        assert_eq!(passes(&mut kernel, 1), 20, "/{bits}");
    }
}

/// Fragments of segments hide what they carry, so that each is a try, also from a phone's port.
/// TLS, on its port, has no words to be found in.
#[test]
fn over_tcp_fragments_are_tries_and_tls_is_not_searched() {
    let mut kernel = office(HOST, 2);
    let tcp = Ip { protocol: 6, fragment: 0x2000, ..Ip::udp(HOST) };
    let fragment =
        |port: u16, payload: &[u8]| tcp.frame(&segment((port, 5060), ACK, 1, 77, 3, payload));
    let text = b"REGISTER sip:x SIP/2.0\r\nVia: y\r\n";
    assert_eq!(passed(&mut kernel, &fragment(40_001, text), 9), 4);
    assert_eq!(passed(&mut kernel, &fragment(40_000, text), 9), 0, "by a phone's port");
    assert_eq!(passed(&mut kernel, &fragment(40_001, b""), 9), 0, "without payload");
    assert_eq!(passed(&mut office(HOST, 0), &fragment(40_000, text), 9), 9, "on the first step");
    let without = over_tcp(HOST, 40_001, b"REGISTER sip:x SIP/2.0\r\nVia: y\r\n\r\n");
    assert_eq!(passed(&mut kernel, &without, 9), 9, "a whole one without credentials");
    let tls = Ip { protocol: 6, ..Ip::udp(HOST) };
    let tls = tls.frame(&segment((40_001, 5061), ACK, 1, 77, 3, b"\x17\x03\x03\0\x04abcd"));
    assert_eq!(passed(&mut kernel, &tls, 9), 9, "TLS");
}

/// What may hide whose password it tries is metered: four at once, and then the step's pace.
#[test]
fn over_tcp_pieces_that_hide_the_user_are_tries() {
    let whole = credentials("a");
    let name = whole.find("username").unwrap();
    let header = whole.find("Authorization").unwrap();
    let line = "Authorization: Digest nonce=\"n\",\r\n";
    for (piece, what) in [
        (whole[..name].to_owned(), "cut in a line, its beginning"),
        (format!("{line}\r\n"), "credentials without a name"),
        (format!(" {}", &whole[name..]), "a folded line's rest"),
        (format!("{}{}", credentials("b"), credentials("b")), "two at once"),
        (whole.replace("username", "username=\"b\", username"), "two names"),
        (whole.replace("\"a\"", "\"\\a\""), "a name with a backslash"),
        (whole.replace("Via", &format!("X: {}\r\nVia", "x".repeat(1_472))), "a long one"),
        ("x".to_owned(), "a single byte"),
    ] {
        let mut kernel = office(HOST, 2);
        let frame = over_tcp(HOST, 40_001, piece.as_bytes());
        assert_eq!(passed(&mut kernel, &frame, 9), 4, "{what}");
        kernel.set_clock(START + STEPS_NS[2]);
        assert_eq!(passed(&mut kernel, &frame, 9), 1, "{what}, later");
    }
    // A header that a piece begins with is seen.
    let mut kernel = office(HOST, 2);
    assert_eq!(passed(&mut kernel, &over_tcp(HOST, 40_001, &whole.as_bytes()[header..]), 9), 0);
    for spelling in ["proxy-authorization :", "AUTHORIZATION\t:"] {
        let other = whole.replace("Authorization:", spelling);
        assert_eq!(passed(&mut kernel, &over_tcp(HOST, 40_001, other.as_bytes()), 9), 0);
    }
    let bare = whole.replace("username=\"a\"", "UserName = a");
    assert_eq!(passed(&mut kernel, &over_tcp(HOST, 40_001, bare.as_bytes()), 9), 0);
}

/// A connection by which phones are registered may carry a message in several segments, until
/// somebody is found to hide a name so.
#[test]
fn over_tcp_pieces_by_a_phones_connection_are_tries_once_a_name_was_hidden() {
    let whole = credentials("b");
    let piece = &whole.as_bytes()[..whole.find("username").unwrap()];
    for (step, expected) in [(0, 9), (1, 4), (2, 4)] {
        let mut kernel = office(HOST, step);
        let by = |port: u16| over_tcp(HOST, port, piece);
        assert_eq!(passed(&mut kernel, &by(40_000), 9), expected, "step {step}");
        assert_eq!(passed(&mut office(HOST, step), &by(40_001), 9), 4, "step {step}");
    }
}

/// By UDP, too: from the port of a PBX, where other users are accepted, and from any other.
#[test]
fn by_udp_only_the_refused_user_is_stopped() {
    for host in [HOST, "2001:db8:7::7"] {
        let mut kernel = office(host, 0);
        let from =
            |port: u16, text: &str| Ip::udp(host).frame(&udp_from(port, 5060, text.as_bytes()));
        let [refused, other] = ["a", "b"].map(credentials);
        let hidden = refused.replace("username", "username=\"b\", username");
        let register = String::from_utf8(request("REGISTER")).unwrap();
        for (text, expected, what) in [
            (&refused, 0, "the refused user"),
            (&other, 9, "another user, whatever its nonce"),
            (&register, 9, "without credentials"),
            (&hidden, 4, "two names: a try"),
        ] {
            for port in [40_000, 40_001] {
                let mut kernel = office(host, 0);
                assert_eq!(passed(&mut kernel, &from(port, text), 9), expected, "{what}, {port}");
            }
        }
        // Lower on the ladder, whatever anybody may have sent is a try again.
        kernel.lists.own_nonce(source(host), Digest::of(b"n").0, true).unwrap();
        let network = Network::around(source(host), 128);
        kernel.lists.meter(network, 1, REFUSES_USERS, START + HOUR, START).unwrap();
        assert_eq!(passed(&mut kernel, &from(40_000, &other), 9), 9, "with its own nonce");
        assert_eq!(passed(&mut kernel, &from(40_000, &refused), 9), 0);
        let borrowed = other.replace("nonce=\"n\"", "nonce=\"borrowed\"");
        assert_eq!(passed(&mut kernel, &from(40_000, &borrowed), 9), 4);
        kernel.set_clock(START + 2 * HOUR);
        assert_eq!(passed(&mut kernel, &from(40_000, &refused), 9), 9, "its time is over");
    }
}

#[test]
fn an_ipv6_network_shares_its_place() {
    for (network, bits) in [("2001:db8:0:1::/64", 64), ("2001:db8::/56", 56), ("2001:db8::/48", 48)]
    {
        let mut kernel = Kernel::new(&settings());
        meter(&mut kernel, network, 1, false);
        let guess = |host: u16| {
            sip(&format!("2001:db8:0:1::{host:x}"), &with_nonce("REGISTER", "borrowed"))
        };
        let passes = (1..50).filter(|host| kernel.run(&guess(*host)).reason == Unknown).count();
        assert_eq!(passes, 4, "/{bits}");
        let elsewhere = sip("2001:db8:1::1", &with_nonce("REGISTER", "borrowed"));
        assert_eq!(passed(&mut kernel, &elsewhere, 9), 9, "/{bits}");
        // The narrower one counts as well.
        meter(&mut kernel, "2001:db8:0:1::7/128", 3, false);
        kernel.set_clock(START + HOUR);
        let all: Vec<Reason> = (0..9).map(|_| kernel.run(&guess(7)).reason).collect();
        assert_eq!(all.iter().filter(|reason| **reason == Limited).count(), 5, "{all:?}");
        kernel.set_clock(START + 2 * HOUR);
        assert_eq!(passed(&mut kernel, &guess(7), 9), 0, "/{bits}");
        assert_eq!(passed(&mut kernel, &guess(8), 9), 4, "/{bits}");
    }
}

#[test]
fn it_outlives_the_daemon() {
    let mut kernel = Kernel::new(&settings());
    meter(&mut kernel, "192.0.2.7/32", 2, true);
    let network: Network = "192.0.2.7/32".parse().unwrap();
    kernel.reopen();
    assert_eq!((kernel.lists.ladder_step(&network, START), kernel.lists.metered()), (Some(2), 1));
    let guess = sip(HOST, &with_nonce("REGISTER", "borrowed"));
    assert_eq!(passed(&mut kernel, &guess, 9), 4);
    kernel.lists.unmeter(&network).unwrap();
    assert_eq!(passed(&mut kernel, &guess, 9), 9);
}
