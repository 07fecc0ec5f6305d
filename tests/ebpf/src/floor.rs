//! The lower bound of any exact list: a program that parses the headers, loads as much memory as a
//! lookup must, counts the packet and returns a configured action. It compares nothing and knows
//! nothing of SIP.

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;

/// A cache line.
type Line = [u64; 8];

/// `BPF_F_MMAPABLE` (`include/uapi/linux/bpf.h`): as in the product, lines start where cache lines
/// do.
const MAPPED: usize = 1 << 10;

/// The loaded tables: 1 for the states of /20s, 2 for those of /24s or the rows of a million hosts,
/// 4 for the meters.
#[unsafe(no_mangle)]
static TOUCHED: Global<u32> = Global::new(0);

/// The returned action.
#[unsafe(no_mangle)]
static ACTION: Global<u32> = Global::new(0);

/// 256 KiB, the size of the states of all /20s.
#[btf_map]
static FLOOR_COARSE: Array<Line, 4096, MAPPED> = Array::new();

/// 4 MiB, the size of the states of all /24s, and of the rows of a million hosts.
#[btf_map]
static FLOOR_FINE: Array<Line, 65536, MAPPED> = Array::new();

/// 2 MiB, the size of the meters of 65,536 sources.
#[btf_map]
static FLOOR_METERS: Array<Line, 32768, MAPPED> = Array::new();

#[btf_map]
static FLOOR_COUNTERS: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// Ethernet, IPv4 without options, UDP to port 5060.
const TYPE_AT: usize = 12;
const VERSION_AT: usize = 14;
const SOURCE_AT: usize = 26;
const PORT_AT: usize = 36;

/// Loads the configured tables.
#[inline(always)]
pub(crate) fn touch(ctx: &XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + PORT_AT + 2 > end {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: all of them lie before the byte that was checked above. The kernel allows unaligned
    // packet reads where the machine does.
    let (kind, version, source, port) = unsafe {
        (
            ((start + TYPE_AT) as *const u16).read_unaligned(),
            ((start + VERSION_AT) as *const u8).read(),
            ((start + SOURCE_AT) as *const u32).read_unaligned(),
            ((start + PORT_AT) as *const u16).read_unaligned(),
        )
    };
    if kind != 0x0800_u16.to_be() || version != 0x45 || port != 5060_u16.to_be() {
        return xdp_action::XDP_ABORTED;
    }
    let touched = TOUCHED.load();
    let address = source.swap_bytes();
    let hash = (u64::from(source) ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut read = 0;
    if touched & 1 != 0 {
        read |=
            FLOOR_COARSE.get(address >> 20).map_or(0, |line| line[(address >> 17 & 7) as usize]);
    }
    if touched & 2 != 0 {
        read |= FLOOR_FINE.get(address >> 16).map_or(0, |line| line[(address >> 13 & 7) as usize]);
    }
    if touched & 4 != 0 {
        read |= FLOOR_METERS.get((hash >> 49) as u32).map_or(0, |line| line[0]);
    }
    if let Some(counters) = FLOOR_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's map value, valid while the program runs.
        unsafe {
            (*counters)[0] += 1;
            (*counters)[1] += (end - start) as u64;
        }
    }
    // All tables are empty, but the compiler does not know that, so that the loads stay.
    if read == 0 { ACTION.load() } else { xdp_action::XDP_ABORTED }
}
