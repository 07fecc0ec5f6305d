//! A virtual machine: booted with our initial file system, controlled through its agent, ended by
//! its process id.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::interfaces::Card;
use crate::command::find;

/// How long a boot may take under emulation; one in some thirty hangs for ever. Time in which the
/// emulator waits for a processor counts for none of these limits.
const BOOT: Duration = Duration::from_secs(120);

/// How long it may take with KVM; where KVM exists but boots nothing, this is what it costs to see
/// that.
const BOOT_KVM: Duration = Duration::from_secs(25);

/// What is added to the agent's own deadlines before it counts as dead.
const GRACE: Duration = Duration::from_secs(30);

/// How long a program in it may run, in seconds: `doctor` has both programs verified, which takes
/// five seconds on an idle host under emulation, and a minute on one with other work.
const PROGRAM: u64 = 300;

/// How often it is looked whether a limit has passed.
const LOOK: Duration = Duration::from_secs(1);

/// How many times a limit may pass while the emulator waits for a processor.
const MOST_STARVED: u32 = 8;

/// What the agent's serial port is called.
const PORT: &str = "sip-xdp";

/// The processor architecture of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Architecture {
    /// x86-64
    Amd64,
    /// 64-bit ARM
    Arm64,
}

impl Architecture {
    /// Debian's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The emulator.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// Whether this machine has the same.
    pub(crate) fn is_native(self) -> bool {
        match self {
            Self::Amd64 => cfg!(target_arch = "x86_64"),
            Self::Arm64 => cfg!(target_arch = "aarch64"),
        }
    }

    fn console(self) -> &'static str {
        match self {
            Self::Amd64 => "ttyS0",
            Self::Arm64 => "ttyAMA0",
        }
    }

    /// What its kernel is told beside that. Without the first, x86 kernels panic when ten ticks of
    /// the timer take too long ("IO-APIC + timer doesn't work", arch/x86/kernel/apic/io_apic.c), as
    /// they do on a busy host.
    fn parameters(self) -> &'static str {
        match self {
            Self::Amd64 => " no_timer_check",
            Self::Arm64 => "",
        }
    }
}

/// How a machine's instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    Emulation,
}

impl Accelerator {
    /// KVM where its device can be opened, the architecture is ours, and it is not known to boot
    /// nothing.
    pub(crate) fn first_choice(architecture: Architecture, cache: &Path) -> Self {
        let kvm = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        let failed = fs::read_to_string(cache.join(NO_KVM)).is_ok_and(|id| Ok(id) == boot_id());
        if kvm && architecture.is_native() && !failed { Self::Kvm } else { Self::Emulation }
    }
}

/// Where it is noted that KVM boots nothing, with the identity of the host's own boot: another
/// kernel may do better.
const NO_KVM: &str = "no-kvm";

/// Notes it.
pub(crate) fn remember_no_kvm(cache: &Path) -> Result<()> {
    fs::write(cache.join(NO_KVM), boot_id().map_err(anyhow::Error::msg)?)
        .context("cannot write to the cache")
}

fn boot_id() -> Result<String, String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(|error| error.to_string())
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Emulation => "emulation (TCG)",
        })
    }
}

/// What is booted.
pub(crate) struct Boot<'a> {
    pub(crate) architecture: Architecture,
    pub(crate) accelerator: Accelerator,
    pub(crate) image: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) cards: &'a [Card],
    /// Where sockets and the console's log are.
    pub(crate) directory: &'a Path,
}

/// A running machine. Dropping it ends it.
pub(crate) struct Machine {
    process: Child,
    console: PathBuf,
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    /// What the agent said of itself: the kernel's release, and the seconds since it started.
    pub(crate) release: String,
    /// Seconds from the start of the emulator until the agent answered.
    pub(crate) seconds: f64,
}

