//! The filter's clock: nanoseconds of `CLOCK_MONOTONIC`, or the time that a test or a replay sets.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use sip_xdp_common::abi::layout::{CLOCK_DEADLINE, CLOCK_OUTCOME, CLOCK_TIME, Scratch, outcome};
use sip_xdp_common::pipeline::ingress::Judgement;

use crate::globals::CLOCK_FROM_MAP;
use crate::maps::CLOCK;

/// The time in nanoseconds, coarse: it advances once per timer tick (4 ms at 250 Hz). It is cached
/// per CPU and interface for the current tick, because the verifier inlines `bpf_jiffies64` as a
/// load, while `bpf_ktime_get_coarse_ns` is a call.
#[inline(always)]
pub(crate) fn now(scratch: *mut Scratch) -> u64 {
    if CLOCK_FROM_MAP.load() == 1 {
        return CLOCK.get(CLOCK_TIME).copied().unwrap_or(0);
    }
    // SAFETY: the helpers take no arguments and only read the kernel's clocks; the fields are those
    // of this CPU's map value, valid while the program runs. The time is written before its tick,
    // so that a reader that sees the tick also sees the time.
    unsafe {
        let tick = bpf_jiffies64();
        if (*scratch).tick != tick {
            (&raw mut (*scratch).now).write_volatile(bpf_ktime_get_coarse_ns());
            (&raw mut (*scratch).tick).write_volatile(tick);
        }
        (*scratch).now
    }
}

/// Whether a trial (`run --confirm`) has ended without a confirmation. Called only for packets
/// about to be dropped, and only by programs that were loaded for a trial.
#[inline(always)]
pub(crate) fn is_trial_over(now: u64) -> bool {
    CLOCK.get(CLOCK_DEADLINE).is_some_and(|deadline| {
        // SAFETY: a word of the map, which lives as long as the program; user space may write it.
        let deadline = unsafe { (deadline as *const u64).read_volatile() };
        deadline != 0 && now >= deadline
    })
}

/// Records the outcome of a packet beside a settable clock (tests, replay). With the kernel's clock
/// the verifier removes this.
#[inline(always)]
pub(crate) fn leave(judgement: &Judgement) {
    if CLOCK_FROM_MAP.load() == 1
        && let Some(place) = CLOCK.get_ptr_mut(CLOCK_OUTCOME)
    {
        // SAFETY: a word of the map, which lives as long as the program. A settable clock implies
        // one packet at a time.
        unsafe { place.write_volatile(outcome(judgement.reason, judgement.message)) };
    }
}
