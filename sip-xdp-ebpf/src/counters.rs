//! The single exit: every packet is counted here and nowhere else, under the reason for its
//! verdict.

use core::mem::offset_of;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use sip_xdp_common::abi::layout::{Counters, ENFORCE_UNTIL};
use sip_xdp_common::pipeline::ingress::Judgement;
use sip_xdp_common::verdict::Verdict;

use crate::clock;
use crate::globals::DRY_RUN;

/// Offset in bytes from [`Counters::packets`] to the counters of packets that a dry run passed; the
/// same offset holds for [`Counters::bytes`].
const SPARED: usize = offset_of!(Counters, would_drop) - offset_of!(Counters, packets);

const _: () =
    assert!(SPARED == offset_of!(Counters, would_drop_bytes) - offset_of!(Counters, bytes));

/// Counts a judged packet and returns the action for the driver.
#[inline(always)]
pub(crate) fn leave(ctx: &XdpContext, counters: *mut Counters, judgement: &Judgement) -> u32 {
    let drops = matches!(judgement.reason.verdict(), Verdict::Drop);
    let mut spared = if drops { DRY_RUN.load() } else { 0 };
    if spared == ENFORCE_UNTIL {
        // SAFETY: a field's address inside this CPU's map value; nothing is read.
        let now = clock::now(unsafe { &raw mut (*counters).scratch });
        spared = u8::from(clock::is_trial_over(now));
    }
    let linear = ctx.data_end() - ctx.data();
    let bytes = if judgement.end <= linear {
        linear as u64
    } else {
        // Jumbo frames have more than their linear part. SAFETY: the helper only reads the context.
        unsafe { bpf_xdp_get_buff_len(ctx.ctx) }
    };
    let reason = judgement.reason as usize;
    // SAFETY: this CPU's map value, valid while the program runs and written by nothing else on
    // this CPU. The numbers of reasons and messages are below the lengths of the arrays, which the
    // layout takes from them.
    unsafe {
        // Branch-free: this is the hot path for dropped packets.
        let shift = usize::from(spared) * SPARED;
        *(&raw mut (*counters).packets).cast::<u64>().add(reason).byte_add(shift) += 1;
        *(&raw mut (*counters).bytes).cast::<u64>().add(reason).byte_add(shift) += bytes;
        if let Some(message) = judgement.message {
            *(&raw mut (*counters).messages).cast::<u64>().add(message as usize) += 1;
        }
    }
    clock::leave(judgement);
    if drops && spared == 0 { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}
