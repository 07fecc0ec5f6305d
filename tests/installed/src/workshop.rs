//! The newcomer's build machine: a clean Debian with the checkout, and this machine's access to
//! mirrors and registries.
//!
//! It runs no systemd, and attaches only to interfaces that it created.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sip_xdp_tests::Root;
use sip_xdp_tests::manual::Block;
use sip_xdp_tests::namespace::unique_name;
use sip_xdp_tests::process::succeed;
use tempfile::TempDir;

use crate::held;
use crate::newcomer::{ADD_USER, USER};

/// The checkout, in the newcomer's home.
const CHECKOUT: &str = "sip-xdp";

/// The network's requirements: its name servers, and its own certificates, if any.
const NAME_SERVERS: &str = "/etc/resolv.conf";
const CERTIFICATES: &str = "/usr/local/share/ca-certificates";

/// The machine; dropping it removes its files.
pub(crate) struct Workshop {
    root: Root,
    _directory: TempDir,
}

impl Workshop {
    /// Unpacks the root, and the sources in it.
    pub(crate) fn new(archive: &Path, sources: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix(&format!("{}-", unique_name()))
            .tempdir()
            .context("cannot make a temporary directory")?;
        let workshop =
            Self { root: Root::unpack(archive, directory.path())?, _directory: directory };
        workshop.root.copy(Path::new(NAME_SERVERS), NAME_SERVERS)?;
        for entry in fs::read_dir(CERTIFICATES).into_iter().flatten().flatten() {
            let name = entry.file_name();
            workshop
                .root
                .copy(&entry.path(), &format!("{CERTIFICATES}/{}", name.to_string_lossy()))?;
        }
        workshop.run(&format!(
            "{ADD_USER} && update-ca-certificates && mkdir /home/{USER}/{CHECKOUT}"
        ))?;
        let home = format!("/home/{USER}/{CHECKOUT}");
        succeed(
            Command::new("tar").arg("-xf").arg(sources).arg("-C").arg(workshop.root.path(&home)),
        )?;
        workshop.run(&format!("chown --recursive {USER}: {home}"))?;
        Ok(workshop)
    }

    /// Executes the commands of a block one after the other, with their output.
    pub(crate) fn execute(&self, block: &Block) -> Result<()> {
        for command in block.text.lines().filter_map(|line| line.strip_prefix("$ ")) {
            println!("  ...    $ {command}");
            let start = Instant::now();
            // The surrounding shell is the init process, which reaps orphans.
            let status = self
                .command(&["sh", "-c", r#"runuser --login "$1" -c "$2"; exit $?"#, "sh", USER])
                .arg(format!("cd {CHECKOUT} && {command}"))
                .status()
                .context("cannot enter the clean Debian")?;
            ensure!(status.success(), "under \"{}\": `{command}` failed ({status})", block.heading);
            held(format!("$ {command}"));
            held(format!("it took {:.0?}", start.elapsed()));
        }
        Ok(())
    }

    /// The package that was made in the checkout.
    pub(crate) fn package(&self) -> Result<PathBuf> {
        let directory = self.root.path(&format!("/home/{USER}/{CHECKOUT}/target/debian"));
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?;
        let mut packages = entries.flatten().map(|entry| entry.path());
        packages
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("there is no package in {}", directory.display()))
    }

    /// Runs a shell script inside, as root, which must succeed.
    fn run(&self, script: &str) -> Result<()> {
        succeed(&mut self.command(&["sh", "-e", "-c", script])).map(drop)
    }

    /// A program inside. It ends with us in any case: unshare(1) needs SIGKILL.
    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(self.root.start(program))
            .stdin(Stdio::null());
        command
    }
}
