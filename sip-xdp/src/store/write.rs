//! Writing changes into the tables.

use rusqlite::{Connection, Result, Transaction, TransactionBehavior, params};
use sip_xdp_common::abi::layout::{List, Owner};

use super::change::{Accepted, Ban, Change, End, Sprayed};
use super::columns::{from_list, from_number, from_port, from_tier};
use super::read::REMEMBERED_MS;
use crate::dataplane::tables::ledger::Entry;
use crate::net::network::Network;
use crate::sys::clock;

/// Retention of the history, in milliseconds.
const HISTORY_MS: u64 = 90 * 24 * 3_600_000;

/// Maximum number of bans in the history.
const HISTORY_ROWS: i64 = 100_000;

/// How far apart two starts of a spraying may be that are the same one, in milliseconds.
const SAME_START_MS: i64 = 60_000;

/// How many sprayed users and served addresses are remembered: the latest ones.
const OTHER_ROWS: i64 = 10_000;

/// Writes all changes in one transaction.
pub(super) fn write(connection: &mut Connection, changes: &[Change]) -> Result<()> {
    // Decisions of operators are synced with the transaction; other changes may take a few seconds
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

/// Removes old rows, and closes bans whose end was missed.
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
    for (table, key) in [("sprayed", "user, from_ms"), ("served", "address")] {
        transaction
            .execute(&format!("DELETE FROM {table} WHERE last_ms <= ?"), [before(HISTORY_MS)])?;
        let latest = format!("SELECT {key} FROM {table} ORDER BY last_ms DESC LIMIT -1 OFFSET ?");
        let sql = format!("DELETE FROM {table} WHERE ({key}) IN ({latest})");
        transaction.execute(&sql, [OTHER_ROWS])?;
    }
    transaction.execute(
        "UPDATE history SET ended_ms = until_ms, ended_by = 'expired' WHERE ended_ms IS NULL AND \
         until_ms <= ?",
        [before(0)],
    )?;
    transaction.commit()
}

/// Checkpoints the log into the file, and syncs both.
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
        Change::Ended { network, port, end: End { at_ms, by, hits } } => execute(
            "UPDATE history SET ended_ms = ?, ended_by = ?, hits = ?
                WHERE network = ? AND port = ? AND ended_ms IS NULL",
            params![
                from_number(*at_ms),
                by,
                hits.map(from_number),
                network.to_string(),
                from_port(*port)
            ],
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
        Change::Sprayed(row) => sprayed(transaction, row),
        Change::Served(address, at_ms) => execute(
            "INSERT INTO served (address, first_ms, last_ms) VALUES (?1, ?2, ?2)
                ON CONFLICT DO UPDATE SET last_ms = max(last_ms, excluded.last_ms)",
            params![address.to_string(), from_number(*at_ms)],
        ),
        Change::Note { name, value } => execute(
            "INSERT OR REPLACE INTO notes (name, value, updated_ms) VALUES (?, ?, ?)",
            params![name, value, from_number(clock::wall_ms())],
        ),
    }
}

/// Writes an entry. Entries of the configuration and of feeds, which have their own files, are left
/// out, and so are those of a dry run.
fn put(transaction: &Transaction<'_>, list: List, entry: &Entry) -> Result<()> {
    if matches!(entry.owner, Owner::Config | Owner::Feed) || entry.dry_run {
        return remove(transaction, list, &entry.network, entry.port, entry.owner);
    }
    // Its time must not lie in the future, as after the clock was set back: it would be read as
    // expired.
    let sql = "INSERT OR REPLACE INTO entries
        (list, network, port, owner, tier, added_ms, expires_ms, reason)
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

/// Writes a ban of another instance, with time and cause of its end, unless it exists.
fn past(transaction: &Transaction<'_>, ban: &Ban, end: Option<&End>) -> Result<()> {
    let sql = "INSERT INTO history
            (network, port, kind, tier, reason, from_ms, until_ms, ended_ms, ended_by, hits)
        SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10 WHERE NOT EXISTS
            (SELECT 1 FROM history WHERE network = ?1 AND port = ?2 AND from_ms = ?6)";
    let (from, until) = (from_number(ban.from_ms), ban.until_ms.map(from_number));
    let (port, tier) = (from_port(ban.port), from_tier(ban.tier));
    let (ended_ms, ended_by) = (end.map(|end| from_number(end.at_ms)), end.map(|end| &end.by));
    let hits = end.and_then(|end| end.hits).map(from_number);
    let network = ban.network.to_string();
    let columns =
        params![network, port, ban.kind, tier, ban.reason, from, until, ended_ms, ended_by, hits];
    transaction.prepare_cached(sql)?.execute(columns).map(drop)
}

/// Writes the figures of a sprayed user over those of the same start. That is told on the filter's
/// clock, so it may be a little off.
fn sprayed(transaction: &Transaction<'_>, row: &Sprayed) -> Result<()> {
    let numbers = [row.from_ms, row.last_ms, row.tries, row.sources].map(from_number);
    let columns = params![
        row.user,
        numbers[0],
        numbers[1],
        row.tier.name(),
        numbers[2],
        numbers[3],
        SAME_START_MS
    ];
    let sql = "UPDATE sprayed SET last_ms = ?3, tier = ?4, tries = ?5, sources = ?6
        WHERE user = ?1 AND abs(from_ms - ?2) < ?7";
    if transaction.prepare_cached(sql)?.execute(columns)? > 0 {
        return Ok(());
    }
    let sql = "INSERT INTO sprayed (user, from_ms, last_ms, tier, tries, sources)
        SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE ?7 > 0";
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
