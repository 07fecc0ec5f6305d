//! Detection rules: one file per rule, and the registry of all of them. A rule weighs evidence with
//! the level that it needs, and ends in [`Detector::emit_ban`], the only place where evidence
//! becomes a finding. `volume`, `networks` and `stream_meters` are what several rules share, and
//! `forgotten` and `covering` parts of `rejected`.

mod kinds;
#[macro_use]
mod rule;

mod covering;
mod decoy;
mod domain;
pub(super) mod enumeration;
pub(super) mod forgotten;
mod invites;
pub(super) mod networks;
mod register;
pub(super) mod rejected;
mod requests;
mod signature;
mod slow;
pub(super) mod sprayed;
pub(super) mod stream_meters;
pub(super) mod volume;

use std::fmt::Write as _;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sip_xdp_common::ip_key::IpKey;

use super::claim::{Growth, Level};
use super::source_state::SourceState;
use super::{Action, Detector, Evidence, Finding};
use crate::config::Span;

use rule::{BanKind, Counts, Memory, Rule, Settings as _, Told};

pub(crate) use kinds::kinds;
pub use kinds::{EvidenceName, KindName, RuleName};
pub(super) use rule::{Heard, Signal};

// Tables, kinds and evidence appear in this order. What happens is heard from the last line to the
// first: the more special a rule is, the further down it stands, and the sooner it may decide.
registry! {
    register: Register, "REGISTER floods by one sender.";
    requests: Requests, "Floods of requests of any method by one sender.";
    rejected: Rejected, "Rejected credentials.";
    slow: Slow, "Rejected credentials at a slow rate.";
    enumeration: Enumeration, "Enumeration of users.";
    signature: Signature, "Requests with a tool's signature.";
    invites: Invites, "Refused calls.";
    decoy: Decoy, "Tries of decoys.";
    sprayed: Sprayed, "Tries of an accepted user's password from unknown sources.";
    domain: Domain, "Requests to hosts that nobody here uses.";
}

impl Detect {
    /// The kinds of bans that its rules lead to.
    pub fn kinds() -> Vec<&'static str> {
        KINDS.iter().flat_map(|(_, kinds)| kinds.iter().map(|kind| kind.name)).collect()
    }

    /// Twice the count of a rule, in the same time; none for one that counts nothing.
    pub fn looser(&self, name: &str) -> Option<(u32, Span)> {
        let rate =
            self.rates().into_iter().find(|(rule, _)| *rule == name).and_then(|(_, rate)| rate);
        rate.map(|(count, per)| (count.saturating_mul(2), per))
    }
}

/// The table of a rule with its defaults, as the packaged file has it.
fn commented<R: Rule>() -> String {
    let mut text = String::new();
    let mut line = "#".to_owned();
    for word in R::COMMENT.split_whitespace() {
        if line.len() + 1 + word.len() > 100 {
            let _ = writeln!(text, "{line}");
            line = "#".to_owned();
        }
        let _ = write!(line, " {word}");
    }
    let _ = write!(text, "{line}\n#[detect.{}]", R::NAME);
    let defaults = toml::to_string(&R::Settings::default()).unwrap_or_default();
    for line in defaults.lines() {
        // A minute is written in seconds, as in the tables of limits.
        let _ = write!(text, "\n#{}", line.replace("\"1m\"", "\"60s\""));
    }
    text
}

/// Minimum interval between two findings of one kind about one place.
const ONCE_NS: u64 = 1_000_000_000;

/// How long an offender has lower thresholds.
pub(super) const MEMORY_NS: u64 = 7 * 24 * 3_600_000_000_000;

/// The lowest threshold.
const LEAST: u32 = 2;

impl Detector {
    /// Tells all rules what has happened.
    pub(super) fn hear(
        &mut self,
        source: IpKey,
        now: u64,
        what: Signal<'_>,
        actions: &mut Vec<Action>,
    ) {
        let heard = Heard { source, now, what };
        HEAR.iter().rev().for_each(|hear| hear(self, &heard, actions));
    }

    /// Lets all rules do what they do at every tick.
    pub(super) fn tick_rules(&mut self, now: u64, actions: &mut Vec<Action>) {
        TICK.iter().rev().for_each(|tick| tick(self, now, actions));
    }

    /// The evidence of all rules against a source: first what has a threshold.
    pub(super) fn tell(&self, state: &SourceState, now: u64) -> Vec<Evidence> {
        let mut all = Vec::new();
        let names = self.rules.names().into_iter().zip(self.rules.rates()).zip(TELL);
        for (((kind, enabled), (_, rate)), tell) in names {
            let Some(Told { count, text }) = tell(self, state, now).filter(|told| told.count > 0.0)
            else {
                continue;
            };
            let known = rate.filter(|_| enabled);
            all.push((
                rate.is_none(),
                Evidence {
                    kind: kind.to_owned(),
                    count,
                    limit: known.map(|(count, _)| count.into()),
                    per: known.map(|(_, per)| per.nanos() / 1_000_000_000),
                    text,
                },
            ));
        }
        all.sort_by_key(|(is_last, _)| *is_last);
        all.into_iter().map(|(_, evidence)| evidence).collect()
    }

    /// The threshold for a source: halved (at least two) for offenders, and for products that
    /// attackers use as well.
    pub(super) fn threshold(&self, source: &IpKey, count: u32, now: u64) -> usize {
        let offender = self.offenders.get(source, now).copied().unwrap_or(0);
        let is_doubtful =
            self.sources.get(source).is_some_and(|state| state.counts.signature.is_doubtful);
        let lowered = match offender + u32::from(is_doubtful) {
            0 => count,
            1 => (count / 2).max(LEAST),
            _ => LEAST,
        };
        lowered.min(count) as usize
    }

    /// A finding about a whole source.
    pub(super) fn about(
        &self,
        source: IpKey,
        kind: &'static str,
        level: Level,
        reason: String,
    ) -> Finding {
        Finding {
            source,
            bits: 128,
            port: None,
            ports: Vec::new(),
            transport: self.sources.get(&source).map_or_else(Default::default, |s| s.transport),
            kind,
            tier: level.tier(),
            growth: if level == Level::Routable { Growth::Full } else { Growth::None },
            reason,
        }
    }

    /// Makes evidence a finding. The offending place loses its standing at once, by level 1
    /// evidence only; its evidence restarts empty.
    pub(super) fn emit_ban(
        &mut self,
        level: Level,
        finding: Finding,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let source = finding.source;
        // Forgeable evidence never affects known sources.
        if level == Level::Seen && self.has_standing(&source, now) {
            return;
        }
        // Port 0 is no flow; an entry without a port would mean the whole address.
        if finding.port == Some(0) {
            return;
        }
        self.source_state(source, now);
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        if finding.port.is_none() && finding.bits == 128 {
            if state.banned != 0 && now.saturating_sub(state.banned) < ONCE_NS {
                return;
            }
            state.banned = now;
        }
        if finding.bits == 128 {
            state.begin_anew(finding.port);
        }
        if level == Level::Routable {
            match finding.port {
                Some(port) => _ = self.known.mark_offender(&source, Some(port)),
                None => {
                    for port in &finding.ports {
                        self.known.mark_offender(&source, Some(*port));
                    }
                    self.served.end(&source);
                }
            }
            if finding.growth == Growth::Full && finding.port.is_none() {
                *self.offenders.touch(source, now, || 0) += 1;
            }
        }
        actions.push(Action::Ban(finding));
    }
}
