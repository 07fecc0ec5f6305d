//! The block list as the kernel sees it: a hash table of networks, a filter in front of it, and the lengths that occur.
//!
//! A [`Slot`] holds one network, of any length and either family, in one half of a cache line: its address, its end, its
//! length and its hit counter. Slots stand in buckets of [`WAYS`]; a network has two buckets to choose from, by a seeded
//! hash of its address and its length, and goes to the emptier one. To find what blocks a source, its network of each
//! length that occurs is looked for. Two things make that cheap: for IPv4 the [`front`] says beforehand that there is
//! nothing, or only hosts; and for each length a filter of two bits per hash value says "no such network" from one load.
//!
//! The table is plain memory that user space maps. It writes slots so that a reader sees an entry whole or not at all;
//! changing other entries never moves one that stays.

use bytemuck::{Pod, Zeroable};

use crate::front::{self, Place};
use crate::hash;
use crate::layout::NEVER;
use crate::source::{Source, mask};
use crate::sources::sets;

/// How many slots a bucket has. With two buckets to choose from and at most half of all slots in use, a network finds
/// both of its buckets full less than once in ten thousand fillings of a million (measured; see ARCHITECTURE.md).
pub const WAYS: usize = 8;

/// How many buckets there are for a capacity of `networks`: a power of two, so that at most half of the slots are used.
pub const fn buckets(networks: u32) -> u32 {
    let wanted = networks.div_ceil(WAYS as u32 / 2).next_power_of_two();
    if wanted < 16 { 16 } else { wanted }
}

/// How many elements the filter has for a capacity of `networks`: 32 to 64 places for each, so that at most three absent
/// networks in a hundred seem to be there.
pub const fn filter_elements(networks: u32) -> u32 {
    let wanted = networks.div_ceil(8).next_power_of_two();
    if wanted < 16 { 16 } else { wanted }
}

/// In the filter: some blocked network is here.
pub const BLOCKED: u64 = 1;
/// In the filter: some network of the trust table is here.
pub const TRUSTED: u64 = 2;

/// [`Slot::state`], the lowest 8 bits: the length, out of 128.
pub const LENGTH: u64 = 0xff;
/// [`Slot::state`]: the slot holds a network.
pub const OCCUPIED: u64 = 0x100;
/// [`Slot::state`]: a feed lists the network.
pub const FEED: u64 = 0x200;
/// [`Slot::state`]: an operator, the configuration or the detector lists the network.
pub const CLAIMED: u64 = 0x400;
/// [`Slot::state`] of a slot whose network was taken out: free, but networks may stand behind it in its bucket.
pub const VACATED: u64 = 1;
/// One dropped packet in [`Slot::state`]. The counter is the upper 48 bits.
pub const HIT: u64 = 1 << 16;

/// One packet in so many that a [`front::WHOLE`] /24 drops is counted, with this weight.
pub const SAMPLE: u64 = 64;

/// A network on the block list.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Slot {
    /// The first half of the network's address, as [`Source::words`] gives it.
    pub high: u64,
    /// The second half.
    pub low: u64,
    /// When the block ends, in nanoseconds of the filter's clock, or [`NEVER`].
    pub expires: u64,
    /// 0 if the slot and all behind it in the bucket were never used; else length, flags and hits.
    pub state: u64,
}

/// What one load of the table brings.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Bucket {
    /// In no order.
    pub slots: [Slot; WAYS],
}

const _: () = assert!(size_of::<Slot>() == 32 && size_of::<Bucket>() == 256);

/// A length that occurs on the lists.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Length {
    /// The mask of the first half of an address, as [`mask`] gives it.
    pub high: u64,
    /// The mask of the second half.
    pub low: u64,
    /// The length, out of 128.
    pub bits: u64,
}

impl Length {
    /// Of networks of `bits` bits.
    pub const fn of(bits: u8) -> Self {
        let (high, low) = mask(bits);
        Self { high, low, bits: bits as u64 }
    }
}

/// Where the lengths of IPv6 networks begin in [`Guide::lengths`]; those of IPv4 begin at 0.
pub const IPV6_LENGTHS: usize = 64;

