//! Replacement of lists while packets arrive: entries that stay match at every moment, and
//! addresses that were never listed are never dropped.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sip_xdp::dataplane::loader::{Capacity, Settings};
use sip_xdp::dataplane::tables::ledger::Entry;
use sip_xdp::lists::Lists;
use sip_xdp::net::network::Network;
use sip_xdp_common::abi::layout::{List, NEVER, Owner};
use sip_xdp_common::ip_key::IpKey;

use crate::kernel::differential::Random;
use crate::kernel::frames::{Ip, tcp};
use crate::kernel::harness::{Kernel, settings};

/// Minimum duration.
const LEAST: Duration = Duration::from_secs(4);
/// Minimum number of replacements.
const ROUNDS: u32 = 10;
/// Timeout of both.
const MOST: Duration = Duration::from_secs(60);
/// Networks of the feed. Half of them are others each time.
const LISTED: u32 = 20_000;

/// Permanently on the feed.
const BY_FEED: [&str; 8] = [
    "10.1.0.7",
    "10.2.2.7",
    "10.3.3.7",
    "10.130.4.0/24",
    "10.5.16.0/20",
    "2001:db8:1::/48",
    "2001:db8:2::7",
    "2001:db8:3::/64",
];
/// Permanently blocked by an operator, and by the feed at times.
const BY_HAND: [&str; 4] = ["10.6.6.7", "10.130.7.0/24", "10.8.0.0/20", "2001:db8:4::/56"];
/// Handed over between two feeds: always on at least one.
const HANDED_OVER: [&str; 4] = ["10.9.9.7", "10.10.10.0/24", "2001:db8:5::7", "2001:db8:6::/48"];
/// In a network with hosts only, on a feed until they are handed over to an operator: some in each
/// round.
const HANDED_TO_HAND: std::ops::Range<u8> = 0..240;
/// Number of rounds in which they are handed over.
const HANDED_IN: u32 = 30;
/// Permanently trusted, in permanently blocked networks.
const TRUSTED: [&str; 3] = ["10.5.17.16/28", "10.6.6.7", "2001:db8:1:1::/64"];
/// On the feed at times: beside, in and around permanent entries, in the same /24s.
const NOW_AND_THEN: [&str; 14] = [
    "10.1.0.6",
    "10.1.0.8",
    "10.2.2.0/24",
    "10.3.0.0/16",
    "10.128.0.0/9",
    "10.130.4.9",
    "10.130.4.128/25",
    "10.5.18.0/23",
    "10.5.17.17",
    "2001:db8:1:5::/64",
    "2001:db8:1::5",
    "2001:db8:2::/112",
    "2001:db8:3:0:8000::/65",
    "2001:db8::/47",
];
/// Blocked by an operator at times.
const BY_HAND_NOW_AND_THEN: [&str; 4] =
    ["10.1.0.9", "10.130.4.5", "10.128.0.0/9", "2001:db8:3::/57"];

/// Sources to be dropped: in permanent entries, and not trusted.
const BLOCKED_SOURCES: [&str; 22] = [
    "10.1.0.7",
    "10.2.2.7",
    "10.3.3.7",
    "10.130.4.0",
    "10.130.4.9",
    "10.130.4.255",
    "10.5.16.0",
    "10.5.18.7",
    "10.5.31.255",
    "2001:db8:1::",
    "2001:db8:1:5::5",
    "2001:db8:2::7",
    "2001:db8:3::9",
    "2001:db8:3:0:8000::1",
    "10.130.7.7",
    "10.8.15.255",
    "2001:db8:4::1",
    "10.9.9.7",
    "10.10.10.10",
    "2001:db8:5::7",
    "2001:db8:6:7::8",
    "10.5.17.32",
];
/// Sources that pass: never listed, or trusted.
const PASSING_SOURCES: [&str; 16] = [
    "10.1.0.10",
    "10.1.1.7",
    "10.2.3.7",
    "10.4.3.7",
    "10.5.32.0",
    "10.5.15.255",
    "10.6.6.8",
    "10.7.255.255",
    "10.9.9.8",
    "10.10.11.0",
    "2001:db8:5::8",
    "2001:db8:7::1",
    "10.5.17.17",
    "10.5.17.31",
    "10.6.6.7",
    "2001:db8:1:1::5",
];

fn networks(texts: &[&str]) -> impl Iterator<Item = Network> {
    texts.iter().map(|text| text.parse().unwrap())
}

/// An untested network: every other one stays, the others change in each round. The prefix lengths
/// in use change as well.
fn filling(number: u32, round: u32) -> Network {
    let stays = number.is_multiple_of(2);
    let mut random = Random(u64::from(number) << 32 | u64::from(if stays { 0 } else { round }));
    let low = random.below(1 << 32);
    let lengths =
        |from: u64, to: u64| if stays { to } else { from + u64::from(round) * 7 % (to - from + 1) };
    let mut octets = [0; 16];
    let (from, to) = if random.below(4) == 0 {
        octets[..8].copy_from_slice(&(low << 24 | 0x2a00 << 48).to_be_bytes());
        octets[8..12].copy_from_slice(&(low as u32).to_be_bytes());
        (32, 128)
    } else {
        octets[10..12].fill(0xff);
        octets[12..].copy_from_slice(&(0x4000_0000 | low as u32 >> 2).to_be_bytes());
        (96 + 12, 128)
    };
    let bits = if random.below(50) == 0 { lengths(from, to) } else { 128 };
    Network::around(IpKey::new(octets), bits as u8)
}

