//! Hosts that something is known of: good ones, peers; flows; the policy `closed`; and what the
//! daemon is told of all of them.

use sip_xdp::dataplane::loader::Settings;
use sip_xdp::dataplane::tables::ledger::Entry;
use sip_xdp::net::network::{Network, source_of};
use sip_xdp_common::abi::layout::{EventKind, List, NEVER, Owner};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::gcra::{Limit, Limits, Pace};
use sip_xdp_common::limits::storm::StormLimits;
use sip_xdp_common::verdict::Reason::{
    self, Blocked, Closed, Good, Limited, Peer, Response, Storm, Trusted, Unknown,
};

use crate::kernel::frames::{Ip, request, sip, tcp, udp_from};
use crate::kernel::harness::{Kernel, SECOND, START, limits, settings};

const HOST: &str = "192.0.2.7";
const HOUR: u64 = 3_600 * SECOND;

fn source(text: &str) -> IpKey {
    source_of(text.parse().unwrap())
}

fn from_port(host: &str, port: u16, payload: &[u8]) -> Vec<u8> {
    Ip::udp(host).frame(&udp_from(port, 5060, payload))
}

fn good(kernel: &mut Kernel, host: &str, until: u64) {
    kernel.lists.know(source(host), START, |standing| standing.good_until = until).unwrap();
}

fn reasons(kernel: &mut Kernel, frame: &[u8], count: usize) -> Vec<Reason> {
    (0..count).map(|_| kernel.run(frame).reason).collect()
}

/// What the daemon was told since the last call.
fn told(kernel: &mut Kernel) -> Vec<EventKind> {
    kernel.events().iter().map(|event| EventKind::from_number(event.kind).unwrap()).collect()
}

#[test]
fn a_known_good_host_has_a_generous_limit_until_it_ends() {
    for host in [HOST, "2001:db8:7::7"] {
        let mut kernel =
            Kernel::new(&Settings { good: Pace::with_burst(10, SECOND, 100), ..settings() });
        let frame = sip(host, &request("OPTIONS"));
        // What it used up as a stranger is not held against it.
        assert_eq!(reasons(&mut kernel, &frame, 51).last(), Some(&Limited));
        good(&mut kernel, host, START + HOUR);
        let all = reasons(&mut kernel, &frame, 101);
        assert!(all[..100].iter().all(|reason| *reason == Good), "{host}: {all:?}");
        assert_eq!(all[100], Limited);
        kernel.set_clock(START + HOUR + 3 * SECOND);
        let all = reasons(&mut kernel, &frame, 51);
        assert!(
            all[..50].iter().all(|reason| *reason == Unknown) && all[50] == Limited,
            "{host}: {all:?}"
        );
    }
}

#[test]
fn many_users_have_a_larger_limit() {
    let mut kernel =
        Kernel::new(&Settings { good: Pace::with_burst(10, SECOND, 100), ..settings() });
    kernel
        .lists
        .know(source(HOST), START, |standing| {
            (standing.good_until, standing.scale) = (START + HOUR, 2)
        })
        .unwrap();
    let frame = sip(HOST, &request("SUBSCRIBE"));
    let passed =
        reasons(&mut kernel, &frame, 1_000).iter().filter(|reason| **reason == Good).count();
    assert!((400..=410).contains(&passed), "{passed}");
}

#[test]
fn a_good_flow_has_a_reserve_that_others_cannot_spend() {
    let mut kernel =
        Kernel::new(&Settings { good: Pace::with_burst(10, SECOND, 100), ..settings() });
    good(&mut kernel, HOST, START + HOUR);
    kernel.lists.know_flow(source(HOST), 5062, START + HOUR).unwrap();
    let forged = from_port(HOST, 1_234, &request("REGISTER"));
    assert_eq!(reasons(&mut kernel, &forged, 1_000).last(), Some(&Limited));
    let phone = from_port(HOST, 5062, &request("REGISTER"));
    let all = reasons(&mut kernel, &phone, 30);
    assert!(
        all[..20].iter().all(|reason| *reason == Good)
            && all[20..].iter().all(|reason| *reason == Limited),
        "{all:?}"
    );
    assert_eq!(kernel.run(&forged).reason, Limited);
}

#[test]
fn peers_are_peers() {
    let mut kernel = Kernel::new(&settings());
    kernel.lists.know(source(HOST), START, |standing| standing.peer_until = START + HOUR).unwrap();
    let all = reasons(&mut kernel, &sip(HOST, &request("INVITE")), 200);
    assert!(all.iter().all(|reason| *reason == Peer));
}

