//! The rpm package, made by rpmbuild from the files of the Debian package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::run_quietly;
use crate::workspace::Workspace;

/// What a distribution with rpm has, for a test in a root that has none of its packages.
const STAND_IN: &str = "Name: stand-in\nVersion: 1\nRelease: 1\nSummary: What any such system \
                        has\nLicense: MIT\n\
                        BuildArch: noarch\nProvides: /bin/sh\nProvides: \
                        systemd\n%description\nStand-in.\n%files\n";

/// Packs a directory of files.
pub(super) fn pack(workspace: &Workspace, tree: &Path, suffix: &str, to: &Path) -> Result<PathBuf> {
    let spec = workspace.root.join("sip-xdp/packaging/rpm/sip-xdp.spec");
    let definitions = [
        format!("release_version {}", env!("CARGO_PKG_VERSION")),
        format!("release_suffix {suffix}"),
        format!("tree {}", tree.display()),
    ];
    build(&spec, &definitions, to)
}

/// A package that provides what ours requires, for a test.
pub(super) fn stand_in(to: &Path) -> Result<PathBuf> {
    let spec = to.join("stand-in.spec");
    fs::write(&spec, STAND_IN)?;
    build(&spec, &[], to)
}

fn build(spec: &Path, definitions: &[String], to: &Path) -> Result<PathBuf> {
    let top = to.join("rpmbuild");
    let _ = fs::remove_dir_all(&top);
    let mut command = Command::new("rpmbuild");
    command
        .args(["-bb", "--target", "x86_64-linux", "--define"])
        .arg(format!("_topdir {}", top.display()));
    for definition in definitions.iter().filter(|definition| !definition.ends_with(' ')) {
        command.arg("--define").arg(definition);
    }
    run_quietly(command.arg(spec))?;
    let made = fs::read_dir(top.join("RPMS"))?
        .flatten()
        .find_map(|kind| fs::read_dir(kind.path()).ok()?.flatten().next())
        .context("rpmbuild left no package")?;
    let package = to.join(made.file_name());
    fs::rename(made.path(), &package)?;
    fs::remove_dir_all(&top)?;
    Ok(package)
}
