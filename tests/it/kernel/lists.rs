//! The block and trust tables in the kernel: expiry, overlaps, capacity, hits, and agreement with a
//! plain model.
//!
//! More than 400 lines: one fixture serves them all.

use std::time::Duration;

use sip_xdp::dataplane::loader::{Capacity, Settings};
use sip_xdp::dataplane::tables::header;
use sip_xdp::dataplane::tables::ledger::{Entry, Tier};
use sip_xdp::dataplane::tables::networks::{SlotState, Slots, Table};
use sip_xdp::lists::{ListError, Lists};
use sip_xdp::net::network::Network;
use sip_xdp::sys::clock;
use sip_xdp_common::abi::layout::{List, NEVER, Owner};
use sip_xdp_common::abi::names;
use sip_xdp_common::lookup::networks::Kind;
use sip_xdp_common::lookup::search::SAMPLE;
use sip_xdp_common::verdict::Reason;

use crate::kernel::frames::{Ip, request, sip, tcp, udp_from};
use crate::kernel::harness::{Kernel, SECOND, START, settings};

fn reason(kernel: &mut Kernel, source: &str) -> Reason {
    kernel.run(&sip(source, &request("REGISTER"))).reason
}

#[test]
fn expiry_is_honoured_without_a_daemon() {
    let mut kernel = Kernel::new(&settings());
    kernel.list(List::Block, "192.0.2.7", START + 10 * SECOND);
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Blocked);
    kernel.set_clock(START + 10 * SECOND - 1);
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Blocked);
    kernel.set_clock(START + 10 * SECOND);
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Unknown);
}

#[test]
fn a_ban_ends_by_the_kernels_own_clock() {
    let mut kernel = Kernel::new(&Settings { clock_from_map: false, ..settings() });
    let end = clock::now() + 2 * SECOND;
    kernel.list(List::Block, "192.0.2.7", end);
    let frame = sip("192.0.2.7", &request("REGISTER"));
    let mut seen_blocked = false;
    while kernel.action(&frame) == 1 {
        seen_blocked = true;
        assert!(clock::now() < end + SECOND, "the ban has not ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The kernel's time may be a timer tick behind this one, and is never ahead.
    assert!(seen_blocked && clock::now() >= end, "the ban has ended too early");
}

#[test]
fn an_expired_host_does_not_hide_the_network_around_it() {
    let mut kernel = Kernel::new(&settings());
    kernel.list(List::Block, "192.0.2.0/24", START + 100 * SECOND);
    kernel.list(List::Block, "192.0.2.7", START + 10 * SECOND);
    kernel.list(List::Trust, "198.51.100.0/24", NEVER);
    kernel.list(List::Trust, "198.51.100.7", START + 10 * SECOND);
    kernel.set_clock(START + 50 * SECOND);
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Blocked);
    assert_eq!(reason(&mut kernel, "198.51.100.7"), Reason::Trusted);
    kernel.set_clock(START + 100 * SECOND);
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Unknown);
}

#[test]
fn trust_wins_and_ends() {
    let mut kernel = Kernel::new(&settings());
    kernel.list(List::Block, "192.0.2.7", NEVER);
    kernel.list(List::Trust, "192.0.2.0/24", START + SECOND);
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Trusted);
    kernel.set_clock(START + SECOND);
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Blocked);
}

#[test]
fn an_entry_leaves_with_its_last_owner() {
    let mut kernel = Kernel::new(&settings());
    let network: Network = "192.0.2.7".parse().unwrap();
    kernel.list(List::Block, "192.0.2.7", NEVER);
    let auto = Entry { owner: Owner::Auto, ..Entry::manual(network, START + 10 * SECOND, "flood") };
    kernel.lists.put(List::Block, auto).unwrap();
    assert!(kernel.lists.remove(List::Block, &network, Owner::Manual).unwrap().is_some());
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Blocked);
    kernel.set_clock(START + 10 * SECOND);
    assert_eq!(
        reason(&mut kernel, "192.0.2.7"),
        Reason::Unknown,
        "the manual entry's end went with it"
    );
    assert!(kernel.lists.remove(List::Block, &network, Owner::Auto).unwrap().is_some());
    assert!(kernel.lists.remove(List::Block, &network, Owner::Auto).unwrap().is_none());
}

