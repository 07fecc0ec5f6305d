//! Who may fill how much of the tables, who makes room, and what all of that costs.

use std::time::{Duration, Instant};

use sip_xdp::dataplane::loader::{Capacity, Settings};
use sip_xdp::dataplane::tables::ledger::{Entry, Tier};
use sip_xdp::lists::{Fill, ListError};
use sip_xdp::net::network::Network;
use sip_xdp_common::abi::layout::{FLOWS, List, NEVER, Owner};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::verdict::Reason;

use crate::kernel::frames::{Ip, request, sip, udp_from};
use crate::kernel::harness::{Kernel, SECOND, START, settings};

const HOUR: u64 = 3_600 * SECOND;

/// A filter with room for so many networks.
fn kernel(networks: u32) -> Kernel {
    Kernel::new(&Settings { capacity: Capacity { networks, sources: 64 }, ..settings() })
}

fn host(number: u32) -> IpKey {
    IpKey::v4(0x0a00_0000 + number)
}

fn network(number: u32) -> Network {
    Network::around(host(number), 128)
}

fn ban(number: u32, tier: Tier, expires: u64) -> Entry {
    Entry { owner: Owner::Auto, tier: Some(tier), ..Entry::manual(network(number), expires, "") }
}

fn know(kernel: &mut Kernel, number: u32, until: u64) -> Result<(), ListError> {
    kernel.lists.know(host(number), START, |standing| standing.good_until = until)
}

fn used(kernel: &Kernel, table: &str) -> usize {
    kernel.lists.fill().iter().find(|fill| fill.table == table).map(|fill| fill.used).unwrap()
}

fn is_good(kernel: &Kernel, number: u32) -> bool {
    kernel.lists.reputation(host(number)).good_until != 0
}

/// One account that registers from any number of addresses: half of the table is all that it gets,
/// those that are known for longest stay, and whoever else lists anything finds room.
#[test]
fn known_hosts_take_half_of_the_table() {
    for networks in [64, 1_024] {
        let mut kernel = kernel(networks);
        let most = networks / 2;
        for number in 0..4 * networks {
            know(&mut kernel, number, START + HOUR + u64::from(number) * SECOND).unwrap();
        }
        assert_eq!(used(&kernel, "known"), most as usize);
        assert!(
            (3 * networks + most..4 * networks).all(|number| is_good(&kernel, number)),
            "the longest stay"
        );
        assert!(!is_good(&kernel, 0));
        // One that would be the first to go is not taken in, and says so; one that is there may
        // change.
        assert!(matches!(know(&mut kernel, 9_999, START + HOUR), Err(ListError::Full { .. })));
        know(&mut kernel, 4 * networks - 1, START + 2 * SECOND).unwrap();
        // Bans on evidence that could be forged come next, then whatever operators list.
        for number in 100_000..100_000 + networks {
            let _ = kernel.lists.put(List::Block, ban(number, Tier::Unproven, NEVER));
        }
        for number in 0..networks / 16 {
            kernel
                .lists
                .put(List::Block, Entry::manual(network(200_000 + number), NEVER, ""))
                .unwrap();
            kernel
                .lists
                .put(List::Trust, Entry::manual(network(300_000 + number), NEVER, ""))
                .unwrap();
            kernel
                .lists
                .put(List::Block, ban(400_000 + number, Tier::Proven, START + HOUR))
                .unwrap();
        }
        let frame = |number: u32| sip(&network(number).to_string(), &request("OPTIONS"));
        assert_eq!(kernel.run(&frame(200_000)).reason, Reason::Blocked);
        assert_eq!(kernel.run(&frame(300_000)).reason, Reason::Trusted);
        assert_eq!(kernel.run(&frame(400_000)).reason, Reason::Blocked);
    }
}

/// Where operators fill all of the table, everybody else makes room, and then the error says what
/// to do.
#[test]
fn operators_may_fill_the_table() {
    let mut kernel = kernel(64);
    for number in 0..64 {
        // More than their share are refused: none of these is worth more than another.
        let _ = know(&mut kernel, number, START + HOUR);
    }
    for number in 0..64 {
        kernel.lists.put(List::Block, ban(1_000 + number, Tier::Unproven, START + HOUR)).unwrap();
    }
    for number in 0..64 {
        kernel.lists.put(List::Block, Entry::manual(network(2_000 + number), NEVER, "")).unwrap();
    }
    assert_eq!(
        (used(&kernel, "networks"), used(&kernel, "known"), used(&kernel, "unproven")),
        (64, 0, 0)
    );
    let error =
        kernel.lists.put(List::Block, Entry::manual(network(3_000), NEVER, "")).unwrap_err();
    assert!(error.to_string().contains("capacity.networks"), "{error}");
    assert!(know(&mut kernel, 1, START + HOUR).is_err());
    let error = kernel.lists.put(List::Block, ban(4_000, Tier::Unproven, NEVER)).unwrap_err();
    assert!(matches!(error, ListError::Full { .. }), "{error}");
}

