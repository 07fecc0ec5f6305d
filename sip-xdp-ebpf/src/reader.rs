//! Packet access: the only code that dereferences packet memory.

use core::arch::asm;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::programs::{TcContext, XdpContext};
use sip_xdp_common::abi::layout::Scratch;
use sip_xdp_common::packet::reader::{MAX_OFFSET, Reader};

/// The linear part of a packet: all of it, except for jumbo frames, whose headers it always
/// contains.
pub(crate) struct Packet<C> {
    ctx: *const C,
    data: usize,
    data_end: usize,
    widened: *mut u64,
}

/// A kernel context that knows the bounds of its packet.
pub(crate) trait Context {
    /// Start and end of the packet data.
    ///
    /// # Safety
    ///
    /// `ctx` must be the context that the program was called with.
    unsafe fn bounds(ctx: *const Self) -> (usize, usize);
}

impl Context for xdp_md {
    #[inline(always)]
    unsafe fn bounds(ctx: *const Self) -> (usize, usize) {
        // SAFETY: by the caller. Volatile, so that each call reloads them.
        unsafe {
            (
                (&raw const (*ctx).data).read_volatile() as usize,
                (&raw const (*ctx).data_end).read_volatile() as usize,
            )
        }
    }
}

impl Context for __sk_buff {
    #[inline(always)]
    unsafe fn bounds(ctx: *const Self) -> (usize, usize) {
        // SAFETY: as above.
        unsafe {
            (
                (&raw const (*ctx).data).read_volatile() as usize,
                (&raw const (*ctx).data_end).read_volatile() as usize,
            )
        }
    }
}

impl Packet<xdp_md> {
    #[inline(always)]
    pub(crate) fn arriving(ctx: &XdpContext, scratch: *mut Scratch) -> Self {
        // SAFETY: a field's address inside this CPU's map value; nothing is read.
        Self::new(ctx.ctx, unsafe { &raw mut (*scratch).widened })
    }
}

impl Packet<__sk_buff> {
    #[inline(always)]
    pub(crate) fn leaving(ctx: &TcContext, scratch: *mut Scratch) -> Self {
        // SAFETY: as above. A field of its own, so that ingress and egress on one CPU never share a
        // value.
        Self::new(ctx.skb.skb, unsafe { &raw mut (*scratch).widened_leaving })
    }
}

impl<C: Context> Packet<C> {
    #[inline(always)]
    fn new(ctx: *const C, widened: *mut u64) -> Self {
        // SAFETY: both constructors above pass the program's own context.
        let (data, data_end) = unsafe { C::bounds(ctx) };
        Self { ctx, data, data_end, widened }
    }

    /// The address of the `N` bytes at `at`, or `None` if they exceed the packet.
    ///
    /// The bound of `at`, the address and its end are computed in one asm block, so that the
    /// verifier attaches the bound to the register that is added, whatever the compiler spills:
    /// verifiers before Linux 6.9 do not relate two reloads of one spilled number, of which one is
    /// compared and the other is used. The comparison decides; the mask repeats it for those
    /// verifiers.
    #[inline(always)]
    fn span<const N: usize>(&self, at: usize) -> Option<*const u8> {
        if at > MAX_OFFSET {
            return None;
        }
        let mut start = self.data;
        let mut end: usize;
        // The end is computed here too: LLVM would fold `start + 1 > data_end` into `start >=
        // data_end`, which proves nothing to the verifier for a packet pointer at a variable
        // offset. SAFETY: changes registers only; touches no memory.
        unsafe {
            asm!(
                "{at} &= {mask}",
                "{start} += {at}",
                "{end} = {start}",
                "{end} += {n}",
                at = inout(reg) at => _,
                start = inout(reg) start,
                end = lateout(reg) end,
                mask = const MAX_OFFSET,
                n = const N,
                options(pure, nomem, nostack),
            );
        }
        if end > self.data_end { None } else { Some(start as *const u8) }
    }

    /// The address of the first `N` bytes, or `None` if the packet is shorter.
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<*const u8> {
        if self.data + N > self.data_end { None } else { Some(self.data as *const u8) }
    }
}

