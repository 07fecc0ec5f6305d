//! The usual lookup of networks, for comparison: the kernel's LPM trie.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;

#[btf_map]
static TRIE4: LpmTrie<[u8; 4], u32, 1048576> = LpmTrie::new();

#[btf_map]
static TRIE6: LpmTrie<[u8; 16], u32, 1048576> = LpmTrie::new();

/// The `N` bytes at `at` from the beginning of the frame.
#[inline(always)]
fn bytes<const N: usize>(ctx: &XdpContext, at: usize) -> Option<[u8; N]> {
    let start = ctx.data() + at;
    if start + N > ctx.data_end() {
        return None;
    }
    // SAFETY: all of them lie before the end. The kernel allows unaligned packet reads where the
    // machine does.
    Some(unsafe { (start as *const [u8; N]).read_unaligned() })
}

/// Drops packets of listed sources, and inspects nothing else.
#[inline(always)]
pub(crate) fn judge4(ctx: &XdpContext) -> u32 {
    match bytes(ctx, 26).and_then(|source| TRIE4.get(&Key::new(32, source))) {
        Some(_) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_PASS,
    }
}

/// The same for IPv6.
#[inline(always)]
pub(crate) fn judge6(ctx: &XdpContext) -> u32 {
    match bytes(ctx, 22).and_then(|source| TRIE6.get(&Key::new(128, source))) {
        Some(_) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_PASS,
    }
}
