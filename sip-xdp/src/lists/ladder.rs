//! Who is on the ladder ([`sip_xdp_common::limits::ladder`]): sources that offended by evidence
//! that could be forged, hosts and IPv6 networks.

use std::collections::{BTreeMap, BTreeSet};

use sip_xdp_common::abi::layout::{LADDERS, List};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::ladder::Ladder;
use sip_xdp_common::lookup::networks::Kind;

use super::{ListError, Lists};
use crate::net::network::Network;

/// How many may be on it, in tables for `networks`: half of the kernel's map, and a sixteenth of
/// the capacity. Then the one makes room that has been without an offence for longest.
pub(super) const fn most(networks: usize) -> usize {
    let (map, share) = (LADDERS / 2, networks / 16);
    if share < map { share } else { map }
}

/// Until when each is on it, and at which step.
#[derive(Debug, Default)]
pub(super) struct Places {
    by_network: BTreeMap<Network, (u64, u32)>,
    ends: BTreeSet<(u64, Network)>,
}

impl Places {
    pub(super) fn until(&self, network: &Network) -> Option<u64> {
        self.by_network.get(network).map(|(until, _)| *until)
    }

    pub(super) fn set(&mut self, network: Network, until: u64, step: u32) {
        self.remove(&network);
        self.by_network.insert(network, (until, step));
        self.ends.insert((until, network));
    }

    fn remove(&mut self, network: &Network) {
        if let Some((until, _)) = self.by_network.remove(network) {
            self.ends.remove(&(until, *network));
        }
    }

    fn first_to_end(&self) -> Option<(u64, Network)> {
        self.ends.first().copied()
    }
}

impl Lists {
    /// The step of exactly a network, if it is on the ladder at `now`.
    pub fn ladder_step(&self, network: &Network, now: u64) -> Option<u32> {
        self.ladder.by_network.get(network).filter(|(until, _)| *until > now).map(|(_, step)| *step)
    }

    /// The networks on the ladder at `now` that lie in this one, or around it; by address.
    pub fn metered_places(&self, network: &Network, now: u64) -> Vec<Network> {
        let live = self.ladder.by_network.iter().filter(|(_, (until, _))| *until > now);
        let mut all: Vec<Network> =
            live.map(|(place, _)| *place).filter(|place| network.meets(place)).collect();
        all.sort_unstable();
        all
    }

    /// How many may be on it.
    pub(super) fn most_metered(&self) -> usize {
        most(self.capacity()).max(1)
    }

    /// How many are on the ladder.
    pub fn metered(&self) -> usize {
        self.ladder.by_network.len()
    }

    /// Puts a network on the ladder until then, at this step. Its modes ([`Ladder::modes`]) last as
    /// long as it is there. When there is no room in the table of networks, it is not.
    pub fn meter(
        &mut self,
        network: Network,
        step: u32,
        modes: u32,
        until: u64,
        now: u64,
    ) -> Result<(), ListError> {
        let kernel = |source| ListError::Kernel { network, source };
        let is_new = self.ladder.until(&network).is_none();
        if is_new
            && self.ladder.by_network.len() >= self.most_metered()
            && let Some((_, first)) = self.ladder.first_to_end()
        {
            self.unmeter(&first)?;
        }
        let quotas = self.quotas();
        let room = quotas.with_feeds(quotas.open(), self.feeds.distinct());
        if is_new && self.table.counts().all >= room {
            return Err(self.full(List::Block, format!("{network} was")));
        }
        let before =
            self.ladders.get(&network).filter(|ladder| ladder.until > now).unwrap_or_default();
        // An offender of this week stays, whatever anybody sends in its name.
        let until = until.max(before.until);
        let after = before.moved(step, until, now);
        let after = Ladder { modes: before.modes | modes, ..after };
        self.ladders.set(&network, after).map_err(kernel)?;
        self.ladder.set(network, until, step);
        self.limited.insert(network, until);
        self.write(Kind::Metered, &network)?;
        Ok(self.announce(Kind::Metered, &network)?)
    }

    /// Takes a network off the ladder.
    pub fn unmeter(&mut self, network: &Network) -> Result<(), ListError> {
        self.ladder.remove(network);
        self.limited.remove(network);
        self.write(Kind::Metered, network)?;
        self.announce(Kind::Metered, network)?;
        self.ladders
            .remove(network)
            .map_err(|source| ListError::Kernel { network: *network, source })
    }

    /// Lets the one go that has been without an offence for longest. Returns whether there was one,
    /// and there is room below `limit` without it.
    pub(super) fn displace_metered(&mut self, limit: usize) -> Result<bool, ListError> {
        let helps = self.table.counts().all <= limit;
        let Some((_, network)) = self.ladder.first_to_end().filter(|_| helps) else {
            return Ok(false);
        };
        self.unmeter(&network)?;
        Ok(true)
    }

    /// Takes all off.
    pub fn unmeter_all(&mut self) -> Result<(), ListError> {
        let all: Vec<Network> = self.ladder.by_network.keys().copied().collect();
        all.iter().try_for_each(|network| self.unmeter(network))
    }

    /// Takes off those whose day is over at `now`.
    pub(super) fn tidy_ladder(&mut self, now: u64) -> Result<(), ListError> {
        while let Some((until, network)) = self.ladder.first_to_end()
            && until <= now
        {
            self.unmeter(&network)?;
        }
        Ok(())
    }

    /// Notes that a nonce, by its digest, was given to a source on the ladder and to nobody else,
    /// or that this is so no longer.
    pub fn own_nonce(&mut self, source: IpKey, nonce: u64, is_own: bool) -> Result<(), ListError> {
        let network = Network::around(source, 128);
        self.ladders
            .own(&source, nonce, is_own)
            .map_err(|source| ListError::Kernel { network, source })
    }

    /// Refuses the passwords of a user, by its digest, from a source until then; 0 ends that. The
    /// source must be on the ladder.
    pub fn refuse_user(&mut self, source: IpKey, user: u64, until: u64) -> Result<(), ListError> {
        let network = Network::around(source, 128);
        self.ladders
            .refuse(&source, user, until)
            .map_err(|source| ListError::Kernel { network, source })
    }

    /// Takes up who is on the ladder in the kernel.
    pub(super) fn load_ladder(&mut self) -> Result<(), ListError> {
        for (network, Ladder { until, step, .. }) in self.ladders.all()? {
            self.ladder.set(network, until, step);
            self.limited.insert(network, until);
            self.write(Kind::Metered, &network)?;
        }
        Ok(())
    }
}
