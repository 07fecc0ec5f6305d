//! Tests of DNS queries, of accepted results, and of the resulting entries.
//!
//! More than 400 lines: one test server for all cases.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sip_xdp_common::abi::layout::NEVER;
use tokio::sync::{mpsc, watch};

use super::follower::follow;
use super::resolver::{Dns, Found, Kind, Kinds, Origin, Records, resolve};
use super::*;

/// A table of responses; other names do not exist.
#[derive(Debug, Clone, Default)]
struct Zone(Arc<Mutex<Answers>>);

type Answers = BTreeMap<(String, Kind), Result<Records, String>>;

impl Zone {
    fn set(&self, name: &str, kind: Kind, ttl: u64, values: &[&str]) {
        let mut records = Records { ttl: Some(Duration::from_secs(ttl)), ..Records::default() };
        match kind {
            Kind::Srv => records.targets = values.iter().map(|value| (*value).to_owned()).collect(),
            Kind::A | Kind::Aaaa => {
                records.addresses = values.iter().map(|value| value.parse().unwrap()).collect()
            }
        }
        self.0.lock().unwrap().insert((name.to_owned(), kind), Ok(records));
    }

    fn fail(&self, name: &str, kind: Kind) {
        self.0.lock().unwrap().insert((name.to_owned(), kind), Err("refused".to_owned()));
    }

    fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

impl Dns for Zone {
    async fn ask(&self, name: String, kind: Kind) -> Result<Records, String> {
        self.0.lock().unwrap().get(&(name, kind)).cloned().unwrap_or_else(|| Ok(Records::default()))
    }
}

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn addresses(found: &Found) -> BTreeSet<IpAddr> {
    found.addresses.keys().copied().collect()
}

fn heard_of(update: Option<HostsUpdate>) -> BTreeSet<IpAddr> {
    update.unwrap().addresses.into_keys().collect()
}

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

#[tokio::test]
async fn all_addresses_that_a_client_could_use_are_found() {
    let zone = Zone::default();
    zone.set(
        "_sip._udp.carrier.example.",
        Kind::Srv,
        600,
        &["a.carrier.example.", "b.carrier.example"],
    );
    zone.set("_sips._tcp.carrier.example.", Kind::Srv, 600, &["tls.elsewhere.example.", "."]);
    zone.set("a.carrier.example.", Kind::A, 300, &["192.0.2.1"]);
    zone.set("b.carrier.example.", Kind::A, 90, &["192.0.2.2", "192.0.2.1"]);
    zone.set("b.carrier.example.", Kind::Aaaa, 300, &["2001:db8::2"]);
    zone.set("tls.elsewhere.example.", Kind::A, 300, &["192.0.2.3"]);
    zone.set("carrier.example.", Kind::A, 300, &["192.0.2.4"]);
    zone.set("carrier.example.", Kind::Aaaa, 300, &["2001:db8::4"]);
    let found = resolve(&zone, &name("carrier.example")).await;
    let expected =
        set(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "2001:db8::2", "2001:db8::4"]);
    let ttl = Some(Duration::from_secs(90));
    assert_eq!(
        (found.addresses.keys().copied().collect::<BTreeSet<_>>(), found.ttl),
        (expected, ttl)
    );
    assert_eq!((found.unanswered, found.error, found.left_out.len()), (Kinds::NONE, None, 0));
}

#[tokio::test]
async fn special_purpose_addresses_are_refused() {
    let zone = Zone::default();
    let bad = [
        "127.0.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.1.75",
        "169.254.1.1",
        "192.0.0.8",
        "240.0.0.1",
        "255.255.255.255",
    ];
    zone.set("carrier.example.", Kind::A, 60, &[&bad[..], &["192.0.2.1"]].concat());
    let bad6 = [
        "::1",
        "::",
        "::c000:207",
        "ff02::1",
        "fe80::1",
        "fec0::1",
        "100::1",
        "64:ff9b::c000:207",
        "64:ff9b:1::7",
        "::ffff:127.0.0.1",
    ];
    zone.set("carrier.example.", Kind::Aaaa, 60, &bad6);
    let found = resolve(&zone, &name("carrier.example")).await;
    assert_eq!((addresses(&found), found.error), (set(&["192.0.2.1"]), None));
    // The mapped loopback address equals the plain one.
    assert_eq!(found.left_out.len(), bad.len() + bad6.len() - 1, "{:?}", found.left_out);
}

