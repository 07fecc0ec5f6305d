//! The table of networks that the kernel and user space share: its layout, where a network stands
//! in it, and how it is to be read. Looking things up is in [`crate::lookup::search`]; writing is
//! user space's.

use bytemuck::{Pod, Zeroable};

use crate::abi::layout::List;
use crate::ip_key::mask;
use crate::limits::meters::sets;
use crate::lookup::hash;
use crate::lookup::host_rows;

/// How many slots a bucket has.
pub const WAYS: usize = 8;

/// The most networks with the same fingerprint in one bucket; the writer sees to it.
pub const ALIKE: usize = 3;

/// How many buckets make a group. With groups of 16, one table in a hundred that is filled to its
/// capacity has a crowded group; with 64, none in thousands.
pub const GROUP: usize = 64;

/// The fingerprints of a group: a byte for each slot, a word for each bucket.
pub type Prints = [u64; GROUP];

/// How many buckets there are for a capacity of `networks`: a power of two, so that at most half of
/// the slots are used. With two buckets to choose from, both of a network's are then full so rarely
/// that nobody will see it.
pub const fn buckets(networks: u32) -> u32 {
    let wanted = networks.div_ceil(WAYS as u32 / 2).next_power_of_two();
    if wanted < GROUP as u32 { GROUP as u32 } else { wanted }
}

/// What a network is listed as.
#[repr(u64)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Never dropped.
    Trusted = 0x0000,
    /// Not judged as one: hosts that must not share a fate live in it.
    PerHost = 0x0200,
    /// Dropped.
    Blocked = 0x0400,
    /// A host that something is known of: see [`Reputation`].
    Known = 0x0600,
    /// May talk under the policy `closed`.
    Admitted = 0x2000,
}

impl Kind {
    /// All of them, in the order in which they are looked for.
    pub const ALL: [Self; 5] =
        [Self::Trusted, Self::Known, Self::PerHost, Self::Admitted, Self::Blocked];

    /// What the networks of a list are to the kernel.
    pub const fn of(list: List) -> Self {
        match list {
            List::Block => Self::Blocked,
            List::Trust => Self::Trusted,
            List::Admit => Self::Admitted,
        }
    }

    /// What stands in [`Slot::state`] for a network of this kind and length.
    pub const fn label(self, bits: u8) -> u64 {
        OCCUPIED | self as u64 | bits as u64
    }
}

/// [`Slot::state`]: the slot holds a network.
pub const OCCUPIED: u64 = 0x100;
/// [`Slot::state`]: the bits of [`Kind`].
pub const KIND: u64 = 0x2600;
/// [`Slot::state`]: the length out of 128, [`Kind`] and [`OCCUPIED`].
pub const LABEL: u64 = KIND | OCCUPIED | 0xff;
/// [`Slot::state`]: a feed lists the network.
pub const FEED: u64 = 0x800;
/// [`Slot::state`]: an operator, the configuration or the detector lists the network.
pub const CLAIMED: u64 = 0x1000;
/// [`Slot::state`] of a blocked network: an operator lists it, or the configuration.
pub const OWN: u64 = 0x4000;
/// [`Slot::state`] of a known host: some of its ports are banned, or known good
/// ([`crate::limits::flow`]).
pub const FLOWS: u64 = 0x8000;
/// [`Slot::state`] of a blocked network: UDP alone is dropped. The bit is that of [`FLOWS`], of
/// another kind.
pub const UDP_ONLY: u64 = 0x8000;
/// One dropped packet in [`Slot::state`]. The counter is the upper 48 bits.
pub const HIT: u64 = 1 << 16;

/// A listed network.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Slot {
    /// The first half of the network's address, as [`IpKey::words`](crate::ip_key::IpKey::words)
    /// gives it.
    pub high: u64,
    /// The second half.
    pub low: u64,
    /// When the listing ends, in nanoseconds of the filter's clock, or
    /// [`NEVER`](crate::abi::layout::NEVER).
    pub expires: u64,
    /// Label, flags and, in the upper 48 bits, hits; for a known host its [`Reputation`].
    pub state: u64,
}

