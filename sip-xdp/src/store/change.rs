//! Changes that the store records, and the state that it returns.

use std::net::IpAddr;

use sip_xdp_common::abi::layout::{List, Owner};

use crate::bans::offences::OffenceRecord;
use crate::dataplane::tables::ledger::{Entry, Tier};
use crate::lists::EntryChange;
use crate::net::network::Network;
use crate::sip::transport::Transport;
use crate::sys::clock;

/// A change that must survive a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An entry was added, or replaced its owner's earlier one.
    Put(List, Entry),
    /// An owner's entry was removed: for a whole network, or for one port of a host.
    Remove(List, Network, Option<u16>, Owner),
    /// The complete set of entries; all others are removed from the store.
    Entries(Vec<(List, Entry)>),
    /// The offences of a network have changed.
    Offence(OffenceRecord),
    /// The offences of a network were pardoned.
    Pardon(Network),
    /// A ban began.
    Banned(Ban),
    /// The bans of a network, or of one port of a host, ended.
    Ended {
        /// The network.
        network: Network,
        /// The port, if the ban covered only that.
        port: Option<u16>,
        /// Time in milliseconds since 1970.
        at_ms: u64,
        /// Cause: `expired` or `command`.
        by: String,
    },
    /// A ban imported from another instance, unless it is known.
    Past(Ban, Option<(u64, String)>),
    /// A user was accepted with credentials. The time of the first acceptance is kept.
    Accepted(Accepted),
    /// All acceptances and the peer state of this address were removed.
    Forgotten(IpAddr),
    /// A host answered a request of the server.
    Peer(Peer),
    /// A named value for later.
    Note {
        /// The name.
        name: String,
        /// The value.
        value: Vec<u8>,
    },
}

impl From<EntryChange> for Change {
    fn from(change: EntryChange) -> Self {
        match change {
            EntryChange::Put(list, entry) => Self::Put(list, entry),
            EntryChange::Remove(list, network, port, owner) => {
                Self::Remove(list, network, port, owner)
            }
        }
    }
}

impl Change {
    /// Whether it concerns entries, which are never lost.
    pub(super) fn is_of_entries(&self) -> bool {
        matches!(self, Self::Put(..) | Self::Remove(..) | Self::Entries(_))
    }
}

/// A user that was accepted with credentials from an address and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The address.
    pub address: IpAddr,
    /// The user.
    pub user: String,
    /// The port.
    pub port: u16,
    /// How it was accepted.
    pub transport: Transport,
    /// First acceptance, in milliseconds since 1970.
    pub first_ms: u64,
    /// Last acceptance, in milliseconds since 1970.
    pub last_ms: u64,
    /// End of the registration, in milliseconds since 1970.
    pub until_ms: u64,
}

/// A host that answered a request of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The address.
    pub address: IpAddr,
    /// End of its peer state, in milliseconds since 1970.
    pub until_ms: u64,
}

/// A ban in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// The network.
    pub network: Network,
    /// The port, if the ban covered only that.
    pub port: Option<u16>,
    /// The kind of evidence.
    pub kind: String,
    /// Evidence tier.
    pub tier: Option<Tier>,
    /// Reason.
    pub reason: String,
    /// Start, in milliseconds since 1970.
    pub from_ms: u64,
    /// Scheduled end; `None` for permanent.
    pub until_ms: Option<u64>,
}

impl Ban {
    /// The ban that an entry of the block list represents.
    pub fn of(kind: &str, entry: &Entry) -> Self {
        Self {
            network: entry.network,
            port: entry.port,
            kind: kind.to_owned(),
            tier: entry.tier,
            reason: entry.reason.clone(),
            from_ms: entry.added_ms,
            until_ms: clock::to_wall(entry.expires).map(clock::to_ms),
        }
    }
}

/// A past or current ban.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// Row number, increasing.
    pub id: i64,
    /// The ban.
    pub ban: Ban,
    /// Actual end; `None` for a current ban.
    pub ended_ms: Option<u64>,
    /// Cause of the end.
    pub ended_by: Option<String>,
}

/// The stored state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The live entries of both lists.
    pub entries: Vec<(List, Entry)>,
    /// Offences of the last 30 days.
    pub offences: Vec<OffenceRecord>,
    /// Acceptances of the last 30 days.
    pub accepted: Vec<Accepted>,
    /// Current peers.
    pub peers: Vec<Peer>,
    /// Named values.
    pub notes: Vec<(String, Vec<u8>)>,
}
