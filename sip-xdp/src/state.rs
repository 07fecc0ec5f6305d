//! The lists on disk, for the day after a reboot. While the machine is up the pinned ledger is the truth; this file is
//! read only when that is gone, and written after every change.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sip_xdp_common::layout::{List, Owner};

use crate::clock;
use crate::ledger::{Entry, Tier};
use crate::network::Network;

const SCHEMA: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    schema: u32,
    block: Vec<SavedEntry>,
    trust: Vec<SavedEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedEntry {
    network: Network,
    auto: bool,
    unproven: bool,
    added: Timestamp,
    expires: Option<Timestamp>,
    reason: String,
}

/// Writes the lists. What the configuration file lists is left out, as are addresses of hosts, which
/// [`hosts`](crate::hosts) keeps, and what was made in a dry run.
pub fn save<'a>(path: &Path, entries: impl Iterator<Item = (List, &'a Entry)>) -> Result<()> {
    let mut saved = Saved { schema: SCHEMA, block: Vec::new(), trust: Vec::new() };
    let is_kept = |entry: &Entry| matches!(entry.owner, Owner::Manual | Owner::Auto) && !entry.dry_run;
    for (list, entry) in entries.filter(|(_, entry)| is_kept(entry)) {
        let of = if list == List::Block { &mut saved.block } else { &mut saved.trust };
        of.push(SavedEntry {
            network: entry.network,
            auto: entry.owner == Owner::Auto,
            unproven: entry.tier == Some(Tier::Unproven),
            added: clock::from_ms(entry.added_ms),
            expires: clock::to_wall(entry.expires),
            reason: entry.reason.clone(),
        });
    }
    write(path, &saved)
}

/// Writes a file of the state, so that a crash leaves the old one or the new one.
pub(crate) fn write(path: &Path, state: &impl Serialize) -> Result<()> {
    let directory = path.parent().context("the state file has no directory")?;
    let temporary = path.with_extension("json.new");
    let written = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(state)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    written().with_context(|| format!("{} cannot be written", path.display()))
}

/// What was found on disk.
#[derive(Debug)]
pub enum Loaded {
    /// Nothing: a first start.
    Nothing,
    /// The lists, what has ended left out.
    Entries(Vec<(List, Entry)>),
    /// Something unreadable, which was set aside; the text says where and why.
    Corrupt(String),
}

/// Reads the lists. A file that cannot be read or understood is renamed, never overwritten, and the filter starts
/// without it.
pub fn load(path: &Path) -> Loaded {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Loaded::Nothing,
        Err(error) => return corrupt(path, &format!("cannot be read ({error})")),
    };
    match serde_json::from_slice::<Saved>(&text) {
        Ok(saved) if saved.schema == SCHEMA => Loaded::Entries(entries(saved)),
        Ok(saved) => corrupt(path, &format!("has schema {}, not {SCHEMA}", saved.schema)),
        Err(error) => corrupt(path, &format!("is corrupt ({error})")),
    }
}

fn corrupt(path: &Path, what: &str) -> Loaded {
    Loaded::Corrupt(format!("{}, and the lists start empty", set_aside(path, what)))
}

/// Renames a file of the state that is of no use, and says so.
pub(crate) fn set_aside(path: &Path, what: &str) -> String {
    let aside = path.with_extension(format!("json.corrupt-{}", clock::wall_ms() / 1_000));
    let kept = match fs::rename(path, &aside) {
        Ok(()) => format!("it was set aside as {}", aside.display()),
        Err(error) => format!("it cannot be set aside either ({error})"),
    };
    format!("{} {what}; {kept}", path.display())
}

fn entries(saved: Saved) -> Vec<(List, Entry)> {
    let both =
        saved.block.into_iter().map(|e| (List::Block, e)).chain(saved.trust.into_iter().map(|e| (List::Trust, e)));
    let now = clock::now();
    both.map(|(list, entry)| {
        let restored = Entry {
            owner: if entry.auto { Owner::Auto } else { Owner::Manual },
            added_ms: entry.added.as_millisecond().try_into().unwrap_or_default(),
            expires: entry.expires.map_or(sip_xdp_common::layout::NEVER, clock::from_wall),
            tier: entry.unproven.then_some(Tier::Unproven),
            ..Entry::manual(entry.network, 0, &entry.reason)
        };
        (list, restored)
    })
    .filter(|(_, entry)| !entry.is_over(now))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn some_entries() -> Vec<(List, Entry)> {
        let permanent = Entry::manual("192.0.2.0/24".parse().unwrap(), clock::after(None), "by hand");
        let trusted = Entry::manual("2001:db8::/32".parse().unwrap(), clock::after(None), "carrier");
        let soon = clock::after(Some(Duration::from_secs(60)));
        let ban = Entry {
            owner: Owner::Auto,
            tier: Some(Tier::Unproven),
            ..Entry::manual("198.51.100.66".parse().unwrap(), soon, "flood")
        };
        let over = Entry::manual("198.51.100.67".parse().unwrap(), 1, "over");
        let config = Entry { owner: Owner::Config, ..permanent.clone() };
        let host = Entry { owner: Owner::Host, ..permanent.clone() };
        let dry = Entry { dry_run: true, ..ban.clone() };
        let mut all = vec![(List::Block, permanent), (List::Trust, trusted), (List::Block, ban)];
        all.extend([(List::Block, over), (List::Trust, config), (List::Trust, host), (List::Block, dry)]);
        all
    }

    #[test]
    fn what_is_saved_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lists.json");
        assert!(matches!(load(&path), Loaded::Nothing));
        let all = some_entries();
        save(&path, all.iter().map(|(list, entry)| (*list, entry))).unwrap();
        let Loaded::Entries(mut back) = load(&path) else { panic!("nothing came back") };
        back.sort_by_key(|(list, entry)| (*list, entry.network));
        let mut expected = all[..3].to_vec();
        expected.sort_by_key(|(list, entry)| (*list, entry.network));
        for ((list, was), (back_list, is)) in expected.iter().zip(&back) {
            assert_eq!(list, back_list);
            assert!(is.expires.abs_diff(was.expires) < 100_000_000, "{is:?} {was:?}");
            assert_eq!(Entry { expires: was.expires, ..is.clone() }, *was);
        }
        assert_eq!(back.len(), 3);
    }

    #[test]
    fn a_corrupt_file_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lists.json");
        for text in ["", "{", "[]", "{\"schema\":99,\"block\":[],\"trust\":[]}", "\0\0\0\0"] {
            fs::write(&path, text).unwrap();
            let Loaded::Corrupt(message) = load(&path) else { panic!("{text:?} was taken") };
            assert!(message.contains("set aside as"), "{message}");
            assert!(!path.exists());
        }
        fs::create_dir(&path).unwrap();
        let Loaded::Corrupt(message) = load(&path) else { panic!("a directory was taken") };
        assert!(message.contains("cannot be read"), "{message}");
    }
}
