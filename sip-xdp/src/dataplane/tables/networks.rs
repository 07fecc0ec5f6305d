//! The writer of the table of networks: a hash table in mapped memory that the kernel reads
//! concurrently. Its layout is described in [`sip_xdp_common::lookup::networks`].
//!
//! More than 400 lines: every write has to keep the table valid for concurrent readers, which is
//! easier to check in one place.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use aya::maps::Map;
use sip_xdp_common::abi::names;
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::lookup::networks::{
    ALIKE, CLAIMED, FEED, FLOWS, GROUP, HIT, Hashed, Hashing, Kind, LABEL, OCCUPIED, OWN,
    Reputation, Slot, SlotBucket, TableHeader, UDP_ONLY, WAYS,
};

use crate::dataplane::mmap::{Mapped, View};
use crate::dataplane::rcu::grace_period;
use crate::dataplane::tables::host_rows::{self, By, Rows};
use crate::net::network::Network;

/// Words of a slot, in the order of [`Slot`].
const SLOT_WORDS: usize = size_of::<Slot>() / size_of::<u64>();
const BUCKET_WORDS: usize = size_of::<SlotBucket>() / size_of::<u64>();
const HIGH: usize = 0;
const LOW: usize = 1;
const EXPIRES: usize = 2;
const STATE: usize = 3;

const _: () = assert!(BUCKET_WORDS == WAYS * SLOT_WORDS && WAYS == size_of::<u64>());

/// Expiry and owners of a listed network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotState {
    /// Expiry, on the filter's clock.
    pub expires: u64,
    /// Listed by a feed.
    pub feed: bool,
    /// Listed by another owner.
    pub claimed: bool,
    /// Listed by an operator or the configuration.
    pub own: bool,
    /// Of a known host: it has flows.
    pub flows: bool,
    /// Of a blocked network: only UDP is dropped.
    pub udp_only: bool,
    /// The reputation of a host.
    pub reputation: Option<Reputation>,
}

impl SlotState {
    const FLAGS: u64 = FEED | CLAIMED | OWN | FLOWS;

    fn flags(&self) -> u64 {
        (u64::from(self.feed) * FEED)
            | (u64::from(self.claimed) * CLAIMED)
            | (u64::from(self.own) * OWN)
            | (u64::from(self.flows) * FLOWS)
            | (u64::from(self.udp_only) * UDP_ONLY)
            | self.reputation.map_or(0, |reputation| reputation.bits())
    }
}

/// An entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableEntry {
    /// The kind of the network.
    pub kind: Kind,
    /// The network.
    pub network: Network,
    /// Expiry and owners.
    pub slot_state: SlotState,
    /// Packets dropped by this entry.
    pub hits: u64,
}

/// Both candidate buckets are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoPlace;

/// Numbers of listed networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All networks in the table.
    pub all: usize,
    /// Blocked ones: IPv4 and IPv6.
    pub blocked: [usize; 2],
}

/// The table.
pub struct Table {
    networks: Mapped,
    prints: Mapped,
    feed_hosts: Rows,
    hashing: Hashing,
    counts: Cell<Counts>,
    /// Slots that blocked networks have left since the last grace period: a bit per way, by bucket.
    /// A packet that has found the network may still count its hit there, in the word that would
    /// hold the reputation of a known host.
    left: RefCell<HashMap<u32, u8>>,
}

/// Buckets with such slots that force a grace period at the end of a change.
const MOST_LEFT: usize = 4_096;

