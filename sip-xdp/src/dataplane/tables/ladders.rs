//! User space's view of the ladder: sources that offended by what could be forged, the nonces that
//! are their own, and the users that are refused ([`sip_xdp_common::limits::ladder`]).

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use sip_xdp_common::abi::layout::LADDERS;
use sip_xdp_common::abi::names;
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::flow::FlowKey;
use sip_xdp_common::limits::ladder::{Ladder, nonce_key, user_key};

use super::ledger::forgive_missing;
use crate::net::network::Network;

/// The three maps.
pub struct Ladders {
    map: HashMap<MapData, FlowKey, Ladder>,
    nonces: HashMap<MapData, u64, u64>,
    users: HashMap<MapData, u64, u64>,
    /// What addresses are hashed with.
    seed: u64,
}

fn key(network: &Network) -> FlowKey {
    FlowKey::new(network.first(), network.bits().into())
}

impl Ladders {
    /// Opens the maps by name, through `open`.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>, seed: u64) -> Result<Self> {
        let map = open(names::LADDERS)?.try_into().context("the ladder cannot be used")?;
        let nonces =
            open(names::OWN_NONCES)?.try_into().context("the table of nonces cannot be used")?;
        let users = open(names::REFUSED_USERS)?
            .try_into()
            .context("the table of refused users cannot be used")?;
        Ok(Self { map, nonces, users, seed })
    }

    /// The place of exactly a network.
    pub fn get(&self, network: &Network) -> Option<Ladder> {
        self.map.get(&key(network), 0).ok()
    }

    /// Puts a network in a place. The kernel may charge it between reading and writing; that is
    /// lost.
    pub fn set(&mut self, network: &Network, ladder: Ladder) -> Result<(), MapError> {
        self.map.insert(key(network), ladder, 0)
    }

    /// Removes a network, if it is listed.
    pub fn remove(&mut self, network: &Network) -> Result<(), MapError> {
        forgive_missing(self.map.remove(&key(network)))
    }

    /// All of them.
    pub fn all(&self) -> Result<Vec<(Network, Ladder)>> {
        let rows = self.map.iter().take(2 * LADDERS);
        let network = |key: FlowKey| Network::around(key.source, key.port.min(128) as u8);
        rows.map(|row| row.map(|(key, ladder)| (network(key), ladder)))
            .collect::<Result<_, _>>()
            .context("the ladder cannot be read")
    }

    /// Notes that a nonce, by its digest, is a source's own, or no longer.
    pub fn own(&mut self, source: &IpKey, nonce: u64, is_own: bool) -> Result<(), MapError> {
        let key = nonce_key(source, nonce, self.seed);
        if is_own {
            return self.nonces.insert(key, 1, 0);
        }
        forgive_missing(self.nonces.remove(&key))
    }

    /// Refuses the passwords of a user, by its digest, from a source until then; 0 ends that.
    pub fn refuse(&mut self, source: &IpKey, user: u64, until: u64) -> Result<(), MapError> {
        let key = user_key(source, user, self.seed);
        if until != 0 {
            return self.users.insert(key, until, 0);
        }
        forgive_missing(self.users.remove(&key))
    }
}
