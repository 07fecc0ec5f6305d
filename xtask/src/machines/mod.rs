//! `cargo xtask machines`: real kernels of Debian and Ubuntu in virtual machines, with the filter
//! on common network cards, and packets from outside. All inputs are in the cache; everything
//! created is in a network namespace and a directory of its own, and ends with it.

mod apt;
mod archive;
mod arrange;
mod checks;
mod daemon;
mod doctor;
mod interfaces;
mod kept;
mod kernels;
mod manual;
mod outside;
mod packets;
mod qemu;
mod report;
mod rows;
mod setup;
mod tags;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;

use self::checks::Scope;
use self::interfaces::{ROWS, Row};
use self::kernels::Kernel;
use self::qemu::Accelerator;
pub(crate) use self::qemu::Architecture;
use self::report::Circumstances;
use self::rows::Run;
use self::setup::{Built, Files};
use crate::command::{self, is_root, say};
use crate::workspace::Workspace;

/// What can be asked for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Only these kernels, instead of 6.1, 6.8, 6.12 and the newest: 5.10, 5.15, 6.1, 6.5, 6.8,
    /// 6.12, 6.18, newest
    #[arg(long = "kernel", value_name = "KERNEL")]
    kernels: Vec<String>,
    /// Only these drivers: virtio_net, e1000e, igb, vmxnet3
    #[arg(long = "driver", value_name = "DRIVER")]
    drivers: Vec<String>,
    /// Only interfaces whose name contains this: `bond`, `bridge port`, `MTU`; `=NAME` for exactly
    /// this one
    #[arg(long = "interface", value_name = "TEXT")]
    interfaces: Vec<String>,
    /// Only these modes of `run`, instead of all three
    #[arg(long = "mode", value_enum, value_name = "MODE")]
    modes: Vec<Mode>,
    /// The machines' processor
    #[arg(long, value_enum, default_value_t = Architecture::Amd64)]
    arch: Architecture,
    /// Try this binary instead of a release build of this checkout
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Write everything that was found to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table into the manual's page about platforms, with the last result of each
    /// interface that is kept in target/machines
    #[arg(long)]
    docs: bool,
    /// Only what has not been tried yet with this binary and kernel, or was wrong then
    #[arg(long)]
    missing: bool,
    /// Fetch kernels again: there may be newer ones
    #[arg(long)]
    refresh: bool,
    /// Debian's kernels for clouds, which boot in half the time and have virtio_net alone
    #[arg(long)]
    cloud: bool,
    /// Say what each check found, as it happens
    #[arg(long, short)]
    verbose: bool,
    /// Fetch and build everything, and boot nothing
    #[arg(long)]
    prepare: bool,
    /// The agent, built already
    #[arg(long, hide = true, value_name = "FILE")]
    guest: Option<PathBuf>,
    /// The commit that `--binary` was built of, for the manual
    #[arg(long, value_name = "COMMIT")]
    commit: Option<String>,
    /// We are in a network namespace of our own already
    #[arg(long, hide = true)]
    inside: bool,
}

/// How `run` is told to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// By its own choice; everything that needs packets is tried in this mode
    Auto,
    /// In the driver
    Native,
    /// In the network stack
    Generic,
}

/// The command.
pub(crate) fn run(options: &Options) -> Result<()> {
    let kernels = options.kernels()?;
    let rows = options.rows()?;
    let built = Built { binary: options.binary.as_deref(), guest: options.guest.as_deref() };
    let files = setup::prepare(options.arch, built, &kernels, options.cloud, options.refresh)?;
    if options.prepare {
        say("everything is in place");
        return Ok(());
    }
    if !options.inside {
        return enter_namespace(&files, options.built_of().as_deref());
    }
    let since = Instant::now();
    let mut accelerator = Accelerator::first_choice(options.arch, &files.cache);
    let workspace = Workspace::find()?;
    let flavour = if options.cloud { "-cloud" } else { "" };
    let kept = workspace.target.join(format!("machines/{}{flavour}.json", options.arch.name()));
    let binary = stamp(&files.binary)?;
    let (mut tried, mut lost) = (Vec::new(), 0);
    for (kernel, prepared) in kernels.iter().copied().zip(&files.kernels) {
        let mut rows = rows.clone();
        if options.missing {
            let (had, modes) = (kept::all(&kept), options.modes());
            rows.retain(|row| {
                !kept::is_settled(&had, kernel.name, &prepared.release, row.name, &binary, &modes)
            });
        }
        say(format!(
            "kernel {} ({}), {} interfaces",
            prepared.release,
            kernel.platform,
            rows.len()
        ));
        if rows.is_empty() {
            continue;
        }
        let mut run = Run {
            options,
            files: &files,
            kept: &kept,
            binary: &binary,
            accelerator: &mut accelerator,
        };
        // The others are tried all the same.
        let one = match run.try_kernel(kernel, prepared, &rows) {
            Ok(one) => one,
            Err(error) => {
                say(format!("wrong: {} | {error:#}", prepared.release));
                lost += 1;
                continue;
            }
        };
        for line in one.faults() {
            say(format!("wrong: {line}"));
        }
        say(one.summary());
        tried.push(one);
    }
    println!("{}", report::table(&tried));
    for (interface, reason) in report::reasons(&tried) {
        println!("{interface}: {reason}");
    }
    if let Some(path) = &options.json {
        let json = report::json(&tried, &circumstances(options, &binary, accelerator)?);
        fs::write(path, serde_json::to_string_pretty(&json)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        say(format!("JSON: {}", path.display()));
    }
    if options.docs {
        let page = workspace.root.join(manual::PAGE);
        manual::write(&page, &kept::all(&kept), options.arch)?;
        say(format!("manual: {}", page.display()));
    }
    let faults: usize = lost + tried.iter().map(|tried| tried.faults().len()).sum::<usize>();
    let [passed, failed] = report::counts(&tried);
    let word = if faults == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered \
         out; finished in \
         {:.2}s",
        since.elapsed().as_secs_f64()
    );
    if faults > 0 {
        bail!("{faults} checks failed: the lines with `wrong:` say which");
    }
    Ok(())
}

