//! Reading the store, concurrently with its writer.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};
use rusqlite::{Connection, Params, Row, params};
use sip_xdp_common::abi::layout::{List, NEVER};

use super::change::{Accepted, Ban, End, HistoryRow, Peer, Served, Sprayed, State};
use super::columns::{from_number, to_list, to_number, to_owner, to_port, to_tier};
use super::schema;
use crate::bans::offences::OffenceRecord;
use crate::dataplane::tables::ledger::Entry;
use crate::net::network::Network;
use crate::sip::transport::Transport;
use crate::sys::clock;

/// Retention of offences and acceptances, in milliseconds.
pub(super) const REMEMBERED_MS: u64 = 30 * 24 * 3_600_000;

/// How many bans of one source are told at most.
const MAX_BANS: usize = 1_000;

/// The store, read-only. Does not block a daemon that writes.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    /// It has no tables yet.
    is_new: bool,
    /// Which version the file has: that of a program before this one, until its daemon starts.
    version: usize,
}

/// From this version on the transport of an accepted user is stored.
const WITH_TRANSPORT: u32 = 2;

/// From this version on there are hits of bans, sprayed users and served addresses.
const WITH_HITS: usize = 3;

/// The columns of a ban, from a file that has hits, and from one that does not.
const BAN: [&str; 2] = [
    "id, network, port, kind, tier, reason, from_ms, until_ms, ended_ms, ended_by, NULL",
    "id, network, port, kind, tier, reason, from_ms, until_ms, ended_ms, ended_by, hits",
];

impl Reader {
    /// Opens the file, with or without a daemon.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = schema::open_readable(path);
        let usable = opened
            .map_err(|failure| anyhow!("{} cannot be read: {}", path.display(), failure.text()))?;
        let schema::Usable { connection, is_new, version } = usable;
        Ok(Self { connection, is_new, version })
    }

    /// What survived.
    pub fn state(&self) -> Result<State> {
        if self.is_new { Ok(State::default()) } else { Ok(state(&self.connection)?) }
    }

    /// All bans in the history, earliest first.
    pub fn bans(&self) -> Result<Vec<HistoryRow>> {
        self.bans_since(0)
    }

    /// The bans that began at this time in milliseconds since 1970 or later, the earliest first.
    pub fn bans_since(&self, from_ms: u64) -> Result<Vec<HistoryRow>> {
        if self.is_new {
            return Ok(Vec::new());
        }
        let sql =
            format!("SELECT {} FROM history WHERE from_ms >= ? ORDER BY id", self.ban_columns());
        Ok(rows(&self.connection, &sql, [from_number(from_ms)], history_row)?)
    }

    /// Users that strangers tried passwords for since then, those with most tries first.
    pub fn sprayed_since(&self, from_ms: u64) -> Result<Vec<Sprayed>> {
        if self.version < WITH_HITS {
            return Ok(Vec::new());
        }
        let sql = "SELECT user, from_ms, last_ms, tier, tries, sources
            FROM sprayed WHERE last_ms >= ? ORDER BY tries DESC, user";
        Ok(rows(&self.connection, sql, [from_number(from_ms)], sprayed)?)
    }

    /// Addresses whose calls the server took without credentials since then.
    pub fn served_since(&self, from_ms: u64) -> Result<Vec<Served>> {
        if self.version < WITH_HITS {
            return Ok(Vec::new());
        }
        let sql = "SELECT address, first_ms, last_ms FROM served WHERE last_ms >= ? ORDER BY \
                   first_ms";
        Ok(rows(&self.connection, sql, [from_number(from_ms)], served)?)
    }

    fn ban_columns(&self) -> &'static str {
        BAN[usize::from(self.version >= WITH_HITS)]
    }

    /// The bans of a network and of those around it, latest first.
    pub fn history(&self, network: &Network) -> Result<Vec<HistoryRow>> {
        let columns = self.ban_columns();
        let sql =
            format!("SELECT {columns} FROM history WHERE network = ? ORDER BY id DESC LIMIT ?");
        let mut all = Vec::new();
        if self.is_new {
            return Ok(all);
        }
        let shortest = network.bits() - network.prefix();
        for bits in (shortest..=network.bits()).rev() {
            let around = Network::around(network.first(), bits).to_string();
            all.extend(rows(
                &self.connection,
                &sql,
                params![around, MAX_BANS as i64],
                history_row,
            )?);
        }
        all.sort_unstable_by_key(|row| std::cmp::Reverse(row.id));
        all.truncate(MAX_BANS);
        Ok(all)
    }
}

/// The live state.
pub(super) fn state(connection: &Connection) -> rusqlite::Result<State> {
    let now = clock::wall_ms();
    let since = from_number(now.saturating_sub(REMEMBERED_MS));
    let now = from_number(now);
    let entries = "SELECT list, network, port, owner, tier, added_ms, expires_ms, reason
        FROM entries WHERE expires_ms IS NULL OR expires_ms > ?";
    let offences = "SELECT network, count, last_ms FROM offences WHERE last_ms > ?";
    // Without a migration, as a reader without a daemon finds it.
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let transport = if version < WITH_TRANSPORT { "'udp'" } else { "transport" };
    let accepted = format!(
        "SELECT address, user, port, first_ms, last_ms, until_ms, {transport}
        FROM accepted WHERE max(last_ms, until_ms) > ?"
    );
    let peers = "SELECT address, until_ms FROM peers WHERE until_ms > ?";
    let notes = "SELECT name, value FROM notes ORDER BY name";
    Ok(State {
        entries: rows(connection, entries, [now], entry)?,
        offences: rows(connection, offences, [since], offence)?,
        accepted: rows(connection, &accepted, [since], accepted_row)?,
        peers: rows(connection, peers, [now], peer)?,
        notes: rows(connection, notes, params![], |row| Ok(Some((row.get(0)?, row.get(1)?))))?,
    })
}

/// All valid rows. A corrupt row must not cost the others.
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
    // A machine without a real-time clock boots in the past: an entry never lasts longer than its
    // original lifetime.
    let now = clock::wall_ms().max(added_ms);
    let left = |until: u64| clock::after(Some(Duration::from_millis(until.saturating_sub(now))));
    let entry = Entry {
        owner,
        tier,
        added_ms,
        ..Entry::manual(network, optional(row, 6)?.map_or(NEVER, left), &text(row, 7)?)
    };
    let port = to_port(row.get(2)?);
    // Only hosts have ports.
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
    let (by, hits) = (row.get::<_, Option<String>>(9)?, optional(row, 10)?);
    let end = optional(row, 8)?.map(|at_ms| End { at_ms, by: by.unwrap_or_default(), hits });
    Ok(Some(HistoryRow { id: row.get(0)?, ban, end }))
}

fn sprayed(row: &Row<'_>) -> rusqlite::Result<Option<Sprayed>> {
    let Some(Some(tier)) = to_tier(&text(row, 3)?) else {
        return Ok(None);
    };
    Ok(Some(Sprayed {
        user: row.get(0)?,
        from_ms: number(row, 1)?,
        last_ms: number(row, 2)?,
        tier,
        tries: number(row, 4)?,
        sources: number(row, 5)?,
    }))
}

fn served(row: &Row<'_>) -> rusqlite::Result<Option<Served>> {
    let Ok(address) = text(row, 0)?.parse() else {
        return Ok(None);
    };
    Ok(Some(Served { address, first_ms: number(row, 1)?, last_ms: number(row, 2)? }))
}
