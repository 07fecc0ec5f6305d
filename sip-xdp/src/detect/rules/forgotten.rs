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
//!
//! Over TCP each connection has another port, and a ban of the address would cost the office its
//! connections. A port where other users are accepted is not closed either: a customer's PBX has
//! one for all. There the kernel refuses the passwords of single users, by their names, for as long
//! as such a ban would last. Who is rejected nevertheless has hidden the name, and goes down the
//! ladder. Over TLS and WebSocket the kernel reads no names: a site where
//! nobody was accepted is banned there, once its tries are more than phones have.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sip_xdp_common::ip_key::{IpKey, mask};
use sip_xdp_common::limits::ladder::{Digest, REFUSES_USERS};

use super::super::claim::Level;
use super::super::recent::Recent;
use super::super::windows::{LeakyBucket, words};
use super::super::{Action, Detector, Metering, Step};
use super::rejected;
use super::rule::Memory;
use crate::net::network::Network;
use crate::sip::transport::Transport;

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

/// Level of a site's bucket at which one where nobody was accepted is banned as a whole for tries
/// over TLS or WebSocket.
const MOST_UNREAD: f64 = 100.0;

/// Time in which answers to what passed before a refusal arrive.
const IN_FLIGHT_NS: u64 = 1_000_000_000;

/// How long a user is refused for the first time; each time twice as long, at most
/// [`LONGEST_REFUSAL_NS`]. As the bans of a phone by default.
const FIRST_REFUSAL_NS: u64 = 10 * 60 * 1_000_000_000;
const LONGEST_REFUSAL_NS: u64 = 3_600 * 1_000_000_000;

/// Number of addresses of an IPv6 site from which users are tried beside accounts, before these are
/// taken to register there for that.
pub(super) const WANDERING: usize = 5;

/// Maximum number of accounts of a site that earn no standing there; beyond, a site has so many
/// that its other bounds hold.
const MAX_EXPELLED: usize = 64;

/// Tries of one port before a full site's bucket leads to its ban: somebody may mistype a password
/// twice.
const TYPOS: f64 = 2.5;

/// Maximum number of remembered sites, and of users of each; more where many were accepted.
const MAX_SITES: usize = 16_384;
const MAX_USERS: usize = 32;

/// Maximum number of sites kept over a restart.
const MAX_KEPT: usize = 4_096;

/// How long a user counts after its last try.
const DAY_NS: u64 = 24 * 3_600_000_000_000;

/// Whether that is less than a day ago.
fn is_lately(at: u64, now: u64) -> bool {
    now.saturating_sub(at) < DAY_NS
}

/// Prefix length of an IPv6 site: the widest network of one customer.
const SITE_BITS: u8 = 48;

/// How a password was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From a port that a ban would close.
    Port,
    /// Over TCP, where no ban of a port ends it.
    Connection,
    /// From a port or connection where others are accepted, which is not banned for it.
    Covered,
    /// Over TLS or WebSocket, where the kernel reads no names.
    Unread,
}

impl Way {
    /// By this transport, from a port with a standing or not.
    pub(super) fn of(transport: Transport, is_settled: bool) -> Self {
        match transport {
            Transport::Udp | Transport::Tcp if is_settled => Self::Covered,
            Transport::Tcp => Self::Connection,
            Transport::Udp => Self::Port,
            _ => Self::Unread,
        }
    }

    /// Whether no ban of a port ends it, and the kernel can refuse the user.
    fn is_sheltered(self) -> bool {
        matches!(self, Self::Connection | Self::Covered)
    }
}