/// A mapped part of the table, or all of it.
pub trait Slots {
    /// The two candidate buckets of a hash.
    fn places(&self, hashed: &Hashed) -> [BucketRef<'_>; 2];

    /// The row of feed hosts with this number.
    fn row(&self, number: u32) -> &[AtomicU64];

    /// The table.
    fn table(&self) -> &Table;

    /// Adds a network, or changes its slot state.
    fn set(&self, kind: Kind, network: &Network, slot_state: SlotState) -> Result<(), NoPlace> {
        let key = Key::new(kind, network, self.table());
        let before = match set(self.places(&key.hashed), &key, slot_state) {
            // There is room, but packets may still count hits in it.
            Err(NoPlace) if self.table().has_left(&key) && self.table().free_left().is_ok() => {
                set(self.places(&key.hashed), &key, slot_state)?
            }
            set => set?,
        };
        if before == 0 {
            self.table().count(kind, network, 1);
        }
        self.follow(kind, network, by(before), by(slot_state.flags() | OCCUPIED));
        Ok(())
    }

    /// Removes a network, if it is listed.
    fn remove(&self, kind: Kind, network: &Network) {
        let key = Key::new(kind, network, self.table());
        if let Some((place, way)) = find(self.places(&key.hashed), &key) {
            // First where the lookup starts: a crash in between leaves an unused entry, not a
            // blocked host without an entry.
            self.follow(
                kind,
                network,
                by(place.slot(way)[STATE].load(Ordering::Relaxed)),
                By::Nobody,
            );
            place.clear(way);
            if kind == Kind::Blocked {
                self.table().leave(place.number, way);
            }
            self.table().count(kind, network, -1);
        }
    }

    /// Updates the rows of feed hosts for a change of a network's owners.
    fn follow(&self, kind: Kind, network: &Network, from: By, to: By) {
        if let Some(address) = blocked_host(kind, network) {
            let row_key = self.table().feed_hosts.row_key(address);
            self.table().feed_hosts.change(self.row(row_key.row), row_key, from, to);
        }
    }
}

/// The table with all of its memory mapped, for changes of many entries.
pub struct MappedTable<'a> {
    table: &'a Table,
    networks: View,
    prints: View,
    feed_hosts: View,
}

/// The two candidate buckets of one network.
pub struct MappedPair<'a> {
    table: &'a Table,
    networks: [View; 2],
    prints: View,
    /// The row of a single host.
    feed_hosts: Option<View>,
}

impl Table {
    /// Opens the maps by name, through `open`, with the hash parameters of their header.
    pub fn open(
        mut open: impl FnMut(&str) -> Result<Map>,
        table_header: &TableHeader,
    ) -> Result<Self> {
        let (networks, prints) =
            (Mapped::new(open(names::NETWORKS)?)?, Mapped::new(open(names::FINGERPRINTS)?)?);
        let feed_hosts = Rows::open(open, table_header.hashing)?;
        let (counts, left) = Default::default();
        Ok(Self { networks, prints, feed_hosts, hashing: table_header.hashing, counts, left })
    }

    /// Keeps the table mapped from now on.
    pub(crate) fn keep_mapped(&mut self) -> Result<()> {
        self.networks.keep()?;
        self.prints.keep()?;
        self.feed_hosts.keep_mapped()
    }

