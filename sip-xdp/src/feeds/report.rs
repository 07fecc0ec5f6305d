//! Feed entries, from the pinned maps and the saved lists, with or without a daemon.

use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use sip_xdp_common::abi::names;

use super::saved;
use crate::dataplane::counters::Row;
use crate::dataplane::pins::Pins;
use crate::dataplane::tables::header;
use crate::dataplane::tables::networks::Table;
use crate::sys::clock;

/// The networks that feeds list, as rows of the block list with owner `feed:NAME`. The saved lists
/// in `directory` tell the feed, the kernel's table what is in force.
pub fn rows(pins: &Pins, directory: &Path) -> Result<Vec<Row>> {
    let table_header = header::read(pins.open(names::TABLE_HEADER)?)?;
    let table = Table::open(|name| pins.open(name), &table_header)?;
    let lists = saved::all(directory);
    let table = table.map_all()?;
    let mut rows = Vec::new();
    for entry in table.entries().filter(|entry| entry.slot_state.feed) {
        let row = |owner: String, added| Row {
            network: entry.network,
            port: None,
            claimant: Some(owner.clone()).filter(|owner| owner != "feed:"),
            owner,
            reason: String::new(),
            tier: None,
            added,
            expires: None,
            hits: entry.hits,
            dry_run: false,
        };
        let by = lists.iter().filter(|(_, listed, _)| listed.contains(&entry.network));
        let before = rows.len();
        rows.extend(by.map(|(name, _, since)| row(format!("feed:{name}"), clock::from_ms(*since))));
        if rows.len() == before {
            rows.push(row("feed:".to_owned(), Timestamp::UNIX_EPOCH));
        }
    }
    rows.sort_by(|one, other| (one.network, &one.owner).cmp(&(other.network, &other.owner)));
    Ok(rows)
}
