//! Tests with broken files.

use std::fs;

use super::*;

/// The store in a directory in which `spoil` has damaged a good one. It must start empty, and work.
fn assert_set_aside(what: &str, spoil: impl FnOnce(&Path)) -> String {
    let (directory, path) = place();
    let store = make(&path);
    for number in 0..200 {
        store.record(Change::Put(
            List::Block,
            Entry::manual(network(&format!("192.0.2.{number}")), NEVER, what),
        ));
    }
    drop(store);
    spoil(&path);
    let Opened { store, found } = Store::open(&path);
    let Found::Corrupt(message) = found else { panic!("{what}: {found:?}") };
    println!("{what}: {message}");
    assert!(
        message.contains("set aside as") && message.ends_with("the lists start empty"),
        "{message}"
    );
    let aside = |name: &str| name.starts_with("state.db.corrupt-");
    let names = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| aside(name)).count(), 1, "{what}");
    assert_eq!(store.trouble(), None, "{what}");
    store.record(Change::Put(List::Block, Entry::manual(network("203.0.113.1"), NEVER, "new")));
    store.flush().unwrap();
    drop(store);
    assert_eq!(reopen(&path).1.entries.len(), 1, "{what}");
    message
}

#[test]
fn an_empty_file_is_a_first_start() {
    let (_directory, path) = place();
    fs::write(&path, "").unwrap();
    drop(make(&path));
}

#[test]
fn files_of_other_formats_are_set_aside() {
    for text in [
        "{\n",
        "{\"schema\":1,\"block\":[],\"trust\":[]}",
        "\0\0\0\0",
        "SQLite format 3\0",
        &"x".repeat(10_000),
    ] {
        assert_set_aside("text", |path| fs::write(path, text).unwrap());
    }
    let message = assert_set_aside("a directory", |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    });
    assert!(message.contains("cannot be read"), "{message}");
}

#[test]
fn a_truncated_store_is_set_aside() {
    for length in [100, 1_000, 4_096, 10_000, 5 * 4_096] {
        assert_set_aside(&format!("{length} bytes"), |path| {
            assert!(path.metadata().unwrap().len() > length);
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
        });
    }
}

#[test]
fn garbage_inside_is_set_aside() {
    assert_set_aside("garbage", |path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[4_096..].fill(0xa5);
        fs::write(path, bytes).unwrap();
    });
    assert_set_aside("a table that is gone", |path| {
        Connection::open(path).unwrap().execute_batch("DROP TABLE peers").unwrap();
    });
}

#[test]
fn a_newer_version_is_set_aside() {
    for version in [4, 99, -1] {
        let message = assert_set_aside("another version", |path| {
            Connection::open(path).unwrap().pragma_update(None, "user_version", version).unwrap();
        });
        assert!(message.contains(&format!("has version {version}")), "{message}");
    }
}

#[test]
fn a_row_that_nobody_understands_costs_no_other() {
    let (_directory, path) = place();
    let store = make(&path);
    store.record(Change::Put(List::Block, ban("192.0.2.1", in_seconds(60))));
    store.record(Change::Put(List::Block, ban("192.0.2.2", in_seconds(60))));
    store.record(Change::Put(List::Block, ban("192.0.2.3", in_seconds(60))));
    drop(store);
    let odd = "UPDATE entries SET network = '192.0.2.x' WHERE network = '192.0.2.2';
        UPDATE entries SET port = 5061, network = '192.0.2.0/24' WHERE network = '192.0.2.3'";
    Connection::open(&path).unwrap().execute_batch(odd).unwrap();
    let (_store, state) = reopen(&path);
    assert_eq!(
        state.entries.iter().map(|(_, entry)| entry.network).collect::<Vec<_>>(),
        [network("192.0.2.1")]
    );
}

#[test]
fn two_broken_files_within_a_second_are_both_kept() {
    let (directory, path) = place();
    for text in ["one", "two", "three"] {
        fs::write(&path, text).unwrap();
        let Opened { store, found } = Store::open(&path);
        assert!(matches!(found, Found::Corrupt(_)));
        drop(store);
    }
    let kept = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().contains("corrupt-");
    let kept: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(Result::unwrap).filter(kept).collect();
    let mut texts: Vec<_> =
        kept.iter().map(|entry| fs::read_to_string(entry.path()).unwrap()).collect();
    texts.sort_unstable();
    assert_eq!(texts, ["one", "three", "two"]);
}