    /// Maps all of it.
    pub fn map_all(&self) -> Result<MappedTable<'_>> {
        Ok(MappedTable {
            table: self,
            networks: self.networks.all()?,
            prints: self.prints.all()?,
            feed_hosts: self.feed_hosts.all()?,
        })
    }

    /// Maps the memory of one network of a kind.
    pub fn pair(&self, kind: Kind, network: &Network) -> Result<MappedPair<'_>> {
        let [first, second] =
            Key::new(kind, network, self).hashed.buckets(self.hashing.bucket_mask);
        Ok(MappedPair {
            table: self,
            networks: [self.networks.one(first)?, self.networks.one(second)?],
            // Both buckets are in one group.
            prints: self.prints.one(first / GROUP as u32)?,
            feed_hosts: blocked_host(kind, network)
                .map(|address| self.feed_hosts.one(self.feed_hosts.row_key(address).row))
                .transpose()?,
        })
    }

    /// The entry of exactly this network.
    pub fn get(&self, kind: Kind, network: &Network) -> Result<Option<TableEntry>> {
        let pair = self.pair(kind, network)?;
        let key = Key::new(kind, network, self);
        Ok(find(pair.places(&key.hashed), &key).and_then(|(place, way)| read(place.slot(way))))
    }

    /// Completes pending changes ([`Rows::settle`]).
    pub fn settle(&self) -> Result<()> {
        self.feed_hosts.settle()?;
        if self.left.borrow().len() > MOST_LEFT { self.free_left() } else { Ok(()) }
    }

    /// Waits for a grace period, and releases the slots that were left.
    fn free_left(&self) -> Result<()> {
        grace_period()?;
        self.left.borrow_mut().clear();
        Ok(())
    }

    /// The ways of a bucket that are not released yet.
    fn left_in(&self, bucket: u32) -> u8 {
        self.left.borrow().get(&bucket).copied().unwrap_or(0)
    }

    fn leave(&self, bucket: u32, way: usize) {
        *self.left.borrow_mut().entry(bucket).or_default() |= 1 << way;
    }

    /// Numbers of listed networks.
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }

    /// Whether a candidate bucket of a network has slots that are not released yet.
    fn has_left(&self, key: &Key) -> bool {
        key.hashed.buckets(self.hashing.bucket_mask).iter().any(|bucket| self.left_in(*bucket) != 0)
    }

    fn count(&self, kind: Kind, network: &Network, change: isize) {
        let mut counts = self.counts.get();
        if kind != Kind::PerHost {
            counts.all = counts.all.saturating_add_signed(change);
        }
        if kind == Kind::Blocked {
            let family = &mut counts.blocked[usize::from(!network.is_v4())];
            *family = family.saturating_add_signed(change);
        }
        self.counts.set(counts);
    }
}

impl Slots for MappedPair<'_> {
    fn places(&self, hashed: &Hashed) -> [BucketRef<'_>; 2] {
        let [first, second] = hashed.buckets(self.table.hashing.bucket_mask);
        [(0, first), (1, second)].map(|(n, number)| BucketRef {
            slots: self.networks[n].words(),
            prints: &self.prints.words()[number as usize % GROUP],
            left: self.table.left_in(number),
            number,
        })
    }

    fn row(&self, _number: u32) -> &[AtomicU64] {
        self.feed_hosts.as_ref().map_or(&[], View::words)
    }

    fn table(&self) -> &Table {
        self.table
    }
}

impl Slots for MappedTable<'_> {
    fn places(&self, hashed: &Hashed) -> [BucketRef<'_>; 2] {
        hashed.buckets(self.table.hashing.bucket_mask).map(|number| self.place(number as usize))
    }

    fn row(&self, number: u32) -> &[AtomicU64] {
        host_rows::row(&self.feed_hosts, number)
    }

    fn table(&self) -> &Table {
        self.table
    }
}

impl MappedTable<'_> {
    /// All entries, unordered.
    pub fn entries(&self) -> impl Iterator<Item = TableEntry> {
        self.networks.words().chunks_exact(SLOT_WORDS).filter_map(read)
    }

    /// Repairs the table after a crash between two writes, and counts its entries.
    pub fn repair(&self) -> Result<()> {
        self.table.counts.set(Counts::default());
        let mut hosts = Vec::new();
        for number in 0..self.prints.words().len() {
            let place = self.place(number);
            let mut prints = 0;
            for way in 0..WAYS {
                let Some(entry) = read(place.slot(way)) else {
                    continue;
                };
                let key = Key::new(entry.kind, &entry.network, self.table);
                prints |= key.hashed.print() << (8 * way);
                self.table.count(entry.kind, &entry.network, 1);
                if let Some(address) = blocked_host(entry.kind, &entry.network) {
                    hosts.push((
                        self.table.feed_hosts.row_key(address),
                        by(entry.slot_state.flags() | OCCUPIED),
                    ));
                }
            }
            place.prints.store(prints, Ordering::Release);
        }
        self.table.feed_hosts.repair(hosts)
    }

    fn place(&self, number: usize) -> BucketRef<'_> {
        BucketRef {
            slots: &self.networks.words()[number * BUCKET_WORDS..][..BUCKET_WORDS],
            prints: &self.prints.words()[number],
            left: self.table.left_in(number as u32),
            number: number as u32,
        }
    }
}

