//! Writing changes into the tables.

use rusqlite::{Connection, Result, Transaction, TransactionBehavior, params};
use sip_xdp_common::abi::layout::{List, Owner};

use super::change::{Accepted, Ban, Change};
use super::columns::{from_list, from_number, from_port, from_tier};
use super::read::REMEMBERED_MS;
use crate::dataplane::tables::ledger::Entry;
use crate::net::network::Network;
use crate::sys::clock;

/// How long the history goes back, in milliseconds.
const HISTORY_MS: u64 = 90 * 24 * 3_600_000;

/// How many bans the history holds.
const HISTORY_ROWS: i64 = 100_000;

/// Writes all changes, or none.
pub(super) fn write(connection: &mut Connection, changes: &[Change]) -> Result<()> {
    // What somebody decided is on disk before the transaction ends; the rest may take a few seconds
    // more.
    let decided = |change: &Change| {
        change.is_of_entries() || matches!(change, Change::Offence(_) | Change::Pardon(_))
    };
    let synchronous = if changes.iter().any(decided) { "full" } else { "normal" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for change in changes {
        apply(&transaction, change)?;
    }
    transaction.commit()
}

/// Removes what is too old, and closes bans that ended unseen.
pub(super) fn tidy(connection: &mut Connection) -> Result<()> {
    let now = clock::wall_ms();
    let before = |ms: u64| from_number(now.saturating_sub(ms));
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute("DELETE FROM offences WHERE last_ms <= ?", [before(REMEMBERED_MS)])?;
    transaction.execute(
        "DELETE FROM accepted WHERE max(last_ms, until_ms) <= ?",
        [before(REMEMBERED_MS)],
    )?;
    transaction.execute("DELETE FROM peers WHERE until_ms <= ?", [before(0)])?;
    transaction.execute("DELETE FROM history WHERE from_ms <= ?", [before(HISTORY_MS)])?;
    transaction.execute(
        "DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?",
        [HISTORY_ROWS],
    )?;
    transaction.execute(
        "UPDATE history SET ended_ms = until_ms, ended_by = 'expired' WHERE ended_ms IS NULL AND \
         until_ms <= ?",
        [before(0)],
    )?;
    transaction.commit()
}

/// Brings the log into the file, and both to the disk.
pub(super) fn checkpoint(connection: &Connection) -> Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

fn apply(transaction: &Transaction<'_>, change: &Change) -> Result<()> {
    let execute = |sql: &str, params: &[&dyn rusqlite::ToSql]| -> Result<()> {
        transaction.prepare_cached(sql)?.execute(params).map(drop)
    };
    match change {
        Change::Put(list, entry) => put(transaction, *list, entry),
        Change::Remove(list, network, port, owner) => {
            remove(transaction, *list, network, *port, *owner)
        }
        Change::Entries(entries) => {
            execute("DELETE FROM entries", params![])?;
            entries.iter().try_for_each(|(list, entry)| put(transaction, *list, entry))
        }
        Change::Offence(offence) => execute(
            "INSERT OR REPLACE INTO offences (network, count, last_ms) VALUES (?, ?, ?)",
            params![offence.network.to_string(), offence.count, from_number(offence.last_ms)],
        ),
        Change::Pardon(network) => {
            execute("DELETE FROM offences WHERE network = ?", params![network.to_string()])
        }
        Change::Banned(ban) => banned(transaction, ban),
        Change::Ended { network, port, at_ms, by } => execute(
            "UPDATE history SET ended_ms = ?, ended_by = ? WHERE network = ? AND port = ? AND \
             ended_ms IS NULL",
            params![from_number(*at_ms), by, network.to_string(), from_port(*port)],
        ),
        Change::Past(ban, ended) => past(transaction, ban, ended.as_ref()),
        Change::Accepted(row) => accepted(transaction, row),
        Change::Forgotten(address) => {
            execute("DELETE FROM accepted WHERE address = ?", params![address.to_string()])?;
            execute("DELETE FROM peers WHERE address = ?", params![address.to_string()])
        }
        Change::Peer(peer) => execute(
            "INSERT OR REPLACE INTO peers (address, until_ms) VALUES (?, ?)",
            params![peer.address.to_string(), from_number(peer.until_ms)],
        ),
        Change::Note { name, value } => execute(
            "INSERT OR REPLACE INTO notes (name, value, updated_ms) VALUES (?, ?, ?)",
            params![name, value, from_number(clock::wall_ms())],
        ),
    }
}

/// Writes an entry. What the configuration file or a feed lists is left out, since each has a file
/// of its own, and so is what was made in a dry run.
fn put(transaction: &Transaction<'_>, list: List, entry: &Entry) -> Result<()> {
    if matches!(entry.owner, Owner::Config | Owner::Feed) || entry.dry_run {
        return remove(transaction, list, &entry.network, entry.port, entry.owner);
    }
    // The clock may have been set back since it was made. It lasts no longer than from then on when
    // it is read, so a time that is still to come would end it at once.
    let sql = "INSERT OR REPLACE INTO entries (list, network, port, owner, tier, added_ms, expires_ms, reason)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    let expires = clock::to_wall(entry.expires).map(|end| end.as_millisecond());
    let mut statement = transaction.prepare_cached(sql)?;
    let (port, added) = (from_port(entry.port), from_number(entry.added_ms.min(clock::wall_ms())));
    let (owner, tier) = (entry.owner.name(), from_tier(entry.tier));
    let columns = params![
        from_list(list),
        entry.network.to_string(),
        port,
        owner,
        tier,
        added,
        expires,
        entry.reason
    ];
    statement.execute(columns).map(drop)
}

fn remove(
    transaction: &Transaction<'_>,
    list: List,
    network: &Network,
    port: Option<u16>,
    owner: Owner,
) -> Result<()> {
    let sql = "DELETE FROM entries WHERE list = ? AND network = ? AND port = ? AND owner = ?";
    let columns = params![from_list(list), network.to_string(), from_port(port), owner.name()];
    transaction.prepare_cached(sql)?.execute(columns).map(drop)
}

fn banned(transaction: &Transaction<'_>, ban: &Ban) -> Result<()> {
    let sql = "INSERT INTO history (network, port, kind, tier, reason, from_ms, until_ms) VALUES \
               (?, ?, ?, ?, ?, ?, ?)";
    let (from, until) = (from_number(ban.from_ms), ban.until_ms.map(from_number));
    let (port, tier) = (from_port(ban.port), from_tier(ban.tier));
    let columns = params![ban.network.to_string(), port, ban.kind, tier, ban.reason, from, until];
    transaction.prepare_cached(sql)?.execute(columns).map(drop)
}

/// Writes a ban that another instance has told, with when and by what it ended, unless it is there.
fn past(transaction: &Transaction<'_>, ban: &Ban, ended: Option<&(u64, String)>) -> Result<()> {
    let sql = "INSERT INTO history (network, port, kind, tier, reason, from_ms, until_ms, ended_ms, ended_by)
        SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 WHERE NOT EXISTS
            (SELECT 1 FROM history WHERE network = ?1 AND port = ?2 AND from_ms = ?6)";
    let (from, until) = (from_number(ban.from_ms), ban.until_ms.map(from_number));
    let (port, tier) = (from_port(ban.port), from_tier(ban.tier));
    let (ended_ms, ended_by) = (ended.map(|(at, _)| from_number(*at)), ended.map(|(_, by)| by));
    let columns = params![
        ban.network.to_string(),
        port,
        ban.kind,
        tier,
        ban.reason,
        from,
        until,
        ended_ms,
        ended_by
    ];
    transaction.prepare_cached(sql)?.execute(columns).map(drop)
}

fn accepted(transaction: &Transaction<'_>, row: &Accepted) -> Result<()> {
    let sql = "INSERT INTO accepted
            (address, user, port, first_ms, last_ms, until_ms, transport)
        VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT DO UPDATE SET first_ms = min(first_ms, excluded.first_ms),
            last_ms = excluded.last_ms, until_ms = excluded.until_ms,
            transport = excluded.transport";
    let times = [row.first_ms, row.last_ms, row.until_ms].map(from_number);
    let (address, transport) = (row.address.to_string(), row.transport.name());
    let columns = params![address, row.user, row.port, times[0], times[1], times[2], transport];
    transaction.prepare_cached(sql)?.execute(columns).map(drop)
}
