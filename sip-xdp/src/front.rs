//! Keeps the front of the lists (see [`sip_xdp_common::front`]) in step with them. A bit is set before the entry that
//! needs it is written, and cleared after the last one has gone: at no moment is a listed source passed by.

use std::net::{IpAddr, Ipv4Addr};

use aya::maps::{Array, MapData, MapError};
use sip_xdp_common::front::{ELEMENTS, Element, Place};
use sip_xdp_common::source::MAPPED_BITS;

use crate::network::{Network, source_of};
use crate::prefixes::Prefixes;

/// The length of the networks that have bits, out of 128.
const GRAIN: u8 = MAPPED_BITS + 24;

/// The front, with a copy that saves reading it back.
pub struct Front {
    map: Array<MapData, Element>,
    copy: Vec<Element>,
}

impl Front {
    /// Takes the map. [`Front::rebuild`] must follow before anything else.
    pub fn new(map: Array<MapData, Element>) -> Self {
        Self { map, copy: vec![Element::default(); ELEMENTS as usize] }
    }

    /// Makes the map agree with the two sets: (bit, networks).
    pub fn rebuild(&mut self, sets: [(u64, &Prefixes); 2]) -> Result<(), MapError> {
        let mut wanted = vec![Element::default(); ELEMENTS as usize];
        for (bit, networks) in sets {
            for network in networks.iter() {
                for place in grains(network).map(Place::of) {
                    wanted[place.element as usize][place.word] |= bit << place.shift;
                }
            }
        }
        for (index, element) in (0..).zip(&wanted) {
            if self.map.get(&index, 0)? != *element {
                self.map.set(index, element, 0)?;
            }
        }
        self.copy = wanted;
        Ok(())
    }

    /// Sets a bit for all that `network` meets.
    pub fn mark(&mut self, bit: u64, network: &Network) -> Result<(), MapError> {
        self.change(network, |_, word, shift| word | bit << shift)
    }

    /// Clears a bit for what `network` meets and no network of `rest` does.
    pub fn clear(&mut self, bit: u64, network: &Network, rest: &Prefixes) -> Result<(), MapError> {
        self.change(network, |address, word, shift| {
            let around = Network::around(source_of(Ipv4Addr::from(address).into()), GRAIN);
            if rest.meets(&around) { word } else { word & !(bit << shift) }
        })
    }

    /// Applies `to` to the word of each /24 that `network` meets, and writes the elements that have changed.
    fn change(&mut self, network: &Network, to: impl Fn(u32, u64, u32) -> u64) -> Result<(), MapError> {
        let mut grains = grains(network).map(|address| (address, Place::of(address))).peekable();
        while let Some((_, Place { element, .. })) = grains.peek().copied() {
            let words = &mut self.copy[element as usize];
            let before = *words;
            while let Some((address, place)) = grains.next_if(|(_, place)| place.element == element) {
                words[place.word] = to(address, words[place.word], place.shift);
            }
            if *words != before {
                self.map.set(element, *words, 0)?;
            }
        }
        Ok(())
    }
}

/// The first addresses of the /24s that a network meets. None for IPv6: one that covers the mapped range holds no IPv4,
/// since packets of that family are looked up as such.
fn grains(network: &Network) -> impl Iterator<Item = u32> + use<> {
    let (first, count) = match network.address() {
        IpAddr::V4(address) if network.is_v4() => {
            (u32::from(address) & !0xff, 1 << 24_u8.saturating_sub(network.prefix()))
        }
        _ => (0, 0),
    };
    (0..count).map(move |n: u32| first + (n << 8))
}
