//! Incoming responses. A proxy forwards a response that it never requested to the next Via, so that
//! an outgoing response of the server may be a foreign one, and proves nothing.

use super::digest::digest;
use super::observation::Observation;
use super::recent::Recent;
use crate::sip::message::Head;

/// Maximum number of remembered responses, and their lifetime.
const MAX_RESPONSES: usize = 32_768;
const LIFETIME_NS: u64 = 40_000_000_000;

/// Nanoseconds after an incoming response whose Call-ID or CSeq was not seen, during which no
/// outgoing response proves anything.
const BLIND_NS: u64 = 2_000_000_000;

/// Recent incoming responses.
#[derive(Debug)]
pub(super) struct Arrived {
    keys: Recent<u64, ()>,
    blind_until: u64,
}

impl Default for Arrived {
    fn default() -> Self {
        Self { keys: Recent::new(MAX_RESPONSES, LIFETIME_NS), blind_until: 0 }
    }
}

impl Arrived {
    /// Records an incoming response that answers no request of the server.
    pub(super) fn note(&mut self, head: Option<&Head<'_>>, event: &Observation<'_>) {
        match head.and_then(key) {
            // A server takes the first Call-ID and CSeq as well.
            Some(key) => self.keys.insert(key, event.time, ()),
            None if event.is_cut => self.blind_until = event.time + BLIND_NS,
            None => {}
        }
    }

    /// Records that one was lost on its way from the kernel.
    pub(super) fn lost(&mut self, now: u64) {
        self.blind_until = now + BLIND_NS;
    }

    /// Whether an outgoing response may be a forwarded one.
    pub(super) fn is_foreign(&self, head: &Head<'_>, now: u64) -> bool {
        now < self.blind_until || key(head).is_none_or(|key| self.keys.get(&key, now).is_some())
    }
}

/// The parts that a proxy keeps: Call-ID and CSeq.
fn key(head: &Head<'_>) -> Option<u64> {
    let (number, method) = head.cseq?;
    Some(digest(&(head.call_id?, number, method.to_ascii_uppercase())))
}
