//! The generator: gives a prepared frame another source and sends it to an interface.
//!
//! The frame is Ethernet, an IPv4 header without options, and UDP without a checksum. The kernel
//! uses each page of a run again without restoring it, so nothing is taken from the packet: all
//! that changes is written anew each time.

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_redirect};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;

/// Where the changed fields are, from the beginning of the frame.
const CHECKSUM_AT: usize = 24;
const SOURCE_AT: usize = 26;
const PORT_AT: usize = 34;
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 42;

/// The interface that sends.
#[unsafe(no_mangle)]
static INTERFACE: Global<u32> = Global::new(0);

/// 1: every packet has a new source. 0: those of [`SOURCES`], in turn.
#[unsafe(no_mangle)]
static EVERY_PACKET_NEW: Global<u8> = Global::new(0);

/// How many sources are in turn, less one. Their number is a power of two.
#[unsafe(no_mangle)]
static TURN_MASK: Global<u32> = Global::new(0);

/// The sum of the IP header's 16-bit words but for source and checksum, as they lie in memory.
#[unsafe(no_mangle)]
static HEADER_SUM: Global<u32> = Global::new(0);

/// IPv4 addresses as they lie in a packet.
#[btf_map]
static SOURCES: Array<u32, 65536> = Array::new();

/// How many packets are sent between two looks at the clock, less one.
const CLOCK_MASK: u64 = 63;

/// What was sent since this was last set to zero but for `sent`; the laboratory reads it with the
/// same layout.
#[repr(C)]
struct Progress {
    /// Packets in all.
    sent: u64,
    /// When the clock was first and last looked at, in nanoseconds.
    first: u64,
    last: u64,
    /// How many were sent in between.
    timed: u64,
}

#[btf_map]
static PROGRESS: PerCpuArray<Progress, 1> = PerCpuArray::new();

/// Rewrites the packet and sends it.
#[inline(always)]
pub(crate) fn send(ctx: &XdpContext) -> u32 {
    let start = ctx.data();
    let Some(progress) = PROGRESS.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    if start + HEADERS > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: this CPU's map value, which nothing else on this CPU uses while the program runs.
    let number = unsafe { advance(progress) };
    let source = if EVERY_PACKET_NEW.load() == 1 {
        spread(number as u32).to_be()
    } else {
        SOURCES.get(number as u32 & TURN_MASK.load()).copied().unwrap_or(0)
    };
    let port = 1024 + (number as u16 & 0x7fff);
    // SAFETY: all three fields end before `HEADERS`, which was checked above. The kernel lets BPF
    // write packets unaligned where the machine can.
    unsafe {
        ((start + CHECKSUM_AT) as *mut u16).write_volatile(checksum(source));
        ((start + SOURCE_AT) as *mut u32).write_volatile(source);
        ((start + PORT_AT) as *mut u16).write_volatile(port.to_be());
        bpf_redirect(INTERFACE.load(), 0) as u32
    }
}

/// Counts a packet and returns its number.
///
/// # Safety
///
/// Nobody else may use `progress` at the same time.
#[inline(always)]
unsafe fn advance(progress: *mut Progress) -> u64 {
    // SAFETY: the caller's promise; the helper only reads the kernel's clock.
    unsafe {
        let number = (*progress).sent;
        (*progress).sent = number + 1;
        if number & CLOCK_MASK == 0 {
            let now = bpf_ktime_get_ns();
            if (*progress).first == 0 {
                (*progress).first = now;
                (*progress).timed = 0;
            } else {
                (*progress).timed += CLOCK_MASK + 1;
            }
            (*progress).last = now;
        }
        number
    }
}

/// The IP header's checksum with this source. The sum is the same in either byte order (RFC 1071).
#[inline(always)]
fn checksum(source: u32) -> u16 {
    let mut sum = HEADER_SUM.load() + (source & 0xffff) + (source >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Another address for each of 2^31 numbers, all over 64.0.0.0 to 191.255.255.255. Multiplying by
/// an odd number and shifting into itself both map each number of 31 bits to another one.
#[inline(always)]
fn spread(number: u32) -> u32 {
    const MASK: u32 = (1 << 31) - 1;
    let mut mixed = number.wrapping_mul(0x9e37_79b1) & MASK;
    mixed ^= mixed >> 15;
    mixed = mixed.wrapping_mul(0x85eb_ca6b) & MASK;
    (64 << 24) + mixed
}