#[test]
fn a_banned_flow_does_not_silence_its_neighbours() {
    let mut kernel = Kernel::new(&settings());
    let entry = |owner| Entry {
        port: Some(5062),
        owner,
        ..Entry::manual(HOST.parse().unwrap(), START + HOUR, "flow")
    };
    kernel.lists.put(List::Block, entry(Owner::Auto)).unwrap();
    let bad = from_port(HOST, 5062, &request("REGISTER"));
    assert_eq!(reasons(&mut kernel, &bad, 3), [Blocked; 3]);
    assert_eq!(kernel.run(&from_port(HOST, 5063, &request("REGISTER"))).reason, Unknown);
    // It ends by itself, and is taken out by its owner.
    kernel.set_clock(START + HOUR);
    assert_eq!(kernel.run(&bad).reason, Unknown);
    kernel.set_clock(START);
    assert_eq!(kernel.run(&bad).reason, Blocked);
    assert_eq!(kernel.lists.remove_flows(&HOST.parse().unwrap()).unwrap().len(), 1);
    assert_eq!(kernel.run(&bad).reason, Unknown);
}

#[test]
fn registered_ports_outlast_a_ban_but_not_an_operators_block() {
    let mut kernel = Kernel::new(&settings());
    good(&mut kernel, HOST, START + HOUR);
    kernel.lists.know_flow(source(HOST), 5062, START + HOUR).unwrap();
    let entry = |owner| Entry { owner, ..Entry::manual(HOST.parse().unwrap(), NEVER, "ban") };
    let (phone, other) =
        (from_port(HOST, 5062, &request("REGISTER")), from_port(HOST, 5063, &request("REGISTER")));
    kernel.lists.put(List::Block, entry(Owner::Auto)).unwrap();
    kernel.events();
    assert_eq!((kernel.run(&phone).reason, kernel.run(&other).reason), (Good, Blocked));
    assert_eq!(told(&mut kernel), [EventKind::Conflict]);
    kernel.lists.put(List::Block, entry(Owner::Manual)).unwrap();
    assert_eq!((kernel.run(&phone).reason, kernel.run(&other).reason), (Blocked, Blocked));
    kernel.lists.remove(List::Block, &HOST.parse().unwrap(), Owner::Manual).unwrap();
    assert_eq!(kernel.run(&phone).reason, Good);
    // A feed ends it no more than the detector does.
    kernel.lists.remove(List::Block, &HOST.parse().unwrap(), Owner::Auto).unwrap();
    kernel.lists.replace_feed("feed", vec!["192.0.2.0/24".parse().unwrap()]).unwrap();
    assert_eq!((kernel.run(&phone).reason, kernel.run(&other).reason), (Good, Blocked));
    kernel.lists.know_flow(source(HOST), 5062, 0).unwrap();
    assert_eq!(kernel.run(&phone).reason, Blocked, "its registration has ended");
}

#[test]
fn a_storm_does_not_affect_known_sources() {
    let storm = StormLimits::new(100, SECOND, Limit::new(5, SECOND));
    let mut kernel = Kernel::new(&Settings { storm, ..settings() });
    good(&mut kernel, "192.0.2.7", START + HOUR);
    kernel
        .lists
        .know(source("192.0.2.8"), START, |standing| standing.peer_until = START + HOUR)
        .unwrap();
    for n in 0..5_000_u32 {
        kernel.action(&sip(
            &std::net::Ipv4Addr::from(0x0b00_0000 + n * 7).to_string(),
            &request("REGISTER"),
        ));
    }
    kernel.catch_up();
    assert_eq!(kernel.run(&sip("203.0.113.9", &request("REGISTER"))).reason, Storm);
    // So is somebody who was known good before: limited, but no stranger.
    kernel
        .lists
        .know(source("192.0.2.6"), START, |standing| standing.former_until = START + HOUR)
        .unwrap();
    let all = reasons(&mut kernel, &sip("192.0.2.6", &request("REGISTER")), 51);
    assert!(all[..50].iter().all(|reason| *reason == Unknown) && all[50] == Limited, "{all:?}");
    assert_eq!(reasons(&mut kernel, &sip("192.0.2.7", &request("REGISTER")), 60), [Good; 60]);
    assert_eq!(reasons(&mut kernel, &sip("192.0.2.8", &request("INVITE")), 60), [Peer; 60]);
}

