//! A set of networks with expiry: covering networks, contained networks, and the end of coverage.

use std::collections::BTreeMap;

use crate::net::network::Network;

/// Networks with their expiry, on the filter's clock.
#[derive(Debug, Default, Clone)]
pub struct Prefixes {
    ends: BTreeMap<Network, u64>,
    /// Number of networks by prefix length, so that searches skip unused lengths.
    lengths: BTreeMap<u8, usize>,
}

impl Prefixes {
    /// Number of networks.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Adds `network`, or changes its expiry.
    pub fn insert(&mut self, network: Network, end: u64) {
        if self.ends.insert(network, end).is_none() {
            *self.lengths.entry(network.bits()).or_default() += 1;
        }
    }

    /// Removes `network`. Returns whether it was in the set.
    pub fn remove(&mut self, network: &Network) -> bool {
        if self.ends.remove(network).is_none() {
            return false;
        }
        if let Some(count) = self.lengths.get_mut(&network.bits()) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&network.bits());
            }
        }
        true
    }

    /// Whether `network` itself is in the set.
    pub fn contains(&self, network: &Network) -> bool {
        self.ends.contains_key(network)
    }

    /// All networks.
    pub fn iter(&self) -> impl Iterator<Item = &Network> {
        self.ends.keys()
    }

    /// Whether a network in the set overlaps `network`.
    pub fn meets(&self, network: &Network) -> bool {
        let (from, to) = (
            Network::around(network.first(), network.bits()),
            Network::around(network.last(), 128),
        );
        self.covering(network).next().is_some()
            || self.ends.range(from..=to).any(|(inside, _)| network.contains(inside))
    }

    /// The networks in the set that contain `network`, itself included, widest first.
    pub fn covering(&self, network: &Network) -> impl Iterator<Item = (Network, u64)> {
        self.lengths.range(..=network.bits()).filter_map(|(bits, _)| {
            let around = Network::around(network.first(), *bits);
            self.ends.get(&around).map(|end| (around, *end))
        })
    }

    /// The latest expiry of `network` and all networks that cover it.
    pub fn end(&self, network: &Network) -> Option<u64> {
        self.covering(network).map(|(_, end)| end).max()
    }

    /// The networks in the set that `network` contains, itself included.
    pub fn within(&self, network: &Network) -> Vec<Network> {
        // Ordered by first address, then by length: all contained ones are between the two bounds.
        let (from, to) = (
            Network::around(network.first(), network.bits()),
            Network::around(network.last(), 128),
        );
        self.ends
            .range(from..=to)
            .map(|(inside, _)| *inside)
            .filter(|inside| network.contains(inside))
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use sip_xdp_common::ip_key::IpKey;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_inherits_the_later_end_of_its_network() {
        let mut set = Prefixes::default();
        set.insert(network("192.0.2.7"), 10);
        set.insert(network("192.0.2.0/24"), 50);
        set.insert(network("192.0.0.0/16"), 20);
        assert_eq!(set.end(&network("192.0.2.7")), Some(50));
        assert_eq!(set.end(&network("192.0.2.8")), Some(50));
        assert_eq!(set.end(&network("192.0.3.8")), Some(20));
        assert_eq!(set.end(&network("192.1.3.8")), None);
        assert_eq!(
            set.within(&network("192.0.2.0/24")),
            [network("192.0.2.0/24"), network("192.0.2.7")]
        );
        assert!(set.remove(&network("192.0.2.0/24")));
        assert_eq!(set.end(&network("192.0.2.7")), Some(20));
        assert!(!set.remove(&network("192.0.2.0/24")));
    }

    /// Nearby networks, which often overlap.
    pub(crate) fn close() -> impl Strategy<Value = Network> {
        (any::<u16>(), 100_u8..=128).prop_map(|(low, bits)| {
            let mut octets = [0; 16];
            octets[10..12].fill(0xff);
            octets[14..].copy_from_slice(&(low & 0x0fff).to_be_bytes());
            Network::around(IpKey::new(octets), bits)
        })
    }

    proptest! {
        /// The longest match with its inherited expiry equals a search through a plain list.
        #[test]
        fn the_longest_match_is_enough(
            steps in prop::collection::vec((close(), 0_u64..100, any::<bool>()), 1..60),
            probes in prop::collection::vec((close(), 0_u64..100), 40),
        ) {
            let mut set = Prefixes::default();
            let mut plain: Vec<(Network, u64)> = Vec::new();
            for (net, end, add) in steps {
                plain.retain(|(n, _)| *n != net);
                if add {
                    set.insert(net, end);
                    plain.push((net, end));
                } else {
                    set.remove(&net);
                }
            }
            for (probe, now) in probes {
                let host = Network::around(probe.first(), 128);
                let listed = plain.iter().any(|(n, end)| n.contains(&host) && *end > now);
                let longest = set.covering(&host).last().map(|(n, _)| n);
                let matched = longest.is_some_and(|n| set.end(&n).is_some_and(|end| end > now));
                prop_assert_eq!(matched, listed);
            }
            for (net, _) in &plain {
                let mut inside: Vec<_> = plain.iter().map(|(n, _)| *n).collect();
                inside.retain(|n| net.contains(n));
                inside.sort();
                prop_assert_eq!(set.within(net), inside);
            }
        }
    }
}
