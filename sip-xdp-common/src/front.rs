//! The front of the lists: two bits for each IPv4 /24, saying whether any blocked and any trusted network meets it.
//!
//! A source whose /24 has neither bit is on no list, and one load of memory has shown it, however long the lists are. A
//! bit that is set proves nothing; the tables are asked then.

use crate::source::Source;

/// How many elements the front has: one for each /16.
pub const ELEMENTS: u32 = 1 << 16;

/// The bits of the 256 networks of a /16, two for each, in the order of their addresses.
pub type Element = [u64; 8];

/// Some blocked network meets the /24.
pub const BLOCKED: u64 = 1;
/// Some trusted network meets the /24.
pub const TRUSTED: u64 = 2;

/// Where the bits of an address are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which element.
    pub element: u32,
    /// Which word of it: below 8.
    pub word: usize,
    /// How far the word is to be shifted right.
    pub shift: u32,
}

impl Place {
    /// Of an IPv4 address in host order.
    #[inline(always)]
    pub const fn of(address: u32) -> Self {
        Self { element: address >> 16, word: (address >> 13 & 7) as usize, shift: (address >> 8 & 31) * 2 }
    }

    /// Of a source, which must be IPv4.
    #[inline(always)]
    pub const fn of_source(source: &Source) -> Self {
        let (_, low) = source.words();
        Self::of(((low >> 32) as u32).swap_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_has_bits_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for network in 0..1 << 16 {
            // All /24s of a few /16s, far apart.
            for element in [0_u32, 0x0a00, 0xc000, 0xffff] {
                let place = Place::of(element << 16 | (network & 0xff) << 8 | network >> 8);
                assert!(
                    place.element == element && place.word < 8 && place.shift < 63 && place.shift.is_multiple_of(2)
                );
                seen.insert((place.element, place.word, place.shift));
            }
        }
        assert_eq!(seen.len(), 4 * 256);
    }

    #[test]
    fn a_source_is_where_its_address_is() {
        let source = Source::v4(u32::from_le_bytes([192, 0, 2, 7]));
        assert_eq!(Place::of_source(&source), Place::of(u32::from_be_bytes([192, 0, 2, 7])));
    }
}
