//! `invites`: toll fraud: calls that are refused more often than served, and one number called
//! under many prefixes, whatever the responses.
//!
//! More than 400 lines: a rule is one file, with its table, its state and its tests.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use serde_json::{Map, Value};
use sip_xdp_common::ip_key::IpKey;

use super::super::claim::{Growth, Level};
use super::super::explain::rounded;
use super::super::source_state::SourceState;
use super::super::transactions::{Method, Request};
use super::super::windows::LeakyBucket;
use super::super::{Action, Detector, Finding, GRACE_NS};
use super::rule::{BanKind, Counts, Heard, Rule, Signal, Told, recalled};

threshold! {
    /// `[detect.invites]`: a leaky bucket.
    count = 5, seconds = 21_600
}

pub(in super::super) struct Invites;

impl Rule for Invites {
    const NAME: &'static str = "invites";
    const COMMENT: &'static str = "Refused calls, more than served ones: a leaky bucket of \
        \"count\", of which one leaks out per \"per\".";
    const KINDS: &'static [BanKind] = &[BanKind {
        name: "invites",
        evidence: "a leaky bucket of `count` refused calls, of which one leaks out per `per`, and \
                   more refused than served calls (404, 484 and 604 weigh half); or one number \
                   under 4 prefixes within an hour, whatever the answer",
        limits: "never a peer or a known-good source",
    }];

    type Settings = Settings;
    type Counts = Calls;
    type Memory = ();

    fn hear(detector: &mut Detector, heard: &Heard<'_>, actions: &mut Vec<Action>) {
        let (source, now) = (heard.source, heard.now);
        match heard.what {
            Signal::Request(request) if request.method == Method::Invite && !request.in_dialog => {
                detector.call_begins(request, now, actions);
            }
            Signal::Refused(request, number, status) if request.method == Method::Invite => {
                detector.call_was_refused(request, number, status, now, actions);
            }
            Signal::Unanswered(one) if one.is_invite => {
                let call = one.is_proven.then_some(one.call);
                detector.call_went_unanswered(source, &one.target, call, now, actions);
            }
            Signal::Proven(call) => detector.call_is_proven(source, call, now, actions),
            Signal::Due => detector.settle_calls(source, now, actions),
            _ => {}
        }
    }

    fn tell(detector: &Detector, state: &SourceState, now: u64) -> Option<Told> {
        let calls = &state.counts.invites;
        let count = rounded(calls.all.level(now, detector.rules.invites.per.nanos()));
        let served = detector.served.numbers(&state.source, now);
        Some(Told { count, text: format!("{} calls refused, {served} answered", calls.refused) })
    }
}

/// Number of prefixes of one number that is evidence.
const PREFIXES: usize = 4;

/// Numbers that were taken or ring, from which on a source is a partner rather than a stranger who
/// was answered once.
const PARTNER: usize = 5;

/// Their time window.
const HOUR_NS: u64 = 3_600_000_000_000;

/// Number of trailing digits that identify a number.
const DIGITS: usize = 9;

/// Maximum number of numbers per source, of prefixes of each, and of refusals that wait for their
/// acknowledgement.
const MAX_NUMBERS: usize = 256;
const MAX_PREFIXES: usize = 16;
const MAX_REFUSALS: usize = 64;

/// A call of a number.
#[derive(Debug, Clone, Copy)]
struct Called {
    at: u64,
    call: u64,
    level: Level,
}

/// A refused call, weighed when its acknowledgement comes, or is overdue.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    at: u64,
    call: u64,
    weight: f64,
}

/// The calls of one source.
#[derive(Debug, Default)]
pub(in super::super) struct Calls {
    /// By number and prefix.
    numbers: HashMap<String, BTreeMap<String, Called>>,
    refusals: Vec<Refusal>,
    /// Buckets of level 1 calls, and of all.
    routable: LeakyBucket,
    all: LeakyBucket,
    refused: u32,
    /// Time and text of the first number with enough prefixes.
    found: Option<(u64, String)>,
}

impl Calls {
    /// Records a call. Returns the number of prefixes under which the last nine digits of this
    /// number were called.
    fn note(&mut self, number: &str, call: u64, now: u64) -> Option<(String, usize)> {
        let (prefix, end) = split(number)?;
        if self.numbers.len() >= MAX_NUMBERS && !self.numbers.contains_key(&end) {
            self.numbers
                .retain(|_, calls| calls.values().any(|one| now.saturating_sub(one.at) < HOUR_NS));
            if self.numbers.len() >= MAX_NUMBERS {
                let newest =
                    |calls: &BTreeMap<String, Called>| calls.values().map(|one| one.at).max();
                let oldest = self.numbers.iter().min_by_key(|(_, calls)| newest(calls));
                let oldest = oldest.map(|(end, _)| end.clone());
                oldest.and_then(|oldest| self.numbers.remove(&oldest));
            }
        }
        let prefixes = self.numbers.entry(end.clone()).or_default();
        prefixes.retain(|_, one| now.saturating_sub(one.at) < HOUR_NS);
        if prefixes.len() < MAX_PREFIXES || prefixes.contains_key(&prefix) {
            let called = Called { at: now, call, level: Level::Seen };
            let before = prefixes.entry(prefix).or_insert(called);
            (before.at, before.call) = (now, call);
        }
        Some((end, prefixes.len()))
    }

