//! `cargo xtask bench`: installs the filters to compare with, builds what users run, and measures;
//! its exit status is ours.

use std::path::PathBuf;
use std::process::{Command, exit};

use anyhow::{Context, Result};

use crate::command::{self, as_root, ask};
use crate::workspace::Workspace;
use crate::{build, packages};

/// The command. No sections are all of them.
pub(crate) fn run(quick: bool, sections: &[char], output: Option<PathBuf>) -> Result<()> {
    let workspace = Workspace::find()?;
    let output = match output {
        Some(directory) => {
            std::path::absolute(directory).context("the output directory cannot be found")?
        }
        None => workspace.target.join("bench"),
    };
    packages::install_test_tools()?;
    packages::install_bench_tools()?;
    build::binary(&workspace, true)?;
    command::run(workspace.cargo().args(["build", "--release", "--package", "sip-xdp-bench"]))?;

    let mut bench = as_root("env")?;
    bench.arg(format!("SIP_XDP_BIN={}", workspace.binary(true).display()));
    bench.arg(workspace.target.join("release/bench")).arg("--output").arg(output);
    if quick {
        bench.arg("--quick");
    }
    for letter in sections {
        bench.arg(format!("--section={letter}"));
    }
    // Determined here, as the owner of the checkout.
    if let Some(commit) = commit(&workspace) {
        bench.arg(format!("--commit={commit}"));
    }
    let status = bench.status().context("cannot run the benchmark")?;
    if status.success() {
        return Ok(());
    }
    // The benchmark has printed the error.
    exit(status.code().unwrap_or(1));
}

/// What is measured, if git knows; with `-dirty` when it was changed since.
fn commit(workspace: &Workspace) -> Option<String> {
    let mut git = Command::new("git");
    git.current_dir(&workspace.root).args([
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]);
    ask(&mut git)
}
