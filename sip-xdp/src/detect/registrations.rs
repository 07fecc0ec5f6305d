//! Registrations: users accepted with credentials, with their places and times.
//!
//! An account earns standing at a limited number of places, and the shortest-lived is evicted, so
//! that nobody fills a table. An acceptance has constant cost.
//!
//! Above 400 lines with its tests: one data structure, whose indexes must stay consistent.

use std::collections::{BTreeSet, HashMap};

use sip_xdp_common::ip_key::{IpKey, mask};

use super::digest::digest;
use super::recent::Recent;
use crate::sip::transport::Transport;

/// Maximum number of addresses with accepted users, and of places (user and port) in total.
const MAX_ADDRESSES: usize = 32_768;
const MAX_PLACES: usize = 32_768;

/// Maximum number of places per address.
const MAX_PLACES_OF_AN_ADDRESS: usize = 4_096;

/// Maximum number of addresses at which an account earns standing, and of ports at each.
const ADDRESSES_OF_A_USER: usize = 16;
const PORTS_OF_A_USER: usize = 4;

/// Maximum number of known hosts per IPv6 /64, and per /48.
const HOSTS_OF_A_64: u32 = 256;
const HOSTS_OF_A_48: u32 = 4_096;

/// Maximum number of remembered AORs that differ from the name in the credentials.
const MAX_ALIASES: usize = 32_768;

/// Maximum number of addresses-of-record of a user at an address.
const MAX_AORS: usize = 16;

const DAY_NS: u64 = 24 * 3_600_000_000_000;

/// How long an acceptance is remembered, in nanoseconds.
const MEMORY_NS: u64 = 30 * DAY_NS;

/// One accepted user at one port of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// The address.
    pub source: IpKey,
    /// User.
    pub user: String,
    /// The port that the phone uses; over TCP that of its connection.
    pub port: u16,
    /// How it was accepted.
    pub transport: Transport,
    /// Time of the last acceptance, on the filter's clock.
    pub at: u64,
    /// End of known good: the end of the registration.
    pub until: u64,
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) source: IpKey,
    pub(super) port: u16,
    pub(super) transport: Transport,
}

/// A port that a user was accepted at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AcceptedPort {
    pub(super) port: u16,
    pub(super) transport: Transport,
    /// When the user was last accepted there.
    pub(super) at: u64,
    /// Until when that counts.
    pub(super) until: u64,
}

/// The result of an acceptance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Earned {
    /// Whether it earns standing.
    pub(super) standing: bool,
    /// Places that were evicted for it.
    pub(super) gone: Vec<(IpKey, u16)>,
}

#[derive(Debug, Default)]
struct Address {
    users: HashMap<String, Vec<AcceptedPort>>,
    /// Ends of all places, sorted: end, port, user.
    ends: BTreeSet<(u64, u16, String)>,
    last: u64,
}

impl Address {
    fn until(&self) -> u64 {
        self.ends.last().map_or(0, |(until, ..)| *until)
    }

    fn set(&mut self, user: &str, accepted: AcceptedPort) {
        let AcceptedPort { port, at, until, .. } = accepted;
        let ports = self.users.entry(user.to_owned()).or_default();
        if let Some(index) = ports.iter().position(|known| known.port == port) {
            let before = ports.swap_remove(index);
            self.ends.remove(&(before.until, port, user.to_owned()));
        }
        ports.push(accepted);
        self.ends.insert((until, port, user.to_owned()));
        self.last = self.last.max(at);
    }

    fn remove(&mut self, user: &str, port: u16) -> bool {
        let Some(ports) = self.users.get_mut(user) else {
            return false;
        };
        let Some(index) = ports.iter().position(|known| known.port == port) else {
            return false;
        };
        let until = ports.swap_remove(index).until;
        if ports.is_empty() {
            self.users.remove(user);
        }
        self.ends.remove(&(until, port, user.to_owned()))
    }
}

