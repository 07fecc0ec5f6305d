//! What this kernel can do, found by trying it, never by its version: distributions carry features
//! back, and containers, lockdown and seccomp profiles take them away. [`ask`](Platform::ask) is
//! the one place that asks; `doctor` and `run` both speak from [what it means](judge), in the same
//! words, and before anything is attached.

mod ask;
mod judge;

use aya::sys::BpfHelper;

use crate::dataplane::rcu::GraceWait;

pub(crate) use ask::takes_frags;
pub use judge::Finding;

/// Where the kernel describes its own types.
pub const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What was tried, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The kernel's release, to be shown; nothing follows from it.
    pub release: String,
    /// The capabilities that this thread lacks; or why they cannot be read.
    pub capabilities: Result<Vec<String>, String>,
    /// Whether the smallest XDP program loads; if not, the system's word.
    pub xdp: Result<(), String>,
    /// Whether programs that read packets of several buffers load (`BPF_F_XDP_HAS_FRAGS`).
    pub frags: bool,
    /// The helpers that the programs call and that this kernel does not have.
    pub missing_helpers: Vec<Helper>,
    /// Whether there is a ring buffer, on which events come.
    pub ring_buffer: bool,
    /// Whether user space can map the memory of an array (`BPF_F_MMAPABLE`).
    pub mapped_arrays: bool,
    /// Whether XDP programs are attached by links, which can be pinned. `None`: it could not be
    /// tried.
    pub xdp_links: Option<bool>,
    /// Whether programs for what leaves are attached by links (tcx). `None`: it could not be tried.
    pub tcx: Option<bool>,
    /// How the daemon waits for running programs; or what the kernel says to each way.
    pub grace: Result<GraceWait, String>,
    /// Whether the kernel describes its own types.
    pub btf: bool,
}

/// A helper function that a program calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Helper {
    /// Its number.
    pub(crate) number: BpfHelper,
    /// Its name.
    pub(crate) name: &'static str,
    /// The release that brought it, for those who look for a kernel.
    pub(crate) since: &'static str,
    /// Which of the programs call it.
    pub(crate) called_by: Caller,
}

/// Who calls a helper.
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

/// All that the programs call. A test holds this against the compiled object.
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
