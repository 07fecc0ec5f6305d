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
        if self.shell == Shell::Bash {
            text = mend_bash(text);
        }
        match stdout().lock().write_all(&text) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// The script for Bash with one spelling of the program's name. For a name with a hyphen clap
/// writes two, so that nothing is offered behind a command:
/// <https://github.com/clap-rs/clap/issues/6421>.
fn mend_bash(script: Vec<u8>) -> Vec<u8> {
    String::from_utf8_lossy(&script).replace("sip__subcmd__xdp__", "sip__xdp__").into_bytes()
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
    fn bash_offers_what_follows_a_command() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "sip-xdp", &mut script);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sip-xdp.bash");
        std::fs::write(&file, mend_bash(script)).unwrap();
        let offered = |words: &[&str]| {
            let last = words.len();
            let call = format!(
                ". {}; COMP_WORDS=(sip-xdp {} ''); COMP_CWORD={}; _sip__xdp sip-xdp '' {}; \
                 echo \"${{COMPREPLY[@]}}\"",
                file.display(),
                words.join(" "),
                last + 1,
                words.last().unwrap_or(&"sip-xdp"),
            );
            let output = std::process::Command::new("bash").args(["-c", &call]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        for (words, expected) in [
            (&[][..], "explain"),
            (&["block"], "del"),
            (&["trust"], "suggest"),
            (&["block", "add"], "--ttl"),
        ] {
            let offered = offered(words);
            assert!(offered.split(' ').any(|word| word.trim() == expected), "{words:?}: {offered}");
        }
    }

    #[test]
    fn every_command_has_a_man_page() {
        let directory = tempfile::tempdir().unwrap();
        Man { directory: directory.path().to_owned() }.execute(Output::new(true)).unwrap();
        for page in ["sip-xdp.1", "sip-xdp-run.1", "sip-xdp-block-add.1", "sip-xdp-explain.1"] {
            assert!(directory.path().join(page).is_file(), "{page}");
        }
    }
}
