//! Collection of the facts: from the store, with or without a daemon, and from the pinned maps if
//! present.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use sip_xdp_common::abi::layout::List;

use super::{Ban, Facts};
use crate::config::Config;
use crate::dataplane::counters;
use crate::dataplane::pins::Pins;
use crate::net::network::Network;
use crate::store::{Reader, State};
use crate::sys::clock;

/// Collects the facts of the last `span`.
pub fn gather(pins: &Pins, store: &Path, config: &Config, span: Duration) -> Result<Facts> {
    let to_ms = clock::wall_ms();
    let from_ms = to_ms.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    let reader = store.exists().then(|| Reader::open(store)).transpose()?;
    let (mut notes, mut trusted) = (Vec::new(), config.trust.networks.clone());
    let mut hits = HashMap::new();
    if pins.is_loaded() {
        let blocked = counters::rows(pins, List::Block)?;
        hits.extend(blocked.iter().map(|row| ((row.network, row.port), row.hits)));
        trusted.extend(counters::rows(pins, List::Trust)?.into_iter().map(|row| row.network));
        if blocked.iter().any(|row| row.dry_run) {
            notes.push("bans of a dry run are not kept; replay a capture with --report".to_owned());
        }
    }
    let State { entries, accepted, .. } =
        reader.as_ref().map(Reader::state).transpose()?.unwrap_or_default();
    if !pins.is_loaded() {
        let is_trusted = |list: &List| *list == List::Trust;
        trusted.extend(
            entries.iter().filter(|(list, _)| is_trusted(list)).map(|(_, entry)| entry.network),
        );
        notes.push("no filter is loaded; this is what the store remembers".to_owned());
    }
    let (mut bans, mut sprayed, mut served) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(reader) = &reader {
        bans = reader.bans_since(from_ms)?;
        sprayed = reader.sprayed_since(from_ms)?;
        served = reader.served_since(from_ms)?;
    }
    let hits_of = |network: Network, port: Option<u16>| hits.get(&(network, port)).copied();
    let bans = bans.into_iter().map(|row| {
        let hits = match &row.end {
            Some(end) => end.hits,
            None => hits_of(row.ban.network, row.ban.port),
        };
        Ban { row, hits }
    });
    Ok(Facts {
        capture: None,
        from_ms,
        to_ms,
        bans: bans.collect(),
        accepted,
        sprayed,
        served,
        trusted,
        rules: config.detect.clone(),
        lost: None,
        notes,
    })
}
