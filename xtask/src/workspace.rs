//! Where this workspace and its build output are.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{self, ask};

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
        let metadata =
            ask(Command::new(&cargo).current_dir(&root).args(["metadata", "--format-version=1", "--no-deps"]))
                .context("`cargo metadata` failed: run it in the workspace to see why")?;
        let metadata: serde_json::Value =
            serde_json::from_str(&metadata).context("`cargo metadata` printed no JSON")?;
        let target =
            metadata["target_directory"].as_str().context("`cargo metadata` names no target directory")?.into();
        Ok(Self { root, target, cargo })
    }

    /// The target directory of the kernel programs' own toolchain.
    pub(crate) fn kernel_target(&self) -> PathBuf {
        self.target.join("bpf")
    }

    /// Where the fuzz targets are built, with flags of their own, and what they find.
    pub(crate) fn fuzz_target(&self) -> PathBuf {
        self.target.join("fuzz")
    }

    /// The compiled kernel programs.
    pub(crate) fn object(&self) -> PathBuf {
        self.kernel_target().join("bpfel-unknown-none/bpf/sip-xdp-ebpf")
    }

    /// The same of the tests.
    pub(crate) fn tests_object(&self) -> PathBuf {
        self.object().with_file_name("sip-xdp-tests-ebpf")
    }

    /// The `sip-xdp` binary.
    pub(crate) fn binary(&self, release: bool) -> PathBuf {
        self.target.join(if release { "release" } else { "debug" }).join("sip-xdp")
    }

    /// The contributor's own cargo, told where the kernel objects are when they are not at their usual place.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        if self.target != self.root.join("target") {
            command.env("SIP_XDP_OBJECT", self.object()).env("SIP_XDP_TESTS_OBJECT", self.tests_object());
        }
        command
    }
}
