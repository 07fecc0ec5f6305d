//! The reference semantics of the lists: all entries, and intervals of numbers.

use std::collections::{BTreeMap, BTreeSet};

use sip_xdp::net::network::Network;
use sip_xdp_common::abi::layout::{List, Owner};
use sip_xdp_common::ip_key::IpKey;

/// A network as two numbers. IPv4 is in `::ffff:0:0/96`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    pub(super) first: u128,
    pub(super) bits: u8,
}

impl Prefix {
    /// The network of so many bits around an address.
    pub(super) fn around(address: u128, bits: u8) -> Self {
        let host_bits = u128::MAX.checked_shr(bits.into()).unwrap_or(0);
        Self { first: address & !host_bits, bits }
    }

    /// The last address.
    pub(super) fn last(&self) -> u128 {
        self.first | u128::MAX.checked_shr(self.bits.into()).unwrap_or(0)
    }

    /// As a type of the product.
    pub(super) fn network(&self) -> Network {
        Network::around(source(self.first), self.bits)
    }
}

/// An address as a type of the product.
pub(super) fn source(address: u128) -> IpKey {
    IpKey::new(address.to_be_bytes())
}

/// Whether an address is an IPv4 one.
pub(super) fn is_v4(address: u128) -> bool {
    address >> 32 == 0xffff
}

/// Disjoint, sorted intervals of addresses.
#[derive(Debug, Default)]
pub(super) struct Intervals(Vec<(u128, u128)>);

impl Intervals {
    /// The addresses of all these networks.
    fn new(networks: impl Iterator<Item = Prefix>) -> Self {
        let mut all: Vec<_> = networks.map(|network| (network.first, network.last())).collect();
        all.sort_unstable();
        let mut apart: Vec<(u128, u128)> = Vec::new();
        for (first, last) in all {
            match apart.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => apart.push((first, last)),
            }
        }
        Self(apart)
    }

    /// Whether the address is in one of them.
    pub(super) fn contain(&self, address: u128) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= address);
        after > 0 && address <= self.0[after - 1].1
    }
}

/// An owner's claim on a network.
pub(super) type Claim = (List, Prefix, Owner);

/// Both lists.
#[derive(Default)]
pub(super) struct ReferenceLists {
    /// Ends of all claims.
    pub(super) claims: BTreeMap<Claim, u64>,
    pub(super) feeds: BTreeMap<&'static str, BTreeSet<Prefix>>,
}

impl ReferenceLists {
    /// The addresses that a list covers at `now`.
    pub(super) fn addresses(&self, list: List, now: u64) -> Intervals {
        let claimed = self.claims.iter().filter(|((of, ..), end)| *of == list && **end > now);
        let fed = self.feeds.values().flatten().filter(|_| list == List::Block);
        Intervals::new(claimed.map(|((_, network, _), _)| *network).chain(fed.copied()))
    }

    /// The networks on a list, each once.
    pub(super) fn networks(&self, list: List) -> BTreeSet<Prefix> {
        let claimed =
            self.claims.keys().filter(|(of, ..)| *of == list).map(|(_, network, _)| *network);
        let fed = self.feeds.values().flatten().filter(|_| list == List::Block);
        claimed.chain(fed.copied()).collect()
    }

    /// The networks on both lists, some of them more than once.
    pub(super) fn all(&self) -> Vec<Prefix> {
        let claimed = self.claims.keys().map(|(_, network, _)| network);
        claimed.chain(self.feeds.values().flatten()).copied().collect()
    }

    /// The view of a new daemon: all feeds are one, of that name.
    pub(super) fn adopt(&mut self, name: &'static str) {
        let all: BTreeSet<Prefix> =
            std::mem::take(&mut self.feeds).into_values().flatten().collect();
        if !all.is_empty() {
            self.feeds.insert(name, all);
        }
    }

    /// Whatever contains an address, for messages.
    pub(super) fn explain(&self, address: u128) -> String {
        let around = |network: &Prefix| network.first <= address && address <= network.last();
        let claims = self.claims.iter().filter(|((_, network, _), _)| around(network));
        let claims = claims.map(|((list, network, owner), end)| {
            format!("{list:?} {} by {}, ends at {end}", network.network(), owner.name())
        });
        let fed = self
            .feeds
            .iter()
            .flat_map(|(name, networks)| networks.iter().map(move |network| (name, network)));
        let fed = fed.filter(|(_, network)| around(network));
        let fed =
            fed.map(|(name, network)| format!("Block {} by feed \"{name}\"", network.network()));
        claims.chain(fed).collect::<Vec<_>>().join("; ")
    }
}

#[test]
fn intervals_are_what_a_scan_says() {
    let networks = [(0x10, 124), (0x10, 126), (0x20, 128), (0x21, 128), (0x40, 122), (0x48, 125)];
    let networks = networks.map(|(first, bits)| Prefix { first, bits });
    let intervals = Intervals::new(networks.into_iter());
    for address in 0..0x100 {
        let scanned =
            networks.iter().any(|network| network.first <= address && address <= network.last());
        assert_eq!(intervals.contain(address), scanned, "{address:#x}");
    }
    assert!(!Intervals::default().contain(0));
}
