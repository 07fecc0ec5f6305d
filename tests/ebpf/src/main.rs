//! Kernel programs of the laboratory, not part of the product: the baselines of filters, the lower
//! bound of a lookup, a packet generator, and a source rotator for measured programs.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "core::sync has no atomics on this target, only the intrinsics do"
)]

mod floor;
mod generate;
mod trie;
mod turn;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

/// The fastest possible filter.
#[xdp(frags)]
fn drop_everything(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// The cost of any program at all.
#[xdp(frags)]
fn pass_everything(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Sends one packet. Never attached, only run by BPF_PROG_TEST_RUN with live frames.
#[xdp]
fn generate_packet(ctx: XdpContext) -> u32 {
    generate::send(&ctx)
}

/// Gives the measured program another source each time. Only run by BPF_PROG_TEST_RUN.
#[xdp(frags)]
fn take_turns(ctx: XdpContext) -> u32 {
    turn::turn(&ctx)
}

/// The lower bound of a lookup.
#[xdp(frags)]
fn touch_tables(ctx: XdpContext) -> u32 {
    floor::touch(&ctx)
}

/// An IPv4 block list as a trie.
#[xdp(frags)]
fn ask_trie4(ctx: XdpContext) -> u32 {
    trie::judge4(&ctx)
}

/// An IPv6 block list as a trie.
#[xdp(frags)]
fn ask_trie6(ctx: XdpContext) -> u32 {
    trie::judge6(&ctx)
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
