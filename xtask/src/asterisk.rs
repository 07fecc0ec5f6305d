//! `cargo xtask asterisk`: a real Asterisk behind the filter, in a Debian of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::exit;

use anyhow::{Context, Result, bail};

use crate::command::{self, as_root, cache_directory, run_quietly, say};
use crate::workspace::Workspace;
use crate::{build, packages};

/// The only suite that has Asterisk 22.
const SUITE: &str = "sid";

/// The command.
pub(crate) fn run() -> Result<()> {
    let workspace = Workspace::find()?;
    packages::install_test_tools()?;
    let root = root()?;
    build::binary(&workspace, false)?;
    command::run(workspace.cargo().args(["build", "--package", "sip-xdp-asterisk"]))?;
    let program = workspace.target.join("debug/asterisk");
    let status = as_root("env")?
        .arg(format!("SIP_XDP_BIN={}", workspace.binary(false).display()))
        .arg(program)
        .arg(&root)
        .status()
        .context("cannot run it")?;
    if status.success() {
        return Ok(());
    }
    // It has said what did not hold.
    exit(status.code().unwrap_or(1));
}

/// A Debian with Asterisk in it, made once.
fn root() -> Result<PathBuf> {
    let root = cache_directory()?.join(format!("asterisk-{SUITE}"));
    if root.join("usr/sbin/asterisk").exists() {
        say(format!("Asterisk: {}", root.display()));
        return Ok(root);
    }
    if !packages::has_apt() {
        bail!("Asterisk is taken from Debian's {SUITE}: there is no apt here");
    }
    packages::install(&["debootstrap".to_owned()])?;
    say(format!("making a Debian ({SUITE}) with Asterisk from the mirrors, one to two minutes"));
    // What an interrupted run left is no beginning.
    run_quietly(as_root("rm")?.args(["-rf", "--one-file-system"]).arg(&root))?;
    fs::create_dir_all(root.parent().unwrap_or(Path::new("/")))
        .context("cannot make the cache directory")?;
    run_quietly(as_root("debootstrap")?.args(["--variant=minbase", SUITE]).arg(&root))
        .context("no Debian could be made; is there a way to a mirror?")?;
    let install = ["apt-get", "install", "--yes", "--no-install-recommends", "asterisk"];
    let mut chroot = as_root("chroot")?;
    run_quietly(chroot.arg(&root).args(["env", "DEBIAN_FRONTEND=noninteractive"]).args(install))
        .context("Asterisk could not be installed")?;
    Ok(root)
}
