//! `cargo xtask package`: a Debian package that needs no toolchain where it is installed.

use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{self, ask, cache_directory, clean, install_once, run_quietly, say};
use crate::workspace::Workspace;
use crate::{build, packages};

const CARGO_DEB: &str = "3.8.0";

/// The command.
pub(crate) fn run() -> Result<()> {
    let workspace = Workspace::find()?;
    // cargo-deb asks dpkg-shlibdeps for the libraries that the binary needs.
    if packages::has_apt() {
        packages::install(&["dpkg-dev".to_owned()])?;
    }
    let directory = cache_directory()?.join(format!("cargo-deb-{CARGO_DEB}"));
    let cargo_deb = directory.join("bin/cargo-deb");
    if ask(Command::new(&cargo_deb).arg("--version")).is_none() {
        say(format!("building cargo-deb {CARGO_DEB}, one to two minutes"));
        let _ = std::fs::remove_dir_all(&directory);
        install_once(&directory, |root| {
            run_quietly(
                clean(command::cargo())
                    .current_dir("/")
                    .args(["install", "cargo-deb", "--locked", "--version", CARGO_DEB, "--root"])
                    .arg(root),
            )
        })
        .context("cargo-deb cannot be built")?;
    }
    build::all(&workspace, true)?;
    // Not built again by cargo-deb: only we know where the kernel object is.
    command::run(Command::new(&cargo_deb).env("CARGO", command::cargo()).current_dir(&workspace.root).args([
        "--no-build",
        "--package",
        "sip-xdp",
    ]))?;
    Ok(())
}
