//! The block and trust tables: the only writer of both, and of the ledger that they are made from.
//!
//! The ledger is the truth. It lives in a pinned map, so that it outlives the daemon; the two LPM tries hold what the
//! kernel needs to decide, computed from it. After a crash between two writes, [`Lists::open`] makes them agree.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use sip_xdp_common::layout::{BY_ADDRESS, BlockEntry, LedgerKey, LedgerRow, List, NEVER, Owner, TRUSTED, TrustEntry};
use sip_xdp_common::{front, names};
use thiserror::Error;

use crate::front::Front;
use crate::ledger::{self, Entry};
use crate::network::Network;
use crate::prefixes::Prefixes;

/// Why an entry could not be listed.
#[derive(Debug, Error)]
pub enum ListError {
    /// No room. Nothing was evicted.
    #[error(
        "the {list} list is full ({capacity} networks), {network} was not added; remove entries, or raise \
         capacity.networks in the configuration"
    )]
    Full {
        /// Which list.
        list: &'static str,
        /// What it holds.
        capacity: u32,
        /// What was to be added.
        network: Network,
    },
    /// The kernel refused.
    #[error("the kernel refused an entry for {network}: {source}")]
    Kernel {
        /// What was to be changed.
        network: Network,
        /// Why not.
        source: MapError,
    },
}

/// The maps that make up the lists.
pub struct ListMaps {
    /// [`names::LEDGER`].
    pub ledger: HashMap<MapData, LedgerKey, LedgerRow>,
    /// [`names::BLOCKLIST`].
    pub blocklist: LpmTrie<MapData, [u8; 16], BlockEntry>,
    /// [`names::TRUST`].
    pub trust: LpmTrie<MapData, [u8; 16], TrustEntry>,
    /// [`names::HITS`].
    pub hits: Array<MapData, u64>,
    /// How many rows the ledger holds, and each of the tables.
    pub capacity: u32,
}

impl ListMaps {
    /// Opens the maps by name, through `open`.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let ledger = open(names::LEDGER)?;
        let capacity = match &ledger {
            Map::HashMap(data) => data.info()?.max_entries(),
            _ => bail!("{} is not a hash map", names::LEDGER),
        };
        Ok(Self {
            capacity,
            ledger: ledger.try_into()?,
            blocklist: open(names::BLOCKLIST)?.try_into()?,
            trust: open(names::TRUST)?.try_into()?,
            hits: open(names::HITS)?.try_into()?,
        })
    }

    /// All entries of the ledger, ordered by list and network.
    ///
    /// A daemon may change the ledger meanwhile. The kernel's walk over a hash starts again when the row that it stands
    /// on is deleted, so rows can come twice, and the walk is given an end.
    pub fn entries(&self) -> Result<Vec<(List, Entry)>> {
        let rows = 2 * self.capacity as usize;
        let mut entries = BTreeMap::new();
        for row in self.ledger.iter().take(rows) {
            let (key, row) = row.context("the ledger cannot be read")?;
            if let Some((list, entry)) = Entry::read(&key, &row) {
                entries.insert((list, entry.network, entry.owner), (list, entry));
            }
        }
        Ok(entries.into_values().collect())
    }

    /// How many packets were dropped for a network that is blocked.
    pub fn hits(&self, network: &Network) -> u64 {
        let Ok(entry) = self.blocklist.get(&lpm_key(network), 0) else {
            return 0;
        };
        self.hits.get(&entry.slot, 0).unwrap_or(0)
    }
}

/// Both lists, with the model that the kernel's tables are computed from.
pub struct Lists {
    maps: ListMaps,
    front: Front,
    entries: BTreeMap<(List, Network, Owner), Entry>,
    blocked: Prefixes,
    trusted: Prefixes,
    /// IPv6 networks whose hosts are metered one by one.
    by_address: BTreeSet<Network>,
    slots: BTreeMap<Network, u32>,
    free: Vec<u32>,
}

