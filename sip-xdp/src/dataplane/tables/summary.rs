//! The writer of the summary ([`sip_xdp_common::lookup::summary`]).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use aya::maps::Map;
use sip_xdp_common::abi::names;
use sip_xdp_common::ip_key::MAPPED_BITS;
use sip_xdp_common::lookup::summary::{self, BitPosition, COVERED, EMPTY, Element, HOSTS, MIXED};

use super::feed_lists::{FeedLists, NetworkSet};
use crate::dataplane::mmap::Mapped;
use crate::net::network::{Network, source_of};
use crate::net::prefix_set::Prefixes;

/// Prefix length of the summarised networks, out of 128.
const GRAIN: u8 = MAPPED_BITS + 24;

/// A network that overlaps more /24s causes a rebuild of the whole summary.
const MANY: u32 = 4_096;

/// For updates of more /24s the whole summary is mapped.
const FEW: usize = 16;

/// The inputs of the summary.
#[derive(Clone, Copy)]
pub struct Sets<'a> {
    /// Networks that operators or the detector block.
    pub blocked: &'a Prefixes,
    /// Trusted networks.
    pub trusted: &'a Prefixes,
    /// Hosts with a reputation.
    pub known: &'a Prefixes,
    /// Admitted networks (policy `closed`).
    pub admitted: &'a Prefixes,
    /// Who is on the ladder.
    pub limited: &'a Prefixes,
    /// What feeds block.
    pub feeds: &'a FeedLists,
}

impl<'a> Sets<'a> {
    /// Networks that are listed, but not blocked.
    fn others(&self) -> [&'a Prefixes; 4] {
        [self.trusted, self.known, self.admitted, self.limited]
    }
}

/// The writer of the summary.
pub struct Summary {
    coarse: Mapped,
    fine: Mapped,
}

impl Summary {
    /// Opens the maps by name, through `open`.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            coarse: Mapped::new(open(names::SUMMARY_COARSE)?)?,
            fine: Mapped::new(open(names::SUMMARY_FINE)?)?,
        })
    }

    /// Keeps the summary mapped from now on.
    pub(crate) fn keep_mapped(&mut self) -> Result<()> {
        self.coarse.keep()?;
        self.fine.keep()
    }

    /// Updates the /24s that overlap `networks`.
    pub fn refresh(&self, networks: &[Network], sets: Sets<'_>) -> Result<()> {
        let mut addresses = BTreeSet::new();
        for (first, count) in networks.iter().map(grains) {
            if count > MANY {
                return self.rebuild(sets);
            }
            addresses.extend((0..count).map(|n| first + (n << 8)));
        }
        if addresses.len() <= FEW {
            for address in addresses {
                let (fine, coarse) = (BitPosition::fine(address), BitPosition::coarse(address));
                let views = (self.fine.one(fine.element)?, self.coarse.one(coarse.element)?);
                write(address, sets, &views.0.words()[fine.word], &views.1.words()[coarse.word]);
            }
            return Ok(());
        }
        let views = (self.fine.all()?, self.coarse.all()?);
        let word =
            |place: BitPosition| place.element as usize * Element::default().len() + place.word;
        for address in addresses {
            let (fine, coarse) =
                (word(BitPosition::fine(address)), word(BitPosition::coarse(address)));
            write(address, sets, &views.0.words()[fine], &views.1.words()[coarse]);
        }
        Ok(())
    }

    /// Rebuilds the summary. A source that is blocked before and after is blocked throughout.
    pub fn rebuild(&self, sets: Sets<'_>) -> Result<()> {
        let mut states = vec![Element::default(); summary::FINE as usize];
        let mut add = |network: &Network, met: Overlap| {
            let (first, count) = grains(network);
            for place in (0..count).map(|n| BitPosition::fine(first + (n << 8))) {
                let word = &mut states[place.element as usize][place.word];
                *word = place.written(*word, met.join(place.read(*word)));
            }
        };
        sets.blocked.iter().for_each(|network| add(network, Overlap::claimed(network)));
        for others in sets.others() {
            others.iter().for_each(|network| add(network, Overlap::More));
        }
        for wide in [true, false] {
            for network in sets.feeds.iter().flat_map(|(_, listed)| listed.networks()) {
                if (network.bits() <= GRAIN) == wide {
                    add(network, Overlap::of_feed(network));
                }
            }
        }
        let fine = states.as_flattened();
        // A word holds the states of two /20s, so that sixteen words make one coarse word.
        let both = |word: &u64| summary(*word as u32) | summary((*word >> 32) as u32) << 2;
        let join = |words: &[u64]| words.iter().rev().fold(0, |all, word| all << 4 | both(word));
        let coarse: Vec<u64> = fine.chunks_exact(16).map(join).collect();
        store(&self.fine, fine)?;
        store(&self.coarse, &coarse)
    }
}

/// Writes the state of the /24 of an address, then that of its /20, into their words.
fn write(address: u32, sets: Sets<'_>, fine_word: &AtomicU64, coarse_word: &AtomicU64) {
    let (fine, coarse) = (BitPosition::fine(address), BitPosition::coarse(address));
    let grain = Network::around(source_of(Ipv4Addr::from(address).into()), GRAIN);
    let after = fine.written(fine_word.load(Ordering::Relaxed), state(&grain, sets));
    fine_word.store(after, Ordering::Release);
    // The sixteen /24s of a /20 are half a word.
    let all = summary((after >> (fine.shift & !31)) as u32);
    coarse_word.store(coarse.written(coarse_word.load(Ordering::Relaxed), all), Ordering::Release);
}