/// Hosts that are not handed over yet after a round.
fn left_to_feed(round: u32) -> impl Iterator<Item = Network> {
    let is_left = move |n: &u8| u32::from(*n) % HANDED_IN >= round;
    HANDED_TO_HAND.filter(is_left).map(|n| Network::host(Ipv4Addr::new(10, 66, 0, n).into()))
}

/// Replaces feeds and changes operators' entries, until stopped.
fn replace(mut lists: Lists, rounds: &AtomicU32, stop: &AtomicBool) {
    for round in (1_u32..).take_while(|_| !stop.load(Ordering::Relaxed)) {
        let mut random = Random(round.into());
        let mut some = |texts: &'static [&str]| {
            networks(texts).filter(|_| random.below(2) == 0).collect::<Vec<_>>()
        };
        let changing = some(&NOW_AND_THEN).into_iter().chain(some(&BY_HAND));
        let by_hand = some(&BY_HAND_NOW_AND_THEN);
        // Always on one of two feeds, on both for a moment.
        let (receiving, giving) =
            if round.is_multiple_of(2) { ("one", "two") } else { ("two", "one") };
        lists.replace_feed(receiving, networks(&HANDED_OVER).collect()).unwrap();
        lists.replace_feed(giving, Vec::new()).unwrap();
        for network in left_to_feed(round - 1)
            .filter(|network| !left_to_feed(round).any(|left| left == *network))
        {
            lists.put(List::Block, Entry::manual(network, NEVER, "")).unwrap();
        }
        lists.replace_feed("hosts", left_to_feed(round).collect()).unwrap();
        let list = (0..LISTED)
            .map(|number| filling(number, round))
            .chain(networks(&BY_FEED))
            .chain(changing);
        lists.replace_feed("large", list.collect()).unwrap();
        for network in networks(&BY_HAND_NOW_AND_THEN) {
            if by_hand.contains(&network) {
                lists.put(List::Block, Entry::manual(network, NEVER, "")).unwrap();
            } else {
                lists.remove(List::Block, &network, Owner::Manual).unwrap();
            }
        }
        rounds.store(round, Ordering::Relaxed);
    }
}

#[test]
fn there_is_no_moment_in_which_a_kept_entry_does_not_match() {
    let capacity = Capacity { networks: 65_536, sources: 64 };
    let mut kernel = Kernel::new(&Settings { capacity, ..settings() });
    for (list, texts) in [(List::Block, &BY_HAND[..]), (List::Trust, &TRUSTED[..])] {
        for text in texts {
            kernel.list(list, text, NEVER);
        }
    }
    let start = networks(&BY_FEED).chain((0..LISTED).map(|number| filling(number, 0)));
    kernel.lists.replace_feed("large", start.collect()).unwrap();
    kernel.lists.replace_feed("one", networks(&HANDED_OVER).collect()).unwrap();
    kernel.lists.replace_feed("hosts", left_to_feed(0).collect()).unwrap();
    let mut lists = Lists::open(|name| kernel.map_again(name)).unwrap();
    // From now on adopted entries are its own.
    lists.replace_feed("large", networks(&BY_FEED).collect()).unwrap();
    lists.replace_feed("one", networks(&HANDED_OVER).collect()).unwrap();
    lists.replace_feed("hosts", left_to_feed(0).collect()).unwrap();
    lists.replace_feed("", Vec::new()).unwrap();

    let frame = |source: &str| Ip { protocol: 6, ..Ip::udp(source) }.frame(&tcp(5060));
    let blocked = BLOCKED_SOURCES.iter().map(|source| (*source).to_owned());
    let handed = left_to_feed(0).map(|network| network.address().to_string());
    let passing = PASSING_SOURCES.iter().map(|source| ((*source).to_owned(), frame(source), 2));
    let question = |source: String| (source.clone(), frame(&source), 1);
    let questions: Vec<_> = blocked.chain(handed).map(question).chain(passing).collect();
    let (rounds, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let (mut asked, mut wrong) = (0, Vec::new());
    let start = Instant::now();
    thread::scope(|scope| {
        let writer = scope.spawn(|| replace(lists, &rounds, &stop));
        let enough = || start.elapsed() > LEAST && rounds.load(Ordering::Relaxed) >= ROUNDS;
        while !enough() && start.elapsed() < MOST && wrong.len() < 10 && !writer.is_finished() {
            for (source, frame, expected) in &questions {
                if kernel.action(frame) != *expected {
                    wrong.push(format!("{source} after {:?}", start.elapsed()));
                }
            }
            asked += questions.len();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (rounds, seconds) = (rounds.into_inner(), start.elapsed().as_secs_f64());
    println!("{asked} questions in {seconds:.1} s, while the lists were replaced {rounds} times");
    assert!(wrong.is_empty(), "wrong answers: {wrong:?}");
    assert!(rounds >= ROUNDS, "only {rounds} rounds in {seconds:.1} s");
}
