//! A newcomer: executes what the README and the quick start say, from top to bottom, without a
//! single edit.
//!
//! Blocks that are fenced as `console` are executed in a checkout, those that are fenced as `sh`
//! where the package is to run, both by a user who may use sudo, each on a clean Debian.
//! `tests/it/manual.rs` sees to it that no command is fenced otherwise.

use std::path::Path;

use anyhow::{Context, Result};
use sip_xdp_tests::{Lab, manual};

use crate::server::Server;
use crate::workshop::Workshop;

/// User.
pub(crate) const USER: &str = "newcomer";

/// Creates the user, with sudo rights.
pub(crate) const ADD_USER: &str = "useradd --create-home --shell /bin/bash newcomer && echo \
                                   'newcomer ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/newcomer";

/// Fences of blocks for the build machine, and for the target.
const CHECKOUT: &str = "console";
const SERVER: &str = "sh";

/// The part for contributors, which takes more than an hour.
const LONG: &str = "Contributing";

/// Executes the blocks of the target machine.
pub(crate) fn with_package(root: &Path, checkout: &Path, package: &Path) -> Result<()> {
    let blocks = manual::read(checkout, manual::EXECUTED)?;
    let lab = Lab::new()?;
    let server = Server::boot(root, &lab, package)?;
    blocks
        .iter()
        .filter(|block| block.language == SERVER)
        .try_for_each(|block| server.execute(block))
}

/// Executes all blocks; the package is the one built in the checkout.
pub(crate) fn with_sources(
    root: &Path,
    checkout: &Path,
    sources: &Path,
    quick: bool,
) -> Result<()> {
    let mut blocks = manual::read(checkout, manual::EXECUTED)?;
    blocks.retain(|block| !(quick && block.heading == LONG));
    let first = blocks.iter().position(|block| block.language == SERVER);
    let (before, after) =
        blocks.split_at(first.context("the README does not say how to install the package")?);

    let workshop = Workshop::new(root, sources)?;
    before
        .iter()
        .filter(|block| block.language == CHECKOUT)
        .try_for_each(|block| workshop.execute(block))?;
    let lab = Lab::new()?;
    let server = Server::boot(root, &lab, &workshop.package()?)?;
    for block in after {
        match block.language.as_str() {
            CHECKOUT => workshop.execute(block)?,
            SERVER => server.execute(block)?,
            _ => {}
        }
    }
    Ok(())
}
