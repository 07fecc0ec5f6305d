//! The writer thread, so that a slow, full or missing disk never blocks the daemon.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::change::{Change, State};
use super::queue::Queue;
use super::schema::{self, Failure};
use super::{read, write};
use crate::sys::privileges;

/// Minimum interval between two transactions.
const PACE: Duration = Duration::from_millis(200);

/// Wait after a failed transaction.
const RETRY: Duration = Duration::from_secs(1);

/// Interval at which old rows are removed.
const TIDY: Duration = Duration::from_secs(3_600);

/// State shared by daemon and writer.
#[derive(Debug, Default)]
pub(super) struct Shared {
    writer_queue: Mutex<WriterQueue>,
    /// Signals work for the writer.
    wake: Condvar,
    /// Signals completed work.
    done: Condvar,
}

/// The shared state behind the lock, which is never held during disk access.
#[derive(Debug, Default)]
pub(super) struct WriterQueue {
    /// Changes to be written.
    pub(super) queue: Queue,
    /// Why nothing can be written, if so.
    pub(super) trouble: Option<String>,
    /// Number of flush requests, and the number up to which they were tried.
    asked: u64,
    answered: u64,
    /// The next write is checkpointed into the file, not only into its log.
    into_file: bool,
    stop: bool,
    /// The file was locked at the start, and its contents are unknown.
    pub(super) unread: bool,
    /// Its contents, until the daemon takes them.
    pub(super) late: Option<State>,
    /// The writer has ended.
    pub(super) ended: bool,
}

