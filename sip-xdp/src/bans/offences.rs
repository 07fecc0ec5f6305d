//! Offence counts, which lengthen bans.

use std::collections::HashMap;

use crate::net::network::Network;

/// An hour, in nanoseconds.
pub(crate) const HOUR: u64 = 3_600_000_000_000;

/// Minimum interval between two level 0 bans of a source: a day.
pub(super) const UNPROVEN_ONCE: u64 = 24 * HOUR;

/// Maximum number of remembered offenders.
pub(crate) const MAX_OFFENCES: usize = 131_072;

/// The offences of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offence {
    /// Number of bans.
    pub(crate) count: u32,
    /// Time of the last one, on the filter's clock.
    pub(crate) at: u64,
}

/// Repeated bans that do not count as offences, in memory only.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    /// Bans of single ports and of misconfigured phones.
    places: HashMap<(Network, u16), Offence>,
    /// Time of the last ban of a misconfigured phone by its address, if none for more followed.
    misconfigured: HashMap<Network, u64>,
    /// Time of the last level 0 ban by network.
    unproven: HashMap<Network, u64>,
}

impl Repeats {
    /// The number of earlier bans of this address and port within `forget` nanoseconds; counts this
    /// one.
    pub(super) fn count(&mut self, place: (Network, u16), now: u64, forget: u64) -> u32 {
        if self.places.len() >= MAX_OFFENCES && !self.places.contains_key(&place) {
            return 0;
        }
        let one = self.places.entry(place).or_insert(Offence { count: 0, at: now });
        let before = if now.saturating_sub(one.at) < forget { one.count } else { 0 };
        (one.count, one.at) = (before.saturating_add(1), now);
        before
    }

    /// Whether a level 0 ban of a network is allowed: once a day.
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

    /// Records whether a ban of a whole address is one of a misconfigured phone.
    pub(super) fn note_ban(&mut self, network: &Network, is_misconfigured: bool, now: u64) {
        if !is_misconfigured {
            self.misconfigured.remove(network);
        } else if self.misconfigured.len() < MAX_OFFENCES {
            self.misconfigured.insert(*network, now);
        }
    }

    /// Whether an address was banned within an hour for a misconfigured phone, and not for more.
    pub(super) fn is_misconfigured(&self, network: &Network, now: u64) -> bool {
        self.misconfigured.get(network).is_some_and(|at| now.saturating_sub(*at) < HOUR)
    }

    /// Removes a pardoned network, with what is in it and around it.
    pub(crate) fn forget(&mut self, pardoned: &Network) {
        self.places.retain(|(network, _), _| !pardoned.meets(network));
        self.unproven.retain(|network, _| !pardoned.meets(network));
        self.misconfigured.retain(|network, _| !pardoned.meets(network));
    }

    pub(super) fn tidy(&mut self, now: u64, forget: u64) {
        self.places.retain(|_, one| now.saturating_sub(one.at) < forget);
        self.unproven.retain(|_, at| now.saturating_sub(*at) < UNPROVEN_ONCE);
        self.misconfigured.retain(|_, at| now.saturating_sub(*at) < HOUR);
    }
}

/// The offences of a network, as they survive a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffenceRecord {
    /// The network.
    pub network: Network,
    /// Number of bans.
    pub count: u32,
    /// Time of the last one, in milliseconds since 1970.
    pub last_ms: u64,
}