/// A bucket and its fingerprints.
#[derive(Clone, Copy)]
pub struct BucketRef<'a> {
    slots: &'a [AtomicU64],
    prints: &'a AtomicU64,
    /// Its number.
    number: u32,
    /// Ways that are not released yet.
    left: u8,
}

impl<'a> BucketRef<'a> {
    fn slot(&self, way: usize) -> &'a [AtomicU64] {
        &self.slots[way * SLOT_WORDS..][..SLOT_WORDS]
    }

    /// Whether the bucket can take another network with this fingerprint.
    fn takes(&self, print: u64) -> bool {
        let prints = self.prints.load(Ordering::Relaxed).to_le_bytes();
        self.free().is_some()
            && prints.iter().filter(|other| u64::from(**other) == print).count() < ALIKE
    }

    fn used(&self) -> usize {
        self.prints
            .load(Ordering::Relaxed)
            .to_le_bytes()
            .iter()
            .filter(|print| **print != 0)
            .count()
    }

    fn free(&self) -> Option<usize> {
        let prints = self.prints.load(Ordering::Relaxed).to_le_bytes();
        (0..WAYS).find(|way| prints[*way] == 0 && self.left >> way & 1 == 0)
    }

    /// Publishes an entry by its fingerprint.
    fn announce(&self, way: usize, print: u64) {
        let prints = self.prints.load(Ordering::Relaxed);
        self.prints.store(prints & !(0xff << (8 * way)) | print << (8 * way), Ordering::Release);
    }

    fn clear(&self, way: usize) {
        self.announce(way, 0);
        self.slot(way)[STATE].store(0, Ordering::Release);
    }
}

/// The search key of a network.
#[derive(Clone, Copy)]
struct Key {
    high: u64,
    low: u64,
    label: u64,
    hashed: Hashed,
}

impl Key {
    fn new(kind: Kind, network: &Network, table: &Table) -> Self {
        let (high, low) = network.first().words();
        let label = kind.label(network.bits());
        Self { high, low, label, hashed: Hashed::new(high, low, label, table.hashing.seed) }
    }
}

/// The position of a network in its two candidate buckets.
fn find<'a>(places: [BucketRef<'a>; 2], key: &Key) -> Option<(BucketRef<'a>, usize)> {
    places.into_iter().find_map(|place| {
        let prints = place.prints.load(Ordering::Acquire).to_le_bytes();
        let way = (0..WAYS).find(|way| {
            let slot = place.slot(*way);
            u64::from(prints[*way]) == key.hashed.print()
                && slot[STATE].load(Ordering::Acquire) & LABEL == key.label
                && slot[LOW].load(Ordering::Relaxed) == key.low
                && slot[HIGH].load(Ordering::Relaxed) == key.high
        })?;
        Some((place, way))
    })
}

