//! The lists in the format of the first version: one JSON file, read once, then renamed.

use std::fs;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use sip_xdp_common::abi::layout::{List, NEVER, Owner};

use crate::dataplane::tables::ledger::{Entry, Tier};
use crate::net::network::Network;
use crate::sys::clock;

/// Name of that file.
const NAME: &str = "lists.json";

#[derive(Deserialize)]
struct Saved {
    schema: u32,
    block: Vec<SavedEntry>,
    trust: Vec<SavedEntry>,
}

#[derive(Deserialize)]
struct SavedEntry {
    network: Network,
    auto: bool,
    unproven: bool,
    added: Timestamp,
    expires: Option<Timestamp>,
    reason: String,
}

/// The live entries of such a file beside the store, or an error. `None` without such a file.
pub(super) fn read(store: &Path) -> Option<Result<Vec<(List, Entry)>, String>> {
    let path = store.with_file_name(NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return None;
        }
        Err(error) => return Some(Err(wrong(&path, &format!("cannot be read ({error})")))),
    };
    Some(match serde_json::from_slice::<Saved>(&text) {
        Ok(saved) if saved.schema == 1 => Ok(entries(saved)),
        Ok(saved) => Err(wrong(&path, &format!("has schema {}, not 1", saved.schema))),
        Err(error) => Err(wrong(&path, &format!("is corrupt ({error})"))),
    })
}

/// Renames the file, so that it is not read again.
pub(super) fn retire(store: &Path) {
    let (path, imported) =
        (store.with_file_name(NAME), store.with_file_name(format!("{NAME}.imported")));
    match fs::rename(&path, &imported) {
        Ok(()) => log::info!("{} was read into {} and renamed", path.display(), store.display()),
        Err(error) => {
            log::warn!("{} cannot be renamed, but will not be read again: {error}", path.display())
        }
    }
}

fn wrong(path: &Path, what: &str) -> String {
    super::schema::set_aside(path, what).0
}

fn entries(saved: Saved) -> Vec<(List, Entry)> {
    let block = saved.block.into_iter().map(|entry| (List::Block, entry));
    let trust = saved.trust.into_iter().map(|entry| (List::Trust, entry));
    let now = clock::now();
    let all = block.chain(trust).map(|(list, entry)| {
        let restored = Entry {
            owner: if entry.auto { Owner::Auto } else { Owner::Manual },
            added_ms: clock::to_ms(entry.added),
            tier: entry.unproven.then_some(Tier::Unproven),
            ..Entry::manual(
                entry.network,
                entry.expires.map_or(NEVER, clock::from_wall),
                &entry.reason,
            )
        };
        (list, restored)
    });
    all.filter(|(_, entry)| !entry.is_over(now)).collect()
}
