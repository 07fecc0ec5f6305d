//! The block and trust lists: the only writer of the ledger, and of the kernel's tables, which are
//! derived from it.
//!
//! The ledger is authoritative for the entries of operators, configuration and detector. It is a
//! pinned map, so that it outlives the daemon; the tables hold what the kernel needs for its
//! decision, computed from the ledger and the feeds.
//!
//! Listed means enforced: a new entry is first written to the ledger as pending, then to the
//! tables, and becomes visible when packets already meet it. Removal is the reverse: the row
//! becomes pending, the tables drop the entry, the row is deleted. After a crash between two writes
//! [`Lists::open`] makes ledger and tables agree: pending rows do not count.
//!
//! More than 400 lines: the only writer of ledger and tables; the order of its writes is what makes
//! a crash harmless, and is kept in one place.

mod entries;
mod ladder;
pub mod never_ban;
mod quotas;
mod reputation;

use std::collections::{BTreeSet, HashMap};

use anyhow::Result;
use aya::maps::{Map, MapError};
use sip_xdp_common::abi::layout::{FLOWS, List, NEVER, Owner};
use sip_xdp_common::abi::names;
use sip_xdp_common::lookup::networks::Kind;
use thiserror::Error;

use crate::dataplane::mmap::Mapped;
use crate::dataplane::tables::feed_lists::{FeedLists, NetworkSet};
use crate::dataplane::tables::flows::Flows;
use crate::dataplane::tables::header::{Lengths, TableHeaderWriter, length_of};
use crate::dataplane::tables::ladders::Ladders;
use crate::dataplane::tables::ledger::{Entry, Ledger};
use crate::dataplane::tables::networks::{NoPlace, SlotState, Slots, Table};
use crate::dataplane::tables::summary::{Sets, Summary};
use crate::net::network::Network;
use crate::net::prefix_set::Prefixes;
use crate::sys::clock;

/// Why an entry could not be added.
#[derive(Debug, Error)]
pub enum ListError {
    /// No room. Nothing was evicted.
    #[error(
        "the {list} list is full ({capacity} networks), {what} not added; remove entries, or raise \
         capacity.networks in the configuration"
    )]
    Full {
        /// Name of the list.
        list: &'static str,
        /// Its capacity.
        capacity: u32,
        /// The rejected entries, and "was" or "were".
        what: String,
    },
    /// Both candidate buckets are full, which is practically impossible by chance.
    #[error(
        "the table has no place for {0}, although it is not full; raise capacity.networks in the \
         configuration"
    )]
    NoPlace(Network),
    /// Port 0, which no flow has.
    #[error("port 0 of {0} cannot be listed: nobody can be answered there")]
    NoPort(Network),
    /// The kernel refused a map update.
    #[error("the kernel refused an entry for {network}: {source}")]
    Kernel {
        /// The network to be changed.
        network: Network,
        /// The error.
        source: MapError,
    },
    /// A table could not be written.
    #[error("{0:#}")]
    Table(#[from] anyhow::Error),
}

/// Why a batch ended early.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct Stopped {
    /// Number of entries added.
    pub entered: usize,
    /// The error of the next one.
    pub error: ListError,
}

/// An entry that has changed, for whoever keeps entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryChange {
    /// It was added, or replaced its owner's earlier one.
    Put(List, Entry),
    /// An owner's entry was removed: for a whole network, or for one port of a host.
    Remove(List, Network, Option<u16>, Owner),
}

