//! A child process whose output is recorded line by line with times, and which never outlives its
//! owner.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait_until;

/// Time for a process to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(20);

/// One line of a process's output.
#[derive(Debug, Clone)]
pub struct Line {
    /// Time of reading.
    pub at: SystemTime,
    /// Whether it is from standard error.
    pub error: bool,
    /// The line without its terminator.
    pub text: String,
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<Line>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts a command and records its output. It gets SIGTERM if this process dies.
    pub fn spawn(name: impl Into<String>, command: &mut Command) -> Result<Self> {
        Self::spawn_and_copy(name.into(), command, None)
    }

    /// As [`Process::spawn`], with standard error also appended to a file, as a syslog would.
    pub fn spawn_with_log(
        name: impl Into<String>,
        command: &mut Command,
        log: &Path,
    ) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot open {}", log.display()))?;
        Self::spawn_and_copy(name.into(), command, Some(file))
    }

    fn spawn_and_copy(name: String, command: &mut Command, log: Option<File>) -> Result<Self> {
        die_with_parent(command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let lines = Arc::default();
        let readers = [
            child.stdout.take().map(|stream| read_lines(stream, false, &lines, None)),
            child.stderr.take().map(|stream| read_lines(stream, true, &lines, log)),
        ];
        Ok(Self { name, child, lines, readers: readers.into_iter().flatten().collect() })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Its output so far.
    pub fn lines(&self) -> Vec<Line> {
        lock(&self.lines).clone()
    }

    /// Number of lines of its output that satisfy the condition.
    pub fn count_lines(&self, condition: impl Fn(&Line) -> bool) -> usize {
        lock(&self.lines).iter().filter(|line| condition(line)).count()
    }

    /// Waits for a line of output, possibly an earlier one.
    pub fn wait_line(
        &mut self,
        timeout: Duration,
        condition: impl Fn(&Line) -> bool,
    ) -> Result<Line> {
        let start = Instant::now();
        loop {
            // Checked before the lines are read, so that the last lines of an ended process are not
            // missed.
            let ended = self.try_wait()?;
            if ended.is_some() {
                self.join_readers();
            }
            if let Some(line) = lock(&self.lines).iter().find(|line| condition(line)) {
                return Ok(line.clone());
            }
            if let Some(status) = ended {
                bail!("{} ended early ({status}); it said:\n{}", self.name, self.tail());
            }
            if start.elapsed() > timeout {
                bail!(
                    "{} did not say what was expected within {timeout:?}, but:\n{}",
                    self.name,
                    self.tail()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its exit status if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let mut status = None;
        wait_until(&format!("{} ends", self.name), timeout, || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        self.join_readers();
        status.with_context(|| format!("{} has no exit status", self.name))
    }

    /// Sends a signal, if it is still running.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Its id cannot be re-used before it is waited for.
        if self.try_wait()?.is_none() {
            kill(self.pid(), signal).with_context(|| format!("cannot signal {}", self.name))?;
        }
        Ok(())
    }

    /// Signals it, kills it after a while, and waits for its end.
    pub fn stop(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        if let Ok(status) = self.wait(GRACE) {
            return Ok(status);
        }
        self.signal(Signal::SIGKILL)?;
        self.wait(GRACE)
    }

    /// The end of its output, for messages.
    pub fn tail(&self) -> String {
        let lines = lock(&self.lines);
        let last = &lines[lines.len().saturating_sub(30)..];
        last.iter().map(|line| format!("    {}\n", line.text)).collect()
    }

    fn join_readers(&mut self) {
        // A grandchild may hold the pipe open: such a reader is abandoned.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            self.readers.retain(|reader| !reader.is_finished());
            if self.readers.is_empty() {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing more can be done after SIGKILL.
        let _ = self.stop(Signal::SIGTERM);
    }
}

/// Runs a command to its end and returns its output, whatever its status.
pub fn output(command: &mut Command) -> Result<Output> {
    die_with_parent(command);
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))
}

/// Runs a command that must succeed and returns its standard output.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        let arguments: Vec<_> =
            command.get_args().map(|argument| argument.to_string_lossy()).collect();
        bail!(
            "`{} {}` failed ({}): {}",
            command.get_program().to_string_lossy(),
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe and touches no
    // memory of ours.
    unsafe {
        command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGTERM)?));
    }
}

fn read_lines(
    stream: impl Read + Send + 'static,
    error: bool,
    lines: &Arc<Mutex<Vec<Line>>>,
    mut copy: Option<File>,
) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut buffer = Vec::new();
        // A read error counts as the end.
        while stream.read_until(b'\n', &mut buffer).is_ok_and(|length| length > 0) {
            // A failed copy is noticed by its reader.
            let _ = copy.as_mut().map(|file| file.write_all(&buffer));
            let text = String::from_utf8_lossy(&buffer).trim_end().to_owned();
            lock(&lines).push(Line { at: SystemTime::now(), error, text });
            buffer.clear();
        }
    })
}

fn lock(lines: &Mutex<Vec<Line>>) -> MutexGuard<'_, Vec<Line>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}
