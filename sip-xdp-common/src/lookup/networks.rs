//! The table of networks that kernel and user space share: layout, hashing and positions. Lookup is
//! in [`crate::lookup::search`]; only user space writes.
//!
//! More than 400 lines: one table layout, of which each part needs the others, and its tests.

use bytemuck::{Pod, Zeroable};

use crate::abi::layout::List;
use crate::ip_key::mask;
use crate::limits::meters::sets;
use crate::lookup::hash;
use crate::lookup::host_rows;

/// Slots per bucket.
pub const WAYS: usize = 8;

/// The most networks with the same fingerprint in one bucket, as the writer guarantees.
pub const ALIKE: usize = 3;

/// Buckets per group. With groups of 16, one full table in a hundred has an overfull group; with
/// 64, none in thousands.
pub const GROUP: usize = 64;

/// The fingerprints of a group: a byte for each slot, a word for each bucket.
pub type Prints = [u64; GROUP];

/// Number of buckets for a capacity of `networks`: a power of two, with at most half of the slots
/// in use by feeds, and two thirds by all. With two candidate buckets per network, both are then
/// practically never full: for two of a million networks, when every quota is used up.
pub const fn buckets(networks: u32) -> u32 {
    let wanted = networks.div_ceil(WAYS as u32 / 2).next_power_of_two();
    if wanted < GROUP as u32 { GROUP as u32 } else { wanted }
}

/// The kind of a listed network.
#[repr(u64)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Never dropped.
    Trusted = 0x0000,
    /// Judged per host: the network contains hosts that must not be banned together.
    PerHost = 0x0200,
    /// Dropped.
    Blocked = 0x0400,
    /// A host with a reputation: see [`Reputation`].
    Known = 0x0600,
    /// May send under the policy `closed`.
    Admitted = 0x2000,
    /// On the ladder ([`crate::limits::ladder`]).
    Metered = 0x2200,
}

impl Kind {
    /// All kinds, in lookup order.
    pub const ALL: [Self; 6] =
        [Self::Trusted, Self::Known, Self::PerHost, Self::Admitted, Self::Metered, Self::Blocked];

    /// The kind of a list's networks.
    pub const fn of(list: List) -> Self {
        match list {
            List::Block => Self::Blocked,
            List::Trust => Self::Trusted,
            List::Admit => Self::Admitted,
        }
    }

    /// The label in [`Slot::state`] of a network of this kind and prefix length.
    pub const fn label(self, bits: u8) -> u64 {
        OCCUPIED | self as u64 | bits as u64
    }
}

/// [`Slot::state`]: the slot holds a network.
pub const OCCUPIED: u64 = 0x100;
/// [`Slot::state`]: the bits of [`Kind`].
pub const KIND: u64 = 0x2600;
/// [`Slot::state`]: the prefix length out of 128, [`Kind`] and [`OCCUPIED`].
pub const LABEL: u64 = KIND | OCCUPIED | 0xff;
/// [`Slot::state`]: a feed lists the network.
pub const FEED: u64 = 0x800;
/// [`Slot::state`]: an operator, the configuration or the detector lists the network.
pub const CLAIMED: u64 = 0x1000;
/// [`Slot::state`] of a blocked network: an operator or the configuration lists it.
pub const OWN: u64 = 0x4000;
/// [`Slot::state`] of a known host: it has flows, banned or known good ([`crate::limits::flow`]).
pub const FLOWS: u64 = 0x8000;
/// [`Slot::state`] of a blocked network: only UDP is dropped. Same bit as [`FLOWS`], which is used
/// with another kind.
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
    /// Expiry in nanoseconds of the filter's clock, or [`NEVER`](crate::abi::layout::NEVER).
    pub expires: u64,
    /// Label, flags and, in the upper 48 bits, hits; for a known host its [`Reputation`].
    pub state: u64,
}

