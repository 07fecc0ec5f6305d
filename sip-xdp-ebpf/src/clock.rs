//! The one clock: nanoseconds of `CLOCK_MONOTONIC`, or whatever a test or a replay has set.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use sip_xdp_common::abi::layout::{CLOCK_DEADLINE, CLOCK_OUTCOME, CLOCK_TIME, Scratch, outcome};
use sip_xdp_common::pipeline::ingress::Judgement;

use crate::globals::CLOCK_FROM_MAP;
use crate::maps::CLOCK;

/// The time. Coarse: it moves once per timer tick (4 ms at 250 Hz). So it is asked for once per
/// tick, CPU and interface, and may be a tick behind: the kernel makes a load of the question for
/// the tick, but a call of that for the time.
#[inline(always)]
pub(crate) fn now(scratch: *mut Scratch) -> u64 {
    if CLOCK_FROM_MAP.load() == 1 {
        return CLOCK.get(CLOCK_TIME).copied().unwrap_or(0);
    }
    // SAFETY: the helpers take nothing and only read the kernel's clocks; the fields are those of
    // this CPU's map value, valid while the program runs. The time is written before its tick:
    // whoever finds the tick finds the time.
    unsafe {
        let tick = bpf_jiffies64();
        if (*scratch).tick != tick {
            (&raw mut (*scratch).now).write_volatile(bpf_ktime_get_coarse_ns());
            (&raw mut (*scratch).tick).write_volatile(tick);
        }
        (*scratch).now
    }
}

/// Whether nobody has confirmed in time. Asked only for a packet that is about to be dropped, by
/// programs that were loaded for a trial.
#[inline(always)]
pub(crate) fn is_trial_over(now: u64) -> bool {
    CLOCK.get(CLOCK_DEADLINE).is_some_and(|deadline| {
        // SAFETY: a word of the map, which lives as long as the program; user space may write it.
        let deadline = unsafe { (deadline as *const u64).read_volatile() };
        deadline != 0 && now >= deadline
    })
}

/// Says beside a set clock what became of a packet. With the kernel's clock there is nothing here.
#[inline(always)]
pub(crate) fn leave(judgement: &Judgement) {
    if CLOCK_FROM_MAP.load() == 1
        && let Some(place) = CLOCK.get_ptr_mut(CLOCK_OUTCOME)
    {
        // SAFETY: a word of the map, which lives as long as the program. Whoever sets the clock
        // runs one packet at a time.
        unsafe { place.write_volatile(outcome(judgement.reason, judgement.message)) };
    }
}