/// All registrations.
#[derive(Debug)]
pub(super) struct Registrations {
    addresses: HashMap<IpKey, Address>,
    /// Addresses by user.
    users: HashMap<String, Vec<IpKey>>,
    /// Users by other names.
    aliases: Recent<u64, ()>,
    /// Addresses-of-record by source and user, as digests.
    called: Recent<u64, Vec<u64>>,
    /// Addresses by the end of their standing.
    ends: BTreeSet<(u64, IpKey)>,
    places: usize,
    /// Number of known hosts per IPv6 /64 and /48.
    networks: HashMap<(u8, IpKey), u32>,
    /// Maximum number of known addresses: half of the kernel's table.
    most: usize,
}

impl Default for Registrations {
    fn default() -> Self {
        Self::new(2 * MAX_ADDRESSES)
    }
}

impl Registrations {
    /// For a kernel table with this capacity in networks.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            most: MAX_ADDRESSES.min(capacity / 2).max(1),
            addresses: HashMap::new(),
            users: HashMap::new(),
            aliases: Recent::new(MAX_ALIASES, MEMORY_NS),
            called: Recent::new(MAX_ALIASES, MEMORY_NS),
            ends: BTreeSet::new(),
            places: 0,
            networks: HashMap::new(),
        }
    }
}

/// The IPv6 networks around a host that have a quota.
fn quotas(source: &IpKey) -> impl Iterator<Item = ((u8, IpKey), u32)> {
    let of = |bits: u8, quota: u32| ((bits, source.masked(mask(bits))), quota);
    let both = [of(64, HOSTS_OF_A_64), of(48, HOSTS_OF_A_48)];
    both.into_iter().filter(|_| !source.is_v4())
}

impl Registrations {
    /// Records an acceptance.
    pub(super) fn accept(&mut self, acceptance: &Acceptance) -> Earned {
        let Acceptance { source, user, port, transport, at, until } = acceptance;
        let mut gone = Vec::new();
        if !self.addresses.contains_key(source) {
            if quotas(source).any(|(network, quota)| {
                self.networks.get(&network).is_some_and(|hosts| *hosts >= quota)
            }) {
                return Earned::default();
            }
            if self.addresses.len() >= self.most {
                self.forget_the_shortest(&mut gone);
            }
        }
        if self.places >= MAX_PLACES {
            self.forget_the_shortest(&mut gone);
        }
        self.make_room_at(source, user, *port, &mut gone);
        if self.places_of(source) >= MAX_PLACES_OF_AN_ADDRESS && !self.has(source, user, *port) {
            return Earned { standing: false, gone };
        }
        let is_new_host = !self.addresses.contains_key(source);
        let address = self.addresses.entry(*source).or_default();
        let (before, places) = (address.until(), address.ends.len());
        let accepted = AcceptedPort { port: *port, transport: *transport, at: *at, until: *until };
        address.set(user, accepted);
        let after = address.until();
        self.places += address.ends.len() - places;
        self.ends.remove(&(before, *source));
        self.ends.insert((after, *source));
        if is_new_host {
            quotas(source).for_each(|(network, _)| *self.networks.entry(network).or_default() += 1);
        }
        let homes = self.users.entry(user.clone()).or_default();
        if !homes.contains(source) {
            homes.push(*source);
        }
        Earned { standing: true, gone }
    }

    /// Records another name of an accepted user; whether it is an address-of-record that it has
    /// registered from an address.
    pub(super) fn call(&mut self, source: &IpKey, user: &str, name: &str, is_aor: bool, now: u64) {
        let name = digest(name);
        self.aliases.insert(name, now, ());
        if is_aor {
            let called = self.called.touch(digest(&(source, user)), now, Vec::new);
            if called.len() < MAX_AORS && !called.contains(&name) {
                called.push(name);
            }
        }
    }

    /// Whether a user registers this address-of-record from an address, as far as is known: it has
    /// its name, or is one of them, or none is known yet, or too many are.
    pub(super) fn may_be_called(&self, source: &IpKey, user: &str, aor: &str) -> bool {
        let called = self.called.peek(&digest(&(source, user)));
        let may_be = |all: &Vec<u64>| all.len() >= MAX_AORS || all.contains(&digest(aor));
        user == aor || called.is_none_or(may_be)
    }