    /// Marks a call as proven. Returns its number, if that has enough proven prefixes.
    fn prove(&mut self, call: u64) -> Option<String> {
        let is_it = |one: &&mut Called| one.call == call;
        let (end, prefixes) = self.numbers.iter_mut().find_map(|(end, prefixes)| {
            prefixes.values_mut().find(is_it)?.level = Level::Routable;
            Some((end, &*prefixes))
        })?;
        let proven = prefixes.values().filter(|one| one.level == Level::Routable).count();
        (proven >= PREFIXES).then(|| end.clone())
    }
}

impl Counts for Calls {
    fn begin_anew(&mut self, port: Option<u16>) {
        if port.is_none() {
            self.numbers.clear();
            self.refusals.clear();
            (self.refused, self.found) = (0, None);
        }
    }

    fn is_worth_keeping(&self) -> bool {
        self.refused > 0
    }

    fn keep(&self, kept: &mut Map<String, Value>) -> Result<()> {
        kept.insert("calls".to_owned(), serde_json::to_value(self.routable)?);
        kept.insert("calls_seen".to_owned(), serde_json::to_value(self.all)?);
        kept.insert("refused_calls".to_owned(), self.refused.into());
        Ok(())
    }

    fn recall(&mut self, kept: &mut Map<String, Value>, moved: &dyn Fn(u64) -> u64) -> Result<()> {
        self.routable = recalled(kept, "calls")?.unwrap_or_default();
        self.all = recalled(kept, "calls_seen")?.unwrap_or_default();
        self.refused = recalled(kept, "refused_calls")?.unwrap_or_default();
        [&mut self.routable, &mut self.all].into_iter().for_each(|bucket| bucket.shift(moved));
        Ok(())
    }
}

/// Splits a number into prefix and last digits. A plus is part of the prefix.
fn split(number: &str) -> Option<(String, String)> {
    let digits: String = number.chars().filter(char::is_ascii_digit).collect();
    if digits.len() < DIGITS || digits.len() > 40 {
        return None;
    }
    let (prefix, end) = digits.split_at(digits.len() - DIGITS);
    let plus = if number.starts_with('+') { "+" } else { "" };
    Some((format!("{plus}{prefix}"), end.to_owned()))
}

impl Detector {
    /// Processes the start of a call: an INVITE outside of dialogs.
    fn call_begins(&mut self, request: &Request, now: u64, actions: &mut Vec<Action>) {
        let (Some(number), source) = (&request.target, request.source) else {
            return;
        };
        if !self.rules.invites.enabled || self.peers.is_peer(&source, now) {
            return;
        }
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        let Some((end, prefixes)) = state.counts.invites.note(number, request.call, now) else {
            return;
        };
        if prefixes < PREFIXES {
            return;
        }
        if self.known.was_good_lately(&source, now) || self.served.is_established(&source, now) {
            let text = format!("calls to one number (...{end}) under {prefixes} prefixes");
            actions.push(Action::Rejected(source, request.port, text));
            return;
        }
        if state.counts.invites.found.is_none() {
            state.counts.invites.found = Some((now, end));
            self.due.push_back((now + GRACE_NS, source));
        }
    }

    /// Processes a refused call.
    fn call_was_refused(
        &mut self,
        request: &Request,
        number: &str,
        status: u16,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        self.served.refuse(&request.source, number, now);
        let weight = if matches!(status, 404 | 484 | 604) { 0.5 } else { 1.0 };
        let source = request.source;
        self.pour(source, Some(request.call), weight, now, actions);
    }

    /// A call was challenged, and no credentials followed. That stays level 0, but for a call of a
    /// source that has completed a handshake, whose Call-ID is `proven`.
    fn call_went_unanswered(
        &mut self,
        source: IpKey,
        number: &str,
        proven: Option<u64>,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        self.served.refuse(&source, number, now);
        self.pour(source, proven, 1.0, now, actions);
        if let Some(call) = proven {
            self.call_is_proven(source, call, now, actions);
        }
    }

    fn pour(
        &mut self,
        source: IpKey,
        call: Option<u64>,
        weight: f64,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let rule = self.rules.invites;
        // Wrong numbers of an address with accepted users are people's mistakes.
        if !rule.enabled || self.is_excused(&source, now) {
            return;
        }
        let is_carrying = self.served.is_carrying(&source, now);
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        // Which calls of a carrier pass a limit is chance: those that follow each other closely, or
        // all but those that another one's BYE precedes.
        if is_carrying && state.is_limited(now) {
            return;
        }
        let calls = &mut state.counts.invites;
        calls.refused += 1;
        calls.all.pour_part(now, rule.per.nanos(), weight);
        match call {
            Some(call) => {
                if calls.refusals.len() >= MAX_REFUSALS {
                    calls.refusals.remove(0);
                }
                calls.refusals.push(Refusal { at: now, call, weight });
                self.due.push_back((now + GRACE_NS, source));
            }
            None => self.weigh_calls(source, Level::Seen, now, actions),
        }
    }

