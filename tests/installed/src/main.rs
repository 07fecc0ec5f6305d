//! The package in a clean Debian: installed, run by systemd, used, upgraded under traffic, removed,
//! purged; and a newcomer who follows the README block by block.
//!
//! Everything happens in namespaces that this program creates. It exits with 0 only if everything
//! passed.

mod engine;
mod newcomer;
mod others;
mod package;
mod server;
mod service;
mod start;
mod workshop;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand};
use sip_xdp_tests::require_root;
use sip_xdp_tests::supervise::{Aftermath, is_worker, supervise};

/// What to try, and where.
#[derive(Debug, Parser)]
struct Arguments {
    /// A clean Debian, as a tar archive
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// Where the README is
    #[arg(long, value_name = "DIR")]
    checkout: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A package that was made before, and what the README says of the machine where it is to run
    Package {
        /// The package
        #[arg(long, value_name = "FILE")]
        package: PathBuf,
        /// The same as a later version
        #[arg(long, value_name = "FILE")]
        next: PathBuf,
    },
    /// What is installed without apt: an rpm package, a tarball, a container image
    Others(others::Others),
    /// All that the README says, beginning with the sources
    Newcomer {
        /// The sources, as a tar archive
        #[arg(long, value_name = "FILE")]
        sources: PathBuf,
        /// Leave out what takes an hour: what contributors execute
        #[arg(long)]
        quick: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = require_root().and_then(|()| if is_worker() { work(&arguments) } else { watch() });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("  FAILED {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(arguments: &Arguments) -> Result<bool> {
    let Arguments { root, checkout, what } = arguments;
    match what {
        What::Package { package, next } => {
            println!("The package in a clean Debian:");
            package::run(root, package, next)?;
            println!("A newcomer with the package and the README:");
            newcomer::with_package(root, checkout, package)?;
        }
        What::Others(others) => {
            println!("What is installed without apt:");
            others::run(root, checkout, others)?;
        }
        What::Newcomer { sources, quick } => {
            println!("A newcomer with the sources and the README:");
            newcomer::with_sources(root, checkout, sources, *quick)?;
        }
    }
    Ok(true)
}

/// Runs the work in a child, and cleans up even if that is killed.
fn watch() -> Result<bool> {
    let start = Instant::now();
    let Aftermath { status, remains } = supervise()?;
    if !remains.is_empty() {
        println!("  FAILED left behind, and removed now: {}", remains.join(", "));
    }
    let all_held = status.success() && remains.is_empty();
    println!(
        "{} ({:.0?})",
        if all_held { "All of it held." } else { "Not all of it held." },
        start.elapsed()
    );
    Ok(all_held)
}

/// Prints a passed check.
fn held(what: impl AsRef<str>) {
    println!("  ok     {}", what.as_ref());
}