#[tokio::test]
async fn answers_are_bounded() {
    let zone = Zone::default();
    let many: Vec<String> = (0..200).map(|host| format!("192.0.2.{host}")).collect();
    zone.set("carrier.example.", Kind::A, 60, &many.iter().map(String::as_str).collect::<Vec<_>>());
    let targets: Vec<String> = (0..200).map(|target| format!("t{target}.example.")).collect();
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    zone.set("_sip._tcp.carrier.example.", Kind::Srv, 60, &targets);
    let found = resolve(&zone, &name("carrier.example")).await;
    assert_eq!((found.addresses.len(), found.left_out.len()), (MAX_ADDRESSES, 2));
}

#[tokio::test]
async fn no_answer_is_told_from_no_record() {
    let zone = Zone::default();
    zone.set("carrier.example.", Kind::A, 60, &["192.0.2.1"]);
    zone.fail("_sip._udp.carrier.example.", Kind::Srv);
    let found = resolve(&zone, &name("carrier.example")).await;
    assert_eq!(addresses(&found), set(&["192.0.2.1"]));
    assert!(found.error.is_some_and(|error| error.contains("_sip._udp.carrier.example.: refused")));
    zone.clear();
    let found = resolve(&zone, &name("carrier.example")).await;
    assert!(
        found.addresses.is_empty() && found.error.is_some_and(|error| error.contains("no address"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_is_asked_about_again_when_its_answer_ends() {
    let zone = Zone::default();
    zone.set("carrier.example.", Kind::A, 120, &["192.0.2.1"]);
    let wanted = watch::Sender::new(Wanted::default());
    let (sender, mut updates) = mpsc::channel(8);
    let dns = zone.clone();
    let task = tokio::spawn(follow(move || Ok(dns.clone()), wanted.subscribe(), sender));
    let start = tokio::time::Instant::now();
    let seconds = || start.elapsed().as_secs();
    wanted.send_modify(|wanted| wanted.names.extend([name("carrier.example")]));

    assert_eq!(heard_of(updates.recv().await), set(&["192.0.2.1"]));
    assert_eq!(seconds(), 0);
    zone.set("carrier.example.", Kind::A, 0, &["192.0.2.2"]);
    assert_eq!(heard_of(updates.recv().await), set(&["192.0.2.2"]));
    assert_eq!(seconds(), 120);
    zone.fail("carrier.example.", Kind::A);
    for (after, what) in
        [(150, "the shortest pause"), (180, "a failure"), (240, "two"), (360, "three")]
    {
        assert!(updates.recv().await.unwrap().error.is_some());
        assert_eq!(seconds(), after, "{what}");
    }
    // All are wanted, and one more.
    wanted.send_modify(|wanted| {
        wanted.round += 1;
        wanted.names.insert(name("other.example"));
    });
    let both = [updates.recv().await.unwrap().name, updates.recv().await.unwrap().name];
    assert_eq!(
        both.into_iter().collect::<BTreeSet<_>>(),
        [name("carrier.example"), name("other.example")].into()
    );
    assert_eq!(seconds(), 360);
    // None is wanted, and then the other side is dropped.
    wanted.send_modify(|wanted| wanted.names.clear());
    assert!(tokio::time::timeout(Duration::from_secs(9_999), updates.recv()).await.is_err());
    drop(wanted);
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_names_have_their_turn() {
    let zone = Zone::default();
    let names: BTreeSet<_> = (0..100).map(|number| name(&format!("n{number}.example"))).collect();
    let wanted = watch::Sender::new(Wanted { names: names.clone(), round: 0 });
    let (sender, mut updates) = mpsc::channel(8);
    tokio::spawn(follow(move || Ok(zone.clone()), wanted.subscribe(), sender));
    let mut received = BTreeSet::new();
    while received.len() < names.len() {
        received.insert(updates.recv().await.unwrap().name);
    }
    assert_eq!(received, names);
}

fn update(addresses: &[&str], error: Option<&str>) -> HostsUpdate {
    let origin = |address: IpAddr| Origin {
        kinds: Kinds::of_address(address),
        ttl: Duration::from_secs(60),
    };
    let addresses = set(addresses).into_iter().map(|address| (address, origin(address))).collect();
    let unanswered = if error.is_some() { Kinds::ALL } else { Kinds::NONE };
    HostsUpdate {
        name: name("carrier.example"),
        addresses,
        unanswered,
        error: error.map(str::to_owned),
    }
}

#[test]
fn failures_take_nothing_away() {
    let directory = tempfile::tempdir().unwrap();
    let (mut hosts, trouble) = Hosts::open(directory.path().join("hosts.json"));
    assert_eq!(trouble, None);
    let carrier = name("carrier.example");
    hosts.take(update(&[], Some("timeout")));
    assert_eq!((hosts.addresses(&carrier), hosts.age(&carrier)), (set(&[]), None));
    assert_eq!(hosts.error(&carrier), Some("timeout"));
    hosts.take(update(&["192.0.2.1", "192.0.2.2"], None));
    assert_eq!((hosts.error(&carrier), hosts.age(&carrier)), (None, Some(0)));
    hosts.take(update(&[], Some("no such name")));
    assert_eq!(hosts.addresses(&carrier), set(&["192.0.2.1", "192.0.2.2"]));
    hosts.take(update(&["192.0.2.3"], Some("half of it timed out")));
    assert_eq!(hosts.addresses(&carrier), set(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]));
    let of_ipv6 = HostsUpdate {
        unanswered: Kinds::of_address("::1".parse().unwrap()),
        ..update(&["192.0.2.3"], Some(""))
    };
    hosts.take(of_ipv6);
    assert_eq!(hosts.addresses(&carrier), set(&["192.0.2.3"]));
    hosts.take(update(&["192.0.2.3"], None));
    assert_eq!(hosts.addresses(&carrier), set(&["192.0.2.3"]));
}

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

/// The addresses of a name after a query at this time.
async fn take(hosts: &mut Hosts, zone: &Zone, now_ms: u64) -> BTreeSet<IpAddr> {
    let carrier = name("carrier.example");
    let Found { addresses, unanswered, error, .. } = resolve(zone, &carrier).await;
    hosts.take_at(HostsUpdate { name: carrier.clone(), addresses, unanswered, error }, now_ms);
    hosts.addresses(&carrier)
}

/// Each of the five queries in turn fails, and then all but the one that names the address.
#[tokio::test]
async fn one_forged_answer_is_not_trusted_for_long_whatever_else_fails() {
    let questions = [
        ("_sip._udp.carrier.example.", Kind::Srv),
        ("_sip._tcp.carrier.example.", Kind::Srv),
        ("_sips._tcp.carrier.example.", Kind::Srv),
        ("carrier.example.", Kind::A),
        ("carrier.example.", Kind::Aaaa),
    ];
    for (own, forged, kind) in
        [("192.0.2.1", "198.51.100.66", Kind::A), ("2001:db8::1", "2001:db8:bad::66", Kind::Aaaa)]
    {
        for failing in questions.iter().map(|question| vec![*question]).chain([questions.to_vec()])
        {
            let failing: Vec<_> =
                failing.into_iter().filter(|one| *one != ("carrier.example.", kind)).collect();
            let directory = tempfile::tempdir().unwrap();
            let (mut hosts, _) = Hosts::open(directory.path().join("hosts.json"));
            let zone = Zone::default();
            failing.iter().for_each(|(of, kind)| zone.fail(of, *kind));
            zone.set("carrier.example.", kind, 60, &[own, forged]);
            assert_eq!(take(&mut hosts, &zone, HOUR).await, set(&[own, forged]), "{failing:?}");
            zone.set("carrier.example.", kind, 60, &[own]);
            assert_eq!(take(&mut hosts, &zone, HOUR + MINUTE).await, set(&[own]), "{failing:?}");
        }
    }
}

#[tokio::test]
async fn an_address_of_a_service_goes_with_its_target() {
    let directory = tempfile::tempdir().unwrap();
    let (mut hosts, _) = Hosts::open(directory.path().join("hosts.json"));
    let zone = Zone::default();
    zone.fail("carrier.example.", Kind::Aaaa);
    zone.set("_sip._udp.carrier.example.", Kind::Srv, 60, &["a.example.", "evil.example."]);
    zone.set("a.example.", Kind::A, 60, &["192.0.2.1"]);
    zone.set("evil.example.", Kind::A, 60, &["198.51.100.66"]);
    assert_eq!(take(&mut hosts, &zone, HOUR).await, set(&["192.0.2.1", "198.51.100.66"]));
    zone.set("_sip._udp.carrier.example.", Kind::Srv, 60, &["a.example."]);
    assert_eq!(take(&mut hosts, &zone, HOUR + MINUTE).await, set(&["192.0.2.1"]));
    // A target with one failed query keeps its earlier addresses of that kind alone.
    zone.set("a.example.", Kind::Aaaa, 60, &["2001:db8::1"]);
    assert_eq!(
        take(&mut hosts, &zone, HOUR + 2 * MINUTE).await,
        set(&["192.0.2.1", "2001:db8::1"])
    );
    zone.fail("a.example.", Kind::Aaaa);
    zone.set("a.example.", Kind::A, 60, &["192.0.2.2"]);
    assert_eq!(
        take(&mut hosts, &zone, HOUR + 3 * MINUTE).await,
        set(&["192.0.2.2", "2001:db8::1"])
    );
}

/// With a failed or with an empty response.
#[tokio::test]
async fn an_address_that_is_no_longer_named_goes_after_a_while() {
    for (ttl, hold) in
        [(5, HOUR), (1_200, HOUR), (3_600, 3 * HOUR), (86_400, 24 * HOUR), (u32::MAX, 24 * HOUR)]
    {
        for fails in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let (mut hosts, _) = Hosts::open(directory.path().join("hosts.json"));
            let zone = Zone::default();
            zone.set("carrier.example.", Kind::A, ttl.into(), &["192.0.2.1"]);
            assert_eq!(take(&mut hosts, &zone, HOUR).await.len(), 1);
            zone.clear();
            if fails {
                zone.fail("carrier.example.", Kind::A);
            }
            for (after, count) in [(MINUTE, 1), (hold, 1), (hold + 1, 0)] {
                assert_eq!(
                    take(&mut hosts, &zone, HOUR + after).await.len(),
                    count,
                    "{ttl} {after} {fails}"
                );
            }
        }
    }
}

#[tokio::test]
async fn new_addresses_find_room_before_old_ones() {
    let directory = tempfile::tempdir().unwrap();
    let (mut hosts, _) = Hosts::open(directory.path().join("hosts.json"));
    let zone = Zone::default();
    let old: Vec<String> = (0..MAX_ADDRESSES).map(|host| format!("192.0.2.{host}")).collect();
    let old: Vec<&str> = old.iter().map(String::as_str).collect();
    zone.set("carrier.example.", Kind::A, 60, &old);
    assert_eq!(take(&mut hosts, &zone, HOUR).await, set(&old));
    zone.fail("carrier.example.", Kind::A);
    let new = ["2001:db8::1", "2001:db8::2"];
    zone.set("carrier.example.", Kind::Aaaa, 60, &new);
    let now = take(&mut hosts, &zone, HOUR + MINUTE).await;
    assert_eq!(now.len(), MAX_ADDRESSES);
    assert!(set(&new).is_subset(&now), "{now:?}");
}

#[test]
fn saved_state_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hosts.json");
    let (mut hosts, _) = Hosts::open(path.clone());
    let given =
        |expires| Given { added_ms: 1_700_000_000_000, expires, reason: "our carrier".to_owned() };
    hosts.give(name("carrier.example"), given(NEVER));
    hosts.give(name("over.example"), given(1));
    hosts.follow([name("carrier.example")].into());
    hosts.take(update(&["192.0.2.1", "2001:db8::1"], None));
    hosts.take(HostsUpdate { name: name("unwanted.example"), ..update(&["192.0.2.9"], None) });
    hosts.save(false).unwrap();

    let (mut back, trouble) = Hosts::open(path.clone());
    assert_eq!(trouble, None);
    assert_eq!(back.given(), &[(name("carrier.example"), given(NEVER))].into());
    assert_eq!(back.addresses(&name("carrier.example")), set(&["192.0.2.1", "2001:db8::1"]));
    assert!(back.addresses(&name("unwanted.example")).is_empty());
    assert_eq!(back.withdraw(&name("carrier.example")), Some(given(NEVER)));
    assert_eq!(back.withdraw(&name("carrier.example")), None);
}

#[test]
fn a_corrupt_file_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hosts.json");
    for text in ["", "{}", "{\"schema\":9,\"given\":[],\"answers\":[]}", "\0\0"] {
        std::fs::write(&path, text).unwrap();
        let (hosts, trouble) = Hosts::open(path.clone());
        assert!(hosts.given().is_empty() && !path.exists());
        assert!(trouble.is_some_and(|trouble| trouble.contains("set aside as")));
    }
}

#[test]
fn names_that_end_are_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let (mut hosts, _) = Hosts::open(directory.path().join("hosts.json"));
    for (text, expires) in [("a.example", 100), ("b.example", NEVER)] {
        hosts.give(name(text), Given { added_ms: 0, expires, reason: String::new() });
    }
    assert!(hosts.expire(99).is_empty());
    assert_eq!(hosts.expire(100), [name("a.example")]);
    assert_eq!(hosts.given().len(), 1);
}

