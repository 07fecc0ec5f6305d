//! Limit events on their way to the daemon, bounded per source (by the meter) and per CPU (here). What finds no room
//! is counted. Nothing here runs for a packet that is within its limits.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::warn;
use sip_xdp_common::ingress::Sent;
use sip_xdp_common::layout::{CpuState, HEAD, LimitEvent};
use sip_xdp_common::meter::{Bucket, Limit};
use sip_xdp_common::reader::Reader;
use sip_xdp_common::record::Record;
use sip_xdp_common::verdict::Message;

use crate::globals::{DRY_RUN, SLOT};
use crate::maps::EVENTS;
use crate::reader::Packet;

/// Events per second and CPU: what a daemon digests at a few per cent of a core, whatever arrives.
const BUDGET: Limit = Limit::new(2_000, 1_000_000_000);

/// The shortest time between two diagnostics of one CPU, in nanoseconds.
const DIAGNOSTIC_INTERVAL: u64 = 1_000_000_000;

/// Tells the daemon of a message over a limit.
#[inline(always)]
pub(crate) fn report(
    ctx: &XdpContext,
    state: *mut CpuState,
    record: &Record,
    bucket: Bucket,
    message: Message,
    sent: &Sent,
    now: u64,
) {
    // SAFETY: this CPU's map value, valid while the program runs.
    let Some(full_at) = (unsafe { BUDGET.take((*state).events, now) }) else {
        return lost(state);
    };
    let Some(mut entry) = EVENTS.reserve(0) else {
        // SAFETY: as above.
        unsafe {
            if now.saturating_sub((*state).diagnosed) >= DIAGNOSTIC_INTERVAL {
                (*state).diagnosed = now;
                warn!(ctx, "events find no room: the daemon does not read them fast enough");
            }
        }
        return lost(state);
    };
    let event: *mut LimitEvent = entry.as_mut_ptr();
    // SAFETY: `event` is the record just reserved, ours alone until it is submitted; every field but the unused rest
    // of `head` is written.
    unsafe {
        (*state).events = full_at;
        (&raw mut (*event).time).write(now);
        (&raw mut (*event).first).write(record.first);
        (&raw mut (*event).seen).write(record.seen.into());
        (&raw mut (*event).registers).write(record.registers.into());
        (&raw mut (*event).limited).write(record.limited.into());
        (&raw mut (*event).source).write(sent.source);
        (&raw mut (*event).slot).write(SLOT.load());
        (&raw mut (*event).source_port).write(sent.source_port);
        (&raw mut (*event).destination_port).write(sent.destination_port);
        (&raw mut (*event).message).write(message as u8);
        (&raw mut (*event).bucket).write(bucket as u8);
        (&raw mut (*event).by_address).write(sent.by_address as u8);
        (&raw mut (*event).dry_run).write(DRY_RUN.load());
        (&raw mut (*event).pad).write(0);
        let length = copy_head(ctx, state, sent, (&raw mut (*event).head).cast());
        (&raw mut (*event).head_length).write(length);
    }
    entry.submit(0);
}

/// Copies the start of the payload into the `HEAD` bytes at `head` and returns how much.
///
/// # Safety
///
/// `head` must be `HEAD` writable bytes.
#[inline(always)]
unsafe fn copy_head(ctx: &XdpContext, state: *mut CpuState, sent: &Sent, head: *mut c_void) -> u16 {
    // SAFETY: the context outlives the program run.
    let there = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as usize;
    let end = if sent.end < there { sent.end } else { there };
    // Forgotten, so that the checks below are made on the very number that the helper gets.
    let length = Packet::arriving(ctx, state).forget(end.saturating_sub(sent.payload));
    let length = if length > HEAD { HEAD } else { length };
    if length == 0 {
        return 0;
    }
    // SAFETY: by the caller `head` has room for `HEAD` bytes, and `length` is at most that. The helper checks the
    // packet's side, and reads jumbo frames across their pieces.
    match unsafe { bpf_xdp_load_bytes(ctx.ctx, sent.payload as u32, head, length as u32) } {
        0 => length as u16,
        _ => 0,
    }
}

/// Counts an event that found no room.
#[inline(always)]
fn lost(state: *mut CpuState) {
    // SAFETY: this CPU's map value, valid while the program runs.
    unsafe { (*state).lost_events += 1 };
}