/// The lists, with the model from which the kernel's tables are computed.
pub struct Lists {
    ledger: Ledger,
    table_header: TableHeaderWriter,
    table: Table,
    summary: Summary,
    flows: Flows,
    entries: Entries,
    /// Keys that changed since the store was last updated.
    touched: BTreeSet<Id>,
    blocked: Prefixes,
    trusted: Prefixes,
    admitted: Prefixes,
    /// Hosts with a reputation.
    known: Prefixes,
    standings: Standings,
    /// Who is on the ladder, in the kernel, ...
    ladders: Ladders,
    /// ... until when, ...
    ladder: ladder::Places,
    /// ... and where.
    limited: Prefixes,
    feeds: FeedLists,
    /// Entries that were evicted, until [`Lists::take_displaced`].
    displaced: Vec<(List, Entry)>,
    /// Packets dropped for bans that were taken out, until somebody asks.
    ended: HashMap<(Network, Option<u16>), u64>,
    /// IPv6 networks whose hosts are metered one by one.
    by_address: BTreeSet<Network>,
}

/// An entry that is in the model, with its owner's earlier one. The tables follow next, then the
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

/// Number of level 0 bans among which the one with the fewest hits is evicted.
const LOOKED_AT: usize = 16;

/// Bans that were taken out whose packets are remembered until somebody asks.
const MAX_ENDED: usize = 4_096;

/// Maximum number of evictions for one entry: evicting an entry of a network with several owners
/// frees no slot.
const MOST_DISPLACED: usize = 8;

/// The name under which [`Lists`] keeps the feed entries of an earlier daemon.
pub const EARLIER: &str = "";

/// The result of a feed's update.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refresh {
    /// Networks added.
    pub added: usize,
    /// Networks removed.
    pub removed: usize,
    /// Networks listed now.
    pub total: usize,
}

