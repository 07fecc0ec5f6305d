//! What feeds list: for each feed a sorted array of networks, 17 bytes apiece, which is all that the daemon keeps of a
//! million of them.

use std::collections::BTreeMap;

use sip_xdp_common::networks::Kind;

use crate::guide::{Lengths, length_of};
use crate::network::Network;

/// The networks of one feed, sorted, each once.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Listed {
    networks: Vec<Network>,
    lengths: Lengths,
}

impl Listed {
    /// Takes networks in any order.
    pub fn new(mut networks: Vec<Network>) -> Self {
        networks.sort_unstable();
        networks.dedup();
        networks.shrink_to_fit();
        let mut seen = [[false; 129]; 2];
        networks.iter().for_each(|net| seen[usize::from(net.is_v4())][usize::from(net.bits())] = true);
        let all = [false, true].into_iter().flat_map(|is_v4| (0..=128).map(move |bits| (is_v4, bits)));
        let seen = all.filter(|(is_v4, bits)| seen[usize::from(*is_v4)][usize::from(*bits)]);
        let lengths = seen.map(|(is_v4, bits)| (is_v4, Kind::Blocked, bits)).collect();
        Self { networks, lengths }
    }

    /// The lengths that occur.
    pub fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// All networks, sorted.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// Whether it lists exactly `network`.
    pub fn contains(&self, network: &Network) -> bool {
        self.networks.binary_search(network).is_ok()
    }

    /// Whether one of its networks contains `network`. An IPv6 network that covers the mapped range covers no IPv4.
    pub fn covers(&self, network: &Network) -> bool {
        self.lengths
            .range((network.is_v4(), Kind::Blocked, 0)..=length_of(Kind::Blocked, network))
            .any(|(_, _, bits)| self.contains(&Network::around(network.first(), *bits)))
    }

    /// Its networks that lie in `network`, itself among them.
    pub fn within(&self, network: &Network) -> impl Iterator<Item = &Network> {
        let from = self.networks.partition_point(|listed| listed < &Network::around(network.first(), network.bits()));
        let end = network.last();
        let network = *network;
        self.networks[from..]
            .iter()
            .take_while(move |listed| listed.first() <= end)
            .filter(move |n| network.contains(n))
    }

    /// What is here and not in `other`.
    pub fn without(&self, other: &Self) -> Vec<Network> {
        let mut theirs = other.networks.iter().peekable();
        let mut rest = Vec::new();
        for network in &self.networks {
            while theirs.next_if(|other| *other < network).is_some() {}
            if theirs.peek() != Some(&network) {
                rest.push(*network);
            }
        }
        rest
    }
}

/// All feeds, by name.
#[derive(Debug, Default)]
pub struct Feeds {
    by_name: BTreeMap<String, Listed>,
}

impl Feeds {
    /// What a feed lists.
    pub fn get(&self, name: &str) -> Option<&Listed> {
        self.by_name.get(name)
    }

    /// Replaces what a feed lists, and returns what it listed before. Nothing at all ends it.
    pub fn replace(&mut self, name: &str, listed: Listed) -> Listed {
        let before = if listed.networks.is_empty() {
            self.by_name.remove(name)
        } else {
            self.by_name.insert(name.to_owned(), listed)
        };
        before.unwrap_or_default()
    }

    /// Every feed.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Listed)> {
        self.by_name.iter().map(|(name, listed)| (name.as_str(), listed))
    }

    /// Whether a feed other than `name` lists exactly `network`.
    pub fn others_contain(&self, name: &str, network: &Network) -> bool {
        self.iter().any(|(feed, listed)| feed != name && listed.contains(network))
    }

    /// Whether any feed lists exactly `network`.
    pub fn contains(&self, network: &Network) -> bool {
        self.by_name.values().any(|listed| listed.contains(network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sip_xdp_common::source::Source;

    fn close() -> impl Strategy<Value = Network> {
        (any::<u16>(), 100_u8..=128).prop_map(|(low, bits)| {
            let mut octets = [0; 16];
            octets[10..12].fill(0xff);
            octets[14..].copy_from_slice(&(low & 0x0fff).to_be_bytes());
            Network::around(Source { octets }, bits)
        })
    }

    proptest! {
        #[test]
        fn sorted_arrays_say_what_plain_lists_say(one in prop::collection::vec(close(), 0..80),
                                                  two in prop::collection::vec(close(), 0..80), probe in close()) {
            let (a, b) = (Listed::new(one.clone()), Listed::new(two.clone()));
            prop_assert_eq!(a.contains(&probe), one.contains(&probe));
            prop_assert_eq!(a.covers(&probe), one.iter().any(|network| network.contains(&probe)));
            let mut inside: Vec<Network> = one.iter().copied().filter(|network| probe.contains(network)).collect();
            inside.sort_unstable();
            inside.dedup();
            prop_assert_eq!(a.within(&probe).copied().collect::<Vec<_>>(), inside);
            let mut rest: Vec<Network> = one.iter().copied().filter(|network| !two.contains(network)).collect();
            rest.sort_unstable();
            rest.dedup();
            prop_assert_eq!(a.without(&b), rest);
        }
    }
}
