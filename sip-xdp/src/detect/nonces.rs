//! Nonces: to whom each was given, and for which request. A source that echoes a nonce given to it
//! alone is routable.

use sip_xdp_common::ip_key::{IpKey, mask};

use super::digest::digest;
use super::recent::Recent;
use super::transactions::{Method, Request};
use super::windows::LeakyBucket;

/// Maximum number of remembered nonces, and of challenged calls.
const MAX_NONCES: usize = 65_536;

/// Their lifetime in nanoseconds: registrars withdraw nonces after some minutes.
const LIFETIME_NS: u64 = 3_600_000_000_000;

/// Level of the leaky bucket of nonces given to several sources from which on the server is said to
/// share them, and the time in which it loses one.
const MANY_SHARED: f64 = 3.0;
const SHARED_LEAK_NS: u64 = 2 * LIFETIME_NS;

/// Maximum number of challenges per call.
const MAX_CHALLENGES: usize = 8;

/// The recipients of a nonce: an address, and a digest of the IPv6 /64 around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// One address.
    Alone { to: IpKey, around: Option<u64> },
    /// Several addresses of one IPv6 /64.
    Within(u64),
    /// Several sources.
    Shared,
}

/// What an echoed nonce proves about its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Echo {
    /// Nothing: the server never sent it, or not to this sender.
    Foreign,
    /// Nothing: several sources were given it.
    Shared,
    /// The sender's IPv6 /64, to which alone it was given, but not the address.
    Network,
    /// The address: it was given to this source alone.
    Own,
}

/// The IPv6 /64 of an address.
fn around(source: &IpKey) -> Option<u64> {
    (!source.is_v4()).then(|| digest(&source.masked(mask(64))))
}

/// The server's nonces.
#[derive(Debug)]
pub(super) struct Nonces {
    given: Recent<u64, Given>,
    /// By source, Call-ID and method: nonces, and fingerprints of the challenged requests.
    challenges: Recent<u64, Vec<(u64, u64)>>,
    /// Nonces by source and user of a registration.
    registering: Recent<u64, ()>,
    /// Nonces that were given to several sources.
    shared: LeakyBucket,
}

impl Default for Nonces {
    fn default() -> Self {
        Self {
            given: Recent::new(MAX_NONCES, LIFETIME_NS),
            challenges: Recent::new(MAX_NONCES, LIFETIME_NS),
            registering: Recent::new(MAX_NONCES, LIFETIME_NS),
            shared: LeakyBucket::default(),
        }
    }
}

impl Nonces {
    /// Records a nonce sent to an address. Returns the earlier sole recipient, if there are two
    /// now.
    pub(super) fn give(&mut self, nonce: u64, to: IpKey, now: u64) -> Option<IpKey> {
        let given = Given::Alone { to, around: around(&to) };
        let before = self.given.touch(nonce, now, || given);
        if *before == given {
            return None;
        }
        let lost = match *before {
            Given::Alone { to, .. } => Some(to),
            _ => None,
        };
        let network = match *before {
            Given::Alone { around, .. } => around,
            Given::Within(network) => Some(network),
            Given::Shared => None,
        };
        *before = match network.filter(|network| around(&to) == Some(*network)) {
            Some(network) => Given::Within(network),
            None => Given::Shared,
        };
        if *before == Given::Shared && lost.is_some() {
            self.shared.pour(now, SHARED_LEAK_NS);
        }
        lost
    }

    /// Whether the server gives the same nonces to several sources, as of the last hours.
    pub(super) fn are_shared(&self, now: u64) -> bool {
        self.shared.level(now, SHARED_LEAK_NS) >= MANY_SHARED
    }

    /// Records a nonce that may have gone to an address, or to others. It is nobody's alone, unless
    /// it was that address's before. Returns the earlier sole recipient, if it is none any more.
    pub(super) fn share(&mut self, nonce: u64, to: IpKey, now: u64) -> Option<IpKey> {
        let is_own =
            |given: &Given| matches!(given, Given::Alone { to: known, .. } if *known == to);
        if self.given.get(&nonce, now).is_some_and(is_own) {
            return None;
        }
        let before =
            std::mem::replace(self.given.touch(nonce, now, || Given::Shared), Given::Shared);
        match before {
            Given::Alone { to, .. } => Some(to),
            Given::Within(_) | Given::Shared => None,
        }
    }

