//! `cargo xtask fuzz`: builds the fuzz targets with coverage for libFuzzer, and runs them.
//!
//! No special toolchain is needed: any rustc can run LLVM's pass. Sanitizers are left out, since
//! they need nightly, and since the fuzzed code has next to no `unsafe`: overflow checks, debug
//! assertions and the targets' own checks suffice.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::command::{self, say};
use crate::workspace::Workspace;
use crate::{packages, setup};

/// The targets, which are the modules of their package.
pub(crate) const TARGETS: [&str; 5] = ["message", "stream", "egress", "ingress", "detector"];

const PACKAGE: &str = "sip-xdp-fuzz";

/// The profile of the root manifest.
const PROFILE: &str = "fuzz";

/// The longest input: a packet.
const MAX_LENGTH: u32 = 2_048;

/// Seconds after which an input counts as a hang.
const TIMEOUT: u32 = 10;

/// Coverage of edges, counted, with the places in the code and with the operands of comparisons.
const FLAGS: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
];

/// The command. No targets are all of them.
pub(crate) fn run(targets: &[String], minutes: u32) -> Result<()> {
    let workspace = Workspace::find()?;
    let targets: Vec<&str> = if targets.is_empty() {
        TARGETS.to_vec()
    } else {
        targets.iter().map(String::as_str).collect()
    };
    packages::install_fuzz_tools()?;
    setup::kernel_toolchain()?;
    compile(&workspace, &targets)?;
    let mut failed = Vec::new();
    for target in targets {
        let place = Place::new(&workspace, target);
        place.seed(&workspace)?;
        if !place.fuzz(minutes)? {
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        bail!("these targets failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Builds the targets, with a target directory of their own: everything in it has other flags.
fn compile(workspace: &Workspace, targets: &[&str]) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    // With a target named, build scripts and macros are compiled without the flags: nothing drives
    // them.
    cargo.args(["build", "--profile", PROFILE, "--package", PACKAGE, "--features", "linked"]);
    cargo.args(["--target", env!("SIP_XDP_HOST")]).arg("--target-dir").arg(workspace.fuzz_target());
    for target in targets {
        cargo.args(["--bin", target]);
    }
    command::run(&mut cargo).context("the fuzz targets do not compile")
}

/// Where one target's program is, and what belongs to it.
struct Place<'a> {
    target: &'a str,
    binary: PathBuf,
    corpus: PathBuf,
    findings: PathBuf,
    log: PathBuf,
}

impl<'a> Place<'a> {
    fn new(workspace: &Workspace, target: &'a str) -> Self {
        let root = workspace.fuzz_target();
        Self {
            target,
            binary: root.join(env!("SIP_XDP_HOST")).join(PROFILE).join(target),
            corpus: root.join("corpus").join(target),
            findings: root.join("findings").join(target),
            log: root.join(format!("{target}.log")),
        }
    }

    /// Creates the seed inputs, unless there are any from earlier runs.
    fn seed(&self, workspace: &Workspace) -> Result<()> {
        fs::create_dir_all(&self.findings)
            .with_context(|| format!("cannot make {}", self.findings.display()))?;
        if fs::read_dir(&self.corpus).is_ok_and(|mut inputs| inputs.next().is_some()) {
            return Ok(());
        }
        // Without the flags: they would want libFuzzer in this program too.
        let mut seeds = workspace.cargo();
        seeds
            .args(["run", "--quiet", "--package", PACKAGE, "--bin", "seeds", "--", self.target])
            .arg(&self.corpus);
        let count = command::ask(seeds.stderr(Stdio::inherit()))
            .context("the first inputs cannot be made")?;
        say(format!("{}: {count} inputs to begin with, in {}", self.target, self.corpus.display()));
        Ok(())
    }

    /// Runs the target. Returns whether it found nothing.
    fn fuzz(&self, minutes: u32) -> Result<bool> {
        say(format!("{}: fuzzing for {minutes} min, log in {}", self.target, self.log.display()));
        let log = File::create(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let status = Command::new(&self.binary)
            .arg(&self.corpus)
            .arg(format!("-max_total_time={}", minutes * 60))
            .arg(format!("-max_len={MAX_LENGTH}"))
            .arg(format!("-timeout={TIMEOUT}"))
            // Findings are named after their contents, behind this.
            .arg(format!("-artifact_prefix={}/", self.findings.display()))
            .arg("-print_final_stats=1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .status()
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        let log =
            fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let summary = Summary::read(&String::from_utf8_lossy(&log));
        println!("{}: {}", self.target, summary.text());
        if !status.success() {
            self.tell(&summary, status);
        }
        Ok(status.success())
    }

    /// Reports findings, and how to reproduce them.
    fn tell(&self, summary: &Summary, status: ExitStatus) {
        if let Some(said) = &summary.said {
            println!("{}: {said}", self.target);
        }
        match &summary.finding {
            Some(input) => {
                println!("{}: failed on {}", self.target, Path::new(input).display());
                println!("reproduce it with: {} {input}", self.binary.display());
            }
            None => println!(
                "{}: ended with {status}, its log says why: {}",
                self.target,
                self.log.display()
            ),
        }
    }
}

/// The output of libFuzzer.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    runs: u64,
    /// Edges that were reached.
    coverage: u64,
    /// Inputs that reach what no other does.
    corpus: u64,
    per_second: u64,
    /// The input that the target failed on.
    finding: Option<String>,
    /// The target's message about it.
    said: Option<String>,
}

impl Summary {
    /// From a log.
    fn read(log: &str) -> Self {
        let mut summary = Self::default();
        let number = |text: &str| text.split('/').next().unwrap_or_default().parse().ok();
        let mut lines = log.lines();
        while let Some(line) = lines.next() {
            let words: Vec<&str> = line.split_whitespace().collect();
            // "#4096 pulse cov: 312 ft: 918 corp: 85/9Kb ..."
            if line.starts_with('#') {
                for pair in words.windows(2) {
                    match pair {
                        ["cov:", value] => {
                            summary.coverage = number(value).unwrap_or(summary.coverage)
                        }
                        ["corp:", value] => {
                            summary.corpus = number(value).unwrap_or(summary.corpus)
                        }
                        _ => {}
                    }
                }
            }
            let last = words.last().copied().unwrap_or_default();
            if line.starts_with("stat::number_of_executed_units:") {
                summary.runs = number(last).unwrap_or_default();
            } else if line.starts_with("stat::average_exec_per_sec:") {
                summary.per_second = number(last).unwrap_or_default();
            } else if let Some((_, path)) = line.split_once("Test unit written to ") {
                summary.finding = Some(path.to_owned());
            } else if line.starts_with("thread ") && line.contains("panicked at") {
                summary.said = lines.next().map(str::to_owned);
            }
        }
        summary
    }

    fn text(&self) -> String {
        let Self { runs, coverage, corpus, per_second, .. } = self;
        format!(
            "{runs} runs, {per_second} a second, {coverage} edges reached, {corpus} inputs in the \
             corpus"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_libfuzzer_says() {
        let log = "INFO: seed corpus: files: 3\n#4\tINITED cov: 300 ft: 400 corp: 3/99b exec/s: 0 \
                   rss: 40Mb\n\
                   #4096\tpulse  cov: 312 ft: 918 corp: 85/9Kb lim: 2048 exec/s: 2048 rss: 44Mb\n\
                   thread '<unnamed>' (7) panicked at tests/fuzz/src/message.rs:1:5:\nmore \
                   credentials\n\
                   artifact_prefix='x/'; Test unit written to \
                   x/crash-1f\nstat::number_of_executed_units: 5000\n\
                   stat::average_exec_per_sec:     2500\n";
        let summary = Summary::read(log);
        let (finding, said) = (Some("x/crash-1f".to_owned()), Some("more credentials".to_owned()));
        assert_eq!(
            summary,
            Summary { runs: 5_000, coverage: 312, corpus: 85, per_second: 2_500, finding, said }
        );
    }
}