/// What is known of a host, in the upper 48 bits of [`Slot::state`]: until when it is known good,
/// until when it is a peer, and how generous its limit is. Each end is 22 bits of units of 2^30 ns,
/// so an end must be less than 26 days ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reputation(u64);

/// How many bits an end has, and the unit that it counts in, as a power of two of nanoseconds.
const END_BITS: u32 = 22;
const END_UNIT: u32 = 30;
const END_MASK: u64 = (1 << END_BITS) - 1;

/// The scale of a host that is under suspicion: it may send one request a second.
pub const SUSPECT: u64 = 15;

/// The scale of a host that was known good, and is not any more: it is limited like others, but no
/// stranger in a storm.
pub const FORMER: u64 = 14;

impl Reputation {
    /// The longest time ahead that an end can say, in nanoseconds: 26 days.
    pub const LONGEST: u64 = (END_MASK / 2 - 1) << END_UNIT;

    /// Until these times in nanoseconds of the filter's clock, 0 for never. An end is rounded up by
    /// at most 1.07 s.
    pub const fn new(good_until: u64, peer_until: u64, scale: u64) -> Self {
        const fn end(until: u64) -> u64 {
            // 0 says never: an end that would come out so is one unit later.
            let end = ((until >> END_UNIT) + 1) & END_MASK;
            if until == 0 {
                0
            } else if end == 0 {
                1
            } else {
                end
            }
        }
        Self((end(good_until) | end(peer_until) << END_BITS | (scale & 15) << (2 * END_BITS)) << 16)
    }

    /// As it stands in a slot.
    #[inline(always)]
    pub const fn of(state: u64) -> Self {
        Self(state & !0xffff)
    }

    /// The bits for a slot.
    pub const fn bits(&self) -> u64 {
        self.0
    }

    /// Whether it is known good at `now`.
    #[inline(always)]
    pub const fn is_good(&self, now: u64) -> bool {
        Self::left(self.0 >> 16, now) != 0
    }

    /// Whether it is a peer at `now`.
    #[inline(always)]
    pub const fn is_peer(&self, now: u64) -> bool {
        Self::left(self.0 >> (16 + END_BITS), now) != 0
    }

    /// Whether it will be a peer for another half of an hour.
    #[inline(always)]
    pub const fn is_settled_peer(&self, now: u64) -> bool {
        Self::left(self.0 >> (16 + END_BITS), now) > 1_800_000_000_000 >> END_UNIT
    }

    /// The power of two by which its limit is multiplied, [`SUSPECT`] or [`FORMER`].
    #[inline(always)]
    pub const fn scale(&self) -> u64 {
        self.0 >> (16 + 2 * END_BITS)
    }

    /// When both ends are, in nanoseconds, 0 where there is none or it is over at `now`.
    pub const fn ends(&self, now: u64) -> (u64, u64) {
        const fn end(field: u64, now: u64) -> u64 {
            let left = Reputation::left(field, now);
            if left == 0 { 0 } else { ((now >> END_UNIT) + left) << END_UNIT }
        }
        (end(self.0 >> 16, now), end(self.0 >> (16 + END_BITS), now))
    }

    /// How many units are left until an end; 0 if it is over, or never was.
    #[inline(always)]
    const fn left(end: u64, now: u64) -> u64 {
        let end = end & END_MASK;
        let left = end.wrapping_sub(now >> END_UNIT) & END_MASK;
        if end == 0 || left > END_MASK / 2 { 0 } else { left }
    }
}

/// Where a network may stand.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct SlotBucket {
    /// In no order.
    pub slots: [Slot; WAYS],
}

const _: () = assert!(size_of::<Slot>() == 32 && size_of::<SlotBucket>() == 256);