#[test]
fn the_policy_closed_passes_known_sources_only() {
    let mut kernel = Kernel::new(&Settings { closed: true, ..settings() });
    kernel.list(List::Trust, "203.0.113.1", NEVER);
    kernel.list(List::Admit, "203.0.113.64/26", NEVER);
    good(&mut kernel, "192.0.2.7", START + HOUR);
    kernel
        .lists
        .know(source("192.0.2.8"), START, |standing| standing.peer_until = START + HOUR)
        .unwrap();
    let response = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 198.51.100.1;branch=z9hG4bK1\r\n\r\n";
    for method in ["REGISTER", "INVITE", "OPTIONS", "BYE"] {
        for (host, reason) in [
            (HOST, Good),
            ("192.0.2.8", Peer),
            ("192.0.2.9", Closed),
            ("203.0.113.1", Trusted),
            ("203.0.113.65", Unknown),
            ("203.0.113.2", Closed),
            ("2001:db8::7", Closed),
        ] {
            assert_eq!(
                kernel.run(&sip(host, &request(method))).reason,
                reason,
                "{method} from {host}"
            );
        }
    }
    let stranger = "198.51.100.1";
    let connection = Ip { protocol: 6, ..Ip::udp("192.0.2.9") }.frame(&tcp(5060));
    assert_eq!(kernel.run(&connection).reason, Closed, "TCP");
    let admitted = Ip { protocol: 6, ..Ip::udp("203.0.113.65") }.frame(&tcp(5060));
    assert_eq!(kernel.run(&admitted).reason, Unknown, "TCP");
    assert_eq!(kernel.run(&sip(stranger, response)).reason, Closed);
    assert_eq!(kernel.run(&sip("192.0.2.9", b"\r\n\r\n")).reason, Closed);
    // A host that we have sent a request to may answer, and no more.
    kernel.leave(&Ip::udp("192.0.2.1").frame(&udp_from(5060, 5060, &request("REGISTER"))));
    assert_eq!(kernel.run(&sip(stranger, response)).reason, Response);
    assert_eq!(kernel.run(&sip(stranger, &request("INVITE"))).reason, Closed);
    kernel.set_clock(START + 33 * SECOND);
    assert_eq!(kernel.run(&sip(stranger, response)).reason, Closed, "too late");
}

#[test]
fn only_needed_events_are_sent() {
    let mut kernel = Kernel::new(&settings());
    let them = "198.51.100.1";
    let answer = |line: &str| {
        Ip::udp("192.0.2.1").frame(&udp_from(
            5060,
            5062,
            format!("{line}\r\nCSeq: 1 REGISTER\r\n\r\n").as_bytes(),
        ))
    };
    let ours = Ip::udp("192.0.2.1").frame(&udp_from(5060, 5062, &request("OPTIONS")));
    let response = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 198.51.100.1;branch=z9hG4bK1\r\n\r\n";
    kernel.run(&sip(them, response));
    assert_eq!(told(&mut kernel), [EventKind::Response], "whoever asked");
    kernel.run(&sip(them, &request("OPTIONS")));
    kernel.run(&sip(them, b"\r\n\r\n"));
    kernel.leave(&answer("SIP/2.0 100 Trying"));
    kernel.leave(&answer("SIP/2.0 401 Unauthorized"));
    kernel.leave(&ours);
    kernel.run(&sip(them, response));
    use EventKind::{Answer, PendingRequest, Request};
    // To strangers 100 as well: calls that the server works on.
    assert_eq!(told(&mut kernel), [Request, Answer, Answer, PendingRequest, EventKind::Response]);
    // Of those who are known good: what may end that, or abuse it.
    good(&mut kernel, them, START + HOUR);
    for method in ["REGISTER", "INVITE", "SUBSCRIBE", "OPTIONS"] {
        kernel.run(&sip(them, &request(method)));
    }
    kernel.leave(&answer("SIP/2.0 100 Trying"));
    kernel.leave(&answer("SIP/2.0 200 OK"));
    assert_eq!(told(&mut kernel), [Request, Request, Answer]);
    // Of settled peers: INVITEs, which may carry passwords; responses, which a proxy may forward;
    // and what they are refused.
    kernel.lists.know(source(them), START, |standing| standing.peer_until = START + HOUR).unwrap();
    kernel.run(&sip(them, &request("INVITE")));
    kernel.run(&sip(them, response));
    kernel.leave(&answer("SIP/2.0 200 OK"));
    kernel.leave(&ours);
    assert_eq!(told(&mut kernel), [Request, EventKind::Response]);
    kernel.leave(&answer("SIP/2.0 407 Proxy Authentication Required"));
    assert_eq!(told(&mut kernel), [Answer]);
    // Of those on the ladder: everything.
    kernel.lists.meter(Network::around(source(them), 128), 0, 0, START + HOUR, START).unwrap();
    for method in ["REGISTER", "INVITE", "SUBSCRIBE", "OPTIONS"] {
        kernel.run(&sip(them, &request(method)));
    }
    kernel.leave(&answer("SIP/2.0 200 OK"));
    assert_eq!(told(&mut kernel), [Request, Request, Request, Request, Answer]);
    kernel.lists.unmeter(&Network::around(source(them), 128)).unwrap();
    // Of those who are trusted: nothing.
    kernel
        .lists
        .know(source(them), START, |standing| (standing.peer_until, standing.good_until) = (0, 0))
        .unwrap();
    kernel.list(List::Trust, them, NEVER);
    kernel.run(&sip(them, &request("INVITE")));
    kernel.leave(&answer("SIP/2.0 407 Proxy Authentication Required"));
    assert_eq!(told(&mut kernel), []);
}