/// A list of exactly `capacity.networks` is taken, and bans, operators, trust and phones find room
/// beside it; a longer one is refused as a whole, and the earlier one stays.
#[test]
fn a_list_of_exactly_the_capacity_leaves_room() {
    for networks in [64_u32, 1_024] {
        let mut kernel = kernel(networks);
        let list = |count: u32| (0..count).map(|n| network(500_000 + n)).collect::<Vec<_>>();
        kernel.lists.replace_feed("one", list(networks)).unwrap();
        let error = kernel.lists.replace_feed("one", list(networks + 1)).unwrap_err();
        assert!(matches!(error, ListError::Full { .. }), "{error}");
        let error = kernel.lists.replace_feed("two", vec![network(700_000)]).unwrap_err();
        assert!(error.to_string().contains("capacity.networks"), "{error}");
        // The same networks in another feed take no more room.
        kernel.lists.replace_feed("two", list(networks / 2)).unwrap();
        assert_eq!(used(&kernel, "feeds"), networks as usize);
        let fill = kernel.lists.fill();
        let all = fill.iter().find(|fill| fill.table == "networks").unwrap();
        assert!(4 * all.used <= 3 * all.limit + 3, "three quarters at most: {all:?}");

        let each = networks / 32;
        for n in 0..each {
            know(&mut kernel, n, START + HOUR + u64::from(n) * SECOND).unwrap();
            kernel.lists.put(List::Block, ban(100_000 + n, Tier::Unproven, NEVER)).unwrap();
            kernel.lists.put(List::Block, ban(200_000 + n, Tier::Proven, NEVER)).unwrap();
            kernel.lists.put(List::Block, Entry::manual(network(300_000 + n), NEVER, "")).unwrap();
            kernel.lists.put(List::Trust, Entry::manual(network(400_000 + n), NEVER, "")).unwrap();
        }
        let frame = |number: u32| sip(&network(number).to_string(), &request("OPTIONS"));
        for (number, expected) in [
            (0, Reason::Good),
            (100_000, Reason::Blocked),
            (200_000, Reason::Blocked),
            (300_000, Reason::Blocked),
            (400_000, Reason::Trusted),
            (500_000, Reason::Blocked),
            (500_000 + networks - 1, Reason::Blocked),
            (500_000 + networks, Reason::Unknown),
        ] {
            assert_eq!(kernel.run(&frame(number)).reason, expected, "{number}");
        }
        // A shorter list is taken however full the rest is.
        kernel.lists.replace_feed("one", list(networks / 2)).unwrap();
        kernel.lists.replace_feed("two", Vec::new()).unwrap();
        assert_eq!(used(&kernel, "feeds"), networks as usize / 2);
    }
}

/// Sources on the ladder can be forged: they have a sixteenth of the table, the one that has been
/// quiet for longest makes room, and operators and proven bans need not ask.
#[test]
fn sources_on_the_ladder_make_room() {
    let mut kernel = kernel(64);
    for number in 0..40 {
        kernel.lists.meter(network(number), 0, 0, START + HOUR + u64::from(number), START).unwrap();
    }
    assert_eq!((kernel.lists.metered(), used(&kernel, "networks")), (4, 4));
    assert_eq!(kernel.lists.ladder_step(&network(39), START), Some(0));
    assert_eq!(kernel.lists.ladder_step(&network(0), START), None);
    for number in 0..64 {
        kernel.lists.put(List::Block, Entry::manual(network(2_000 + number), NEVER, "")).unwrap();
    }
    assert_eq!((kernel.lists.metered(), used(&kernel, "networks")), (0, 64));
    assert!(kernel.lists.meter(network(1), 0, 0, START + HOUR, START).is_err());
}

/// Forged sources fill the quota of unproven bans: the one that is hit least makes room, and it is
/// said.
#[test]
fn the_unproven_ban_that_is_hit_least_makes_room() {
    for by_port in [false, true] {
        let mut kernel = kernel(64);
        let entry = |number: u32| {
            let entry = ban(number, Tier::Unproven, START + HOUR + u64::from(number));
            Entry { port: by_port.then_some(5062), ..entry }
        };
        for number in 0..16 {
            kernel.lists.put(List::Block, entry(number)).unwrap();
        }
        let attacks = |kernel: &mut Kernel, number: u32| {
            let ip = Ip::udp(&network(number).to_string());
            kernel.run(&ip.frame(&udp_from(5062, 5060, &request("REGISTER")))).reason
        };
        let attackers = [3, 7, 12];
        for number in attackers {
            for _ in 0..5 {
                assert_eq!(attacks(&mut kernel, number), Reason::Blocked);
            }
        }
        for number in 1_000..1_200 {
            kernel.lists.put(List::Block, entry(number)).unwrap();
            assert_eq!(kernel.lists.unproven(), 16);
        }
        for number in attackers {
            assert_eq!(attacks(&mut kernel, number), Reason::Blocked, "{number} is still banned");
        }
        let displaced = kernel.lists.take_displaced();
        assert_eq!(displaced.len(), 200);
        assert!(
            displaced
                .iter()
                .all(|(list, entry)| *list == List::Block && entry.tier == Some(Tier::Unproven))
        );
        assert!(kernel.lists.take_displaced().is_empty());
        // A ban that is proven takes no place of theirs, and none of them takes its place.
        kernel.lists.put(List::Block, ban(5_000, Tier::Proven, START + HOUR)).unwrap();
        assert_eq!(kernel.lists.unproven(), 16);
    }
}

