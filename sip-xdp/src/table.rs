//! The writer of the block table: a hash table in mapped memory that the kernel reads while it changes. What its parts
//! mean is said in [`sip_xdp_common::blocklist`].

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use sip_xdp_common::blocklist::{Bucket, CLAIMED, FEED, Guide, HIT, Hashed, LENGTH, OCCUPIED, Slot, VACATED, WAYS};
use sip_xdp_common::source::Source;

use crate::mapped::{Mapped, View};
use crate::network::Network;

/// Words of a slot, in the order of [`Slot`].
const SLOT_WORDS: usize = size_of::<Slot>() / size_of::<u64>();
const BUCKET_WORDS: usize = size_of::<Bucket>() / size_of::<u64>();
const HIGH: usize = 0;
const LOW: usize = 1;
const EXPIRES: usize = 2;
const STATE: usize = 3;

/// Who lists a network, and until when, as the kernel needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// When the block ends, on the filter's clock.
    pub expires: u64,
    /// A feed lists it.
    pub feed: bool,
    /// Somebody else does.
    pub claimed: bool,
}

impl Terms {
    fn flags(&self) -> u64 {
        OCCUPIED | if self.feed { FEED } else { 0 } | if self.claimed { CLAIMED } else { 0 }
    }
}

/// An entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableEntry {
    /// Whom it blocks.
    pub network: Network,
    /// How.
    pub terms: Terms,
    /// Packets dropped for it.
    pub hits: u64,
}

/// Both buckets of a network are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoPlace;

/// The block table.
pub struct Table {
    map: Mapped,
    seed: u64,
    bucket_mask: u32,
    /// How many networks it holds: IPv4 and IPv6.
    counts: Cell<[usize; 2]>,
}

/// A part of the table that is mapped, or all of it.
pub trait Slots {
    /// The table, and the words of the two buckets of a key.
    fn pair(&self, key: &Key) -> (&Table, [&[AtomicU64]; 2]);

    /// Enters a network, or changes the terms of one that is there.
    fn set(&self, network: &Network, terms: Terms) -> Result<(), NoPlace> {
        let key = self.key(network);
        let (table, buckets) = self.pair(&key);
        if set(buckets, &key, terms)? {
            table.count(network, 1);
        }
        Ok(())
    }

    /// Takes a network out, if it is there.
    fn remove(&self, network: &Network) {
        let key = self.key(network);
        let (table, buckets) = self.pair(&key);
        if let Some(slot) = find(buckets, &key) {
            slot[STATE].store(VACATED, Ordering::Release);
            table.count(network, -1);
        }
    }

    /// A network as the table looks for it.
    fn key(&self, network: &Network) -> Key;
}

/// The table with all of its memory mapped, for work on many entries.
pub struct Whole<'a> {
    table: &'a Table,
    view: View,
}

/// The two buckets of one network.
pub struct Pair<'a> {
    table: &'a Table,
    views: [View; 2],
}

impl Table {
    /// Takes the map, to be read as the guide says.
    pub fn new(map: Mapped, guide: &Guide) -> Self {
        Self { map, seed: guide.seed, bucket_mask: guide.bucket_mask, counts: Cell::default() }
    }

    /// Maps all of it.
    pub fn whole(&self) -> Result<Whole<'_>> {
        Ok(Whole { table: self, view: self.map.all()? })
    }

    /// Maps what concerns one network.
    pub fn pair(&self, network: &Network) -> Result<Pair<'_>> {
        let key = self.key(network);
        Ok(Pair { table: self, views: [self.map.one(key.first)?, self.map.one(key.second)?] })
    }

    /// The entry for exactly this network.
    pub fn get(&self, network: &Network) -> Result<Option<TableEntry>> {
        let key = self.key(network);
        let pair = self.pair(network)?;
        Ok(find(Slots::pair(&pair, &key).1, &key).and_then(read))
    }

    /// How many networks it holds: IPv4 and IPv6.
    pub fn counts(&self) -> [usize; 2] {
        self.counts.get()
    }

    fn count(&self, network: &Network, change: isize) {
        let mut counts = self.counts.get();
        let family = &mut counts[usize::from(!network.is_v4())];
        *family = family.saturating_add_signed(change);
        self.counts.set(counts);
    }

    fn key(&self, network: &Network) -> Key {
        let (high, low) = network.first().words();
        let length = u64::from(network.bits());
        let hashed = Hashed::new(high, low, length, self.seed);
        Key { high, low, length, first: hashed.first(self.bucket_mask), second: hashed.second(self.bucket_mask) }
    }
}

