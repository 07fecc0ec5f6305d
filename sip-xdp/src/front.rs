//! Keeps the front of the lists (see [`sip_xdp_common::front`]) in step with them. A bit is set before the entry that
//! needs it is written, and cleared after the last one has gone: at no moment is a listed source passed by.

use aya::maps::{Array, MapData, MapError};
use sip_xdp_common::front::{ELEMENTS, Element, Place};
use sip_xdp_common::source::MAPPED_BITS;

use crate::network::Network;
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
                places(network).for_each(|place| {
                    wanted[place.element as usize][place.word] |= bit << place.shift;
                });
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
        self.change(network, |around, word, shift| if rest.meets(&around) { word } else { word & !(bit << shift) })
    }

    /// Applies `to` to the word of each /24 that `network` meets, and writes the elements that have changed.
    fn change(&mut self, network: &Network, to: impl Fn(Network, u64, u32) -> u64) -> Result<(), MapError> {
        let mut places = places(network).zip(grains(network)).peekable();
        while let Some((place, around)) = places.next() {
            let element = &mut self.copy[place.element as usize];
            let before = *element;
            let mut next = Some((place, around));
            while let Some((place, around)) = next {
                element[place.word] = to(around, element[place.word], place.shift);
                next = places.next_if(|(next, _)| next.element == place.element);
            }
            if *element != before {
                self.map.set(place.element, *element, 0)?;
            }
        }
        Ok(())
    }
}

/// The /24s that a network meets; none for IPv6.
fn grains(network: &Network) -> impl Iterator<Item = Network> + use<> {
    let (first, count) = span(network);
    (0..count).map(move |n| {
        Network::around(crate::network::source_of(std::net::Ipv4Addr::from(first + (n << 8)).into()), GRAIN)
    })
}

/// Where their bits are.
fn places(network: &Network) -> impl Iterator<Item = Place> + use<> {
    let (first, count) = span(network);
    (0..count).map(move |n| Place::of(first + (n << 8)))
}

/// The first address of the first /24 that a network meets, and how many there are.
fn span(network: &Network) -> (u32, u32) {
    if !network.is_v4() {
        // A network that covers the mapped range holds no IPv4: packets of that family are looked up as such.
        return (0, 0);
    }
    let first = match network.address() {
        std::net::IpAddr::V4(address) => u32::from(address) & !0xff,
        std::net::IpAddr::V6(_) => return (0, 0),
    };
    (first, 1 << 24_u8.saturating_sub(network.prefix()))
}
