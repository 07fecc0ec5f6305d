//! Kernel programs for the laboratory, no part of the product: the baselines that every filter is
//! measured against, the floor under them, a generator of packets, and what gives measured programs
//! their sources.

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

/// The fastest filter there is.
#[xdp(frags)]
fn drop_everything(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// What it costs that there is a program at all.
#[xdp(frags)]
fn pass_everything(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Sends one packet. It is never attached, but run by BPF_PROG_TEST_RUN with live frames.
#[xdp]
fn generate_packet(ctx: XdpContext) -> u32 {
    generate::send(&ctx)
}

/// Gives the program that is measured another source each time. Only run by BPF_PROG_TEST_RUN.
#[xdp(frags)]
fn take_turns(ctx: XdpContext) -> u32 {
    turn::turn(&ctx)
}

/// What no list can do without.
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

/// The licence that the kernel asks for before it offers GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
