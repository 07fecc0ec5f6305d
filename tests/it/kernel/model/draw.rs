//! Random networks and addresses that often overlap.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::reference::{Prefix, is_v4};
use crate::kernel::differential::Random;

/// The regions of all networks, and the number of neighbourhoods in each. Networks of one
/// neighbourhood overlap.
const REGIONS4: [u8; 4] = [10, 60, 100, 203];
const REGIONS6: [u16; 4] = [0x2001, 0x2400, 0x2a02, 0xfd00];
const NEIGHBOURHOODS: usize = 24;
/// Shortest prefix lengths, out of 128: /8 and /19.
const WIDEST: [u8; 2] = [96 + 8, 19];

pub(super) struct Draw {
    random: Random,
    /// An address in each neighbourhood.
    centres: Vec<u128>,
    /// Hosts that share a row, more than it has room for.
    crowd: Vec<u128>,
}

impl Draw {
    pub(super) fn new(seed: u64, crowd: Vec<Ipv4Addr>) -> Self {
        let crowd = crowd.into_iter().map(|host| host.to_ipv6_mapped().into()).collect();
        let mut draw = Self { random: Random(seed), centres: Vec::new(), crowd };
        for n in 0..NEIGHBOURHOODS * REGIONS4.len() {
            let v4 = Ipv4Addr::new(REGIONS4[n % REGIONS4.len()], 0, 0, 0).to_ipv6_mapped();
            let v6 = Ipv6Addr::new(REGIONS6[n % REGIONS6.len()], 0, 0, 0, 0, 0, 0, 0);
            let centres = [draw.inside(v4.into(), 96 + 8), draw.inside(v6.into(), 16)];
            draw.centres.extend(centres);
        }
        draw
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// A random element, if there is any.
    pub(super) fn one<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        let nth = self.below(of.len().max(1) as u64);
        of.get(nth as usize).copied()
    }

    /// A network: mostly hosts and small ones, rarely a wide one, of any length. Its last bits may
    /// differ from those of its neighbourhood, so that it is beside others, in them, or around
    /// them.
    pub(super) fn prefix(&mut self) -> Prefix {
        if self.below(40) == 0 {
            return Prefix::around(self.one_of_crowd(), 128);
        }
        let centre = self.centre();
        let v4 = is_v4(centre);
        let widest = WIDEST[usize::from(!v4)];
        let (from, to) = match (self.below(400), v4) {
            (0, true) => (widest, 96 + 16),
            (0, false) => (widest, 40),
            (1..40, true) => (96 + 17, 96 + 24),
            (1..40, false) => (41, 64),
            (40..140, true) => (96 + 25, 127),
            (40..140, false) => (65, 127),
            _ => (128, 128),
        };
        let bits = from + self.below(u64::from(to - from) + 1) as u8;
        let loose = self.below(9) as u8;
        Prefix::around(self.inside(centre, (bits - loose).max(widest - 3)), bits)
    }

    /// An address in a network, at one of its ends, or adjacent to it.
    pub(super) fn at(&mut self, prefix: Prefix) -> u128 {
        let address = match self.below(6) {
            0 => prefix.first,
            1 => prefix.last(),
            2 => prefix.first.wrapping_sub(1),
            3 => prefix.last().wrapping_add(1),
            _ => self.inside(prefix.first, prefix.bits),
        };
        // Beyond the first or last address of a family is the other family.
        if is_v4(address) == is_v4(prefix.first) { address } else { prefix.first }
    }

    /// Any address in a neighbourhood.
    pub(super) fn address(&mut self) -> u128 {
        if self.below(20) == 0 {
            return self.one_of_crowd();
        }
        let (centre, free) = (self.centre(), self.below(24) as u8);
        self.inside(centre, 128 - free)
    }

    fn one_of_crowd(&mut self) -> u128 {
        self.crowd[self.random.below(self.crowd.len() as u64) as usize]
    }

    fn centre(&mut self) -> u128 {
        self.centres[self.random.below(self.centres.len() as u64) as usize]
    }

    /// An address in the network of `bits` bits around another one.
    fn inside(&mut self, address: u128, bits: u8) -> u128 {
        let [a, b, c, d] = [0, 0, 0, 0].map(|_| u128::from(self.below(1 << 32)));
        let network = Prefix::around(address, bits);
        network.first | (a << 96 | b << 64 | c << 32 | d) & (network.last() - network.first)
    }
}