impl Options {
    fn scope(&self) -> Scope {
        let all = [Mode::Auto, Mode::Native, Mode::Generic];
        Scope {
            modes: if self.modes.is_empty() { all.to_vec() } else { self.modes.clone() },
            verbose: self.verbose,
        }
    }

    /// The names of the modes.
    fn modes(&self) -> Vec<String> {
        let names = self
            .scope()
            .modes
            .into_iter()
            .filter_map(|mode| Some(mode.to_possible_value()?.get_name().to_owned()));
        names.collect()
    }

    /// The commit of the binary: as given with a binary, else that of this checkout.
    fn built_of(&self) -> Option<String> {
        if self.commit.is_some() || self.binary.is_some() {
            return self.commit.clone();
        }
        let root = Workspace::find().ok()?.root;
        let git = |arguments: &[&str]| {
            command::ask(Command::new("git").arg("-C").arg(&root).args(arguments))
        };
        let commit = git(&["rev-parse", "--short=10", "HEAD"])?;
        let sources =
            ["status", "--porcelain", "--", "Cargo.lock", "sip-xdp", "sip-xdp-common", EBPF];
        let is_changed = git(&sources).is_some_and(|changes| !changes.is_empty());
        Some(if is_changed { format!("{commit} with changes") } else { commit })
    }

    fn kernels(&self) -> Result<Vec<&'static Kernel>> {
        if self.kernels.is_empty() {
            return kernels::USUAL.iter().map(|name| Kernel::named(name)).collect();
        }
        self.kernels.iter().map(|name| Kernel::named(name)).collect()
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let wanted = |row: &&Row| {
            let driver =
                self.drivers.is_empty() || self.drivers.iter().any(|driver| driver == row.driver);
            let named = self.interfaces.is_empty()
                || self.interfaces.iter().any(|text| is_named(row.name, text));
            // Cards of the PC alone, and kernels for clouds, which have virtio alone.
            let exists =
                row.driver == "virtio_net" || (self.arch == Architecture::Amd64 && !self.cloud);
            driver && named && exists
        };
        let rows: Vec<_> = ROWS.iter().filter(wanted).copied().collect();
        if rows.is_empty() {
            let names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
            bail!("no interface is left; there are {}", names.join("; "));
        }
        Ok(rows)
    }
}

/// The kernel programs' package.
const EBPF: &str = "sip-xdp-ebpf";

/// What `cargo xtask test` tries of it: one of these kernels, with the card that most hosts have.
pub(crate) const TESTED: [&str; 2] = ["6.1", "6.12"];

/// The arguments for that.
pub(crate) fn test_arguments(kernel: &str, binary: &Path, guest: &Path) -> Vec<String> {
    let paths = [binary, guest].map(|path| path.display().to_string());
    let words =
        ["machines", "--cloud", "--interface", "=virtio_net", "--mode", "auto", "--kernel", kernel];
    let mut arguments: Vec<_> = words.map(str::to_owned).into();
    for (option, path) in ["--binary", "--guest"].into_iter().zip(paths) {
        arguments.extend([option.to_owned(), path]);
    }
    arguments
}

/// Whether an interface is meant by what stands behind `--interface`.
fn is_named(name: &str, text: &str) -> bool {
    text.strip_prefix('=').map_or_else(|| name.contains(text), |exact| name == exact)
}

/// Starts ourselves again in a network namespace of our own, where taps and traffic disturb nobody.
/// The binary is built by now, and nothing is fetched there.
fn enter_namespace(files: &Files, commit: Option<&str>) -> Result<()> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "unshare", "--net"]);
    if !is_root() {
        // Whoever may make user namespaces needs no root.
        command.arg("--map-root-user");
    }
    command.arg("--").arg(std::env::current_exe().context("xtask has no path")?);
    // What was asked for, without what is said below.
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--binary" | "--guest" | "--commit") => drop(arguments.next()),
            Some(text)
                if ["--binary=", "--guest=", "--commit="].iter().any(|at| text.starts_with(at)) => {
            }
            Some("--refresh") => {}
            _ => drop(command.arg(argument)),
        }
    }
    command.arg("--binary").arg(&files.binary).arg("--guest").arg(&files.guest).arg("--inside");
    command.args(commit.map(|commit| ["--commit", commit]).into_iter().flatten());
    let status = command.status().context("cannot run setpriv and unshare")?;
    // It has said what was wrong.
    std::process::exit(status.code().unwrap_or(1));
}

/// With what, how and when rows are tried now.
fn circumstances(
    options: &Options,
    binary: &str,
    accelerator: Accelerator,
) -> Result<Circumstances> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let date = command::ask(Command::new("date").args(["--utc", "+%Y-%m-%d"]))
        .context("cannot run date")?;
    let (accelerator, binary) = (accelerator.to_string(), binary.to_owned());
    let (commit, modes) = (options.commit.clone(), options.modes());
    Ok(Circumstances { date, time: now, accelerator, binary, commit, modes })
}

/// A file's hash (FNV-1a of 64 bits): whether a result is of the same binary, and no more is asked
/// of it.
fn stamp(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    Ok(format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)))
}
