//! What the filter did in a span of time, as an operator wants to know it: bans by kind and level,
//! which of them look wrong, which rules never fired, whose passwords strangers try, and what to
//! change. [`gather`] collects the facts from the store and the pinned maps, a replay from its
//! capture; [`judge`] makes the report of them.

mod gather;
mod judge;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use crate::config::Detect;
use crate::dataplane::tables::ledger::Tier;
use crate::net::network::Network;
use crate::store::{Accepted, HistoryRow, Served, Sprayed};

pub use gather::gather;
pub use judge::judge;

/// The span that is reported of unless somebody asks for another one: a week.
pub const SPAN: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3_600);

/// What a report is made of.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The capture that was replayed; none of a filter.
    pub capture: Option<String>,
    /// From when on, in milliseconds since 1970.
    pub from_ms: u64,
    /// Until when.
    pub to_ms: u64,
    /// The bans that began then, the earliest first. Of one that is in force, hits are those so
    /// far.
    pub bans: Vec<Ban>,
    /// Who was accepted where, then and before.
    pub accepted: Vec<Accepted>,
    /// Users that strangers tried passwords for.
    pub sprayed: Vec<Sprayed>,
    /// Addresses whose calls the server took without credentials.
    pub served: Vec<Served>,
    /// Networks that are trusted.
    pub trusted: Vec<Network>,
    /// The rules.
    pub rules: Detect,
    /// Packets that places of accepted users lost that were not banned themselves; known of a
    /// capture only.
    pub lost: Option<u64>,
    /// What the figures do not say.
    pub notes: Vec<String>,
}

/// A ban, and the packets dropped for it so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// The ban, and how it ended.
    pub row: HistoryRow,
    /// Packets dropped for it; none if nobody counted.
    pub hits: Option<u64>,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The version of this object.
    pub schema: u32,
    /// When it was made.
    pub time: Timestamp,
    /// The capture that was replayed; none of a filter.
    pub capture: Option<String>,
    /// The span that it is about begins here.
    pub from: Timestamp,
    /// And ends here.
    pub to: Timestamp,
    /// All bans together.
    pub bans: Tally,
    /// The bans by kind and level, the most frequent first.
    pub kinds: Vec<Kind>,
    /// The rules, those that banned most first.
    pub rules: Vec<Rule>,
    /// Bans that may have been wrong.
    pub doubtful: Vec<Doubtful>,
    /// Phones whose password is wrong, at addresses where others were accepted.
    pub phones: Vec<Offender>,
    /// Who else was banned, those with most bans first.
    pub repeaters: Vec<Offender>,
    /// Users that strangers try passwords for, those with most tries first.
    pub sprayed: Vec<SprayedUser>,
    /// Who was known good.
    pub good: Good,
    /// What to change.
    pub suggestions: Vec<Suggestion>,
    /// What the figures do not say.
    pub notes: Vec<String>,
}

/// Bans, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How many began.
    pub bans: u64,
    /// Of how many addresses and networks.
    pub addresses: u64,
    /// An operator lifted so many.
    pub lifted: u64,
    /// So many hit a place where somebody was accepted later.
    pub good_later: u64,
    /// So many ended and were never hit: nothing came from there any more.
    pub quiet: u64,
    /// So many are in force.
    pub in_force: u64,
    /// Packets dropped for them.
    pub hits: u64,
}

/// The bans of a kind of evidence on one level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kind {
    /// The kind of evidence.
    pub kind: String,
    /// How sure it was.
    pub tier: Option<Tier>,
    /// Its bans.
    #[serde(flatten)]
    pub tally: Tally,
}

/// A rule of `[detect]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its name.
    pub rule: &'static str,
    /// Whether it may ban.
    pub enabled: bool,
    /// How many bans it led to.
    pub bans: u64,
    /// When the last one began; none if it never fired.
    pub last: Option<Timestamp>,
}

/// A ban that may have been wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Doubtful {
    /// Whose.
    pub address: Network,
    /// The port, if only that.
    pub port: Option<u16>,
    /// The kind of evidence.
    pub kind: String,
    /// How sure it was.
    pub tier: Option<Tier>,
    /// The evidence.
    pub reason: String,
    /// When it began.
    pub from: Timestamp,
    /// An operator lifted it.
    pub lifted: bool,
    /// Users that were accepted there after it began, a few of them.
    pub users: Vec<String>,
    /// One of them was accepted there before, too: otherwise a password may have been guessed.
    pub known_before: bool,
}

/// An address that was banned, once or again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Offender {
    /// Who.
    pub address: Network,
    /// The port, if only that.
    pub port: Option<u16>,
    /// How often.
    pub bans: u64,
    /// Packets dropped for it.
    pub hits: u64,
    /// When the last ban began.
    pub last: Timestamp,
    /// For what kinds of evidence.
    pub kinds: Vec<String>,
    /// The evidence of the last one.
    pub reason: String,
}

/// A user that strangers try passwords for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SprayedUser {
    /// The user.
    pub user: String,
    /// Proven if enough of the tries came from addresses that were the sender's own.
    pub tier: Tier,
    /// Passwords that were rejected.
    pub tries: u64,
    /// Addresses that they came from.
    pub addresses: u64,
    /// When the first try was.
    pub first: Timestamp,
    /// When the last one was.
    pub last: Timestamp,
    /// Addresses where the user was accepted for the first time since then, a few of them.
    pub new_places: Vec<IpAddr>,
}

/// Who was known good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Good {
    /// Users that were accepted.
    pub users: u64,
    /// Addresses that they were accepted at.
    pub addresses: u64,
    /// Addresses whose calls the server takes without credentials.
    pub served: Vec<IpAddr>,
    /// Packets that all these lost, but for ports that were banned themselves; null where nobody
    /// counted.
    pub lost: Option<u64>,
}

/// Something to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// What kind of a change.
    pub change: Change,
    /// An address, a rule or a user.
    pub about: String,
    /// Why.
    pub reason: String,
    /// What to run, or to write into the configuration.
    pub command: Option<String>,
}

/// What kind of a change is suggested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Give a user another password.
    Password,
    /// Trust an address.
    Trust,
    /// Loosen a rule.
    Loosen,
}

impl Change {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Trust => "trust",
            Self::Loosen => "loosen",
        }
    }
}
