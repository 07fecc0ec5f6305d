//! Kernel features, found by trying them and never by version: distributions backport features, and
//! containers, lockdown and seccomp profiles take them away. [`ask`](Platform::ask) probes;
//! `doctor` and `run` report [the consequences](judge) in the same words, before anything is
//! attached.

mod ask;
mod judge;

use aya::sys::BpfHelper;

use crate::dataplane::rcu::GraceWait;

pub(crate) use ask::takes_frags;
pub use judge::Finding;

/// The kernel's BTF.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Results of the probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Kernel release, for display only.
    pub release: String,
    /// Missing capabilities of this thread, or why they cannot be read.
    pub capabilities: Result<Vec<String>, String>,
    /// Whether the minimal XDP program loads; if not, the system's error.
    pub xdp: Result<(), String>,
    /// Whether multi-buffer XDP programs load (`BPF_F_XDP_HAS_FRAGS`).
    pub frags: bool,
    /// Helpers that the programs call and this kernel lacks.
    pub missing_helpers: Vec<Helper>,
    /// Whether ring buffers exist, which carry events.
    pub ring_buffer: bool,
    /// Whether arrays can be memory-mapped (`BPF_F_MMAPABLE`).
    pub mapped_arrays: bool,
    /// Whether XDP programs attach by links, which can be pinned. `None`: could not be tried.
    pub xdp_links: Option<bool>,
    /// Whether egress programs attach by links (tcx). `None`: could not be tried.
    pub tcx: Option<bool>,
    /// Whether TCP sockets can be destroyed on request. `None`: could not be tried.
    pub destroys_sockets: Option<bool>,
    /// How to wait for an RCU grace period, or the kernel's errors.
    pub grace: Result<GraceWait, String>,
    /// Whether the kernel provides BTF.
    pub btf: bool,
}

/// A helper function that a program calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Helper {
    /// Its number.
    pub(crate) number: BpfHelper,
    /// Its name.
    pub(crate) name: &'static str,
    /// First release that has it, as a hint.
    pub(crate) since: &'static str,
    /// The programs that call it.
    pub(crate) called_by: Caller,
}

/// A caller of helpers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    Ingress,
    Egress,
    Both,
}

const fn helper(
    number: BpfHelper,
    name: &'static str,
    since: &'static str,
    called_by: Caller,
) -> Helper {
    Helper { number, name, since, called_by }
}

/// All helpers that the programs call. A test compares this with the compiled object.
pub(crate) const HELPERS: &[Helper] = &[
    helper(BpfHelper::BPF_FUNC_map_lookup_elem, "bpf_map_lookup_elem", "3.19", Caller::Both),
    helper(BpfHelper::BPF_FUNC_map_update_elem, "bpf_map_update_elem", "3.19", Caller::Egress),
    helper(BpfHelper::BPF_FUNC_skb_load_bytes, "bpf_skb_load_bytes", "4.5", Caller::Egress),
    helper(BpfHelper::BPF_FUNC_jiffies64, "bpf_jiffies64", "5.6", Caller::Both),
    helper(BpfHelper::BPF_FUNC_ringbuf_reserve, "bpf_ringbuf_reserve", "5.8", Caller::Both),
    helper(BpfHelper::BPF_FUNC_ringbuf_submit, "bpf_ringbuf_submit", "5.8", Caller::Both),
    helper(
        BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
        "bpf_ktime_get_coarse_ns",
        "5.11",
        Caller::Both,
    ),
    helper(BpfHelper::BPF_FUNC_loop, "bpf_loop", "5.17", Caller::Both),
    helper(BpfHelper::BPF_FUNC_xdp_get_buff_len, "bpf_xdp_get_buff_len", "5.18", Caller::Ingress),
    helper(BpfHelper::BPF_FUNC_xdp_load_bytes, "bpf_xdp_load_bytes", "5.18", Caller::Ingress),
];