    /// Makes room for one more place of a user, by evicting the one that ends first.
    fn make_room_at(
        &mut self,
        source: &IpKey,
        user: &str,
        port: u16,
        gone: &mut Vec<(IpKey, u16)>,
    ) {
        let ports = self.addresses.get(source).and_then(|address| address.users.get(user));
        if let Some(ports) = ports {
            if ports.len() >= PORTS_OF_A_USER
                && !ports.iter().any(|known| known.port == port)
                && let Some(first) =
                    ports.iter().min_by_key(|known| (known.until, known.at)).copied()
            {
                self.forget(source, user, first.port);
                gone.push((*source, first.port));
            }
            return;
        }
        let homes = self.users.get(user).filter(|homes| homes.len() >= ADDRESSES_OF_A_USER);
        let first = homes.into_iter().flatten().min_by_key(|home| {
            let ports = self.addresses.get(home).and_then(|address| address.users.get(user));
            ports.into_iter().flatten().map(|known| (known.until, known.at)).max()
        });
        let Some(first) = first.copied() else {
            return;
        };
        gone.extend(self.forget_account(&first, user).into_iter().map(|port| (first, port)));
    }

    /// The addresses where a user is at home.
    pub(super) fn addresses(&self, user: &str) -> impl Iterator<Item = &IpKey> {
        self.users.get(user).into_iter().flatten()
    }

    /// Removes all places of a user at an address. Returns their ports.
    pub(super) fn forget_account(&mut self, source: &IpKey, user: &str) -> Vec<u16> {
        let ports: Vec<u16> = self.accepted_at_user(source, user).collect();
        ports.iter().for_each(|port| self.forget(source, user, *port));
        ports
    }

    /// Removes one place.
    fn forget(&mut self, source: &IpKey, user: &str, port: u16) {
        let Some(address) = self.addresses.get_mut(source) else {
            return;
        };
        let before = address.until();
        if !address.remove(user, port) {
            return;
        }
        self.places -= 1;
        self.ends.remove(&(before, *source));
        let (after, is_empty) = (address.until(), address.ends.is_empty());
        if !address.users.contains_key(user)
            && let Some(homes) = self.users.get_mut(user)
        {
            homes.retain(|home| home != source);
            if homes.is_empty() {
                self.users.remove(user);
            }
        }
        if is_empty {
            self.addresses.remove(source);
            for (network, _) in quotas(source) {
                if let Some(hosts) = self.networks.get_mut(&network) {
                    *hosts -= 1;
                    if *hosts == 0 {
                        self.networks.remove(&network);
                    }
                }
            }
        } else {
            self.ends.insert((after, *source));
        }
    }

    /// Removes the address whose standing ends first.
    fn forget_the_shortest(&mut self, gone: &mut Vec<(IpKey, u16)>) {
        let Some((_, source)) = self.ends.first().copied() else {
            return;
        };
        let places: Vec<(u16, String)> = self
            .addresses
            .get(&source)
            .into_iter()
            .flat_map(|address| address.ends.iter().map(|(_, port, user)| (*port, user.clone())))
            .collect();
        for (port, user) in places {
            self.forget(&source, &user, port);
            gone.push((source, port));
        }
    }

    /// Ends the standing of an offending port, or of the whole address.
    pub(super) fn mark_offender(&mut self, source: &IpKey, port: Option<u16>) -> Vec<u16> {
        let ends = self.addresses.get(source).into_iter().flat_map(|address| &address.ends);
        let places: Vec<(u16, String)> = ends
            .filter(|(_, at, _)| port.is_none_or(|port| port == *at))
            .map(|(_, port, user)| (*port, user.clone()))
            .collect();
        let mut ports = Vec::new();
        for (port, user) in places {
            self.forget(source, &user, port);
            ports.push(port);
        }
        ports
    }

