//! `cargo xtask build`: what is missing first, then the binary; its build script compiles the
//! kernel programs that it embeds.

use anyhow::Result;

use crate::command::{self, say};
use crate::cross::{self, Target};
use crate::setup;
use crate::workspace::Workspace;

/// The command.
pub(crate) fn run(release: bool, target: Option<Target>) -> Result<()> {
    let workspace = Workspace::find()?;
    match target {
        None => binary(&workspace, release),
        Some(target) => {
            setup::kernel_toolchain()?;
            cross::build(&workspace, target).map(drop)
        }
    }
}

/// Builds the binary and says where it is.
pub(crate) fn binary(workspace: &Workspace, release: bool) -> Result<()> {
    setup::kernel_toolchain()?;
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package", "sip-xdp"]);
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    say(format!("binary: {}", workspace.binary(release).display()));
    Ok(())
}
