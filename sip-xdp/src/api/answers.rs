//! What the daemon answers: one type for each kind of answer, the same on both sides of the socket
//! and in the JSON that commands print.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::event_stream::Latest;
use crate::config::{HostName, SourceRules};
use crate::dataplane::attach::offloads::Offload;
use crate::dataplane::tables::ledger::Entry;
use crate::detect::View;
use crate::feeds::engine::FeedRow;
use crate::lists::Fill;
use crate::net::network::Network;

/// An answer, as it is sent.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// To `status`.
    Status(Box<DaemonStatus>),
    /// To a network that was listed.
    Listed(Listed),
    /// To a host name that is trusted from now on.
    HostTrusted(HostTrusted),
    /// To entries that were taken off a list.
    Removed(Removed),
    /// To a host name that is trusted no longer.
    HostRemoved(HostRemoved),
    /// To rows of a file.
    Imported(Imported),
    /// To `explain`.
    Known(Box<Known>),
    /// To what happened lately.
    Recent(Box<Latest>),
    /// To `feed list`.
    Feeds(Vec<FeedRow>),
    /// To `feed sync`.
    Rounds(Rounds),
    /// To `confirm`.
    Confirmed(Confirmed),
    /// To `reload`.
    Applied(Applied),
    /// To `unload`.
    Unloaded(Unloaded),
}

/// A running daemon.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)] // a daemon of an earlier version has fewer fields
pub struct DaemonStatus {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The configuration file that it reads.
    pub config: PathBuf,
    /// Sources that the detector keeps evidence of.
    pub watched_sources: usize,
    /// Volume bans nobody yet (`learn`).
    pub learning: bool,
    /// The registrar rejects accounts that it accepted within a day; rejections ban nobody.
    pub registrar_failing: bool,
    /// The server's responses are seen; without them volume bans nobody.
    pub sees_responses: bool,
    /// Bounded tables and how full they are.
    pub tables: Vec<Fill>,
    /// Host names that are followed.
    pub hosts: Vec<HostRow>,
    /// Feeds.
    pub feeds: Vec<FeedRow>,
    /// Notifications; none if nobody is notified.
    pub notify: Option<NotifyStatus>,
    /// The CrowdSec local API; none if bans are not published.
    pub crowdsec: Option<CrowdsecStatus>,
    /// Where SIP servers send copies of messages.
    pub hep: Vec<HepStatus>,
    /// The confirmation that `run --confirm` waits for; none if it waits for none.
    pub confirm: Option<ConfirmStatus>,
    /// Configured interfaces that do not exist.
    pub missing: Vec<String>,
    /// Interfaces whose program sees, or saw, no packets.
    pub blind: Vec<BlindInterface>,
    /// The listener of metrics and web page.
    pub metrics: MetricsStatus,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// A host name that is followed through DNS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostRow {
    /// The name.
    pub name: HostName,
    /// The list that its addresses are put on: `trust` or `admit`.
    pub purpose: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Seconds since DNS last answered; none if it never did.
    pub age: Option<u64>,
    /// What went wrong since.
    pub error: Option<String>,
    /// `manual`, or `config`.
    pub owner: String,
    /// Why it is followed.
    pub reason: String,
    /// Until when; none for good.
    pub expires: Option<Timestamp>,
}

/// How notifications are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifyStatus {
    /// Messages that were sent.
    pub sent: u64,
    /// Messages that failed.
    pub failed: u64,
    /// Events that were too many to tell one by one.
    pub suppressed: u64,
    /// What goes wrong at present, by channel.
    pub errors: BTreeMap<String, String>,
}

/// How publishing to a CrowdSec local API is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrowdsecStatus {
    /// Its address.
    pub url: String,
    /// The login of this machine there.
    pub login: String,
    /// Bans that were published.
    pub published: u64,
    /// Bans that were withdrawn.
    pub withdrawn: u64,
    /// Bans that found no room in the queue.
    pub dropped: u64,
    /// Bans that wait to be published.
    pub waiting: usize,
    /// What goes wrong at present.
    pub error: Option<String>,
}

