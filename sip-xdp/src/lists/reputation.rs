//! What is known of single hosts, and of their ports: known good, peers, banned by port.

use std::collections::{BTreeMap, BTreeSet};

use sip_xdp_common::abi::layout::{List, Owner};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::lookup::networks::{FORMER, Kind, Reputation};

use super::{GOOD_FLOWS, ListError, Lists};
use crate::dataplane::tables::ledger::Entry;
use crate::dataplane::tables::networks::SlotState;
use crate::net::network::Network;

/// The reputation of a host. Times on the filter's clock, 0 for never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostReputation {
    /// End of known good.
    pub good_until: u64,
    /// End of peer.
    pub peer_until: u64,
    /// End of formerly known good.
    pub former_until: u64,
    /// Exponent of two by which its limit is multiplied while known good.
    pub scale: u64,
    /// Latest end of its flows' bans.
    flows_until: u64,
}

impl HostReputation {
    /// Decodes a slot.
    pub(super) fn read(reputation: Reputation, expires: u64, now: u64) -> Self {
        let (good_until, peer_until) = reputation.ends(now);
        let is_former = reputation.scale() == FORMER || good_until != 0 && expires > good_until;
        let former_until = if is_former { expires } else { 0 };
        let scale = if reputation.scale() == FORMER { 0 } else { reputation.scale() };
        // An expired one stays for a moment, so that it is removed like all others.
        let last = good_until.max(peer_until).max(former_until);
        let flows_until = if last == 0 { expires.max(1) } else { 0 };
        Self { good_until, peer_until, former_until, scale, flows_until }
    }

    pub(super) fn end(&self) -> u64 {
        let ends = [self.peer_until, self.former_until, self.flows_until];
        ends.into_iter().fold(self.good_until, u64::max)
    }

    /// The earliest end.
    fn next_end(&self) -> u64 {
        let ends = [self.good_until, self.peer_until, self.former_until, self.flows_until];
        ends.into_iter().filter(|end| *end != 0).min().unwrap_or(0)
    }

    pub(super) fn slot_state(&self) -> SlotState {
        let is_known = self.good_until != 0 || self.peer_until != 0;
        let scale = match (is_known, self.former_until != 0) {
            (true, _) => self.scale,
            (_, true) => FORMER,
            _ => 0,
        };
        SlotState {
            expires: self.end(),
            flows: self.flows_until != 0,
            reputation: Some(Reputation::new(self.good_until, self.peer_until, scale)),
            ..SlotState::default()
        }
    }

    /// Without the parts that have ended at `now`.
    fn at(self, now: u64) -> Self {
        let live = |end: u64| if end > now { end } else { 0 };
        Self {
            good_until: live(self.good_until),
            peer_until: live(self.peer_until),
            former_until: live(self.former_until),
            flows_until: live(self.flows_until),
            scale: self.scale,
        }
    }
}

/// Reputations by host, by next end, and by eviction order.
#[derive(Debug, Default)]
pub(super) struct Standings {
    by_host: BTreeMap<Network, HostReputation>,
    /// The next end of each.
    changes: BTreeSet<(u64, Network)>,
    /// Hosts that can be evicted, in eviction order.
    room: BTreeSet<(Worth, Network)>,
}

/// Who makes room for others comes first: one that was known good, then one that is, each by its
/// end. A host with banned ports never does, since without its slot nobody asks for them.
type Worth = (u8, u64);

fn worth(reputation: &HostReputation) -> Option<Worth> {
    let class = match reputation {
        _ if reputation.flows_until != 0 => return None,
        _ if reputation.good_until != 0 || reputation.peer_until != 0 => 2,
        _ if reputation.former_until != 0 => 1,
        _ => 0,
    };
    Some((
        class,
        reputation.good_until.max(reputation.peer_until).max(if class == 2 {
            0
        } else {
            reputation.end()
        }),
    ))
}

impl Standings {
    pub(super) fn get(&self, host: &Network) -> Option<&HostReputation> {
        self.by_host.get(host)
    }

    pub(super) fn len(&self) -> usize {
        self.by_host.len()
    }

    /// Sets the reputation of a host; removes one that is over.
    pub(super) fn set(&mut self, host: Network, reputation: HostReputation) {
        if let Some(before) = self.by_host.remove(&host) {
            self.changes.remove(&(before.next_end(), host));
            worth(&before).map(|worth| self.room.remove(&(worth, host)));
        }
        if reputation.end() != 0 {
            self.changes.insert((reputation.next_end(), host));
            worth(&reputation).map(|worth| self.room.insert((worth, host)));
            self.by_host.insert(host, reputation);
        }
    }

    /// Hosts with a part that has ended at `now`.
    fn over(&self, now: u64) -> Vec<Network> {
        self.changes.iter().take_while(|(end, _)| *end <= now).map(|(_, host)| *host).collect()
    }

    /// The first in eviction order.
    fn first_to_go(&self) -> Option<(Worth, Network)> {
        self.room.first().copied()
    }
}

impl Lists {
    /// The reputation of a host.
    pub fn reputation(&self, source: IpKey) -> HostReputation {
        self.standings.get(&Network::around(source, 128)).copied().unwrap_or_default()
    }

