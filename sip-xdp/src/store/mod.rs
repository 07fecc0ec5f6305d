//! State that survives a reboot, in one SQLite file: lists, offences, acceptances, history.
//!
//! While the machine is up the pinned ledger is authoritative for the lists; the store records
//! every change and is read only when the ledger is gone. It never blocks the filter: a separate
//! thread writes, a broken file is set aside, and without a disk the filter runs all the same and
//! `status` says so.

mod change;
mod columns;
mod earlier;
mod queue;
mod read;
mod schema;
pub mod state_dump;
#[cfg(test)]
mod tests;
mod write;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use rusqlite::Connection;
use sip_xdp_common::abi::layout::{List, Owner};

pub use self::change::{Accepted, Ban, Change, End, HistoryRow, Peer, Served, Sprayed, State};
pub use self::read::Reader;
use self::schema::{Failure, Usable};
use self::writer::{Shared, Writer};
use crate::dataplane::tables::ledger::Entry;
use crate::net::network::Network;
use crate::sys::clock;

/// How long the daemon waits for the disk when it stops.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The store, open for writing. Dropping it writes pending changes.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    shared: Arc<Shared>,
}

/// A handle to wait for changes recorded so far.
#[derive(Debug)]
pub struct Written {
    shared: Arc<Shared>,
    ticket: u64,
}

impl Written {
    /// Waits until they are on disk, or until writing has failed for now. Returns false if neither
    /// happens within `timeout`.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.shared.wait(self.ticket, timeout)
    }
}

/// An opened store, with its contents.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Its contents.
    pub found: Found,
}

/// The contents on disk.
#[derive(Debug)]
pub enum Found {
    /// None: a first start.
    Nothing,
    /// The live state.
    State(State),
    /// An unreadable file, which was set aside; the text has path and cause.
    Corrupt(String),
    /// A file that another process has locked; the text says so. [`Store::take_late`] returns its
    /// contents when they become readable.
    Locked(String),
}

impl Store {
    /// Opens and reads the store. Always succeeds: an unreadable file is renamed, never
    /// overwritten, and without a writable disk changes are queued.
    pub fn open(path: &Path) -> Opened {
        let (connection, mut found, trouble) = look(path);
        let connection = connection.map(|connection| match &mut found {
            Found::Nothing => import(path, connection, &mut found),
            _ => connection,
        });
        let store = Self { path: path.to_owned(), shared: Arc::new(Shared::default()) };
        store.shared.writer_queue().unread = matches!(found, Found::Locked(_));
        if let Some(trouble) = trouble {
            writer::report(&mut store.shared.writer_queue(), path, &trouble);
        }
        let writer = Writer::new(path.to_owned(), Arc::clone(&store.shared), connection);
        if let Err(error) = thread::Builder::new().name("store".to_owned()).spawn(|| writer.run()) {
            let mut writer_queue = store.shared.writer_queue();
            writer_queue.ended = true;
            writer::report(&mut writer_queue, path, &error.to_string());
        }
        Opened { store, found }
    }

    /// Opens the store read-only, with or without a daemon.
    pub fn read_only(path: &Path) -> anyhow::Result<Reader> {
        Reader::open(path)
    }

    /// Queues a change. Never blocks.
    pub fn record(&self, change: Change) {
        self.shared.record(change);
    }

    /// Records the start of a ban, unless made in a dry run.
    pub fn record_ban(&self, kind: &str, entry: &Entry) {
        if !entry.dry_run {
            self.record(Change::Banned(Ban::of(kind, entry)));
        }
    }

    /// Records what ended a ban, if the entry was one, and how many packets were dropped for it.
    pub fn record_end(&self, list: List, entry: &Entry, by: &str, hits: Option<u64>) {
        if list == List::Block && entry.owner == Owner::Auto && !entry.dry_run {
            let (network, port) = (entry.network, entry.port);
            let end = End { at_ms: clock::wall_ms(), by: by.to_owned(), hits };
            self.record(Change::Ended { network, port, end });
        }
    }

    /// Whether the store needs all entries, as [`Change::Entries`], because it lost changes or its
    /// file, and can write now.
    pub fn wants_entries(&self) -> bool {
        let writer_queue = self.shared.writer_queue();
        writer_queue.queue.has_lost_track()
            && writer_queue.trouble.is_none()
            && !writer_queue.unread
            && writer_queue.late.is_none()
    }

