//! Events to the daemon. Limit events have a budget per CPU (and per source, in its record).
//! Samples have a budget per slice of the source hash, so that a heavy sender cannot exhaust the
//! samples of others. Events without room are counted as lost.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use sip_xdp_common::abi::layout::{
    CHUNKS, EventKind, HEAD, IN_DRY_RUN, KernelEvent, SEGMENT, SLICES, SampleBudget, Scratch,
};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::gcra::{Limit, LimitKind};
use sip_xdp_common::limits::meters::MeterKey;
use sip_xdp_common::limits::over_limit::Record;
use sip_xdp_common::packet::headers::tcp_flags;
use sip_xdp_common::pipeline::ingress::{Judgement, Segment};
use sip_xdp_common::verdict::{Message, Verdict};

use crate::clock;
use crate::globals::{SLOT, dry_run};
use crate::maps::{DROP_SAMPLE_BUDGET, EVENTS, cpu_state};
use crate::reader::{Packet, bounded, size_up_to};

/// Limit events per second and CPU: a load that costs the daemon a few per cent of one core.
const BUDGET: Limit = Limit::new(2_000, 1_000_000_000);

/// Samples per CPU, direction and slice: a burst of 1,000 (an office that re-registers after an
/// outage), then 200 per second.
const SAMPLES: Limit = Limit { interval: 5_000_000, burst: 5_000_000_000 };

/// A packet to be reported to the daemon.
pub(crate) struct EventDraft<'a, C> {
    pub(crate) ctx: &'a C,
    pub(crate) scratch: *mut Scratch,
    pub(crate) kind: EventKind,
    pub(crate) source: &'a IpKey,
    pub(crate) port: u16,
    pub(crate) local_port: u16,
    pub(crate) message: Message,
    pub(crate) bucket: LimitKind,
    pub(crate) flags: u8,
    /// Offset of the IP header, if the event is to contain it.
    pub(crate) ip: Option<usize>,
    pub(crate) payload: usize,
    pub(crate) end: usize,
    pub(crate) now: u64,
}

/// The numbers of an event: see the fields of [`KernelEvent`].
#[derive(Clone, Copy, Default)]
pub(crate) struct Numbers {
    pub(crate) first: u64,
    pub(crate) seen: u32,
    pub(crate) registers: u32,
    pub(crate) limited: u32,
}

impl Numbers {
    #[inline(always)]
    pub(crate) fn of(record: &Record, now: u64) -> Self {
        let Record { seen, registers, limited, .. } = *record;
        Self { first: record.since(now), seen, registers, limited }
    }
}

/// A program context (XDP or tc), with the helpers that events need.
pub(crate) trait Origin: aya_ebpf::EbpfContext {
    /// Length of the packet in bytes.
    fn length(&self) -> usize;

    /// Passes a number through map memory, so that the verifier drops its bounds.
    fn verifier_widen(&self, scratch: *mut Scratch, value: usize) -> usize;

    /// Copies `length` bytes at offset `at` to `to`; returns 0 on success.
    ///
    /// # Safety
    ///
    /// `to` must have room for them.
    unsafe fn load(&self, at: u32, to: *mut c_void, length: u32) -> i64;
}

impl Origin for XdpContext {
    #[inline(always)]
    fn length(&self) -> usize {
        let ctx: *mut xdp_md = self.ctx;
        // SAFETY: the helper only reads the context. Jumbo frames have more than their linear part.
        unsafe { bpf_xdp_get_buff_len(ctx) as usize }
    }

    #[inline(always)]
    fn verifier_widen(&self, scratch: *mut Scratch, value: usize) -> usize {
        use sip_xdp_common::packet::reader::Reader;
        Packet::arriving(self, scratch).verifier_widen(value)
    }

    #[inline(always)]
    unsafe fn load(&self, at: u32, to: *mut c_void, length: u32) -> i64 {
        // SAFETY: by the caller; the helper checks the packet's side.
        unsafe { bpf_xdp_load_bytes(self.ctx, at, to, length) }
    }
}

impl Origin for aya_ebpf::programs::TcContext {
    #[inline(always)]
    fn length(&self) -> usize {
        self.len() as usize
    }

    #[inline(always)]
    fn verifier_widen(&self, scratch: *mut Scratch, value: usize) -> usize {
        use sip_xdp_common::packet::reader::Reader;
        Packet::leaving(self, scratch).verifier_widen(value)
    }

    #[inline(always)]
    unsafe fn load(&self, at: u32, to: *mut c_void, length: u32) -> i64 {
        let skb: *mut __sk_buff = self.skb.skb;
        // SAFETY: by the caller; the helper checks the packet's side.
        unsafe { bpf_skb_load_bytes(skb.cast(), at, to, length) }
    }
}

