//! Who is real: users that were accepted with credentials, from where and until when; and hosts that answer our requests.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use sip_xdp_common::ip_key::Source;

/// How many addresses with accepted users are remembered, and how many users of one.
const MAX_ADDRESSES: usize = 65_536;
const MAX_USERS: usize = 4_096;

/// How many of our requests are remembered until they are answered.
const MAX_ASKED: usize = 16_384;

/// For how long an answer is waited for, in nanoseconds.
const PATIENCE: u64 = 40_000_000_000;

/// For how long a host that answered us is a peer, in nanoseconds.
pub(super) const PEER: u64 = 3_600_000_000_000;

const DAY: u64 = 24 * 3_600_000_000_000;

/// For how long it is remembered that a user was accepted, in nanoseconds.
const MEMORY: u64 = 30 * DAY;

/// One accepted user at one port of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// The address.
    pub source: Source,
    /// The user.
    pub user: String,
    /// The port that the phone uses.
    pub port: u16,
    /// When it was last accepted, on the filter's clock.
    pub at: u64,
    /// Until when that makes the address known good: the end of the registration.
    pub until: u64,
}

#[derive(Debug, Default)]
struct Address {
    /// By user and port: when it was last accepted, and until when that counts.
    users: BTreeMap<(String, u16), (u64, u64)>,
    last: u64,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    addresses: HashMap<Source, Address>,
    /// How many addresses a user was accepted from.
    users: HashMap<String, u32>,
    asked: HashMap<(Source, u64), u64>,
    order: VecDeque<(u64, Source, u64)>,
    peers: HashMap<Source, u64>,
}

impl Known {
    /// Notes that a user was accepted.
    pub(super) fn accept(&mut self, acceptance: &Acceptance) {
        let Acceptance { source, user, port, at, until } = acceptance;
        if self.addresses.len() >= MAX_ADDRESSES && !self.addresses.contains_key(source) {
            self.forget_the_oldest();
        }
        let address = self.addresses.entry(*source).or_default();
        address.last = address.last.max(*at);
        if address.users.len() >= MAX_USERS && !address.users.contains_key(&(user.clone(), *port)) {
            return;
        }
        let is_new_here = !address.users.keys().any(|(known, _)| known == user);
        address.users.insert((user.clone(), *port), (*at, *until));
        if is_new_here {
            *self.users.entry(user.clone()).or_default() += 1;
        }
    }

    /// Notes that a user has taken its registration back. The memory of its having been accepted stays.
    pub(super) fn end(&mut self, source: Source, user: &str, port: u16, now: u64) {
        if let Some(address) = self.addresses.get_mut(&source) {
            for ((_, at), (_, until)) in address.users.iter_mut().filter(|((known, _), _)| known == user) {
                if *at == port || *until > now {
                    *until = now;
                }
            }
        }
    }

    /// Until when an address is known good; 0 if it is not.
    pub(super) fn good_until(&self, source: &Source, now: u64) -> u64 {
        let ends =
            self.addresses.get(source).into_iter().flat_map(|address| address.users.values().map(|(_, until)| *until));
        ends.filter(|until| *until > now).max().unwrap_or(0)
    }

    /// Until when a flow is known good; 0 if it is not.
    pub(super) fn flow_until(&self, source: &Source, port: u16, now: u64) -> u64 {
        let users = self.addresses.get(source).into_iter().flat_map(|address| &address.users);
        let ends = users.filter(|((_, at), _)| *at == port).map(|(_, (_, until))| *until);
        ends.filter(|until| *until > now).max().unwrap_or(0)
    }

    /// How many users an address has that are accepted at `now`.
    pub(super) fn users(&self, source: &Source, now: u64) -> usize {
        self.addresses.get(source).map_or(0, |address| address.users.values().filter(|(_, until)| *until > now).count())
    }

    /// Whether a user was accepted from an address in the last 30 days.
    pub(super) fn accepted(&self, source: &Source, user: &str, now: u64) -> bool {
        self.accepted_since(source, user, now.saturating_sub(MEMORY))
    }

    /// Whether a user was accepted from an address since then.
    pub(super) fn accepted_since(&self, source: &Source, user: &str, since: u64) -> bool {
        let users = self.addresses.get(source).into_iter().flat_map(|address| &address.users);
        users.into_iter().any(|((known, _), (at, _))| known == user && *at >= since)
    }