    /// Records an unregistration. The acceptance stays remembered.
    pub(super) fn end(&mut self, source: &IpKey, user: &str, now: u64) {
        let Some(address) = self.addresses.get_mut(source) else {
            return;
        };
        let before = address.until();
        let ports = address.users.get(user).cloned().unwrap_or_default();
        for known in ports.into_iter().filter(|known| known.until > now) {
            address.set(user, AcceptedPort { until: now, ..known });
        }
        let after = address.until();
        self.ends.remove(&(before, *source));
        self.ends.insert((after, *source));
    }

    /// End of known good of an address; 0 if it is not.
    pub(super) fn good_until(&self, source: &IpKey, now: u64) -> u64 {
        self.addresses.get(source).map(Address::until).filter(|until| *until > now).unwrap_or(0)
    }

    /// End of known good of a flow; 0 if it is not.
    pub(super) fn flow_until(&self, source: &IpKey, port: u16, now: u64) -> u64 {
        let ends =
            self.addresses.get(source).into_iter().flat_map(|address| address.ends.iter().rev());
        ends.take_while(|(until, ..)| *until > now)
            .find(|(_, at, _)| *at == port)
            .map_or(0, |(until, ..)| *until)
    }

    /// Number of places of an address that are accepted at `now`.
    pub(super) fn users(&self, source: &IpKey, now: u64) -> usize {
        let ends =
            self.addresses.get(source).into_iter().flat_map(|address| address.ends.iter().rev());
        ends.take_while(|(until, ..)| *until > now).count()
    }

    /// Number of users other than `but` accepted at a port of an address within a day.
    pub(super) fn users_at(&self, source: &IpKey, port: u16, now: u64, but: &str) -> usize {
        self.accepted_at(source)
            .filter(|(user, known)| {
                known.port == port && *user != but && now.saturating_sub(known.at) < DAY_NS
            })
            .count()
    }

    /// Number of users accepted from an address in the last 30 days.
    pub(super) fn known_users(&self, source: &IpKey) -> usize {
        self.addresses.get(source).map_or(0, |address| address.users.len())
    }

    /// Whether a user was accepted from an address in the last 30 days.
    pub(super) fn accepted(&self, source: &IpKey, user: &str, now: u64) -> bool {
        self.accepted_since(source, user, now.saturating_sub(MEMORY_NS))
    }

    /// Whether a user was accepted from an address within a day.
    pub(super) fn accepted_lately(&self, source: &IpKey, user: &str, now: u64) -> bool {
        self.accepted_since(source, user, now.saturating_sub(DAY_NS))
    }

    /// Whether a user was accepted at a place in the last 30 days: at this port of the address, or
    /// over TCP at any, since each connection has another one.
    pub(super) fn is_own_place(&self, user: &str, place: &Place, now: u64) -> bool {
        let ports = self.addresses.get(&place.source).and_then(|address| address.users.get(user));
        let is_it = |known: &AcceptedPort| {
            let is_here = if place.transport.is_stream() {
                known.transport.is_stream()
            } else {
                known.port == place.port && !known.transport.is_stream()
            };
            is_here && now.saturating_sub(known.at) < MEMORY_NS
        };
        ports.into_iter().flatten().any(is_it)
    }

    fn accepted_since(&self, source: &IpKey, user: &str, since: u64) -> bool {
        let ports = self.addresses.get(source).and_then(|address| address.users.get(user));
        ports.into_iter().flatten().any(|known| known.at >= since)
    }

    /// Whether any user was accepted from an address in the last 30 days.
    pub(super) fn was_good(&self, source: &IpKey, now: u64) -> bool {
        self.addresses
            .get(source)
            .is_some_and(|address| now.saturating_sub(address.last) < MEMORY_NS)
    }

    /// Whether any user was accepted from an address in the last day.
    pub(super) fn was_good_lately(&self, source: &IpKey, now: u64) -> bool {
        self.addresses.get(source).is_some_and(|address| now.saturating_sub(address.last) < DAY_NS)
    }

    /// Whether a user was ever accepted from anywhere, as far as remembered.
    pub(super) fn is_user(&self, user: &str, now: u64) -> bool {
        self.users.contains_key(user) || self.aliases.get(&digest(user), now).is_some()
    }

