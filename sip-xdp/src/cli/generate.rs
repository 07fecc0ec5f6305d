//! `completions` and `man`: files that packages install beside the program.

use std::io::{ErrorKind, Write as _, stdout};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Cli, Output};

/// Print shell completions
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Write man pages
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The directory, which is created if missing
    directory: PathBuf,
}

/// Written man pages.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Written {
    /// Their directory.
    directory: PathBuf,
}

impl Completions {
    pub(crate) fn execute(self) -> Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "sip-xdp", &mut text);
        match stdout().lock().write_all(&text) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Man {
    pub(crate) fn execute(self, output: Output) -> Result<()> {
        let directory = self.directory;
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("{} cannot be made", directory.display()))?;
        clap_mangen::generate_to(Cli::command(), &directory)
            .with_context(|| format!("no man pages can be written to {}", directory.display()))?;
        output.print(&Written { directory }, |Written { directory }| {
            format!("man pages are in {}", directory.display())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_man_page() {
        let directory = tempfile::tempdir().unwrap();
        Man { directory: directory.path().to_owned() }.execute(Output::new(true)).unwrap();
        for page in ["sip-xdp.1", "sip-xdp-run.1", "sip-xdp-block-add.1", "sip-xdp-explain.1"] {
            assert!(directory.path().join(page).is_file(), "{page}");
        }
    }
}
