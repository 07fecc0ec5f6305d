//! Tests of the store: round trips, and operation despite bad disks and files.
//!
//! Above 400 lines: independent cases over one fixture.

mod broken;
mod disks;

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use sip_xdp_common::abi::layout::{List, NEVER, Owner};
use sip_xdp_common::ip_key::IpKey;
use tempfile::TempDir;

use super::*;
use crate::bans::offences::OffenceRecord;
use crate::dataplane::tables::ledger::Tier;
use crate::sip::transport::Transport;

/// A directory for one test, with the path of its store.
fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    (directory, path)
}

fn network(text: &str) -> Network {
    text.parse().unwrap()
}

fn in_seconds(seconds: u64) -> u64 {
    clock::after(Some(Duration::from_secs(seconds)))
}

fn ban(text: &str, expires: u64) -> Entry {
    let unproven = Some(Tier::Unproven);
    Entry {
        owner: Owner::Auto,
        tier: unproven,
        ..Entry::manual(network(text), expires, "flood; it's \"quoted\" ü")
    }
}

/// The state of an existing store.
fn reopen(path: &Path) -> (Store, State) {
    let Opened { store, found } = Store::open(path);
    let Found::State(state) = found else { panic!("{found:?}") };
    (store, state)
}

/// A new store.
fn make(path: &Path) -> Store {
    let Opened { store, found } = Store::open(path);
    assert!(matches!(found, Found::Nothing), "{found:?}");
    assert_eq!(store.trouble(), None);
    store
}

/// Whether entries are equal but for the few milliseconds that storing changes.
fn same(left: &[(List, Entry)], right: &[(List, Entry)]) -> bool {
    let sorted = |all: &[(List, Entry)]| {
        let mut all = all.to_vec();
        all.sort_by_key(|(list, entry)| (*list, entry.network, entry.owner));
        all
    };
    let (left, right) = (sorted(left), sorted(right));
    left.len() == right.len()
        && left.iter().zip(&right).all(|((list, was), (back, is))| {
            list == back
                && was.expires.abs_diff(is.expires) < 500_000_000
                && *was == Entry { expires: was.expires, ..is.clone() }
        })
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not happen");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn all_that_goes_in_comes_back() {
    let (_directory, path) = place();
    let store = make(&path);
    let kept = [
        (List::Block, Entry::manual(network("192.0.2.0/24"), NEVER, "by hand")),
        (List::Trust, Entry::manual(network("2001:db8::/32"), NEVER, "carrier")),
        (List::Block, ban("198.51.100.66", in_seconds(60))),
        (List::Block, Entry::manual(network("198.51.100.66"), in_seconds(7 * 24 * 3600), "both")),
    ];
    let over = (List::Block, Entry::manual(network("198.51.100.67"), 1, "over"));
    let config = (List::Trust, Entry { owner: Owner::Config, ..kept[0].1.clone() });
    let dry = (List::Block, Entry { dry_run: true, ..ban("198.51.100.68", in_seconds(60)) });
    for (list, entry) in kept.iter().cloned().chain([over, config, dry]) {
        store.record(Change::Put(list, entry));
    }
    let now = clock::wall_ms();
    let offence = OffenceRecord { network: network("198.51.100.66"), count: 3, last_ms: now };
    let accepted = |user: &str| Accepted {
        transport: Default::default(),
        address: "203.0.113.5".parse().unwrap(),
        user: user.to_owned(),
        port: 5062,
        first_ms: now - 5_000,
        last_ms: now,
        until_ms: now + 60_000,
    };
    let peer = Peer { address: "2001:db8::5".parse().unwrap(), until_ms: now + 60_000 };
    store.record(Change::Offence(offence.clone()));
    store.record(Change::Accepted(accepted("101")));
    store.record(Change::Accepted(accepted("102")));
    store.record(Change::Peer(peer.clone()));
    store.record(Change::Note { name: "evidence".to_owned(), value: b"\0\xff{}".to_vec() });
    store.flush().unwrap();
    // A second acceptance keeps the time of the first.
    store.record(Change::Accepted(Accepted { first_ms: now, last_ms: now + 1, ..accepted("101") }));
    drop(store);

    let (store, state) = reopen(&path);
    assert!(same(&kept, &state.entries), "{:?}", state.entries);
    assert_eq!(state.offences, [offence]);
    assert_eq!(state.accepted, [Accepted { last_ms: now + 1, ..accepted("101") }, accepted("102")]);
    assert_eq!(state.peers, [peer]);
    assert_eq!(state.notes, [("evidence".to_owned(), b"\0\xff{}".to_vec())]);

    store.record(Change::Remove(List::Block, network("198.51.100.66"), None, Owner::Manual));
    store.record(Change::Put(List::Block, Entry { dry_run: true, ..kept[2].1.clone() }));
    store.record(Change::Pardon(network("198.51.100.66")));
    store.record(Change::Forgotten("203.0.113.5".parse().unwrap()));
    drop(store);
    let (store, state) = reopen(&path);
    assert!(same(&kept[..2], &state.entries), "{:?}", state.entries);
    assert!(state.offences.is_empty() && state.accepted.is_empty());
    assert_eq!(state.peers.len(), 1);

    store.record(Change::Entries(vec![kept[2].clone()]));
    drop(store);
    assert!(same(&kept[2..3], &reopen(&path).1.entries));
}