impl Slots for Pair<'_> {
    fn pair(&self, _: &Key) -> (&Table, [&[AtomicU64]; 2]) {
        (self.table, [self.views[0].words(), self.views[1].words()])
    }

    fn key(&self, network: &Network) -> Key {
        self.table.key(network)
    }
}

impl Slots for Whole<'_> {
    fn pair(&self, key: &Key) -> (&Table, [&[AtomicU64]; 2]) {
        let bucket = |number: u32| &self.view.words()[number as usize * BUCKET_WORDS..][..BUCKET_WORDS];
        (self.table, [bucket(key.first), bucket(key.second)])
    }

    fn key(&self, network: &Network) -> Key {
        self.table.key(network)
    }
}

impl Whole<'_> {
    /// All entries, in no order.
    pub fn entries(&self) -> impl Iterator<Item = TableEntry> {
        self.view.words().chunks_exact(SLOT_WORDS).filter_map(read)
    }

    /// Counts the entries of a table that an earlier daemon has filled.
    pub fn recount(&self) {
        self.table.counts.set([0; 2]);
        self.entries().for_each(|entry| self.table.count(&entry.network, 1));
    }
}

/// A network as the table looks for it.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    high: u64,
    low: u64,
    length: u64,
    first: u32,
    second: u32,
}

/// The slot of a network in its two buckets.
fn find<'a>(buckets: [&'a [AtomicU64]; 2], key: &Key) -> Option<&'a [AtomicU64]> {
    buckets.into_iter().flat_map(|bucket| bucket.chunks_exact(SLOT_WORDS)).find(|slot| {
        slot[STATE].load(Ordering::Acquire) & (LENGTH | OCCUPIED) == key.length | OCCUPIED
            && slot[LOW].load(Ordering::Relaxed) == key.low
            && slot[HIGH].load(Ordering::Relaxed) == key.high
    })
}

/// Returns whether the network is new.
fn set(buckets: [&[AtomicU64]; 2], key: &Key, terms: Terms) -> Result<bool, NoPlace> {
    let flags = terms.flags();
    if let Some(slot) = find(buckets, key) {
        slot[EXPIRES].store(terms.expires, Ordering::Relaxed);
        // The kernel counts hits in the same word.
        let change = |state: u64| Some(state & !(FEED | CLAIMED) | flags);
        let _ = slot[STATE].fetch_update(Ordering::Release, Ordering::Relaxed, change);
        return Ok(false);
    }
    let used = |bucket: &[AtomicU64]| bucket.chunks_exact(SLOT_WORDS).filter(|slot| is_occupied(slot)).count();
    // The emptier of the two, the first if they are alike; there the first free slot.
    let [first, second] = buckets.map(used);
    let bucket = if first <= second { buckets[0] } else { buckets[1] };
    let free = bucket.chunks_exact(SLOT_WORDS).find(|slot| !is_occupied(slot)).ok_or(NoPlace)?;
    free[HIGH].store(key.high, Ordering::Relaxed);
    free[LOW].store(key.low, Ordering::Relaxed);
    free[EXPIRES].store(terms.expires, Ordering::Relaxed);
    // Last: with this word the entry is there, whole.
    free[STATE].store(key.length | flags, Ordering::Release);
    Ok(true)
}

fn is_occupied(slot: &[AtomicU64]) -> bool {
    slot[STATE].load(Ordering::Relaxed) & OCCUPIED != 0
}

fn read(slot: &[AtomicU64]) -> Option<TableEntry> {
    let state = slot[STATE].load(Ordering::Acquire);
    if state & OCCUPIED == 0 {
        return None;
    }
    let [high, low, expires] = [HIGH, LOW, EXPIRES].map(|word| slot[word].load(Ordering::Relaxed));
    Some(TableEntry {
        network: Network::around(Source::from_words(high, low), (state & LENGTH) as u8),
        terms: Terms { expires, feed: state & FEED != 0, claimed: state & CLAIMED != 0 },
        hits: state / HIT,
    })
}

const _: () = assert!(BUCKET_WORDS == WAYS * SLOT_WORDS);