    /// Processes an acknowledgement with the response's tag: the caller is routable.
    fn call_is_proven(&mut self, source: IpKey, call: u64, now: u64, actions: &mut Vec<Action>) {
        let rule = self.rules.invites;
        let is_spared = self.known.was_good_lately(&source, now)
            || self.served.is_established(&source, now)
            || self.peers.is_peer(&source, now);
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        if let Some(end) = state.counts.invites.prove(call)
            && rule.enabled
            && !is_spared
        {
            self.convict_number(source, &end, Level::Routable, now, actions);
            return;
        }
        let calls = &mut state.counts.invites;
        if let Some(at) = calls.refusals.iter().position(|one| one.call == call) {
            let refusal = calls.refusals.swap_remove(at);
            calls.routable.pour_part(now, rule.per.nanos(), refusal.weight);
            self.weigh_calls(source, Level::Routable, now, actions);
        }
    }

    /// Weighs calls whose acknowledgement is overdue.
    fn settle_calls(&mut self, source: IpKey, now: u64, actions: &mut Vec<Action>) {
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        let before = state.counts.invites.refusals.len();
        state.counts.invites.refusals.retain(|one| now.saturating_sub(one.at) < GRACE_NS);
        let is_over = state.counts.invites.refusals.len() != before;
        let is_late = |(at, _): &mut (u64, String)| now.saturating_sub(*at) >= GRACE_NS;
        if let Some((_, end)) = state.counts.invites.found.take_if(is_late) {
            self.convict_number(source, &end, Level::Seen, now, actions);
        } else if is_over {
            self.weigh_calls(source, Level::Seen, now, actions);
        }
    }

    fn weigh_calls(&mut self, source: IpKey, level: Level, now: u64, actions: &mut Vec<Action>) {
        let rule = self.rules.invites;
        let Some(state) = self.sources.get(&source) else {
            return;
        };
        let bucket = if level == Level::Routable {
            &state.counts.invites.routable
        } else {
            &state.counts.invites.all
        };
        let (refused, served) =
            (state.counts.invites.refused as usize, self.served.numbers(&source, now));
        // Refused calls of a partner count only as far as they outnumber others. Those that ring
        // may still be answered.
        let carried = self.served.carried(&source, now);
        let part = match (carried >= PARTNER, refused > served) {
            (true, _) => refused.saturating_sub(carried) as f64 / refused.max(1) as f64,
            (false, outnumber) => f64::from(u8::from(outnumber)),
        };
        let filled = part * bucket.level(now, rule.per.nanos());
        // At level 1 this number is enough; a little has leaked out since the first.
        let enough = self.threshold(&source, rule.count, now) as f64;
        if filled <= enough || self.is_excused(&source, now) {
            return;
        }
        let reason = format!("{refused} calls refused, {served} answered");
        let finding = self.about(source, Invites::NAME, level, reason);
        self.emit_ban(level, finding, now, actions);
    }

    fn convict_number(
        &mut self,
        source: IpKey,
        end: &str,
        level: Level,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let growth = if level == Level::Routable { Growth::Full } else { Growth::None };
        let reason = format!("calls to one number (...{end}) under {PREFIXES} prefixes");
        let finding = Finding { growth, ..self.about(source, Invites::NAME, level, reason) };
        self.emit_ban(level, finding, now, actions);
    }

    /// Whether refused calls of a source are mistakes of its users.
    fn is_excused(&self, source: &IpKey, now: u64) -> bool {
        let is_client = self.known.was_good_lately(source, now);
        is_client || self.peers.is_peer(source, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_under_many_prefixes() {
        let mut calls = Calls::default();
        for (number, prefixes) in [
            ("00441234567890", 1),
            ("00441234567890", 1),
            ("+441234567890", 2),
            ("011441234567890", 3),
            ("900441234567890", 4),
        ] {
            assert_eq!(
                calls.note(number, 1, 1),
                Some(("234567890".to_owned(), prefixes)),
                "{number}"
            );
        }
        assert_eq!(calls.note("0049301234567", 1, 1).map(|found| found.1), Some(1));
        assert_eq!((calls.note("1001", 1, 1), calls.note("alice", 1, 1)), (None, None));
        assert_eq!(calls.note("00441234567890", 1, HOUR_NS + 1).map(|found| found.1), Some(1));
    }

    #[test]
    fn numbers_are_bounded() {
        let mut calls = Calls::default();
        (0..10_000_u64).for_each(|n| _ = calls.note(&format!("{}", 10_000_000_000 + n), n, n));
        assert!(calls.numbers.len() <= MAX_NUMBERS);
    }
}
