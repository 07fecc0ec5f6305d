//! Kernel features, found by trying. Nothing is attached to an interface of this host.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use aya::programs::ProgramType;
use aya::sys::is_helper_supported;
use nix::sched::{CloneFlags, unshare};

use super::{BTF, Caller, HELPERS, Helper, Platform};
use crate::dataplane::{bpf, rcu, tcp_sockets};
use crate::sys::privileges;

/// An unused interface index: a call that fails with "no such device" is one that the kernel knows.
const NO_INTERFACE: u32 = i32::MAX as u32;

/// The first interface of every network namespace: `lo`.
const LOOPBACK: u32 = 1;

impl Platform {
    /// Probes everything. Takes some milliseconds, mostly for an RCU grace period.
    pub fn ask() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let xdp = bpf::load_pass(bpf::PROG_TYPE_XDP, bpf::ATTACH_XDP, 0).map(drop);
        Self {
            release: release.trim().to_owned(),
            capabilities: privileges::missing().map_err(|error| format!("{error:#}")),
            frags: takes_frags(),
            missing_helpers: if xdp.is_ok() { missing_helpers() } else { Vec::new() },
            ring_buffer: bpf::create_map(bpf::MAP_TYPE_RINGBUF, [0, 0], page_size(), 0, None)
                .is_ok(),
            mapped_arrays: bpf::create_map(bpf::MAP_TYPE_ARRAY, [4, 8], 1, bpf::MMAPABLE, None)
                .is_ok(),
            xdp_links: xdp_links(),
            tcx: tcx(),
            destroys_sockets: tcp_sockets::can_destroy(),
            grace: rcu::find().map_err(|error| format!("{error:#}")),
            btf: Path::new(BTF).exists(),
            xdp: xdp.map_err(|error| error.to_string()),
        }
    }
}

/// Whether the kernel accepts multi-buffer XDP programs.
pub(crate) fn takes_frags() -> bool {
    bpf::load_pass(bpf::PROG_TYPE_XDP, bpf::ATTACH_XDP, bpf::XDP_HAS_FRAGS).is_ok()
}

fn missing_helpers() -> Vec<Helper> {
    let has = |helper: &Helper| {
        let programs: &[ProgramType] = match helper.called_by {
            Caller::Ingress => &[ProgramType::Xdp],
            Caller::Egress => &[ProgramType::SchedClassifier],
            Caller::Both => &[ProgramType::Xdp, ProgramType::SchedClassifier],
        };
        // What cannot be probed is left to the verifier.
        programs.iter().all(|program| is_helper_supported(*program, helper.number).unwrap_or(true))
    };
    HELPERS.iter().filter(|helper| !has(helper)).copied().collect()
}

/// Tried on `lo` in a new network namespace without traffic: for a missing interface the kernel
/// returns the same error with and without link support. Needs `CAP_SYS_ADMIN` for the namespace.
fn xdp_links() -> Option<bool> {
    let tried = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).ok()?;
        let program = bpf::load_pass(bpf::PROG_TYPE_XDP, bpf::ATTACH_XDP, 0).ok()?;
        Some(bpf::create_link(program.as_fd(), LOOPBACK, bpf::ATTACH_XDP, bpf::SKB_MODE).is_ok())
    });
    tried.join().ok().flatten()
}

/// A kernel with tcx looks the interface up (`tcx_link_attach` in `kernel/bpf/tcx.c`); others
/// reject the attach type.
fn tcx() -> Option<bool> {
    let program = bpf::load_pass(bpf::PROG_TYPE_SCHED_CLS, 0, 0).ok()?;
    let refused =
        bpf::create_link(program.as_fd(), NO_INTERFACE, bpf::ATTACH_TCX_EGRESS, 0).err()?;
    match refused.raw_os_error() {
        Some(libc::ENODEV) => Some(true),
        Some(libc::EPERM | libc::EACCES) => None,
        _ => Some(false),
    }
}

/// Ring buffer sizes are multiples of the page size.
fn page_size() -> u32 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u32::try_from(size).ok()).unwrap_or(65_536)
}
