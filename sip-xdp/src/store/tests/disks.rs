//! Tests with disks that are missing, full, read-only, or intermittent.

use std::fs;
use std::io::Write as _;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use super::*;

#[test]
fn without_a_directory_changes_wait_until_there_is_one() {
    let (directory, _) = place();
    let parent = directory.path().join("state");
    fs::write(&parent, "a file").unwrap();
    let path = parent.join("state.db");
    let Opened { store, found } = Store::open(&path);
    assert!(matches!(found, Found::Nothing), "{found:?}");
    let trouble = store.trouble().unwrap();
    assert!(trouble.starts_with("the lists would not survive a reboot: "), "{trouble}");
    let start = Instant::now();
    store.record(Change::Put(List::Block, ban("192.0.2.1", in_seconds(60))));
    store.record_ban("requests", &ban("192.0.2.1", in_seconds(60)));
    assert!(start.elapsed() < Duration::from_millis(100), "recording waited");
    assert!(store.flush().is_err());
    assert!(store.history(&network("192.0.2.1")).unwrap().is_empty());
    assert!(!store.wants_entries());

    fs::remove_file(&parent).unwrap();
    wait_until("the end of the trouble", || store.trouble().is_none());
    assert!(store.wants_entries(), "a file that was made late lacks what was there before");
    store.flush().unwrap();
    assert_eq!(store.history(&network("192.0.2.1")).unwrap().len(), 1);
    drop(store);
    assert_eq!(reopen(&path).1.entries.len(), 1);
}

#[test]
fn a_file_that_was_removed_is_made_again() {
    let (directory, path) = place();
    let state = directory.path().join("state");
    let path = state.join(path.file_name().unwrap());
    let store = make(&path);
    store.record(Change::Put(List::Block, ban("192.0.2.1", in_seconds(60))));
    store.flush().unwrap();
    fs::remove_dir_all(&state).unwrap();
    store.record(Change::Put(List::Block, ban("192.0.2.2", in_seconds(60))));
    store.flush().unwrap();
    assert!(store.wants_entries());
    let all = [ban("192.0.2.1", in_seconds(60)), ban("192.0.2.2", in_seconds(60))]
        .map(|entry| (List::Block, entry));
    store.record(Change::Entries(all.to_vec()));
    assert!(!store.wants_entries());
    drop(store);
    assert!(same(&all, &reopen(&path).1.entries));
}

#[test]
fn a_file_that_breaks_while_it_is_used_is_set_aside() {
    let (directory, path) = place();
    let store = make(&path);
    // More than the writer's cache.
    let entry = |number: u32| {
        Entry::manual(Network::around(IpKey::v4(number), 128), NEVER, &"one of many".repeat(8))
    };
    store.record(Change::Entries(
        (0..40_000).map(|number| (List::Block, entry(number * 256))).collect(),
    ));
    store.flush().unwrap();
    let length = path.metadata().unwrap().len();
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(&vec![0x5a; length as usize]).unwrap();
    let aside = || {
        let mut names =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.any(|name| name.to_string_lossy().starts_with("state.db.corrupt-"))
    };
    let mut number = 0;
    wait_until("setting it aside", || {
        number += 1;
        store.record(Change::Put(List::Block, entry(number * 65_537)));
        let _ = store.flush();
        aside()
    });
    wait_until("the end of the trouble", || store.flush().is_ok());
    assert!(store.wants_entries());
}

/// Runs a test in a mount namespace of its own, with a small file system at the given path.
fn on_a_small_disk(size: &str, test: impl FnOnce(&Path) + Send) {
    if !geteuid().is_root() {
        println!("needs root to mount a file system: left out");
        return;
    }
    let (directory, _) = place();
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some(size))
            .unwrap();
        test(directory.path());
    };
    // The namespace belongs to this thread and the store's, and ends with them.
    thread::scope(|scope| scope.spawn(run).join().unwrap());
}

fn make_read_only(disk: &Path, read_only: bool) {
    let flags =
        if read_only { MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY } else { MsFlags::MS_REMOUNT };
    let none: Option<&str> = None;
    mount(none, disk, none, flags, none).unwrap();
}

