//! Gives each run of a program under BPF_PROG_TEST_RUN another source, which the kernel does not do
//! by itself: takes the next address, writes it into the packet and goes on with the program to be
//! measured.

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::btf_maps::ProgramArray;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;

/// Where an IPv4 source is, and where an IPv6 one is, from the beginning of an Ethernet frame.
const SOURCE4_AT: usize = 26;
const SOURCE6_AT: usize = 22;

/// How many addresses are taken in turn, less one. Their number is a power of two.
#[unsafe(no_mangle)]
static ADDRESS_MASK: Global<u32> = Global::new(0);

/// 1: the frame is IPv6.
#[unsafe(no_mangle)]
static ADDRESS_IPV6: Global<u8> = Global::new(0);

/// The addresses as two words each, as they lie in a packet, IPv4 in the low half of the first.
/// Made by user space in random order, mapped (`BPF_F_MMAPABLE`): they are read in order, which the
/// machine's prefetcher follows.
#[btf_map]
static ADDRESSES: Array<[u64; 2], 1048576, { 1 << 10 }> = Array::new();

#[btf_map]
static NEXT: Array<u64, 1> = Array::new();

/// What is measured: the program at 0.
#[btf_map]
static MEASURED: ProgramArray<1> = ProgramArray::new();

/// Writes the next source and goes on.
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
    // SAFETY: both places end before the byte that was checked above.
    unsafe {
        if ADDRESS_IPV6.load() == 1 {
            ((start + SOURCE6_AT) as *mut u64).write_volatile(address[0]);
            ((start + SOURCE6_AT + 8) as *mut u64).write_volatile(address[1]);
        } else {
            ((start + SOURCE4_AT) as *mut u32).write_volatile(address[0] as u32);
        }
        // Atomic, and so not before what was written is through to the cache, as a packet is that a
        // network card has written: a program that reads more at once than was written would wait
        // for that here, and nowhere else.
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::SeqCst }>(
            next, 1,
        );
        // Only comes back if there is no program.
        MEASURED.tail_call(ctx, 0);
    }
    xdp_action::XDP_ABORTED
}
