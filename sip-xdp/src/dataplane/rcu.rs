//! RCU grace periods: memory that a packet may still be reading is overwritten only after all
//! program runs that had begun are over. Programs run inside RCU read-side critical sections. User
//! space gets a grace period from either of two calls.
//!
//! - An update of a map of maps. The kernel waits before it returns, so that all running programs
//!   use the new map (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`, since Linux 4.19). It
//!   needs the same privileges as loading programs, so it works wherever the filter does.
//! - `membarrier` with `MEMBARRIER_CMD_GLOBAL` (`kernel/sched/membarrier.c`). Kernels booted with
//!   `nohz_full` refuse it, and so do some seccomp profiles.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use super::bpf;

/// How to wait for an RCU grace period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GraceWait {
    /// By an update of a map of maps.
    MapOfMaps,
    /// By `membarrier`.
    Membarrier,
}

impl GraceWait {
    /// Both, in order of preference.
    pub const ALL: [Self; 2] = [Self::MapOfMaps, Self::Membarrier];
}

impl fmt::Display for GraceWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MapOfMaps => "updates of a map of maps",
            Self::Membarrier => "membarrier",
        })
    }
}

/// Waits for an RCU grace period.
///
/// # Errors
///
/// If the kernel refuses both ways. [`find`] checks that beforehand.
pub fn grace_period() -> Result<()> {
    static FOUND: OnceLock<GraceWait> = OnceLock::new();
    if let Some(way) = FOUND.get() {
        return wait(*way).with_context(|| refusal(&format!("{way} failed")));
    }
    let way = find()?;
    let _ = FOUND.set(way);
    Ok(())
}

/// Waits by the first way that works, and returns it.
///
/// # Errors
///
/// If the kernel refuses both, with both errors.
pub fn find() -> Result<GraceWait> {
    let mut refused = Vec::new();
    for way in GraceWait::ALL {
        match wait(way) {
            Ok(()) => return Ok(way),
            Err(error) => refused.push(format!("{way}: {error}")),
        }
    }
    bail!(refusal(&refused.join("; ")))
}

fn refusal(why: &str) -> String {
    format!("the kernel does not let this process wait for its programs ({why})")
}

fn wait(way: GraceWait) -> io::Result<()> {
    match way {
        GraceWait::MapOfMaps => map_of_maps(),
        GraceWait::Membarrier => membarrier(),
    }
}

/// The maps are created once per process.
fn map_of_maps() -> io::Result<()> {
    static MAPS: OnceLock<(OwnedFd, OwnedFd)> = OnceLock::new();
    let (outer, inner) = match MAPS.get() {
        Some(maps) => maps,
        None => {
            let inner = bpf::create_map(bpf::MAP_TYPE_ARRAY, [4, 4], 1, 0, None)?;
            let outer =
                bpf::create_map(bpf::MAP_TYPE_ARRAY_OF_MAPS, [4, 4], 1, 0, Some(inner.as_fd()))?;
            MAPS.get_or_init(|| (outer, inner))
        }
    };
    bpf::put_map(outer.as_fd(), inner.as_fd())
}

fn membarrier() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes no pointers.
    let waited = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if waited == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
