//! Reading the store, beside whoever writes to it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};
use rusqlite::{Connection, Params, Row, params};
use sip_xdp_common::abi::layout::{List, NEVER};

use super::change::{Accepted, Ban, HistoryRow, Peer, State};
use super::columns::{from_number, to_list, to_number, to_owner, to_port, to_tier};
use super::schema;
use crate::bans::offences::OffenceRecord;
use crate::dataplane::tables::ledger::Entry;
use crate::net::network::Network;
use crate::sip::transport::Transport;
use crate::sys::clock;

/// How long offences and accepted users are remembered, in milliseconds.
pub(super) const REMEMBERED_MS: u64 = 30 * 24 * 3_600_000;

/// How many bans of one source are told at most.
const TOLD: usize = 1_000;

/// The store, to be read only. A daemon may write to it meanwhile and is not kept waiting.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    /// There is nothing in it, not even tables.
    is_new: bool,
}

impl Reader {
    /// Opens the file, with or without a daemon.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = schema::open_readable(path);
        let usable = opened
            .map_err(|failure| anyhow!("{} cannot be read: {}", path.display(), failure.text()))?;
        Ok(Self { connection: usable.connection, is_new: usable.is_new })
    }

    /// What survived.
    pub fn state(&self) -> Result<State> {
        if self.is_new { Ok(State::default()) } else { Ok(state(&self.connection)?) }
    }

    /// All bans that are remembered, the earliest first.
    pub fn bans(&self) -> Result<Vec<HistoryRow>> {
        let sql =
            "SELECT id, network, port, kind, tier, reason, from_ms, until_ms, ended_ms, ended_by
            FROM history ORDER BY id";
        if self.is_new {
            Ok(Vec::new())
        } else {
            Ok(rows(&self.connection, sql, params![], history_row)?)
        }
    }

    /// The bans of a network and of those around it, the latest first.
    pub fn history(&self, network: &Network) -> Result<Vec<HistoryRow>> {
        let sql =
            "SELECT id, network, port, kind, tier, reason, from_ms, until_ms, ended_ms, ended_by
            FROM history WHERE network = ? ORDER BY id DESC LIMIT ?";
        let mut all = Vec::new();
        if self.is_new {
            return Ok(all);
        }
        let shortest = network.bits() - network.prefix();
        for bits in (shortest..=network.bits()).rev() {
            let around = Network::around(network.first(), bits).to_string();
            all.extend(rows(&self.connection, sql, params![around, TOLD as i64], history_row)?);
        }
        all.sort_unstable_by_key(|row| std::cmp::Reverse(row.id));
        all.truncate(TOLD);
        Ok(all)
    }
}

/// What survived, without what has ended.
pub(super) fn state(connection: &Connection) -> rusqlite::Result<State> {
    let now = clock::wall_ms();
    let since = from_number(now.saturating_sub(REMEMBERED_MS));
    let now = from_number(now);
    let entries = "SELECT list, network, port, owner, tier, added_ms, expires_ms, reason
        FROM entries WHERE expires_ms IS NULL OR expires_ms > ?";
    let offences = "SELECT network, count, last_ms FROM offences WHERE last_ms > ?";
    let accepted = "SELECT address, user, port, first_ms, last_ms, until_ms, transport
        FROM accepted WHERE max(last_ms, until_ms) > ?";
    let peers = "SELECT address, until_ms FROM peers WHERE until_ms > ?";
    let notes = "SELECT name, value FROM notes ORDER BY name";
    Ok(State {
        entries: rows(connection, entries, [now], entry)?,
        offences: rows(connection, offences, [since], offence)?,
        accepted: rows(connection, accepted, [since], accepted_row)?,
        peers: rows(connection, peers, [now], peer)?,
        notes: rows(connection, notes, params![], |row| Ok(Some((row.get(0)?, row.get(1)?))))?,
    })
}

/// All rows that can be understood. A disk that turned a bit in one of them must not cost the
/// others.
fn rows<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<Option<T>>,
) -> rusqlite::Result<Vec<T>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut found = statement.query(params)?;
    let (mut all, mut odd) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        match read(row)? {
            Some(value) => all.push(value),
            None => odd += 1,
        }
    }
    if odd > 0 {
        log::warn!(
            "the state has {odd} rows that this version does not understand; they are left out \
             ({sql})"
        );
    }
    Ok(all)
}

fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    row.get(column)
}

fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get(column).map(to_number)
}

fn optional(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(to_number))
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Option<(List, Entry)>> {
    let (list, network, owner) =
        (to_list(&text(row, 0)?), text(row, 1)?.parse(), to_owner(&text(row, 3)?));
    let (Some(list), Ok(network), Some(owner), Some(tier)) =
        (list, network, owner, to_tier(&text(row, 4)?))
    else {
        return Ok(None);
    };
    let added_ms = number(row, 5)?;
    // A machine without a clock of its own starts in the past: an entry never lasts longer than it
    // was made for.
    let now = clock::wall_ms().max(added_ms);
    let left = |until: u64| clock::after(Some(Duration::from_millis(until.saturating_sub(now))));
    let entry = Entry {
        owner,
        tier,
        added_ms,
        ..Entry::manual(network, optional(row, 6)?.map_or(NEVER, left), &text(row, 7)?)
    };
    let port = to_port(row.get(2)?);
    // A port is one of a host's.
    Ok((port.is_none() || entry.network.is_host()).then_some((list, Entry { port, ..entry })))
}

fn offence(row: &Row<'_>) -> rusqlite::Result<Option<OffenceRecord>> {
    let Ok(network) = text(row, 0)?.parse() else {
        return Ok(None);
    };
    Ok(Some(OffenceRecord { network, count: row.get(1)?, last_ms: number(row, 2)? }))
}

fn accepted_row(row: &Row<'_>) -> rusqlite::Result<Option<Accepted>> {
    let Ok(address) = text(row, 0)?.parse() else {
        return Ok(None);
    };
    Ok(Some(Accepted {
        address,
        user: row.get(1)?,
        port: row.get(2)?,
        first_ms: number(row, 3)?,
        last_ms: number(row, 4)?,
        until_ms: number(row, 5)?,
        transport: Transport::from_name(text(row, 6)?.as_bytes()).unwrap_or_default(),
    }))
}

fn peer(row: &Row<'_>) -> rusqlite::Result<Option<Peer>> {
    let Ok(address) = text(row, 0)?.parse() else {
        return Ok(None);
    };
    Ok(Some(Peer { address, until_ms: number(row, 1)? }))
}

fn history_row(row: &Row<'_>) -> rusqlite::Result<Option<HistoryRow>> {
    let (Ok(network), Some(tier)) = (text(row, 1)?.parse(), to_tier(&text(row, 4)?)) else {
        return Ok(None);
    };
    let ban = Ban {
        network,
        port: to_port(row.get(2)?),
        kind: row.get(3)?,
        tier,
        reason: row.get(5)?,
        from_ms: number(row, 6)?,
        until_ms: optional(row, 7)?,
    };
    Ok(Some(HistoryRow {
        id: row.get(0)?,
        ban,
        ended_ms: optional(row, 8)?,
        ended_by: row.get(9)?,
    }))
}