#[test]
fn the_history_tells_bans_of_a_network_and_of_those_around_it() {
    let (_directory, path) = place();
    let store = make(&path);
    let entry = ban("2001:db8:0:1::/64", in_seconds(60));
    store.record_ban("requests", &entry);
    store.record_ban("register", &ban("2001:db8:0:2::/64", in_seconds(60)));
    store.record_ban("requests", &Entry { dry_run: true, ..entry.clone() });
    store.record_end(List::Block, &entry, "command", Some(17));
    store.record_ban("rejected", &Entry { tier: None, ..entry.clone() });
    store.record_end(List::Trust, &entry, "expired", Some(18));
    store.flush().unwrap();
    let of = |text| store.history(&network(text)).unwrap();
    let rows = of("2001:db8:0:1::77");
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_eq!(
        (rows[0].ban.kind.as_str(), rows[0].ban.tier, &rows[0].end),
        ("rejected", None, &None)
    );
    let end = rows[1].end.as_ref().unwrap();
    assert_eq!(
        (rows[1].ban.kind.as_str(), end.by.as_str(), end.hits),
        ("requests", "command", Some(17))
    );
    assert_eq!(rows[1].ban, Ban { until_ms: rows[1].ban.until_ms, ..Ban::of("requests", &entry) });
    assert!(
        rows[1].ban.until_ms.unwrap() > rows[1].ban.from_ms && end.at_ms >= rows[1].ban.from_ms
    );
    assert_eq!(of("2001:db8:0:1::/64").len(), 2);
    assert_eq!(of("2001:db8::/32").len(), 0);
    assert_eq!(of("192.0.2.1").len(), 0);
}

#[test]
fn old_rows_are_removed() {
    let (_directory, path) = place();
    let store = make(&path);
    let now = clock::wall_ms();
    let days = |days: u64| now - days * 24 * 3_600_000;
    let entry = ban("192.0.2.1", in_seconds(60));
    for age in [91, 89, 1] {
        let until = Some(days(age) + 1_000);
        store.record(Change::Banned(Ban {
            from_ms: days(age),
            until_ms: until,
            ..Ban::of("requests", &entry)
        }));
        let age = age / 3;
        store.record(Change::Offence(OffenceRecord {
            network: network(&format!("192.0.2.{age}")),
            count: 1,
            last_ms: days(age),
        }));
        store.record(Change::Peer(Peer {
            address: "192.0.2.1".parse().unwrap(),
            until_ms: days(age),
        }));
        store.record(Change::Accepted(Accepted {
            transport: Default::default(),
            address: "192.0.2.1".parse().unwrap(),
            user: age.to_string(),
            port: 5060,
            first_ms: 1,
            last_ms: 1,
            until_ms: days(age),
        }));
    }
    drop(store);
    let (store, state) = reopen(&path);
    let seen = (state.offences.len(), state.accepted.len(), state.peers.len());
    assert_eq!(seen, (2, 2, 0), "what is younger than 30 days");
    // The writer removes old rows when it starts.
    store.flush().unwrap();
    let rows = store.history(&network("192.0.2.1")).unwrap();
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let end = row.end.as_ref().unwrap();
        assert_eq!(
            (end.by.as_str(), Some(end.at_ms), end.hits),
            ("expired", row.ban.until_ms, None)
        );
    }
    drop(store);
    let count = |table: &str| -> i64 {
        let connection = Connection::open(&path).unwrap();
        connection
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(
        (count("offences"), count("accepted"), count("peers"), count("history")),
        (2, 2, 0, 2)
    );

    let mut connection = Connection::open(&path).unwrap();
    let many: Vec<_> = (0..100_100).map(|_| Change::Banned(Ban::of("requests", &entry))).collect();
    write::write(&mut connection, &many).unwrap();
    write::tidy(&mut connection).unwrap();
    assert_eq!(count("history"), 100_000);
}

