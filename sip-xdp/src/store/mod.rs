//! What survives a reboot, in one SQLite file: the lists, who offended, who was accepted, what
//! happened.
//!
//! While the machine is up, the pinned ledger is the truth of the lists; the store is told of every
//! change and read only when the ledger is gone. It must never stand in the filter's way: changes
//! are written by a thread of its own, a file that is broken is set aside, and without any disk the
//! filter runs all the same and `status` says so.

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

pub use self::change::{Accepted, Ban, Change, HistoryRow, Peer, State};
pub use self::read::Reader;
use self::schema::{Failure, Usable};
use self::writer::{Shared, Writer};
use crate::dataplane::tables::ledger::Entry;
use crate::net::network::Network;
use crate::sys::clock;

/// How long a disk may take before the daemon stops without it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The store, open for writing. Dropping it writes what waits.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    shared: Arc<Shared>,
}

/// What was recorded before a certain moment.
#[derive(Debug)]
pub struct Written {
    shared: Arc<Shared>,
    ticket: u64,
}

impl Written {
    /// Waits until it is on disk, or until it is clear that it will not be for now. Returns false
    /// if neither is after `patience`.
    pub fn wait(&self, patience: Duration) -> bool {
        self.shared.wait(self.ticket, patience)
    }
}

/// A store that was opened, and what was in it.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// What was in it.
    pub found: Found,
}

/// What was found on disk.
#[derive(Debug)]
pub enum Found {
    /// Nothing: a first start.
    Nothing,
    /// What survived, without what has ended.
    State(State),
    /// Something unreadable, which was set aside; the text says where and why.
    Corrupt(String),
    /// A file that somebody else has locked; the text says so. What it holds comes from
    /// [`Store::take_late`] as soon as it can be read.
    Locked(String),
}

impl Store {
    /// Opens the store and reads it. Whatever is wrong with the disk, there is a store afterwards:
    /// a file that cannot be read or understood is renamed, never overwritten, and where nothing
    /// can be written, changes wait.
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

    /// Opens the store to read it, with or without a daemon.
    pub fn read_only(path: &Path) -> anyhow::Result<Reader> {
        Reader::open(path)
    }

    /// Has a change written. Never waits.
    pub fn record(&self, change: Change) {
        self.shared.record(change);
    }

    /// Records that a ban began. Bans of a dry run are none.
    pub fn record_ban(&self, kind: &str, entry: &Entry) {
        if !entry.dry_run {
            self.record(Change::Banned(Ban::of(kind, entry)));
        }
    }

    /// Records what ended a ban, if the entry was one.
    pub fn record_end(&self, list: List, entry: &Entry, by: &str) {
        if list == List::Block && entry.owner == Owner::Auto && !entry.dry_run {
            let (network, port) = (entry.network, entry.port);
            self.record(Change::Ended {
                network,
                port,
                at_ms: clock::wall_ms(),
                by: by.to_owned(),
            });
        }
    }

    /// Whether the store wants to be told all entries, as [`Change::Entries`], because it missed
    /// some change or lost its file, and can write them now.
    pub fn wants_entries(&self) -> bool {
        let writer_queue = self.shared.writer_queue();
        writer_queue.queue.has_lost_track()
            && writer_queue.trouble.is_none()
            && !writer_queue.unread
            && writer_queue.late.is_none()
    }

    /// What a file held that was locked when it was opened, once it has been read. All entries are
    /// to be recorded after that: until then none that it holds is taken out.
    pub fn take_late(&self) -> Option<State> {
        self.shared.writer_queue().late.take()
    }

    /// Waits until all that was recorded is on disk.
    pub fn flush(&self) -> anyhow::Result<()> {
        if !self.shared.wait(self.shared.ask(true), TIMEOUT) {
            bail!("{} takes too long to write", self.path.display());
        }
        match self.trouble() {
            Some(trouble) => bail!(trouble),
            None => Ok(()),
        }
    }

    /// Has what was recorded written at once, so that it survives a power cut. Never waits.
    pub fn hurry(&self) -> Written {
        Written { ticket: self.shared.ask(false), shared: Arc::clone(&self.shared) }
    }

    /// Why changes cannot be written, if so.
    pub fn trouble(&self) -> Option<String> {
        self.shared.writer_queue().trouble.clone()
    }

    /// The bans of a network and of those around it, the latest first. Reads what is on disk,
    /// without keeping anybody from writing.
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

/// Opens the file and reads what it holds. Returns also why it cannot be written, if so.
fn look(path: &Path) -> (Option<Connection>, Found, Option<String>) {
    let what = match schema::open_writable(path).and_then(read_all) {
        Ok((connection, found)) => return (Some(connection), found, None),
        Err(Failure::Unavailable(why)) if !schema::exists(path) => {
            return (None, nothing(path), Some(why));
        }
        // What cannot be written may be readable all the same.
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

/// What is found where there is no store and none can be made.
fn nothing(path: &Path) -> Found {
    found_earlier(path).unwrap_or(Found::Nothing)
}

/// What an earlier version left, if it left something.
fn found_earlier(path: &Path) -> Option<Found> {
    Some(match earlier::read(path)? {
        Ok(entries) => Found::State(State { entries, ..State::default() }),
        Err(message) => Found::Corrupt(message),
    })
}

/// Takes over what an earlier version left into a store that is new.
fn import(path: &Path, mut connection: Connection, found: &mut Found) -> Connection {
    let Some(earlier) = found_earlier(path) else {
        return connection;
    };
    if let Found::State(state) = &earlier {
        match write::write(&mut connection, &[Change::Entries(state.entries.clone())]) {
            Ok(()) => earlier::retire(path),
            // They are in the state that the daemon starts with, and it will say them again.
            Err(error) => {
                log::warn!("what the earlier version left cannot be written yet: {error}")
            }
        }
    }
    *found = earlier;
    connection
}