    /// Records the request that a nonce challenged.
    pub(super) fn challenge(&mut self, nonce: u64, request: &Request, now: u64) {
        let challenges = self.challenges.touch(key(request), now, Vec::new);
        let challenge = (nonce, request.fingerprint);
        if !challenges.contains(&challenge) {
            if challenges.len() >= MAX_CHALLENGES {
                challenges.remove(0);
            }
            challenges.push(challenge);
        }
        if request.method == Method::Register {
            let named = request.credentials.iter().map(|one| &one.user).chain(&request.user);
            for user in named {
                self.registering.insert(digest(&(nonce, request.source, user)), now, ());
            }
        }
    }

    /// Records a nonce that challenged a registration whose request was not seen.
    pub(super) fn challenge_registration(
        &mut self,
        nonce: u64,
        to: IpKey,
        user: &String,
        now: u64,
    ) {
        self.registering.insert(digest(&(nonce, to, user)), now, ());
    }

    /// What an echo of a nonce proves.
    pub(super) fn echo(&self, nonce: u64, by: IpKey, now: u64) -> Echo {
        let is_near = |network: &Option<u64>| network.is_some() && *network == around(&by);
        match self.given.get(&nonce, now) {
            Some(Given::Alone { to, .. }) if *to == by => Echo::Own,
            Some(Given::Alone { around, .. }) if is_near(around) => Echo::Network,
            Some(Given::Within(network)) if is_near(&Some(*network)) => Echo::Network,
            // The other recipients are not remembered.
            Some(Given::Shared) => Echo::Shared,
            _ => Echo::Foreign,
        }
    }

    /// Whether a request answers a challenge that its source was sent: in the same call and method,
    /// with nothing else changed; or, for a registration, with a nonce given for this user.
    pub(super) fn was_challenged(&self, request: &Request, now: u64) -> bool {
        let answers = |(nonce, fingerprint): &(u64, u64)| {
            *fingerprint == request.fingerprint
                && request.credentials.iter().any(|one| one.nonce == *nonce)
        };
        let in_call =
            self.challenges.get(&key(request), now).is_some_and(|all| all.iter().any(answers));
        let is_register = request.method == Method::Register;
        let was_given = |nonce: u64, user: &String| {
            self.registering.get(&digest(&(nonce, request.source, user)), now).is_some()
        };
        in_call
            || is_register
                && request.credentials.iter().any(|one| {
                    [Some(&one.user), request.user.as_ref()]
                        .into_iter()
                        .flatten()
                        .any(|user| was_given(one.nonce, user))
                })
    }
}

fn key(request: &Request) -> u64 {
    digest(&(request.source, request.call, request.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nonce_of_ones_own_proves_anything() {
        let mut nonces = Nonces::default();
        let (one, other) = (IpKey::v4(1), IpKey::v4(2));
        nonces.give(7, one, 1);
        let echo = |nonces: &Nonces, nonce, by| nonces.echo(nonce, by, 2);
        assert_eq!(
            (echo(&nonces, 7, one), echo(&nonces, 7, other), echo(&nonces, 8, one)),
            (Echo::Own, Echo::Foreign, Echo::Foreign)
        );
        nonces.give(7, one, 2);
        assert_eq!(echo(&nonces, 7, one), Echo::Own, "the same challenge again");
        nonces.give(7, other, 3);
        assert_eq!((echo(&nonces, 7, one), echo(&nonces, 7, other)), (Echo::Shared, Echo::Shared));
    }

    #[test]
    fn an_ipv6_network_proves_itself() {
        let host = |network: u8, host: u8| {
            IpKey::new([0x20, 1, 0xd, 0xb8, 0, 0, 0, network, 0, 0, 0, 0, 0, 0, 0, host])
        };
        let mut nonces = Nonces::default();
        nonces.give(7, host(1, 1), 1);
        let echo = |nonces: &Nonces, by| nonces.echo(7, by, 2);
        assert_eq!(echo(&nonces, host(1, 1)), Echo::Own);
        assert_eq!(echo(&nonces, host(1, 2)), Echo::Network);
        assert_eq!(echo(&nonces, host(2, 1)), Echo::Foreign);
        nonces.give(7, host(1, 2), 1);
        assert_eq!(
            (echo(&nonces, host(1, 1)), echo(&nonces, host(1, 3))),
            (Echo::Network, Echo::Network)
        );
        nonces.give(7, host(2, 1), 1);
        assert_eq!(echo(&nonces, host(1, 1)), Echo::Shared);
    }
}