/// The asm mask equals the bound only if all lower bits are set.
const _: () = assert!((MAX_OFFSET + 1).is_power_of_two());

impl<C: Context> Reader for Packet<C> {
    #[inline(always)]
    fn byte(&self, at: usize) -> Option<u8> {
        // SAFETY: `span` checked one byte against the packet's end.
        self.span::<1>(at).map(|start| unsafe { start.read_volatile() })
    }

    #[inline(always)]
    fn be16(&self, at: usize) -> Option<u16> {
        // SAFETY: `span` checked two bytes. The kernel allows unaligned packet reads where the
        // machine does (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS); `read_unaligned` would become
        // single bytes.
        self.span::<2>(at).map(|start| u16::from_be(unsafe { start.cast::<u16>().read_volatile() }))
    }

    #[inline(always)]
    fn four(&self, at: usize) -> Option<u32> {
        // SAFETY: `span` checked four bytes; for alignment see `be16`.
        self.span::<4>(at).map(|start| u32::from_le(unsafe { start.cast::<u32>().read_volatile() }))
    }

    #[inline(always)]
    fn eight(&self, at: usize) -> Option<u64> {
        // SAFETY: `span` checked eight bytes; for alignment see `be16`.
        self.span::<8>(at).map(|start| u64::from_le(unsafe { start.cast::<u64>().read_volatile() }))
    }

    #[inline(always)]
    fn eights<const N: usize, const END: usize>(&self, at: [usize; N]) -> Option<[u64; N]> {
        let start = self.head::<END>()?;
        let mut all = [0; N];
        let mut n = 0;
        while n < N {
            // Constant-folded: no instruction remains.
            if at[n] > END - 8 {
                return None;
            }
            // SAFETY: `head` checked all up to `END`; for alignment see `be16`.
            all[n] = u64::from_le(unsafe { start.add(at[n]).cast::<u64>().read_volatile() });
            n += 1;
        }
        Some(all)
    }

    /// Through map memory, whose contents the verifier does not track.
    #[inline(always)]
    fn verifier_widen(&self, value: usize) -> usize {
        // SAFETY: a field of this CPU's map value, valid while the program runs; nothing else runs
        // on this CPU that uses it.
        unsafe { verifier_widen(self.widened, value) }
    }

    #[inline(always)]
    fn reload_bounds(&self) -> Self {
        Self::new(self.ctx, self.widened)
    }
}

/// Writes a number to map memory and reads it back, so that the verifier drops its bounds.
///
/// # Safety
///
/// `place` must be valid for reads and writes.
#[inline(always)]
pub(crate) unsafe fn verifier_widen(place: *mut u64, value: usize) -> usize {
    // SAFETY: by the caller.
    unsafe {
        place.write_volatile(value as u64);
        place.read_volatile() as usize
    }
}

/// `value & MASK` in asm, so that the verifier sees the bound on the register that is used next. In
/// plain Rust the compiler drops the mask when a comparison of another copy already proves it.
#[inline(always)]
pub(crate) fn bounded<const MASK: usize>(value: usize) -> usize {
    const { assert!((MASK + 1).is_power_of_two()) };
    let mut value = value;
    // SAFETY: changes a register; touches no memory.
    unsafe {
        asm!("{value} &= {mask}", value = inout(reg) value, mask = const MASK,
            options(pure, nomem, nostack));
    }
    value
}

/// `value`, or `MOST` if it is larger, in a form from which every verifier derives `1..=MOST`: the
/// size argument of a helper, for which 0 is refused. Verifiers before Linux 6.8 learn nothing from
/// `!= 0`, but all learn from `<`. `value` must not be 0.
#[inline(always)]
pub(crate) fn size_up_to<const MOST: usize>(value: usize) -> usize {
    let mut value = value;
    // SAFETY: changes a register; touches no memory. The jump stays inside the block.
    unsafe {
        asm!(
            "{value} += -1",
            "if {value} < {most} goto +1",
            "{value} = {last}",
            "{value} += 1",
            value = inout(reg) value,
            most = const MOST,
            last = const MOST - 1,
            options(pure, nomem, nostack),
        );
    }
    value
}
