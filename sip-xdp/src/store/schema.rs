//! The file: its tables, how one of an earlier version becomes one of this version, and what
//! becomes of one that is broken.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Error, ErrorCode, OpenFlags, TransactionBehavior};

use crate::sys::clock;

/// How each version is made from the one before. The first one is made from nothing.
const STEPS: [&str; 2] = [
    "
    CREATE TABLE entries (
        list TEXT NOT NULL,
        network TEXT NOT NULL,
        port INTEGER NOT NULL,
        owner TEXT NOT NULL,
        tier TEXT NOT NULL,
        added_ms INTEGER NOT NULL,
        expires_ms INTEGER,
        reason TEXT NOT NULL,
        PRIMARY KEY (list, network, port, owner)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE offences (
        network TEXT PRIMARY KEY NOT NULL,
        count INTEGER NOT NULL,
        last_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE history (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        network TEXT NOT NULL,
        port INTEGER NOT NULL,
        kind TEXT NOT NULL,
        tier TEXT NOT NULL,
        reason TEXT NOT NULL,
        from_ms INTEGER NOT NULL,
        until_ms INTEGER,
        ended_ms INTEGER,
        ended_by TEXT
    ) STRICT;
    CREATE INDEX history_by_network ON history (network, port);
    CREATE INDEX history_by_time ON history (from_ms);
    CREATE TABLE accepted (
        address TEXT NOT NULL,
        user TEXT NOT NULL,
        port INTEGER NOT NULL,
        first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL,
        until_ms INTEGER NOT NULL,
        PRIMARY KEY (address, user, port)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE peers (
        address TEXT PRIMARY KEY NOT NULL,
        until_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE notes (
        name TEXT PRIMARY KEY NOT NULL,
        value BLOB NOT NULL,
        updated_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    "
    ALTER TABLE accepted ADD COLUMN transport TEXT NOT NULL DEFAULT 'udp';
",
];

/// How long to wait for somebody who has locked the file.
const BUSY: Duration = Duration::from_secs(5);

/// Why the file cannot be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// What it holds makes no sense.
    Corrupt(String),
    /// It cannot be read or written now, which may pass.
    Unavailable(String),
    /// Somebody else has locked it for longer than one can wait.
    Locked(String),
}

impl Failure {
    /// What is wrong.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Corrupt(text) | Self::Unavailable(text) | Self::Locked(text) => text,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Locked(error.to_string())
            }
            Some(
                ErrorCode::CannotOpen
                | ErrorCode::DiskFull
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OperationInterrupted
                | ErrorCode::OutOfMemory
                | ErrorCode::PermissionDenied
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure,
            ) => Self::Unavailable(error.to_string()),
            _ => Self::Corrupt(format!("is corrupt ({error})")),
        }
    }
}

/// A file that was opened.
pub(super) struct Usable {
    /// The connection.
    pub(super) connection: Connection,
    /// There was nothing in it.
    pub(super) is_new: bool,
}

/// Opens the file for writing, makes it if it is missing, and brings it to this version.
pub(super) fn open_writable(path: &Path) -> Result<Usable, Failure> {
    if let Some(directory) = path.parent() {
        let made = fs::create_dir_all(directory);
        made.map_err(|error| {
            Failure::Unavailable(format!("{} cannot be made: {error}", directory.display()))
        })?;
    }
    // Users and their addresses are nobody else's business. If this fails, opening will say why.
    let _ = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    prepare(&connection)?;
    let version = check(&connection)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    if connection.is_readonly("main")? {
        return Err(Failure::Unavailable("the file may only be read".to_owned()));
    }
    for (done, step) in STEPS.iter().enumerate().skip(version) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", done as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(Usable { connection, is_new: version == 0 })
}

/// Opens the file for reading only, beside a daemon that writes to it or without one.
pub(super) fn open_readable(path: &Path) -> Result<Usable, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let usable = |connection: Connection| {
        prepare(&connection)?;
        let version = check(&connection)?;
        Ok(Usable { connection, is_new: version == 0 })
    };
    match usable(Connection::open_with_flags(path, flags)?) {
        Err(Failure::Unavailable(_)) => {}
        other => return other,
    }
    // There is no place for the index of the log, which those who use the file share. Where nobody
    // can write, there is nobody to share it with, and no lock is needed.
    if with_suffix(path, "-wal").exists() {
        let connection = Connection::open_with_flags_and_vfs(path, flags, c"unix-none")?;
        connection.pragma_update_and_check(None, "locking_mode", "exclusive", |_| Ok(()))?;
        return usable(connection);
    }
    let mut uri = String::from("file:");
    for letter in path.to_string_lossy().chars() {
        match letter {
            '%' | '?' | '#' => uri.push_str(&format!("%{:02x}", letter as u32)),
            other => uri.push(other),
        }
    }
    uri.push_str("?immutable=1");
    usable(Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?)
}

fn prepare(connection: &Connection) -> Result<(), Failure> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(32);
    // Nothing is left behind in a directory for temporary files.
    connection.pragma_update(None, "temp_store", "memory")?;
    Ok(())
}

/// Whether the file is whole, and of which version.
fn check(connection: &Connection) -> Result<usize, Failure> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = usize::try_from(version).ok().filter(|version| *version <= STEPS.len());
    let Some(known) = known else {
        return Err(Failure::Corrupt(format!(
            "has version {version}, and this program knows {}",
            STEPS.len()
        )));
    };
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(Failure::Corrupt(format!("is corrupt ({found})")));
    }
    Ok(known)
}

/// Whether there is anything under this name.
pub(super) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Renames a file that cannot be used, together with its log. It is never overwritten. Returns what
/// to say, and whether it is out of the way.
pub(super) fn set_aside(path: &Path, what: &str) -> (String, bool) {
    let mut second = clock::wall_ms() / 1_000;
    let mut aside = with_suffix(path, &format!(".corrupt-{second}"));
    while exists(&aside) {
        second += 1;
        aside = with_suffix(path, &format!(".corrupt-{second}"));
    }
    let moved = fs::rename(path, &aside);
    for suffix in ["-wal", "-shm"] {
        match fs::rename(with_suffix(path, suffix), with_suffix(&aside, suffix)) {
            Err(error) if moved.is_ok() && error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{} was left behind: {error}", with_suffix(path, suffix).display());
            }
            _ => {}
        }
    }
    let kept = match &moved {
        Ok(()) => format!("it was set aside as {}", aside.display()),
        Err(error) => format!("it cannot be set aside either ({error})"),
    };
    (format!("{} {what}; {kept}, and the lists start empty", path.display()), moved.is_ok())
}

/// A path with something behind its name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
