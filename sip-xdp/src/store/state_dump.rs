//! The state dump that one instance passes to another, for a standby host or a rebuild: entries,
//! acceptances, offences, history. Exporting reads maps and store, with or without a daemon; the
//! other daemon imports it, in parts that fit into a request.

use std::net::IpAddr;

use anyhow::Result;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sip_xdp_common::abi::layout::{List, Owner};
use sip_xdp_common::abi::names;

use crate::bans::offences::OffenceRecord;
use crate::config::HostName;
use crate::dataplane::counters::{self, SCHEMA};
use crate::dataplane::pins::Pins;
use crate::dataplane::tables::ledger::{Entry, Ledger, Tier};
use crate::detect::KindName;
use crate::dns::Hosts;
use crate::net::network::Network;
use crate::sip::transport::Transport;
use crate::store::{self, HistoryRow, State, Store};
use crate::sys::clock;
use crate::sys::paths::Paths;

/// Maximum size of a part in bytes of JSON: less than a request.
const PART: usize = 40_000;

/// The owner of an exported entry. Those of the configuration, of host names and of tools are
/// recreated by their owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DumpedOwner {
    /// An operator.
    Manual,
    /// The detector.
    Auto,
}

/// An entry of the block or the trust list.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct DumpedEntry {
    /// The network.
    pub network: Network,
    /// The port of a flow; `None` for the whole network.
    pub port: Option<u16>,
    /// Whose it is.
    pub owner: DumpedOwner,
    /// Why.
    pub reason: String,
    /// Evidence tier.
    pub tier: Option<Tier>,
    /// Since when.
    pub added: Timestamp,
    /// Until when; none for good.
    pub expires: Option<Timestamp>,
}

/// A host name that is trusted by command.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Host {
    /// The name.
    pub name: HostName,
    /// Why.
    pub reason: String,
    /// Since when.
    pub added: Timestamp,
    /// Until when; none for good.
    pub expires: Option<Timestamp>,
}

/// A user that was accepted with credentials.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "AcceptedUser")]
pub struct Accepted {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// By this transport; UDP in dumps that do not say.
    #[serde(default)]
    pub transport: Transport,
    /// User.
    pub user: String,
    /// When for the first time.
    pub first: Timestamp,
    /// When for the last time.
    pub last: Timestamp,
    /// End of the registration.
    pub until: Timestamp,
}

/// The offences of a network.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Offence {
    /// The network.
    pub network: Network,
    /// Number of bans.
    pub count: u32,
    /// Time of the last one.
    pub last: Timestamp,
}

/// A past or current ban.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PastBan {
    /// The network.
    pub network: Network,
    /// The port, if the ban covered only that.
    pub port: Option<u16>,
    /// The kind of evidence.
    #[schemars(with = "KindName")]
    pub kind: String,
    /// Evidence tier.
    pub tier: Option<Tier>,
    /// Why.
    pub reason: String,
    /// Start.
    pub from: Timestamp,
    /// Scheduled end.
    pub until: Option<Timestamp>,
    /// When it ended, if it has.
    pub ended: Option<Timestamp>,
    /// What ended it: `expired`, `command` or `displaced`.
    #[schemars(extend("enum" = ["expired", "command", "displaced", null]))]
    pub ended_by: Option<String>,
    /// Packets that were dropped for it until it ended; none if nobody counted.
    #[serde(default)]
    pub hits: Option<u64>,
}

impl From<HistoryRow> for PastBan {
    fn from(row: HistoryRow) -> Self {
        let HistoryRow { ban, end, .. } = row;
        Self {
            network: ban.network,
            port: ban.port,
            kind: ban.kind,
            tier: ban.tier,
            reason: ban.reason,
            from: clock::from_ms(ban.from_ms),
            until: ban.until_ms.map(clock::from_ms),
            ended: end.as_ref().map(|end| clock::from_ms(end.at_ms)),
            hits: end.as_ref().and_then(|end| end.hits),
            ended_by: end.map(|end| end.by),
        }
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Export {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When it was made.
    pub time: Timestamp,
    /// The block list, without entries of the configuration.
    pub block: Vec<DumpedEntry>,
    /// The trust list, without entries of the configuration.
    pub trust: Vec<DumpedEntry>,
    /// Host names that are trusted by command.
    pub hosts: Vec<Host>,
    /// Accepted users.
    pub accepted: Vec<Accepted>,
    /// Offences.
    pub offences: Vec<Offence>,
    /// The ban history.
    pub history: Vec<PastBan>,
}

/// A part of a state dump.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(tag = "of", content = "rows", rename_all = "snake_case")]
pub enum Part {
    /// Trust entries.
    Trust(Vec<DumpedEntry>),
    /// Block entries.
    Block(Vec<DumpedEntry>),
    /// Host names.
    Hosts(Vec<Host>),
    /// Accepted users.
    Accepted(Vec<Accepted>),
    /// Offences.
    Offences(Vec<Offence>),
    /// Ban history.
    History(Vec<PastBan>),
}

impl Part {
    /// The names of all sections.
    pub const NAMES: [&'static str; 6] =
        ["trust", "hosts", "accepted", "offences", "block", "history"];

    /// The name of its section.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Trust(_) => "trust",
            Self::Block(_) => "block",
            Self::Hosts(_) => "hosts",
            Self::Accepted(_) => "accepted",
            Self::Offences(_) => "offences",
            Self::History(_) => "history",
        }
    }
}

impl Export {
    /// Collects it from the maps, or from the store if nothing is loaded; sections other than the
    /// lists come from the store.
    pub fn collect(paths: &Paths) -> Result<Self> {
        let pins = Pins::new(&paths.pin_dir);
        pins.check_access()?;
        let (mut state, mut history) = (State::default(), Vec::new());
        if paths.store_file().exists() {
            let store = Store::read_only(&paths.store_file())?;
            (state, history) = (store.state()?, store.bans()?);
        }
        let entries = if pins.is_loaded() {
            Ledger::new(pins.open(names::LEDGER)?)?.entries()?
        } else {
            std::mem::take(&mut state.entries)
        };
        let now = clock::now();
        let of = |list: List| {
            let live = entries
                .iter()
                .filter(|(of, entry)| *of == list && !entry.dry_run && !entry.is_over(now));
            live.filter_map(|(_, entry)| listed(entry)).collect()
        };
        let (hosts, _) = Hosts::open(paths.hosts_file());
        let hosts = hosts.given().iter().map(|(name, given)| Host {
            name: name.clone(),
            reason: given.reason.clone(),
            added: clock::from_ms(given.added_ms),
            expires: clock::to_wall(given.expires),
        });
        Ok(Self {
            schema: SCHEMA,
            time: counters::now(),
            block: of(List::Block),
            trust: of(List::Trust),
            hosts: hosts.collect(),
            accepted: state.accepted.into_iter().map(accepted).collect(),
            offences: state.offences.into_iter().map(offence).collect(),
            history: history.into_iter().map(PastBan::from).collect(),
        })
    }

