//! The test runner: tests run concurrently, each in its own process, so that a crash or hang
//! affects only its own result, and process-wide state (signals, working directory, environment)
//! belongs to one test.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use crate::command::{as_root, say};

/// How long a process may take to end after it was asked to, before it is killed.
const GRACE_SECONDS: u32 = 10;
/// The status of timeout(1) when it ended what it ran.
const TIMED_OUT: i32 = 124;
/// How many of a failed test's last lines are repeated at the end.
const REPEATED_LINES: usize = 20;

/// Something to run: one test, or a program that runs several and says so as the standard test
/// runner does.
#[derive(Debug)]
pub(crate) struct Test {
    /// Its name, as it is printed.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// Its working directory.
    pub(crate) directory: PathBuf,
    /// Variables of its environment.
    pub(crate) environment: Vec<(&'static str, PathBuf)>,
    /// Whether it runs several tests and says how many.
    pub(crate) is_program: bool,
    /// Whether it runs as root.
    pub(crate) is_root: bool,
    /// Whether nothing runs beside it, because it measures time or load.
    pub(crate) is_alone: bool,
}

/// How to run them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// How many at the same time.
    pub(crate) jobs: usize,
    /// After which a test is ended and has failed.
    pub(crate) limit: Duration,
    /// Whether each test writes to our own output while it runs; one at a time then.
    pub(crate) is_live: bool,
}

/// The results.
#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
    /// Names and output.
    failures: Vec<(String, String)>,
    /// What was run, and how long it took.
    took: Vec<(Duration, String)>,
}

/// Runs them all, with a summary as the last line; fails when one of them did.
pub(crate) fn run(tests: Vec<Test>, options: Options) -> Result<()> {
    let start = Instant::now();
    let (alone, beside): (Vec<_>, Vec<_>) = tests.into_iter().partition(|test| test.is_alone);
    let tally = Mutex::new(Tally::default());
    let jobs = if options.is_live { 1 } else { options.jobs.max(1) };
    say(format!("{} tests and test programs, {jobs} at the same time", beside.len()));
    run_group(beside, jobs, options, &tally)?;
    if !alone.is_empty() {
        say(format!("{} tests that measure time or load, one after the other", alone.len()));
        run_group(alone, 1, options, &tally)?;
    }
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failed = tally.failed;
    print!("{}", tally.text(start.elapsed()));
    if failed > 0 {
        bail!("{failed} tests failed");
    }
    Ok(())
}

fn run_group(tests: Vec<Test>, jobs: usize, options: Options, tally: &Mutex<Tally>) -> Result<()> {
    let queue = Mutex::new(VecDeque::from(tests));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || -> Result<()> {
        while let Some(test) = next() {
            run_one(&test, options, tally).with_context(|| format!("cannot run {}", test.name))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread that ran tests panicked"),
        })
    })
}

fn run_one(test: &Test, options: Options, tally: &Mutex<Tally>) -> Result<()> {
    let start = Instant::now();
    let file = NamedTempFile::new().context("cannot make a temporary file")?;
    let mut command = test.command(options.limit)?;
    if options.is_live {
        println!("test {}", test.name);
    } else {
        // One file description, so that both write behind what is there.
        let output = file.reopen()?;
        command.stdout(output.try_clone()?).stderr(output);
    }
    let status = command.status()?;
    let mut output = Vec::new();
    file.reopen()?.read_to_end(&mut output)?;
    let mut output = String::from_utf8_lossy(&output).into_owned();
    if status.code() == Some(TIMED_OUT) {
        let _ = writeln!(output, "It was ended because it took longer than {:?}.", options.limit);
    } else if !status.success() && !output.contains("test result: ") && !options.is_live {
        let _ = writeln!(output, "It ended with {status}.");
    }
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.add(test, &output, status.success(), start.elapsed(), options.is_live);
    Ok(())
}

impl Test {
    /// timeout(1) ends it with all its children, and setpriv(1) sees to it that it ends when we do.
    fn command(&self, limit: Duration) -> Result<Command> {
        let mut command = if self.is_root { as_root("setpriv")? } else { Command::new("setpriv") };
        command.args(["--pdeathsig", "TERM", "timeout", &format!("--kill-after={GRACE_SECONDS}")]);
        command.arg(limit.as_secs().to_string()).arg(&self.program).args(&self.arguments);
        command.current_dir(&self.directory).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }
}

impl Tally {
    fn add(&mut self, test: &Test, output: &str, succeeded: bool, took: Duration, is_live: bool) {
        let mut counted = Counts::default();
        output.lines().filter_map(Counts::parse).for_each(|counts| counted.add(counts));
        if succeeded && is_live {
            counted.passed = counted.passed.max(1);
        }
        // An abnormal end is a failure, whatever was printed before.
        counted.failed = counted.failed.max(u64::from(!succeeded));
        self.passed += counted.passed;
        self.failed += counted.failed;
        self.ignored += counted.ignored;
        // A test that is run alone filters out all others of its binary, which are run as well.
        self.filtered += if test.is_program { counted.filtered } else { 0 };
        let word = if succeeded { "ok" } else { "FAILED" };
        let shown: String = shown(output).map(|line| format!("    {line}\n")).collect();
        // Of many that passed only the names would be shown.
        let text = if succeeded && test.is_program { "" } else { shown.as_str() };
        println!("test {} ... {word} ({:.1} s)\n{text}", test.name, took.as_secs_f64());
        if !succeeded {
            self.failures.push((test.name.clone(), output.to_owned()));
        }
        self.took.push((took, test.name.clone()));
    }

