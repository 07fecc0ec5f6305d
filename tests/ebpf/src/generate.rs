//! The packet generator: gives a prepared frame another source and sends it to an interface.
//!
//! The frame is Ethernet, an IPv4 header without options, and UDP without a checksum. The kernel
//! re-uses each page of a run without restoring it, so that every changed field is written anew
//! each time and nothing is read from the packet.

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

/// 1: every packet has a new source. 0: [`SOURCES`] in turn.
#[unsafe(no_mangle)]
static EVERY_PACKET_NEW: Global<u8> = Global::new(0);

/// Number of sources in turn, a power of two, less one.
#[unsafe(no_mangle)]
static TURN_MASK: Global<u32> = Global::new(0);

/// Sum of the IP header's 16-bit words without source and checksum, in memory order.
#[unsafe(no_mangle)]
static HEADER_SUM: Global<u32> = Global::new(0);

/// IPv4 addresses as they lie in a packet.
#[btf_map]
static SOURCES: Array<u32, 65536> = Array::new();

/// Number of packets between two clock reads, less one.
const CLOCK_MASK: u64 = 63;

/// Counts since they were last reset, except for `sent`; the laboratory uses the same layout.
#[repr(C)]
struct Progress {
    /// Packets in total.
    sent: u64,
    /// First and last clock read, in nanoseconds.
    first: u64,
    last: u64,
    /// Packets in between.
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
/// No other use of `progress` at the same time.
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

/// A distinct address for each of 2^31 numbers, scattered over 64.0.0.0 to 191.255.255.255.
/// Multiplication by an odd number and xor-shift are both bijections of 31 bits.
#[inline(always)]
fn spread(number: u32) -> u32 {
    const MASK: u32 = (1 << 31) - 1;
    let mut mixed = number.wrapping_mul(0x9e37_79b1) & MASK;
    mixed ^= mixed >> 15;
    mixed = mixed.wrapping_mul(0x85eb_ca6b) & MASK;
    (64 << 24) + mixed
}