/// The reputation of a host, in the upper 48 bits of [`Slot::state`]: end of known good, end of
/// peer, and the scale of its limit. Each end has 22 bits of 2^30 ns, so that it must be less than
/// 26 days ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reputation(u64);

/// Bits of an end; its unit is 2^`END_UNIT` ns.
const END_BITS: u32 = 22;
const END_UNIT: u32 = 30;
const END_MASK: u64 = (1 << END_BITS) - 1;

/// The scale of a formerly known-good host: the limits of an unknown source, without the storm
/// budget.
pub const FORMER: u64 = 14;

impl Reputation {
    /// The furthest end in the future, in nanoseconds: 26 days.
    pub const LONGEST: u64 = (END_MASK / 2 - 1) << END_UNIT;

    /// Ends in nanoseconds of the filter's clock, 0 for none. An end is rounded up by at most 1.07
    /// s.
    pub const fn new(good_until: u64, peer_until: u64, scale: u64) -> Self {
        const fn end(until: u64) -> u64 {
            // 0 means none: an end that would be encoded as 0 is one unit later.
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

    /// From the state of a slot.
    #[inline(always)]
    pub const fn of(state: u64) -> Self {
        Self(state & !0xffff)
    }

    /// The state bits of a slot.
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

    /// Whether it is a peer for at least another half hour.
    #[inline(always)]
    pub const fn is_settled_peer(&self, now: u64) -> bool {
        Self::left(self.0 >> (16 + END_BITS), now) > 1_800_000_000_000 >> END_UNIT
    }

    /// The power of two by which its limit is multiplied, or [`FORMER`].
    #[inline(always)]
    pub const fn scale(&self) -> u64 {
        self.0 >> (16 + 2 * END_BITS)
    }

    /// Both ends in nanoseconds; 0 for one that is unset or over at `now`.
    pub const fn ends(&self, now: u64) -> (u64, u64) {
        const fn end(field: u64, now: u64) -> u64 {
            let left = Reputation::left(field, now);
            if left == 0 { 0 } else { ((now >> END_UNIT) + left) << END_UNIT }
        }
        (end(self.0 >> 16, now), end(self.0 >> (16 + END_BITS), now))
    }

    /// Units left until an end; 0 if it is over or unset.
    #[inline(always)]
    const fn left(end: u64, now: u64) -> u64 {
        let end = end & END_MASK;
        let left = end.wrapping_sub(now >> END_UNIT) & END_MASK;
        if end == 0 || left > END_MASK / 2 { 0 } else { left }
    }
}

/// One of the two candidate buckets of a network.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct SlotBucket {
    /// Unordered.
    pub slots: [Slot; WAYS],
}

const _: () = assert!(size_of::<Slot>() == 32 && size_of::<SlotBucket>() == 256);

/// A prefix length that occurs on a list.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Length {
    /// The mask of the first half of an address, as [`mask`] gives it.
    pub high: u64,
    /// The mask of the second half.
    pub low: u64,
    /// As [`Kind::label`] defines it.
    pub label: u64,
}

impl Length {
    /// The length of networks of a kind.
    pub const fn of(kind: Kind, bits: u8) -> Self {
        let (high, low) = mask(bits);
        Self { high, low, label: kind.label(bits) }
    }
}

/// Start of the IPv6 lengths in [`TableHeader::lengths`]; those of IPv4 start at 0.
pub const IPV6_LENGTHS: usize = 128;

/// Maximum number of lengths per family, all kinds together.
pub const MAX_LENGTHS: usize = 384;

/// Array elements per version of the lengths.
pub(crate) const VERSION: usize = 512;

const _: () = assert!(IPV6_LENGTHS + MAX_LENGTHS <= VERSION);