#[test]
fn a_clock_that_starts_in_the_past_makes_no_ban_longer() {
    let (_directory, path) = place();
    let store = make(&path);
    let day = 24 * 3_600_000_i64;
    store.record(Change::Put(List::Block, ban("192.0.2.1", in_seconds(60))));
    drop(store);
    // A view from yesterday.
    let connection = Connection::open(&path).unwrap();
    let later = "UPDATE entries SET added_ms = added_ms + ?1, expires_ms = expires_ms + ?1";
    assert_eq!(connection.execute(later, [day]).unwrap(), 1);
    drop(connection);
    let (_store, state) = reopen(&path);
    assert!(state.entries[0].1.expires < in_seconds(61), "it lasts longer than a minute");
}

#[test]
fn a_hundred_thousand_entries_take_seconds() {
    let (_directory, path) = place();
    let store = make(&path);
    let start = Instant::now();
    for number in 0..100_000 {
        let entry =
            Entry::manual(Network::around(IpKey::v4(number << 8), 128), NEVER, "one of many");
        store.record(Change::Put(List::Block, entry));
    }
    store.flush().unwrap();
    let written = start.elapsed();
    drop(store);
    let start = Instant::now();
    let (_store, state) = reopen(&path);
    println!("100,000 entries: written in {written:.1?}, read in {:.1?}", start.elapsed());
    assert_eq!(state.entries.len(), 100_000);
    assert!(written < Duration::from_secs(20) && start.elapsed() < Duration::from_secs(20));
}

#[test]
fn readers_and_the_writer_do_not_wait_for_each_other() {
    let (_directory, path) = place();
    let store = make(&path);
    store.record_ban("requests", &ban("192.0.2.1", in_seconds(60)));
    store.flush().unwrap();
    let reader = Store::read_only(&path).unwrap();
    let start = Instant::now();
    let mut seen = 0;
    for round in 0..200 {
        store.record_ban("requests", &ban("192.0.2.1", in_seconds(60)));
        let rows = reader.history(&network("192.0.2.1")).unwrap().len();
        assert!(rows >= seen, "round {round}");
        seen = rows;
        if round % 50 == 0 {
            store.flush().unwrap();
        }
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(seen > 100);
    store.flush().unwrap();
    assert_eq!(reader.history(&network("192.0.2.1")).unwrap().len(), 201);
    assert!(reader.state().unwrap().entries.is_empty());
    drop(store);
    assert_eq!(Store::read_only(&path).unwrap().history(&network("192.0.2.1")).unwrap().len(), 201);
    assert!(Store::read_only(&path.with_file_name("missing.db")).is_err());
}

#[test]
fn the_earlier_version_is_read_once() {
    let (directory, path) = place();
    let earlier = directory.path().join("lists.json");
    let text = r#"{"schema":1,"block":[
        {"network":"192.0.2.0/24","auto":false,"unproven":false,"added":"2026-01-02T03:04:05Z",
         "expires":null,"reason":"by hand"},
        {"network":"192.0.2.9","auto":true,"unproven":true,"added":"2026-01-02T03:04:05Z",
         "expires":"2026-01-02T03:09:05Z","reason":"over"}],
        "trust":[
        {"network":"2001:db8::/32","auto":false,"unproven":false,"added":"2026-01-02T03:04:05Z",
         "expires":null,"reason":"carrier"}]}"#;
    std::fs::write(&earlier, text).unwrap();
    for _ in 0..2 {
        let (_store, state) = reopen(&path);
        let listed: Vec<_> =
            state.entries.iter().map(|(list, entry)| (*list, entry.network.to_string())).collect();
        assert_eq!(
            listed,
            [(List::Block, "192.0.2.0/24".to_owned()), (List::Trust, "2001:db8::/32".to_owned())]
        );
        assert!(!earlier.exists() && directory.path().join("lists.json.imported").exists());
    }
    // Not again, even if the file reappears.
    std::fs::write(&earlier, text.replace("192.0.2.0/24", "192.0.3.0/24")).unwrap();
    assert_eq!(reopen(&path).1.entries.len(), 2);
    assert!(earlier.exists());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&earlier, "{").unwrap();
    let Found::Corrupt(message) = Store::open(&path).found else { panic!("half a file was taken") };
    assert!(
        message.contains("lists.json is corrupt") && message.contains("set aside as"),
        "{message}"
    );
    assert!(!earlier.exists());
}