/// A place where HEP is taken, and its packets by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HepStatus {
    /// Where, as the configuration says.
    pub listen: String,
    /// Whether it listens.
    pub listening: bool,
    /// Why not.
    pub error: Option<String>,
    /// Messages that were judged.
    pub taken: u64,
    /// Messages of transports that are read on the wire, or not of SIP.
    pub ignored: u64,
    /// Packets without the key, or of nobody who may send.
    pub refused: u64,
    /// Packets that are no HEP, or compressed.
    pub malformed: u64,
    /// Messages that came faster than they are read.
    pub lost: u64,
}

/// A confirmation that is awaited, or was missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmStatus {
    /// It is awaited.
    pub pending: bool,
    /// Nobody confirmed in time: nothing is filtered.
    pub detached: bool,
    /// Until when it is awaited, or since when it is detached.
    pub until: Option<Timestamp>,
}

/// An interface whose program was shown none of its packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlindInterface {
    /// Its configured name.
    pub interface: String,
    /// When that was noticed.
    pub since: Timestamp,
    /// Packets that came in and were not shown to the program.
    pub packets: u64,
    /// `generic` if generic mode took over; none if nothing is filtered.
    pub action: Option<String>,
}

/// The listener of metrics and web page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsStatus {
    /// The address and port; none if it is off.
    pub listen: Option<String>,
    /// Why it cannot listen.
    pub error: Option<String>,
}

/// A network that was blocked or trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The network.
    pub network: Network,
    /// Until when; none for good.
    pub expires: Option<Timestamp>,
    /// Of a trusted network: whether the block list has it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was_blocked: Option<bool>,
}

/// A host name that is trusted from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostTrusted {
    /// The name.
    pub host: HostName,
    /// Until when; none for good.
    pub expires: Option<Timestamp>,
    /// The addresses that are known of it already.
    pub addresses: Vec<IpAddr>,
}

/// An entry of a list that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedEntry {
    /// The network.
    pub network: Network,
    /// The port of a flow; none for all of the network.
    pub port: Option<u16>,
    /// Whose entry it was.
    pub owner: String,
    /// The feed, tool or host name whose claim it was.
    pub claimant: Option<String>,
    /// Why it was there.
    pub reason: String,
}

impl From<&Entry> for RemovedEntry {
    fn from(entry: &Entry) -> Self {
        Self {
            network: entry.network,
            port: entry.port,
            owner: entry.owner.name().to_owned(),
            claimant: entry.claimant(),
            reason: entry.reason.clone(),
        }
    }
}

/// Entries that were taken off a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The entries.
    pub removed: Vec<RemovedEntry>,
    /// Of the trust list: what else still lists the network.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub still: Option<StillTrusted>,
}

/// What still trusts a network whose entry was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StillTrusted {
    /// The configuration file does.
    pub still_trusted_by_config: bool,
    /// The host name whose address it is.
    pub still_trusted_by_host: Option<String>,
}

/// A host name that is trusted no longer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostRemoved {
    /// The name.
    pub host: HostName,
    /// Its addresses that were trusted.
    pub removed: Vec<RemovedEntry>,
    /// The configuration file still trusts it.
    pub still_trusted_by_config: bool,
}

/// What became of rows of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Rows that were taken up.
    pub added: usize,
    /// Rows that were known already, or over.
    pub kept: usize,
    /// Rows that were refused.
    pub refused: Vec<Refused>,
}

/// A row that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The row.
    pub what: String,
    /// Why.
    pub why: String,
}

/// What the daemon knows of an address beside the kernel's tables.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Known {
    /// What the filter was told at load time.
    pub settings: SourceRules,
    /// The evidence.
    pub known: View,
    /// Why it is never banned.
    pub never_banned: Option<String>,
    /// Volume bans nobody yet.
    pub learning: bool,
    /// The registrar rejects its own users.
    pub registrar_failing: bool,
}

/// The rounds of feeds that `feed sync` waits for, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rounds {
    /// The number of each feed's round.
    pub rounds: BTreeMap<String, u64>,
}

/// A filter that may go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Always true.
    pub confirmed: bool,
    /// It was detached already, and is attached again.
    pub late: bool,
    /// What is filtered now.
    pub applied: String,
}

/// A configuration that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// What is filtered now.
    pub applied: String,
}

/// Interfaces that are not filtered any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unloaded {
    /// The interfaces.
    pub unloaded: Vec<String>,
    /// Offloads that had been switched off for the filter.
    pub offloads: Vec<Offload>,
}