/// A length that occurs on a list.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Length {
    /// The mask of the first half of an address, as [`mask`] gives it.
    pub high: u64,
    /// The mask of the second half.
    pub low: u64,
    /// As [`Kind::label`] says.
    pub label: u64,
}

impl Length {
    /// Of networks of a kind.
    pub const fn of(kind: Kind, bits: u8) -> Self {
        let (high, low) = mask(bits);
        Self { high, low, label: kind.label(bits) }
    }
}

/// Where the lengths of IPv6 networks begin in [`TableHeader::lengths`]; those of IPv4 begin at 0.
pub const IPV6_LENGTHS: usize = 128;

/// The most lengths that a family can have, all kinds together.
pub const MAX_LENGTHS: usize = 384;

/// How many places one version of the lengths has.
pub(crate) const VERSION: usize = 512;

const _: () = assert!(IPV6_LENGTHS + MAX_LENGTHS <= VERSION);

/// How networks and sources are hashed. It is chosen when the tables are made, and stays as long as
/// they do: programs have it in a read-only global, which costs them no look-up.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Hashing {
    /// Seeds every hash.
    pub seed: u64,
    /// The number of buckets less one.
    pub bucket_mask: u32,
    /// The number of sets of sources ([`crate::limits::meters`]) less one.
    pub set_mask: u32,
    /// How far a mixed IPv4 address is to be shifted right for the number of its row
    /// ([`crate::lookup::host_rows`]).
    pub row_shift: u32,
    /// Zero.
    pub pad: u32,
}

impl Hashing {
    /// In tables for a capacity of `networks` and of `sources`.
    pub const fn new(seed: u64, networks: u32, sources: u32) -> Self {
        let row_shift = u32::BITS - host_rows::rows(networks).ilog2();
        Self {
            seed,
            bucket_mask: buckets(networks) - 1,
            set_mask: sets(sources) - 1,
            row_shift,
            pad: 0,
        }
    }
}

/// How to read the tables of lists and sources. There are two versions of the lengths: one that is
/// in force, and one that is being written.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct TableHeader {
    /// How networks and sources are hashed.
    pub hashing: Hashing,
    /// IPv4 networks that are blocked.
    pub ipv4: u32,
    /// IPv6 networks that are blocked.
    pub ipv6: u32,
    /// The version in force: 0 or 1.
    pub version: u32,
    /// Zero.
    pub pad: u32,
    /// By version: how many lengths occur in IPv4 and in IPv6.
    pub counts: [[u32; 2]; 2],
    /// By version, then by family, the lengths that occur, in the order of [`Kind::ALL`], the
    /// longest first.
    pub lengths: [[Length; VERSION]; 2],
}

const _: () = assert!(size_of::<TableHeader>() == 56 + 2 * VERSION * 24);

impl TableHeader {
    /// How to read empty tables.
    pub fn new(hashing: Hashing) -> Self {
        Self { hashing, ..Self::zeroed() }
    }
}

/// The hash of a network, and what follows from it.
#[derive(Debug, Clone, Copy)]
pub struct Hashed(u64);

impl Hashed {
    /// Of the network with this label at the address with these halves.
    #[inline(always)]
    pub const fn new(high: u64, low: u64, label: u64, seed: u64) -> Self {
        Self(hash::mix(high, low, label, seed))
    }

    /// The two buckets, of a number less one that is a power of two: of the same group, and never
    /// the same.
    #[inline(always)]
    pub const fn buckets(&self, mask: u32) -> [u32; 2] {
        let first = self.0 as u32 & mask;
        let apart = (((self.0 >> 32 & 0xffff) * (GROUP as u64 - 1)) >> 16) + 1;
        [first, first ^ apart as u32]
    }

    /// The fingerprint: never 0, which is that of a free slot.
    #[inline(always)]
    pub const fn print(&self) -> u64 {
        // The highest byte, 0 made 1.
        let print = self.0 >> 56;
        print + (print.wrapping_sub(1) >> 63)
    }
}

