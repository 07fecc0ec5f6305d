//! Small state files: written atomically, and never overwritten when unreadable.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::sys::clock;

/// Writes a JSON file atomically: a crash leaves the old one or the new one.
pub(crate) fn write(path: &Path, contents: &impl Serialize) -> Result<()> {
    let directory = path.parent().context("the file has no directory")?;
    let temporary = path.with_extension("json.new");
    let written = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(contents)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    written().with_context(|| format!("{} cannot be written", path.display()))
}

/// Renames an unreadable file, and returns a message.
pub(crate) fn set_aside(path: &Path, what: &str) -> String {
    let aside = path.with_extension(format!("json.corrupt-{}", clock::wall_ms() / 1_000));
    let kept = match fs::rename(path, &aside) {
        Ok(()) => format!("it was set aside as {}", aside.display()),
        Err(error) => format!("it cannot be set aside either ({error})"),
    };
    format!("{} {what}; {kept}", path.display())
}
