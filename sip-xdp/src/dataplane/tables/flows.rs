//! The table of flows in user space: ports of addresses that are banned, or known good
//! ([`sip_xdp_common::limits::flow`]).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use sip_xdp_common::abi::layout::FLOWS;
use sip_xdp_common::abi::names;
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::flow::{Flow, FlowKey};

/// Fraction of the table reserved for bans: 1/16.
const RESERVED: usize = 16;

/// The table of flows.
pub struct Flows {
    map: HashMap<MapData, FlowKey, Flow>,
    /// A copy of the table for its writer, once read ([`Flows::load`]).
    model: Model,
}

/// Ends of bans and of known-good flows, by flow, and by end for eviction.
#[derive(Debug, Default)]
struct Model {
    /// `banned_until` and `good_until`.
    by_key: BTreeMap<FlowKey, (u64, u64)>,
    ends: BTreeSet<(u64, FlowKey)>,
    /// Known-good flows without a ban, by end.
    good: BTreeSet<(u64, FlowKey)>,
    /// Number of known-good flows.
    good_count: usize,
}

impl Model {
    fn set(&mut self, key: FlowKey, banned: u64, good: u64) {
        if let Some((banned, good)) = self.by_key.remove(&key) {
            self.ends.remove(&(banned.max(good), key));
            self.good.remove(&(good, key));
            self.good_count -= usize::from(good != 0);
        }
        if banned == 0 && good == 0 {
            return;
        }
        self.by_key.insert(key, (banned, good));
        self.ends.insert((banned.max(good), key));
        self.good_count += usize::from(good != 0);
        if banned == 0 {
            self.good.insert((good, key));
        }
    }
}

impl Flows {
    /// Opens the map by name, through `open`.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let map = open(names::FLOWS)?.try_into().context("the table of flows cannot be used")?;
        Ok(Self { map, model: Model::default() })
    }

    /// Reads all flows, as the writer must before its first change.
    pub fn load(&mut self) -> Result<Vec<(FlowKey, Flow)>> {
        let all = self.all()?;
        self.model = Model::default();
        all.iter().for_each(|(key, flow)| self.model.set(*key, flow.banned_until, flow.good_until));
        Ok(all)
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.model.by_key.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of known-good flows.
    pub fn good_len(&self) -> usize {
        self.model.good_count
    }

    /// The known-good flows that are not banned, of sources between two.
    pub fn good_within(
        &self,
        first: IpKey,
        last: IpKey,
        now: u64,
    ) -> impl Iterator<Item = (IpKey, u16)> {
        let range = FlowKey::new(first, 0)..=FlowKey::new(last, u16::MAX);
        let flows = self.model.by_key.range(range);
        let good = flows.filter(move |(_, (banned, good))| *good > now && *banned <= now);
        good.map(|(key, _)| (key.source, key.port))
    }

    /// The state of a flow.
    pub fn get(&self, source: IpKey, port: u16) -> Option<Flow> {
        self.map.get(&FlowKey::new(source, port), 0).ok()
    }

    /// Bans a flow until this time; 0 ends the ban. In a full table a known-good flow is evicted.
    pub fn ban(&mut self, source: IpKey, port: u16, until: u64) -> Result<(), MapError> {
        let key = FlowKey::new(source, port);
        if until != 0 && self.len() >= FLOWS && !self.model.by_key.contains_key(&key) {
            self.displace_good(u64::MAX)?;
        }
        self.change(key, |flow| flow.banned_until = until)
    }

    /// Marks a flow as known good until this time; 0 ends it. If known-good flows have used up
    /// their share, or only the reserve for bans is left, the one that ends first is evicted; if
    /// that is this one, it is not stored. Returns whether it is stored.
    pub fn good(
        &mut self,
        source: IpKey,
        port: u16,
        until: u64,
        share: usize,
    ) -> Result<bool, MapError> {
        let key = FlowKey::new(source, port);
        let is_good = self.model.by_key.get(&key).is_some_and(|(_, good)| *good != 0);
        let is_there = self.model.by_key.contains_key(&key);
        let is_full =
            self.good_len() >= share || (!is_there && self.len() >= FLOWS - FLOWS / RESERVED);
        if until != 0 && !is_good && is_full && !self.displace_good(until)? {
            return Ok(false);
        }
        self.change(key, |flow| flow.good_until = until).map(|()| true)
    }

    /// Evicts the known-good flow that ends first, if before `until`. Returns whether there was
    /// one.
    fn displace_good(&mut self, until: u64) -> Result<bool, MapError> {
        let Some((end, key)) = self.model.good.first().copied().filter(|(end, _)| *end < until)
        else {
            return Ok(false);
        };
        debug_assert!(end != 0);
        self.change(key, |flow| flow.good_until = 0).map(|()| true)
    }

    /// A hit or reserve charge that the kernel makes between the read and the write is lost.
    fn change(&mut self, key: FlowKey, change: impl FnOnce(&mut Flow)) -> Result<(), MapError> {
        let before = self.map.get(&key, 0).ok();
        let mut flow = before.unwrap_or_default();
        change(&mut flow);
        if flow.banned_until != 0 || flow.good_until != 0 {
            self.map.insert(key, flow, 0)?;
        } else if before.is_some() {
            self.map.remove(&key)?;
        }
        self.model.set(key, flow.banned_until, flow.good_until);
        Ok(())
    }

    /// All flows. The kernel may change some meanwhile; see
    /// [`crate::dataplane::tables::ledger::Ledger::entries`].
    pub fn all(&self) -> Result<Vec<(FlowKey, Flow)>> {
        let rows = self.map.iter().take(2 * FLOWS);
        rows.collect::<Result<_, _>>().context("the table of flows cannot be read")
    }

    /// Removes flows that are neither banned nor known good at `now`. Linear in their number.
    pub fn tidy(&mut self, now: u64) -> Result<()> {
        while let Some((end, key)) = self.model.ends.first().copied()
            && end <= now
        {
            match self.map.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => self.model.set(key, 0, 0),
                Err(error) => return Err(error).context("a port that is over stays in the table"),
            }
        }
        Ok(())
    }
}