    /// Slowest tests, failures, and the summary line of the standard test runner.
    fn text(mut self, took: Duration) -> String {
        let mut text = String::from("\n");
        self.took.sort_by(|one, other| other.cmp(one));
        for (time, name) in self.took.iter().take(5) {
            let _ = writeln!(text, "slowest: {:6.1} s {name}", time.as_secs_f64());
        }
        for (name, output) in &self.failures {
            let lines: Vec<_> = shown(output).collect();
            let skipped = lines.len().saturating_sub(REPEATED_LINES);
            let _ = writeln!(text, "\nfailed: {name}");
            if skipped > 0 {
                let _ = writeln!(text, "    ({skipped} lines before)");
            }
            for line in &lines[skipped..] {
                let _ = writeln!(text, "    {line}");
            }
        }
        let Self { passed, failed, ignored, filtered, .. } = self;
        let word = if failed == 0 { "ok" } else { "FAILED" };
        let _ = writeln!(
            text,
            "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored; 0 \
             measured; \
             {filtered} filtered out; finished in {:.2}s",
            took.as_secs_f64()
        );
        text
    }
}

/// The numbers of a summary line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
}

impl Counts {
    fn parse(line: &str) -> Option<Self> {
        let fields = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let count = |what: &str| {
            fields
                .split("; ")
                .find_map(|field| field.strip_suffix(what)?.trim().parse().ok())
                .unwrap_or(0)
        };
        Some(Self {
            passed: count("passed"),
            failed: count("failed"),
            ignored: count("ignored"),
            filtered: count("filtered out"),
        })
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.filtered += other.filtered;
    }
}

/// The lines that a test printed, without those of the runner around it and without backtraces,
/// which say less than what stands above them.
fn shown(output: &str) -> impl Iterator<Item = &str> {
    let mut is_trace = false;
    output.lines().filter(move |line| {
        let line = line.trim();
        is_trace = line.eq_ignore_ascii_case("stack backtrace:")
            || is_trace
                && (line.starts_with("at ") || line.split(':').next().is_some_and(is_number));
        let is_of_runner = line.starts_with("running ")
            || line.starts_with("test result: ")
            || (line.starts_with("test ")
                && (line.ends_with(" ... ok") || line.ends_with(" ... FAILED")))
            || line.starts_with("note: run with `RUST_BACKTRACE");
        !line.is_empty() && !is_trace && !is_of_runner
    })
}

fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok()
}

/// How many processors there are to run tests on.
pub(crate) fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str, script: &str) -> Test {
        Test {
            name: name.to_owned(),
            program: "sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            directory: "/".into(),
            environment: vec![],
            is_program: true,
            is_root: false,
            is_alone: false,
        }
    }

    fn outcome(tests: Vec<Test>) -> Tally {
        let tally = Mutex::default();
        let options = Options { jobs: 3, limit: Duration::from_secs(1), is_live: false };
        run_group(tests, options.jobs, options, &tally).unwrap();
        tally.into_inner().unwrap()
    }

    #[test]
    fn a_crash_and_a_hang_cost_their_own_results_only() {
        let passes = "echo; echo running 2 tests; echo 'test result: ok. 2 passed; 0 failed; 1 \
                      ignored; \
                      0 measured; 3 filtered out; finished in 0.00s'";
        let fails = "echo 'test result: FAILED. 4 passed; 2 failed; 0 ignored'; exit 101";
        let tally = outcome(vec![
            program("crashes", "echo last words; kill -SEGV $$"),
            program("hangs", "echo waiting; sleep 1000 & wait"),
            program("passes", passes),
            program("fails", fails),
        ]);
        assert_eq!((tally.passed, tally.failed, tally.ignored, tally.filtered), (6, 4, 1, 3));
        let text = tally.text(Duration::from_secs(90));
        assert!(
            text.contains("failed: crashes\n    last words\n    It ended with signal: 11"),
            "{text}"
        );
        assert!(text.contains("failed: hangs\n    waiting\n    It was ended because"), "{text}");
        assert!(
            text.ends_with(
                "test result: FAILED. 6 passed; 4 failed; 1 ignored; 0 measured; 3 filtered out; \
                 finished in 90.00s\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn only_the_end_of_much_output_is_repeated() {
        let tally = outcome(vec![program("long", "seq --format='line %g' 0 24; exit 1")]);
        let text = tally.text(Duration::ZERO);
        assert!(text.contains("failed: long\n    (6 lines before)\n    line 6\n"), "{text}");
    }

    #[test]
    fn output_around_a_test_is_not_shown() {
        let output = "\nrunning 1 test\nits own\nthread 'it' panicked at it.rs:1:1:\nleft: 1\n\
                      stack backtrace:\n   0: somewhere\n             at it.rs:1\nError: no \
                      answer\n\
                      test e2e::it ... ok\n\ntest result: ok. 1 passed; 0 failed\n\n";
        let lines: Vec<_> = shown(output).collect();
        assert_eq!(
            lines,
            ["its own", "thread 'it' panicked at it.rs:1:1:", "left: 1", "Error: no answer"]
        );
    }
}
