//! The block and trust lists: the only writer of the tables that the kernel asks, and of the ledger
//! that they are made from.
//!
//! The ledger is the truth of what operators, the configuration and the detector list. It lives in
//! a pinned map, so that it outlives the daemon; the tables hold what the kernel needs to decide,
//! computed from it and from what the feeds list.
//!
//! Listed means enforced: a change is announced in the ledger as pending, then written to the
//! tables, and listed when a packet that arrives from then on meets it. Taking out goes the other
//! way: the row is pending, the tables forget it, the row goes. After a crash between two writes,
//! [`Lists::open`] makes both agree: what is pending does not count.

mod entries;
pub mod never_ban;
mod quotas;
mod reputation;

use std::collections::BTreeSet;

use anyhow::Result;
use aya::maps::{Map, MapError};
use sip_xdp_common::abi::layout::{FLOWS, List, NEVER, Owner};
use sip_xdp_common::abi::names;
use sip_xdp_common::lookup::networks::Kind;
use thiserror::Error;

use crate::dataplane::mmap::Mapped;
use crate::dataplane::tables::feed_lists::{FeedLists, NetworkSet};
use crate::dataplane::tables::flows::Flows;
use crate::dataplane::tables::header::{GuideWriter, Lengths, length_of};
use crate::dataplane::tables::ledger::{Entry, Ledger};
use crate::dataplane::tables::networks::{NoPlace, SlotState, Slots, Table};
use crate::dataplane::tables::summary::{Sets, Summary};
use crate::net::network::Network;
use crate::net::prefix_set::Prefixes;
use crate::sys::clock;

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
    #[error(
        "the table has no place for {0}, although it is not full; raise capacity.networks in the \
         configuration"
    )]
    NoPlace(Network),
    /// A port that nobody has.
    #[error("port 0 of {0} cannot be listed: nobody can be answered there")]
    NoPort(Network),
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

/// Why not all entries were entered.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct Stopped {
    /// How many were.
    pub entered: usize,
    /// Why the next one was not.
    pub error: ListError,
}

/// An entry that has changed, for whoever keeps entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryChange {
    /// It was added, or replaced its owner's earlier one.
    Put(List, Entry),
    /// An owner's entry was taken out: for a whole network, or for one port of a host.
    Remove(List, Network, Option<u16>, Owner),
}

/// Both lists, with the model that the kernel's tables are computed from.
pub struct Lists {
    ledger: Ledger,
    table_header: GuideWriter,
    table: Table,
    summary: Summary,
    flows: Flows,
    entries: Entries,
    /// What has changed since the store was last told.
    touched: BTreeSet<Id>,
    blocked: Prefixes,
    trusted: Prefixes,
    admitted: Prefixes,
    /// Hosts that something is known of, and what.
    known: Prefixes,
    standings: Standings,
    feeds: FeedLists,
    /// Entries that made room for others, until somebody asks.
    displaced: Vec<(List, Entry)>,
    /// IPv6 networks whose hosts are metered one by one.
    by_address: BTreeSet<Network>,
}

/// An entry that is in the model, and its owner's earlier one. The tables are to follow, then the
/// ledger, in which a new entry is pending.
struct Claim {
    id: Id,
    before: Option<Entry>,
}

pub use quotas::{Fill, NEARLY_FULL, Quotas};
pub use reputation::HostReputation;

use entries::{Entries, Id, id, is_unproven};
pub(crate) use quotas::GOOD_FLOWS;
use reputation::Standings;

/// How many unproven bans are looked at for the one that is hit least.
const LOOKED_AT: usize = 16;