/// Reports a source that is over a limit, with the numbers of its record.
#[inline(always)]
pub(crate) fn report<C: Origin>(draft: &EventDraft<'_, C>, numbers: &Numbers) {
    let Some(state) = cpu_state() else {
        return;
    };
    // SAFETY: this CPU's map value, valid while the program runs.
    let Some(full_at) = (unsafe { BUDGET.take((*state).events, draft.now) }) else {
        // SAFETY: as above.
        unsafe { (*state).lost_events += 1 };
        return;
    };
    if send::<C, HEAD>(draft, numbers) {
        // SAFETY: as above.
        unsafe { (*state).events = full_at };
    } else {
        // SAFETY: as above.
        unsafe { (*state).lost_events += 1 };
    }
}

/// Sends a sample, if its slice has any left in this budget. Returns whether it was sent.
#[inline(always)]
pub(crate) fn sample<C: Origin>(
    draft: &EventDraft<'_, C>,
    meter_key: &MeterKey,
    budget: SampleBudget,
) -> bool {
    sample_with::<C, HEAD>(draft, meter_key, budget as usize, &Numbers::default())
}

/// Samples a TCP segment, from its TCP header on, in as many events as it takes, at most
/// [`CHUNKS`]. Returns whether all of it was sampled.
#[inline(always)]
pub(crate) fn sample_segment<C: Origin>(
    draft: &mut EventDraft<'_, C>,
    segment: &Segment,
    meter_key: &MeterKey,
    budget: SampleBudget,
) -> bool {
    let budget = draft.ctx.verifier_widen(draft.scratch, budget as usize);
    let there = draft.ctx.length();
    let end = if draft.end < there { draft.end } else { there };
    let (mut sequence, mut header) = (segment.sequence, segment.header);
    for chunk in 1..=CHUNKS {
        let whole = draft.ctx.verifier_widen(draft.scratch, end.saturating_sub(draft.payload));
        let is_last = whole <= SEGMENT || chunk == CHUNKS;
        let length = (if is_last { whole } else { SEGMENT }).saturating_sub(header);
        // The end of a connection is behind the last byte.
        let ends = if is_last { 0 } else { tcp_flags::FIN | tcp_flags::RST };
        let numbers = Numbers {
            first: length as u64,
            seen: sequence,
            registers: segment.acknowledges,
            limited: u32::from(segment.flags & !ends) | (header as u32) << 8,
        };
        if !sample_with::<C, SEGMENT>(draft, meter_key, budget, &numbers) {
            return false;
        }
        if is_last {
            return whole <= SEGMENT;
        }
        draft.payload = draft.ctx.verifier_widen(draft.scratch, draft.payload + SEGMENT);
        sequence = sequence.wrapping_add(length as u32);
        header = 0;
    }
    false
}

#[inline(always)]
fn sample_with<C: Origin, const MOST: usize>(
    draft: &EventDraft<'_, C>,
    meter_key: &MeterKey,
    budget: usize,
    numbers: &Numbers,
) -> bool {
    let Some(state) = cpu_state() else {
        return false;
    };
    let budget =
        bounded::<{ SampleBudget::COUNT - 1 }>(draft.ctx.verifier_widen(draft.scratch, budget));
    let slice =
        bounded::<{ SLICES - 1 }>(draft.ctx.verifier_widen(draft.scratch, meter_key.sketch()));
    // SAFETY: this CPU's map value, valid while the program runs; the slice is below the array's
    // length.
    let bucket = unsafe { (&raw mut (*state).samples).cast::<u64>().add(budget * SLICES + slice) };
    // SAFETY: as above.
    let taken = unsafe { SAMPLES.take(*bucket, draft.now) };
    let sent = match taken {
        Some(full_at) => {
            // SAFETY: as above.
            unsafe { *bucket = full_at };
            send::<C, MOST>(draft, numbers)
        }
        None => false,
    };
    if !sent {
        // SAFETY: as above.
        unsafe { (*state).lost_samples += 1 };
    }
    sent
}

