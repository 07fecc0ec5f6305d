//! The one clock: nanoseconds of `CLOCK_MONOTONIC`, or whatever a test or a replay has set.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;

use crate::globals::CLOCK_FROM_MAP;
use crate::maps::CLOCK;

/// The time. Coarse: it moves once per timer tick (4 ms at 250 Hz) and costs a third of the fine one.
#[inline(always)]
pub(crate) fn now() -> u64 {
    if CLOCK_FROM_MAP.load() == 1 {
        return CLOCK.get(0).copied().unwrap_or(0);
    }
    // SAFETY: the helper takes nothing and only reads the kernel's clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}