/// How many entries make room for one at most: of a network that others list, too, the place is not
/// free.
const MOST_DISPLACED: usize = 8;

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
    /// Opens the maps by name, through `open`, reads the ledger, and makes the kernel's tables
    /// agree with it.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let table_header = GuideWriter::open(&Mapped::new(open(names::TABLE_HEADER)?)?)?;
        let mut ledger = Ledger::new(open(names::LEDGER)?)?;
        ledger.drop_pending()?;
        let mut entries = Entries::default();
        for (list, entry) in ledger.entries()? {
            entries.insert(id(list, &entry), entry);
        }
        let mut lists = Self {
            summary: Summary::open(&mut open)?,
            flows: Flows::open(&mut open)?,
            table: Table::open(open, table_header.get())?,
            table_header,
            ledger,
            entries,
            touched: BTreeSet::new(),
            blocked: Prefixes::default(),
            trusted: Prefixes::default(),
            admitted: Prefixes::default(),
            known: Prefixes::default(),
            standings: Standings::default(),
            feeds: FeedLists::default(),
            displaced: Vec::new(),
            by_address: BTreeSet::new(),
        };
        lists.reconcile()?;
        Ok(lists)
    }

    /// Keeps the tables mapped from now on, for a replay, in which hosts become known thousands of
    /// times a second.
    pub(crate) fn keep_mapped(&mut self) -> Result<()> {
        self.table.keep_mapped()?;
        self.summary.keep_mapped()
    }

    /// Rebuilds the model from the ledger's entries, and the kernel's tables from the model. What
    /// feeds listed stays.
    fn reconcile(&mut self) -> Result<()> {
        let whole = self.entries.iter().map(|(id, _)| id).filter(|(_, _, port, _)| *port == 0);
        let claimed: BTreeSet<(List, Network)> =
            whole.map(|(list, net, ..)| (*list, *net)).collect();
        for (list, network) in &claimed {
            let end = self.claimed_until(*list, network).unwrap_or(0);
            self.set_mut(*list).insert(*network, end);
        }
        let (mut of_feeds, mut listed, mut known) = (Vec::new(), Vec::new(), Vec::new());
        let now = clock::now();
        {
            let whole = self.table.map_all()?;
            whole.repair()?;
            for entry in whole.entries() {
                if let Some(reputation) = entry.slot_state.reputation {
                    known.push((
                        entry.network,
                        HostReputation::read(reputation, entry.slot_state.expires, now),
                    ));
                } else if entry.slot_state.feed {
                    of_feeds.push(entry.network);
                } else {
                    listed.push((entry.kind, entry.network));
                }
            }
        }
        self.feeds.replace(EARLIER, NetworkSet::new(of_feeds));
        listed.extend(claimed.iter().map(|(list, network)| (Kind::of(*list), *network)));
        for (kind, network) in listed {
            self.write(kind, &network)?;
        }
        // What is known of hosts is the table's own truth while it lives.
        for (network, reputation) in known {
            self.known.insert(network, reputation.end());
            self.standings.set(network, reputation);
            self.write(Kind::Known, &network)?;
        }
        let banned: BTreeSet<_> = self
            .entries
            .iter()
            .map(|(id, _)| id)
            .filter(|id| id.2 != 0)
            .map(|id| (id.1, id.2))
            .collect();
        for (key, _) in self.flows.load()?.into_iter().filter(|(_, flow)| flow.banned_until != 0) {
            let network = Network::around(key.source, 128);
            if !banned.contains(&(network, key.port)) {
                self.flows
                    .ban(key.source, key.port, 0)
                    .map_err(|source| ListError::Kernel { network, source })?;
            }
        }
        for (network, port) in banned {
            self.refresh_flow(&network, port)?;
        }
        self.announce_all()
    }

    fn sets(&self) -> Sets<'_> {
        let Self { blocked, trusted, known, admitted, feeds, .. } = self;
        Sets { blocked, trusted, known, admitted, feeds }
    }

    /// Makes the kernel ask for all that is listed, and for nothing else.
    fn announce_all(&mut self) -> Result<()> {
        let of = |kind| move |network: &Network| length_of(kind, network);
        let mut lengths: Lengths =
            self.feeds.iter().flat_map(|(_, listed)| listed.lengths()).copied().collect();
        lengths.extend(self.trusted.iter().map(of(Kind::Trusted)));
        lengths.extend(self.known.iter().map(of(Kind::Known)));
        lengths.extend(self.admitted.iter().map(of(Kind::Admitted)));
        lengths.extend(self.by_address.iter().map(of(Kind::PerHost)));
        lengths.extend(self.blocked.iter().map(of(Kind::Blocked)));
        self.table_header.set_lengths(lengths)?;
        self.summary.rebuild(self.sets())?;
        self.table_header.set_counts(self.table.counts().blocked);
        Ok(())
    }

    /// Replaces what a feed lists. What it listed before and still lists is blocked all the time.
    /// On an error nothing has changed.
    pub fn replace_feed(
        &mut self,
        name: &str,
        networks: Vec<Network>,
    ) -> Result<Refresh, ListError> {
        let new = NetworkSet::new(networks);
        let none = NetworkSet::default();
        let old = self.feeds.get(name).unwrap_or(&none);
        let (added, removed) = (new.without(old), old.without(&new));
        let refresh =
            Refresh { added: added.len(), removed: removed.len(), total: new.networks().len() };
        // Others that list a network hold its place.
        let alone = |network: &&Network| {
            !self.blocked.contains(network) && !self.feeds.others_contain(name, network)
        };
        let (coming, leaving) =
            (added.iter().filter(alone).count(), removed.iter().filter(alone).count());
        if self.table.counts().all + coming - leaving > self.ledger.capacity() as usize {
            return Err(
                self.full(List::Block, format!("{coming} networks of the feed {name} were"))
            );
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
    pub fn feeds(&self) -> &FeedLists {
        &self.feeds
    }

    /// The entries of a list, ordered by network.
    pub fn entries(&self, list: List) -> impl Iterator<Item = &Entry> {
        let from = (list, Network::FIRST, 0, Owner::Manual);
        self.entries
            .range(from..)
            .take_while(move |((of, ..), _)| *of == list)
            .map(|(_, entry)| entry)
    }

    /// An owner's entry for exactly a network, or for a port of it.
    pub fn entry(
        &self,
        list: List,
        network: &Network,
        port: Option<u16>,
        owner: Owner,
    ) -> Option<&Entry> {
        self.entries.get(&(list, *network, port.unwrap_or(0), owner))
    }

    /// The entries of a list for networks inside `network`, itself among them.
    pub fn entries_within(&self, list: List, network: Network) -> impl Iterator<Item = &Entry> {
        let from = (list, network, 0, Owner::Manual);
        let inside = self
            .entries
            .range(from..)
            .take_while(move |(id, _)| id.0 == list && id.1.first() <= network.last());
        inside.map(|(_, entry)| entry).filter(move |entry| network.contains(&entry.network))
    }

    /// Adds an entry, or replaces its owner's earlier one. On an error nothing has changed.
    pub fn put(&mut self, list: List, entry: Entry) -> Result<(), ListError> {
        let (network, port) = (entry.network, entry.port);
        let claim = self.claim(list, entry, 0)?;
        let listed = self.refresh(list, network, port).and_then(|()| self.keep(&claim));
        if listed.is_err() {
            self.undo(claim);
        }
        listed
    }

    /// Does for many entries what [`Lists::put`] does for one, in their order, with the tables
    /// mapped once. The first that cannot be entered ends it; those before it are entered.
    pub fn put_all(&mut self, list: List, entries: Vec<Entry>) -> Result<(), Stopped> {
        let mut claims = Vec::with_capacity(entries.len());
        let (mut promised, mut stopped) = (0, None);
        for entry in entries {
            let is_new = entry.port.is_none() && self.needs_place(list, &entry.network);
            match self.claim(list, entry, promised) {
                Ok(claim) => claims.push(claim),
                Err(error) => {
                    stopped = Some(error);
                    break;
                }
            }
            promised += usize::from(is_new);
        }
        if let Err((written, error)) = self.write_claims(list, &claims) {
            self.undo_all(claims.split_off(written));
            stopped = Some(error);
        }
        if let Some((kept, error)) =
            claims.iter().enumerate().find_map(|(n, claim)| Some((n, self.keep(claim).err()?)))
        {
            self.undo_all(claims.split_off(kept));
            stopped = Some(error);
        }
        stopped.map_or(Ok(()), |error| Err(Stopped { entered: claims.len(), error }))
    }

    /// Writes an entry to the model, if there is room beside what was promised a place before, and
    /// gives it a row, which is pending. One that changes keeps its row until the tables have
    /// followed: it is enforced all the time.
    fn claim(&mut self, list: List, entry: Entry, promised: usize) -> Result<Claim, ListError> {
        let (id, network) = (id(list, &entry), entry.network);
        if entry.port == Some(0) {
            // In the ledger it would be all of the network.
            return Err(ListError::NoPort(network));
        }
        if !self.entries.contains(&id) {
            self.make_room(list, &entry, promised)?;
            let row = self.ledger.put_pending(list, &entry);
            row.map_err(|source| ListError::Kernel { network, source })?;
        }
        let before = self.entries.insert(id, entry);
        self.remodel(list, &network);
        Ok(Claim { id, before })
    }

    /// Lists an entry that is in the tables.
    fn keep(&mut self, claim: &Claim) -> Result<(), ListError> {
        let (list, network, ..) = claim.id;
        if let Some(entry) = self.entries.get(&claim.id) {
            let row = self.ledger.put(list, entry);
            row.map_err(|source| ListError::Kernel { network, source })?;
        }
        self.touched.insert(claim.id);
        Ok(())
    }

    /// The model as it was, the tables once more from it, and no row for what was new.
    fn undo(&mut self, claim: Claim) {
        let (list, network, port, _) = claim.id;
        let is_new = claim.before.is_none();
        let undone = match claim.before {
            Some(before) => self.entries.insert(claim.id, before),
            None => self.entries.remove(&claim.id),
        };
        let _ = self.refresh(list, network, (port != 0).then_some(port));
        if let Some(entry) = undone.filter(|_| is_new) {
            let _ = self.ledger.remove(list, &entry);
        }
    }

    fn undo_all(&mut self, claims: Vec<Claim>) {
        claims.into_iter().rev().for_each(|claim| self.undo(claim));
    }

    /// Brings the kernel's tables up to date for many entries of a list. An error comes with how
    /// many are in force.
    fn write_claims(&mut self, list: List, claims: &[Claim]) -> Result<(), (usize, ListError)> {
        let kind = Kind::of(list);
        let (mut networks, mut written) = (Vec::with_capacity(claims.len()), Ok(()));
        let table = self.table.map_all().map_err(|error| (0, error.into()))?;
        for (number, claim) in claims.iter().enumerate().filter(|(_, claim)| claim.id.2 == 0) {
            if let Err(error) = self.write_slot(&table, kind, &claim.id.1) {
                written = Err((number, error));
                break;
            }
            networks.push(claim.id.1);
        }
        drop(table);
        self.table.settle().map_err(|error| (0, error.into()))?;
        // The front first, as for a single one.
        self.summary.refresh(&networks, self.sets()).map_err(|error| (0, error.into()))?;
        let lengths = networks.iter().map(|network| length_of(kind, network));
        self.table_header.ensure_prefix_lengths(lengths).map_err(|error| (0, error.into()))?;
        self.table_header.set_counts(self.table.counts().blocked);
        written?;
        for (number, claim) in claims.iter().enumerate().filter(|(_, claim)| claim.id.2 != 0) {
            self.refresh_flow(&claim.id.1, claim.id.2).map_err(|error| (number, error))?;
        }
        Ok(())
    }

    /// Takes an owner's entry out. Returns it if there was one.
    pub fn remove(
        &mut self,
        list: List,
        network: &Network,
        owner: Owner,
    ) -> Result<Option<Entry>, ListError> {
        self.remove_by((list, *network, 0, owner))
    }

    fn remove_by(&mut self, id: Id) -> Result<Option<Entry>, ListError> {
        let (list, network, ..) = id;
        let Some(entry) = self.entries.remove(&id) else {
            return Ok(None);
        };
        // Without memory for that it is taken out all the same, and listed for a moment longer.
        let _ = self.ledger.put_pending(list, &entry);
        if let Err(error) = self.refresh(list, network, entry.port) {
            // Still ours: what expires is tried again.
            let _ = self.ledger.put(list, &entry);
            self.entries.insert(id, entry);
            self.remodel(list, &network);
            return Err(error);
        }
        self.touched.insert(id);
        match self.ledger.remove(list, &entry) {
            Ok(()) => Ok(Some(entry)),
            Err(source) => Err(ListError::Kernel { network, source }),
        }
    }

    /// Takes out what has ended at `now` and returns it.
    pub fn expire(&mut self, now: u64) -> Result<Vec<(List, Entry)>, ListError> {
        self.take_out(self.entries.over(now))
    }

    /// Takes out what `unwanted` says and returns it.
    pub fn retain(
        &mut self,
        unwanted: impl Fn(List, &Entry) -> bool,
    ) -> Result<Vec<(List, Entry)>, ListError> {
        let ids: Vec<_> =
            self.entries.iter().filter(|(id, e)| unwanted(id.0, e)).map(|(id, _)| *id).collect();
        self.take_out(ids)
    }

    fn take_out(&mut self, ids: Vec<Id>) -> Result<Vec<(List, Entry)>, ListError> {
        let mut out = Vec::with_capacity(ids.len());
        for id in ids {
            out.extend(self.remove_by(id)?.map(|entry| (id.0, entry)));
        }
        Ok(out)
    }

    /// How many bans rest on evidence that could be forged.
    pub fn unproven(&self) -> usize {
        self.entries.unproven()
    }

    /// How many networks there is room for.
    pub fn capacity(&self) -> usize {
        self.ledger.capacity() as usize
    }

    /// What has changed since this was last asked, for the store.
    pub fn take_changes(&mut self) -> Vec<EntryChange> {
        let touched = std::mem::take(&mut self.touched).into_iter();
        let change = |id @ (list, network, port, owner): Id| match self.entries.get(&id) {
            Some(entry) => EntryChange::Put(list, entry.clone()),
            None => EntryChange::Remove(list, network, (port != 0).then_some(port), owner),
        };
        touched.map(change).collect()
    }

    /// All entries, for a store that is not told the changes.
    pub fn all_entries(&mut self) -> Vec<(List, Entry)> {
        self.touched.clear();
        self.entries.iter().map(|((list, ..), entry)| (*list, entry.clone())).collect()
    }

    /// Sets the IPv6 networks whose hosts are metered one by one, because hosts live there that
    /// must not share a fate.
    pub fn set_by_address(&mut self, networks: BTreeSet<Network>) -> Result<(), ListError> {
        let changed: Vec<_> = networks.symmetric_difference(&self.by_address).copied().collect();
        self.by_address = networks;
        changed.iter().try_for_each(|network| self.write_apart(network))
    }

    /// Adds networks to them. It costs the same however many there are.
    pub fn meter_by_address(
        &mut self,
        networks: impl IntoIterator<Item = Network>,
    ) -> Result<(), ListError> {
        for network in networks {
            if self.by_address.insert(network) {
                self.write_apart(&network)?;
            }
        }
        Ok(())
    }

    fn write_apart(&mut self, network: &Network) -> Result<(), ListError> {
        self.write(Kind::PerHost, network)?;
        Ok(self.announce(Kind::PerHost, network)?)
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
            .range((list, *network, 0, Owner::Manual)..=(list, *network, 0, Owner::LAST))
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
            List::Admit => &mut self.admitted,
        }
    }

    fn set(&self, list: List) -> &Prefixes {
        match list {
            List::Block => &self.blocked,
            List::Trust => &self.trusted,
            List::Admit => &self.admitted,
        }
    }

    /// Whether a network has no place in the table yet.
    fn needs_place(&self, list: List, network: &Network) -> bool {
        !(self.set(list).contains(network) || list == List::Block && self.feeds.contains(network))
    }

    /// Sees to it that there is room for a new entry beside so many networks that were promised a
    /// place, as far as its quota allows: an unproven ban makes room for another one, and for whom
    /// the reserve is kept, known hosts do as well; but no known host for an unproven ban, which
    /// anybody can cause.
    fn make_room(&mut self, list: List, entry: &Entry, promised: usize) -> Result<(), ListError> {
        let quotas = self.quotas();
        let (is_unproven, limit) = (is_unproven(entry), quotas.for_entry(entry));
        let displaces = entry.owner != Owner::Feed;
        // Each one that makes room is one entry less, and a network less unless others list it,
        // too.
        for _ in 0..MOST_DISPLACED {
            let needed =
                usize::from(entry.port.is_none() && self.needs_place(list, &entry.network));
            let too_many = self.table.counts().all + promised + needed > limit;
            let too_many_entries = self.entries.len() >= limit;
            let over_quota = is_unproven && self.entries.unproven() >= quotas.unproven().max(1);
            if !(too_many || too_many_entries || over_quota) {
                return Ok(());
            }
            let displaced = displaces
                && (self.displace_unproven()?
                    || (too_many && !is_unproven && self.displace_known(limit)?));
            if !displaced {
                break;
            }
        }
        let what = entry.port.map_or_else(
            || format!("{} was", entry.network),
            |port| format!("{} port {port} was", entry.network),
        );
        Err(self.full(list, what))
    }

    /// Lets the one of some unproven bans go that is hit least. Returns whether there was one.
    fn displace_unproven(&mut self) -> Result<bool, ListError> {
        let hits = |id: &Id| match id.2 {
            0 => self.hits(&id.1),
            port => self.flows.get(id.1.first(), port).map_or(0, |flow| flow.hits),
        };
        let least = self.entries.some_unproven(LOOKED_AT).into_iter().min_by_key(hits);
        let Some(id) = least else {
            return Ok(false);
        };
        let gone = self.remove_by(id)?;
        let is_gone = gone.is_some();
        self.displaced.extend(gone.map(|entry| (id.0, entry)));
        Ok(is_gone)
    }

    /// Entries that made room for others since this was last asked.
    pub fn take_displaced(&mut self) -> Vec<(List, Entry)> {
        std::mem::take(&mut self.displaced)
    }

    /// Who may take how much.
    pub fn quotas(&self) -> Quotas {
        Quotas { networks: self.capacity() }
    }

    /// How full the tables are.
    pub fn fill(&self) -> [Fill; 6] {
        let quotas = self.quotas();
        let fill = |table: &'static str, used, limit| Fill { table: table.into(), used, limit };
        [
            fill("networks", self.table.counts().all, quotas.networks),
            fill("entries", self.entries.len(), quotas.networks),
            fill("known", self.standings.len(), quotas.known()),
            fill("unproven", self.entries.unproven(), quotas.unproven()),
            fill("ports", self.flows.len(), FLOWS),
            fill("good_ports", self.flows.good_len(), GOOD_FLOWS),
        ]
    }

    fn full(&self, list: List, what: String) -> ListError {
        ListError::Full { list: list.name(), capacity: self.ledger.capacity(), what }
    }

    /// The latest end among the owners of exactly `network`.
    fn claimed_until(&self, list: List, network: &Network) -> Option<u64> {
        self.owners(list, network).iter().map(|entry| entry.expires).max()
    }

    /// Brings the kernel's tables up to date for one network.
    fn refresh(
        &mut self,
        list: List,
        network: Network,
        port: Option<u16>,
    ) -> Result<(), ListError> {
        if let Some(port) = port {
            return self.refresh_flow(&network, port);
        }
        self.remodel(list, &network);
        self.write(Kind::of(list), &network)?;
        self.announce(Kind::of(list), &network)?;
        Ok(())
    }

    /// Brings the model up to date for one network: until when its owners list all of it, if any
    /// does.
    fn remodel(&mut self, list: List, network: &Network) {
        match self.claimed_until(list, network) {
            Some(end) => self.set_mut(list).insert(*network, end),
            None => drop(self.set_mut(list).remove(network)),
        }
    }

    /// Makes the kernel ask the table about what lies in a network, or no longer. Lengths that have
    /// gone are looked for until a feed is replaced or the daemon starts again: that costs little,
    /// and nothing is wrong.
    fn announce(&mut self, kind: Kind, network: &Network) -> Result<()> {
        // The front first: with it a banned IPv4 host is blocked, while a new length waits for a
        // grace period.
        self.summary.refresh(std::slice::from_ref(network), self.sets())?;
        if self.slot_state(kind, network).is_some() {
            self.table_header.ensure_prefix_lengths([length_of(kind, network)].into_iter())?;
        }
        self.table_header.set_counts(self.table.counts().blocked);
        Ok(())
    }

    /// What the table is to say of exactly `network`, if anything.
    fn slot_state(&self, kind: Kind, network: &Network) -> Option<SlotState> {
        let claimed = |expires| SlotState { expires, claimed: true, ..SlotState::default() };
        match kind {
            Kind::Trusted => self.claimed_until(List::Trust, network).map(claimed),
            Kind::Admitted => self.claimed_until(List::Admit, network).map(claimed),
            Kind::PerHost => self.by_address.contains(network).then(|| claimed(NEVER)),
            Kind::Known => self.standings.get(network).map(HostReputation::slot_state),
            Kind::Blocked => {
                let (until, feed) =
                    (self.claimed_until(List::Block, network), self.feeds.contains(network));
                let expires = if feed { NEVER } else { until? };
                let owners = self.owners(List::Block, network);
                let own = owners.iter().any(|entry| entry.owner != Owner::Auto);
                let udp_only = !feed && owners.iter().all(|entry| is_unproven(entry));
                Some(SlotState {
                    expires,
                    feed,
                    claimed: until.is_some(),
                    own,
                    udp_only,
                    ..SlotState::default()
                })
            }
        }
    }

    fn write(&self, kind: Kind, network: &Network) -> Result<(), ListError> {
        self.write_slot(&self.table.pair(kind, network)?, kind, network)?;
        Ok(self.table.settle()?)
    }

    fn write_blocks(&self, networks: &[Network]) -> Result<(), ListError> {
        let whole = self.table.map_all()?;
        networks.iter().try_for_each(|network| self.write_slot(&whole, Kind::Blocked, network))?;
        Ok(self.table.settle()?)
    }

    fn write_slot(
        &self,
        slots: &impl Slots,
        kind: Kind,
        network: &Network,
    ) -> Result<(), ListError> {
        match self.slot_state(kind, network) {
            Some(slot_state) => {
                slots.set(kind, network, slot_state).map_err(|NoPlace| ListError::NoPlace(*network))
            }
            None => {
                slots.remove(kind, network);
                Ok(())
            }
        }
    }
}