#[test]
fn on_a_full_disk_changes_wait_for_room() {
    on_a_small_disk("size=1m", |disk| {
        let path = disk.join("state.db");
        let store = make(&path);
        store.record(Change::Put(List::Block, ban("192.0.2.1", in_seconds(60))));
        store.flush().unwrap();
        let fill = || {
            let mut filler =
                fs::OpenOptions::new().append(true).create(true).open(disk.join("filler")).unwrap();
            while filler.write_all(&[0; 512]).is_ok() {}
        };
        fill();
        for number in 0..2_000 {
            let entry =
                Entry::manual(Network::around(IpKey::v4(number << 8), 128), NEVER, "one of many");
            store.record(Change::Put(List::Block, entry));
        }
        assert!(store.flush().is_err());
        let trouble = store.trouble().unwrap();
        println!("{trouble}");
        assert!(trouble.contains("full"), "{trouble}");
        // A reboot with a full disk: the stored state is there.
        drop(store);
        let (store, state) = reopen(&path);
        assert_eq!(state.entries.len(), 1);
        for number in 0..2_000 {
            let entry =
                Entry::manual(Network::around(IpKey::v4(number << 8), 128), NEVER, "one of many");
            store.record(Change::Put(List::Block, entry));
        }
        assert!(store.flush().is_err());
        fs::remove_file(disk.join("filler")).unwrap();
        wait_until("the end of the trouble", || store.trouble().is_none());
        store.flush().unwrap();
        drop(store);
        assert_eq!(reopen(&path).1.entries.len(), 2_001);
    });
}

#[test]
fn a_first_start_on_a_full_disk() {
    on_a_small_disk("size=64k", |disk| {
        let path = disk.join("state.db");
        let mut filler = fs::File::create(disk.join("filler")).unwrap();
        while filler.write_all(&[0; 512]).is_ok() {}
        let Opened { store, found } = Store::open(&path);
        assert!(matches!(found, Found::Nothing), "{found:?}");
        assert!(store.trouble().is_some());
        drop(store);
        // Again, with the result of that.
        let Opened { store, found } = Store::open(&path);
        assert!(matches!(found, Found::Nothing), "{found:?}");
        assert!(store.trouble().is_some());
    });
}

#[test]
fn a_disk_that_is_read_only_is_read() {
    on_a_small_disk("size=4m", |disk| {
        let path = disk.join("state?.db");
        let all = [ban("192.0.2.1", in_seconds(60)), ban("192.0.2.2", in_seconds(60))]
            .map(|entry| (List::Block, entry));
        let store = make(&path);
        store.record(Change::Put(all[0].0, all[0].1.clone()));
        drop(store);
        let assert_read = |expected: &[(List, Entry)]| {
            let (store, state) = reopen(&path);
            assert!(same(expected, &state.entries), "{:?}", state.entries);
            let trouble = store.trouble().unwrap();
            println!("{trouble}");
            store.record(Change::Put(List::Block, ban("192.0.2.9", in_seconds(60))));
            assert!(store.flush().is_err());
        };
        make_read_only(disk, true);
        assert_read(&all[..1]);
        make_read_only(disk, false);

        // A crash leaves the last writes in the log.
        let (store, _) = reopen(&path);
        store.record(Change::Put(all[1].0, all[1].1.clone()));
        let log = schema::with_suffix(&path, "-wal");
        wait_until("a log", || log.metadata().is_ok_and(|log| log.len() > 0));
        let (database, log_bytes) = (fs::read(&path).unwrap(), fs::read(&log).unwrap());
        drop(store);
        fs::write(&path, database).unwrap();
        fs::write(&log, log_bytes).unwrap();
        make_read_only(disk, true);
        assert_read(&all);
        make_read_only(disk, false);
        assert!(same(&all, &reopen(&path).1.entries), "reading it changed it");
    });
}

#[test]
fn a_disk_that_becomes_read_only_and_writable_again() {
    on_a_small_disk("size=4m", |disk| {
        let path = disk.join("state.db");
        drop(make(&path));
        make_read_only(disk, true);
        let (store, _) = reopen(&path);
        assert!(store.trouble().is_some());
        store.record(Change::Put(List::Block, ban("192.0.2.1", in_seconds(60))));
        assert!(store.flush().is_err());
        make_read_only(disk, false);
        wait_until("the end of the trouble", || store.trouble().is_none());
        store.flush().unwrap();
        assert!(!store.wants_entries());
        drop(store);
        assert_eq!(reopen(&path).1.entries.len(), 1);
    });
}
