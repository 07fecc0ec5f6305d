//! How much evidence is enough.

use std::collections::{BTreeMap, BTreeSet};

use sip_xdp_common::ip_key::Source;

use super::counting::words;
use super::subject::{Rejection, Subject};
use super::{Action, Detector, Finding};
use crate::dataplane::tables::ledger::Tier;

/// Behind an address with accepted users, rejections for so many others from so many ports are a bad phone's.
const FEW_USERS: usize = 2;
const FEW_PORTS: usize = 3;

/// A phone with a wrong password tries again after so long at least, in nanoseconds.
const PATIENT: u64 = 20_000_000_000;

/// One number under so many prefixes is looking for a way out.
const PREFIXES: usize = 4;

/// How many tries a stranger has for a user that is being sprayed.
const SPRAYED: usize = 2;

/// The same source is not banned twice for the same within this time, in nanoseconds.
const ONCE: u64 = 1_000_000_000;

impl Detector {
    /// Counts those tentative rejections of a source that `counts` says, and bans it if they are enough.
    pub(super) fn count_rejections(
        &mut self,
        key: Source,
        now: u64,
        counts: impl Fn(&(u64, Rejection)) -> bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(subject) = self.subjects.get_mut(&key) else {
            return;
        };
        let certain: Vec<_> = subject.tentative.extract_if(.., |tentative| counts(tentative)).collect();
        if certain.is_empty() {
            return;
        }
        let source = subject.source;
        let (rejected, slow) = (self.rules.rejected, self.rules.slow);
        let mut level = 0.0_f64;
        for (at, rejection) in certain {
            let known = &self.known;
            let (good_source, user) = (known.was_good_lately(&source, now), &rejection.user);
            let good_phone = known.accepted(&source, user, now);
            self.registrar.rejected(now, &source.octets(), user, good_source, good_phone);
            level = level.max(subject.slow.pour(at, slow.per.nanos()));
            subject.rejected.note(at, rejection, rejected.per.nanos().max(super::GRACE));
        }
        if self.registrar.is_failing(now) {
            return;
        }
        let finding = if self.known.was_good(&source, now) {
            self.judge_office(key, now)
        } else {
            self.judge_stranger(key, now, level)
        };
        if let Some(finding) = finding {
            self.convict(key, finding, now, actions);
        } else {
            self.convict_by_signature(key, now, ", and its credentials were rejected", actions);
        }
    }

    /// Rejections of a source from which nobody was ever accepted.
    fn judge_stranger(&self, key: Source, now: u64, level: f64) -> Option<Finding> {
        let subject = self.subjects.get(&key)?;
        let (rejected, slow) = (self.rules.rejected, self.rules.slow);
        let tries = subject.rejected.len();
        let (users, _) = subject.rejected_users();
        let sprayed = users.iter().any(|user| self.is_sprayed(user));
        let by_count = rejected.enabled && tries >= rejected.count as usize;
        let by_level = slow.enabled && level >= f64::from(slow.count);
        let by_spray = sprayed && tries >= SPRAYED;
        if !by_count && !by_level && !by_spray {
            return None;
        }
        let echoed = subject.rejected.iter().filter(|(_, rejection)| rejection.echoed).count();
        let is_phone = users.len() == 1 && subject.rejected.shortest_pause().is_some_and(|pause| pause >= PATIENT);
        let kind = if is_phone {
            "misconfigured"
        } else if by_count {
            "rejected"
        } else if by_spray {
            "sprayed"
        } else {
            "slow"
        };
        let proven = 2 * echoed >= tries && echoed > 0;
        Some(Finding {
            source: subject.source,
            port: None,
            by_address: subject.by_address,
            kind,
            tier: if proven { Tier::Proven } else { Tier::Unproven },
            grows: proven && !is_phone,
            reason: told(subject, &users, tries, echoed, subject.rejected.since(now)),
        })
    }

