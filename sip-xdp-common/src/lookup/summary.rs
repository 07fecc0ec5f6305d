//! The front of the lists, for IPv4: arrays that addresses index, so that most sources are answered
//! for by one load, however long the lists are.
//!
//! There are two: two bits for each /20 ([`COARSE`], 256 KiB, which stays in the nearest caches),
//! and, only where hosts are not all that is listed, two bits for each /24 ([`FINE`], 4 MiB).

/// How many elements there are of two bits for each /24.
pub const FINE: u32 = 1 << 16;

/// How many elements there are of two bits for each /20.
pub const COARSE: u32 = 1 << 12;

/// Bits in order: a cache line.
pub type Element = [u64; 8];

/// No list has anything to say of the network.
pub const EMPTY: u64 = 0;
/// Some of its addresses are blocked, each by itself; nothing else on any list meets it.
pub const HOSTS: u64 = 1;
/// A feed blocks all of it, and no trusted network nor any entry of an operator or the detector
/// meets it.
pub const COVERED: u64 = 2;
/// Anything else: all lists are to be asked; for a /20, its /24s.
pub const MIXED: u64 = 3;

/// Where two bits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitPosition {
    /// Which element.
    pub element: u32,
    /// Which word of it: below 8.
    pub word: usize,
    /// How far the word is to be shifted right.
    pub shift: u32,
}

impl BitPosition {
    /// The place with this number.
    #[inline(always)]
    pub const fn number(number: u32) -> Self {
        Self { element: number >> 8, word: (number >> 5 & 7) as usize, shift: (number & 31) * 2 }
    }

    /// Of the /24 around an IPv4 address in host order.
    #[inline(always)]
    pub const fn fine(address: u32) -> Self {
        Self::number(address >> 8)
    }

    /// Of the /20 around it.
    #[inline(always)]
    pub const fn coarse(address: u32) -> Self {
        Self::number(address >> 12)
    }

    /// The two bits in the word that holds them.
    #[inline(always)]
    pub const fn read(&self, word: u64) -> u64 {
        word >> self.shift & 3
    }

    /// The word with these two bits in their place.
    #[inline(always)]
    pub const fn written(&self, word: u64, bits: u64) -> u64 {
        word & !(3 << self.shift) | bits << self.shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_has_bits_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        // All /24s of a few /16s, far apart.
        for (network, sixteen) in
            (0..256).flat_map(|network| [0_u32, 0x0a00, 0xc000, 0xffff].map(|s| (network, s)))
        {
            let place = BitPosition::fine(sixteen << 16 | network << 8 | 0x77);
            assert!(place.element == sixteen && place.word < 8 && place.shift < 63);
            seen.insert((place.element, place.word, place.shift));
        }
        assert_eq!(seen.len(), 4 * 256);
    }

    #[test]
    fn bits_are_read_as_written() {
        let place = BitPosition::fine(u32::from_be_bytes([192, 0, 2, 7]));
        for bits in [EMPTY, HOSTS, COVERED, MIXED] {
            let word = place.written(0x5555_5555_5555_5555, bits);
            assert_eq!(place.read(word), bits);
            assert_eq!(place.written(word, 1), 0x5555_5555_5555_5555);
        }
    }
}
