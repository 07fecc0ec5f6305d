//! Responses of the daemon: one type per kind, the same on both sides of the socket and in the JSON
//! that commands print.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::event_stream::Latest;
use crate::config::{HostName, Policy, PortRange, SourceRules};
use crate::dataplane::attach::offloads::Offload;
use crate::dataplane::tables::ledger::{Entry, OwnerName};
use crate::detect::View;
use crate::feeds::engine::FeedRow;
use crate::lists::Fill;
use crate::net::network::Network;

/// A response.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// To `status`.
    Status(Box<DaemonStatus>),
    /// To an added network.
    Listed(Listed),
    /// To a newly trusted host name.
    HostTrusted(HostTrusted),
    /// To removed entries.
    Removed(Removed),
    /// To a removed host name.
    HostRemoved(HostRemoved),
    /// To imported rows.
    Imported(Imported),
    /// To `explain`.
    Known(Box<Known>),
    /// To a request for recent events.
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
#[derive(Debug, Clone, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(default)] // a daemon of an earlier version has fewer fields
pub struct DaemonStatus {
    /// Process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The configuration file that it reads.
    pub config: PathBuf,
    /// The policy in force.
    #[serde(default)]
    pub policy: Policy,
    /// The SIP ports.
    #[serde(default)]
    pub ports: Vec<PortRange>,
    /// Number of sources that the detector watches.
    pub watched_sources: usize,
    /// Addresses whose calls the server takes without credentials.
    pub served_sources: usize,
    /// Volume bans nobody yet (`learn`).
    pub learning: bool,
    /// Whether the registrar rejects accounts that it accepted within a day; rejections then do not
    /// ban.
    pub registrar_failing: bool,
    /// Whether the server's responses are seen; without them volume does not ban.
    pub sees_responses: bool,
    /// Whether the server gives the same nonces to several sources; those prove no address.
    #[serde(default)]
    pub shared_nonces: bool,
    /// Bounded tables with their fill levels.
    pub tables: Vec<Fill>,
    /// Followed host names.
    pub hosts: Vec<HostRow>,
    /// Feeds.
    pub feeds: Vec<FeedRow>,
    /// State of notification; `None` without it.
    pub notify: Option<NotifyStatus>,
    /// State of the publication to CrowdSec; `None` without it.
    pub crowdsec: Option<CrowdsecStatus>,
    /// Where SIP servers send copies of messages.
    pub hep: Vec<HepStatus>,
    /// SIP over TCP, as it is read on the wire.
    #[serde(default)]
    pub tcp: TcpStatus,
    /// State of sending HEP; `None` without it.
    #[serde(default)]
    pub hep_export: Option<HepExportStatus>,
    /// TCP connections of banned sources that were ended.
    #[serde(default)]
    pub sockets: SocketsStatus,
    /// State of a trial (`run --confirm`); `None` without one.
    pub confirm: Option<ConfirmStatus>,
    /// Configured interfaces that do not exist.
    pub missing: Vec<String>,
    /// Interfaces whose program sees, or saw, no packets.
    pub blind: Vec<BlindInterface>,
    /// The listener of metrics and web page.
    pub metrics: MetricsStatus,
    /// Warnings for the operator.
    pub warnings: Vec<String>,
}

/// A followed host name.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct HostRow {
    /// The name.
    pub name: HostName,
    /// The list of its addresses: `trust` or `admit`.
    pub purpose: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Seconds since the last complete DNS result; `None` if there never was one.
    pub age: Option<u64>,
    /// Error since then.
    pub error: Option<String>,
    /// `manual`, or `config`.
    pub owner: String,
    /// Reason.
    pub reason: String,
    /// Expiry; `None` for permanent.
    pub expires: Option<Timestamp>,
}

/// State of notification.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct NotifyStatus {
    /// Messages sent.
    pub sent: u64,
    /// Messages that failed.
    pub failed: u64,
    /// Events suppressed by the rate limit.
    pub suppressed: u64,
    /// Current errors by channel.
    pub errors: BTreeMap<String, String>,
}

/// State of the publication to a CrowdSec local API.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct CrowdsecStatus {
    /// URL of the API.
    pub url: String,
    /// Login of this machine there.
    pub login: String,
    /// Bans published.
    pub published: u64,
    /// Bans withdrawn.
    pub withdrawn: u64,
    /// Changes dropped from the full queue.
    pub dropped: u64,
    /// Changes in the queue.
    pub waiting: usize,
    /// Current error.
    pub error: Option<String>,
}

/// SIP over TCP, as it is read on the wire. Counts are those since the daemon started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct TcpStatus {
    /// Connections that are followed.
    pub followed: usize,
    /// Connections that were followed.
    pub connections: u64,
    /// SIP messages that were read, in both directions.
    pub messages: u64,
    /// Connections that speak TLS, which cannot be read.
    pub tls: u64,
    /// Connections that speak WebSocket, which is not read.
    pub websocket: u64,
    /// Bytes that belong to no message, but for TLS and WebSocket.
    pub garbage: u64,
    /// Pieces that were not seen.
    pub lost: u64,
    /// Connections that made room for others.
    pub evicted: u64,
}

impl TcpStatus {
    /// Describes what was not read, if anything.
    pub fn unread(&self) -> Option<String> {
        let Self { tls, websocket, .. } = *self;
        (tls + websocket > 0).then(|| {
            format!(
                "{tls} TLS and {websocket} WebSocket connections to SIP ports were not read since \
                 the start"
            )
        })
    }
}