    /// Changes the reputation of a host, and removes parts that have ended at `now`.
    pub fn know(
        &mut self,
        source: IpKey,
        now: u64,
        change: impl FnOnce(&mut HostReputation),
    ) -> Result<(), ListError> {
        let network = Network::around(source, 128);
        let before = self.reputation(source);
        let mut reputation = before.at(now);
        change(&mut reputation);
        if reputation == before {
            return Ok(());
        }
        let is_new = reputation.end() != 0 && self.standings.get(&network).is_none();
        if is_new {
            self.make_room_for_known(&network, &reputation)?;
        }
        self.set_standing(network, reputation)
    }

    fn set_standing(
        &mut self,
        network: Network,
        reputation: HostReputation,
    ) -> Result<(), ListError> {
        self.standings.set(network, reputation);
        if reputation.end() == 0 {
            self.known.remove(&network);
        } else {
            self.known.insert(network, reputation.end());
        }
        self.write(Kind::Known, &network)?;
        Ok(self.announce(Kind::Known, &network)?)
    }

    /// Makes room for one more known host. Beyond the quota, or if only the reserve is left, the
    /// first in eviction order goes, which may be the new one itself.
    fn make_room_for_known(
        &mut self,
        network: &Network,
        reputation: &HostReputation,
    ) -> Result<(), ListError> {
        let quotas = self.quotas();
        // Banned flows count as bans, with access to the reserve.
        let worth = worth(reputation);
        let own = if worth.is_some() { quotas.open() } else { quotas.networks };
        let limit = quotas.with_feeds(own, self.feeds.distinct());
        let has_room =
            self.table.counts().all < limit && self.standings.len() < quotas.known().max(1);
        let is_less = |(first, _): (Worth, Network)| worth.is_none_or(|worth| first < worth);
        if has_room
            || (self.standings.first_to_go().is_some_and(is_less) && self.displace_known(limit)?)
        {
            return Ok(());
        }
        let what = format!("{network} was");
        Err(ListError::Full { list: "known hosts", capacity: self.ledger.capacity(), what })
    }

    /// Evicts the first known host in eviction order. Returns whether there was one, and the table
    /// is then below `limit`.
    pub(super) fn displace_known(&mut self, limit: usize) -> Result<bool, ListError> {
        // No eviction that does not help.
        let helps = self.table.counts().all <= limit;
        let Some((_, host)) = self.standings.first_to_go().filter(|_| helps) else {
            return Ok(false);
        };
        self.set_standing(host, HostReputation::default())?;
        Ok(true)
    }

    /// Sets the end of a flow's known-good state.
    pub fn know_flow(
        &mut self,
        source: IpKey,
        port: u16,
        good_until: u64,
    ) -> Result<(), ListError> {
        if port == 0 {
            return Ok(());
        }
        let network = Network::around(source, 128);
        let noted = self.flows.good(source, port, good_until, GOOD_FLOWS);
        match noted.map_err(|source| ListError::Kernel { network, source })? {
            true => Ok(()),
            false => Err(ListError::Full {
                list: "known-good ports",
                capacity: GOOD_FLOWS as u32,
                what: format!("{network} port {port} was"),
            }),
        }
    }

    /// Whether `network` contains a known-good host or a peer.
    pub fn knows_within(&self, network: &Network, now: u64) -> bool {
        let is_known = |host: &Network| {
            self.standings.get(host).is_some_and(|reputation| {
                reputation.good_until > now || reputation.peer_until > now
            })
        };
        self.known.within(network).iter().any(is_known)
    }

    /// Hosts with a reputation.
    pub fn known_hosts(&self) -> impl Iterator<Item = (&Network, &HostReputation)> {
        self.standings.by_host.iter()
    }

    /// Removes reputations and flows that have ended at `now`.
    pub fn tidy(&mut self, now: u64) -> Result<(), ListError> {
        for host in self.standings.over(now) {
            self.know(host.first(), now, |_| {})?;
        }
        self.tidy_ladder(now)?;
        self.flows.tidy(now)?;
        Ok(())
    }

    /// Removes the port entries of an address, and returns them.
    pub fn remove_flows(&mut self, network: &Network) -> Result<Vec<Entry>, ListError> {
        let all = (List::Block, *network, 1, Owner::Manual)
            ..=(List::Block, *network, u16::MAX, Owner::LAST);
        let ids: Vec<_> = self.entries.range(all).map(|(id, _)| *id).collect();
        Ok(self.take_out(ids)?.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Updates the kernel's tables for one flow.
    pub(super) fn refresh_flow(&mut self, network: &Network, port: u16) -> Result<(), ListError> {
        let flows = (List::Block, *network, port, Owner::Manual)
            ..=(List::Block, *network, port, Owner::LAST);
        let until = self.entries.range(flows).map(|(_, entry)| entry.expires).max().unwrap_or(0);
        let source = network.first();
        self.flows
            .ban(source, port, until)
            .map_err(|source| ListError::Kernel { network: *network, source })?;
        let all = (List::Block, *network, 1, Owner::Manual)
            ..=(List::Block, *network, u16::MAX, Owner::LAST);
        let last = self.entries.range(all).map(|(_, entry)| entry.expires).max().unwrap_or(0);
        self.know(source, 0, |reputation| reputation.flows_until = last)
    }
}