impl Lists {
    /// Opens the maps by name, through `open`, reads the ledger, and makes the kernel's tables agree with it.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let front = Front::new(open(names::FRONT)?.try_into()?);
        let maps = ListMaps::open(open)?;
        let mut lists = Self {
            front,
            entries: BTreeMap::new(),
            blocked: Prefixes::default(),
            trusted: Prefixes::default(),
            by_address: BTreeSet::new(),
            slots: BTreeMap::new(),
            free: Vec::new(),
            maps,
        };
        for (list, entry) in lists.maps.entries()? {
            lists.entries.insert((list, entry.network, entry.owner), entry);
        }
        lists.reconcile()?;
        Ok(lists)
    }

    /// Rebuilds the model from the ledger's entries, and the kernel's tables from the model.
    fn reconcile(&mut self) -> Result<()> {
        let listed: BTreeSet<(List, Network)> = self.entries.keys().map(|(list, net, _)| (*list, *net)).collect();
        for (list, network) in &listed {
            // Only that they are listed matters to the front; the ends follow below.
            self.set_mut(*list).insert(*network, 0);
        }
        self.front.rebuild([(front::BLOCKED, &self.blocked), (front::TRUSTED, &self.trusted)])?;
        let mut taken = BTreeSet::new();
        let blocked: Result<Vec<_>, _> = self.maps.blocklist.iter().collect();
        for (key, entry) in blocked.context("the block table cannot be read")? {
            let network = network_of(&key);
            if listed.contains(&(List::Block, network)) && taken.insert(entry.slot) {
                self.slots.insert(network, entry.slot);
            } else {
                self.maps.blocklist.remove(&key)?;
            }
        }
        let trusted: Result<Vec<_>, _> = self.maps.trust.keys().collect();
        for key in trusted.context("the trust table cannot be read")? {
            if !listed.contains(&(List::Trust, network_of(&key))) {
                self.maps.trust.remove(&key)?;
            }
        }
        self.free = (0..self.maps.capacity).rev().filter(|slot| !taken.contains(slot)).collect();
        for (list, network) in listed {
            self.refresh(list, network)?;
        }
        Ok(())
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
            return Err(ListError::Full { list: name(list), capacity: self.maps.capacity, network });
        }
        self.maps
            .ledger
            .insert(entry.key(list), entry.row(), 0)
            .map_err(|source| ListError::Kernel { network, source })?;
        let before = self.entries.insert(id, entry);
        let Err(error) = self.refresh(list, network) else {
            return Ok(());
        };
        // Undo: the ledger as it was, and the tables once more from it.
        match before {
            Some(before) => {
                // The row's place in the ledger exists: replacing its value needs no memory.
                let _ = self.maps.ledger.insert(before.key(list), before.row(), 0);
                self.entries.insert(id, before);
            }
            None => {
                let _ = self.maps.ledger.remove(&ledger::key(list, &network, id.2));
                self.entries.remove(&id);
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
        match forgive_missing(self.maps.ledger.remove(&entry.key(list))) {
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

    /// Sets the IPv6 networks whose hosts are metered one by one, because hosts live there that must not share a fate.
    pub fn set_by_address(&mut self, networks: BTreeSet<Network>) -> Result<(), ListError> {
        let changed: Vec<_> = networks.symmetric_difference(&self.by_address).copied().collect();
        self.by_address = networks;
        changed.into_iter().try_for_each(|network| self.refresh(List::Trust, network))
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
        self.maps.hits(network)
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
            List::Block => self.blocked.len() + usize::from(!self.blocked.contains(network)),
            List::Trust => {
                let markers = self.by_address.iter().filter(|net| !self.trusted.contains(net)).count();
                self.trusted.len() + usize::from(!self.trusted.contains(network)) + markers
            }
        };
        in_table > self.maps.capacity as usize || self.entries.len() >= self.maps.capacity as usize
    }

    /// Brings the kernel's table up to date for one network and those inside it.
    fn refresh(&mut self, list: List, network: Network) -> Result<(), ListError> {
        let kernel = |source| ListError::Kernel { network, source };
        let bit = if list == List::Block { front::BLOCKED } else { front::TRUSTED };
        let end = self.owners(list, &network).iter().map(|entry| entry.expires).max();
        match end {
            Some(end) => {
                self.set_mut(list).insert(network, end);
                self.front.mark(bit, &network).map_err(kernel)?;
            }
            None => {
                self.set_mut(list).remove(&network);
            }
        }
        let mut affected = self.set(list).within(&network);
        if list == List::Trust {
            affected.extend(self.by_address.iter().filter(|net| network.contains(net)));
            affected.sort_unstable();
            affected.dedup();
        }
        if !affected.contains(&network) {
            self.erase(list, &network).map_err(kernel)?;
        }
        if end.is_none() {
            let rest = if list == List::Block { &self.blocked } else { &self.trusted };
            self.front.clear(bit, &network, rest).map_err(kernel)?;
        }
        for inside in affected {
            self.write(list, &inside).map_err(|source| ListError::Kernel { network: inside, source })?;
        }
        Ok(())
    }

    fn write(&mut self, list: List, network: &Network) -> Result<(), MapError> {
        let key = lpm_key(network);
        match list {
            List::Block => {
                let Some(expires) = self.blocked.end(network) else {
                    return Ok(());
                };
                let slot = match self.slots.get(network) {
                    Some(slot) => *slot,
                    None => {
                        let slot = self.free.pop().ok_or(MapError::OutOfBounds {
                            index: self.maps.capacity,
                            max_entries: self.maps.capacity,
                        })?;
                        self.slots.insert(*network, slot);
                        self.maps.hits.set(slot, 0, 0)?;
                        slot
                    }
                };
                self.maps.blocklist.insert(&key, BlockEntry { expires, slot, pad: 0 }, 0)
            }
            List::Trust => {
                let end = self.trusted.end(network);
                let near = self.by_address.iter().any(|net| net.contains(network));
                let flags = if end.is_some() { TRUSTED } else { 0 } | if near { BY_ADDRESS } else { 0 };
                self.maps.trust.insert(&key, TrustEntry { expires: end.unwrap_or(NEVER), flags, pad: 0 }, 0)
            }
        }
    }

    fn erase(&mut self, list: List, network: &Network) -> Result<(), MapError> {
        let key = lpm_key(network);
        let erased = match list {
            List::Block => self.maps.blocklist.remove(&key),
            List::Trust => self.maps.trust.remove(&key),
        };
        if list == List::Block
            && let Some(slot) = self.slots.remove(network)
        {
            self.free.push(slot);
        }
        forgive_missing(erased)
    }
}

/// Removing what is not there is no error.
fn forgive_missing(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// The name of a list in messages.
fn name(list: List) -> &'static str {
    match list {
        List::Block => "block",
        List::Trust => "trust",
    }
}

/// A network as a key of the tries.
pub fn lpm_key(network: &Network) -> Key<[u8; 16]> {
    Key::new(network.bits().into(), network.first().octets)
}

/// A key of the tries as a network.
pub fn network_of(key: &Key<[u8; 16]>) -> Network {
    let bits = key.prefix_len();
    Network::around(sip_xdp_common::source::Source { octets: key.data() }, u8::try_from(bits).unwrap_or(128))
}