/// A place where HEP is taken, and its packets by what became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct HepStatus {
    /// Where, as the configuration says.
    pub listen: String,
    /// Whether it listens.
    pub listening: bool,
    /// The error.
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

/// What is sent to a capture server by HEP.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct HepExportStatus {
    /// The server.
    pub server: String,
    /// Bans that were sent.
    pub bans: u64,
    /// Dropped messages that were sent.
    pub packets: u64,
    /// Samples of dropped packets beyond the configured rate.
    pub suppressed: u64,
    /// Bans and samples that could not be sent, or came faster than they are.
    pub lost: u64,
    /// The error.
    pub error: Option<String>,
}

/// The destruction of TCP sockets of banned sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct SocketsStatus {
    /// Sockets that were destroyed.
    pub destroyed: u64,
    /// Bans that came faster than sockets are looked for.
    pub lost: u64,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// A trial that is running, or ended unconfirmed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ConfirmStatus {
    /// Whether a confirmation is awaited.
    pub pending: bool,
    /// Whether it ended unconfirmed: nothing is filtered.
    pub detached: bool,
    /// The deadline.
    pub until: Option<Timestamp>,
}

/// An interface whose program sees, or saw, no packets.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct BlindInterface {
    /// Configured name.
    pub interface: String,
    /// Time of detection.
    pub since: Timestamp,
    /// Packets received without the program seeing them.
    pub packets: u64,
    /// `generic` if generic mode is in use instead; `None` if nothing is filtered.
    pub action: Option<String>,
}

/// The listener of metrics and web page.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct MetricsStatus {
    /// Address and port; `None` if it is off.
    pub listen: Option<String>,
    /// Why it cannot listen.
    pub error: Option<String>,
}

/// An added network.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Listed {
    /// The network.
    pub network: Network,
    /// Expiry; `None` for permanent.
    pub expires: Option<Timestamp>,
    /// For trust: whether the block list has it as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was_blocked: Option<bool>,
}

/// A newly trusted host name.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct HostTrusted {
    /// The name.
    pub host: HostName,
    /// Expiry; `None` for permanent.
    pub expires: Option<Timestamp>,
    /// Its addresses known so far.
    pub addresses: Vec<IpAddr>,
}

/// A removed entry.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct RemovedEntry {
    /// The network.
    pub network: Network,
    /// The port of a flow; `None` for the whole network.
    pub port: Option<u16>,
    /// Owner.
    #[schemars(with = "OwnerName")]
    pub owner: String,
    /// Claimant: feed, tool or host name.
    pub claimant: Option<String>,
    /// Reason.
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

/// Removed entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Removed {
    /// The entries.
    pub removed: Vec<RemovedEntry>,
    /// For trust: remaining trust in the network.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub still: Option<StillTrusted>,
    /// For a pardon: whether `suspects` names any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspect: bool,
    /// For a pardon: what was limited as a suspect: the network, hosts and networks in it, and
    /// those around it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspects: Vec<Network>,
    /// For a pardon: users whose passwords were refused from there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
    /// For a pardon: accounts that earned no standing there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expelled: Vec<String>,
}

impl Removed {
    /// Whether nothing was in force.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty()
            && self.suspects.is_empty()
            && self.refused.is_empty()
            && self.expelled.is_empty()
    }
}

/// Remaining trust in a network whose entry was removed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct StillTrusted {
    /// Whether the configuration file trusts it.
    pub still_trusted_by_config: bool,
    /// The trusted host name that has this address.
    pub still_trusted_by_host: Option<String>,
}

/// A host name that was removed.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct HostRemoved {
    /// The name.
    pub host: HostName,
    /// Its removed addresses.
    pub removed: Vec<RemovedEntry>,
    /// Whether the configuration file still trusts it.
    pub still_trusted_by_config: bool,
}

/// The result of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Imported {
    /// Rows added.
    pub added: usize,
    /// Rows that were known already, or expired.
    pub kept: usize,
    /// Rows refused.
    pub refused: Vec<Refused>,
}

/// A refused row.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Refused {
    /// The row.
    pub what: String,
    /// Reason.
    pub why: String,
}

/// The daemon's state of an address, besides the kernel's tables.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Known {
    /// The settings in force.
    pub settings: SourceRules,
    /// The evidence.
    pub known: View,
    /// Why it is never banned, if so.
    pub never_banned: Option<String>,
    /// Whether the learning period is on.
    pub learning: bool,
    /// Whether the registrar rejects its own users.
    pub registrar_failing: bool,
}

/// The rounds of feeds to wait for, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rounds {
    /// The number of each feed's round.
    pub rounds: BTreeMap<String, u64>,
}

/// A confirmed trial.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Confirmed {
    /// Always true.
    #[schemars(extend("const" = true))]
    pub confirmed: bool,
    /// Whether it had been detached, and is attached again.
    pub late: bool,
    /// The filtered interfaces.
    pub applied: String,
}

/// An applied configuration.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Applied {
    /// The filtered interfaces.
    pub applied: String,
}

/// Detached interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Unloaded {
    /// The interfaces.
    pub unloaded: Vec<String>,
    /// Offloads that were restored, or could not be.
    pub offloads: Vec<Offload>,
}
