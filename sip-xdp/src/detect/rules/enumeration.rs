//! `enumeration`: different users refused without credentials, of a source that probes for existing
//! ones.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sip_xdp_common::ip_key::IpKey;

use super::super::claim::Level;
use super::super::explain::named;
use super::super::source_state::SourceState;
use super::super::transactions::Method;
use super::super::windows::{Window, words};
use super::super::{Action, Detector};
use super::rule::{BanKind, Counts, Heard, Rule, Signal, Told, recalled};

threshold! {
    /// `[detect.enumeration]`.
    count = 10, seconds = 600
}

pub(in super::super) struct Enumeration;

impl Rule for Enumeration {
    const NAME: &'static str = "enumeration";
    const COMMENT: &'static str = "Enumeration: different users refused, more than twice as many \
        as accepted or served.";
    const KINDS: &'static [BanKind] = &[BanKind {
        name: "enumeration",
        evidence: "`count` different users refused without credentials within `per` (403, 404, or \
                   401 that no Authorization of the same Call-ID follows), more than twice as many \
                   as were accepted or served",
        limits: "nothing counts while packets of the source are dropped as `limited`",
    }];
    const MAX_COUNT: u32 = 1_000;

    type Settings = Settings;
    type Counts = Window<Refused>;
    type Memory = ();

    fn hear(detector: &mut Detector, heard: &Heard<'_>, actions: &mut Vec<Action>) {
        let (source, now) = (heard.source, heard.now);
        match heard.what {
            Signal::Refused(request, target, 403 | 404) if !request.authorized => {
                let is_register = request.method == Method::Register;
                let (level, call) = (Level::Seen, Some(request.call));
                detector.enumerated(source, target, is_register, level, call, now, actions);
            }
            Signal::Unanswered(one) => {
                let level = if one.is_proven { Level::Routable } else { Level::Seen };
                let is_register = one.is_register;
                detector.enumerated(source, &one.target, is_register, level, None, now, actions);
            }
            Signal::Proven(call) => detector.enumeration_is_proven(source, call, now, actions),
            _ => {}
        }
    }

    fn tell(detector: &Detector, state: &SourceState, now: u64) -> Option<Told> {
        let within = detector.rules.enumeration.per.nanos();
        let refused = state.counts.enumeration.iter();
        let lately = || refused.clone().filter(|(at, _)| now.saturating_sub(*at) <= within);
        let count = lately().count();
        let users = named(lately().map(|(_, refused)| refused.target.as_str()));
        let text = format!("{count} different users refused: {users}");
        Some(Told { count: count as f64, text })
    }
}

/// A refused user or number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Refused {
    target: String,
    level: Level,
    is_register: bool,
    /// Digest of a call's Call-ID, until its response is acknowledged.
    #[serde(skip)]
    call: Option<u64>,
}

impl Refused {
    /// The refused user or number.
    pub(super) fn target(&self) -> &str {
        &self.target
    }
}

impl Counts for Window<Refused> {
    fn take_back(&mut self, users: &[String], _call: u64) {
        self.retain(|refused| !users.contains(&refused.target));
    }

    fn begin_anew(&mut self, port: Option<u16>) {
        if port.is_none() {
            *self = Self::default();
        }
    }

    fn is_worth_keeping(&self) -> bool {
        self.len() > 0
    }

    fn keep(&self, kept: &mut Map<String, Value>) -> Result<()> {
        kept.insert("refused".to_owned(), serde_json::to_value(self)?);
        Ok(())
    }

    fn recall(&mut self, kept: &mut Map<String, Value>, moved: &dyn Fn(u64) -> u64) -> Result<()> {
        *self = recalled(kept, "refused")?.unwrap_or_default();
        self.shift(moved);
        Ok(())
    }
}

impl Detector {
    /// Processes a refused user, or a challenge without following credentials.
    #[expect(clippy::too_many_arguments, reason = "a type for two callers would say no more")]
    fn enumerated(
        &mut self,
        source: IpKey,
        target: &str,
        is_register: bool,
        level: Level,
        call: Option<u64>,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let rule = self.rules.enumeration;
        if self.known.accepted(&source, target, now) || self.is_exempt(source, is_register, now) {
            return;
        }
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        if state.is_limited(now) {
            return;
        }
        let is_known = state.counts.enumeration.iter().any(|(_, refused)| refused.target == target);
        if !is_known {
            let target = target.to_owned();
            state.counts.enumeration.note(
                now,
                Refused { target, level, is_register, call },
                rule.per.nanos(),
            );
        }
        state.counts.enumeration.tidy(now, rule.per.nanos());
        self.weigh_enumeration(source, now, actions);
    }

    /// Processes an acknowledgement with the response's tag: the caller is routable.
    fn enumeration_is_proven(
        &mut self,
        source: IpKey,
        call: u64,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        let mut changed = false;
        state.counts.enumeration.change(|refused| {
            if refused.call == Some(call) && refused.level == Level::Seen {
                refused.level = Level::Routable;
                changed = true;
            }
        });
        if changed {
            self.weigh_enumeration(source, now, actions);
        }
    }

    fn weigh_enumeration(&mut self, source: IpKey, now: u64, actions: &mut Vec<Action>) {
        let rule = self.rules.enumeration;
        let Some(state) = self.sources.get(&source) else {
            return;
        };
        let accepted = self.known.known_users(&source) + self.served.carried(&source, now);
        let enough = self.threshold(&source, rule.count, now);
        let count = |level: Level| {
            state.counts.enumeration.iter().filter(|(_, one)| one.level >= level).count()
        };
        let level = [Level::Routable, Level::Seen]
            .into_iter()
            .find(|level| count(*level) >= enough && count(*level) > 2 * accepted);
        let (true, Some(level)) = (rule.enabled, level) else {
            return;
        };
        let named = state
            .counts
            .enumeration
            .iter()
            .rev()
            .take(3)
            .map(|(_, one)| format!("{:?}", one.target));
        let reason = format!(
            "{} different users refused in {}, none accepted, {} among them",
            count(level),
            words(state.counts.enumeration.since(now)),
            named.collect::<Vec<_>>().join(", ")
        );
        // The acknowledgement of the last call, which would prove it, may be in flight.
        let is_call =
            state.counts.enumeration.iter().next_back().is_some_and(|(_, one)| one.call.is_some());
        let is_fresh =
            state.counts.enumeration.iter().next_back().is_some_and(|(at, _)| *at == now);
        if level == Level::Seen && is_call && is_fresh && count(Level::Routable) > 0 {
            return;
        }
        let finding = self.about(source, Enumeration::NAME, level, reason);
        self.emit_ban(level, finding, now, actions);
    }

    /// Peers and hosts with standing probe numbers, not users: for them only REGISTER counts.
    fn is_exempt(&self, source: IpKey, is_register: bool, now: u64) -> bool {
        let is_partner = self.peers.is_peer(&source, now) || self.served.is_served(&source, now);
        is_partner && !is_register || self.known.was_good(&source, now)
    }
}