/// A user that was rejected at a site, and never accepted there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Tried {
    /// Time of the last try.
    at: u64,
    /// Its address.
    host: [u8; 16],
    /// Whether a try within a day before came from another address.
    has_moved: bool,
    /// Whether its port or address was banned, or its passwords were refused.
    is_convicted: bool,
    /// Tries that no ban of a port ends: over TCP, or from ports where others are accepted.
    #[serde(default, alias = "by_tcp")]
    sheltered: LeakyBucket,
    /// When it was last tried from a port with a standing.
    #[serde(default)]
    covered_at: u64,
    /// From which address its passwords are refused, since when, until when, and how often they
    /// were.
    #[serde(default)]
    refused_at: [u8; 16],
    #[serde(default)]
    refused_since: u64,
    #[serde(default)]
    refused_until: u64,
    #[serde(default)]
    refusals: u32,
    /// Whether it was rejected nevertheless.
    #[serde(default)]
    is_hidden: bool,
    /// Whether this refusal was written to the kernel once more.
    #[serde(default)]
    is_rewritten: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Site {
    users: HashMap<String, Tried>,
    /// Tries of all users.
    tries: LeakyBucket,
    /// Those from ports with a standing, and the addresses that were last among them, with times.
    #[serde(default)]
    covered: LeakyBucket,
    #[serde(default)]
    covering: Vec<([u8; 16], u64)>,
    /// Accounts that earn no standing there, and since when.
    #[serde(default)]
    expelled: HashMap<String, u64>,
}

impl Site {
    /// Users that were tried within a day.
    fn users(&self, now: u64) -> usize {
        self.users.values().filter(|one| is_lately(one.at, now)).count()
    }

    /// Those of one address, where `at` says when; 0 is never.
    fn users_at(&self, source: &IpKey, now: u64, at: impl Fn(&Tried) -> u64) -> usize {
        let is_here =
            |one: &&Tried| one.host == source.octets() && at(one) != 0 && is_lately(at(one), now);
        self.users.values().filter(is_here).count()
    }

    /// A try from a port of this address with a standing.
    fn note_covered(&mut self, host: [u8; 16], now: u64, leak_ns: u64) {
        self.covered.pour(now, leak_ns);
        self.covering.retain(|(known, _)| *known != host);
        if self.covering.len() >= WANDERING {
            self.covering.remove(0);
        }
        self.covering.push((host, now));
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
        // One user alone is weighed by its address anyway, unless it is refused.
        let several = self.0.iter().filter(|(_, last, site)| {
            site.users.len() > 1
                || site.users.values().any(|one| one.refused_until > *last)
                || !site.expelled.is_empty()
                || !site.covering.is_empty()
        });
        let mut kept: Vec<Kept<&Site>> =
            several.map(|(address, last, site)| (address.octets(), last, site)).collect();
        kept.sort_unstable_by_key(|(_, last, _)| *last);
        let oldest = kept.len().saturating_sub(MAX_KEPT);
        Ok(Some(serde_json::to_value(&kept[oldest..])?))
    }

    fn recall(&mut self, kept: Value, moved: &dyn Fn(u64) -> u64) -> Result<()> {
        let kept: Vec<Kept<Site>> = serde_json::from_value(kept)?;
        for (address, last, mut site) in kept.into_iter().take(MAX_KEPT) {
            for one in site.users.values_mut() {
                one.at = moved(one.at);
                one.sheltered.shift(moved);
                for at in [&mut one.refused_since, &mut one.refused_until, &mut one.covered_at] {
                    *at = if *at == 0 { 0 } else { moved(*at) };
                }
            }
            site.tries.shift(moved);
            site.covered.shift(moved);
            let times = site.covering.iter_mut().map(|(_, at)| at);
            times.chain(site.expelled.values_mut()).for_each(|at| *at = moved(*at));
            *self.0.touch(IpKey::new(address), moved(last), Site::default) = site;
        }
        Ok(())
    }
}

/// The site of an address.
pub(super) fn site_of(source: &IpKey) -> IpKey {
    if source.is_v4() { *source } else { source.masked(mask(SITE_BITS)) }
}

/// The network of a site.
fn network_of(site: &IpKey) -> Network {
    Network::around(*site, if site.is_v4() { 128 } else { SITE_BITS })
}

