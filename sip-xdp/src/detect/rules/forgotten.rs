//! Forgotten phones: several users of one site whose passwords were changed, and whose phones
//! nobody has reset. A site is an IPv4 address, or an IPv6 network (a /64, /56 and /48).
//!
//! Such a phone has one user, pauses for 20 s or more between two tries, and stays where it is. As
//! long as a site has few of them, each is judged by itself, and the site is not, even where nobody
//! was accepted yet: after a start without state nothing else is known about an office. What all
//! of them try together is bounded: from 20 tries on, each further one ends in a ban at once, and
//! the more users there are, the longer these bans are.

use std::collections::HashMap;

use sip_xdp_common::ip_key::{IpKey, mask};

use super::super::Detector;
use super::super::claim::Rejection;
use super::super::digest::digest;
use super::super::recent::Recent;
use super::super::windows::LeakyBucket;

/// Minimum retry interval of a phone with a wrong password.
pub(super) const PATIENT_NS: u64 = 20_000_000_000;

/// Number of never-accepted users of a site, besides as many as were accepted, that may be
/// misconfigured phones.
pub(super) const FORGOTTEN: usize = 16;

/// Users of a site per hour of the longest ban. A ban of an hour leaves each user a guess an hour;
/// 16 users with bans of 4 hours have 96 guesses a day, four users with bans of an hour as many.
const USERS_PER_HOUR: usize = 4;

/// The longest ban, in hours: for sites with many accepted users, and so with many forgotten ones.
const MOST_HOURS: usize = 6;

/// Rejections over TCP, of which one is forgiven per 30 minutes, that a site without accepted users
/// may have. Each connection has another port, so that nothing but the address can be banned.
const MOST_OVER_TCP: f64 = 100.0;

/// Tries of a user before a full site leads to a ban: somebody may mistype a password twice.
const TYPOS: f64 = 2.5;

/// Maximum number of remembered sites, and of users of each.
const MAX_SITES: usize = 16_384;
const MAX_USERS: usize = 64;

const DAY_NS: u64 = 24 * 3_600_000_000_000;

/// Prefix lengths of IPv6 sites, the widest first.
const WIDTHS: [u8; 3] = [48, 56, 64];

/// A user that was rejected at a site, and never accepted there.
#[derive(Debug, Clone, Copy)]
struct Tried {
    at: u64,
    /// Digest of the place: a UDP port, or an IPv6 host.
    place: u64,
    /// Whether there was another place within a day.
    has_moved: bool,
    /// Whether its place was banned.
    is_convicted: bool,
}

#[derive(Debug, Default)]
struct Site {
    users: HashMap<u64, Tried>,
    tries: LeakyBucket,
    over_tcp: LeakyBucket,
}

/// What a rejection says about its sender.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Pace {
    /// Less than 20 s after the same user's try before.
    pub(in super::super) is_quick: bool,
}

/// The sites of a day.
#[derive(Debug)]
pub(in super::super) struct Sites {
    sites: Recent<(u8, IpKey), Site>,
}

impl Default for Sites {
    fn default() -> Self {
        Self { sites: Recent::new(MAX_SITES, DAY_NS) }
    }
}

/// The site of a source with this prefix length.
fn site(source: &IpKey, bits: u8) -> (u8, IpKey) {
    (bits, source.masked(mask(bits)))
}

/// The widest site of a source, which all limits are about.
fn widest(source: &IpKey) -> (u8, IpKey) {
    site(source, if source.is_v4() { 128 } else { WIDTHS[0] })
}

