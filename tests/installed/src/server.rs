//! The target machine of the newcomer: a clean Debian with systemd, in a network of the laboratory.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use sip_xdp_tests::manual::Block;
use sip_xdp_tests::topology::ATTACKER;
use sip_xdp_tests::{Lab, Machine};

use crate::held;
use crate::newcomer::{ADD_USER, USER};

/// The machine.
pub(crate) struct Server<'a> {
    machine: Machine<'a>,
}

impl<'a> Server<'a> {
    /// Starts it, with the package in the newcomer's home.
    pub(crate) fn boot(root: &Path, lab: &'a Lab, package: &Path) -> Result<Self> {
        // As on an Internet host; the filter follows the default route.
        lab.pbx.ip(["route", "add", "default", "via", &ATTACKER.to_string()])?;
        let machine = Machine::boot(root, &lab.pbx, lab.directory())?;
        machine.run(ADD_USER)?;
        let name = package
            .file_name()
            .and_then(|name| name.to_str())
            .context("the package has no name")?;
        machine.copy(package, &format!("/home/{USER}/{name}"))?;
        Ok(Self { machine })
    }

    /// Executes a block as if pasted into a shell, stopping at the first failure.
    pub(crate) fn execute(&self, block: &Block) -> Result<()> {
        let start = Instant::now();
        let quoted = format!("set -e -o pipefail\ncd\n{}", block.text).replace('\'', r"'\''");
        self.machine
            .run(&format!("runuser --login {USER} -c '{quoted}'"))
            .with_context(|| format!("under \"{}\"", block.heading))?;
        for command in
            block.text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        {
            held(format!("$ {command}"));
        }
        held(format!("the block took {:.1?}", start.elapsed()));
        Ok(())
    }
}