    /// Splits it into parts. Trust comes first, so that its networks are never blocked in between.
    pub fn parts(self) -> Vec<Part> {
        let mut parts = Vec::new();
        parts.extend(cut(self.trust).into_iter().map(Part::Trust));
        parts.extend(cut(self.hosts).into_iter().map(Part::Hosts));
        parts.extend(cut(self.accepted).into_iter().map(Part::Accepted));
        parts.extend(cut(self.offences).into_iter().map(Part::Offences));
        parts.extend(cut(self.block).into_iter().map(Part::Block));
        parts.extend(cut(self.history).into_iter().map(Part::History));
        parts
    }
}

/// Splits rows into chunks that fit into a request.
pub fn cut<T: Serialize>(rows: Vec<T>) -> Vec<Vec<T>> {
    let (mut pieces, mut piece, mut size) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let length = serde_json::to_string(&row).map_or(0, |text| text.len()) + 1;
        if size + length > PART && !piece.is_empty() {
            pieces.push(std::mem::take(&mut piece));
            size = 0;
        }
        size += length;
        piece.push(row);
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

fn listed(entry: &Entry) -> Option<DumpedEntry> {
    let owner = match entry.owner {
        Owner::Manual => DumpedOwner::Manual,
        Owner::Auto => DumpedOwner::Auto,
        Owner::Config | Owner::Host | Owner::Tool | Owner::Feed => return None,
    };
    Some(DumpedEntry {
        network: entry.network,
        port: entry.port,
        owner,
        reason: entry.reason.clone(),
        tier: entry.tier,
        added: clock::from_ms(entry.added_ms),
        expires: clock::to_wall(entry.expires),
    })
}

fn accepted(row: store::Accepted) -> Accepted {
    Accepted {
        address: row.address,
        port: row.port,
        transport: row.transport,
        user: row.user,
        first: clock::from_ms(row.first_ms),
        last: clock::from_ms(row.last_ms),
        until: clock::from_ms(row.until_ms),
    }
}

fn offence(row: OffenceRecord) -> Offence {
    Offence { network: row.network, count: row.count, last: clock::from_ms(row.last_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offences(count: u32) -> Vec<Offence> {
        let network = |n: u32| Network::host(IpAddr::from(n.to_be_bytes()));
        (0..count)
            .map(|n| Offence { network: network(n), count: n, last: Timestamp::UNIX_EPOCH })
            .collect()
    }

    #[test]
    fn pieces_fit_and_are_all_of_it() {
        for count in [0, 1, 500, 5_000] {
            let pieces = cut(offences(count));
            assert_eq!(pieces.concat(), offences(count));
            for piece in pieces {
                assert!(
                    serde_json::to_string(&Part::Offences(piece)).unwrap().len() < PART + 1_000
                );
            }
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let network: Network = "2001:db8::/64".parse().unwrap();
        let export = Export {
            schema: SCHEMA,
            time: Timestamp::UNIX_EPOCH,
            block: vec![DumpedEntry {
                network,
                port: None,
                owner: DumpedOwner::Auto,
                reason: "ü \"why\"".to_owned(),
                tier: Some(Tier::Unproven),
                added: Timestamp::UNIX_EPOCH,
                expires: Some(Timestamp::UNIX_EPOCH),
            }],
            trust: Vec::new(),
            hosts: Vec::new(),
            accepted: Vec::new(),
            offences: offences(2),
            history: Vec::new(),
        };
        let text = serde_json::to_string(&export).unwrap();
        assert_eq!(serde_json::from_str::<Export>(&text).unwrap(), export);
        let parts = export.parts();
        assert_eq!(parts.iter().map(Part::name).collect::<Vec<_>>(), ["offences", "block"]);
    }
}
