//! Counts what leaves. Always lets the next program, if any, have its say.

use aya_ebpf::programs::TcContext;
use sip_xdp_common::egress::{self, Answer};

use crate::globals::Here;
use crate::maps::{RESPONSES, cpu_state};
use crate::reader::Packet;

/// `TCX_NEXT`, which is also `TC_ACT_UNSPEC` (`include/uapi/linux/bpf.h`): go on.
const NEXT: i32 = -1;

/// Counts one of our responses by what it says.
#[inline(always)]
pub(crate) fn count(ctx: &TcContext) -> i32 {
    let Some(state) = cpu_state() else {
        return NEXT;
    };
    let packet = Packet::leaving(ctx, state);
    if let Some(answer) = egress::read(&packet, &Here)
        && let Some(counters) = RESPONSES.get_ptr_mut(0)
    {
        let index = answer as usize;
        if index < Answer::COUNT {
            // SAFETY: this CPU's map value, valid while the program runs; the index is below the array's length.
            unsafe { *counters.cast::<u64>().add(index) += 1 };
        }
    }
    NEXT
}
