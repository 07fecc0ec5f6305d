//! Everything a contributor runs: `cargo xtask setup`, `build`, `test`, `fuzz`, `demo`, `bench`,
//! `asterisk`, `package`, `machines`, `docs`, `newcomer`.
//!
//! Each command finds what it needs, installs what is missing, and says in one line each what it
//! found or did. A second run finds everything in place and changes nothing.

mod asterisk;
mod bench;
mod build;
mod check;
mod command;
mod cross;
mod debian;
mod demo;
mod docs;
mod fuzz;
mod machines;
mod newcomer;
mod package;
mod packages;
mod runner;
mod setup;
mod suite;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, tests, shows and packages sip-xdp"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building needs beside Rust; then plain `cargo build`, `test` and `clippy` work
    Setup,
    /// Build the kernel programs and the `sip-xdp` binary that embeds them
    Build {
        /// Build the binary that users run, with optimizations
        #[arg(long)]
        release: bool,
        /// Build the binary that users run for another machine: neither programs nor libraries of
        /// this one are in it
        #[arg(long)]
        target: Option<cross::Target>,
    },
    /// Run everything: format, lints, unit tests, kernel tests, end-to-end tests (the last two need
    /// root)
    Test(check::Arguments),
    /// Look for inputs that the parsers and the detector cannot stand, guided by what they reach
    Fuzz {
        /// Only these targets
        #[arg(value_name = "TARGET", value_parser = fuzz::TARGETS)]
        targets: Vec<String>,
        /// How long, for each target
        #[arg(
            long,
            value_name = "N",
            default_value_t = 1,
            value_parser = clap::value_parser!(u32).range(1..=10_080)
        )]
        minutes: u32,
    },
    /// Show an attacker being banned in the driver while a phone keeps registering (needs root)
    Demo,
    /// Try a real Asterisk 22 with phones, calls, carriers, an outage and attackers (needs root and
    /// the network)
    ///
    /// The first run makes a Debian with Asterisk in the cache directory, one to two minutes; the
    /// trial takes another one.
    Asterisk,
    /// Measure sip-xdp beside other filters, all in one run: about five minutes (needs root)
    Bench {
        /// One minute instead of five: fewer and shorter rounds
        #[arg(long)]
        quick: bool,
        /// Only these sections, by their letters
        #[arg(long, value_delimiter = ',', value_name = "LETTERS")]
        section: Vec<char>,
        /// Where tables, figures and plots are left [default: bench in the target directory]
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
    /// Make what users install: Debian packages (amd64, arm64), an rpm package, a tarball, a
    /// container image
    Package {
        /// Install or run each of them: in a clean Debian, in an empty root; and follow the README
        /// there (needs root)
        #[arg(long)]
        test: bool,
    },
    /// Try real kernels of Debian and Ubuntu in virtual machines, on the network cards that people
    /// have
    ///
    /// Each interface is tried with packets from outside: doctor, all modes, drops, limits, bans,
    /// registrations, TCP, adoption, upgrade, unload. A kernel takes some five minutes on two cores
    /// without KVM.
    Machines(machines::Options),
    /// Generate the manual's reference chapters from the code, build the manual, check its links
    Docs,
    /// Execute the README and the quick start from top to bottom in clean Debians, beginning with
    /// this checkout (needs root and the network)
    ///
    /// It takes about eighty minutes on two cores and 26 GB in /var/tmp, most of it for what stands
    /// under "Contributing", and is not part of `test`.
    Newcomer {
        /// Leave out what stands under "Contributing": some twenty minutes
        #[arg(long)]
        quick: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::run_all(),
        Task::Build { release, target } => build::run(release, target),
        Task::Test(arguments) => check::run(&arguments),
        Task::Fuzz { targets, minutes } => fuzz::run(&targets, minutes),
        Task::Demo => demo::run(),
        Task::Asterisk => asterisk::run(),
        Task::Bench { quick, section, output } => bench::run(quick, &section, output),
        Task::Package { test } => package::run(test),
        Task::Machines(options) => machines::run(&options),
        Task::Docs => docs::run_all(),
        Task::Newcomer { quick } => newcomer::run(quick),
    }
}
