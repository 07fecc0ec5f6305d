//! Network namespaces that are removed with their owner.
//!
//! Names contain the id of the creating process, so that remains of killed runs can be
//! distinguished from those in use.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::succeed;

const PREFIX: &str = "sx-";
const DIRECTORY: &str = "/run/netns";
/// Parent of the pin directories of tests.
const PIN_PARENT: &str = "/sys/fs/bpf";

/// A unique name: `sx-<pid>-<n>`.
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A network namespace; dropping it ends its processes and deletes it with its interfaces.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates a namespace with its loopback interface up; `role` is shown by `ip netns`.
    pub fn new(role: &str) -> Result<Self> {
        let name = format!("{}-{role}", unique_name());
        succeed(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip(["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name for `ip -n`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` with these arguments on the namespace.
    pub fn ip<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        succeed(Command::new("ip").args(["-n", &self.name]).args(arguments))
    }

    /// A command that runs inside. `nsenter`, not `ip netns exec`, which remounts /sys and so hides
    /// the BPF file system.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a closure on a thread inside the namespace. Its sockets stay inside.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path())
            .with_context(|| format!("cannot open namespace {}", self.name))?;
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(file, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("cannot enter namespace {}", self.name))?;
                    action()
                })
                .join()
                .map_err(|_| anyhow!("a thread inside namespace {} panicked", self.name))?
        })
    }

    /// Sets a sysctl of the namespace, by its path below /proc/sys.
    pub fn sysctl(&self, parameter: &str, value: &str) -> Result<()> {
        // A thread sees the sysctls of its own namespace.
        self.enter(|| {
            fs::write(Path::new("/proc/sys").join(parameter), value)
                .with_context(|| format!("cannot set {parameter} to {value}"))
        })
    }

    fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = delete(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

/// Removes remains of ended runs: namespaces, pins, directories.
pub fn sweep() -> Result<()> {
    remove(|owner| !is_alive(owner))
}

/// Removes everything that this process created.
pub fn sweep_owner(owner: u32) -> Result<()> {
    remove(|pid| pid == owner)
}

/// A process's remains: namespaces, pin directories and file directories.
pub fn remains_of(owner: u32) -> Vec<String> {
    let directories =
        directories(|pid| pid == owner).into_iter().map(|path| path.display().to_string());
    namespaces(|pid| pid == owner).into_iter().chain(directories).collect()
}

fn remove(chosen: impl Fn(u32) -> bool) -> Result<()> {
    // Tests run concurrently, and each begins with this: another one may have removed it.
    for name in namespaces(&chosen) {
        match delete(&name) {
            Err(error) if Path::new(DIRECTORY).join(&name).exists() => return Err(error),
            _ => {}
        }
    }
    for path in directories(chosen) {
        // Unpinning the links detaches the programs.
        match fs::remove_dir_all(&path) {
            Err(error) if path.exists() => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a process is running; zombies are not.
fn is_alive(pid: u32) -> bool {
    // The state follows the name, which is in parentheses and may contain some itself
    // (proc_pid_stat(5)).
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X']))
    })
}

fn namespaces(chosen: impl Fn(u32) -> bool) -> Vec<String> {
    owned_entries(Path::new(DIRECTORY), chosen)
}

fn directories(chosen: impl Fn(u32) -> bool) -> Vec<PathBuf> {
    [PathBuf::from(PIN_PARENT), env::temp_dir()]
        .into_iter()
        .flat_map(|parent| {
            owned_entries(&parent, &chosen).into_iter().map(move |name| parent.join(name))
        })
        .collect()
}

fn owned_entries(directory: &Path, chosen: impl Fn(u32) -> bool) -> Vec<String> {
    // A missing directory is empty.
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| owner_of(name).is_some_and(&chosen))
        .collect()
}

fn owner_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn delete(name: &str) -> Result<()> {
    for pid in succeed(Command::new("ip").args(["netns", "pids", name]))?.split_whitespace() {
        if let Ok(pid) = pid.parse() {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    succeed(Command::new("ip").args(["netns", "delete", name])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        assert_eq!(owner_of("sx-4711-0-pbx"), Some(4711));
        assert_eq!(owner_of("sx-4711-3"), Some(4711));
        assert_eq!(owner_of("sx-pbx"), None);
        assert_eq!(owner_of("other-4711-0"), None);
        assert_eq!(owner_of(&unique_name()), Some(std::process::id()));
    }

    #[test]
    fn a_process_that_ended_is_not_alive_before_it_is_collected() {
        let mut child = Command::new("true").spawn().unwrap();
        let mut polls = 0;
        while is_alive(child.id()) && polls < 200 {
            thread::sleep(std::time::Duration::from_millis(10));
            polls += 1;
        }
        assert!(polls < 200 && is_alive(std::process::id()));
        child.wait().unwrap();
        assert!(!is_alive(child.id()));
    }
}
