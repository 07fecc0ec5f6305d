//! Forgotten phones: several users of one site whose passwords were changed, and whose phones
//! nobody has reset. A site is an IPv4 address, or an IPv6 /48.
//!
//! Such a phone has one user, stays at one address, and pauses for 20 s or more between two tries.
//! An address with 2 to 16 of them is weighed by ports, as an office with accepted users is
//! ([`super::rejected`]), also where nobody was accepted yet: after a start without state nothing
//! is known about any office. By IPv6, where each phone has an address, it is that address, and no
//! evidence against the network.
//!
//! Whoever imitates them must not have more guesses than others. So all users of a site fill one
//! leaky bucket. Once it is full, each further try of a phone ends in a ban of its port or address,
//! and the more users there are, the longer are these bans.

use std::collections::{BTreeSet, HashMap};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sip_xdp_common::ip_key::{IpKey, mask};

use super::super::Detector;
use super::super::recent::Recent;
use super::super::windows::LeakyBucket;
use super::rejected;
use super::rule::Memory;

/// Minimum retry interval of a phone with a wrong password.
pub(super) const PATIENT_NS: u64 = 20_000_000_000;

/// Number of never-accepted users of a site, besides as many as were accepted, that may be
/// misconfigured phones.
pub(super) const FORGOTTEN: usize = 16;

/// Number of users whose bans are as long as that of one phone. Bans of an hour leave each user 24
/// tries a day, so that four users have 96; eight users with bans of two hours have as many.
const USERS_PER_LENGTH: usize = 4;

/// The highest multiple: sites with many accepted users may have more than 16 forgotten phones.
const LONGEST: usize = 6;

/// Level of a site's bucket at which a cold site is banned as a whole for tries over TCP: each
/// connection has another port, so that a ban of the port bounds nothing.
const MOST_OVER_TCP: f64 = 100.0;

/// Tries of one port before a full site's bucket leads to its ban: somebody may mistype a password
/// twice.
const TYPOS: f64 = 2.5;

/// Maximum number of remembered sites, and of users of each.
const MAX_SITES: usize = 16_384;
const MAX_USERS: usize = 32;

/// Maximum number of sites kept over a restart.
const MAX_KEPT: usize = 4_096;

/// How long a user counts after its last try.
const DAY_NS: u64 = 24 * 3_600_000_000_000;

/// Prefix length of an IPv6 site: the widest network of one customer.
const SITE_BITS: u8 = 48;

/// A user that was rejected at a site, and never accepted there.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tried {
    /// Time of the last try.
    at: u64,
    /// Its address.
    host: [u8; 16],
    /// Whether a try within a day before came from another address.
    has_moved: bool,
    /// Whether its port or address was banned.
    is_convicted: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Site {
    users: HashMap<String, Tried>,
    /// Tries of all users.
    tries: LeakyBucket,
}

impl Site {
    /// Users that were tried within a day.
    fn users(&self, now: u64) -> usize {
        self.users.values().filter(|one| now.saturating_sub(one.at) < DAY_NS).count()
    }

    /// Whether it has as many users as may be forgotten phones.
    fn is_forgotten(&self, now: u64) -> bool {
        (2..=FORGOTTEN).contains(&self.users(now))
    }
}

/// The sites of a day.
#[derive(Debug)]
pub(in super::super) struct Sites(Recent<IpKey, Site>);

impl Default for Sites {
    fn default() -> Self {
        Self(Recent::new(MAX_SITES, DAY_NS))
    }
}

/// A site that outlives a restart: its address, the time of its last try, and the rest.
type Kept<S> = ([u8; 16], u64, S);

impl Memory for Sites {
    fn keep(&self) -> Result<Option<Value>> {
        // One user alone is weighed by its address anyway.
        let several = self.0.iter().filter(|(_, _, site)| site.users.len() > 1);
        let mut kept: Vec<Kept<&Site>> =
            several.map(|(address, last, site)| (address.octets(), last, site)).collect();
        kept.sort_unstable_by_key(|(_, last, _)| *last);
        let oldest = kept.len().saturating_sub(MAX_KEPT);
        Ok(Some(serde_json::to_value(&kept[oldest..])?))
    }

