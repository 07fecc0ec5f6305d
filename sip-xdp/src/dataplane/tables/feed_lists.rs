//! The networks listed by feeds, in user space: sorted arrays of 17 bytes per network, from which
//! the kernel's tables are written.

use std::collections::BTreeMap;

use sip_xdp_common::lookup::networks::Kind;

use super::header::{Lengths, length_of};
use crate::net::network::Network;

/// The networks of one feed, sorted, without duplicates.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct NetworkSet {
    networks: Vec<Network>,
    lengths: Lengths,
}

impl NetworkSet {
    /// From networks in any order.
    pub fn new(mut networks: Vec<Network>) -> Self {
        networks.sort_unstable();
        networks.dedup();
        networks.shrink_to_fit();
        let mut seen = [[false; 129]; 2];
        networks
            .iter()
            .for_each(|net| seen[usize::from(net.is_v4())][usize::from(net.bits())] = true);
        let all =
            [false, true].into_iter().flat_map(|is_v4| (0..=128).map(move |bits| (is_v4, bits)));
        let seen = all.filter(|(is_v4, bits)| seen[usize::from(*is_v4)][usize::from(*bits)]);
        let lengths = seen.map(|(is_v4, bits)| (is_v4, Kind::Blocked, bits)).collect();
        Self { networks, lengths }
    }

    /// The prefix lengths in use.
    pub fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// All networks, sorted.
    pub fn networks(&self) -> &[Network] {
        &self.networks
    }

    /// Number of IPv4 and of IPv6 networks.
    pub fn counts(&self) -> [usize; 2] {
        let ipv4 = self.networks.iter().filter(|network| network.is_v4()).count();
        [ipv4, self.networks.len() - ipv4]
    }

    /// All networks, sorted, by value.
    pub fn into_networks(self) -> Vec<Network> {
        self.networks
    }

    /// Whether it lists exactly `network`.
    pub fn contains(&self, network: &Network) -> bool {
        self.networks.binary_search(network).is_ok()
    }

    /// Whether one of its networks contains `network`. IPv6 networks around the mapped range do not
    /// contain IPv4.
    pub fn covers(&self, network: &Network) -> bool {
        self.lengths
            .range((network.is_v4(), Kind::Blocked, 0)..=length_of(Kind::Blocked, network))
            .any(|(_, _, bits)| self.contains(&Network::around(network.first(), *bits)))
    }

    /// Its networks inside `network`, itself included.
    pub fn within(&self, network: &Network) -> impl Iterator<Item = &Network> {
        let from = self
            .networks
            .partition_point(|listed| listed < &Network::around(network.first(), network.bits()));
        let end = network.last();
        let network = *network;
        self.networks[from..]
            .iter()
            .take_while(move |listed| listed.first() <= end)
            .filter(move |n| network.contains(n))
    }

    /// Its networks that are not in `other`.
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

static EMPTY: NetworkSet = NetworkSet { networks: Vec::new(), lengths: Lengths::new() };

/// All feeds, by name.
#[derive(Debug, Default)]
pub struct FeedLists {
    by_name: BTreeMap<String, NetworkSet>,
    /// Number of networks that any feed lists.
    distinct: usize,
}

impl FeedLists {
    /// The list of a feed.
    pub fn get(&self, name: &str) -> Option<&NetworkSet> {
        self.by_name.get(name)
    }

    /// Replaces the list of a feed, and returns the previous one. An empty list removes the feed.
    pub fn replace(&mut self, name: &str, listed: NetworkSet) -> NetworkSet {
        let before = self.get(name).unwrap_or(&EMPTY);
        let (coming, leaving) = (listed.without(before), before.without(&listed));
        let alone = |networks: &[Network]| {
            networks.iter().filter(|network| !self.others_contain(name, network)).count()
        };
        self.distinct = self.distinct + alone(&coming) - alone(&leaving);
        let before = if listed.networks.is_empty() {
            self.by_name.remove(name)
        } else {
            self.by_name.insert(name.to_owned(), listed)
        };
        before.unwrap_or_default()
    }

    /// Number of networks that any feed lists.
    pub fn distinct(&self) -> usize {
        self.distinct
    }

    /// All feeds.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &NetworkSet)> {
        self.by_name.iter().map(|(name, listed)| (name.as_str(), listed))
    }

    /// The feeds that list `network`, or a network around it.
    pub fn covering(&self, network: &Network) -> Vec<&str> {
        self.iter().filter(|(_, listed)| listed.covers(network)).map(|(name, _)| name).collect()
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
mod tests;
