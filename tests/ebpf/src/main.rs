//! Kernel programs for the laboratory, no part of the product: the two baselines that every filter is measured against,
//! and a generator of packets.

#![no_std]
#![no_main]

mod generate;

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

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence that the kernel asks for before it offers GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