#[test]
fn a_wide_network_reaches_from_end_to_end_and_leaves_what_is_inside() {
    let mut kernel = Kernel::new(&settings());
    kernel.list(List::Block, "10.0.0.0/8", NEVER);
    kernel.list(List::Block, "10.77.3.0/24", NEVER);
    kernel.list(List::Trust, "10.200.0.0/14", NEVER);
    for (source, expected) in [
        ("9.255.255.255", Reason::Unknown),
        ("10.0.0.0", Reason::Blocked),
        ("10.128.255.1", Reason::Blocked),
        ("10.203.255.255", Reason::Trusted),
        ("10.204.0.0", Reason::Blocked),
        ("10.255.255.255", Reason::Blocked),
        ("11.0.0.0", Reason::Unknown),
    ] {
        assert_eq!(reason(&mut kernel, source), expected, "{source}");
    }
    kernel.lists.remove(List::Block, &"10.0.0.0/8".parse().unwrap(), Owner::Manual).unwrap();
    for (source, expected) in [
        ("10.0.0.0", Reason::Unknown),
        ("10.77.3.9", Reason::Blocked),
        ("10.77.4.9", Reason::Unknown),
        ("10.200.0.0", Reason::Trusted),
        ("10.255.255.255", Reason::Unknown),
    ] {
        assert_eq!(
            reason(&mut kernel, source),
            expected,
            "{source}, when the wide network has gone"
        );
    }
}

#[test]
fn hits_are_exact_and_survive_a_change_of_the_entry() {
    let mut kernel = Kernel::new(&settings());
    let network = "192.0.2.7".parse().unwrap();
    kernel.list(List::Block, "192.0.2.7", NEVER);
    for _ in 0..10 {
        reason(&mut kernel, "192.0.2.7");
    }
    kernel.list(List::Block, "192.0.2.7", START + SECOND);
    kernel.list(List::Block, "192.0.0.0/16", NEVER);
    for _ in 0..10 {
        reason(&mut kernel, "192.0.2.7");
    }
    assert_eq!(kernel.lists.hits(&network), 20);
    kernel.lists.remove(List::Block, &network, Owner::Manual).unwrap();
    kernel.list(List::Block, "192.0.2.7", NEVER);
    assert_eq!(kernel.lists.hits(&network), 0, "a new entry starts at zero");
}

