//! A settable wall clock for one program: libfaketime, preloaded. The monotonic clock, which the
//! filter uses, is not affected.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The clock of programs started with its environment.
#[derive(Debug)]
pub struct FakeTime {
    file: PathBuf,
    library: PathBuf,
}

impl FakeTime {
    /// A correct clock, until it is set. Its offset is kept in a file of this directory.
    pub fn new(directory: &Path) -> Result<Self> {
        let places = fs::read_dir("/usr/lib").context("/usr/lib cannot be read")?;
        let library = places
            .filter_map(|place| Some(place.ok()?.path().join("faketime/libfaketimeMT.so.1")))
            .find(|library| library.is_file())
            .context("there is no libfaketime: `cargo xtask test` installs it")?;
        let clock = Self { file: directory.join("faketime"), library };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it to an offset in seconds from the correct time.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // Atomically: the program may read it at any time.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n"))
            .and_then(|()| fs::rename(&new, &self.file))
            .context("cannot set the clock")
    }

    /// The environment variables of the clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.file)),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            // File times stay the machine's.
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}
