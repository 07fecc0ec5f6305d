//! Report of a time span for the operator: bans by kind and level, doubtful ones, rules that never
//! fired, users whose passwords are tried, and suggestions. [`gather`] collects the facts from the
//! store and the pinned maps, a replay from its capture; [`judge`] evaluates them.

mod gather;
mod judge;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::config::Detect;
use crate::dataplane::tables::ledger::Tier;
use crate::detect::{KindName, RuleName};
use crate::net::network::Network;
use crate::store::{Accepted, HistoryRow, Served, Sprayed};

pub use gather::gather;
pub use judge::judge;

/// Default span of a report: a week.
pub const SPAN: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3_600);

/// The facts that a report is made of.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The replayed capture, if any.
    pub capture: Option<String>,
    /// Start, in milliseconds since 1970.
    pub from_ms: u64,
    /// End, in milliseconds since 1970.
    pub to_ms: u64,
    /// Bans that began in the span, by start. The hits of active bans are those so far.
    pub bans: Vec<Ban>,
    /// Acceptances in the span and before.
    pub accepted: Vec<Accepted>,
    /// Users whose passwords unknown sources tried.
    pub sprayed: Vec<Sprayed>,
    /// Addresses whose calls the server processed without credentials.
    pub served: Vec<Served>,
    /// Trusted networks.
    pub trusted: Vec<Network>,
    /// Rules.
    pub rules: Detect,
    /// Packets lost by places of accepted users that were not banned themselves; known only of a
    /// capture.
    pub lost: Option<u64>,
    /// Notes that the figures do not show.
    pub notes: Vec<String>,
}

/// A ban, and the packets dropped for it so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// The ban and its end.
    pub row: HistoryRow,
    /// Packets dropped for it, if counted.
    pub hits: Option<u64>,
}

/// The report.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Report {
    /// Version of this object.
    pub schema: u32,
    /// Time of creation.
    pub time: Timestamp,
    /// The replayed capture, if any.
    pub capture: Option<String>,
    /// Start of the span.
    pub from: Timestamp,
    /// End of the span.
    pub to: Timestamp,
    /// Totals of all bans.
    pub bans: Tally,
    /// Bans by kind and level, the most frequent first.
    pub kinds: Vec<Kind>,
    /// Rules by descending number of bans.
    pub rules: Vec<Rule>,
    /// Bans that may have been wrong.
    pub doubtful: Vec<Doubtful>,
    /// Phones with a wrong password, at addresses with accepted users.
    pub phones: Vec<Offender>,
    /// Other banned sources, by descending number of bans.
    pub repeaters: Vec<Offender>,
    /// Users whose passwords unknown sources try, by descending number of tries.
    pub sprayed: Vec<SprayedUser>,
    /// Known-good users and addresses.
    pub good: Good,
    /// Suggested changes.
    pub suggestions: Vec<Suggestion>,
    /// Notes that the figures do not show.
    pub notes: Vec<String>,
}

/// Totals of bans.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Tally {
    /// Bans that began.
    pub bans: u64,
    /// Number of their addresses and networks.
    pub addresses: u64,
    /// Number that an operator lifted.
    pub lifted: u64,
    /// Number that hit a place where a user was accepted later.
    pub good_later: u64,
    /// Number that ended without a dropped packet.
    pub quiet: u64,
    /// Number in force.
    pub in_force: u64,
    /// Packets dropped for them.
    pub hits: u64,
}

/// Bans of one kind of evidence on one level.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Kind {
    /// The kind of evidence.
    #[schemars(with = "KindName")]
    pub kind: String,
    /// Evidence tier.
    pub tier: Option<Tier>,
    /// Their totals.
    #[serde(flatten)]
    pub tally: Tally,
}

/// A rule of `[detect]`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Rule {
    /// Name.
    #[schemars(with = "RuleName")]
    pub rule: &'static str,
    /// Whether it may ban.
    pub enabled: bool,
    /// Number of its bans.
    pub bans: u64,
    /// Start of the last one, if any.
    pub last: Option<Timestamp>,
}

/// A ban that may have been wrong.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Doubtful {
    /// Address or network.
    pub address: Network,
    /// The port, if it covers only that.
    pub port: Option<u16>,
    /// The kind of evidence.
    #[schemars(with = "KindName")]
    pub kind: String,
    /// Evidence tier.
    pub tier: Option<Tier>,
    /// The evidence.
    pub reason: String,
    /// Start.
    pub from: Timestamp,
    /// Whether an operator lifted it.
    pub lifted: bool,
    /// Some of the users that were accepted there after the start.
    pub users: Vec<String>,
    /// Whether one of them was accepted there before, too: otherwise a password may have been
    /// guessed.
    pub known_before: bool,
}

/// A banned source.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Offender {
    /// Address or network.
    pub address: Network,
    /// The port, if it covers only that.
    pub port: Option<u16>,
    /// Number of bans.
    pub bans: u64,
    /// Packets dropped for it.
    pub hits: u64,
    /// Start of the last ban.
    pub last: Timestamp,
    /// Kinds of evidence.
    #[schemars(with = "Vec<KindName>")]
    pub kinds: Vec<String>,
    /// Reason of the last ban.
    pub reason: String,
}

/// A user whose password unknown sources try.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct SprayedUser {
    /// User.
    pub user: String,
    /// Proven if enough of the tries came from addresses that cannot be forged.
    pub tier: Tier,
    /// Number of rejected passwords.
    pub tries: u64,
    /// Number of their addresses.
    pub addresses: u64,
    /// Time of the first try.
    pub first: Timestamp,
    /// Time of the last try.
    pub last: Timestamp,
    /// Some of the addresses where the user was accepted for the first time since then.
    pub new_places: Vec<IpAddr>,
}

/// Known-good users and addresses.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
#[schemars(rename = "GoodSources")]
pub struct Good {
    /// Number of accepted users.
    pub users: u64,
    /// Number of their addresses.
    pub addresses: u64,
    /// Addresses whose calls the server processes without credentials.
    pub served: Vec<IpAddr>,
    /// Packets that these addresses lost, without those of banned ports; null if not counted.
    pub lost: Option<u64>,
}

/// A suggested change.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Suggestion {
    /// Kind of change.
    pub change: Change,
    /// Address, rule or user.
    pub about: String,
    /// Reason.
    pub reason: String,
    /// Command to run, or lines for the configuration.
    pub command: Option<String>,
}

/// Kinds of suggested changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Change the password of a user.
    Password,
    /// Trust an address.
    Trust,
    /// Loosen a rule.
    Loosen,
}

impl Change {
    /// Name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Trust => "trust",
            Self::Loosen => "loosen",
        }
    }
}