/// Ports, too: one account at any number of ports leaves room for bans and for others.
#[test]
fn known_good_ports_take_half_of_their_table() {
    let mut kernel = kernel(1_024);
    let most = FLOWS / 2;
    know(&mut kernel, 1, START + 99 * HOUR).unwrap();
    for number in 0..FLOWS as u32 + 1_000 {
        let (source, port) = (host(1 + number / 60_000), (number % 60_000) as u16 + 1);
        kernel.lists.know_flow(source, port, START + HOUR + u64::from(number)).unwrap();
    }
    assert_eq!((used(&kernel, "good_ports"), used(&kernel, "ports")), (most, most));
    assert!(matches!(
        kernel.lists.know_flow(host(9), 9, START + SECOND),
        Err(ListError::Full { .. })
    ));
    kernel.lists.know_flow(host(9), 9, START + 9 * HOUR).unwrap();
    let banned = Entry { port: Some(61_000), ..ban(1, Tier::Proven, START + HOUR) };
    kernel.lists.put(List::Block, banned).unwrap();
    let from =
        Ip::udp(&network(1).to_string()).frame(&udp_from(61_000, 5060, &request("REGISTER")));
    assert_eq!(kernel.run(&from).reason, Reason::Blocked);
    // A new daemon knows the same.
    let again = sip_xdp::lists::Lists::open(|name| kernel.map_again(name)).unwrap();
    assert_eq!(again.fill(), kernel.lists.fill());
    // All that is over goes, in one step for each.
    kernel.lists.tidy(START + 10 * HOUR).unwrap();
    assert_eq!((used(&kernel, "good_ports"), used(&kernel, "ports")), (0, 0));
}

#[test]
fn nearly_full_tables_show_it() {
    let mut kernel = kernel(64);
    let full = |kernel: &Kernel| -> Vec<String> {
        kernel
            .lists
            .fill()
            .iter()
            .filter(|fill| fill.is_nearly_full())
            .map(|fill: &Fill| fill.table.to_string())
            .collect()
    };
    for number in 0..25 {
        know(&mut kernel, number, START + HOUR).unwrap();
    }
    assert!(full(&kernel).is_empty());
    know(&mut kernel, 25, START + HOUR).unwrap();
    assert_eq!(full(&kernel), ["known"]);
    for number in 100..126 {
        kernel.lists.put(List::Block, Entry::manual(network(number), NEVER, "")).unwrap();
    }
    assert_eq!(full(&kernel), ["networks", "known"]);
}

/// It compares times: nothing runs beside it.
mod measured {
    use super::*;

    /// 100,000 known hosts and 100,000 bans: an acceptance, a ban, and each second's look for what
    /// is over cost as much as with few. Scans of all of them took 10 to 100 times as long.
    #[test]
    fn nothing_costs_more_because_there_is_much() {
        let mut kernel = kernel(262_144);
        let bans: Vec<Entry> =
            (0..100_000).map(|number| ban(number, Tier::Proven, START + HOUR)).collect();
        let measure = |kernel: &mut Kernel, from: u32| {
            let begun = Instant::now();
            for number in from..from + 200 {
                know(kernel, 1_000_000 + number, START + HOUR).unwrap();
                kernel
                    .lists
                    .put(List::Block, ban(2_000_000 + number, Tier::Unproven, START + HOUR))
                    .unwrap();
                assert!(kernel.lists.expire(START).unwrap().is_empty());
                kernel.lists.tidy(START).unwrap();
            }
            begun.elapsed()
        };
        let few = measure(&mut kernel, 0).min(measure(&mut kernel, 200));
        kernel.lists.put_all(List::Block, bans).unwrap();
        for number in 0..100_000 {
            know(&mut kernel, 3_000_000 + number, START + HOUR).unwrap();
        }
        let much = measure(&mut kernel, 400).min(measure(&mut kernel, 600));
        println!("200 acceptances, bans and ticks: {few:?} with few, {much:?} with 200,000");
        assert!(much < 4 * few + Duration::from_millis(50), "{few:?} with few, {much:?} with many");
    }
}
