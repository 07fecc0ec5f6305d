//! `cargo xtask build`: the kernel programs with their own toolchain, then the binary that embeds them.

use anyhow::{Context, Result};

use crate::command::{self, say};
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

/// The command.
pub(crate) fn run(release: bool) -> Result<()> {
    all(&Workspace::find()?, release)
}

/// Builds both and says where the binary is.
pub(crate) fn all(workspace: &Workspace, release: bool) -> Result<()> {
    kernel(workspace)?;
    host(workspace, release)
}

/// Compiles the kernel programs; cargo itself knows whether anything changed.
pub(crate) fn kernel(workspace: &Workspace) -> Result<()> {
    let toolchain = Toolchain::find_or_install()?;
    command::run(&mut toolchain.build(workspace)).context("the kernel programs do not compile")?;
    let size = std::fs::metadata(workspace.object())
        .with_context(|| format!("the build left no {}", workspace.object().display()))?
        .len();
    say(format!("kernel programs: {} ({} KiB)", workspace.object().display(), size / 1024));
    Ok(())
}

fn host(workspace: &Workspace, release: bool) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package", "sip-xdp"]);
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    say(format!("binary: {}", workspace.binary(release).display()));
    Ok(())
}