/// Returns the previous [`Slot::state`]; 0 if the network is new.
fn set(places: [BucketRef<'_>; 2], key: &Key, slot_state: SlotState) -> Result<u64, NoPlace> {
    if let Some((place, way)) = find(places, key) {
        let slot = place.slot(way);
        slot[EXPIRES].store(slot_state.expires, Ordering::Relaxed);
        // The kernel counts hits in the same word.
        let kept = if slot_state.reputation.is_some() { LABEL } else { !SlotState::FLAGS };
        let change = |state: u64| Some(state & kept | slot_state.flags());
        let before = slot[STATE].fetch_update(Ordering::Release, Ordering::Relaxed, change);
        return Ok(before.unwrap_or_else(|unchanged| unchanged));
    }
    // The emptier bucket that has room, else the first.
    let print = key.hashed.print();
    let place = places
        .into_iter()
        .filter(|place| place.takes(print))
        .min_by_key(BucketRef::used)
        .ok_or(NoPlace)?;
    let way = place.free().ok_or(NoPlace)?;
    let words = [
        (HIGH, key.high),
        (LOW, key.low),
        (EXPIRES, slot_state.expires),
        (STATE, key.label | slot_state.flags()),
    ];
    for (word, value) in words {
        place.slot(way)[word].store(value, Ordering::Relaxed);
    }
    place.announce(way, print);
    Ok(0)
}

/// The address in host order, if the network is a single blocked IPv4 host.
fn blocked_host(kind: Kind, network: &Network) -> Option<u32> {
    match network.address() {
        IpAddr::V4(address) if kind == Kind::Blocked && network.is_host() => Some(address.into()),
        _ => None,
    }
}

/// The owners that block a network, from its [`Slot::state`].
fn by(state: u64) -> By {
    match state {
        0 => By::Nobody,
        _ if state & (FEED | CLAIMED) == FEED => By::Feed,
        _ => By::Others,
    }
}

fn read(slot: &[AtomicU64]) -> Option<TableEntry> {
    let state = slot[STATE].load(Ordering::Acquire);
    if state & OCCUPIED == 0 {
        return None;
    }
    let [high, low, expires] = [HIGH, LOW, EXPIRES].map(|word| slot[word].load(Ordering::Relaxed));
    let network = Network::around(IpKey::from_words(high, low), state as u8);
    let kind = Kind::ALL.into_iter().find(|kind| kind.label(network.bits()) == state & LABEL)?;
    let is = |flag| state & flag != 0;
    let reputation = (kind == Kind::Known).then_some(Reputation::of(state));
    let slot_state = SlotState {
        expires,
        feed: is(FEED),
        claimed: is(CLAIMED),
        own: is(OWN),
        flows: kind == Kind::Known && is(FLOWS),
        udp_only: kind == Kind::Blocked && is(UDP_ONLY),
        reputation,
    };
    let hits = if reputation.is_some() { 0 } else { state / HIT };
    Some(TableEntry { kind, network, slot_state, hits })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bucket in ordinary memory, for tests of the writer.
    struct Bench {
        slots: Vec<AtomicU64>,
        prints: AtomicU64,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                slots: (0..BUCKET_WORDS).map(|_| AtomicU64::new(0)).collect(),
                prints: AtomicU64::new(0),
            }
        }

        fn place(&self, left: u8) -> BucketRef<'_> {
            BucketRef { slots: &self.slots, prints: &self.prints, number: 0, left }
        }
    }

    fn key(number: u64, kind: Kind) -> Key {
        let label = kind.label(128);
        Key { high: 0, low: number, label, hashed: Hashed::new(0, number, label, 7) }
    }

    /// A packet that found a blocked network may count its hit after the removal. In the word of a
    /// known host that took the slot, a hit would add 1.07 s to its reputation, and a sampled one
    /// of a feed 68 s.
    #[test]
    fn nobody_moves_in_where_a_hit_may_still_be_counted() {
        let bench = Bench::new();
        let (full, empty) = (Bench::new(), key(1, Kind::Blocked));
        full.prints.store(u64::MAX, Ordering::Relaxed);
        set([bench.place(0), full.place(0)], &empty, SlotState::default()).unwrap();
        let late = {
            let (place, way) = find([bench.place(0), full.place(0)], &empty).unwrap();
            place.clear(way);
            way
        };
        let known = key(2, Kind::Known);
        let reputation = Reputation::new(3_600_000_000_000, 0, 0);
        let slot_state =
            SlotState { expires: 1, reputation: Some(reputation), ..SlotState::default() };
        set([bench.place(1 << late), full.place(0)], &known, slot_state).unwrap();
        bench.slots[late * SLOT_WORDS + STATE].fetch_add(64 * HIT, Ordering::Relaxed);
        let (place, way) = find([bench.place(0), full.place(0)], &known).unwrap();
        assert_ne!(way, late);
        assert_eq!(read(place.slot(way)).unwrap().slot_state.reputation, Some(reputation));
        // If nothing else is free, there is no room until a grace period is over.
        for number in 3..9 {
            set(
                [bench.place(1 << late), full.place(0)],
                &key(number, Kind::Blocked),
                SlotState::default(),
            )
            .unwrap();
        }
        let last = key(9, Kind::Known);
        assert_eq!(set([bench.place(1 << late), full.place(0)], &last, slot_state), Err(NoPlace));
        assert_eq!(set([bench.place(0), full.place(0)], &last, slot_state), Ok(0));
    }
}