impl Sites {
    /// Records a rejection of a user that was never accepted at this address, where as many users
    /// as `known` were. `leak_ns` is the time in which a bucket loses one. Returns whether it came
    /// sooner after the try before than a phone's.
    pub(super) fn note(
        &mut self,
        source: &IpKey,
        user: &str,
        way: Way,
        known: usize,
        now: u64,
        leak_ns: u64,
    ) -> bool {
        let (host, site) = (source.octets(), self.0.touch(site_of(source), now, Site::default));
        site.tries.pour(now, leak_ns);
        site.users.retain(|_, one| is_lately(one.at, now));
        let is_known = site.users.contains_key(user);
        if !is_known && site.users.len() >= MAX_USERS.max(FORGOTTEN + known + 1) {
            // The one that was tried least recently makes room; not one that is refused.
            let free = site.users.iter().filter(|(_, one)| one.refused_until <= now);
            let oldest = free.min_by_key(|(_, one)| one.at).map(|(user, _)| user.clone());
            let Some(oldest) = oldest else {
                return false;
            };
            site.users.remove(&oldest);
        }
        let one = site.users.entry(user.to_owned()).or_insert_with(|| Tried {
            at: now,
            host,
            ..Tried::default()
        });
        if way.is_sheltered() {
            one.sheltered.pour(now, leak_ns);
        }
        if way == Way::Covered {
            one.covered_at = now;
        }
        one.is_hidden |= way != Way::Unread
            && (one.refused_since + IN_FLIGHT_NS..one.refused_until).contains(&now);
        let is_quick = is_known && now.saturating_sub(one.at) < PATIENT_NS;
        one.has_moved |= one.host != host;
        (one.at, one.host) = (now, host);
        if way == Way::Covered {
            site.note_covered(host, now, leak_ns);
        }
        is_quick
    }

    /// Takes back users that were accepted. Returns those whose passwords are refused.
    pub(super) fn take_back(&mut self, source: &IpKey, users: &[String], now: u64) -> Vec<String> {
        let Some(site) = self.0.get_mut(&site_of(source), now) else {
            return Vec::new();
        };
        let accepted = site.users.extract_if(|user, _| users.contains(user));
        accepted.filter(|(_, one)| one.refused_until > now).map(|(user, _)| user).collect()
    }

    /// Tries of a user that no ban of a port ends and that have not leaked out yet; none if it is
    /// refused already.
    fn sheltered_tries(&self, source: &IpKey, user: &str, now: u64, leak_ns: u64) -> Option<f64> {
        let tried = self.get(source, now).and_then(|site| site.users.get(user));
        tried.filter(|one| one.refused_until <= now).map(|one| one.sheltered.level(now, leak_ns))
    }

    /// Until when a user is refused that was rejected nevertheless, since this was asked; and
    /// whether that has happened before.
    fn take_hidden(&mut self, source: &IpKey, user: &str, now: u64) -> Option<(u64, bool)> {
        let one = self.0.get_mut(&site_of(source), now)?.users.get_mut(user)?;
        if !std::mem::take(&mut one.is_hidden) {
            return None;
        }
        (one.refused_at, one.refused_since) = (source.octets(), now);
        Some((one.refused_until, std::mem::replace(&mut one.is_rewritten, true)))
    }

    /// Refuses a user's passwords, for so many times as long as that of one phone. Returns until
    /// when.
    fn refuse(&mut self, source: &IpKey, user: &str, times: u32, now: u64) -> Option<u64> {
        let site = self.0.get_mut(&site_of(source), now)?;
        let one = site.users.get_mut(user)?;
        let length = FIRST_REFUSAL_NS << one.refusals.min(3);
        (one.refused_at, one.refused_since) = (source.octets(), now);
        one.refused_until = now + u64::from(times) * length.min(LONGEST_REFUSAL_NS);
        one.refusals += 1;
        one.is_rewritten = false;
        one.is_convicted = true;
        Some(one.refused_until)
    }

    fn get(&self, source: &IpKey, now: u64) -> Option<&Site> {
        self.0.get(&site_of(source), now)
    }