    /// Number of known-good addresses.
    pub(super) fn count(&self, now: u64) -> usize {
        self.ends.iter().rev().take_while(|(until, _)| *until > now).count()
    }

    /// Fill level of the fuller table, from 0 to 1.
    pub(super) fn fill(&self) -> f64 {
        let share = |held: usize, most: usize| held as f64 / most as f64;
        share(self.addresses.len(), self.most).max(share(self.places, MAX_PLACES))
    }

    /// The users that were accepted from an address, and where.
    pub(super) fn accepted_at(&self, source: &IpKey) -> impl Iterator<Item = (&str, AcceptedPort)> {
        let users = self.addresses.get(source).into_iter().flat_map(|address| &address.users);
        users.flat_map(|(user, ports)| ports.iter().map(move |known| (user.as_str(), *known)))
    }

    /// All acceptances.
    pub(super) fn acceptances(&self) -> impl Iterator<Item = Acceptance> + '_ {
        self.addresses.keys().flat_map(|source| {
            self.accepted_at(source).map(|(user, known)| {
                let AcceptedPort { port, transport, at, until } = known;
                let (source, user) = (*source, user.to_owned());
                Acceptance { source, user, port, transport, at, until }
            })
        })
    }

    /// Drops acceptances that are too old.
    pub(super) fn tidy(&mut self, now: u64) {
        // Sorted by the end of standing; those within the memory stay.
        let over: Vec<IpKey> = self
            .ends
            .iter()
            .take_while(|(until, _)| *until <= now.saturating_sub(MEMORY_NS))
            .map(|(_, source)| *source)
            .collect();
        for source in over {
            let places: Vec<(String, u16)> =
                self.accepted_at(&source).map(|(user, at)| (user.to_owned(), at.port)).collect();
            places.iter().for_each(|(user, port)| self.forget(&source, user, *port));
        }
    }

    fn places_of(&self, source: &IpKey) -> usize {
        self.addresses.get(source).map_or(0, |address| address.ends.len())
    }

    fn has(&self, source: &IpKey, user: &str, port: u16) -> bool {
        self.accepted_at_user(source, user).any(|at| at == port)
    }

    /// Whether any user was accepted at a port of an address.
    pub(super) fn has_place(&self, source: &IpKey, port: u16) -> bool {
        self.addresses
            .get(source)
            .is_some_and(|address| address.ends.iter().any(|(_, at, _)| *at == port))
    }

    /// Number of accounts accepted within a day, by address, counted up to `most`.
    pub(super) fn accounts_lately(&self, now: u64, most: usize) -> usize {
        let lately = |at: &u64| now.saturating_sub(*at) < DAY_NS;
        let addresses = self.addresses.values().filter(|address| lately(&address.last));
        let users = addresses.flat_map(|address| address.users.values());
        users.filter(|ports| ports.iter().any(|known| lately(&known.at))).take(most).count()
    }

    fn accepted_at_user(&self, source: &IpKey, user: &str) -> impl Iterator<Item = u16> {
        let ports = self.addresses.get(source).and_then(|address| address.users.get(user));
        ports.into_iter().flatten().map(|known| known.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;
    const HOUR_NS: u64 = 3_600 * SECOND_NS;

    fn accept(known: &mut Registrations, source: IpKey, user: &str, port: u16, at: u64) -> Earned {
        let (user, transport, until) = (user.to_owned(), Transport::Udp, at + HOUR_NS);
        known.accept(&Acceptance { source, user, port, transport, at, until })
    }

    fn host(n: u64) -> IpKey {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&0x2001_0db8_0000_0000_u64.to_be_bytes());
        octets[8..].copy_from_slice(&n.to_be_bytes());
        IpKey::new(octets)
    }

    #[test]
    fn one_account_earns_standing_at_few_places() {
        let mut known = Registrations::default();
        for n in 0..1_000 {
            let earned = accept(&mut known, IpKey::v4(n), "mallory", 5_060, u64::from(n));
            assert!(earned.standing && earned.gone.len() == usize::from(n >= 16));
        }
        assert_eq!(known.count(1_000), ADDRESSES_OF_A_USER);
        assert!(known.good_until(&IpKey::v4(999), 1_000) > 0, "the shortest-lived makes room");
        for port in 0..1_000 {
            accept(&mut known, IpKey::v4(999), "mallory", port, 2_000 + u64::from(port));
        }
        assert_eq!(known.users(&IpKey::v4(999), 4_000), PORTS_OF_A_USER);
        assert!(known.flow_until(&IpKey::v4(999), 999, 4_000) > 0);
        assert_eq!(known.places, ADDRESSES_OF_A_USER - 1 + PORTS_OF_A_USER);
    }

    #[test]
    fn over_tcp_a_user_is_at_home_with_its_newest_connections() {
        let mut known = Registrations::default();
        let source = IpKey::v4(7);
        let place = |port: u16, transport: Transport| Place { source, port, transport };
        for port in 1..=9 {
            let acceptance = Acceptance {
                source,
                user: "100".to_owned(),
                port,
                transport: if port == 1 { Transport::Udp } else { Transport::Tls },
                at: u64::from(port),
                until: u64::from(port) + HOUR_NS,
            };
            let own = place(400, Transport::Tcp);
            assert_eq!(known.is_own_place("100", &own, 10), port > 2);
            known.accept(&acceptance);
        }
        assert_eq!(known.users(&source, 10), PORTS_OF_A_USER);
        assert!(known.flow_until(&source, 9, 10) > 0 && known.flow_until(&source, 5, 10) == 0);
        assert!(known.is_own_place("100", &place(400, Transport::Wss), 10));
        for (user, place) in [("100", place(9, Transport::Udp)), ("101", place(9, Transport::Tcp))]
        {
            assert!(!known.is_own_place(user, &place, 10), "{user} {place:?}");
        }
    }

    #[test]
    fn an_ipv6_network_has_few_known_hosts() {
        let mut known = Registrations::default();
        let standing = (0..1_000)
            .filter(|n| accept(&mut known, host(1 + n), &format!("{n}"), 5_060, *n).standing);
        assert_eq!(standing.count(), HOSTS_OF_A_64 as usize);
        assert!(accept(&mut known, host(1), "0", 5_061, 2_000).standing, "one that is known");
    }

    #[test]
    fn an_acceptance_costs_the_same_however_many_there_are() {
        let mut known = Registrations::default();
        for n in 0..100_000_u32 {
            accept(&mut known, IpKey::v4(n), &format!("{n}"), 5_060, u64::from(n));
        }
        assert!(known.addresses.len() <= MAX_ADDRESSES && known.places <= MAX_PLACES);
        assert_eq!(
            (known.users.len(), known.ends.len()),
            (known.addresses.len(), known.addresses.len())
        );
        assert!(known.fill() > 0.99);
        assert!(known.is_user("99999", 0) && !known.is_user("5", 0));
    }

    #[test]
    fn what_is_convicted_has_no_standing() {
        let mut known = Registrations::default();
        for (user, port) in [("100", 10_000), ("101", 10_001), ("102", 10_001)] {
            accept(&mut known, IpKey::v4(7), user, port, SECOND_NS);
        }
        assert_eq!(known.users_at(&IpKey::v4(7), 10_001, 2 * SECOND_NS, "102"), 1);
        assert_eq!(known.mark_offender(&IpKey::v4(7), Some(10_001)), [10_001, 10_001]);
        assert_eq!(known.flow_until(&IpKey::v4(7), 10_001, 2 * SECOND_NS), 0);
        assert!(known.good_until(&IpKey::v4(7), 2 * SECOND_NS) > 0);
        known.end(&IpKey::v4(7), "100", 2 * SECOND_NS);
        assert_eq!(known.good_until(&IpKey::v4(7), 3 * SECOND_NS), 0);
        assert!(known.was_good_lately(&IpKey::v4(7), 3 * SECOND_NS));
        known.tidy(2 * MEMORY_NS);
        assert_eq!((known.places, known.ends.len(), known.users.len()), (0, 0, 0));
    }
}
