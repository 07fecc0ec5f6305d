//! `cargo xtask test`: format, lints, then all tests concurrently, with a summary at the end.

use std::env;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{self, as_root, find, is_root, say};
use crate::runner::{self, Options};
use crate::suite::{self, Selection};
use crate::workspace::{KERNEL_PACKAGES, Workspace};
use crate::{packages, setup};

/// Time after which a test counts as hanging. The longest take two minutes on two idle cores, and
/// took five where others used these as well.
const LIMIT: Duration = Duration::from_secs(600);
/// The same of the long forms of tests.
const LONG_LIMIT: Duration = Duration::from_secs(12 * 3_600);
/// The variables that ask for those.
const LONG: [&str; 3] = ["SIP_XDP_CHURN", "SIP_XDP_LONG", "SIP_XDP_PROBES"];

/// What may be asked for.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only tests with one of these in their names; format and lints are left out
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only what needs neither root nor a minute: unit tests, feeds, the kernel object's shape
    #[arg(long)]
    fast: bool,
    /// Show what tests print while they run, one at a time
    #[arg(long)]
    nocapture: bool,
    /// How many at the same time [default: two for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
}

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let workspace = Workspace::find()?;
    let is_all = arguments.names.is_empty() && !arguments.fast;
    // All missing packages are reported before the long part.
    if !arguments.fast {
        if !is_root() && find("sudo").is_none() {
            bail!(
                "the kernel and end-to-end tests need root: run `cargo xtask test` as root, \
                 install \
                 sudo, or run `cargo xtask test --fast`, which needs no root"
            );
        }
        packages::install_test_tools()?;
    }
    if is_all {
        setup::checkers()?;
    }
    setup::kernel_toolchain()?;
    if is_all {
        check_format_and_lints(&workspace)?;
    } else {
        say("format and lints are left out: not all tests were asked for");
    }
    let selection = Selection { names: &arguments.names, root: !arguments.fast };
    let tests = suite::build(&workspace, selection)?;
    if tests.iter().any(|test| test.is_root) {
        // Asks for the password once, before several tests need it.
        command::run(&mut as_root("true")?)?;
    }
    let is_long = LONG.iter().any(|name| env::var_os(name).is_some());
    let options = Options {
        jobs: arguments.jobs.map_or(2 * runner::processors(), usize::from),
        limit: if is_long { LONG_LIMIT } else { LIMIT },
        is_live: arguments.nocapture,
    };
    runner::run(tests, options)
}

fn check_format_and_lints(workspace: &Workspace) -> Result<()> {
    say("format: cargo fmt --all --check");
    command::run(workspace.cargo().args(["fmt", "--all", "--check"]))
        .context("run `cargo fmt --all`")?;
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
    // Like their build, they need unstable features; the profile's panic strategy is what a
    // `no_std` binary needs.
    kernel.env("RUSTC_BOOTSTRAP", "1").args(["clippy", "--profile", "bpf"]);
    for package in KERNEL_PACKAGES {
        kernel.args(["--package", package]);
    }
    kernel.arg("--target-dir").arg(target).args(["--", "-D", "warnings"]);
    // A feature that only the BPF target needs is not used here; Rust says so since 1.96, and 1.95
    // does not know that lint.
    command::run(kernel.args(["-A", "unknown_lints", "-A", "unused_features"]))
}
