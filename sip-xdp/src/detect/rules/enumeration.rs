//! `enumeration`: different users refused without credentials, of a source that probes for existing
//! ones.

use serde::{Deserialize, Serialize};
use sip_xdp_common::ip_key::IpKey;

use super::super::claim::Level;
use super::super::windows::words;
use super::super::{Action, Detector, GRACE_NS};

pub(in super::super) const NAME: &str = "enumeration";

/// A refused user or number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Refused {
    pub(in super::super) target: String,
    level: Level,
    is_register: bool,
    /// Digest of a call's Call-ID, until its response is acknowledged.
    #[serde(skip)]
    call: Option<u64>,
}

impl Detector {
    /// Processes a refused user, or a challenge without following credentials.
    #[expect(clippy::too_many_arguments, reason = "a type for two callers would say no more")]
    pub(in super::super) fn enumerated(
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
        if state.limited != 0 && now.saturating_sub(state.limited) < GRACE_NS {
            return;
        }
        let is_known = state.refused.iter().any(|(_, refused)| refused.target == target);
        if !is_known {
            let target = target.to_owned();
            state.refused.note(now, Refused { target, level, is_register, call }, rule.per.nanos());
        }
        state.refused.tidy(now, rule.per.nanos());
        self.weigh_enumeration(source, now, actions);
    }

    /// Processes an acknowledgement with the response's tag: the caller is routable.
    pub(in super::super) fn enumeration_is_proven(
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
        state.refused.change(|refused| {
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
        let count =
            |level: Level| state.refused.iter().filter(|(_, one)| one.level >= level).count();
        let level = [Level::Routable, Level::Seen]
            .into_iter()
            .find(|level| count(*level) >= enough && count(*level) > 2 * accepted);
        let (true, Some(level)) = (rule.enabled, level) else {
            return;
        };
        let named = state.refused.iter().rev().take(3).map(|(_, one)| format!("{:?}", one.target));
        let reason = format!(
            "{} different users refused in {}, none accepted, {} among them",
            count(level),
            words(state.refused.since(now)),
            named.collect::<Vec<_>>().join(", ")
        );
        // The acknowledgement of the last call, which would prove it, may be in flight.
        let is_call = state.refused.iter().next_back().is_some_and(|(_, one)| one.call.is_some());
        let is_fresh = state.refused.iter().next_back().is_some_and(|(at, _)| *at == now);
        if level == Level::Seen && is_call && is_fresh && count(Level::Routable) > 0 {
            return;
        }
        let finding = self.about(source, NAME, level, reason);
        self.emit_ban(level, finding, now, actions);
    }

    /// Peers and hosts with standing probe numbers, not users: for them only REGISTER counts.
    fn is_exempt(&self, source: IpKey, is_register: bool, now: u64) -> bool {
        let is_partner = self.peers.is_peer(&source, now) || self.served.is_served(&source, now);
        is_partner && !is_register || self.known.was_good(&source, now)
    }
}
