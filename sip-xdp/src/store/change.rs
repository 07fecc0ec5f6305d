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
        /// When and how.
        end: End,
    },
    /// A ban imported from another instance, unless it is known.
    Past(Ban, Option<End>),
    /// An accepted user that strangers try passwords for. Of an earlier row of the same start the
    /// counts are replaced.
    Sprayed(Sprayed),
    /// The server takes calls of this address without credentials, at this time in milliseconds
    /// since 1970.
    Served(IpAddr, u64),
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
    /// User.
    pub user: String,
    /// The port.
    pub port: u16,
    /// How it was accepted.
    pub transport: Transport,
    /// First acceptance, in milliseconds since 1970.
    pub first_ms: u64,
    /// When for the last time.
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
    /// Why.
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

/// How a ban ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// By what: `expired`, `command` or `displaced`.
    pub by: String,
    /// Packets that were dropped for it; none if nobody counted.
    pub hits: Option<u64>,
}

/// An accepted user whose password strangers try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sprayed {
    /// User.
    pub user: String,
    /// When the first try was, in milliseconds since 1970.
    pub from_ms: u64,
    /// When the last one was.
    pub last_ms: u64,
    /// Proven if enough of the tries came from addresses that were the sender's own.
    pub tier: Tier,
    /// Passwords that were rejected.
    pub tries: u64,
    /// Addresses that they came from.
    pub sources: u64,
}

/// An address whose calls the server takes without credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// The address.
    pub address: IpAddr,
    /// When that was seen for the first time, in milliseconds since 1970.
    pub first_ms: u64,
    /// When for the last time.
    pub last_ms: u64,
}

/// A past or current ban.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// Row number, increasing.
    pub id: i64,
    /// The ban.
    pub ban: Ban,
    /// How it ended, if it has.
    pub end: Option<End>,
}

/// What survived.
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