/// The state of a /20, from those of its sixteen /24s.
fn summary(states: u32) -> u64 {
    const LOW: u32 = 0x5555_5555;
    let (low, high) = (states & LOW, states >> 1 & LOW);
    match (low, high) {
        (0, 0) => EMPTY,
        (_, 0) => HOSTS,
        _ => MIXED,
    }
}

/// Writes the words that differ.
fn store(map: &Mapped, wanted: &[u64]) -> Result<()> {
    let view = map.all()?;
    for (word, wanted) in view.words().iter().zip(wanted) {
        if word.load(Ordering::Relaxed) != *wanted {
            word.store(*wanted, Ordering::Release);
        }
    }
    Ok(())
}

/// How a listed network overlaps a /24, in the order in which overlaps are joined.
#[derive(Debug, Clone, Copy)]
enum Overlap {
    /// A single address that an owner other than a feed blocks.
    Claimed,
    /// A trusted or admitted network, a known host, or a wider network that an owner other than a
    /// feed blocks.
    More,
    /// A feed blocks the whole /24.
    FeedWhole,
    /// A feed blocks a single address.
    FeedHost,
    /// A feed blocks a part of the /24.
    FeedPart,
}

impl Overlap {
    fn claimed(network: &Network) -> Self {
        if network.is_host() { Self::Claimed } else { Self::More }
    }

    fn of_feed(network: &Network) -> Self {
        match network.bits() {
            128 => Self::FeedHost,
            bits if bits <= GRAIN => Self::FeedWhole,
            _ => Self::FeedPart,
        }
    }

    /// The new state of a /24 in `state`.
    fn join(self, state: u64) -> u64 {
        match (self, state) {
            (_, MIXED) | (Self::More, _) => MIXED,
            (Self::Claimed | Self::FeedHost, EMPTY | HOSTS) => HOSTS,
            (Self::FeedWhole | Self::FeedHost | Self::FeedPart, COVERED)
            | (Self::FeedWhole, EMPTY) => COVERED,
            // A host with exact hit counts, in a /24 that a feed blocks; or a part of the /24.
            _ => MIXED,
        }
    }
}

/// The state of one /24.
fn state(grain: &Network, sets: Sets<'_>) -> u64 {
    let meets_more = sets.others().iter().any(|others| others.meets(grain))
        || sets.blocked.covering(grain).next().is_some();
    if meets_more {
        return MIXED;
    }
    let claimed = sets.blocked.within(grain);
    let state = claimed.iter().fold(EMPTY, |state, network| Overlap::claimed(network).join(state));
    let feeds = || sets.feeds.iter().map(|(_, listed): (_, &NetworkSet)| listed);
    let state = if feeds().any(|listed| listed.covers(grain)) {
        Overlap::FeedWhole.join(state)
    } else {
        state
    };
    let parts =
        feeds().flat_map(|listed| listed.within(grain)).filter(|network| network.bits() > GRAIN);
    parts.fold(state, |state, network| Overlap::of_feed(network).join(state))
}

/// The first address of the /24s that a network overlaps, and their number. None for IPv6: IPv4
/// packets are looked up as IPv4, so that an IPv6 network around the mapped range does not match
/// them.
fn grains(network: &Network) -> (u32, u32) {
    match network.address() {
        IpAddr::V4(address) if network.is_v4() => {
            (u32::from(address) & !0xff, 1 << 24_u8.saturating_sub(network.prefix()))
        }
        _ => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(
        claimed: &[&str],
        trusted: &[&str],
        of_feed: &[&str],
    ) -> (Prefixes, Prefixes, FeedLists) {
        let prefixes = |networks: &[&str]| {
            let mut set = Prefixes::default();
            networks.iter().for_each(|network| set.insert(network.parse().unwrap(), 1));
            set
        };
        let mut feeds = FeedLists::default();
        feeds.replace(
            "one",
            NetworkSet::new(of_feed.iter().map(|network| network.parse().unwrap()).collect()),
        );
        (prefixes(claimed), prefixes(trusted), feeds)
    }

    #[test]
    fn a_network_is_asked_about_as_little_as_its_lists_allow() {
        for (claimed, trusted, of_feed, expected) in [
            (&[][..], &[][..], &[][..], EMPTY),
            (&["192.0.3.0/24"], &[], &["192.0.1.7"], EMPTY),
            (&["192.0.2.7"], &[], &[], HOSTS),
            (&["192.0.2.7"], &[], &["192.0.2.8"], HOSTS),
            (&[], &[], &["192.0.2.8"], HOSTS),
            (&[], &[], &["192.0.2.0/24"], COVERED),
            (&[], &[], &["192.0.0.0/16", "192.0.2.8", "192.0.2.16/28"], COVERED),
            (&["192.0.2.7"], &[], &["192.0.0.0/16"], MIXED),
            (&[], &["192.0.2.7"], &["192.0.0.0/16"], MIXED),
            (&[], &["192.0.0.0/8"], &[], MIXED),
            (&["192.0.0.0/8"], &[], &["192.0.2.0/24"], MIXED),
            (&["192.0.2.64/26"], &[], &[], MIXED),
            (&[], &[], &["192.0.2.64/26"], MIXED),
            (&["192.0.2.7"], &[], &["192.0.2.64/26"], MIXED),
        ] {
            let (blocked, trusted, feeds) = sets(claimed, trusted, of_feed);
            let none = Prefixes::default();
            let (known, admitted, limited) = (&none, &none, &none);
            let sets = Sets {
                blocked: &blocked,
                trusted: &trusted,
                known,
                admitted,
                limited,
                feeds: &feeds,
            };
            assert_eq!(
                state(&"192.0.2.0/24".parse().unwrap(), sets),
                expected,
                "{claimed:?} {of_feed:?}"
            );
        }
    }
}
