//! Flows: one port of an address. They are asked about only where an address has any: a bad phone
//! in an office is banned by its port, and a good phone has a reserve of its own that nobody else
//! behind its address can spend.

use bytemuck::{Pod, Zeroable};

use crate::ip_key::IpKey;
use crate::limits::gcra::Limit;

/// What a known-good flow may send when its address has used up its limit: 20 packets at once, then
/// two a second. A registration takes two requests.
pub const RESERVE: Limit = Limit::new(20, 10_000_000_000);

/// An address and a port.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// The address.
    pub source: IpKey,
    /// The port, in host order.
    pub port: u16,
    /// Zero. Not an array: the compiler would call `memset` for one, which goes byte by byte in
    /// BPF.
    pub pad: u16,
    /// Zero.
    pub pad_word: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 24);

impl FlowKey {
    /// Of an address and a port.
    #[inline(always)]
    pub const fn new(source: IpKey, port: u16) -> Self {
        Self { source, port, pad: 0, pad_word: 0 }
    }
}

/// What is known of a flow. Times in nanoseconds of the filter's clock.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// Until when it is banned.
    pub banned_until: u64,
    /// Until when it is known good.
    pub good_until: u64,
    /// When its reserve is full again.
    pub reserve: u64,
    /// Packets dropped because it is banned.
    pub hits: u64,
}

const _: () = assert!(size_of::<Flow>() == 32);

/// A host that we sent a request to: what answers is no stranger.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PendingRequest {
    /// When the last one left, in nanoseconds of the filter's clock.
    pub at: u64,
}

/// For how long an answer is waited for, in nanoseconds: timer B and F of RFC 3261 (17.1.1.2) are
/// 32 s.
pub const PENDING_REQUEST_TIMEOUT_NS: u64 = 32_000_000_000;

impl PendingRequest {
    /// Whether an answer may still come at `now`.
    #[inline(always)]
    pub const fn is_open(&self, now: u64) -> bool {
        now.saturating_sub(self.at) < PENDING_REQUEST_TIMEOUT_NS
    }
}
