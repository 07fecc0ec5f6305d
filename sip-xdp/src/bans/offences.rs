//! How often a network was banned before: what makes the next ban longer.

use std::collections::HashMap;

use crate::net::network::Network;

/// An hour, in nanoseconds.
pub(crate) const HOUR: u64 = 3_600_000_000_000;

/// For how long a source is not banned again by evidence that could be forged: a day.
pub(super) const UNPROVEN_ONCE: u64 = 24 * HOUR;

/// How many offenders are remembered.
pub(crate) const MAX_OFFENCES: usize = 131_072;

/// How often a network was banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offence {
    /// Times.
    pub(crate) count: u32,
    /// When it was last, on the filter's clock.
    pub(crate) at: u64,
}

/// What is remembered of bans beside the offences, as long as the process lives.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    /// Bans of places, how often and when last: ports, and misconfigured phones.
    places: HashMap<(Network, u16), Offence>,
    /// When a network was last banned by evidence that could be forged.
    unproven: HashMap<Network, u64>,
}

impl Repeats {
    /// How often a place was banned before, within `forget` nanoseconds; counts this time.
    pub(super) fn count(&mut self, place: (Network, u16), now: u64, forget: u64) -> u32 {
        if self.places.len() >= MAX_OFFENCES && !self.places.contains_key(&place) {
            return 0;
        }
        let one = self.places.entry(place).or_insert(Offence { count: 0, at: now });
        let before = if now.saturating_sub(one.at) < forget { one.count } else { 0 };
        (one.count, one.at) = (before.saturating_add(1), now);
        before
    }

    /// Whether a network may be banned by evidence that could be forged: once a day.
    pub(super) fn may_ban_unproven(&mut self, network: &Network, now: u64) -> bool {
        let lately = |at: &u64| now.saturating_sub(*at) < UNPROVEN_ONCE;
        if self.unproven.get(network).is_some_and(lately) {
            return false;
        }
        if self.unproven.len() >= MAX_OFFENCES {
            self.unproven.retain(|_, at| lately(at));
        }
        if self.unproven.len() >= MAX_OFFENCES {
            return false;
        }
        self.unproven.insert(*network, now);
        true
    }

    /// Forgets a pardoned network.
    pub(crate) fn forget(&mut self, network: &Network) {
        self.places.retain(|(known, _), _| known != network);
        self.unproven.remove(network);
    }

    pub(super) fn tidy(&mut self, now: u64, forget: u64) {
        self.places.retain(|_, one| now.saturating_sub(one.at) < forget);
        self.unproven.retain(|_, at| now.saturating_sub(*at) < UNPROVEN_ONCE);
    }
}

/// How often a network was banned, as it outlives a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffenceRecord {
    /// The network.
    pub network: Network,
    /// How often.
    pub count: u32,
    /// When the last time, in milliseconds since 1970.
    pub last_ms: u64,
}
