//! `cargo xtask demo`: builds what the demo needs and runs it; its exit status is ours.

use std::process::exit;

use anyhow::{Context, Result};

use crate::command::{self, as_root};
use crate::workspace::Workspace;
use crate::{build, packages};

/// The command.
pub(crate) fn run() -> Result<()> {
    let workspace = Workspace::find()?;
    packages::install_demo_tools()?;
    build::binary(&workspace, false)?;
    command::run(workspace.cargo().args(["build", "--package", "sip-xdp-demo"]))?;
    let demo = workspace.target.join("debug/demo");
    let demo = demo.to_str().context("the target directory's name is not valid UTF-8")?;
    let status = as_root("env")?
        .arg(format!("SIP_XDP_BIN={}", workspace.binary(false).display()))
        .arg(demo)
        .status()
        .context("cannot run the demo")?;
    if status.success() {
        return Ok(());
    }
    // The demonstration has printed the failed checks.
    exit(status.code().unwrap_or(1));
}