/// A known host's good port goes on under a ban of its address, and TCP under a ban of UDP: what
/// passes is no hit.
#[test]
fn hits_count_what_is_dropped_and_nothing_else() {
    const GOOD_PORT: u16 = 5062;
    for host in ["192.0.2.7", "2001:db8:7::7"] {
        let from = |port| Ip::udp(host).frame(&udp_from(port, 5060, &request("REGISTER")));
        let by_tcp = Ip { protocol: 6, ..Ip::udp(host) }.frame(&tcp(5060));
        let address: Network = host.parse().unwrap();
        let around = Network::around(address.first(), if address.is_v4() { 120 } else { 48 });
        let ban = |network: Network, tier| Entry {
            owner: Owner::Auto,
            tier: Some(tier),
            ..Entry::manual(network, NEVER, "ban")
        };

        // A proven ban of the address, and of the network around it.
        for network in [address, around] {
            let mut kernel = Kernel::new(&settings());
            let until = START + 3_600 * SECOND;
            kernel
                .lists
                .know(address.first(), START, |standing| standing.good_until = until)
                .unwrap();
            kernel.lists.know_flow(address.first(), GOOD_PORT, until).unwrap();
            kernel.lists.put(List::Block, ban(network, Tier::Proven)).unwrap();
            for _ in 0..9 {
                assert_eq!(kernel.run(&from(GOOD_PORT)).reason, Reason::Good, "{network}");
            }
            assert_eq!(kernel.lists.hits(&network), 0, "{network}: what was spared is no hit");
            for _ in 0..5 {
                assert_eq!(kernel.run(&from(40_000)).reason, Reason::Blocked, "{network}");
                assert_eq!(kernel.run(&by_tcp).reason, Reason::Blocked, "{network}");
            }
            assert_eq!(kernel.lists.hits(&network), 10, "{network}");
            // A banned port is hit by itself, and not the address.
            let port = Entry { port: Some(6_000), ..ban(address, Tier::Proven) };
            kernel.lists.put(List::Block, port).unwrap();
            assert_eq!(kernel.run(&from(6_000)).reason, Reason::Blocked, "{network}");
            assert_eq!(kernel.lists.hits(&network), 10, "{network}");
        }

        // A ban of UDP alone, with and without one of everything around it.
        for is_around in [false, true] {
            let mut kernel = Kernel::new(&settings());
            kernel.lists.put(List::Block, ban(address, Tier::Unproven)).unwrap();
            if is_around {
                kernel.list(List::Block, &around.to_string(), NEVER);
            }
            let expected = if is_around { Reason::Blocked } else { Reason::Unknown };
            for _ in 0..7 {
                assert_eq!(kernel.run(&by_tcp).reason, expected, "{host}");
            }
            let hits = |kernel: &Kernel| (kernel.lists.hits(&address), kernel.lists.hits(&around));
            assert_eq!(hits(&kernel), (0, if is_around { 7 } else { 0 }), "{host}");
            for _ in 0..3 {
                assert_eq!(kernel.run(&from(40_000)).reason, Reason::Blocked, "{host}");
            }
            // Each drop is one hit.
            let (own, other) = hits(&kernel);
            assert_eq!(own + other, if is_around { 10 } else { 3 }, "{host}");
        }
    }
}

#[test]
fn feed_blocks_follow_every_change_of_the_lists() {
    let mut kernel = Kernel::new(&settings());
    let host: Network = "192.0.2.7".parse().unwrap();
    let feed = |kernel: &mut Kernel, networks: &[Network]| {
        kernel.lists.replace_feed("feed", networks.to_vec()).unwrap();
        // Twice: no state may be kept between packets.
        [(); 2].map(|()| reason(kernel, "192.0.2.7"))
    };
    assert_eq!(feed(&mut kernel, &[host]), [Reason::Blocked; 2]);
    assert_eq!(feed(&mut kernel, &[]), [Reason::Unknown; 2], "the feed dropped it");
    assert_eq!(feed(&mut kernel, &[host]), [Reason::Blocked; 2]);
    kernel.list(List::Trust, "192.0.2.7", START + 10 * SECOND);
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Trusted);
    kernel.set_clock(START + 10 * SECOND);
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Blocked, "the trust has ended");
    kernel.lists.remove(List::Trust, &host, Owner::Manual).unwrap();
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Blocked);

    // A ban outlasts the feed's entry, and expires by itself.
    kernel.list(List::Block, "192.0.2.7", START + 20 * SECOND);
    assert_eq!(feed(&mut kernel, &[]), [Reason::Blocked; 2]);
    kernel.set_clock(START + 20 * SECOND);
    assert_eq!(reason(&mut kernel, "192.0.2.7"), Reason::Unknown, "the ban has ended");
}

#[test]
fn hits_of_feeds_are_sampled() {
    let mut kernel = Kernel::new(&settings());
    let hosts = ["192.0.2.7", "198.51.100.7"];
    let networks = hosts.map(|host| host.parse::<Network>().unwrap());
    kernel.lists.replace_feed("feed", networks.to_vec()).unwrap();
    for _ in 0..16 * SAMPLE {
        hosts
            .iter()
            .for_each(|host| assert_eq!(reason(&mut kernel, host), Reason::Blocked, "{host}"));
    }
    let hits: u64 = networks.iter().map(|network| kernel.lists.hits(network)).sum();
    assert_eq!(hits, 2 * 16 * SAMPLE, "one in {SAMPLE} counts for all of them");
}

