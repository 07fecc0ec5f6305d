//! The one clock: nanoseconds of `CLOCK_MONOTONIC`, or whatever a test or a replay has set.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use sip_xdp_common::ingress::Judgement;
use sip_xdp_common::layout::{CLOCK_OUTCOME, CLOCK_TIME, outcome};

use crate::globals::CLOCK_FROM_MAP;
use crate::maps::CLOCK;

/// The time. Coarse: it moves once per timer tick (4 ms at 250 Hz) and costs a third of the fine one.
#[inline(always)]
pub(crate) fn now() -> u64 {
    if CLOCK_FROM_MAP.load() == 1 {
        return CLOCK.get(CLOCK_TIME).copied().unwrap_or(0);
    }
    // SAFETY: the helper takes nothing and only reads the kernel's clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Says beside a set clock what became of a packet. With the kernel's clock there is nothing here.
#[inline(always)]
pub(crate) fn leave(judgement: &Judgement) {
    if CLOCK_FROM_MAP.load() == 1
        && let Some(place) = CLOCK.get_ptr_mut(CLOCK_OUTCOME)
    {
        // SAFETY: a word of the map, which lives as long as the program. Whoever sets the clock runs one packet at a time.
        unsafe { place.write_volatile(outcome(judgement.reason, judgement.message)) };
    }
}
