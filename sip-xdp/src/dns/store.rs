//! Host names on disk: names given by command, and the last results of all followed names, so that
//! their addresses are in force before the first packet after a start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sip_xdp_common::abi::layout::NEVER;

use super::resolver::Kinds;
use super::{Answer, Given, MAX_ADDRESSES, Seen};
use crate::config::HostName;
use crate::config::MAX_NAMES;
use crate::sys::clock;
use crate::sys::files;

const SCHEMA: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    schema: u32,
    given: Vec<SavedName>,
    answers: Vec<SavedAnswer>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedName {
    name: HostName,
    added: Timestamp,
    expires: Option<Timestamp>,
    reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedAnswer {
    name: HostName,
    addresses: BTreeSet<IpAddr>,
    at: Timestamp,
    /// When and how each was last named; earlier versions did not store it.
    #[serde(default)]
    seen: Vec<SavedSeen>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSeen {
    address: IpAddr,
    at: Timestamp,
    ttl_ms: u64,
    kinds: Kinds,
}

/// The saved state.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// Names by command.
    pub(super) given: BTreeMap<HostName, Given>,
    /// Answers.
    pub(super) answers: BTreeMap<HostName, Answer>,
}

/// Writes the file atomically.
pub(super) fn save(path: &Path, kept: &Kept) -> Result<()> {
    let given = kept.given.iter().map(|(name, given)| SavedName {
        name: name.clone(),
        added: clock::from_ms(given.added_ms),
        expires: clock::to_wall(given.expires),
        reason: given.reason.clone(),
    });
    let answers = kept.answers.iter().map(|(name, answer)| SavedAnswer {
        name: name.clone(),
        addresses: answer.addresses.keys().copied().collect(),
        at: clock::from_ms(answer.at_ms),
        seen: answer.addresses.iter().map(saved_seen).collect(),
    });
    files::write(
        path,
        &Saved { schema: SCHEMA, given: given.collect(), answers: answers.collect() },
    )
}

fn saved_seen((address, seen): (&IpAddr, &Seen)) -> SavedSeen {
    SavedSeen {
        address: *address,
        at: clock::from_ms(seen.at_ms),
        ttl_ms: seen.ttl_ms,
        kinds: seen.kinds,
    }
}

/// Reads the file. An unreadable one is set aside; the text has path and cause.
pub(super) fn load(path: &Path) -> (Kept, Option<String>) {
    let aside = |what: &str| {
        let kept = files::set_aside(path, what);
        (
            Kept::default(),
            Some(format!("{kept}; hosts that were trusted by command have to be added again")),
        )
    };
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return (Kept::default(), None),
        Err(error) => return aside(&format!("cannot be read ({error})")),
    };
    match serde_json::from_slice::<Saved>(&text) {
        Ok(saved) if saved.schema == SCHEMA => (kept(saved), None),
        Ok(saved) => aside(&format!("has schema {}, not {SCHEMA}", saved.schema)),
        Err(error) => aside(&format!("is corrupt ({error})")),
    }
}

fn kept(saved: Saved) -> Kept {
    let now = clock::now();
    let ms = |time: Timestamp| time.as_millisecond().try_into().unwrap_or_default();
    let given = saved.given.into_iter().take(MAX_NAMES).map(|saved| {
        let expires = saved.expires.map_or(NEVER, clock::from_wall);
        (saved.name, Given { added_ms: ms(saved.added), expires, reason: saved.reason })
    });
    let answers = saved.answers.into_iter().take(MAX_NAMES).map(|saved| {
        let seen: BTreeMap<_, _> =
            saved.seen.into_iter().map(|seen| (seen.address, seen)).collect();
        let named = |address: IpAddr| match seen.get(&address) {
            Some(SavedSeen { at, ttl_ms, kinds, .. }) => {
                Seen { at_ms: ms(*at), ttl_ms: *ttl_ms, kinds: *kinds }
            }
            None => Seen::at(address, clock::wall_ms()),
        };
        let addresses = saved.addresses.into_iter().take(MAX_ADDRESSES);
        let addresses = addresses.map(|address| (address, named(address))).collect();
        (saved.name, Answer { addresses, at_ms: ms(saved.at) })
    });
    Kept {
        given: given.filter(|(_, given)| given.expires > now).collect(),
        answers: answers.collect(),
    }
}