/// Applies changes to a list of entries.
fn change(listed: &mut Vec<Entry>, by_name: &ByName, ends: impl Fn(&HostName) -> u64) -> usize {
    let (gone, coming) = changes(by_name, ends, listed.iter());
    let count = gone.len() + coming.len();
    listed.retain(|entry| {
        entry.owner != Owner::Host
            || !(gone.contains(&entry.network)
                || coming.iter().any(|new| new.network == entry.network))
    });
    listed.extend(coming);
    listed.sort_by_key(|entry| entry.network);
    count
}

#[test]
fn an_address_of_two_names_stays_until_the_last_is_gone() {
    let mut listed = vec![Entry::manual("192.0.2.9".parse().unwrap(), NEVER, "by hand")];
    let mut by_name = ByName::new();
    by_name.insert(name("a.example"), set(&["192.0.2.1", "192.0.2.2"]));
    by_name.insert(name("b.example"), set(&["192.0.2.2", "192.0.2.3"]));
    let ends = |name: &HostName| if name.as_str() == "a.example" { 50 } else { 70 };
    let shown = |listed: &[Entry]| -> Vec<String> {
        listed
            .iter()
            .map(|entry| format!("{} {} {}", entry.network, entry.reason, entry.expires.min(99)))
            .collect()
    };
    assert_eq!(change(&mut listed, &by_name, ends), 3);
    assert_eq!(
        shown(&listed),
        [
            "192.0.2.1 a.example 50",
            "192.0.2.2 a.example 70",
            "192.0.2.3 b.example 70",
            "192.0.2.9 by hand 99"
        ]
    );
    assert_eq!(change(&mut listed, &by_name, ends), 0, "nothing has changed");
    by_name.remove(&name("a.example"));
    assert_eq!(change(&mut listed, &by_name, ends), 2);
    assert_eq!(
        shown(&listed),
        ["192.0.2.2 b.example 70", "192.0.2.3 b.example 70", "192.0.2.9 by hand 99"]
    );
    by_name.clear();
    assert_eq!(change(&mut listed, &by_name, ends), 2);
    assert_eq!(shown(&listed), ["192.0.2.9 by hand 99"]);
}

#[test]
fn entries_of_an_earlier_daemon_stand_in_for_answers() {
    let directory = tempfile::tempdir().unwrap();
    let (mut hosts, _) = Hosts::open(directory.path().join("hosts.json"));
    let host = |network: &str, reason: &str| Entry {
        owner: Owner::Host,
        ..Entry::manual(network.parse().unwrap(), NEVER, reason)
    };
    let manual = Entry::manual("192.0.2.3".parse().unwrap(), NEVER, "carrier.example");
    hosts.recall(
        [&host("192.0.2.1", "carrier.example"), &host("2001:db8::1", "carrier.example"), &manual]
            .into_iter(),
    );
    assert_eq!(hosts.addresses(&name("carrier.example")), set(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(hosts.age(&name("carrier.example")), None);
}