impl Sites {
    /// Records a rejection of a user that was never accepted at this address. `leak_ns` is the time
    /// in which a bucket loses one.
    pub(super) fn note(
        &mut self,
        source: IpKey,
        rejection: &Rejection,
        now: u64,
        leak_ns: u64,
    ) -> Pace {
        let user = digest(&rejection.user);
        // A connection has another port each time, and says nothing about the phone's place.
        let port = if rejection.transport.is_stream() { 0 } else { rejection.port };
        let mut pace = Pace::default();
        let widths = if source.is_v4() { &[128][..] } else { &WIDTHS[..] };
        for bits in widths {
            let place = if source.is_v4() { u64::from(port) } else { digest(&source) };
            let found = self.sites.touch(site(&source, *bits), now, Site::default);
            found.tries.pour(now, leak_ns);
            if rejection.transport.is_stream() {
                found.over_tcp.pour(now, leak_ns);
            }
            found.users.retain(|_, one| now.saturating_sub(one.at) < DAY_NS);
            if let Some(one) = found.users.get_mut(&user) {
                pace.is_quick |= now.saturating_sub(one.at) < PATIENT_NS;
                one.has_moved |= one.place != place;
                (one.at, one.place) = (now, place);
            } else if found.users.len() < MAX_USERS {
                let (has_moved, is_convicted) = (false, false);
                found.users.insert(user, Tried { at: now, place, has_moved, is_convicted });
            }
        }
        pace
    }

    fn users(&self, source: &IpKey, now: u64) -> usize {
        self.sites.get(&widest(source), now).map_or(0, |site| {
            site.users.values().filter(|one| now.saturating_sub(one.at) < DAY_NS).count()
        })
    }

    fn tried(&self, source: &IpKey, user: &str, now: u64) -> Option<&Tried> {
        self.sites.get(&widest(source), now)?.users.get(&digest(user))
    }

    /// Whether the place of a user was banned within a day.
    pub(super) fn is_convicted(&self, source: &IpKey, user: &str, now: u64) -> bool {
        self.tried(source, user, now).is_some_and(|one| one.is_convicted)
    }

    /// Records a ban of a user's place.
    pub(super) fn convict(&mut self, source: &IpKey, user: &str, now: u64) {
        if let Some(site) = self.sites.get_mut(&widest(source), now)
            && let Some(one) = site.users.get_mut(&digest(user))
        {
            one.is_convicted = true;
        }
    }

    /// Rejections at the site of a source that are not forgiven yet.
    pub(super) fn filled(&self, source: &IpKey, now: u64, leak_ns: u64) -> f64 {
        self.sites.get(&widest(source), now).map_or(0.0, |site| site.tries.level(now, leak_ns))
    }

    /// Forgets the site of a pardoned source.
    pub(in super::super) fn forget(&mut self, source: &IpKey) {
        let widths = if source.is_v4() { &[128][..] } else { &WIDTHS[..] };
        widths.iter().for_each(|bits| _ = self.sites.remove(&site(source, *bits)));
    }
}

impl Detector {
    /// Whether a source without accepted users looks like several forgotten phones: two to 16
    /// users, none of whom was banned for guessing.
    pub(super) fn is_forgotten_site(&self, source: &IpKey, now: u64) -> bool {
        let users = self.forgotten.users(source, now);
        (2..=FORGOTTEN).contains(&users) && self.offenders.get(source, now).is_none()
    }

    /// Whether a try in an IPv6 network is one of several forgotten phones, each at a host of its
    /// own, and so no evidence against the network.
    pub(super) fn is_forgotten_within(
        &self,
        source: &IpKey,
        bits: u8,
        user: &str,
        pace: Pace,
        now: u64,
    ) -> bool {
        let Some(found) = self.forgotten.sites.get(&site(source, bits), now) else {
            return false;
        };
        let has_moved = found.users.get(&digest(user)).is_none_or(|one| one.has_moved);
        (2..=FORGOTTEN).contains(&found.users.len()) && !pace.is_quick && !has_moved
    }

    /// The longest ban of one of these phones, in hours.
    pub(super) fn hours_for_a_phone(&self, source: &IpKey, now: u64) -> u32 {
        let users = self.forgotten.users(source, now);
        users.div_ceil(USERS_PER_HOUR).clamp(1, MOST_HOURS) as u32
    }

    /// Whether the phones of a site have used up what they have together, and this one its own part
    /// of it: it was banned before, or has tried more often than somebody who mistypes.
    pub(super) fn has_used_up(&self, source: &IpKey, user: &str, own: f64, now: u64) -> bool {
        let slow = self.rules.slow;
        let filled = self.forgotten.filled(source, now, slow.per.nanos());
        let is_full = slow.enabled && filled >= f64::from(slow.count) - 0.5;
        let users = self.forgotten.users(source, now);
        is_full && users >= 2 && (own >= TYPOS || self.forgotten.is_convicted(source, user, now))
    }

