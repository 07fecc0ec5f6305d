//! Gives each run of a program under BPF_PROG_TEST_RUN another source, which the kernel cannot do:
//! writes the next address into the packet and tail-calls the measured program.

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::btf_maps::ProgramArray;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;

/// Offsets of an IPv4 and of an IPv6 source in an Ethernet frame.
const SOURCE4_AT: usize = 26;
const SOURCE6_AT: usize = 22;

/// Number of addresses in turn, a power of two, less one.
#[unsafe(no_mangle)]
static ADDRESS_MASK: Global<u32> = Global::new(0);

/// 1: the frame is IPv6.
#[unsafe(no_mangle)]
static ADDRESS_IPV6: Global<u8> = Global::new(0);

/// The addresses as two words each, in packet byte order, IPv4 in the low half of the first. User
/// space fills them in random order, memory-mapped (`BPF_F_MMAPABLE`); they are read sequentially,
/// which suits the prefetcher.
#[btf_map]
static ADDRESSES: Array<[u64; 2], 1048576, { 1 << 10 }> = Array::new();

#[btf_map]
static NEXT: Array<u64, 1> = Array::new();

/// The measured program, at index 0.
#[btf_map]
static MEASURED: ProgramArray<1> = ProgramArray::new();

/// Writes the next source and continues.
#[inline(always)]
pub(crate) fn turn(ctx: &XdpContext) -> u32 {
    let (Some(next), start) = (NEXT.get_ptr_mut(0), ctx.data()) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: nothing else runs while the program is measured.
    let number = unsafe { *next as u32 };
    let Some(address) = ADDRESSES.get(number & ADDRESS_MASK.load()) else {
        return xdp_action::XDP_ABORTED;
    };
    if start + SOURCE6_AT + 16 > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: both fields end before the byte that was checked above.
    unsafe {
        if ADDRESS_IPV6.load() == 1 {
            ((start + SOURCE6_AT) as *mut u64).write_volatile(address[0]);
            ((start + SOURCE6_AT + 8) as *mut u64).write_volatile(address[1]);
        } else {
            ((start + SOURCE4_AT) as *mut u32).write_volatile(address[0] as u32);
        }
        // Atomic, and so not before the stores have reached the cache, as with a packet that a
        // network card has written: otherwise wide loads across recent narrow stores would stall
        // here only.
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::SeqCst }>(
            next, 1,
        );
        // Only returns if there is no program.
        MEASURED.tail_call(ctx, 0);
    }
    xdp_action::XDP_ABORTED
}
