//! The kernel programs of sip-xdp: maps, packet access and wiring. All decisions are in
//! `sip-xdp-common`, where host tests cover them. Packets are read only through `reader`, and
//! counted only by `counters::leave`.

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
mod scan;
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

// The attribute generates the exported function, which has no documentation and need not be `pub`.
#[xdp(frags)]
#[inline(always)]
fn sip_xdp_ingress(ctx: XdpContext) -> u32 {
    // Every interface has its slot, but the verifier requires the null check.
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
        // A separate arm, so that the compiler generates a short exit for blocked packets: most of
        // a flood.
        Reason::Blocked => leave(&ctx, counters, &Judgement::by(Reason::Blocked, judgement.end)),
        _ => leave(&ctx, counters, &judgement),
    }
}

/// Samples, counts and returns the action.
#[inline(always)]
fn leave(ctx: &XdpContext, counters: *mut Counters, judgement: &Judgement) -> u32 {
    // SAFETY: as above.
    events::sample_drop(ctx, unsafe { &raw mut (*counters).scratch }, judgement);
    counters::leave(ctx, counters, judgement)
}

/// The egress (tc) program.
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

/// The licence string, which GPL-only helpers require.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
