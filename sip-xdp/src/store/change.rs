//! What the store is told, and what it tells.

use std::net::IpAddr;

use sip_xdp_common::abi::layout::{List, Owner};

use crate::bans::offences::OffenceRecord;
use crate::dataplane::tables::ledger::{Entry, Tier};
use crate::lists::EntryChange;
use crate::net::network::Network;
use crate::sip::transport::Transport;
use crate::sys::clock;

/// One thing that has changed and is to survive a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An entry was added, or replaced its owner's earlier one.
    Put(List, Entry),
    /// An owner's entry was taken out: for a whole network, or for one port of a host.
    Remove(List, Network, Option<u16>, Owner),
    /// These are all entries that there are; what else the store has is taken out.
    Entries(Vec<(List, Entry)>),
    /// Somebody was banned, for the so-many-th time.
    Offence(OffenceRecord),
    /// What a network did is forgotten.
    Pardon(Network),
    /// A ban began.
    Banned(Ban),
    /// The bans of a network, or of one port of a host, ended.
    Ended {
        /// The network.
        network: Network,
        /// The port, if only that was banned.
        port: Option<u16>,
        /// When and how.
        end: End,
    },
    /// A ban that another instance has told, unless it is known.
    Past(Ban, Option<End>),
    /// An accepted user that strangers try passwords for. Of an earlier row of the same start the
    /// counts are replaced.
    Sprayed(Sprayed),
    /// The server takes calls of this address without credentials, at this time in milliseconds
    /// since 1970.
    Served(IpAddr, u64),
    /// A user was accepted with credentials. Of an earlier row the time of the first acceptance is
    /// kept.
    Accepted(Accepted),
    /// Whoever was accepted from this address, or answered there, is forgotten.
    Forgotten(IpAddr),
    /// Somebody answered a request of ours.
    Peer(Peer),
    /// Something that somebody wants back under this name.
    Note {
        /// The name.
        name: String,
        /// What was noted.
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
    /// Whether it is about entries, which are never lost.
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
    /// When for the last time.
    pub last_ms: u64,
    /// When its registration ends, or has ended.
    pub until_ms: u64,
}

/// An address that answered a request of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The address.
    pub address: IpAddr,
    /// How long it counts as a peer, in milliseconds since 1970.
    pub until_ms: u64,
}

/// A ban, as the history keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// The network.
    pub network: Network,
    /// The port, if only that was banned.
    pub port: Option<u16>,
    /// The kind of evidence.
    pub kind: String,
    /// How sure the evidence was.
    pub tier: Option<Tier>,
    /// Why.
    pub reason: String,
    /// When it began, in milliseconds since 1970.
    pub from_ms: u64,
    /// When it was to end, if ever.
    pub until_ms: Option<u64>,
}

impl Ban {
    /// The ban that an entry of the block list is.
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
    /// The user.
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

/// A ban of the past or of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// Its number. Later bans have higher ones.
    pub id: i64,
    /// The ban.
    pub ban: Ban,
    /// How it ended, if it has.
    pub end: Option<End>,
}

/// What survived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The entries of both lists that have not ended.
    pub entries: Vec<(List, Entry)>,
    /// Who was banned how often, in the last 30 days.
    pub offences: Vec<OffenceRecord>,
    /// Who was accepted, in the last 30 days.
    pub accepted: Vec<Accepted>,
    /// Who still counts as a peer.
    pub peers: Vec<Peer>,
    /// The notes, by name.
    pub notes: Vec<(String, Vec<u8>)>,
}