    /// Rejections of an address behind which there are accepted users: a bad phone must not take the others down.
    fn judge_office(&self, key: Source, now: u64) -> Option<Finding> {
        let subject = self.subjects.get(&key)?;
        let rejected = self.rules.rejected;
        // Only what echoes a nonce of ours is known to come from there.
        let real: Vec<&(u64, Rejection)> = subject.rejected.iter().filter(|(_, rejection)| rejection.echoed).collect();
        let others = |rejection: &Rejection| !self.known.accepted(&subject.source, &rejection.user, now);
        let strange: Vec<_> = real.iter().copied().filter(|(_, rejection)| others(rejection)).collect();
        let users: BTreeSet<&str> = strange.iter().map(|(_, rejection)| rejection.user.as_str()).collect();
        let ports: BTreeSet<u16> = strange.iter().map(|(_, rejection)| rejection.port).collect();
        let threshold = rejected.count as usize;
        let slow = usize::try_from(self.rules.slow.count).unwrap_or(usize::MAX);
        let enough = |tries: usize| rejected.enabled && tries >= threshold || self.rules.slow.enabled && tries >= slow;
        let finding = |port, kind, users: &BTreeSet<&str>, tries, grows| Finding {
            source: subject.source,
            port,
            by_address: true,
            kind,
            tier: Tier::Proven,
            grows,
            reason: told(subject, users, tries, tries, subject.rejected.since(now)),
        };
        // A phone with a wrong password may come from another port each time, as its router forgets it in between.
        let is_phone = |tries: &[&(u64, Rejection)], users: &BTreeSet<&str>| {
            let pauses = tries.windows(2).map(|pair| pair[1].0.saturating_sub(pair[0].0));
            users.len() == 1 && pauses.min().is_some_and(|pause| pause >= PATIENT)
        };
        if (users.len() > FEW_USERS || ports.len() > FEW_PORTS) && enough(strange.len()) {
            if is_phone(&strange, &users) {
                let port = strange.last().map(|(_, rejection)| rejection.port);
                return Some(finding(port, "misconfigured", &users, strange.len(), false));
            }
            return Some(finding(None, "rejected", &users, strange.len(), true));
        }
        let mut by_port: BTreeMap<u16, Vec<&(u64, Rejection)>> = BTreeMap::new();
        real.iter().for_each(|one| by_port.entry(one.1.port).or_default().push(one));
        by_port.into_iter().find(|(_, tries)| enough(tries.len())).map(|(port, tries)| {
            let users: BTreeSet<&str> = tries.iter().map(|(_, rejection)| rejection.user.as_str()).collect();
            let is_phone = is_phone(&tries, &users);
            let kind = if is_phone { "misconfigured" } else { "rejected" };
            finding(Some(port), kind, &users, tries.len(), !is_phone)
        })
    }

    /// A user was refused, or credentials did not follow a challenge.
    pub(super) fn enumerated(&mut self, key: Source, user: &str, now: u64, actions: &mut Vec<Action>) {
        let rule = self.rules.enumeration;
        let Some(subject) = self.subjects.get_mut(&key) else {
            return;
        };
        let source = subject.source;
        if self.known.accepted(&source, user, now) {
            return;
        }
        if !subject.refused.iter().any(|(_, refused)| refused == user) {
            subject.refused.note(now, user.to_owned(), rule.per.nanos());
        }
        subject.refused.tidy(now, rule.per.nanos());
        let count = subject.refused.len();
        if !rule.enabled || count < rule.count as usize {
            self.convict_by_signature(key, now, &format!(", and the user {user:?} was refused"), actions);
            return;
        }
        let named: Vec<_> = subject.refused.iter().rev().take(3).map(|(_, user)| format!("{user:?}")).collect();
        let reason = format!(
            "{count} different users refused in {}, none accepted, {} among them",
            words(subject.refused.since(now)),
            named.join(", ")
        );
        self.convict_by(key, "enumeration", reason, now, actions);
    }

    /// A call was refused. `phone`: the port of a phone behind an address with accepted users, of which only looking for
    /// a way out is evidence, and against that phone alone.
    pub(super) fn refused_call(
        &mut self,
        key: Source,
        number: &str,
        phone: Option<u16>,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let rule = self.rules.invites;
        let Some(subject) = self.subjects.get_mut(&key) else {
            return;
        };
        let source = subject.source;
        if !rule.enabled || self.known.is_peer(&source, now) {
            return;
        }
        if let Some((end, prefixes)) = subject.call(number)
            && prefixes >= PREFIXES
        {
            let reason = format!("calls to one number (...{end}) under {prefixes} prefixes, all refused");
            match phone {
                Some(port) => {
                    let (by_address, kind, tier) = (true, "invites", Tier::Proven);
                    let finding = Finding { source, port: Some(port), by_address, kind, tier, grows: false, reason };
                    self.convict(key, finding, now, actions);
                }
                None => self.convict_by(key, "invites", reason, now, actions),
            }
            return;
        }
        if phone.is_some() {
            return;
        }
        subject.refused_calls += 1;
        let level = subject.invites.pour(now, rule.per.nanos());
        let (refused, answered) = (subject.refused_calls, subject.answered_calls);
        if level > f64::from(rule.count) && refused > answered {
            let reason = format!("{refused} calls refused, {answered} answered");
            self.convict_by(key, "invites", reason, now, actions);
        }
    }

