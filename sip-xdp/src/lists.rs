//! The block and trust lists: the only writer of the tables that the kernel asks, and of the ledger that they are made
//! from.
//!
//! The ledger is the truth of what operators, the configuration and the detector list. It lives in a pinned map, so that
//! it outlives the daemon; the tables hold what the kernel needs to decide, computed from it and from what the feeds
//! list. After a crash between two writes, [`Lists::open`] makes them agree.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use aya::maps::{Map, MapError};
use sip_xdp_common::layout::{List, NEVER, Owner};
use sip_xdp_common::names;
use sip_xdp_common::networks::Kind;
use thiserror::Error;

use crate::feeds::{Feeds, Listed};
use crate::front::{Front, Sets};
use crate::guide::{GuideWriter, Lengths, length_of};
use crate::ledger::{Entry, Ledger};
use crate::mapped::Mapped;
use crate::network::Network;
use crate::prefixes::Prefixes;
use crate::store::Change;
use crate::table::{NoPlace, Slots, Table, Terms};

/// Why an entry could not be listed.
#[derive(Debug, Error)]
pub enum ListError {
    /// No room. Nothing was evicted.
    #[error(
        "the {list} list is full ({capacity} networks), {what} not added; remove entries, or raise \
         capacity.networks in the configuration"
    )]
    Full {
        /// Which list.
        list: &'static str,
        /// What it holds.
        capacity: u32,
        /// What was to be added, and "was" or "were".
        what: String,
    },
    /// Both buckets of a network are full, which chance makes all but impossible.
    #[error("the table has no place for {0}, although it is not full; raise capacity.networks in the configuration")]
    NoPlace(Network),
    /// The kernel refused.
    #[error("the kernel refused an entry for {network}: {source}")]
    Kernel {
        /// What was to be changed.
        network: Network,
        /// Why not.
        source: MapError,
    },
    /// A table could not be written.
    #[error("{0:#}")]
    Table(#[from] anyhow::Error),
}

/// Both lists, with the model that the kernel's tables are computed from.
pub struct Lists {
    ledger: Ledger,
    guide: GuideWriter,
    table: Table,
    front: Front,
    entries: BTreeMap<(List, Network, Owner), Entry>,
    /// What has changed since the store was last told.
    touched: BTreeSet<(List, Network, Owner)>,
    blocked: Prefixes,
    trusted: Prefixes,
    feeds: Feeds,
    /// IPv6 networks whose hosts are metered one by one.
    by_address: BTreeSet<Network>,
}

/// The name under which [`Lists`] keeps what the feeds of an earlier daemon listed.
pub const EARLIER: &str = "";

/// What a change of a feed came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refresh {
    /// Networks that the feed did not list before.
    pub added: usize,
    /// Networks that it lists no longer.
    pub removed: usize,
    /// Networks that it lists now.
    pub total: usize,
}