    fn recall(&mut self, kept: Value, moved: &dyn Fn(u64) -> u64) -> Result<()> {
        let kept: Vec<Kept<Site>> = serde_json::from_value(kept)?;
        for (address, last, mut site) in kept.into_iter().take(MAX_KEPT) {
            site.users.values_mut().for_each(|one| one.at = moved(one.at));
            site.tries.shift(moved);
            *self.0.touch(IpKey::new(address), moved(last), Site::default) = site;
        }
        Ok(())
    }
}

/// The site of an address.
fn site_of(source: &IpKey) -> IpKey {
    if source.is_v4() { *source } else { source.masked(mask(SITE_BITS)) }
}

impl Sites {
    /// Records a rejection of a user that was never accepted at this address. `leak_ns` is the time
    /// in which the bucket loses one. Returns whether it came sooner after the try before than a
    /// phone's.
    pub(super) fn note(&mut self, source: &IpKey, user: &str, now: u64, leak_ns: u64) -> bool {
        let (host, site) = (source.octets(), self.0.touch(site_of(source), now, Site::default));
        site.tries.pour(now, leak_ns);
        site.users.retain(|_, one| now.saturating_sub(one.at) < DAY_NS);
        if let Some(one) = site.users.get_mut(user) {
            let is_quick = now.saturating_sub(one.at) < PATIENT_NS;
            one.has_moved |= one.host != host;
            (one.at, one.host) = (now, host);
            return is_quick;
        }
        if site.users.len() < MAX_USERS {
            let tried = Tried { at: now, host, has_moved: false, is_convicted: false };
            site.users.insert(user.to_owned(), tried);
        }
        false
    }

    /// Takes back users that were accepted.
    pub(super) fn take_back(&mut self, source: &IpKey, users: &[String], now: u64) {
        if let Some(site) = self.0.get_mut(&site_of(source), now) {
            site.users.retain(|user, _| !users.contains(user));
        }
    }

    fn get(&self, source: &IpKey, now: u64) -> Option<&Site> {
        self.0.get(&site_of(source), now)
    }

    /// Whether an address has several users of a site with as many as may be forgotten phones.
    fn is_shared(&self, source: &IpKey, now: u64) -> bool {
        let is_here =
            |one: &&Tried| one.host == source.octets() && now.saturating_sub(one.at) < DAY_NS;
        self.get(source, now).is_some_and(|site| {
            site.is_forgotten(now) && site.users.values().filter(is_here).count() >= 2
        })
    }

    /// Records a ban of the port or address of these users.
    pub(super) fn convict(&mut self, source: &IpKey, users: &BTreeSet<&str>, now: u64) {
        if let Some(site) = self.0.get_mut(&site_of(source), now) {
            let convicted = site.users.iter_mut().filter(|(user, _)| users.contains(user.as_str()));
            convicted.for_each(|(_, one)| one.is_convicted = true);
        }
    }

    /// Whether a user is one of several forgotten phones, and stays at one address.
    pub(super) fn is_phone(&self, source: &IpKey, user: &str, now: u64) -> bool {
        self.get(source, now).is_some_and(|site| {
            let stays = site.users.get(user).is_some_and(|one| !one.has_moved);
            stays && site.is_forgotten(now)
        })
    }

    /// How many times as long as for one phone bans at this site are.
    pub(super) fn times(&self, source: &IpKey, now: u64) -> u32 {
        let users = self.get(source, now).map_or(0, |site| site.users(now));
        users.div_ceil(USERS_PER_LENGTH).clamp(1, LONGEST) as u32
    }

    /// Forgets the site of a pardoned source.
    pub(in super::super) fn forget(&mut self, source: &IpKey) {
        self.0.remove(&site_of(source));
    }
}

/// In which time one rejection leaks out of the bucket of those that are quicker than a phone's, in
/// nanoseconds: `[detect.rejected]`, by which they would be evidence, as a leaky bucket.
pub(super) fn quick_leak_ns(rule: &rejected::Settings) -> u64 {
    rule.per.nanos() / u64::from(rule.count.max(1))
}

impl Detector {
    /// Whether an address without accepted users looks like an office with several forgotten
    /// phones: none of them is quick, sprays, or was banned for guessing.
    pub(super) fn is_forgotten_site(&self, source: &IpKey, now: u64) -> bool {
        let rule = self.rules.rejected;
        let quick = self
            .sources
            .get(source)
            .map_or(0.0, |state| state.counts.rejected.quick.level(now, quick_leak_ns(&rule)));
        self.memory.rejected.is_shared(source, now)
            && quick < f64::from(rule.count) - 0.5
            && self.offenders.get(source, now).is_none()
            && !self.sprays_with_others(source, now)
    }