/// Copies a dropped packet to the ring while user space grants samples in [`DROP_SAMPLE_BUDGET`].
/// Without a watcher the cost is one load from a cached line.
#[inline(always)]
pub(crate) fn sample_drop(ctx: &XdpContext, scratch: *mut Scratch, judgement: &Judgement) {
    if !matches!(judgement.reason.verdict(), Verdict::Drop) {
        return;
    }
    let Some(left) = DROP_SAMPLE_BUDGET.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a map value, valid while the program runs. Two CPUs that take the last sample at once
    // copy one packet too many; the budget never goes below zero.
    let there = unsafe { left.read_volatile() };
    if there == 0 {
        return;
    }
    // SAFETY: as above.
    unsafe { left.write_volatile(there - 1) };
    let draft = EventDraft {
        ctx,
        scratch,
        kind: EventKind::Dropped,
        source: &IpKey::v4(0),
        port: 0,
        local_port: 0,
        message: judgement.message.unwrap_or(Message::Unparsed),
        bucket: LimitKind::Other,
        flags: dry_run() * IN_DRY_RUN,
        ip: None,
        payload: 0,
        end: usize::MAX,
        now: clock::now(scratch),
    };
    let numbers = Numbers { seen: judgement.reason as u32, ..Numbers::default() };
    // Lossy by design: `watch` and the detector both tolerate a missing drop sample.
    let _ = send::<_, HEAD>(&draft, &numbers);
}

/// Writes zero words. Volatile, since the compiler would call `memset`: a function of its own, of
/// whose loop Linux before 6.4 takes every number of all callers to be precise (`backtrack_insn`,
/// kernel/bpf/verifier.c), so that no two states are equal any more.
///
/// # Safety
///
/// There are `WORDS` writable words at `start`, aligned.
#[inline(always)]
unsafe fn zero<const WORDS: usize>(start: *mut u64) {
    for at in 0..WORDS {
        // SAFETY: as the caller promises.
        unsafe { start.add(at).write_volatile(0) };
    }
}

/// Writes an event into the ring, with at most `MOST` bytes of the packet. Returns whether there
/// was room.
#[inline(always)]
fn send<C: Origin, const MOST: usize>(draft: &EventDraft<'_, C>, numbers: &Numbers) -> bool {
    let Some(mut entry) = EVENTS.reserve(0) else {
        return false;
    };
    let event: *mut KernelEvent = entry.as_mut_ptr();
    // SAFETY: `event` is the record just reserved, ours alone until it is submitted; every field
    // but the unused rest of `head` is written.
    unsafe {
        (&raw mut (*event).time).write(draft.now);
        // Volatile, as in `zero`: most numbers are zero.
        (&raw mut (*event).first).write_volatile(numbers.first);
        (&raw mut (*event).seen).write_volatile(numbers.seen.into());
        (&raw mut (*event).registers).write_volatile(numbers.registers.into());
        (&raw mut (*event).limited).write_volatile(numbers.limited.into());
        (&raw mut (*event).source).write(*draft.source);
        zero::<5>((&raw mut (*event).ip).cast());
        zero::<1>((&raw mut (*event).udp).cast());
        if let Some(ip) = draft.ip {
            // On failure the helper leaves the field zero.
            let _ = draft.ctx.load(ip as u32, (&raw mut (*event).ip).cast(), 40);
            // A segment's head begins with its TCP header.
            if MOST == HEAD {
                let udp = draft.payload.wrapping_sub(8) as u32;
                let _ = draft.ctx.load(udp, (&raw mut (*event).udp).cast(), 8);
            }
        }
        (&raw mut (*event).slot).write(SLOT.load());
        (&raw mut (*event).port).write(draft.port);
        (&raw mut (*event).local_port).write(draft.local_port);
        (&raw mut (*event).kind).write(draft.kind as u8);
        (&raw mut (*event).message).write(draft.message as u8);
        (&raw mut (*event).bucket).write(draft.bucket as u8);
        (&raw mut (*event).flags).write(draft.flags);
        copy_head::<C, MOST>(draft, event);
    }
    entry.submit(0);
    true
}

/// Copies the start of the payload, and records its full length.
///
/// # Safety
///
/// `event` must be writable.
#[inline(always)]
unsafe fn copy_head<C: Origin, const MOST: usize>(
    draft: &EventDraft<'_, C>,
    event: *mut KernelEvent,
) {
    const { assert!(MOST <= SEGMENT) };
    let there = draft.ctx.length();
    let end = if draft.end < there { draft.end } else { there };
    // Widened, so that the size is derived from a number that nothing else depends on.
    let whole = draft.ctx.verifier_widen(draft.scratch, end.saturating_sub(draft.payload));
    let mut copied = 0;
    if whole != 0 {
        let length = size_up_to::<MOST>(whole);
        // SAFETY: the head has room for `MOST` bytes, and `length` is at most that.
        let failed = unsafe {
            draft.ctx.load(draft.payload as u32, (&raw mut (*event).head).cast(), length as u32)
        };
        copied = if failed == 0 { length as u16 } else { 0 };
    }
    // SAFETY: by the caller.
    unsafe {
        (&raw mut (*event).head_length).write(copied);
        (&raw mut (*event).length).write(whole as u16);
    }
}