/// The most lengths that a family can have.
pub const MAX_LENGTHS: usize = 129;

/// How many places one version of the lengths has.
const VERSION: usize = 256;

const _: () = assert!(IPV6_LENGTHS + MAX_LENGTHS <= VERSION);

/// How to read the tables of lists and sources. There are two versions of the lengths: one that is in force, and one that is being written.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Guide {
    /// Seeds every hash; chosen once, when the tables are made.
    pub seed: u64,
    /// The number of buckets less one.
    pub bucket_mask: u32,
    /// The number of places in the filter less one.
    pub filter_mask: u32,
    /// IPv4 networks on the block list.
    pub ipv4: u32,
    /// IPv6 networks on the block list.
    pub ipv6: u32,
    /// The version in force: 0 or 1.
    pub version: u32,
    /// The number of sets of sources ([`crate::sources`]) less one.
    pub set_mask: u32,
    /// By version: how many lengths occur in IPv4 and in IPv6.
    pub counts: [[u32; 2]; 2],
    /// By version, then by family, the lengths that occur.
    pub lengths: [[Length; VERSION]; 2],
}

const _: () = assert!(size_of::<Guide>() == 48 + 2 * VERSION * 24);

impl Guide {
    /// How to read empty tables for a capacity of `networks` and of `sources`.
    pub fn new(seed: u64, networks: u32, sources: u32) -> Self {
        Self {
            seed,
            set_mask: sets(sources) - 1,
            bucket_mask: buckets(networks) - 1,
            filter_mask: (filter_elements(networks) << 8) - 1,
            ..Self::zeroed()
        }
    }
}

/// The hash of a network, and what follows from it.
#[derive(Debug, Clone, Copy)]
pub struct Hashed(u64);

impl Hashed {
    /// Of the network of `length` bits at the address with these halves.
    #[inline(always)]
    pub const fn new(high: u64, low: u64, length: u64, seed: u64) -> Self {
        Self(hash::mix(high, low, length, seed))
    }

    /// The bucket to look in first, of a number less one that is a power of two.
    #[inline(always)]
    pub const fn first(&self, bucket_mask: u32) -> u32 {
        self.0 as u32 & bucket_mask
    }

    /// The other bucket.
    #[inline(always)]
    pub const fn second(&self, bucket_mask: u32) -> u32 {
        (self.0 >> 32) as u32 & bucket_mask
    }

    /// The place in the filter.
    #[inline(always)]
    pub const fn filter(&self, filter_mask: u32) -> Place {
        Place::number((self.0 >> 24) as u32 & filter_mask)
    }
}

/// Where a blocked network stands: its bucket times [`WAYS`], plus its slot there, plus one. Zero is nowhere.
pub type Standing = u32;

/// No slot.
pub const NOWHERE: Standing = 0;

/// The tables, as one reader sees them.
pub trait Shelves {
    /// How to read them.
    fn guide(&self) -> Option<&Guide>;
    /// An element of the front.
    fn front(&self, element: u32) -> Option<&front::Element>;
    /// An element of the filter.
    fn filter(&self, element: u32) -> Option<&front::Element>;
    /// A bucket.
    fn bucket(&self, number: u32) -> Option<&Bucket>;
    /// The time; asked only for what ends.
    fn now(&self) -> u64;
    /// Whether this packet is the one in [`SAMPLE`].
    fn is_sample(&self) -> bool;
    /// Takes [`Search::count`] steps. The kernel's verifier follows a helper's loop once, not once for each length.
    fn each_length(&self, search: &mut Search);
    /// See [`Reader::forget`](crate::reader::Reader::forget).
    fn forget(&self, value: usize) -> usize;
}

/// What the tables say of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Listed {
    /// Some network of the trust table may contain it: ask there.
    pub ask_trust: bool,
    /// Something blocks it.
    pub blocked: bool,
    /// What blocks it and is to be counted.
    pub standing: Standing,
    /// How many hits to count.
    pub hits: u64,
}

