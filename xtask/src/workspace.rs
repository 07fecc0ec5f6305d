//! Where this workspace and its build output are.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{self, ask};

/// The packages of kernel programs, which compile for the BPF target only: the product's and those
/// of the tests.
pub(crate) const KERNEL_PACKAGES: [&str; 2] = ["sip-xdp-ebpf", "sip-xdp-tests-ebpf"];

/// The workspace as the contributor's cargo sees it.
pub(crate) struct Workspace {
    /// The directory of the root manifest.
    pub(crate) root: PathBuf,
    /// Where cargo puts what it builds.
    pub(crate) target: PathBuf,
    cargo: PathBuf,
}

impl Workspace {
    /// Asks cargo, which knows about every way to move the target directory.
    pub(crate) fn find() -> Result<Self> {
        let cargo = command::cargo();
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies inside the workspace")?
            .to_path_buf();
        let metadata = ask(Command::new(&cargo).current_dir(&root).args([
            "metadata",
            "--format-version=1",
            "--no-deps",
        ]))
        .context("`cargo metadata` failed: run it in the workspace to see why")?;
        let metadata: serde_json::Value =
            serde_json::from_str(&metadata).context("`cargo metadata` printed no JSON")?;
        let target = metadata["target_directory"]
            .as_str()
            .context("`cargo metadata` names no target directory")?
            .into();
        Ok(Self { root, target, cargo })
    }

    /// Where the fuzz targets are built, with flags of their own, and what they find.
    pub(crate) fn fuzz_target(&self) -> PathBuf {
        self.target.join("fuzz")
    }

    /// The `sip-xdp` binary.
    pub(crate) fn binary(&self, release: bool) -> PathBuf {
        self.target.join(if release { "release" } else { "debug" }).join("sip-xdp")
    }

    /// The contributor's own cargo.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        command
    }
}
