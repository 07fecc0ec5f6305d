//! A program that works in a child, and cleans up even if that is killed.

use std::env;
use std::process::{Command, ExitStatus};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::namespace::{remains_of, sweep_owner};

/// Set for the worker process.
const WORKER: &str = "SIP_XDP_LAB_WORKER";

/// The end of the worker.
#[derive(Debug)]
pub struct Aftermath {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its remains, which are removed now: namespaces, pins, directories, processes.
    pub remains: Vec<String>,
}

/// Whether this process is the worker.
pub fn is_worker() -> bool {
    env::var_os(WORKER).is_some()
}

/// Runs this program again as the worker, with the same arguments, and cleans up after it.
pub fn supervise() -> Result<Aftermath> {
    // Orphans of the worker become our children, so that they can be found.
    prctl::set_child_subreaper(true).context("cannot adopt orphans")?;
    extern "C" fn leave_it_to_the_worker(_: i32) {}
    // SAFETY: the handler does nothing, which is safe at any moment.
    unsafe { signal(Signal::SIGINT, SigHandler::Handler(leave_it_to_the_worker)) }
        .context("cannot handle SIGINT")?;
    let mut worker = Command::new(env::current_exe().context("cannot find our own executable")?)
        .args(env::args_os().skip(1))
        .env(WORKER, "1")
        .spawn()
        .context("cannot start the worker")?;
    let owner = worker.id();
    let status = worker.wait().context("cannot wait for the worker")?;

    let mut remains = remains_of(owner);
    remains.extend(remaining_children());
    if !remains.is_empty() {
        sweep_owner(owner)?;
    }
    Ok(Aftermath { status, remains })
}

/// Descendants of the worker that still run a moment after its end.
fn remaining_children() -> Vec<String> {
    let mut running = Vec::new();
    // Ten seconds: a killed process needs CPU time to end.
    for _ in 0..500 {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return Vec::new(),
            Ok(WaitStatus::StillAlive) => {
                running = vec!["a process".to_owned()];
                sleep(Duration::from_millis(20));
            }
            _ => {}
        }
    }
    running
}
