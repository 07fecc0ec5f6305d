//! A clean Debian of its own: unpacked for one test, started with its own systemd, in a network namespace of the laboratory.
//!
//! Its processes, mounts and BPF file system are in namespaces that end with it, and what of /proc and /sys is the whole
//! machine's is read-only there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::namespace::{Namespace, unique_name};
use crate::process::{Process, output, succeed};
use crate::wait_until;

/// How long systemd may take to start everything.
const BOOT: Duration = Duration::from_secs(120);

/// Makes the directory that is its argument the root, with what systemd expects, and becomes systemd. Settings of the kernel
/// are read-only but for those of the network namespace, which are its own.
const START: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sys sys
mount -t bpf bpf sys/fs/bpf
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for node in full null random tty urandom zero; do cp -a "/dev/$node" dev/; done
ln -s /proc/self/fd dev/fd
mkdir dev/pts dev/shm old
pivot_root . old
umount -l old
rmdir old
exec env -i container=laboratory PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --show-status=no
"#;

/// A running one; dropping it ends everything in it.
#[derive(Debug)]
pub struct Machine<'a> {
    namespace: &'a Namespace,
    _unshare: Process,
    init: Pid,
    root: PathBuf,
}

impl<'a> Machine<'a> {
    /// Unpacks the root and starts it; returns when systemd says that everything runs.
    pub fn boot(archive: &Path, namespace: &'a Namespace, directory: &Path) -> Result<Self> {
        let root = directory.join(unique_name());
        fs::create_dir(&root).with_context(|| format!("cannot make {}", root.display()))?;
        succeed(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&root))?;
        fs::write(root.join("etc/hostname"), "laboratory\n")?;
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost laboratory\n::1 localhost\n")?;

        let mut command = namespace.command("unshare");
        command.args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child", "--"]);
        command.args(["sh", "-c", START, "sh"]).arg(&root);
        let mut unshare = Process::spawn("a clean Debian", &mut command)?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.pid());
        let mut init = None;
        wait_until("systemd starts", BOOT, || {
            if unshare.try_wait()?.is_some() {
                bail!("a clean Debian did not start:\n{}", unshare.tail());
            }
            let pid = fs::read_to_string(&children)?.split_whitespace().next().and_then(|pid| pid.parse().ok());
            init =
                pid.filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "systemd\n"));
            Ok(init.is_some())
        })?;
        let init = Pid::from_raw(init.context("systemd was just there")?);
        let machine = Self { namespace, _unshare: unshare, init, root };
        wait_until("systemd has started everything", BOOT, || {
            let state = machine.try_run("systemctl is-system-running")?;
            match String::from_utf8_lossy(&state.stdout).trim() {
                "running" => Ok(true),
                "degraded" => bail!("systemd could not start everything: {}", machine.run("systemctl --failed")?),
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
            bail!("`{script}` failed ({}): {}{}", output.status, text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// Copies a file to a path inside.
    pub fn copy(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.root.join(to.trim_start_matches('/'));
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display())).map(drop)
    }

    /// The main process of a service, by its number outside.
    pub fn main_process(&self, service: &str) -> Result<Pid> {
        let pid = self.run(&format!("systemctl show --property=MainPID --value {service}"))?;
        let inside = format!("\t{}", pid.trim());
        // Processes are in a namespace of their own; NSpid has their numbers from the outer one to the inner one.
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(outside) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
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
        // With the first process of their namespace all others end. It does not listen to anything softer.
        let _ = kill(self.init, Signal::SIGKILL);
    }
}