#[test]
fn a_full_table_refuses_and_keeps_what_it_has() {
    let capacity = Capacity { networks: 16, sources: 64 };
    let mut kernel = Kernel::new(&Settings { capacity, ..settings() });
    for n in 0..16 {
        kernel.list(List::Block, &format!("192.0.2.{n}"), NEVER);
    }
    for (list, network) in
        [(List::Block, "192.0.2.99"), (List::Trust, "192.0.2.99"), (List::Block, "10.0.0.0/8")]
    {
        let error =
            kernel.lists.put(list, Entry::manual(network.parse().unwrap(), NEVER, "")).unwrap_err();
        assert!(matches!(error, ListError::Full { capacity: 16, .. }), "{error}");
        assert!(error.to_string().contains("capacity.networks"), "{error}");
    }
    assert_eq!(reason(&mut kernel, "192.0.2.99"), Reason::Unknown);
    for n in 0..16 {
        assert_eq!(reason(&mut kernel, &format!("192.0.2.{n}")), Reason::Blocked, "192.0.2.{n}");
    }
    // Changes of existing entries still work, and removals make room.
    kernel.list(List::Block, "192.0.2.3", START + SECOND);
    kernel.lists.remove(List::Block, &"192.0.2.4".parse().unwrap(), Owner::Manual).unwrap();
    kernel.list(List::Block, "192.0.2.99", NEVER);
    assert_eq!(reason(&mut kernel, "192.0.2.99"), Reason::Blocked);
    assert_eq!(reason(&mut kernel, "192.0.2.4"), Reason::Unknown);
}

#[test]
fn half_done_changes_are_repaired_after_a_crash() {
    let mut kernel = Kernel::new(&settings());
    kernel.list(List::Block, "192.0.2.7", NEVER);
    kernel.list(List::Block, "192.0.2.8", NEVER);
    kernel.list(List::Trust, "198.51.100.7", NEVER);
    // A crash between two writes: a row without its entry, and entries without a row.
    let table_header = header::read(kernel.map_again(names::TABLE_HEADER).unwrap()).unwrap();
    let table = Table::open(|name| kernel.map_again(name), &table_header).unwrap();
    let whole = table.map_all().unwrap();
    let orphan: Network = "192.0.2.9".parse().unwrap();
    let orphan_trust: Network = "198.51.100.9".parse().unwrap();
    let slot_state = SlotState { expires: NEVER, claimed: true, ..SlotState::default() };
    whole.set(Kind::Blocked, &orphan, slot_state).unwrap();
    whole.set(Kind::Trusted, &orphan_trust, slot_state).unwrap();
    whole.remove(Kind::Blocked, &"192.0.2.8".parse().unwrap());
    assert_eq!(reason(&mut kernel, "192.0.2.9"), Reason::Blocked);
    assert_eq!(reason(&mut kernel, "192.0.2.8"), Reason::Unknown);

    let lists = Lists::open(|name| kernel.map_again(name)).unwrap();
    assert_eq!(lists.entries(List::Block).count(), 2);
    for (source, expected) in [
        ("192.0.2.7", Reason::Blocked),
        ("192.0.2.8", Reason::Blocked),
        ("198.51.100.7", Reason::Trusted),
        ("192.0.2.9", Reason::Unknown),
        ("198.51.100.9", Reason::Unknown),
    ] {
        assert_eq!(reason(&mut kernel, source), expected, "{source}");
    }
}