/// A wall clock set back after the ban: the ban neither ends nor lasts longer.
#[test]
fn an_entry_from_the_future_is_not_over() {
    let (_directory, path) = place();
    let store = make(&path);
    let day = 24 * 3_600_000;
    let entry = Entry { added_ms: clock::wall_ms() + day, ..ban("192.0.2.7", in_seconds(3_600)) };
    store.record(Change::Put(List::Block, entry.clone()));
    store.flush().unwrap();
    drop(store);
    let (_store, state) = reopen(&path);
    let left = state.entries.first().map(|(_, found)| found.expires.abs_diff(entry.expires));
    assert!(left.is_some_and(|left| left < 1_000_000_000), "{:?}", state.entries);
}

#[test]
fn sprayed_users_and_partners_are_counted_on() {
    let (_directory, path) = place();
    let store = make(&path);
    let now = clock::wall_ms();
    let row = |from_ms: u64, tries: u64| Sprayed {
        user: "101".to_owned(),
        from_ms,
        last_ms: now,
        tier: Tier::Proven,
        tries,
        sources: tries / 2,
    };
    // The same start, told by a clock that is a little off; then another one.
    for (from, tries) in
        [(now - 9_000_000, 10), (now - 9_000_003, 12), (now - 8_999_999, 14), (now - 60_000, 3)]
    {
        store.record(Change::Sprayed(row(from, tries)));
    }
    let partner = "192.0.2.7".parse().unwrap();
    for at in [now - 5_000, now - 1_000, now - 3_000] {
        store.record(Change::Served(partner, at));
        store.flush().unwrap();
    }
    store.record(Change::Served("192.0.2.8".parse().unwrap(), 1));
    drop(store);
    let (store, _) = reopen(&path);
    store.flush().unwrap();
    let reader = Store::read_only(&path).unwrap();
    let sprayed = reader.sprayed_since(now - 1_000).unwrap();
    assert_eq!(sprayed, [row(now - 9_000_000, 14), row(now - 60_000, 3)]);
    assert!(reader.sprayed_since(now + 1).unwrap().is_empty());
    let served = Served { address: partner, first_ms: now - 5_000, last_ms: now - 1_000 };
    assert_eq!(reader.served_since(0).unwrap(), [served], "and what is too old has gone");
}

#[test]
fn a_file_of_the_version_before_is_read_and_brought_up_to_date() {
    let (_directory, path) = place();
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(schema::STEPS[0]).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    let sql = "INSERT INTO history (network, port, kind, tier, reason, from_ms, ended_ms, ended_by)
        VALUES ('192.0.2.1', 0, 'rejected', 'proven', 'ten', 5, 9, 'expired')";
    connection.execute(sql, []).unwrap();
    let sql = "INSERT INTO accepted (address, user, port, first_ms, last_ms, until_ms)
        VALUES ('192.0.2.7', '101', 5060, ?1, ?1, ?1)";
    connection.execute(sql, [i64::try_from(clock::wall_ms()).unwrap()]).unwrap();
    drop(connection);
    let end = Some(End { at_ms: 9, by: "expired".to_owned(), hits: None });
    let reader = Store::read_only(&path).unwrap();
    assert_eq!(reader.bans_since(0).unwrap()[0].end, end);
    assert_eq!(reader.state().unwrap().accepted[0].transport, Transport::Udp);
    assert!(
        reader.sprayed_since(0).unwrap().is_empty() && reader.served_since(0).unwrap().is_empty()
    );
    drop(reader);
    let (store, _) = reopen(&path);
    store.record_ban("requests", &ban("192.0.2.2", in_seconds(60)));
    store.flush().unwrap();
    assert_eq!(
        Store::read_only(&path).unwrap().bans().unwrap().len(),
        1,
        "the other one is too old"
    );
}
