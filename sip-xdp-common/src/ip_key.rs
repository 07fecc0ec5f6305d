//! Addresses as map keys: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2),
//! so that one table serves both families.

use core::cmp::Ordering;

use bytemuck::{Pod, Zeroable};

/// Prefix bits that the mapped form adds to an IPv4 prefix (`::ffff:0:0/96`).
pub const MAPPED_BITS: u8 = 96;

/// An address as a map key.
///
/// Two words, not 16 bytes: the compiler would keep each byte in a register of its own, and BPF has
/// ten.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct IpKey {
    high: u64,
    low: u64,
}

const _: () = assert!(size_of::<IpKey>() == 16 && cfg!(target_endian = "little"));

impl IpKey {
    /// From an address in network order.
    pub const fn new(octets: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(octets);
        Self { high: both as u64, low: (both >> 64) as u64 }
    }

    /// The address in network order.
    pub const fn octets(&self) -> [u8; 16] {
        (self.high as u128 | (self.low as u128) << 64).to_le_bytes()
    }

    /// From the four bytes of an IPv4 address, the first in the lowest bits (as packet reads return
    /// them).
    #[inline(always)]
    pub const fn v4(address: u32) -> Self {
        Self::from_words(0, (0xffff_u64 << 16) | ((address as u64) << 32))
    }

    /// From the two halves of an address, the first byte of each in the lowest bits.
    #[inline(always)]
    pub const fn from_words(high: u64, low: u64) -> Self {
        Self { high, low }
    }

    /// The two halves, the first byte of each in the lowest bits.
    #[inline(always)]
    pub const fn words(&self) -> (u64, u64) {
        (self.high, self.low)
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let (high, low) = self.words();
        // A single comparison.
        high | (low & 0xffff_ffff ^ 0xffff_0000) == 0
    }

    /// This source with the bits outside `mask` cleared (halves as in [`IpKey::words`]).
    #[inline(always)]
    pub const fn masked(&self, mask: (u64, u64)) -> Self {
        let (high, low) = self.words();
        Self::from_words(high & mask.0, low & mask.1)
    }
}

impl Ord for IpKey {
    /// Address order: by the first byte, then the next.
    fn cmp(&self, other: &Self) -> Ordering {
        self.octets().cmp(&other.octets())
    }
}

impl PartialOrd for IpKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The mask of the first `prefix` bits of 128, as halves with the first byte in the lowest bits.
pub const fn mask(prefix: u8) -> (u64, u64) {
    let bits = if prefix >= 128 { u128::MAX } else { !(u128::MAX >> prefix) };
    (((bits >> 64) as u64).swap_bytes(), (bits as u64).swap_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn ipv4_is_held_as_a_mapped_address() {
        let source = IpKey::v4(u32::from_le_bytes([192, 0, 2, 7]));
        assert_eq!(source.octets(), Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets());
        assert!(source.is_v4());
    }

    #[test]
    fn a_mask_keeps_the_network() {
        let address: Ipv6Addr = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        let source = IpKey::new(address.octets());
        assert!(!source.is_v4());
        for (prefix, network) in
            [(64, "2001:db8:1:2::"), (48, "2001:db8:1::"), (61, "2001:db8:1::"), (0, "::")]
        {
            let network: Ipv6Addr = network.parse().unwrap();
            assert_eq!(source.masked(mask(prefix)).octets(), network.octets(), "/{prefix}");
        }
        assert_eq!(source.masked(mask(128)), source);
    }
}