impl Lists {
    /// Opens the maps by name, through `open`, reads the ledger, and makes the kernel's tables agree with it.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let guide = GuideWriter::open(&Mapped::new(open(names::GUIDE)?)?)?;
        let ledger = Ledger::new(open(names::LEDGER)?)?;
        let mut entries = BTreeMap::new();
        for (list, entry) in ledger.entries()? {
            entries.insert((list, entry.network, entry.owner), entry);
        }
        let mut lists = Self {
            front: Front::open(&mut open)?,
            table: Table::open(open, guide.get())?,
            guide,
            ledger,
            entries,
            touched: BTreeSet::new(),
            blocked: Prefixes::default(),
            trusted: Prefixes::default(),
            feeds: Feeds::default(),
            by_address: BTreeSet::new(),
        };
        lists.reconcile()?;
        Ok(lists)
    }

    /// Rebuilds the model from the ledger's entries, and the kernel's tables from the model. What feeds listed stays.
    fn reconcile(&mut self) -> Result<()> {
        let claimed: BTreeSet<(List, Network)> = self.entries.keys().map(|(list, net, _)| (*list, *net)).collect();
        for (list, network) in &claimed {
            let end = self.claimed_until(*list, network).unwrap_or(0);
            self.set_mut(*list).insert(*network, end);
        }
        let (mut fed, mut listed) = (Vec::new(), Vec::new());
        {
            let whole = self.table.whole()?;
            whole.repair();
            for entry in whole.entries() {
                if entry.terms.feed {
                    fed.push(entry.network);
                } else {
                    listed.push((entry.kind, entry.network));
                }
            }
        }
        self.feeds.replace(EARLIER, Listed::new(fed));
        listed.extend(claimed.iter().map(|(list, network)| (kind(*list), *network)));
        for (kind, network) in listed {
            self.write(kind, &network)?;
        }
        self.announce_all()
    }

    /// Makes the kernel ask for all that is listed, and for nothing else.
    fn announce_all(&mut self) -> Result<()> {
        let of = |kind| move |network: &Network| length_of(kind, network);
        let mut lengths: Lengths = self.feeds.iter().flat_map(|(_, listed)| listed.lengths()).copied().collect();
        lengths.extend(self.trusted.iter().map(of(Kind::Trusted)));
        lengths.extend(self.by_address.iter().map(of(Kind::Apart)));
        lengths.extend(self.blocked.iter().map(of(Kind::Blocked)));
        self.guide.set_lengths(lengths)?;
        self.front.rebuild(Sets { blocked: &self.blocked, trusted: &self.trusted, feeds: &self.feeds })?;
        self.guide.set_counts(self.table.counts().blocked);
        Ok(())
    }

    /// Replaces what a feed lists. What it listed before and still lists is blocked all the time. On an error nothing
    /// has changed.
    pub fn replace_feed(&mut self, name: &str, networks: Vec<Network>) -> Result<Refresh, ListError> {
        let new = Listed::new(networks);
        let none = Listed::default();
        let old = self.feeds.get(name).unwrap_or(&none);
        let (added, removed) = (new.without(old), old.without(&new));
        let refresh = Refresh { added: added.len(), removed: removed.len(), total: new.networks().len() };
        // Others that list a network hold its place.
        let alone = |network: &&Network| !self.blocked.contains(network) && !self.feeds.others_contain(name, network);
        let (coming, leaving) = (added.iter().filter(alone).count(), removed.iter().filter(alone).count());
        if self.table.counts().all + coming - leaving > self.ledger.capacity() as usize {
            return Err(self.full(List::Block, format!("{coming} networks of the feed {name} were")));
        }
        let old = self.feeds.replace(name, new);
        // What goes makes room for what comes.
        let written = self.write_blocks(&removed).and_then(|()| self.write_blocks(&added));
        if let Err(error) = written {
            self.feeds.replace(name, old);
            let _ = self.write_blocks(&added);
            let _ = self.write_blocks(&removed);
            return Err(error);
        }
        self.announce_all()?;
        Ok(refresh)
    }

    /// What the feeds list.
    pub fn feeds(&self) -> &Feeds {
        &self.feeds
    }

    /// The entries of a list, ordered by network.
    pub fn entries(&self, list: List) -> impl Iterator<Item = &Entry> {
        let from = (list, Network::FIRST, Owner::Manual);
        self.entries.range(from..).take_while(move |((of, ..), _)| *of == list).map(|(_, entry)| entry)
    }

    /// Adds an entry, or replaces its owner's earlier one. On an error nothing has changed.
    pub fn put(&mut self, list: List, entry: Entry) -> Result<(), ListError> {
        let network = entry.network;
        let id = (list, network, entry.owner);
        if !self.entries.contains_key(&id) && self.is_full(list, &network) {
            return Err(self.full(list, format!("{network} was")));
        }
        self.ledger.put(list, &entry).map_err(|source| ListError::Kernel { network, source })?;
        let before = self.entries.insert(id, entry);
        let Err(error) = self.refresh(list, network) else {
            self.touched.insert(id);
            return Ok(());
        };
        // Undo: the ledger as it was, and the tables once more from it.
        match before {
            Some(before) => {
                // The row's place in the ledger exists: replacing its value needs no memory.
                let _ = self.ledger.put(list, &before);
                self.entries.insert(id, before);
            }
            None => {
                if let Some(entry) = self.entries.remove(&id) {
                    let _ = self.ledger.remove(list, &entry);
                }
            }
        }
        let _ = self.refresh(list, network);
        Err(error)
    }

    /// Takes an owner's entry out. Returns it if there was one.
    pub fn remove(&mut self, list: List, network: &Network, owner: Owner) -> Result<Option<Entry>, ListError> {
        let Some(entry) = self.entries.remove(&(list, *network, owner)) else {
            return Ok(None);
        };
        // First the kernel's table, then the ledger: a crash in between leaves the entry, not an orphan.
        if let Err(error) = self.refresh(list, *network) {
            // Still ours: what expires is tried again.
            self.entries.insert((list, *network, owner), entry);
            return Err(error);
        }
        self.touched.insert((list, *network, owner));
        match self.ledger.remove(list, &entry) {
            Ok(()) => Ok(Some(entry)),
            Err(source) => Err(ListError::Kernel { network: *network, source }),
        }
    }

    /// Takes out what has ended at `now` and returns it.
    pub fn expire(&mut self, now: u64) -> Result<Vec<(List, Entry)>, ListError> {
        let over: Vec<_> = self.entries.iter().filter(|(_, e)| e.is_over(now)).map(|(id, _)| *id).collect();
        self.take_out(over)
    }

    /// Takes out what `unwanted` says and returns it.
    pub fn retain(&mut self, unwanted: impl Fn(List, &Entry) -> bool) -> Result<Vec<(List, Entry)>, ListError> {
        let ids: Vec<_> = self.entries.iter().filter(|((l, ..), e)| unwanted(*l, e)).map(|(id, _)| *id).collect();
        self.take_out(ids)
    }

    fn take_out(&mut self, ids: Vec<(List, Network, Owner)>) -> Result<Vec<(List, Entry)>, ListError> {
        let mut out = Vec::with_capacity(ids.len());
        for (list, network, owner) in ids {
            out.extend(self.remove(list, &network, owner)?.map(|entry| (list, entry)));
        }
        Ok(out)
    }

    /// What has changed since this was last asked, for the store.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let touched = std::mem::take(&mut self.touched).into_iter();
        let change = |id @ (list, network, owner): (List, Network, Owner)| match self.entries.get(&id) {
            Some(entry) => Change::Put(list, entry.clone()),
            None => Change::Remove(list, network, None, owner),
        };
        touched.map(change).collect()
    }

    /// All entries, for a store that is not told the changes.
    pub fn all_entries(&mut self) -> Change {
        self.touched.clear();
        Change::Entries(self.entries.iter().map(|((list, ..), entry)| (*list, entry.clone())).collect())
    }

    /// Sets the IPv6 networks whose hosts are metered one by one, because hosts live there that must not share a fate.
    pub fn set_by_address(&mut self, networks: BTreeSet<Network>) -> Result<(), ListError> {
        let changed: Vec<_> = networks.symmetric_difference(&self.by_address).copied().collect();
        self.by_address = networks;
        for network in changed {
            self.write(Kind::Apart, &network)?;
            self.announce(Kind::Apart, &network)?;
        }
        Ok(())
    }

    /// Whether a live trust entry covers `network`.
    pub fn trusts(&self, network: &Network, now: u64) -> bool {
        self.trusted.end(network).is_some_and(|end| end > now)
    }

    /// Whether a live entry blocks all of `network`.
    pub fn blocks(&self, network: &Network, now: u64) -> bool {
        self.blocked.end(network).is_some_and(|end| end > now)
    }

    /// The live trusted networks inside `network`.
    pub fn trusted_within(&self, network: &Network, now: u64) -> Vec<Network> {
        let inside = self.trusted.within(network);
        inside.into_iter().filter(|net| self.trusts(net, now)).collect()
    }

    /// How many packets were dropped for a network.
    pub fn hits(&self, network: &Network) -> u64 {
        self.table.get(Kind::Blocked, network).ok().flatten().map_or(0, |entry| entry.hits)
    }

    /// The owners of exactly `network` in a list.
    pub fn owners(&self, list: List, network: &Network) -> Vec<&Entry> {
        self.entries
            .range((list, *network, Owner::Manual)..=(list, *network, Owner::Config))
            .map(|(_, entry)| entry)
            .collect()
    }

    /// The networks of a list that contain `network`, itself among them, widest first.
    pub fn covering(&self, list: List, network: &Network) -> Vec<Network> {
        self.set(list).covering(network).map(|(net, _)| net).collect()
    }

    fn set_mut(&mut self, list: List) -> &mut Prefixes {
        match list {
            List::Block => &mut self.blocked,
            List::Trust => &mut self.trusted,
        }
    }

    fn set(&self, list: List) -> &Prefixes {
        match list {
            List::Block => &self.blocked,
            List::Trust => &self.trusted,
        }
    }

    fn is_full(&self, list: List, network: &Network) -> bool {
        let in_table = match list {
            List::Block => {
                let is_new = !self.blocked.contains(network) && !self.feeds.contains(network);
                self.table.counts().all + usize::from(is_new)
            }
            List::Trust => self.table.counts().all + usize::from(!self.trusted.contains(network)),
        };
        let capacity = self.ledger.capacity() as usize;
        in_table > capacity || self.entries.len() >= capacity
    }

    fn full(&self, list: List, what: String) -> ListError {
        ListError::Full { list: name(list), capacity: self.ledger.capacity(), what }
    }

    /// The latest end among the owners of exactly `network`.
    fn claimed_until(&self, list: List, network: &Network) -> Option<u64> {
        self.owners(list, network).iter().map(|entry| entry.expires).max()
    }

    /// Brings the kernel's tables up to date for one network.
    fn refresh(&mut self, list: List, network: Network) -> Result<(), ListError> {
        match self.claimed_until(list, &network) {
            Some(end) => self.set_mut(list).insert(network, end),
            None => drop(self.set_mut(list).remove(&network)),
        }
        self.write(kind(list), &network)?;
        self.announce(kind(list), &network)?;
        Ok(())
    }

    /// Makes the kernel ask the table about what lies in a network, or no longer. Lengths that have gone are looked for
    /// until a feed is replaced or the daemon starts again: that costs little, and nothing is wrong.
    fn announce(&mut self, kind: Kind, network: &Network) -> Result<()> {
        // The front first: with it a banned IPv4 host is blocked, while a new length waits for a grace period.
        self.front.refresh(network, Sets { blocked: &self.blocked, trusted: &self.trusted, feeds: &self.feeds })?;
        if self.terms(kind, network).is_some() {
            self.guide.cover(kind, network)?;
        }
        self.guide.set_counts(self.table.counts().blocked);
        Ok(())
    }

    /// What the table is to say of exactly `network`, if anything.
    fn terms(&self, kind: Kind, network: &Network) -> Option<Terms> {
        let terms = |expires, feed, claimed| Terms { expires, feed, claimed };
        match kind {
            Kind::Trusted => Some(terms(self.claimed_until(List::Trust, network)?, false, true)),
            Kind::Apart => self.by_address.contains(network).then_some(terms(NEVER, false, true)),
            Kind::Blocked => {
                let (claimed, feed) = (self.claimed_until(List::Block, network), self.feeds.contains(network));
                Some(terms(if feed { NEVER } else { claimed? }, feed, claimed.is_some()))
            }
        }
    }

    fn write(&self, kind: Kind, network: &Network) -> Result<(), ListError> {
        self.write_slot(&self.table.pair(kind, network)?, kind, network)
    }

    fn write_blocks(&self, networks: &[Network]) -> Result<(), ListError> {
        let whole = self.table.whole()?;
        networks.iter().try_for_each(|network| self.write_slot(&whole, Kind::Blocked, network))
    }

    fn write_slot(&self, slots: &impl Slots, kind: Kind, network: &Network) -> Result<(), ListError> {
        match self.terms(kind, network) {
            Some(terms) => slots.set(kind, network, terms).map_err(|NoPlace| ListError::NoPlace(*network)),
            None => {
                slots.remove(kind, network);
                Ok(())
            }
        }
    }
}

/// What the networks of a list are to the kernel.
fn kind(list: List) -> Kind {
    match list {
        List::Block => Kind::Blocked,
        List::Trust => Kind::Trusted,
    }
}

/// The name of a list in messages.
fn name(list: List) -> &'static str {
    match list {
        List::Block => "block",
        List::Trust => "trust",
    }
}
