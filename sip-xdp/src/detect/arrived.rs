//! Responses that arrive. A proxy forwards one that it never asked for to the next Via, so what
//! leaves as a response of ours may be somebody else's, and says nothing.

use super::digest::digest;
use super::observation::Observation;
use super::recent::Recent;
use crate::sip::message::Head;

/// How many are remembered, and for how long.
const MAX_RESPONSES: usize = 32_768;
const LIFETIME_NS: u64 = 40_000_000_000;

/// For how long no response of ours proves anything after one that arrived was not seen whole.
const BLIND_NS: u64 = 2_000_000_000;

/// See the module.
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
    /// Notes a response that arrived and answers no request of ours.
    pub(super) fn note(&mut self, head: Option<&Head<'_>>, event: &Observation<'_>) {
        match head.and_then(key) {
            Some(key) if !event.is_cut => self.keys.insert(key, event.time, ()),
            _ => self.blind_until = event.time + BLIND_NS,
        }
    }

    /// Notes that one was lost on its way from the kernel.
    pub(super) fn lost(&mut self, now: u64) {
        self.blind_until = now + BLIND_NS;
    }

    /// Whether a response that leaves may be one that arrived.
    pub(super) fn is_foreign(&self, head: &Head<'_>, now: u64) -> bool {
        now < self.blind_until || key(head).is_some_and(|key| self.keys.get(&key, now).is_some())
    }
}

/// What a proxy does not change: Call-ID and CSeq.
fn key(head: &Head<'_>) -> Option<u64> {
    let (number, method) = head.cseq?;
    Some(digest(&(head.call_id?, number, method.to_ascii_uppercase())))
}