#[test]
fn whatever_the_disk_did_to_it_there_is_a_store() {
    let (_directory, good) = place();
    let store = make(&good);
    for number in 0..100 {
        store.record(Change::Put(
            List::Block,
            Entry::manual(network(&format!("192.0.2.{number}")), NEVER, "good"),
        ));
        store.record_ban("requests", &ban(&format!("192.0.2.{number}"), in_seconds(60)));
    }
    drop(store);
    let good = fs::read(good).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % below
    };
    for round in 0..60 {
        let mut bytes = good.clone();
        for _ in 0..=next(20) {
            let at = next(bytes.len());
            bytes[at] = next(256) as u8;
        }
        let (_directory, path) = place();
        fs::write(&path, bytes).unwrap();
        let Opened { store, .. } = Store::open(&path);
        let entry = (List::Block, Entry::manual(network("203.0.113.1"), NEVER, "new"));
        store.record(Change::Entries(vec![entry.clone()]));
        if store.flush().is_err() {
            // The damage showed only on a write: the second attempt notices it.
            wait_until("a new file", || store.flush().is_ok());
        }
        if store.wants_entries() {
            store.record(Change::Entries(vec![entry]));
        }
        drop(store);
        assert_eq!(reopen(&path).1.entries.len(), 1, "round {round}");
    }
}

/// A lock is no damage: the file stays, and its contents are available as soon as they can be read.
/// Locks of several kinds, as a backup or a shell holds them.
#[test]
fn a_store_that_is_only_locked_is_not_set_aside() {
    let statements = [
        "PRAGMA locking_mode = exclusive; BEGIN EXCLUSIVE; INSERT INTO notes VALUES ('x', x'00', \
         1)",
        "PRAGMA journal_mode = delete; BEGIN EXCLUSIVE",
        "PRAGMA journal_mode = delete; BEGIN EXCLUSIVE; DELETE FROM notes",
        "BEGIN IMMEDIATE",
    ];
    for statement in statements {
        let (directory, path) = place();
        let store = make(&path);
        store.record(Change::Put(List::Block, Entry::manual(network("192.0.2.7"), NEVER, "kept")));
        drop(store);
        let other = Connection::open(&path).unwrap();
        other.execute_batch(statement).unwrap();
        let Opened { store, found } = Store::open(&path);
        let is_locked = match found {
            Found::Locked(message) => {
                assert!(message.contains("locked by another program"), "{message}");
                assert!(store.trouble().is_some() && !store.wants_entries());
                true
            }
            Found::State(state) => {
                assert_eq!(state.entries.len(), 1, "{statement}");
                false
            }
            other => panic!("{statement}: {other:?}"),
        };
        // As the daemon does at once: its complete set of entries.
        let new = Entry::manual(network("192.0.2.8"), NEVER, "new");
        let known = if is_locked {
            vec![]
        } else {
            vec![(List::Block, Entry { reason: "kept".into(), ..new.clone() })]
        };
        store.record(Change::Entries(known));
        store.record(Change::Put(List::Block, new.clone()));
        drop(other);
        wait_until("the file can be written", || {
            store.trouble().is_none() && store.flush().is_ok()
        });
        if is_locked {
            let late = store.take_late().expect("what the file held");
            assert_eq!(late.entries.len(), 1, "{statement}");
            assert!(store.wants_entries(), "only now");
            let mut all = late.entries;
            all.push((List::Block, new));
            store.record(Change::Entries(all));
            store.flush().unwrap();
        }
        drop(store);
        let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let aside = names.filter(|name| name.to_string_lossy().contains("corrupt")).count();
        assert_eq!(
            (aside, reopen(&path).1.entries.len()),
            (0, if is_locked { 2 } else { 1 }),
            "{statement}"
        );
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} not");
        sleep(Duration::from_millis(20));
    }
}
