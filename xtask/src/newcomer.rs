//! `cargo xtask newcomer`: this checkout in a clean Debian, where the README is executed from its
//! first block to its last.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{self, run_quietly};
use crate::workspace::Workspace;
use crate::{debian, package, packages, setup};

/// The command.
pub(crate) fn run(quick: bool) -> Result<()> {
    let workspace = Workspace::find()?;
    packages::install_lab_tools()?;
    setup::kernel_toolchain()?;
    let root = debian::clean_root()?;
    let sources = pack_sources(&workspace)?;
    let mut arguments = vec!["newcomer".into(), "--sources".into(), sources.into()];
    arguments.extend(quick.then(|| "--quick".into()));
    package::try_installed(&workspace, &root, arguments)
}

/// Packs the files that git knows, as they are now: what somebody would get who cloned it.
fn pack_sources(workspace: &Workspace) -> Result<PathBuf> {
    let directory = workspace.target.join("newcomer");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let (names, archive) = (directory.join("files"), directory.join("sources.tar"));
    let file = File::create(&names).with_context(|| format!("cannot write {}", names.display()))?;
    command::run(
        Command::new("git").current_dir(&workspace.root).args(["ls-files", "-z"]).stdout(file),
    )?;
    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(&workspace.root).arg("--create").arg("--file").arg(&archive);
    run_quietly(tar.args(["--null", "--verbatim-files-from", "--files-from"]).arg(&names))?;
    Ok(archive)
}
