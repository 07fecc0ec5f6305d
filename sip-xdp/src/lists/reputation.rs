//! What is known of single hosts, and of their ports: known good, peers, under suspicion, banned by
//! port.

use std::collections::{BTreeMap, BTreeSet};

use sip_xdp_common::abi::layout::{List, Owner};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::lookup::networks::{FORMER, Kind, Reputation, SUSPECT};

use super::{GOOD_FLOWS, ListError, Lists};
use crate::dataplane::tables::ledger::Entry;
use crate::dataplane::tables::networks::SlotState;
use crate::net::network::Network;

/// What is known of a host. Times on the filter's clock, 0 for never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostReputation {
    /// Until when it is known good.
    pub good_until: u64,
    /// Until when it is a peer.
    pub peer_until: u64,
    /// Until when it is under suspicion.
    pub suspect_until: u64,
    /// Until when it is remembered that it was known good.
    pub former_until: u64,
    /// The power of two by which its limit is multiplied while it is known good.
    pub scale: u64,
    /// Until when one of its ports is banned.
    flows_until: u64,
}

impl HostReputation {
    /// What a slot says.
    pub(super) fn read(reputation: Reputation, expires: u64, now: u64) -> Self {
        let (good_until, peer_until) = reputation.ends(now);
        let is_suspect = reputation.scale() == SUSPECT;
        let suspect_until = if is_suspect { expires } else { 0 };
        let is_former = reputation.scale() == FORMER || good_until != 0 && expires > good_until;
        let former_until = if is_former && !is_suspect { expires } else { 0 };
        let scale = if is_suspect || reputation.scale() == FORMER { 0 } else { reputation.scale() };
        // One that is over altogether stays for a moment, so that it is taken out like all others.
        let last = good_until.max(peer_until).max(suspect_until).max(former_until);
        let flows_until = if last == 0 { expires.max(1) } else { 0 };
        Self { good_until, peer_until, suspect_until, former_until, scale, flows_until }
    }

    pub(super) fn end(&self) -> u64 {
        let ends = [self.peer_until, self.suspect_until, self.former_until, self.flows_until];
        ends.into_iter().fold(self.good_until, u64::max)
    }

    /// When the first part of it ends.
    fn next_end(&self) -> u64 {
        let ends = [
            self.good_until,
            self.peer_until,
            self.suspect_until,
            self.former_until,
            self.flows_until,
        ];
        ends.into_iter().filter(|end| *end != 0).min().unwrap_or(0)
    }

    pub(super) fn slot_state(&self) -> SlotState {
        let is_known = self.good_until != 0 || self.peer_until != 0;
        let scale = match (is_known, self.suspect_until != 0, self.former_until != 0) {
            (true, ..) => self.scale,
            (_, true, _) => SUSPECT,
            (_, _, true) => FORMER,
            _ => 0,
        };
        SlotState {
            expires: self.end(),
            flows: self.flows_until != 0,
            reputation: Some(Reputation::new(self.good_until, self.peer_until, scale)),
            ..SlotState::default()
        }
    }

    /// Without what has ended at `now`.
    fn at(self, now: u64) -> Self {
        let live = |end: u64| if end > now { end } else { 0 };
        Self {
            good_until: live(self.good_until),
            peer_until: live(self.peer_until),
            suspect_until: live(self.suspect_until),
            former_until: live(self.former_until),
            flows_until: live(self.flows_until),
            scale: self.scale,
        }
    }
}

/// What is known of hosts, by host, by when it changes, and by who is to make room first.
#[derive(Debug, Default)]
pub(super) struct Standings {
    by_host: BTreeMap<Network, HostReputation>,
    /// When something of each ends next.
    changes: BTreeSet<(u64, Network)>,
    /// Those that may make room, the first to do so first.
    room: BTreeSet<(Worth, Network)>,
    suspects: usize,
}

