//! The summary of the lists, for IPv4: bit arrays indexed by address, so that one load answers for
//! most sources, whatever the length of the lists.
//!
//! There are two: two bits per /20 ([`COARSE`], 256 KiB, which stays in the inner caches), and,
//! where those are not conclusive, two bits per /24 ([`FINE`], 4 MiB).

/// Number of elements of the array of /24s.
pub const FINE: u32 = 1 << 16;

/// Number of elements of the array of /20s.
pub const COARSE: u32 = 1 << 12;

/// One cache line of bits.
pub type Element = [u64; 8];

/// No list has an entry in this network.
pub const EMPTY: u64 = 0;
/// Only single blocked hosts, and no other entry that overlaps the network.
pub const HOSTS: u64 = 1;
/// A feed blocks the whole network, and no trust entry and no entry of an operator or the detector
/// overlaps it.
pub const COVERED: u64 = 2;
/// Anything else: search all lists (for a /20: read its /24s first).
pub const MIXED: u64 = 3;

/// The position of two summary bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitPosition {
    /// Index of the element.
    pub element: u32,
    /// Word in it: below 8.
    pub word: usize,
    /// Right shift of the word.
    pub shift: u32,
}

impl BitPosition {
    /// The position of the network with this number.
    #[inline(always)]
    pub const fn number(number: u32) -> Self {
        Self { element: number >> 8, word: (number >> 5 & 7) as usize, shift: (number & 31) * 2 }
    }

    /// The position of the /24 of an IPv4 address in host order.
    #[inline(always)]
    pub const fn fine(address: u32) -> Self {
        Self::number(address >> 8)
    }

    /// The position of its /20.
    #[inline(always)]
    pub const fn coarse(address: u32) -> Self {
        Self::number(address >> 12)
    }

    /// The two bits in their word.
    #[inline(always)]
    pub const fn read(&self, word: u64) -> u64 {
        word >> self.shift & 3
    }

    /// The word with these two bits replaced.
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
        // All /24s of a few distant /16s.
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
