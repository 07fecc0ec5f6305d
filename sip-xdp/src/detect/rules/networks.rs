//! IPv6 networks: an attacker with a network hops between its hosts. The host is weighed first; a
//! /64, /56 and /48 have two, three and four times the thresholds, and count only where at least
//! two of the next smaller networks took part. A nonce given within a /64 proves the network, not
//! the host. By forgeable evidence that network goes on the ladder, and is not banned; and by any
//! where somebody good lives in it (`bans/engine.rs`).

use std::collections::BTreeSet;

use sip_xdp_common::ip_key::{IpKey, mask};

use super::super::claim::{Growth, Level};
use super::super::digest::digest;
use super::super::windows::{LeakyBucket, Window, words};
use super::super::{Action, Detector, Finding, Metering, Step};
use super::Detect;
use super::rejected::Rejected;
use super::rule::Rule as _;
use super::slow::Slow;

/// Prefix length, multiple of a host's thresholds, and prefix length of its parts.
pub(in super::super) const WIDTHS: [(u8, u32, u8); 3] = [(64, 2, 128), (56, 3, 64), (48, 4, 56)];

/// Maximum number of watched networks.
pub(in super::super) const MAX_NETWORKS: usize = 16_384;

/// Their lifetime.
pub(in super::super) const LIFETIME_NS: u64 = 24 * 3_600_000_000_000;

/// The tries of a network's hosts together: those whose nonce proves the network, and all.
#[derive(Debug, Default)]
pub(in super::super) struct Network {
    real: Tries,
    all: Tries,
}

#[derive(Debug, Default)]
struct Tries {
    rejected: Window<()>,
    slow: LeakyBucket,
    /// Digests of the parts that took part since its last offence, up to two.
    parts: BTreeSet<u64>,
}

impl Tries {
    /// Counts a try. Returns the recent number if it reaches a threshold, and whether the fast
    /// rule's.
    fn note(&mut self, part: u64, now: u64, rules: &Detect, times: u32) -> Option<(usize, bool)> {
        let (rejected, slow) = (rules.rejected, rules.slow);
        self.rejected.note(now, (), rejected.per.nanos());
        let filled = self.slow.pour(now, slow.per.nanos());
        if self.parts.len() < 2 {
            self.parts.insert(part);
        }
        let count = self.rejected.len();
        let by_count = rejected.enabled && count >= (times * rejected.count) as usize;
        let by_level = slow.enabled && filled >= f64::from(times * slow.count) - 0.5;
        (self.parts.len() >= 2 && (by_count || by_level)).then_some((count, by_count))
    }

    /// Restarts, except for the slow bucket.
    fn begin_anew(&mut self) {
        *self = Self { slow: self.slow, ..Self::default() };
    }
}

impl Detector {
    /// Processes a rejection of a host, whose nonce proves the network or not.
    pub(in super::super) fn weigh_networks(
        &mut self,
        source: IpKey,
        is_real: bool,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        if source.is_v4() {
            return;
        }
        let mut is_banned = false;
        for (bits, times, part_bits) in WIDTHS {
            let around = source.masked(mask(bits));
            let part = digest(&source.masked(mask(part_bits)));
            let network = self.networks.touch((bits, around), now, Network::default);
            let real = is_real.then(|| network.real.note(part, now, &self.rules, times)).flatten();
            let all = network.all.note(part, now, &self.rules, times);
            if let Some((count, by_count)) = real.filter(|_| !is_banned) {
                let since = words(network.real.rejected.since(now));
                let reason = format!(
                    "{count} rejected passwords of several hosts in {since}, nonces echoed"
                );
                let kind = if by_count { Rejected::NAME } else { Slow::NAME };
                network.real.begin_anew();
                network.all.begin_anew();
                let about = self.about(source, kind, Level::Routable, reason);
                self.emit_ban(
                    Level::Routable,
                    Finding { bits, growth: Growth::Full, ..about },
                    now,
                    actions,
                );
                is_banned = true;
            } else if let Some((count, _)) = all.filter(|_| !is_banned) {
                let since = words(network.all.rejected.since(now));
                let reason = format!(
                    "{count} rejected passwords of several hosts of the network in {since}"
                );
                network.all.begin_anew();
                let host = Metering::of_host(source, Step::Down, now + LIFETIME_NS, reason);
                actions.push(Action::Meter(Metering { bits, ..host }));
            }
        }
    }
}
