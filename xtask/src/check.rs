//! `cargo xtask test`: format, lints, unit and doc tests, then what needs root, with the test runner's own summary last.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{self, find, is_root, say};
use crate::toolchain::{self, KERNEL_PACKAGES};
use crate::workspace::Workspace;
use crate::{build, failures, packages};

/// The package with the kernel and end-to-end tests.
const PRIVILEGED: &str = "sip-xdp-tests";

/// The command. With arguments only tests run, and they go to the test runner.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let workspace = Workspace::find()?;
    // Everything that is missing is said before the long part begins.
    let mut privileged = privileged_tests(&workspace)?;
    packages::install_test_tools()?;
    if arguments.is_empty() {
        toolchain::install_checkers()?;
    }
    build::all(&workspace, false)?;
    if arguments.is_empty() {
        say("format: cargo fmt --all --check");
        command::run(workspace.cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt --all`")?;
        say("lints: cargo clippy --all-targets -- -D warnings, of everything for this machine");
        let mut host = workspace.cargo();
        host.args(["clippy", "--all-targets", "--workspace"]);
        for package in KERNEL_PACKAGES {
            host.args(["--exclude", package]);
        }
        // The fuzz targets too, but without libFuzzer, which needs a C++ compiler.
        host.args(["--features", "sip-xdp-fuzz/libfuzzer", "--", "-D", "warnings"]);
        command::run(&mut host)?;
        say("lints of the kernel programs, read as if for this machine");
        let target = workspace.root.join("target/clippy-bpf");
        let mut kernel = workspace.cargo();
        // Like their build, they need unstable features; the profile's panic strategy is what a `no_std` binary needs.
        kernel.env("RUSTC_BOOTSTRAP", "1").args(["clippy", "--profile", "bpf"]);
        for package in KERNEL_PACKAGES {
            kernel.args(["--package", package]);
        }
        kernel.arg("--target-dir").arg(target).args(["--", "-D", "warnings"]);
        // A feature that only the BPF target needs is not used here; Rust says so since 1.96, and 1.95 does not know that lint.
        command::run(kernel.args(["-A", "unknown_lints", "-A", "unused_features"]))?;
    } else {
        say("format and lints are left out: arguments were given");
    }
    say("tests that need no root");
    let mut unprivileged = workspace.cargo();
    unprivileged.args(["test", "--no-fail-fast"]);
    for package in ["sip-xdp-common", "sip-xdp", "sip-xdp-fuzz", "xtask"] {
        unprivileged.args(["--package", package]);
    }
    failures::run(unprivileged.arg("--").args(arguments))?;
    say("kernel and end-to-end tests");
    failures::run(privileged.args(arguments))
}

/// The tests that load programs and make network namespaces: as they are when we are root, else through sudo.
fn privileged_tests(workspace: &Workspace) -> Result<Command> {
    let mut cargo = workspace.cargo();
    cargo.env("SIP_XDP_BIN", workspace.binary(false));
    if !is_root() {
        if find("sudo").is_none() {
            bail!("the kernel and end-to-end tests need root: run `cargo xtask test` as root, or install sudo");
        }
        cargo.env(runner_variable(), "sudo --preserve-env");
    }
    cargo.args(["test", "--no-fail-fast", "--package", PRIVILEGED, "--", "--test-threads=1", "--show-output"]);
    Ok(cargo)
}

/// The variable that makes cargo run test binaries through another program.
fn runner_variable() -> String {
    let target = env!("SIP_XDP_HOST").to_uppercase().replace('-', "_");
    format!("CARGO_TARGET_{target}_RUNNER")
}