    /// The contents of a file that was locked at the start, once they are read. All entries must be
    /// recorded after that: until then none of them is removed.
    pub fn take_late(&self) -> Option<State> {
        self.shared.writer_queue().late.take()
    }

    /// Waits until all recorded changes are on disk.
    pub fn flush(&self) -> anyhow::Result<()> {
        if !self.shared.wait(self.shared.ask(true), TIMEOUT) {
            bail!("{} takes too long to write", self.path.display());
        }
        match self.trouble() {
            Some(trouble) => bail!(trouble),
            None => Ok(()),
        }
    }

    /// Requests that recorded changes are written at once, to survive a power cut. Never blocks.
    pub fn hurry(&self) -> Written {
        Written { ticket: self.shared.ask(false), shared: Arc::clone(&self.shared) }
    }

    /// Why changes cannot be written, if so.
    pub fn trouble(&self) -> Option<String> {
        self.shared.writer_queue().trouble.clone()
    }

    /// The bans of a network and of those around it, latest first. Reads from disk, without
    /// blocking the writer.
    pub fn history(&self, network: &Network) -> anyhow::Result<Vec<HistoryRow>> {
        if schema::exists(&self.path) {
            Reader::open(&self.path)?.history(network)
        } else {
            Ok(Vec::new())
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.end(TIMEOUT);
    }
}

/// Opens and reads the file. Also returns why it cannot be written, if so.
fn look(path: &Path) -> (Option<Connection>, Found, Option<String>) {
    let what = match schema::open_writable(path).and_then(read_all) {
        Ok((connection, found)) => return (Some(connection), found, None),
        Err(Failure::Unavailable(why)) if !schema::exists(path) => {
            return (None, nothing(path), Some(why));
        }
        // A file that cannot be written may still be readable.
        Err(Failure::Unavailable(why) | Failure::Locked(why)) => {
            match schema::open_readable(path).and_then(read_all) {
                Ok((_, Found::Nothing)) => return (None, nothing(path), Some(why)),
                Ok((_, found)) => return (None, found, Some(why)),
                Err(Failure::Corrupt(what)) => what,
                Err(Failure::Locked(what)) => {
                    let name = path.display();
                    let message = format!(
                        "{name} is locked by another program ({what}); what it holds is taken up \
                         as soon as that lets go"
                    );
                    return (None, Found::Locked(message), Some(what));
                }
                Err(failure) => format!("cannot be read ({})", failure.text()),
            }
        }
        Err(Failure::Corrupt(what)) => what,
    };
    let (message, _) = schema::set_aside(path, &what);
    match schema::open_writable(path) {
        Ok(usable) => (Some(usable.connection), Found::Corrupt(message), None),
        Err(failure) => (None, Found::Corrupt(message), Some(failure.text().to_owned())),
    }
}

fn read_all(usable: Usable) -> Result<(Connection, Found), Failure> {
    let found =
        if usable.is_new { Found::Nothing } else { Found::State(read::state(&usable.connection)?) };
    Ok((usable.connection, found))
}

/// The result without a store, where none can be created.
fn nothing(path: &Path) -> Found {
    found_earlier(path).unwrap_or(Found::Nothing)
}

/// The state of an earlier version, if there is one.
fn found_earlier(path: &Path) -> Option<Found> {
    Some(match earlier::read(path)? {
        Ok(entries) => Found::State(State { entries, ..State::default() }),
        Err(message) => Found::Corrupt(message),
    })
}

/// Imports the state of an earlier version into a new store.
fn import(path: &Path, mut connection: Connection, found: &mut Found) -> Connection {
    let Some(earlier) = found_earlier(path) else {
        return connection;
    };
    if let Found::State(state) = &earlier {
        match write::write(&mut connection, &[Change::Entries(state.entries.clone())]) {
            Ok(()) => earlier::retire(path),
            // They are part of the state that the daemon starts with, and records again.
            Err(error) => {
                log::warn!("what the earlier version left cannot be written yet: {error}")
            }
        }
    }
    *found = earlier;
    connection
}