#[test]
fn one_that_sends_much_cannot_use_up_what_others_are_seen_by() {
    let mut kernel = Kernel::new(&Settings {
        limits: Limits {
            requests: Pace::new(10_000, SECOND),
            register: Pace::new(10_000, SECOND),
            other: Pace::new(10_000, SECOND),
            fragments: Pace::new(10_000, SECOND),
            connections: Pace::new(10_000, SECOND),
            stream: Pace::NONE,
        },
        ..settings()
    });
    for _ in 0..3_000 {
        kernel.action(&sip("192.0.2.66", &request("REGISTER")));
    }
    let told = kernel.events().len();
    assert!((1_000..=1_100).contains(&told), "{told}");
    // Nearly all others are in another slice.
    let seen: usize = (0..100)
        .map(|n| {
            kernel.action(&sip(&format!("203.0.113.{n}"), &request("REGISTER")));
            kernel.events().len()
        })
        .sum();
    assert!(seen >= 90, "{seen} of 100");
    kernel.catch_up();
}

/// Nobody can be answered at port 0 of an address, and nobody can be banned by it: whoever else
/// lives there would be.
#[test]
fn port_0_is_no_flow() {
    for host in [HOST, "2001:db8:7::7"] {
        let mut kernel = Kernel::new(&settings());
        let from = |port, payload: &[u8]| Ip::udp(host).frame(&udp_from(port, 5060, payload));
        let payloads = [
            &request("REGISTER")[..],
            &request("INVITE"),
            b"SIP/2.0 200 OK\r\n\r\n",
            b"\r\n\r\n",
            b"x",
        ];
        for payload in payloads {
            assert_eq!(kernel.run(&from(0, payload)).reason, Limited);
        }
        assert_eq!(told(&mut kernel), [], "no evidence");
        assert_ne!(kernel.run(&from(1, payloads[0])).reason, Limited);
        good(&mut kernel, host, START + HOUR);
        assert_eq!(kernel.run(&from(0, payloads[0])).reason, Limited);
        // The lists neither ban it nor know it.
        let network: Network = host.parse().unwrap();
        let entry =
            Entry { owner: Owner::Auto, port: Some(0), ..Entry::manual(network, NEVER, "") };
        let refused = kernel.lists.put(List::Block, entry.clone()).unwrap_err().to_string();
        assert!(refused.contains("port 0"), "{refused}");
        assert!(kernel.lists.put_all(List::Block, vec![entry]).is_err());
        kernel.lists.know_flow(source(host), 0, START + HOUR).unwrap();
        assert_eq!(kernel.run(&from(5062, payloads[0])).reason, Good, "nobody else is banned");
        kernel.list(List::Trust, host, NEVER);
        assert_eq!(kernel.run(&from(0, payloads[0])).reason, Trusted);
    }
}

/// A source that keeps to a limit per day is not refused after some days of silence, when ticks
/// have begun again.
#[test]
fn a_limit_per_day_passes_a_source_after_days_of_silence() {
    let day = 24 * HOUR;
    let pace = Pace::new(1, day);
    let limits =
        Limits { register: pace, requests: pace, other: pace, fragments: pace, ..limits() };
    let mut kernel = Kernel::new(&Settings { limits, ..settings() });
    let frame = sip(HOST, &request("REGISTER"));
    assert_eq!(reasons(&mut kernel, &frame, 2), [Unknown, Limited]);
    for hour in 1..=66 {
        kernel.sources.refresh(START + hour * HOUR).unwrap();
    }
    kernel.set_clock(START + 66 * HOUR);
    assert_eq!(reasons(&mut kernel, &frame, 2), [Unknown, Limited]);
}
