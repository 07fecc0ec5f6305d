//! The kernel programs of sip-xdp: maps, access to packets, and wiring. Every decision is taken in
//! `sip-xdp-common`, where it is tested on the host; nothing here looks at a packet but through
//! `reader`, and nothing counts a packet but `counters::leave`.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(
    internal_features,
    reason = "core::sync has no atomics on this target, only the intrinsics do"
)]

mod clock;
mod counters;
mod egress;
mod events;
mod globals;
mod lists;
mod maps;
mod reader;
mod tables;
#[cfg(feature = "trace")]
mod trace;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use sip_xdp_common::abi::layout::Counters;
use sip_xdp_common::pipeline::ingress::{self, Judgement};
use sip_xdp_common::verdict::Reason;

use crate::maps::counters;
use crate::reader::Packet;
use crate::tables::MapTables;

// The attribute makes the exported function, which is without documentation and need not be `pub`.
#[xdp(frags)]
#[inline(always)]
fn sip_xdp_ingress(ctx: XdpContext) -> u32 {
    // Every interface has its slot; the verifier wants to see the question asked.
    let Some(counters) = counters() else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: a field's address inside this CPU's map value; nothing is read.
    let scratch = unsafe { &raw mut (*counters).scratch };
    let tables = MapTables::new(&ctx, scratch);
    #[cfg(feature = "trace")]
    let tables = trace::Traced::new(tables, &ctx);
    let judgement = ingress::judge(&Packet::arriving(&ctx, scratch), &tables);
    #[cfg(feature = "trace")]
    trace::decided(&ctx, &judgement);
    match judgement.reason {
        // Written out, so that the compiler makes an exit for these, most of a flood, where nothing
        // is left to find out.
        Reason::Blocked => leave(&ctx, counters, &Judgement::by(Reason::Blocked, judgement.end)),
        _ => leave(&ctx, counters, &judgement),
    }
}

/// The last that is done for a packet.
#[inline(always)]
fn leave(ctx: &XdpContext, counters: *mut Counters, judgement: &Judgement) -> u32 {
    // SAFETY: as above.
    events::sample_drop(ctx, unsafe { &raw mut (*counters).scratch }, judgement);
    counters::leave(ctx, counters, judgement)
}

/// Reads what leaves.
#[classifier]
#[inline(always)]
fn sip_xdp_egress(ctx: TcContext) -> i32 {
    egress::read(&ctx)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence that the kernel asks for before it offers GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
