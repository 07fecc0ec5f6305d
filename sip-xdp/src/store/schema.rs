//! The file: tables, migrations, and treatment of broken files.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, Error, ErrorCode, OpenFlags, TransactionBehavior};

use crate::sys::clock;

/// How each version is made from the one before. The first one is made from nothing.
pub(super) const STEPS: [&str; 3] = [
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
    // What the report asks for: packets dropped for a ban, users that strangers try, partners.
    "
    ALTER TABLE history ADD COLUMN hits INTEGER;
    CREATE TABLE sprayed (
        user TEXT NOT NULL,
        from_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL,
        tier TEXT NOT NULL,
        tries INTEGER NOT NULL,
        sources INTEGER NOT NULL,
        PRIMARY KEY (user, from_ms)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE served (
        address TEXT PRIMARY KEY NOT NULL,
        first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
",
];

/// Wait for a lock of another process.
const BUSY: Duration = Duration::from_secs(5);

/// Why the file cannot be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its contents are invalid.
    Corrupt(String),
    /// It cannot be read or written now, possibly temporarily.
    Unavailable(String),
    /// Another process held the lock for too long.
    Locked(String),
}

impl Failure {
    /// The description.
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

/// An opened file.
pub(super) struct Usable {
    /// The connection.
    pub(super) connection: Connection,
    /// It was empty.
    pub(super) is_new: bool,
    /// Which version it has.
    pub(super) version: usize,
}

/// Opens the file for writing, creates it if missing, and migrates it to this version.
pub(super) fn open_writable(path: &Path) -> Result<Usable, Failure> {
    if let Some(directory) = path.parent() {
        let made = fs::create_dir_all(directory);
        made.map_err(|error| {
            Failure::Unavailable(format!("{} cannot be made: {error}", directory.display()))
        })?;
    }
    // Not readable by others: it contains users and their addresses. If this fails, opening will
    // report why.
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
    Ok(Usable { connection, is_new: version == 0, version: STEPS.len() })
}

/// Opens the file read-only, with or without a daemon that writes to it.
pub(super) fn open_readable(path: &Path) -> Result<Usable, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let usable = |connection: Connection| {
        prepare(&connection)?;
        let version = check(&connection)?;
        Ok(Usable { connection, is_new: version == 0, version })
    };
    match usable(Connection::open_with_flags(path, flags)?) {
        Err(Failure::Unavailable(_)) => {}
        other => return other,
    }
    // The shared index of the log cannot be created here. In a directory that nobody can write
    // there is no other user, so that no lock is needed.
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
    // No files in a temporary directory.
    connection.pragma_update(None, "temp_store", "memory")?;
    Ok(())
}

/// Checks the file's integrity, and returns its version.
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

/// Whether the path exists.
pub(super) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Renames a broken file together with its log; it is never overwritten. Returns the message, and
/// whether the rename succeeded.
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

/// A path with a suffix.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
