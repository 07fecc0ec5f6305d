//! `decoy`: users that do not exist, but many sources try. Level 1 only, and with an acceptance's
//! grace.

use std::collections::{HashMap, VecDeque};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sip_xdp_common::ip_key::IpKey;

use super::super::claim::{Growth, Level, Rejection};
use super::super::digest::digest;
use super::super::windows::Window;
use super::super::{Action, Detector, Finding};
use super::rule::{BanKind, Counts, Heard, Memory, Rule, Signal};
use crate::config::Span;

/// Refused tries of learned decoys; for configured ones, one is enough.
const TRIES: usize = 2;

/// Maximum number of remembered names. The oldest are dropped first, so that junk does not displace
/// frequent ones.
const MAX_USERS: usize = 16_384;

const DAY_NS: u64 = 24 * 3_600_000_000_000;

/// `[detect.decoy]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
#[serde(default)]
pub struct Settings {
    /// Whether it can ban.
    pub enabled: bool,
    /// Configured decoys.
    pub users: Vec<String>,
    /// Number of sources that must try a never-accepted user to make it a decoy.
    pub count: u32,
    /// Time in which they must do so.
    pub per: Span,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, users: Vec::new(), count: 5, per: Span::seconds(24 * 3600) }
    }
}

impl super::rule::Settings for Settings {
    fn enabled(&self) -> bool {
        self.enabled
    }

    fn rate(&self) -> Option<(u32, Span)> {
        Some((self.count, self.per))
    }
}

pub(in super::super) struct Decoy;

impl Rule for Decoy {
    const NAME: &'static str = "decoy";
    const COMMENT: &'static str = "Decoys: these users, and those that were never accepted and \
        that \"count\" sources tried within \"per\".";
    const KINDS: &'static [BanKind] = &[BanKind {
        name: "decoy",
        evidence: "2 rejected passwords for a user that was never accepted and that `count` \
                   sources tried within `per`; 1 for a user configured in `users`",
        limits: "proven evidence only; not within the first 24 h without state",
    }];

    type Settings = Settings;
    type Counts = Window<(String, u16)>;
    type Memory = Tried;

    fn hear(detector: &mut Detector, heard: &Heard<'_>, actions: &mut Vec<Action>) {
        match heard.what {
            Signal::Settled(rejection) => {
                detector.decoy_was_tried(heard.source, rejection, heard.now, actions);
            }
            Signal::Accepted(request, users) => {
                let users = users.iter().chain(&request.user);
                users.for_each(|user| detector.memory.decoy.forget(user));
            }
            _ => {}
        }
    }
}

/// Rejections for decoys of a day: user and port.
impl Counts for Window<(String, u16)> {
    fn begin_anew(&mut self, port: Option<u16>) {
        match port {
            Some(port) => self.retain(|(_, at)| *at != port),
            None => *self = Self::default(),
        }
    }
}

/// Never-accepted users, with the sources that tried them, up to the threshold.
#[derive(Debug, Default)]
pub(in super::super) struct Tried {
    users: HashMap<String, (Window<u64>, u64)>,
    order: VecDeque<(u64, String)>,
}

impl Tried {
    fn note(&mut self, user: &str, source: u64, count: usize, now: u64, per: u64) {
        if !self.users.contains_key(user) {
            self.make_room();
            self.order.push_back((now, user.to_owned()));
        }
        let (window, last) = self.users.entry(user.to_owned()).or_default();
        *last = now;
        window.tidy(now, per);
        if window.len() < count && !window.iter().any(|(_, known)| *known == source) {
            window.note(now, source, per);
        }
    }

    fn make_room(&mut self) {
        while self.users.len() >= MAX_USERS {
            let Some((at, user)) = self.order.pop_front() else {
                return;
            };
            match self.users.get(&user) {
                Some((_, last)) if *last > at => {
                    let last = *last;
                    self.order.push_back((last, user));
                }
                _ => _ = self.users.remove(&user),
            }
        }
    }

    fn sources(&self, user: &str) -> usize {
        self.users.get(user).map_or(0, |(window, _)| window.len())
    }

    /// Removes a user that was accepted.
    fn forget(&mut self, user: &str) {
        self.users.remove(user);
    }
}

impl Memory for Tried {
    fn tidy(&mut self, rules: &super::Detect, now: u64) {
        let per = rules.decoy.per.nanos();
        self.users.retain(|_, (window, _)| {
            window.tidy(now, per);
            window.len() > 0
        });
        let users = &self.users;
        self.order.retain(|(_, user)| users.contains_key(user));
    }
}

impl Detector {
    /// Processes a rejection that was not taken back in time.
    fn decoy_was_tried(
        &mut self,
        source: IpKey,
        rejection: &Rejection,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let rule = &self.rules.decoy;
        let (enabled, count, per) = (rule.enabled, rule.count as usize, rule.per);
        let user = &rejection.user;
        if !enabled || rejection.level != Level::Routable || self.known.is_user(user, now) {
            return;
        }
        let configured = rule.users.iter().any(|decoy| decoy == user);
        self.memory.decoy.note(user, digest(&source), count, now, per.nanos());
        let sources = self.memory.decoy.sources(user);
        // An unused name may belong to a user who has not returned since the first start.
        let is_learned = sources >= count && now >= self.decoys_from;
        if !configured && !is_learned {
            return;
        }
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        state.counts.decoy.note(now, (user.clone(), rejection.port), DAY_NS);
        if !configured && state.counts.decoy.len() < TRIES {
            return;
        }
        let reason = if configured {
            format!("tried the decoy {user:?}")
        } else {
            format!(
                "tried {user:?}, which nobody has and {sources} sources have tried within {per}"
            )
        };
        let mut pairs: Vec<_> = state.counts.decoy.iter().map(|(_, pair)| pair.clone()).collect();
        pairs.sort_unstable();
        pairs.dedup();
        let is_one = pairs.len() == 1 && !configured;
        let growth = if is_one { Growth::None } else { Growth::Full };
        // Behind an address with accepted users it may be a single phone with an old user.
        let port = self.known.was_good(&source, now).then_some(rejection.port);
        if port.is_some_and(|port| self.known.users_at(&source, port, now, user) > 0) {
            return;
        }
        let finding =
            Finding { port, growth, ..self.about(source, Decoy::NAME, Level::Routable, reason) };
        self.emit_ban(Level::Routable, finding, now, actions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junk_does_not_push_out_what_is_tried_over_and_over() {
        let mut tried = Tried::default();
        for n in 0..100_000_u64 {
            tried.note(&format!("junk {n}"), 1, 5, n, DAY_NS);
            tried.note("admin", n, 5, n, DAY_NS);
        }
        assert!(tried.users.len() <= MAX_USERS && tried.order.len() <= MAX_USERS + 1);
        assert_eq!(tried.sources("admin"), 5, "as many as are enough, and no more");
    }
}