    /// Whether anybody was accepted from an address in the last 30 days.
    pub(super) fn was_good(&self, source: &Source, now: u64) -> bool {
        self.addresses.get(source).is_some_and(|address| now.saturating_sub(address.last) < MEMORY)
    }

    /// Whether anybody was accepted from an address in the last day.
    pub(super) fn was_good_lately(&self, source: &Source, now: u64) -> bool {
        self.addresses.get(source).is_some_and(|address| now.saturating_sub(address.last) < DAY)
    }

    /// Whether a user was ever accepted from anywhere, as far as is remembered.
    pub(super) fn is_user(&self, user: &str) -> bool {
        self.users.contains_key(user)
    }

    /// Notes that we sent a request of our own accord, with this branch.
    pub(super) fn ask(&mut self, source: Source, branch: u64, now: u64) {
        while let Some((at, source, branch)) = self.order.front().copied() {
            if now.saturating_sub(at) < PATIENCE && self.order.len() < MAX_ASKED {
                break;
            }
            self.order.pop_front();
            self.asked.remove(&(source, branch));
        }
        if self.asked.insert((source, branch), now).is_none() {
            self.order.push_back((now, source, branch));
        }
    }

    /// Notes a response. Returns until when its sender is a peer, if it answers a request of ours.
    pub(super) fn respond(&mut self, source: Source, branch: u64, now: u64) -> Option<u64> {
        let asked = self.asked.get(&(source, branch)).filter(|at| now.saturating_sub(**at) < PATIENCE);
        asked?;
        let until = now + PEER;
        self.peers.insert(source, until);
        Some(until)
    }

    /// Notes a peer of an earlier run.
    pub(super) fn restore_peer(&mut self, source: Source, until: u64) {
        self.peers.insert(source, until);
    }

    /// Whether a source is a peer.
    pub(super) fn is_peer(&self, source: &Source, now: u64) -> bool {
        self.peers.get(source).is_some_and(|until| *until > now)
    }

    /// How many addresses are known good, and how many are peers.
    pub(super) fn counts(&self, now: u64) -> (usize, usize) {
        let good = self.addresses.keys().filter(|source| self.good_until(source, now) != 0).count();
        (good, self.peers.values().filter(|until| **until > now).count())
    }

    /// The users that were accepted from an address, with the port, and until when that counts.
    pub(super) fn accepted_at(&self, source: &Source) -> impl Iterator<Item = (&str, u16, u64)> {
        let users = self.addresses.get(source).into_iter().flat_map(|address| &address.users);
        users.map(|((user, port), (_, until))| (user.as_str(), *port, *until))
    }

    /// All that was accepted.
    pub(super) fn acceptances(&self) -> impl Iterator<Item = Acceptance> + '_ {
        self.addresses.iter().flat_map(|(source, address)| {
            address.users.iter().map(|((user, port), (at, until))| Acceptance {
                source: *source,
                user: user.clone(),
                port: *port,
                at: *at,
                until: *until,
            })
        })
    }

    /// Forgets what is older than is remembered.
    pub(super) fn tidy(&mut self, now: u64) {
        self.peers.retain(|_, until| *until > now);
        let Self { addresses, users, .. } = self;
        addresses.retain(|_, address| {
            let is_over =
                |_: &(String, u16), (at, until): &mut (u64, u64)| *until <= now && now.saturating_sub(*at) >= MEMORY;
            let over: BTreeSet<String> = address.users.extract_if(.., is_over).map(|((user, _), _)| user).collect();
            for user in over {
                let gone = !address.users.keys().any(|(known, _)| *known == user);
                if gone {
                    forget_user(users, &user);
                }
            }
            !address.users.is_empty()
        });
    }

    /// Makes room: who was not accepted for the longest time goes.
    fn forget_the_oldest(&mut self) {
        let oldest = self.addresses.iter().min_by_key(|(_, address)| address.last).map(|(source, _)| *source);
        let Some(address) = oldest.and_then(|oldest| self.addresses.remove(&oldest)) else {
            return;
        };
        let users: BTreeSet<String> = address.users.into_keys().map(|(user, _)| user).collect();
        users.iter().for_each(|user| forget_user(&mut self.users, user));
    }
}

/// One address less from which a user was accepted.
fn forget_user(users: &mut HashMap<String, u32>, user: &str) {
    if let Some(count) = users.get_mut(user) {
        *count -= 1;
        if *count == 0 {
            users.remove(user);
        }
    }
}