impl Shared {
    /// Locks the shared state.
    pub(super) fn writer_queue(&self) -> MutexGuard<'_, WriterQueue> {
        self.writer_queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a change.
    pub(super) fn record(&self, change: Change) {
        let mut writer_queue = self.writer_queue();
        let wakes = writer_queue.queue.is_empty();
        writer_queue.queue.push(change);
        drop(writer_queue);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Requests a flush, into the file or only into its log, which is as safe. Returns a ticket for
    /// [`Shared::wait`].
    pub(super) fn ask(&self, into_file: bool) -> u64 {
        let mut writer_queue = self.writer_queue();
        writer_queue.asked += 1;
        writer_queue.into_file |= into_file;
        self.wake.notify_one();
        writer_queue.asked
    }

    /// Waits for what was asked for. Returns false if that has neither succeeded nor failed after
    /// `timeout`.
    pub(super) fn wait(&self, ticket: u64, timeout: Duration) -> bool {
        let waits =
            |writer_queue: &mut WriterQueue| writer_queue.answered < ticket && !writer_queue.ended;
        let waited = self.done.wait_timeout_while(self.writer_queue(), timeout, waits);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Ends the writer, which tries once more to write what waits.
    pub(super) fn end(&self, timeout: Duration) {
        let mut writer_queue = self.writer_queue();
        writer_queue.stop = true;
        self.wake.notify_one();
        drop(
            self.done.wait_timeout_while(writer_queue, timeout, |writer_queue| !writer_queue.ended),
        );
    }
}

/// The writer.
pub(super) struct Writer {
    path: PathBuf,
    shared: Arc<Shared>,
    connection: Option<Connection>,
    last_attempt: Option<Instant>,
    last_tidied: Option<Instant>,
}

/// Work to do.
struct Task {
    changes: Vec<Change>,
    ticket: u64,
    /// Checkpoint into the file.
    into_file: bool,
    stops: bool,
}

impl Writer {
    /// A writer for an open file, or for one to be opened as soon as possible.
    pub(super) fn new(path: PathBuf, shared: Arc<Shared>, connection: Option<Connection>) -> Self {
        Self { path, shared, connection, last_attempt: None, last_tidied: None }
    }

    /// Writes until asked to end.
    pub(super) fn run(mut self) {
        privileges::keep(privileges::NOTHING);
        loop {
            let Task { changes, ticket, into_file, stops } = self.next_task();
            let attempt = self.attempt(&changes, into_file);
            self.last_attempt = Some(Instant::now());
            let mut writer_queue = self.shared.writer_queue();
            match attempt {
                Ok(()) => {
                    if writer_queue.trouble.take().is_some() {
                        log::info!("the lists can be written to {} again", self.path.display());
                    }
                }
                Err(failure) => {
                    writer_queue.queue.put_back(changes);
                    report(&mut writer_queue, &self.path, failure.text());
                    // Whatever the error, the next attempt reopens the file.
                    self.connection = None;
                }
            }
            writer_queue.answered = ticket;
            if stops {
                drop(writer_queue);
                // Closing the last connection checkpoints the log into the file.
                self.connection = None;
                self.shared.writer_queue().ended = true;
                self.shared.done.notify_all();
                return;
            }
            drop(writer_queue);
            self.shared.done.notify_all();
        }
    }

    /// Waits for work, and for the end of the interval.
    fn next_task(&self) -> Task {
        let since = |at: Option<Instant>| at.map_or(Duration::MAX, |at| at.elapsed());
        let mut writer_queue = self.shared.writer_queue();
        loop {
            let hurries = writer_queue.asked > writer_queue.answered || writer_queue.stop;
            let wait = if hurries {
                Duration::ZERO
            } else if self.connection.is_none() {
                RETRY.saturating_sub(since(self.last_attempt))
            } else if !writer_queue.queue.is_empty() {
                PACE.saturating_sub(since(self.last_attempt))
            } else {
                TIDY.saturating_sub(since(self.last_tidied))
            };
            if wait.is_zero() {
                let into_file = std::mem::take(&mut writer_queue.into_file) || writer_queue.stop;
                return Task {
                    changes: writer_queue.queue.take(),
                    ticket: writer_queue.asked,
                    into_file,
                    stops: writer_queue.stop,
                };
            }
            writer_queue = self
                .shared
                .wake
                .wait_timeout(writer_queue, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn attempt(&mut self, changes: &[Change], into_file: bool) -> Result<(), Failure> {
        if self.connection.is_some() && !schema::exists(&self.path) {
            // The file was removed: further writes to it would be lost.
            self.connection = None;
            self.shared.writer_queue().queue.lose_track();
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let opened = self.open()?;
                self.connection.insert(opened)
            }
        };
        let mut writer_queue = self.shared.writer_queue();
        if writer_queue.unread {
            drop(writer_queue);
            let state = read::state(connection)?;
            writer_queue = self.shared.writer_queue();
            (writer_queue.unread, writer_queue.late) = (false, Some(state));
        }
        // Until the daemon has taken those contents, it does not know all entries.
        let keeps = writer_queue.late.is_some()
            && changes.iter().any(|change| matches!(change, Change::Entries(_)));
        if keeps {
            writer_queue.queue.lose_track();
        }
        drop(writer_queue);
        if keeps {
            let known =
                changes.iter().filter(|change| !matches!(change, Change::Entries(_))).cloned();
            write::write(connection, &known.collect::<Vec<_>>())?;
        } else {
            write::write(connection, changes)?;
        }
        if self.last_tidied.is_none_or(|at| at.elapsed() >= TIDY) {
            write::tidy(connection)?;
            self.last_tidied = Some(Instant::now());
        }
        if into_file {
            write::checkpoint(connection)?;
        }
        Ok(())
    }

    /// Reopens the file. A broken one is set aside, and all entries are requested.
    fn open(&self) -> Result<Connection, Failure> {
        let what = match schema::open_writable(&self.path) {
            Ok(usable) => {
                if usable.is_new {
                    self.shared.writer_queue().queue.lose_track();
                }
                return Ok(usable.connection);
            }
            Err(Failure::Corrupt(what)) => what,
            Err(failure) => return Err(failure),
        };
        let (message, moved) = schema::set_aside(&self.path, &what);
        if !moved {
            return Err(Failure::Corrupt(message));
        }
        log::error!("{message}");
        self.shared.writer_queue().queue.lose_track();
        Ok(schema::open_writable(&self.path)?.connection)
    }
}

/// Reports why nothing can be written: once in the log, and in the status.
pub(super) fn report(writer_queue: &mut WriterQueue, path: &Path, what: &str) {
    let mut text = format!(
        "the lists would not survive a reboot: {} cannot be written ({what})",
        path.display()
    );
    if writer_queue.trouble.is_none() {
        log::error!("{text}");
    }
    if writer_queue.queue.dropped() > 0 {
        text.push_str(&format!(
            "; {} notes and bans of the history were dropped meanwhile",
            writer_queue.queue.dropped()
        ));
    }
    writer_queue.trouble = Some(text);
}