/// Hash parameters, chosen when the tables are created and constant from then on: programs keep a
/// copy in a read-only global, which costs no lookup.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Hashing {
    /// The seed of every hash.
    pub seed: u64,
    /// The number of buckets less one.
    pub bucket_mask: u32,
    /// The number of sets of sources ([`crate::limits::meters`]) less one.
    pub set_mask: u32,
    /// Right shift of a mixed IPv4 address that yields its row number
    /// ([`crate::lookup::host_rows`]).
    pub row_shift: u32,
    /// Zero.
    pub pad: u32,
}

impl Hashing {
    /// Parameters for tables with a capacity of `networks` and of `sources`.
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

/// The header of the tables: hash parameters, and the prefix lengths in use. The lengths have two
/// versions: the current one, and one to be written.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct TableHeader {
    /// Hash parameters.
    pub hashing: Hashing,
    /// Number of blocked IPv4 networks.
    pub ipv4: u32,
    /// Number of blocked IPv6 networks.
    pub ipv6: u32,
    /// The current version: 0 or 1.
    pub version: u32,
    /// Zero.
    pub pad: u32,
    /// By version: number of IPv4 and of IPv6 lengths.
    pub counts: [[u32; 2]; 2],
    /// By version, then by family: the lengths in use, in the order of [`Kind::ALL`], longest
    /// first.
    pub lengths: [[Length; VERSION]; 2],
}

const _: () = assert!(size_of::<TableHeader>() == 56 + 2 * VERSION * 24);

impl TableHeader {
    /// The header of empty tables.
    pub fn new(hashing: Hashing) -> Self {
        Self { hashing, ..Self::zeroed() }
    }
}

/// The hash of a network.
#[derive(Debug, Clone, Copy)]
pub struct Hashed(u64);

impl Hashed {
    /// The hash of the network with this label and these address halves.
    #[inline(always)]
    pub const fn new(high: u64, low: u64, label: u64, seed: u64) -> Self {
        Self(hash::mix(high, low, label, seed))
    }

    /// The two candidate buckets: distinct, in the same group. `mask` is the number of buckets less
    /// one.
    #[inline(always)]
    pub const fn buckets(&self, mask: u32) -> [u32; 2] {
        let first = self.0 as u32 & mask;
        let apart = (((self.0 >> 32 & 0xffff) * (GROUP as u64 - 1)) >> 16) + 1;
        [first, first ^ apart as u32]
    }

    /// The fingerprint; never 0, which marks a free slot.
    #[inline(always)]
    pub const fn print(&self) -> u64 {
        // The highest byte; 0 becomes 1.
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
    // A single bit times a constant moves its byte number to the top byte.
    let lowest = (bits & bits.wrapping_neg()) >> 7;
    (lowest.wrapping_mul(0x0001_0203_0405_0607) >> 56) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reputation_ends_on_time() {
        const SECOND: u64 = 1_000_000_000;
        // Also across the point where the 22 bits wrap.
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
                    Reputation::of(Reputation::new(0, start + length, FORMER).bits() | 0x27ff);
                assert!(peer.is_peer(start) && !peer.is_good(start) && peer.scale() == FORMER);
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

    /// The assumption behind the table's size: at full capacity every network finds a slot, in
    /// every fill.
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

    /// The table has a third more room than feeds may take.
    #[test]
    fn hardly_a_network_finds_no_slot_when_every_quota_is_used_up() {
        let (mut refused, mut all) = (0, 0);
        for seed in 1..=40 {
            let networks = 1_u32 << 15;
            let mask = buckets(networks) - 1;
            let mut used = vec![0_usize; mask as usize + 1];
            for n in 0..u64::from(networks + networks / 3) {
                let [first, second] =
                    Hashed::new(0, n << 32, Kind::Blocked.label(128), seed).buckets(mask);
                let to = if used[first as usize] <= used[second as usize] { first } else { second };
                let free = used[to as usize] < WAYS;
                used[to as usize] += usize::from(free);
                (refused, all) = (refused + u32::from(!free), all + 1);
            }
        }
        assert!(refused <= all / 200_000, "{refused} of {all}");
    }
}