/// The highest bit of each of the eight bytes of `word` that is `byte`.
#[inline(always)]
pub(crate) const fn byte_bits(word: u64, byte: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const REST: u64 = 0x7f * ONES;
    let differs = word ^ byte.wrapping_mul(ONES);
    !(((differs & REST) + REST) | differs | REST)
}

/// The number of the lowest byte whose highest bit is set, if only highest bits are.
#[inline(always)]
pub(crate) const fn lowest_byte(bits: u64) -> usize {
    // A single bit, multiplied: shifts the byte that holds its number to the top.
    let lowest = (bits & bits.wrapping_neg()) >> 7;
    (lowest.wrapping_mul(0x0001_0203_0405_0607) >> 56) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_ends_when_it_should() {
        const SECOND: u64 = 1_000_000_000;
        // Across the point where 22 bits begin again, too.
        for start in [1, 77 * SECOND, (1 << 52) - 3_000 * SECOND, (1 << 52) - 1, 1 << 53] {
            for length in [2 * SECOND, 3_600 * SECOND, 24 * 3_600 * SECOND, Reputation::LONGEST] {
                let good = Reputation::new(start + length, 0, 3);
                assert!(
                    good.is_good(start) && good.is_good(start + length - 1),
                    "{start} {length}"
                );
                assert!(!good.is_good(start + length + 2 * SECOND), "{start} {length}");
                assert!(!good.is_peer(start) && good.scale() == 3);
                let peer =
                    Reputation::of(Reputation::new(0, start + length, SUSPECT).bits() | 0x27ff);
                assert!(peer.is_peer(start) && !peer.is_good(start) && peer.scale() == SUSPECT);
                assert_eq!(peer.is_settled_peer(start), length > 1_801 * SECOND);
            }
        }
        assert!(!Reputation::default().is_good(SECOND) && !Reputation::default().is_peer(SECOND));
    }

    #[test]
    fn a_fingerprint_is_never_missed() {
        for byte in 1..=255_u64 {
            for way in 0..WAYS as u64 {
                let word = 0x9a00_0f80_017f_00ff_u64 & !(0xff << (8 * way)) | byte << (8 * way);
                let found = byte_bits(word, byte);
                for n in 0..WAYS as u64 {
                    assert_eq!(
                        found >> (8 * n) & 0xff,
                        u64::from(word >> (8 * n) & 0xff == byte) << 7,
                        "{word:x} {byte:x}"
                    );
                }
                let lowest = (0..WAYS).find(|n| word >> (8 * n) & 0xff == byte);
                assert_eq!(Some(lowest_byte(found)), lowest);
            }
            assert_eq!(byte_bits(0, byte), 0);
        }
    }

    #[test]
    fn fingerprints_spread_and_are_never_that_of_a_free_slot() {
        let mut counts = [0_u32; 256];
        for n in 0..1 << 16 {
            counts[Hashed::new(0, n, Kind::Blocked.label(128), 7).print() as usize] += 1;
        }
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|count| (180..700).contains(count)), "{counts:?}");
    }

    /// What the size of the table rests on: however often it is filled to its capacity, every
    /// network finds a place.
    #[test]
    fn two_buckets_are_enough() {
        for seed in 1..=40 {
            let networks = 1_u32 << 15;
            let mask = buckets(networks) - 1;
            let mut used = vec![0_u8; mask as usize + 1];
            for n in 0..u64::from(networks) {
                let [first, second] =
                    Hashed::new(0, n << 32, Kind::Blocked.label(128), seed).buckets(mask);
                let to = if used[first as usize] <= used[second as usize] { first } else { second };
                used[to as usize] += 1;
            }
            assert!(used.iter().all(|used| usize::from(*used) <= WAYS), "{:?}", used.iter().max());
        }
    }
}