impl Machine {
    /// Boots and waits for the agent.
    pub(crate) fn boot(boot: &Boot<'_>) -> Result<Self> {
        let console = boot.directory.join("console.log");
        let socket = boot.directory.join("agent.sock");
        let _ = fs::remove_file(&socket);
        let mut command = command(boot, &console, &socket)?;
        let errors = File::create(boot.directory.join("qemu.log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let since = Instant::now();
        let limit = match boot.accelerator {
            Accelerator::Kvm => BOOT_KVM,
            Accelerator::Emulation => BOOT,
        };
        let mut process = command
            .spawn()
            .with_context(|| format!("cannot run {}", boot.architecture.program()))?;
        let stream = match connect(&mut process, &socket, since + limit) {
            Ok(stream) => stream,
            Err(error) => {
                end(&mut process);
                let said = fs::read_to_string(boot.directory.join("qemu.log")).unwrap_or_default();
                return Err(error.context(said.trim().to_owned()));
            }
        };
        let reader = BufReader::new(stream.try_clone()?);
        let mut machine =
            Self { process, console, writer: stream, reader, release: String::new(), seconds: 0.0 };
        let hello = machine.read(limit).with_context(|| {
            format!(
                "no agent answers after {} s; the console ends with: {}",
                limit.as_secs(),
                machine.console_tail()
            )
        })?;
        machine.release = hello["release"].as_str().unwrap_or_default().to_owned();
        machine.seconds = since.elapsed().as_secs_f64();
        Ok(machine)
    }

    fn read(&mut self, limit: Duration) -> Result<Value> {
        self.writer.set_read_timeout(Some(LOOK))?;
        let (since, starved_then) = (Instant::now(), starved(self.process.id()));
        let mut line = Vec::new();
        loop {
            match self.reader.read_until(b'\n', &mut line) {
                Ok(0) => bail!("the machine has ended"),
                Ok(_) => break,
                // Nothing yet; what came of the line is kept.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let lost = starved(self.process.id()).saturating_sub(starved_then);
                    if since.elapsed() > limit + lost.min(limit * MOST_STARVED) {
                        bail!("the agent is silent");
                    }
                }
                Err(error) => return Err(error).context("the agent is silent"),
            }
        }
        let line = String::from_utf8_lossy(&line);
        serde_json::from_str(&line).with_context(|| format!("the agent says {line:?}"))
    }

    /// Asks the agent for one thing.
    pub(crate) fn ask(&mut self, request: &Value) -> Result<Value> {
        self.writer
            .write_all(format!("{request}\n").as_bytes())
            .context("the machine has ended")?;
        let limit = Duration::from_secs_f64(request["timeout"].as_f64().unwrap_or(30.0)) + GRACE;
        let answer = self.read(limit).map_err(|error| {
            error
                .context(Dead)
                .context(format!("{request}; the console ends with: {}", self.console_tail()))
        })?;
        match answer["error"].as_str() {
            Some(error) => bail!("{error}"),
            None => Ok(answer),
        }
    }

    /// Runs a program there, and returns its exit code and what it printed.
    pub(crate) fn run(&mut self, argv: &[&str]) -> Result<Ran> {
        let answer = self.ask(&json!({"do": "run", "argv": argv, "timeout": PROGRAM}))?;
        Ok(Ran {
            code: answer["code"].as_i64(),
            stdout: answer["stdout"].as_str().unwrap_or_default().to_owned(),
            stderr: answer["stderr"].as_str().unwrap_or_default().to_owned(),
        })
    }

    /// Runs a line of words there; an error if the program fails.
    pub(crate) fn must(&mut self, line: &str) -> Result<String> {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let ran = self.run(&words)?;
        if ran.code != Some(0) {
            bail!("`{line}` failed in the machine: {}", ran.stderr.trim());
        }
        Ok(ran.stdout)
    }

    /// The end of what the kernel printed.
    pub(crate) fn console_tail(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(1500)..]).into_owned();
        text.lines()
            .rev()
            .take(6)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join(" | ")
    }

    /// Warnings with a stack that the kernel printed.
    pub(crate) fn kernel_warnings(&self) -> Vec<String> {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let bad = |line: &&str| {
            ["WARNING:", "BUG:", "Oops:", "Kernel panic"].iter().any(|mark| line.contains(mark))
        };
        text.lines().filter(bad).map(|line| line.trim().to_owned()).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// The machine itself no longer answers: what was asked may be tried again on a new one.
#[derive(Debug)]
pub(crate) struct Dead;

impl std::fmt::Display for Dead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the machine no longer answers")
    }
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i64>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// What it printed, as JSON.
    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("no JSON: {} {}", self.stdout.trim(), self.stderr.trim()))
    }
}

/// How long the threads of a process have waited for a processor: the one that waited longest
/// (`schedstat` of proc(5), the second number, in nanoseconds).
fn starved(process: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let waited = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse().ok()
    });
    Duration::from_nanos(waited.max().unwrap_or(0))
}

fn end(process: &mut Child) {
    // It may have ended by itself.
    let _ = process.kill();
    let _ = process.wait();
}

/// Connects to the agent's socket, once the emulator has made it.
fn connect(process: &mut Child, socket: &Path, deadline: Instant) -> Result<UnixStream> {
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Ok(stream);
        }
        if let Some(status) = process.try_wait()? {
            bail!("the emulator ended ({status})");
        }
        if Instant::now() >= deadline {
            bail!("the emulator made no socket");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn command(boot: &Boot<'_>, console: &Path, socket: &Path) -> Result<Command> {
    let program = boot.architecture.program();
    let path = find(program).with_context(|| format!("{program} is not installed"))?;
    // It ends with us, however we end.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(path);
    match boot.accelerator {
        Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Emulation => {
            command.args(["-accel", "tcg,thread=multi", "-cpu"]).arg(match boot.architecture {
                Architecture::Amd64 => "max",
                Architecture::Arm64 => "cortex-a72",
            })
        }
    };
    command.arg("-machine").arg(match boot.architecture {
        Architecture::Amd64 => "q35",
        Architecture::Arm64 => "virt",
    });
    command.args([
        "-smp",
        "2",
        "-m",
        "1800",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-no-user-config",
    ]);
    command.arg("-kernel").arg(boot.image).arg("-initrd").arg(boot.initrd);
    command.arg("-append").arg(format!(
        "console={} rdinit=/init panic=-1 net.ifnames=0 quiet loglevel=5 mitigations=off{}",
        boot.architecture.console(),
        boot.architecture.parameters()
    ));
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command
        .arg("-chardev")
        .arg(format!("socket,id=agent,path={},server=on,wait=off", socket.display()));
    command.args(["-device", "virtio-serial-pci,id=serial"]);
    command.arg("-device").arg(format!("virtserialport,bus=serial.0,chardev=agent,name={PORT}"));
    for card in boot.cards {
        command.arg("-netdev").arg(card.backend(boot.directory));
        command.arg("-device").arg(card.device());
    }
    Ok(command)
}
