//! IPv6: whoever has a network hops from host to host. The host comes first; a /64, /56 and /48
//! have two, three and four times the thresholds, and only where two or more of the next smaller
//! size took part. Level 1 only; a nonce that was given within a /64 proves the network, not the
//! host.

use std::collections::BTreeSet;

use sip_xdp_common::ip_key::{IpKey, mask};

use super::super::claim::{Growth, Level};
use super::super::digest::digest;
use super::super::windows::{LeakyBucket, Window, words};
use super::super::{Action, Detector, Finding};

/// Width, how many times the thresholds of a host, and the width of its parts.
pub(in super::super) const WIDTHS: [(u8, u32, u8); 3] = [(64, 2, 128), (56, 3, 64), (48, 4, 56)];

/// How many networks are watched.
pub(in super::super) const MAX_NETWORKS: usize = 16_384;

/// For how long one is remembered.
pub(in super::super) const LIFETIME_NS: u64 = 24 * 3_600_000_000_000;

/// What the hosts of a network have tried, together.
#[derive(Debug, Default)]
pub(in super::super) struct Network {
    /// Digests of its parts.
    rejected: Window<u64>,
    slow: LeakyBucket,
    /// Parts that took part since it was last banned.
    parts: BTreeSet<u64>,
}

impl Detector {
    /// A host has had one more password rejected.
    pub(in super::super) fn weigh_networks(
        &mut self,
        source: IpKey,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        if source.is_v4() {
            return;
        }
        let (rejected, slow) = (self.rules.rejected, self.rules.slow);
        for (bits, times, part_bits) in WIDTHS {
            let around = source.masked(mask(bits));
            let part = digest(&source.masked(mask(part_bits)));
            let network = self.networks.touch((bits, around), now, Network::default);
            network.rejected.note(now, part, rejected.per.nanos());
            let filled = network.slow.pour(now, slow.per.nanos());
            if network.parts.len() < 2 {
                network.parts.insert(part);
            }
            let count = network.rejected.len();
            let by_count = rejected.enabled && count >= (times * rejected.count) as usize;
            let by_level = slow.enabled && filled >= f64::from(times * slow.count) - 0.5;
            if network.parts.len() < 2 || !by_count && !by_level {
                continue;
            }
            let since = words(network.rejected.since(now));
            let reason =
                format!("{count} rejected passwords of several hosts in {since}, nonces echoed");
            let kind = if by_count { super::rejected::REJECTED } else { super::rejected::SLOW };
            *network = Network { slow: network.slow, ..Network::default() };
            let finding = Finding {
                bits,
                growth: Growth::Full,
                ..self.about(source, kind, Level::Routable, reason)
            };
            self.emit_ban(Level::Routable, finding, now, actions);
            return;
        }
    }
}
