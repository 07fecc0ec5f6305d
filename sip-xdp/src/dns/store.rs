//! Host names on disk: those that operators gave by command, and what DNS last said of all that are followed, so that
//! their addresses are in force again before the first packet after a start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sip_xdp_common::abi::layout::NEVER;

use super::{Answer, Given, MAX_ADDRESSES, MAX_NAMES};
use crate::config::HostName;
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
}

/// What is kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// Names by command.
    pub(super) given: BTreeMap<HostName, Given>,
    /// Answers.
    pub(super) answers: BTreeMap<HostName, Answer>,
}

/// Writes the file, so that a crash leaves the old one or the new one.
pub(super) fn save(path: &Path, kept: &Kept) -> Result<()> {
    let given = kept.given.iter().map(|(name, given)| SavedName {
        name: name.clone(),
        added: clock::from_ms(given.added_ms),
        expires: clock::to_wall(given.expires),
        reason: given.reason.clone(),
    });
    let answers = kept.answers.iter().map(|(name, answer)| SavedAnswer {
        name: name.clone(),
        addresses: answer.addresses.clone(),
        at: clock::from_ms(answer.at_ms),
    });
    files::write(path, &Saved { schema: SCHEMA, given: given.collect(), answers: answers.collect() })
}

/// Reads the file. One that cannot be read or understood is set aside; the text says where and why.
pub(super) fn load(path: &Path) -> (Kept, Option<String>) {
    let aside = |what: &str| {
        let kept = files::set_aside(path, what);
        (Kept::default(), Some(format!("{kept}; hosts that were trusted by command have to be added again")))
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
        let addresses = saved.addresses.into_iter().take(MAX_ADDRESSES).collect();
        (saved.name, Answer { addresses, at_ms: ms(saved.at) })
    });
    Kept { given: given.filter(|(_, given)| given.expires > now).collect(), answers: answers.collect() }
}
