//! A clean Debian for one test, started with its own systemd, in a network namespace of the
//! laboratory.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::namespace::Namespace;
use crate::process::{Process, output};
use crate::root::Root;
use crate::wait_until;

/// Boot timeout.
const BOOT: Duration = Duration::from_secs(120);

/// A running machine; dropping it ends everything in it.
#[derive(Debug)]
pub struct Machine<'a> {
    namespace: &'a Namespace,
    _unshare: Process,
    init: Pid,
    root: Root,
}

impl<'a> Machine<'a> {
    /// Unpacks the root and boots it; returns when systemd reports that everything runs.
    pub fn boot(archive: &Path, namespace: &'a Namespace, directory: &Path) -> Result<Self> {
        let root = Root::unpack(archive, directory)?;
        let mut command = namespace.command("unshare");
        command.args(root.start(&["/lib/systemd/systemd", "--system", "--show-status=no"]));
        let mut unshare = Process::spawn("a clean Debian", &mut command)?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.pid());
        let mut init = None;
        wait_until("systemd starts", BOOT, || {
            if unshare.try_wait()?.is_some() {
                bail!("a clean Debian did not start:\n{}", unshare.tail());
            }
            let pid = fs::read_to_string(&children)?
                .split_whitespace()
                .next()
                .and_then(|pid| pid.parse().ok());
            init = pid.filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name == "systemd\n")
            });
            Ok(init.is_some())
        })?;
        let init = Pid::from_raw(init.context("systemd was just there")?);
        let machine = Self { namespace, _unshare: unshare, init, root };
        wait_until("systemd has started everything", BOOT, || {
            let state = machine.try_run("systemctl is-system-running")?;
            match String::from_utf8_lossy(&state.stdout).trim() {
                "running" => Ok(true),
                "degraded" => bail!(
                    "systemd could not start everything: {}",
                    machine.run("systemctl --failed")?
                ),
                _ => Ok(false),
            }
        })?;
        Ok(machine)
    }

    /// A command inside, as root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.namespace.command("nsenter");
        command.arg(format!("--target={}", self.init));
        command.args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--root", "--"]);
        command.args([
            "env",
            "-i",
            "--chdir=/root",
            "HOME=/root",
            "LANG=C.UTF-8",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]);
        command.args(["DEBIAN_FRONTEND=noninteractive", program]);
        command
    }

    /// Runs a shell script inside to its end.
    pub fn try_run(&self, script: &str) -> Result<Output> {
        output(self.command("sh").args(["-e", "-c", script]))
    }

    /// Runs a shell script that must succeed, and returns what it printed.
    pub fn run(&self, script: &str) -> Result<String> {
        let output = self.try_run(script)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!(
                "`{script}` failed ({}): {}{}",
                output.status,
                text(&output.stdout),
                text(&output.stderr)
            );
        }
        Ok(text(&output.stdout))
    }

    /// Copies a file to a path inside.
    pub fn copy(&self, from: &Path, to: &str) -> Result<()> {
        self.root.copy(from, to)
    }

    /// The main process of a service, by its outer process id.
    pub fn main_process(&self, service: &str) -> Result<Pid> {
        let pid = self.run(&format!("systemctl show --property=MainPID --value {service}"))?;
        let inside = format!("\t{}", pid.trim());
        // NSpid has a process's ids from the outer to the inner namespace.
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(outside) =
                entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let numbers =
                status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            if numbers.ends_with(&inside) && self.is_inside(outside) {
                return Ok(Pid::from_raw(outside));
            }
        }
        bail!("{service} does not run: its main process is {}", pid.trim())
    }

    fn is_inside(&self, pid: i32) -> bool {
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace(self.init.as_raw());
        ours.is_some() && namespace(pid) == ours
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // All processes end with the init of their namespace, which needs SIGKILL.
        let _ = kill(self.init, Signal::SIGKILL);
    }
}