impl Lists {
    /// Opens the maps by name, through `open`, reads the ledger, and makes the kernel's tables
    /// agree with it.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let table_header = TableHeaderWriter::open(&Mapped::new(open(names::TABLE_HEADER)?)?)?;
        let mut ledger = Ledger::new(open(names::LEDGER)?)?;
        ledger.drop_pending()?;
        let mut entries = Entries::default();
        for (list, entry) in ledger.entries()? {
            entries.insert(id(list, &entry), entry);
        }
        let mut lists = Self {
            summary: Summary::open(&mut open)?,
            flows: Flows::open(&mut open)?,
            ladders: Ladders::open(&mut open, table_header.get().hashing.seed)?,
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
            ladder: ladder::Places::default(),
            limited: Prefixes::default(),
            feeds: FeedLists::default(),
            displaced: Vec::new(),
            ended: HashMap::new(),
            by_address: BTreeSet::new(),
        };
        lists.reconcile()?;
        Ok(lists)
    }

    /// Keeps the tables mapped from now on: for a replay, in which reputations change thousands of
    /// times per second.
    pub(crate) fn keep_mapped(&mut self) -> Result<()> {
        self.table.keep_mapped()?;
        self.summary.keep_mapped()
    }

    /// Rebuilds the model from the ledger, and the kernel's tables from the model. Feed entries
    /// stay.
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
        // For reputations the table itself is authoritative.
        for (network, reputation) in known {
            self.known.insert(network, reputation.end());
            self.standings.set(network, reputation);
            self.write(Kind::Known, &network)?;
        }
        self.load_ladder()?;
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
        let Self { blocked, trusted, known, admitted, limited, feeds, .. } = self;
        Sets { blocked, trusted, known, admitted, limited, feeds }
    }

    /// Rebuilds summary and prefix lengths for exactly the listed networks.
    fn announce_all(&mut self) -> Result<()> {
        let of = |kind| move |network: &Network| length_of(kind, network);
        let mut lengths: Lengths =
            self.feeds.iter().flat_map(|(_, listed)| listed.lengths()).copied().collect();
        lengths.extend(self.trusted.iter().map(of(Kind::Trusted)));
        lengths.extend(self.known.iter().map(of(Kind::Known)));
        lengths.extend(self.admitted.iter().map(of(Kind::Admitted)));
        lengths.extend(self.by_address.iter().map(of(Kind::PerHost)));
        lengths.extend(self.limited.iter().map(of(Kind::Metered)));
        lengths.extend(self.blocked.iter().map(of(Kind::Blocked)));
        self.table_header.set_lengths(lengths)?;
        self.summary.rebuild(self.sets())?;
        self.table_header.set_counts(self.table.counts().blocked);
        Ok(())
    }

    /// Replaces the entries of a feed. What it lists before and after stays blocked throughout. On
    /// an error nothing has changed.
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
        // Networks that other feeds list count once, and those with other owners keep their slot.
        let count = |networks: &[Network]| {
            let (mut of_feeds, mut slots) = (0, 0);
            for network in networks.iter().filter(|one| !self.feeds.others_contain(name, one)) {
                of_feeds += 1;
                slots += usize::from(!self.blocked.contains(network));
            }
            (of_feeds, slots)
        };
        let ((more, coming), (less, leaving)) = (count(&added), count(&removed));
        let quotas = self.quotas();
        let of_feeds = self.feeds.distinct() + more - less;
        let most = quotas.with_feeds(quotas.open(), of_feeds);
        // What others list already never makes a feed shrink.
        let is_too_much = self.table.counts().all + coming - leaving > most && coming > leaving;
        if of_feeds > quotas.feeds() || is_too_much {
            return Err(
                self.full(List::Block, format!("{coming} networks of the feed {name} were"))
            );
        }
        let old = self.feeds.replace(name, new);
        // Removals first: they free slots for the additions.
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

    /// The entries of the feeds.
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

    /// The entries of a list for networks inside `network`, itself included.
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

    /// [`Lists::put`] for many entries, in order, with the tables mapped once. Stops at the first
    /// error; the entries before it are added.
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

    /// Adds an entry to the model, if there is room besides the `promised` slots, and gives it a
    /// pending row. A changed entry keeps its visible row until the tables follow: it is enforced
    /// throughout.
    fn claim(&mut self, list: List, entry: Entry, promised: usize) -> Result<Claim, ListError> {
        let (id, network) = (id(list, &entry), entry.network);
        if entry.port == Some(0) {
            // In the ledger port 0 means the whole network.
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

    /// Makes the row of an entry visible, once it is in the tables.
    fn keep(&mut self, claim: &Claim) -> Result<(), ListError> {
        let (list, network, ..) = claim.id;
        if let Some(entry) = self.entries.get(&claim.id) {
            let row = self.ledger.put(list, entry);
            row.map_err(|source| ListError::Kernel { network, source })?;
        }
        self.touched.insert(claim.id);
        Ok(())
    }

    /// Restores the model and the tables, and deletes the row of a new entry.
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

    /// Updates the kernel's tables for many entries of a list. An error has the number of entries
    /// in force.
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
        // The summary first, as for a single entry.
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

    /// Removes an owner's entry. Returns it, if it existed.
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
        if list == List::Block && entry.owner == Owner::Auto && self.ended.len() < MAX_ENDED {
            let hits = self.hits_of(&entry);
            self.ended.insert((network, entry.port), hits);
        }
        // Without memory for a pending row the entry is removed all the same, and stays visible a
        // moment longer.
        let _ = self.ledger.put_pending(list, &entry);
        if let Err(error) = self.refresh(list, network, entry.port) {
            // Visible again: expired entries are retried.
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

    /// Removes the entries that have expired at `now`, and returns them.
    pub fn expire(&mut self, now: u64) -> Result<Vec<(List, Entry)>, ListError> {
        self.take_out(self.entries.over(now))
    }

    /// Removes the entries for which `unwanted` is true, and returns them.
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

    /// Number of level 0 bans.
    pub fn unproven(&self) -> usize {
        self.entries.unproven()
    }

    /// Capacity in networks.
    pub fn capacity(&self) -> usize {
        self.ledger.capacity() as usize
    }

    /// Changes since the last call, for the store.
    pub fn take_changes(&mut self) -> Vec<EntryChange> {
        let touched = std::mem::take(&mut self.touched).into_iter();
        let change = |id @ (list, network, port, owner): Id| match self.entries.get(&id) {
            Some(entry) => EntryChange::Put(list, entry.clone()),
            None => EntryChange::Remove(list, network, (port != 0).then_some(port), owner),
        };
        touched.map(change).collect()
    }

    /// All entries, for a store that has missed changes.
    pub fn all_entries(&mut self) -> Vec<(List, Entry)> {
        self.touched.clear();
        self.entries.iter().map(|((list, ..), entry)| (*list, entry.clone())).collect()
    }

    /// Sets the IPv6 networks whose hosts are metered one by one, because they contain hosts that
    /// must not be banned together.
    pub fn set_by_address(&mut self, networks: BTreeSet<Network>) -> Result<(), ListError> {
        let changed: Vec<_> = networks.symmetric_difference(&self.by_address).copied().collect();
        self.by_address = networks;
        changed.iter().try_for_each(|network| self.write_apart(network))
    }

    /// Adds such networks, at a cost that does not depend on their number.
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

    /// Whether a live entry blocks the whole of `network`.
    pub fn blocks(&self, network: &Network, now: u64) -> bool {
        self.blocked.end(network).is_some_and(|end| end > now)
    }

    /// The live trusted networks inside `network`.
    pub fn trusted_within(&self, network: &Network, now: u64) -> Vec<Network> {
        let inside = self.trusted.within(network);
        inside.into_iter().filter(|net| self.trusts(net, now)).collect()
    }

    /// Number of packets dropped for a network.
    pub fn hits(&self, network: &Network) -> u64 {
        self.table.get(Kind::Blocked, network).ok().flatten().map_or(0, |entry| entry.hits)
    }

    /// How many packets were dropped for an entry of the block list: for its network, or its port.
    fn hits_of(&self, entry: &Entry) -> u64 {
        match entry.port {
            None => self.hits(&entry.network),
            Some(port) => self.flows.get(entry.network.first(), port).map_or(0, |flow| flow.hits),
        }
    }

    /// How many packets were dropped for a ban that was taken out, if nobody has asked before.
    pub fn take_hits(&mut self, ban: &Entry) -> Option<u64> {
        self.ended.remove(&(ban.network, ban.port))
    }

    /// The entries of exactly `network` in a list.
    pub fn owners(&self, list: List, network: &Network) -> Vec<&Entry> {
        self.entries
            .range((list, *network, 0, Owner::Manual)..=(list, *network, 0, Owner::LAST))
            .map(|(_, entry)| entry)
            .collect()
    }

    /// The networks of a list that contain `network`, itself included, widest first.
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

    /// Whether a network has no slot yet.
    fn needs_place(&self, list: List, network: &Network) -> bool {
        !(self.set(list).contains(network) || list == List::Block && self.feeds.contains(network))
    }

    /// Makes room for a new entry besides the `promised` slots, within its quota. A level 0 ban
    /// evicts another level 0 ban; entries with access to the reserve evict known hosts as well. A
    /// level 0 ban never evicts a known host, since anybody can cause such bans.
    fn make_room(&mut self, list: List, entry: &Entry, promised: usize) -> Result<(), ListError> {
        let quotas = self.quotas();
        let (is_unproven, limit) = (is_unproven(entry), quotas.for_entry(entry));
        let displaces = entry.owner != Owner::Feed;
        // Each eviction frees a row, and a slot unless the network has other owners.
        for _ in 0..MOST_DISPLACED {
            let needed =
                usize::from(entry.port.is_none() && self.needs_place(list, &entry.network));
            let room = quotas.with_feeds(limit, self.feeds.distinct());
            let too_many = self.table.counts().all + promised + needed > room;
            let too_many_entries = self.entries.len() >= limit;
            let over_quota = is_unproven && self.entries.unproven() >= quotas.unproven().max(1);
            if !(too_many || too_many_entries || over_quota) {
                return Ok(());
            }
            let displaced = displaces
                && (self.displace_unproven()?
                    || too_many
                        && !is_unproven
                        && (self.displace_metered(room)? || self.displace_known(room)?));
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

    /// Evicts the level 0 ban with the fewest hits, of a selection. Returns whether there was one.
    fn displace_unproven(&mut self) -> Result<bool, ListError> {
        let hits = |id: &Id| self.entries.get(id).map_or(0, |entry| self.hits_of(entry));
        let least = self.entries.some_unproven(LOOKED_AT).into_iter().min_by_key(hits);
        let Some(id) = least else {
            return Ok(false);
        };
        let gone = self.remove_by(id)?;
        let is_gone = gone.is_some();
        self.displaced.extend(gone.map(|entry| (id.0, entry)));
        Ok(is_gone)
    }

    /// Entries that were evicted since the last call.
    pub fn take_displaced(&mut self) -> Vec<(List, Entry)> {
        std::mem::take(&mut self.displaced)
    }

    /// The quotas.
    pub fn quotas(&self) -> Quotas {
        Quotas { networks: self.capacity() }
    }

    /// Fill levels of the tables.
    pub fn fill(&self) -> [Fill; 8] {
        let quotas = self.quotas();
        let fill = |table: &'static str, used, limit| Fill { table: table.into(), used, limit };
        [
            fill(
                "networks",
                self.table.counts().all,
                quotas.with_feeds(quotas.networks, self.feeds.distinct()),
            ),
            fill("feeds", self.feeds.distinct(), quotas.feeds()),
            fill("entries", self.entries.len(), quotas.networks),
            fill("known", self.standings.len(), quotas.known()),
            fill("suspects", self.metered(), self.most_metered()),
            fill("unproven", self.entries.unproven(), quotas.unproven()),
            fill("ports", self.flows.len(), FLOWS),
            fill("good_ports", self.flows.good_len(), GOOD_FLOWS),
        ]
    }

    fn full(&self, list: List, what: String) -> ListError {
        ListError::Full { list: list.name(), capacity: self.ledger.capacity(), what }
    }

    /// The latest expiry among the owners of exactly `network`.
    fn claimed_until(&self, list: List, network: &Network) -> Option<u64> {
        self.owners(list, network).iter().map(|entry| entry.expires).max()
    }

    /// Updates the kernel's tables for one network.
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

    /// Updates the model for one network: the latest expiry of the owners that list all of it.
    fn remodel(&mut self, list: List, network: &Network) {
        match self.claimed_until(list, network) {
            Some(end) => self.set_mut(list).insert(*network, end),
            None => drop(self.set_mut(list).remove(network)),
        }
    }

    /// Updates summary and prefix lengths for one network. Unused lengths stay until a feed is
    /// replaced or the daemon restarts, which is harmless and cheap.
    fn announce(&mut self, kind: Kind, network: &Network) -> Result<()> {
        // The summary first: it already blocks a banned IPv4 host while a new length waits for a
        // grace period.
        self.summary.refresh(std::slice::from_ref(network), self.sets())?;
        if self.slot_state(kind, network).is_some() {
            self.table_header.ensure_prefix_lengths([length_of(kind, network)].into_iter())?;
        }
        self.table_header.set_counts(self.table.counts().blocked);
        Ok(())
    }

    /// The slot state of exactly `network`, if it is listed.
    fn slot_state(&self, kind: Kind, network: &Network) -> Option<SlotState> {
        let claimed = |expires| SlotState { expires, claimed: true, ..SlotState::default() };
        match kind {
            Kind::Trusted => self.claimed_until(List::Trust, network).map(claimed),
            Kind::Admitted => self.claimed_until(List::Admit, network).map(claimed),
            Kind::PerHost => self.by_address.contains(network).then(|| claimed(NEVER)),
            Kind::Known => self.standings.get(network).map(HostReputation::slot_state),
            Kind::Metered => self.ladder.until(network).map(claimed),
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
