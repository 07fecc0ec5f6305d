//! The maps. Layouts are in `sip_xdp_common::abi::layout`, names in `sip_xdp_common::abi::names`.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use sip_xdp_common::abi::layout::{
    CLOCK_WORDS, Counters, CpuState, DEFAULT_NETWORKS, DEFAULT_SOURCES, EVENTS_BYTES,
    FLOWS as MAX_FLOWS, InterfaceRecord, KernelEvent, LADDERS as MAX_LADDERS, LedgerKey, LedgerRow,
    MAX_INTERFACES, OWN_NONCES as MAX_NONCES, PENDING_REQUESTS as MAX_PENDING_REQUESTS,
    REFUSED_USERS as MAX_REFUSED_USERS, Responses, Scratch,
};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::flow::{Flow, FlowKey, PendingRequest};
use sip_xdp_common::limits::ladder::Ladder;
use sip_xdp_common::limits::meters::{MeterSet, Records, sets};
use sip_xdp_common::limits::storm::{MARKS, Mark, StormState};
use sip_xdp_common::lookup::host_rows;
use sip_xdp_common::lookup::networks::{GROUP, Prints, SlotBucket, TableHeader, buckets};
use sip_xdp_common::lookup::summary;

use crate::globals::SLOT;

/// `BPF_F_MMAPABLE` (`include/uapi/linux/bpf.h`): user space maps the memory. The array then also
/// starts on a page boundary, so that elements of whole cache lines do not straddle lines.
const MAPPED: usize = 1 << 10;

#[btf_map]
pub(crate) static TABLE_HEADER: Array<TableHeader, 1, MAPPED> = Array::new();

#[btf_map]
pub(crate) static SUMMARY_COARSE: Array<summary::Element, { summary::COARSE as usize }, MAPPED> =
    Array::new();

#[btf_map]
pub(crate) static SUMMARY_FINE: Array<summary::Element, { summary::FINE as usize }, MAPPED> =
    Array::new();

#[btf_map]
pub(crate) static FEED_HOSTS: Array<
    host_rows::Row,
    { host_rows::rows(DEFAULT_NETWORKS) as usize },
    MAPPED,
> = Array::new();

#[btf_map]
pub(crate) static FINGERPRINTS: Array<
    Prints,
    { buckets(DEFAULT_NETWORKS) as usize / GROUP },
    MAPPED,
> = Array::new();

#[btf_map]
pub(crate) static NETWORKS: Array<SlotBucket, { buckets(DEFAULT_NETWORKS) as usize }, MAPPED> =
    Array::new();

/// Not read by programs: the ledger is a map so that it outlives the daemon, like the tables that
/// are derived from it.
#[btf_map]
pub(crate) static LEDGER: HashMap<
    LedgerKey,
    LedgerRow,
    { DEFAULT_NETWORKS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map]
pub(crate) static SOURCES: Array<MeterSet, { sets(DEFAULT_SOURCES) as usize }, MAPPED> =
    Array::new();

#[btf_map]
pub(crate) static RECORDS: Array<Records, { sets(DEFAULT_SOURCES) as usize }> = Array::new();

#[btf_map]
pub(crate) static FLOWS: HashMap<FlowKey, Flow, MAX_FLOWS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
pub(crate) static LADDERS: HashMap<FlowKey, Ladder, MAX_LADDERS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
pub(crate) static OWN_NONCES: LruHashMap<u64, u64, MAX_NONCES> = LruHashMap::new();

#[btf_map]
pub(crate) static REFUSED_USERS: LruHashMap<u64, u64, MAX_REFUSED_USERS> = LruHashMap::new();

#[btf_map]
pub(crate) static PENDING_REQUESTS: LruHashMap<IpKey, PendingRequest, MAX_PENDING_REQUESTS> =
    LruHashMap::new();

#[btf_map]
pub(crate) static SKETCH: Array<[Mark; MARKS], 1> = Array::new();

#[btf_map]
pub(crate) static STORM_STATE: Array<StormState, 1> = Array::new();

#[btf_map]
static COUNTERS: PerCpuArray<Counters, MAX_INTERFACES> = PerCpuArray::new();

#[btf_map]
pub(crate) static RESPONSES: PerCpuArray<Responses, 1> = PerCpuArray::new();

#[btf_map]
static CPU_STATE: PerCpuArray<CpuState, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static EVENTS: RingBuf<KernelEvent, EVENTS_BYTES> = RingBuf::new();

/// Written and read by user space; see [`LEDGER`].
#[btf_map]
pub(crate) static INTERFACES: Array<InterfaceRecord, MAX_INTERFACES> = Array::new();

/// Read and written only where `CLOCK_FROM_MAP` is 1, but for the deadline of a trial.
#[btf_map]
pub(crate) static CLOCK: Array<u64, { CLOCK_WORDS as usize }, MAPPED> = Array::new();

#[btf_map]
pub(crate) static DROP_SAMPLE_BUDGET: Array<u64, 1, MAPPED> = Array::new();

/// This interface's counters on this CPU.
#[inline(always)]
pub(crate) fn counters() -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut(SLOT.load())
}

/// The scratch space of this interface on this CPU.
#[inline(always)]
pub(crate) fn scratch() -> Option<*mut Scratch> {
    // SAFETY: a field's address inside this CPU's map value; nothing is read.
    counters().map(|counters| unsafe { &raw mut (*counters).scratch })
}

/// Event budgets and loss counters of this CPU.
#[inline(always)]
pub(crate) fn cpu_state() -> Option<*mut CpuState> {
    CPU_STATE.get_ptr_mut(0)
}