    /// Whether a site's bucket is full.
    pub(super) fn has_used_up(&self, source: &IpKey, now: u64) -> bool {
        let slow = self.rules.slow;
        let site = self.memory.rejected.get(source, now);
        slow.enabled
            && site.is_some_and(|site| {
                let filled = site.tries.level(now, slow.per.nanos());
                site.users(now) >= 2 && filled >= f64::from(slow.count) - 0.5
            })
    }

    /// Whether a site's bucket is full, and a phone with this level of its own bucket has used up
    /// its part: it was banned before, or has tried more often than somebody who mistypes.
    pub(super) fn has_used_up_part(&self, source: &IpKey, user: &str, own: f64, now: u64) -> bool {
        let site = self.memory.rejected.get(source, now);
        let tried = site.and_then(|site| site.users.get(user));
        self.has_used_up(source, now) && (own >= TYPOS || tried.is_some_and(|one| one.is_convicted))
    }

    /// Whether a site has used up what it has over TCP.
    pub(super) fn has_used_up_tcp(&self, source: &IpKey, now: u64) -> bool {
        let slow = self.rules.slow;
        let site = self.memory.rejected.get(source, now);
        slow.enabled
            && site.is_some_and(|site| site.tries.level(now, slow.per.nanos()) >= MOST_OVER_TCP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn pace_and_address_of_each_user() {
        let (mut sites, [source, other]) = (Sites::default(), [1, 2].map(host));
        let mut note =
            |user: &str, at: &IpKey, seconds: u64| sites.note(at, user, seconds * SECOND, SECOND);
        assert_eq!(
            [
                note("a", &source, 100),
                note("b", &source, 101),
                note("a", &source, 119),
                note("a", &source, 139),
                note("b", &other, 200),
            ],
            [false, false, true, false, false]
        );
        let now = 200 * SECOND;
        assert!(sites.is_phone(&source, "a", now) && !sites.is_phone(&source, "b", now));
        assert!(!sites.is_phone(&source, "c", now));
        assert_eq!(sites.times(&source, now), 1);
        (0..4).for_each(|n| _ = sites.note(&source, &n.to_string(), now, SECOND));
        assert_eq!(sites.times(&other, now), 2, "of one site");
        assert!(!sites.is_phone(&source, "a", now + DAY_NS));
        sites.forget(&other);
        assert!(!sites.is_phone(&source, "a", now));
    }

    fn host(n: u16) -> IpKey {
        crate::net::network::source_of(format!("2001:db8:7:{n}::{n}").parse().unwrap())
    }

    #[test]
    fn sites_outlive_a_restart() {
        let (mut sites, source) = (Sites::default(), IpKey::v4(7));
        for user in ["a", "b"] {
            sites.note(&source, user, 100 * SECOND, SECOND);
        }
        sites.note(&IpKey::v4(8), "alone", 100 * SECOND, SECOND);
        sites.convict(&source, &BTreeSet::from(["a"]), 100 * SECOND);
        let kept = sites.keep().unwrap().unwrap();
        let mut again = Sites::default();
        again.recall(kept, &|at| at - 90 * SECOND).unwrap();
        let site = again.get(&source, 11 * SECOND).unwrap();
        assert!(site.users["a"].is_convicted && !site.users["b"].is_convicted);
        assert_eq!((site.users["a"].at, site.users(11 * SECOND)), (10 * SECOND, 2));
        assert!(site.tries.level(10 * SECOND, SECOND) > 1.5);
        assert!(again.get(&IpKey::v4(8), 11 * SECOND).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let mut sites = Sites::default();
        for n in 0..2 * MAX_SITES as u32 {
            sites.note(&IpKey::v4(n), "a", u64::from(n), SECOND);
        }
        for n in 0..1_000_u64 {
            sites.note(&IpKey::v4(1), &n.to_string(), n, SECOND);
        }
        assert!(sites.0.len() <= MAX_SITES);
        assert_eq!(sites.get(&IpKey::v4(1), 1_000).unwrap().users.len(), MAX_USERS);
    }
}