/// Who makes room for others comes first: one under suspicion, one that was known good, one that
/// is, each by its end. A host with banned ports never does, since without its slot nobody asks for
/// them.
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

    /// Sets what is known of a host; nothing if that is over altogether.
    pub(super) fn set(&mut self, host: Network, reputation: HostReputation) {
        if let Some(before) = self.by_host.remove(&host) {
            self.changes.remove(&(before.next_end(), host));
            worth(&before).map(|worth| self.room.remove(&(worth, host)));
            self.suspects -= usize::from(before.suspect_until != 0);
        }
        if reputation.end() != 0 {
            self.changes.insert((reputation.next_end(), host));
            worth(&reputation).map(|worth| self.room.insert((worth, host)));
            self.suspects += usize::from(reputation.suspect_until != 0);
            self.by_host.insert(host, reputation);
        }
    }

    /// Hosts of which something has ended at `now`.
    fn over(&self, now: u64) -> Vec<Network> {
        self.changes.iter().take_while(|(end, _)| *end <= now).map(|(_, host)| *host).collect()
    }

    /// The one that makes room first.
    fn first_to_go(&self) -> Option<(Worth, Network)> {
        self.room.first().copied()
    }
}

impl Lists {
    /// What is known of a host.
    pub fn reputation(&self, source: IpKey) -> HostReputation {
        self.standings.get(&Network::around(source, 128)).copied().unwrap_or_default()
    }

    /// Changes what is known of a host. What has ended at `now` is forgotten.
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

    /// Sees to it that there is room for one more known host. Beyond the quota, or where only the
    /// reserve is left, the one of least worth makes room, which may be the new one itself.
    fn make_room_for_known(
        &mut self,
        network: &Network,
        reputation: &HostReputation,
    ) -> Result<(), ListError> {
        let quotas = self.quotas();
        // One with banned ports is a ban, for which the reserve is there.
        let worth = worth(reputation);
        let limit = if worth.is_some() { quotas.open() } else { quotas.networks };
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

    /// Lets the known host of least worth go. Returns whether there was one, and there is room
    /// below `limit` without it.
    pub(super) fn displace_known(&mut self, limit: usize) -> Result<bool, ListError> {
        // Nobody goes in vain.
        let helps = self.table.counts().all <= limit;
        let Some((_, host)) = self.standings.first_to_go().filter(|_| helps) else {
            return Ok(false);
        };
        self.set_standing(host, HostReputation::default())?;
        Ok(true)
    }

    /// Notes until when a flow is known good.
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

    /// Ends all suspicion.
    pub fn end_suspicion(&mut self, now: u64) -> Result<(), ListError> {
        let suspects = self.known_hosts().filter(|(_, reputation)| reputation.suspect_until != 0);
        let suspects: Vec<IpKey> = suspects.map(|(network, _)| network.first()).collect();
        suspects.into_iter().try_for_each(|source| {
            self.know(source, now, |reputation| reputation.suspect_until = 0)
        })
    }

    /// How many hosts are under suspicion.
    pub fn suspects(&self) -> usize {
        self.standings.suspects
    }

    /// Whether a known-good host or a peer lives in `network`.
    pub fn knows_within(&self, network: &Network, now: u64) -> bool {
        let is_known = |host: &Network| {
            self.standings.get(host).is_some_and(|reputation| {
                reputation.good_until > now || reputation.peer_until > now
            })
        };
        self.known.within(network).iter().any(is_known)
    }

    /// Hosts that something is known of.
    pub fn known_hosts(&self) -> impl Iterator<Item = (&Network, &HostReputation)> {
        self.standings.by_host.iter()
    }

    /// Forgets what has ended at `now`.
    pub fn tidy(&mut self, now: u64) -> Result<(), ListError> {
        for host in self.standings.over(now) {
            self.know(host.first(), now, |_| {})?;
        }
        self.flows.tidy(now)?;
        Ok(())
    }

    /// Takes out what is listed of the ports of an address.
    pub fn remove_flows(&mut self, network: &Network) -> Result<Vec<Entry>, ListError> {
        let all = (List::Block, *network, 1, Owner::Manual)
            ..=(List::Block, *network, u16::MAX, Owner::LAST);
        let ids: Vec<_> = self.entries.range(all).map(|(id, _)| *id).collect();
        Ok(self.take_out(ids)?.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Brings the kernel's tables up to date for one flow.
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
