//! Peers: hosts that answer the server's own requests.

use std::collections::HashMap;

use sip_xdp_common::ip_key::IpKey;

use super::digest::digest;
use super::recent::Recent;

/// Maximum number of pending requests.
const MAX_PENDING_REQUESTS: usize = 16_384;

/// Timeout of a pending request, in nanoseconds.
const PATIENCE_NS: u64 = 40_000_000_000;

/// Maximum number of peers.
const MAX_PEERS: usize = 16_384;

/// Lifetime of a peer after its last answer, in nanoseconds.
pub(super) const PEER_NS: u64 = 3_600_000_000_000;

/// Pending requests and peers.
#[derive(Debug)]
pub(super) struct Peers {
    /// By destination and branch: the Call-ID digest; `None` if the branch was used more than once.
    asked: Recent<(u64, u64), Option<u64>>,
    until: HashMap<IpKey, u64>,
}

impl Default for Peers {
    fn default() -> Self {
        Self { asked: Recent::new(MAX_PENDING_REQUESTS, PATIENCE_NS), until: HashMap::new() }
    }
}

impl Peers {
    /// Records a request of the server. A branch used for several requests may be known to others,
    /// and proves nothing.
    pub(super) fn ask(&mut self, to: IpKey, branch: u64, call: u64, now: u64) {
        let before = self.asked.touch((digest(&to), branch), now, || Some(call));
        if *before != Some(call) {
            *before = None;
        }
    }

    /// Whether a response of `by` answers a request of the server.
    pub(super) fn answers(&self, by: IpKey, branch: u64, now: u64) -> bool {
        matches!(self.asked.get(&(digest(&by), branch), now), Some(Some(_)))
    }

    /// Processes a response. Returns the end of the sender's peer state, if it answers a request of
    /// the server.
    pub(super) fn respond(&mut self, by: IpKey, branch: u64, now: u64) -> Option<u64> {
        if !self.answers(by, branch, now) {
            return None;
        }
        if self.until.len() >= MAX_PEERS && !self.until.contains_key(&by) {
            return None;
        }
        let until = now + PEER_NS;
        self.until.insert(by, until);
        Some(until)
    }

    /// Restores a peer of an earlier run.
    pub(super) fn restore(&mut self, source: IpKey, until: u64) {
        if self.until.len() < MAX_PEERS {
            self.until.insert(source, until);
        }
    }

    pub(super) fn is_peer(&self, source: &IpKey, now: u64) -> bool {
        self.until.get(source).is_some_and(|until| *until > now)
    }

    pub(super) fn count(&self, now: u64) -> usize {
        self.until.values().filter(|until| **until > now).count()
    }

    pub(super) fn tidy(&mut self, now: u64) {
        self.until.retain(|_, until| *until > now);
    }
}
