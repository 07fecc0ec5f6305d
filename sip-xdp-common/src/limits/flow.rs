//! Flows: one port of an address, looked up only for addresses that have any. A misconfigured phone
//! behind NAT is banned by its port; a known-good phone has a reserve that other phones behind its
//! address cannot spend.

use bytemuck::{Pod, Zeroable};

use crate::ip_key::IpKey;
use crate::limits::gcra::Limit;

/// Reserve of a known-good flow whose address is over its limit: 20 packets at once, then two per
/// second. A registration takes two requests.
pub const RESERVE: Limit = Limit::new(20, 10_000_000_000);

/// Key of a flow: an address and a port.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// The address.
    pub source: IpKey,
    /// The port, in host order.
    pub port: u16,
    /// Zero. Not an array: the compiler would call `memset` for it, a byte loop in BPF.
    pub pad: u16,
    /// Zero.
    pub pad_word: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 24);

impl FlowKey {
    /// The key of this address and port (host order).
    #[inline(always)]
    pub const fn new(source: IpKey, port: u16) -> Self {
        Self { source, port, pad: 0, pad_word: 0 }
    }
}

/// State of a flow. Times in nanoseconds of the filter's clock.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// End of its ban; 0 for none.
    pub banned_until: u64,
    /// End of its known-good state; 0 for none.
    pub good_until: u64,
    /// Time at which its reserve is full.
    pub reserve: u64,
    /// Packets dropped under its ban.
    pub hits: u64,
}

const _: () = assert!(size_of::<Flow>() == 32);

/// A host with a pending request of the server: its responses pass.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PendingRequest {
    /// Time of the last request to it, in nanoseconds of the filter's clock.
    pub at: u64,
}

/// Lifetime of a pending request in nanoseconds: timers B and F of RFC 3261 (17.1.1.2, 17.1.2.2)
/// are 32 s.
pub const PENDING_REQUEST_TIMEOUT_NS: u64 = 32_000_000_000;

impl PendingRequest {
    /// Whether the request is still pending at `now`.
    #[inline(always)]
    pub const fn is_open(&self, now: u64) -> bool {
        now.saturating_sub(self.at) < PENDING_REQUEST_TIMEOUT_NS
    }
}