    /// Whether an address has several users of a site with as many as may be forgotten phones.
    fn is_shared(&self, source: &IpKey, now: u64) -> bool {
        self.get(source, now).is_some_and(|site| {
            site.is_forgotten(now) && site.users_at(source, now, |one| one.at) >= 2
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

    /// An account earns no standing at this site for a day.
    pub(super) fn expel(&mut self, source: &IpKey, user: String, now: u64) {
        if let Some(site) = self.0.get_mut(&site_of(source), now) {
            site.expelled.retain(|_, at| is_lately(*at, now));
            if site.expelled.len() < MAX_EXPELLED {
                site.expelled.insert(user, now);
            }
        }
    }

    /// Whether an account earns no standing at this site, because it covered tries there.
    pub(in super::super) fn is_expelled(&self, source: &IpKey, user: &str, now: u64) -> bool {
        let site = self.get(source, now);
        let since = site.and_then(|site| site.expelled.get(user));
        since.is_some_and(|at| is_lately(*at, now))
    }

    /// Users of a site that were tried within a day.
    fn users(&self, source: &IpKey, now: u64) -> usize {
        self.get(source, now).map_or(0, |site| site.users(now))
    }

    /// Forgets the sites of a pardoned network, or the one around it.
    pub(in super::super) fn forget(&mut self, pardoned: &Network) {
        self.0.remove_where(|site| pardoned.meets(&network_of(site)));
    }

    /// The sites in a network, or the one around it.
    fn meeting(&self, network: &Network) -> impl Iterator<Item = &Site> {
        let sites = self.0.iter().filter(|(site, ..)| network.meets(&network_of(site)));
        sites.map(|(_, _, site)| site)
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

    /// The level of a site's bucket.
    pub(super) fn site_level(&self, source: &IpKey, now: u64) -> f64 {
        let site = self.memory.rejected.get(source, now);
        site.map_or(0.0, |site| site.tries.level(now, self.rules.slow.per.nanos()))
    }

    /// Whether a site's bucket is full.
    pub(super) fn has_used_up(&self, source: &IpKey, now: u64) -> bool {
        let slow = self.rules.slow;
        let site = self.memory.rejected.get(source, now);
        slow.enabled
            && site.is_some_and(|site| site.users(now) >= 2)
            && self.site_level(source, now) >= f64::from(slow.count) - 0.5
    }

    /// Whether a site's bucket is full, and a phone with this level of its own bucket has used up
    /// its part: it was banned before, or has tried more often than somebody who mistypes.
    pub(super) fn has_used_up_part(&self, source: &IpKey, user: &str, own: f64, now: u64) -> bool {
        let site = self.memory.rejected.get(source, now);
        let tried = site.and_then(|site| site.users.get(user));
        self.has_used_up(source, now) && (own >= TYPOS || tried.is_some_and(|one| one.is_convicted))
    }

    /// Whether more users of a site were rejected within a day than misconfigured phones explain,
    /// and its bucket is full.
    pub(super) fn is_beyond_an_office(&self, source: &IpKey, now: u64) -> bool {
        self.tried_here(source, now, |one| one.at) > FORGOTTEN + self.known.known_users(source)
            && self.has_used_up(source, now)
    }

    /// Whether so many tries come from ports with a standing, and lately from so many addresses of
    /// an IPv6 site, that accounts register there to cover them.
    pub(super) fn is_covered_by_wandering(&self, source: &IpKey, now: u64) -> bool {
        let slow = self.rules.slow;
        slow.enabled
            && self.memory.rejected.get(source, now).is_some_and(|site| {
                let filled = site.covered.level(now, slow.per.nanos());
                let addresses = site.covering.iter().filter(|(_, at)| is_lately(*at, now)).count();
                addresses >= WANDERING && filled >= f64::from(slow.count) - 0.5
            })
    }

    /// How many users were tried within a day from ports of this address with a standing.
    pub(super) fn covered_users(&self, source: &IpKey, now: u64) -> usize {
        self.tried_here(source, now, |one| one.covered_at)
    }

    fn tried_here(&self, source: &IpKey, now: u64, at: impl Fn(&Tried) -> u64) -> usize {
        self.memory.rejected.get(source, now).map_or(0, |site| site.users_at(source, now, at))
    }

    /// Whether a site has used up what it has over TLS and WebSocket.
    pub(super) fn has_used_up_unread(&self, source: &IpKey, now: u64) -> bool {
        self.rules.slow.enabled && self.site_level(source, now) >= MOST_UNREAD
    }

    /// How many times as long as for one phone bans are at the site of this address: as its users,
    /// or their ports by UDP, together make necessary. Each port that a user comes from has its own
    /// tries.
    pub(super) fn times_as_long(&self, source: &IpKey, now: u64) -> u32 {
        let places = self.sources.get(source).map_or(0, |state| state.counts.rejected.places(now));
        let phones = self.memory.rejected.users(source, now).max(places);
        phones.div_ceil(USERS_PER_LENGTH).clamp(1, LONGEST) as u32
    }

    /// The users whose passwords are refused from addresses of a network at `now`, each with the
    /// address and the end.
    pub(crate) fn refused_users(
        &self,
        network: &Network,
        now: u64,
    ) -> impl Iterator<Item = (IpKey, &str, u64)> {
        let users = self.memory.rejected.meeting(network).flat_map(|site| &site.users);
        let refused = users.filter(move |(_, one)| one.refused_until > now);
        let all: BTreeMap<(IpKey, &str), u64> = refused
            .map(|(user, one)| ((IpKey::new(one.refused_at), user.as_str()), one.refused_until))
            .filter(|((host, _), _)| network.contains(&Network::around(*host, 128)))
            .collect();
        all.into_iter().map(|((host, user), until)| (host, user, until))
    }

    /// The accounts that earn no standing at the sites of a network, or at the one around it,
    /// because they covered tries there; each with the end.
    pub(crate) fn expelled_accounts(
        &self,
        network: &Network,
        now: u64,
    ) -> impl Iterator<Item = (&str, u64)> {
        let accounts = self.memory.rejected.meeting(network).flat_map(|site| &site.expelled);
        let live = accounts.filter(|(_, since)| is_lately(**since, now));
        let all: BTreeMap<&str, u64> =
            live.map(|(user, since)| (user.as_str(), since + DAY_NS)).collect();
        all.into_iter()
    }

    /// Refuses users of an address with accepted users or several forgotten phones that were
    /// rejected too often where no ban of a port ends it.
    pub(super) fn refuse_users(&mut self, source: IpKey, now: u64, actions: &mut Vec<Action>) {
        let (rejected, slow) = (self.rules.rejected, self.rules.slow);
        let mut lately: BTreeMap<String, usize> = BTreeMap::new();
        let settled: BTreeSet<u16> =
            self.known.accepted_at(&source).map(|(_, at)| at.port).collect();
        let tries = self.sources.get(&source).into_iter();
        for (_, one) in tries.flat_map(|state| state.counts.rejected.tries.iter()) {
            let way = Way::of(one.transport, settled.contains(&one.port));
            let is_strange = !self.known.accepted(&source, &one.user, now);
            if one.level == Level::Routable && way != Way::Unread && is_strange {
                *lately.entry(one.user.clone()).or_default() += usize::from(way.is_sheltered());
            }
        }
        let refusing = |step: Step, reason: String| {
            let host = Metering::of_host(source, step, now + DAY_NS, reason);
            Action::Meter(Metering { modes: REFUSES_USERS, ..host })
        };
        let refuse = |user: &str, until: u64| {
            Action::RefuseUser(source, Digest::of(user.as_bytes()).0, until)
        };
        for (user, count) in lately {
            // Once, the kernel may have lost it: over a reboot, or to newer ones.
            let hidden = self.memory.rejected.take_hidden(&source, &user, now);
            if let Some((until, is_repeated)) = hidden {
                let step = if is_repeated { Step::Down } else { Step::First };
                let reason = format!("passwords of the refused user {user:?} are rejected");
                actions.push(refusing(step, reason));
                actions.push(refuse(&user, until));
            }
            let leak_ns = slow.per.nanos();
            let own = self.memory.rejected.sheltered_tries(&source, &user, now, leak_ns);
            let Some(own) = own.filter(|_| count > 0) else { continue };
            let is_due = rejected.enabled && count >= rejected.count as usize
                || slow.enabled && own >= f64::from(slow.count) - 0.5
                || self.has_used_up_part(&source, &user, own, now);
            if !is_due {
                continue;
            }
            let times = self.times_as_long(&source, now);
            if let Some(until) = self.memory.rejected.refuse(&source, &user, times, now) {
                let lasts = words(until - now);
                let reason = format!(
                    "{own:.0} rejected passwords for the user {user:?}, which are refused for \
                     {lasts}"
                );
                actions.push(refusing(Step::First, reason));
                actions.push(refuse(&user, until));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::net::network::source_of;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn pace_and_address_of_each_user() {
        let (mut sites, [source, other]) = (Sites::default(), [1, 2].map(host));
        let mut note = |user: &str, at: &IpKey, seconds: u64| {
            sites.note(at, user, Way::Port, 0, seconds * SECOND, SECOND)
        };
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
        assert_eq!(sites.users(&source, now), 2);
        (0..4).for_each(|n| _ = sites.note(&source, &n.to_string(), Way::Port, 0, now, SECOND));
        assert_eq!(sites.users(&other, now), 6, "of one site");
        assert!(!sites.is_phone(&source, "a", now + DAY_NS));
        sites.forget(&network_of(&other));
        assert!(!sites.is_phone(&source, "a", now));
    }

    fn host(n: u16) -> IpKey {
        source_of(format!("2001:db8:7:{n}::{n}").parse().unwrap())
    }

    #[test]
    fn sites_outlive_a_restart() {
        let (mut sites, source) = (Sites::default(), IpKey::v4(7));
        for user in ["a", "b"] {
            sites.note(&source, user, Way::Connection, 0, 100 * SECOND, SECOND);
        }
        sites.note(&IpKey::v4(8), "alone", Way::Port, 0, 100 * SECOND, SECOND);
        sites.convict(&source, &BTreeSet::from(["a"]), 100 * SECOND);
        let kept = sites.keep().unwrap().unwrap();
        let mut again = Sites::default();
        again.recall(kept, &|at| at - 90 * SECOND).unwrap();
        let site = again.get(&source, 11 * SECOND).unwrap();
        assert!(site.users["a"].is_convicted && !site.users["b"].is_convicted);
        assert_eq!((site.users["a"].at, site.users(11 * SECOND)), (10 * SECOND, 2));
        assert!(site.tries.level(10 * SECOND, SECOND) > 1.5);
        assert!(again.get(&IpKey::v4(8), 11 * SECOND).is_none());
        assert!(again.sheltered_tries(&source, "a", 10 * SECOND, SECOND).unwrap() > 0.5);
        // So does an account that covered tries.
        sites.expel(&source, "account".to_owned(), 100 * SECOND);
        let mut again = Sites::default();
        again.recall(sites.keep().unwrap().unwrap(), &|at| at - 90 * SECOND).unwrap();
        let is_expelled = |now| again.is_expelled(&source, "account", now);
        assert!(is_expelled(11 * SECOND) && !is_expelled(10 * SECOND + DAY_NS));
        assert!(!again.is_expelled(&source, "a", 11 * SECOND));
    }

    #[test]
    fn an_account_is_expelled_from_all_hosts_of_an_ipv6_site() {
        let mut sites = Sites::default();
        let [source, other] = [1, 2].map(host);
        for n in 0..2 * WANDERING as u16 {
            sites.note(&host(n), "a", Way::Covered, 1, SECOND, 3_600 * SECOND);
        }
        let site = sites.get(&source, SECOND).unwrap();
        assert_eq!(site.covering.len(), WANDERING);
        assert!(site.covered.level(SECOND, 3_600 * SECOND) > 9.5);
        sites.expel(&source, "account".to_owned(), SECOND);
        assert!(sites.is_expelled(&other, "account", SECOND));
        assert!(!sites.is_expelled(&IpKey::v4(7), "account", SECOND));
    }

    #[test]
    fn a_pardon_is_for_the_sites_in_a_network_and_around_it() {
        let host = |text: &str| source_of(text.parse().unwrap());
        let all = ["2001:db8:1::1", "2001:db8:2::2", "192.0.2.3"].map(host);
        let sites = |pardoned: &str| {
            let mut detector = Detector::new(&Config::default());
            let sites = &mut detector.memory.rejected;
            for source in all {
                sites.note(&source, "a", Way::Connection, 0, SECOND, SECOND);
                sites.refuse(&source, "a", 1, SECOND);
                sites.expel(&source, "account".to_owned(), SECOND);
            }
            let network: Network = pardoned.parse().unwrap();
            let refused = detector.refused_users(&network, SECOND).map(|(host, ..)| host);
            let refused: Vec<IpKey> = refused.collect();
            let expelled = detector.expelled_accounts(&network, SECOND).count();
            detector.forget(&network);
            let is_left =
                |source: &&IpKey| detector.memory.rejected.is_expelled(source, "account", SECOND);
            let left: Vec<IpKey> = all.iter().filter(is_left).copied().collect();
            (refused, expelled, left)
        };
        let [first, second, third] = all;
        assert_eq!(sites("2001:db8:1::1"), (vec![first], 1, vec![second, third]));
        assert_eq!(sites("2001:db8:1::9"), (Vec::new(), 1, vec![second, third]), "of its site");
        assert_eq!(sites("2001:db8:2::/64"), (vec![second], 1, vec![first, third]));
        assert_eq!(sites("2001:db8::/32"), (vec![first, second], 1, vec![third]));
        assert_eq!(sites("192.0.2.0/24"), (vec![third], 1, vec![first, second]));
        assert_eq!(sites("198.51.100.0/24"), (Vec::new(), 0, all.to_vec()));
    }

    #[test]
    fn a_user_is_refused_for_longer_each_time_until_it_is_accepted() {
        let (mut sites, source) = (Sites::default(), IpKey::v4(7));
        let minute = 60 * SECOND;
        let mut now = minute;
        for expected in [10, 20, 40, 60, 60] {
            sites.note(&source, "a", Way::Connection, 0, now, minute);
            assert_eq!(sites.refuse(&source, "a", 1, now), Some(now + expected * minute));
            assert_eq!(sites.sheltered_tries(&source, "a", now, minute), None, "refused already");
            now += expected * minute;
            assert!(sites.sheltered_tries(&source, "a", now, minute).is_some());
        }
        assert!(sites.take_back(&source, &["a".to_owned()], now).is_empty(), "that is over");
        sites.note(&source, "a", Way::Connection, 0, now, minute);
        sites.refuse(&source, "a", 1, now);
        assert_eq!(sites.take_back(&source, &["a".to_owned()], now), ["a"]);
        assert_eq!(sites.refuse(&source, "a", 1, now), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut sites = Sites::default();
        for n in 0..2 * MAX_SITES as u32 {
            sites.note(&IpKey::v4(n), "a", Way::Port, 0, u64::from(n), SECOND);
        }
        for n in 0..1_000_u64 {
            sites.note(&IpKey::v4(1), &n.to_string(), Way::Port, 0, n, SECOND);
        }
        assert!(sites.0.len() <= MAX_SITES);
        let site = sites.get(&IpKey::v4(1), 1_000).unwrap();
        assert_eq!(site.users.len(), MAX_USERS);
        assert!(site.users.contains_key("999") && !site.users.contains_key("900"));
        // Those that are refused stay.
        sites.refuse(&IpKey::v4(1), "999", 1, 1_000);
        for n in 1_000..2_000_u64 {
            sites.note(&IpKey::v4(1), &n.to_string(), Way::Port, 0, n, SECOND);
        }
        let site = sites.get(&IpKey::v4(1), 2_000).unwrap();
        assert!(site.users.len() == MAX_USERS && site.users.contains_key("999"));
        for n in 0..1_000_u64 {
            sites.note(&IpKey::v4(2), &n.to_string(), Way::Port, 100, n, SECOND);
        }
        let users = sites.get(&IpKey::v4(2), 1_000).unwrap().users.len();
        assert_eq!(users, FORGOTTEN + 101, "one more than may be phones");
    }
}