    /// Whether a site without accepted users has used up what it has over TCP.
    pub(super) fn has_used_up_tcp(&self, source: &IpKey, now: u64) -> bool {
        let slow = self.rules.slow;
        let site = self.forgotten.sites.get(&widest(source), now);
        slow.enabled
            && site.is_some_and(|site| site.over_tcp.level(now, slow.per.nanos()) >= MOST_OVER_TCP)
    }

    /// Whether level 1 tries of a source are quicker than those of phones: so many of them, or so
    /// many in a leaky bucket, came less than 20 s after one of the same user.
    pub(super) fn is_quick(&self, source: &IpKey, tries: &[&(u64, Rejection)], now: u64) -> bool {
        let (rejected, slow) = (self.rules.rejected, self.rules.slow);
        let filled = self
            .sources
            .get(source)
            .map_or(0.0, |s| s.counts.slow.quick.level(now, slow.per.nanos()));
        let count = quick_ones(tries);
        count > 0
            && (rejected.enabled && count >= self.threshold(source, rejected.count, now)
                || slow.enabled && filled >= f64::from(slow.count) - 0.5)
    }

    /// Whether tries that anybody could have sent look like several forgotten phones.
    pub(super) fn looks_forgotten(&self, tries: &[&(u64, Rejection)]) -> bool {
        let mut users: Vec<&str> = tries.iter().map(|(_, one)| one.user.as_str()).collect();
        users.sort_unstable();
        users.dedup();
        let count = self.rules.rejected.count as usize;
        (2..=FORGOTTEN).contains(&users.len()) && quick_ones(tries) < count
    }
}

/// Number of tries less than 20 s after one of the same user.
fn quick_ones(tries: &[&(u64, Rejection)]) -> usize {
    let mut last: HashMap<&str, u64> = HashMap::new();
    let mut count = 0;
    for (at, one) in tries.iter().copied() {
        let before = last.insert(one.user.as_str(), *at);
        count += usize::from(before.is_some_and(|before| at.saturating_sub(before) < PATIENT_NS));
    }
    count
}

#[cfg(test)]
mod tests {
    use super::super::super::claim::Level;
    use super::*;
    use crate::sip::transport::Transport;

    const SECOND: u64 = 1_000_000_000;

    fn rejection(user: &str, port: u16) -> Rejection {
        let (transport, level) = (Transport::Udp, Level::Routable);
        Rejection { user: user.to_owned(), port, transport, level, network: false, call: 0 }
    }

    #[test]
    fn pace_and_place_of_each_user() {
        let (mut sites, source) = (Sites::default(), IpKey::v4(7));
        let mut note = |user: &str, port, seconds: u64| {
            sites.note(source, &rejection(user, port), seconds * SECOND, SECOND).is_quick
        };
        let quick = [
            note("a", 1, 100),
            note("b", 2, 101),
            note("a", 1, 119),
            note("a", 1, 139),
            note("b", 3, 200),
        ];
        assert_eq!(quick, [false, false, true, false, false]);
        let now = 200 * SECOND;
        let has_moved = |user| sites.tried(&source, user, now).is_some_and(|one| one.has_moved);
        assert!(!has_moved("a") && has_moved("b"));
        assert_eq!((sites.users(&source, now), sites.users(&IpKey::v4(8), now)), (2, 0));
        sites.convict(&source, "a", now);
        assert!(sites.is_convicted(&source, "a", now) && !sites.is_convicted(&source, "b", now));
        assert_eq!(sites.users(&source, now + DAY_NS), 0);
        sites.forget(&source);
        assert_eq!(sites.users(&source, now), 0);
    }

    #[test]
    fn memory_is_bounded() {
        let mut sites = Sites::default();
        for n in 0..2 * MAX_SITES as u32 {
            sites.note(IpKey::v4(n), &rejection("a", 1), u64::from(n), SECOND);
        }
        for n in 0..1_000_u64 {
            sites.note(IpKey::v4(1), &rejection(&n.to_string(), 1), n, SECOND);
        }
        assert!(sites.sites.len() <= MAX_SITES);
        assert_eq!(sites.users(&IpKey::v4(1), 1_000), MAX_USERS);
    }
}