/// Random entries of both lists, both families and all lengths, added, changed and removed; after
/// each step the kernel and a plain list are compared for some sources.
#[test]
fn the_tables_agree_with_a_plain_model() {
    let mut kernel = Kernel::new(&settings());
    let mut random = crate::kernel::differential::Random(7);
    let mut model: Vec<(List, Network, u64)> = Vec::new();
    let (mut probes, mut hits) = (0, 0);
    for step in 0..600_u64 {
        let now = START + step * SECOND;
        kernel.set_clock(now);
        let network = random_network(&mut random);
        let list = if random.below(4) == 0 { List::Trust } else { List::Block };
        model.retain(|(l, n, _)| (*l, *n) != (list, network));
        if random.below(3) == 0 {
            kernel.lists.remove(list, &network, Owner::Manual).unwrap();
        } else {
            let expires = now + random.below(40) * SECOND;
            kernel.lists.put(list, Entry::manual(network, expires, "")).unwrap();
            model.push((list, network, expires));
        }
        for _ in 0..20 {
            let host = Network::around(random_network(&mut random).first(), 128);
            let listed = |list| {
                model
                    .iter()
                    .any(|(l, n, expires)| *l == list && n.contains(&host) && *expires > now)
            };
            let expected = match (listed(List::Trust), listed(List::Block)) {
                (true, _) => Reason::Trusted,
                (false, true) => Reason::Blocked,
                (false, false) => Reason::Unknown,
            };
            let found = reason(&mut kernel, &host.to_string());
            let found = if found == Reason::Limited { Reason::Unknown } else { found };
            assert_eq!(found, expected, "{host} at step {step}");
            probes += 1;
            hits += usize::from(expected != Reason::Unknown);
        }
    }
    println!("{probes} probes, {hits} of them listed");
    assert!(hits > probes / 10 && hits < probes * 9 / 10, "{hits} of {probes}");
}

/// Nearby, overlapping networks: of all lengths from that of a region of 4,096 addresses on, mostly
/// longer ones.
fn random_network(random: &mut crate::kernel::differential::Random) -> Network {
    let mut octets = if random.below(2) == 0 {
        std::net::Ipv4Addr::new(10, 0, 0, 0).to_ipv6_mapped().octets()
    } else {
        [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    };
    octets[14] = random.below(16) as u8;
    octets[15] = random.below(256) as u8;
    let bits = 116 + random.below(13).max(random.below(13)) as u8;
    Network::around(sip_xdp_common::ip_key::IpKey::new(octets), bits)
}

/// A ban on forgeable evidence ends UDP to the SIP ports, and nothing else of its source.
#[test]
fn a_ban_of_unproven_evidence_leaves_tcp_alone() {
    let mut kernel = Kernel::new(&settings());
    let unproven = |network: &str| {
        let network = network.parse().unwrap();
        let entry = Entry::manual(network, START + 300 * SECOND, "test");
        Entry { owner: Owner::Auto, tier: Some(Tier::Unproven), ..entry }
    };
    let tcp_to = |source: &str, port| Ip { protocol: 6, ..Ip::udp(source) }.frame(&tcp(port));
    for (host, network) in [("192.0.2.7", "192.0.2.0/24"), ("2001:db8:7::7", "2001:db8:7::/64")] {
        kernel.lists.put(List::Block, unproven(host)).unwrap();
        assert_eq!(reason(&mut kernel, host), Reason::Blocked, "{host}");
        assert_eq!(kernel.run(&tcp_to(host, 5060)).reason, Reason::Unknown, "{host}");
        let later = Ip { fragment: 0x2010, ..Ip::udp(host) };
        if host.contains('.') {
            assert_eq!(kernel.run(&later.frame(&[0; 64])).reason, Reason::Blocked);
            let later_tcp = Ip { protocol: 6, ..later };
            assert_eq!(kernel.run(&later_tcp.frame(&[0; 64])).reason, Reason::Fragment);
        }
        // A block of the surrounding network covers everything.
        kernel.list(List::Block, network, NEVER);
        assert_eq!(kernel.run(&tcp_to(host, 5060)).reason, Reason::Blocked, "{host} in {network}");
        kernel.lists.remove(List::Block, &network.parse().unwrap(), Owner::Manual).unwrap();
        assert_eq!(kernel.run(&tcp_to(host, 5060)).reason, Reason::Unknown, "{host}");
        // And so does a feed, and an operator's block of the host.
        kernel.lists.replace_feed("feed", vec![host.parse().unwrap()]).unwrap();
        assert_eq!(kernel.run(&tcp_to(host, 5060)).reason, Reason::Blocked, "{host} on a feed");
        kernel.lists.replace_feed("feed", Vec::new()).unwrap();
        assert_eq!(kernel.run(&tcp_to(host, 5060)).reason, Reason::Unknown, "{host}");
        kernel.list(List::Block, host, NEVER);
        assert_eq!(kernel.run(&tcp_to(host, 5060)).reason, Reason::Blocked, "{host}, by hand");
    }
}
