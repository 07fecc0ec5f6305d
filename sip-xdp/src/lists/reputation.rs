//! What is known of single hosts, and of their ports: known good, peers, under suspicion, banned by port.

use sip_xdp_common::abi::layout::{List, Owner};
use sip_xdp_common::ip_key::Source;
use sip_xdp_common::lookup::networks::{FORMER, Kind, SUSPECT, Standing};

use super::{ListError, Lists};
use crate::dataplane::tables::ledger::Entry;
use crate::dataplane::tables::networks::Terms;
use crate::net::network::Network;

/// What is known of a host. Times on the filter's clock, 0 for never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostStanding {
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

impl HostStanding {
    /// What a slot says.
    pub(super) fn read(standing: Standing, expires: u64, now: u64) -> Self {
        let (good_until, peer_until) = standing.ends(now);
        let is_suspect = standing.scale() == SUSPECT;
        let suspect_until = if is_suspect { expires } else { 0 };
        let is_former = standing.scale() == FORMER || good_until != 0 && expires > good_until;
        let former_until = if is_former && !is_suspect { expires } else { 0 };
        let scale = if is_suspect || standing.scale() == FORMER { 0 } else { standing.scale() };
        // One that is over altogether stays for a moment, so that it is taken out like all others.
        let last = good_until.max(peer_until).max(suspect_until).max(former_until);
        let flows_until = if last == 0 { expires.max(1) } else { 0 };
        Self { good_until, peer_until, suspect_until, former_until, scale, flows_until }
    }

    pub(super) fn end(&self) -> u64 {
        let ends = [self.peer_until, self.suspect_until, self.former_until, self.flows_until];
        ends.into_iter().fold(self.good_until, u64::max)
    }

    pub(super) fn terms(&self) -> Terms {
        let is_known = self.good_until != 0 || self.peer_until != 0;
        let scale = match (is_known, self.suspect_until != 0, self.former_until != 0) {
            (true, ..) => self.scale,
            (_, true, _) => SUSPECT,
            (_, _, true) => FORMER,
            _ => 0,
        };
        Terms {
            expires: self.end(),
            flows: self.flows_until != 0,
            standing: Some(Standing::new(self.good_until, self.peer_until, scale)),
            ..Terms::default()
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

impl Lists {
    /// What is known of a host.
    pub fn standing(&self, source: Source) -> HostStanding {
        self.standings.get(&Network::around(source, 128)).copied().unwrap_or_default()
    }

    /// Changes what is known of a host. What has ended at `now` is forgotten.
    pub fn know(&mut self, source: Source, now: u64, change: impl FnOnce(&mut HostStanding)) -> Result<(), ListError> {
        let network = Network::around(source, 128);
        let before = self.standing(source);
        let mut standing = before.at(now);
        change(&mut standing);
        if standing == before {
            return Ok(());
        }
        let is_new = standing.end() != 0 && !self.standings.contains_key(&network);
        if is_new && self.table.counts().all >= self.ledger.capacity() as usize {
            return Err(ListError::Full {
                list: "known hosts",
                capacity: self.ledger.capacity(),
                what: format!("{network} was"),
            });
        }
        self.suspects -= usize::from(before.suspect_until != 0);
        self.suspects += usize::from(standing.suspect_until != 0);
        if standing.end() == 0 {
            self.standings.remove(&network);
            self.known.remove(&network);
        } else {
            self.standings.insert(network, standing);
            self.known.insert(network, standing.end());
        }
        self.write(Kind::Known, &network)?;
        self.announce(Kind::Known, &network)?;
        Ok(())
    }

    /// Notes until when a flow is known good.
    pub fn know_flow(&mut self, source: Source, port: u16, good_until: u64) -> Result<(), ListError> {
        let network = Network::around(source, 128);
        self.flows.good(source, port, good_until).map_err(|source| ListError::Kernel { network, source })
    }

    /// Ends all suspicion.
    pub fn end_suspicion(&mut self, now: u64) -> Result<(), ListError> {
        let suspects = self.standings.iter().filter(|(_, standing)| standing.suspect_until != 0);
        let suspects: Vec<Source> = suspects.map(|(network, _)| network.first()).collect();
        suspects.into_iter().try_for_each(|source| self.know(source, now, |standing| standing.suspect_until = 0))
    }

    /// How many hosts are under suspicion.
    pub fn suspects(&self) -> usize {
        self.suspects
    }

    /// Whether a known-good host or a peer lives in `network`.
    pub fn knows_within(&self, network: &Network, now: u64) -> bool {
        let is_known = |host: &Network| {
            self.standings.get(host).is_some_and(|standing| standing.good_until > now || standing.peer_until > now)
        };
        self.known.within(network).iter().any(is_known)
    }

    /// Hosts that something is known of.
    pub fn known_hosts(&self) -> impl Iterator<Item = (&Network, &HostStanding)> {
        self.standings.iter()
    }

    /// Forgets what has ended at `now`.
    pub fn tidy(&mut self, now: u64) -> Result<(), ListError> {
        let over: Vec<Source> = self
            .standings
            .iter()
            .filter(|(_, standing)| standing.at(now) != **standing)
            .map(|(network, _)| network.first())
            .collect();
        for source in over {
            self.know(source, now, |_| {})?;
        }
        self.flows.tidy(now)?;
        Ok(())
    }

    /// Takes out what is listed of the ports of an address.
    pub fn remove_flows(&mut self, network: &Network) -> Result<Vec<Entry>, ListError> {
        let all = (List::Block, *network, 1, Owner::Manual)..=(List::Block, *network, u16::MAX, Owner::LAST);
        let ids: Vec<_> = self.entries.range(all).map(|(id, _)| *id).collect();
        Ok(self.take_out(ids)?.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Brings the kernel's tables up to date for one flow.
    pub(super) fn refresh_flow(&mut self, network: &Network, port: u16) -> Result<(), ListError> {
        let flows = (List::Block, *network, port, Owner::Manual)..=(List::Block, *network, port, Owner::LAST);
        let until = self.entries.range(flows).map(|(_, entry)| entry.expires).max().unwrap_or(0);
        let source = network.first();
        self.flows.ban(source, port, until).map_err(|source| ListError::Kernel { network: *network, source })?;
        let all = (List::Block, *network, 1, Owner::Manual)..=(List::Block, *network, u16::MAX, Owner::LAST);
        let last = self.entries.range(all).map(|(_, entry)| entry.expires).max().unwrap_or(0);
        self.know(source, 0, |standing| standing.flows_until = last)
    }
}
