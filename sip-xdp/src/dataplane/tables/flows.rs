//! User space's view of flows: ports of addresses that are banned, or known good ([`sip_xdp_common::limits::flow`]).

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use sip_xdp_common::abi::layout::FLOWS;
use sip_xdp_common::abi::names;
use sip_xdp_common::ip_key::Source;
use sip_xdp_common::limits::flow::{Flow, FlowKey};

/// The table of flows.
pub struct Flows {
    map: HashMap<MapData, FlowKey, Flow>,
    /// No flow ends before.
    first_end: u64,
}

impl Flows {
    /// Opens the map by name, through `open`.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let map = open(names::FLOWS)?.try_into().context("the table of flows cannot be used")?;
        Ok(Self { map, first_end: 0 })
    }

    /// What is known of a flow.
    pub fn get(&self, source: Source, port: u16) -> Option<Flow> {
        self.map.get(&FlowKey::new(source, port), 0).ok()
    }

    /// Bans a flow until then, or no longer with 0.
    pub fn ban(&mut self, source: Source, port: u16, until: u64) -> Result<(), MapError> {
        self.change(source, port, |flow| flow.banned_until = until)
    }

    /// Notes that a flow is known good until then, or no longer with 0.
    pub fn good(&mut self, source: Source, port: u16, until: u64) -> Result<(), MapError> {
        self.change(source, port, |flow| flow.good_until = until)
    }

    /// The kernel may count a hit, or take from the reserve, between reading and writing; that one is lost.
    fn change(&mut self, source: Source, port: u16, change: impl FnOnce(&mut Flow)) -> Result<(), MapError> {
        let key = FlowKey::new(source, port);
        let before = self.map.get(&key, 0).ok();
        let mut flow = before.unwrap_or_default();
        change(&mut flow);
        if flow.banned_until != 0 || flow.good_until != 0 {
            self.first_end = self.first_end.min(end(&flow));
            self.map.insert(key, flow, 0)
        } else if before.is_some() {
            self.map.remove(&key)
        } else {
            Ok(())
        }
    }

    /// All flows. The kernel may change some meanwhile; see [`crate::dataplane::tables::ledger::Ledger::entries`].
    pub fn all(&self) -> Result<Vec<(FlowKey, Flow)>> {
        let rows = self.map.iter().take(2 * FLOWS);
        rows.collect::<Result<_, _>>().context("the table of flows cannot be read")
    }

    /// Takes out flows that are neither banned nor known good any more at `now`. The table is read only if there may be some:
    /// that takes two system calls for each flow.
    pub fn tidy(&mut self, now: u64) -> Result<()> {
        if now < self.first_end {
            return Ok(());
        }
        let mut first_end = u64::MAX;
        for (key, flow) in self.all()? {
            if end(&flow) > now || self.map.remove(&key).is_err() {
                first_end = first_end.min(end(&flow));
            }
        }
        self.first_end = first_end;
        Ok(())
    }
}

/// From when on nothing is known of a flow.
fn end(flow: &Flow) -> u64 {
    flow.banned_until.max(flow.good_until)
}