    /// A user was tried that nobody has.
    pub(super) fn tried_a_decoy(&mut self, key: Source, user: &str, now: u64, actions: &mut Vec<Action>) {
        let rule = &self.rules.decoy;
        let sources = self.tried.get(user).map_or(0, |window| window.len());
        let configured = rule.users.iter().any(|decoy| decoy == user);
        if !configured && sources < rule.count as usize {
            return;
        }
        let reason = if configured {
            format!("tried the decoy {user:?}")
        } else {
            format!("tried {user:?}, which nobody has and {sources} sources have tried within {}", rule.per)
        };
        // Behind an address with accepted users it may be a phone with an old user; its rejections count all the same.
        if self.subjects.get(&key).is_some_and(|subject| self.is_spared(&subject.source, now)) {
            return;
        }
        let proven = self.subjects.get(&key).is_some_and(|subject| subject.proven);
        if proven {
            self.convict_by(key, "decoy", reason, now, actions);
        } else if let Some(subject) = self.subjects.get_mut(&key) {
            // Anybody can have sent it: it counts as one more kind of evidence.
            if subject.signature.is_some() {
                self.convict_by_signature(key, now, &format!(", and {reason}"), actions);
            }
        }
    }

    fn is_sprayed(&self, user: &str) -> bool {
        let rule = self.rules.sprayed;
        rule.enabled && self.sprayed.get(user).is_some_and(|window| window.len() >= rule.count as usize)
    }

    /// Bans all of a source for one kind of evidence.
    fn convict_by(&mut self, key: Source, kind: &'static str, reason: String, now: u64, actions: &mut Vec<Action>) {
        let Some(subject) = self.subjects.get(&key) else {
            return;
        };
        let finding = Finding {
            source: subject.source,
            port: None,
            by_address: subject.by_address,
            kind,
            tier: if subject.proven { Tier::Proven } else { Tier::Unproven },
            grows: subject.proven,
            reason,
        };
        self.convict(key, finding, now, actions);
    }

    /// Bans, and begins to count anew.
    pub(super) fn convict(&mut self, key: Source, finding: Finding, now: u64, actions: &mut Vec<Action>) {
        // The evidence for a flow stands by itself; that for all of an address must be its own.
        if finding.port.is_none() && finding.tier == Tier::Unproven && self.is_spared(&finding.source, now) {
            return;
        }
        if self.known.is_peer(&finding.source, now) {
            return;
        }
        let Some(subject) = self.subjects.get_mut(&key) else {
            return;
        };
        if subject.banned != 0 && now.saturating_sub(subject.banned) < ONCE {
            return;
        }
        subject.banned = now;
        match finding.port {
            Some(port) => subject.rejected.retain(|rejection| rejection.port != port),
            None => {
                subject.rejected = super::counting::Window::default();
                subject.refused = super::counting::Window::default();
                subject.tentative.clear();
                subject.challenged.clear();
                subject.calls.clear();
                subject.refused_calls = 0;
            }
        }
        actions.push(Action::Ban(finding));
    }
}

/// Rejections in words and numbers.
fn told(subject: &Subject, users: &BTreeSet<&str>, tries: usize, echoed: usize, since: u64) -> String {
    let whom = match users.iter().next() {
        Some(user) if users.len() == 1 => format!("the user {user:?}"),
        _ => format!("{} users", users.len()),
    };
    let nonce = if echoed > 0 { "nonce echoed" } else { "no nonce of ours" };
    let tool = subject.signature.as_ref().map_or_else(String::new, |what| format!(", {what}"));
    format!("{tries} rejected passwords for {whom} in {}, {nonce}, none accepted{tool}", words(since))
}