/// Reads a word that another CPU or user space may change at any time.
#[inline(always)]
fn current<T: Copy>(word: &T) -> T {
    // SAFETY: a reference is valid and aligned. Volatile, so that it is read once, where it stands here.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

/// Asks the tables about a source.
#[inline(always)]
pub fn look_up<S: Shelves>(shelves: &S, source: &Source) -> Listed {
    let nothing = Listed::default();
    let Some(guide) = shelves.guide() else {
        return nothing;
    };
    let (high, low) = source.words();
    let (mut whole, mut hits) = (false, HIT);
    let is_v4 = source.is_v4();
    if is_v4 {
        let place = Place::of(((low >> 32) as u32).swap_bytes());
        let Some(element) = shelves.front(place.element) else {
            return nothing;
        };
        match place.read(current(&element[place.word & 7])) {
            front::CLEAR => return nothing,
            front::HOSTS => {
                let standing = find(shelves, guide, high, low, 128);
                let blocked = standing != NOWHERE;
                return Listed { ask_trust: false, blocked, standing, hits };
            }
            front::WHOLE if !shelves.is_sample() => return Listed { blocked: true, ..nothing },
            front::WHOLE => (whole, hits) = (true, HIT * SAMPLE),
            _ => {}
        }
    }
    let version = current(&guide.version) & 1;
    let mut search = Search {
        high,
        low,
        next: version * VERSION as u32 + if is_v4 { 0 } else { IPV6_LENGTHS as u32 },
        count: current(&guide.counts[version as usize & 1][usize::from(!is_v4)]),
        near: 0,
        standing: NOWHERE,
    };
    shelves.each_length(&mut search);
    let Search { near, standing, .. } = search;
    Listed { ask_trust: near & TRUSTED != 0, blocked: whole || standing != NOWHERE, standing, hits }
}

/// A search through the lengths of a family.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    high: u64,
    low: u64,
    /// What the filter has said so far.
    near: u64,
    /// The place of the next length among all of both versions.
    next: u32,
    /// How many lengths there are.
    pub count: u32,
    /// What was found, if anything.
    standing: Standing,
}

impl Search {
    /// Looks for the source's network of the next length.
    #[inline(always)]
    pub fn step<S: Shelves>(&mut self, shelves: &S) {
        let Some(guide) = shelves.guide() else {
            return;
        };
        let at = self.next as usize;
        self.next += 1;
        let length = &guide.lengths[(at / VERSION) & 1][at % VERSION];
        let (high, low) = (self.high & current(&length.high), self.low & current(&length.low));
        let bits = current(&length.bits);
        let place = Hashed::new(high, low, bits, guide.seed).filter(guide.filter_mask);
        let Some(element) = shelves.filter(place.element) else {
            return;
        };
        let here = place.read(current(&element[place.word & 7]));
        self.near |= here;
        if here & BLOCKED != 0 && self.standing == NOWHERE {
            self.standing = find(shelves, guide, high, low, bits);
        }
    }
}

/// Where the live entry for exactly this network stands.
#[inline(always)]
fn find<S: Shelves>(shelves: &S, guide: &Guide, high: u64, low: u64, length: u64) -> Standing {
    let hashed = Hashed::new(high, low, length, guide.seed);
    let first = hashed.first(guide.bucket_mask);
    let mut found = find_in(shelves, first, high, low, length);
    if found == NOWHERE {
        found = find_in(shelves, hashed.second(guide.bucket_mask), high, low, length);
    }
    found
}

#[inline(always)]
fn find_in<S: Shelves>(shelves: &S, number: u32, high: u64, low: u64, length: u64) -> Standing {
    let Some(bucket) = shelves.bucket(number) else {
        return NOWHERE;
    };
    let mut way = WAYS;
    for (n, slot) in bucket.slots.iter().enumerate() {
        let state = current(&slot.state);
        if state == 0 {
            return NOWHERE;
        }
        if state & (LENGTH | OCCUPIED) == length | OCCUPIED && current(&slot.low) == low && current(&slot.high) == high
        {
            way = n;
            break;
        }
    }
    let way = shelves.forget(way);
    if way >= WAYS {
        return NOWHERE;
    }
    let expires = current(&bucket.slots[way & (WAYS - 1)].expires);
    if expires != NEVER && expires <= shelves.now() {
        return NOWHERE;
    }
    (number * WAYS as u32 + way as u32) + 1
}
