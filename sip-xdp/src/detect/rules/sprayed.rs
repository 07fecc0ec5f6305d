//! `sprayed`: an accepted user whose password many strangers try. Each of them is then banned at
//! its third rejection in a day; places where the user was accepted are untouched.

use std::collections::{HashMap, VecDeque};

use sip_xdp_common::ip_key::IpKey;

use super::super::claim::{Level, Rejection};
use super::super::source_state::SourceState;
use super::super::windows::Window;
use super::super::{Action, Detector};

pub(in super::super) const NAME: &str = "sprayed";

/// How many tries a stranger has for a user that is sprayed.
const TRIES: usize = 3;

/// How many users are remembered.
const MAX_USERS: usize = 16_384;

const DAY_NS: u64 = 24 * 3_600_000_000_000;

/// Tries of strangers for accepted users.
#[derive(Debug, Default)]
pub(in super::super) struct Sprayed {
    users: HashMap<String, User>,
    order: VecDeque<String>,
}

#[derive(Debug, Default)]
struct User {
    /// Routable tries, and those that could be forged. The latter act on their like only.
    tries: [Window<()>; 2],
    until: [u64; 2],
}

const fn index(level: Level) -> usize {
    match level {
        Level::Routable => 0,
        Level::Seen => 1,
    }
}

impl Sprayed {
    /// Notes a try. Returns how many there were, if that makes the user sprayed.
    fn note(
        &mut self,
        user: &str,
        level: Level,
        count: usize,
        now: u64,
        per: u64,
    ) -> Option<usize> {
        if !self.users.contains_key(user) {
            if self.users.len() >= MAX_USERS
                && let Some(oldest) = self.order.pop_front()
            {
                self.users.remove(&oldest);
            }
            self.order.push_back(user.to_owned());
        }
        let found = self.users.entry(user.to_owned()).or_default();
        let tries = &mut found.tries[index(level)];
        tries.note(now, (), per);
        let is_sprayed = tries.len() >= count;
        let is_new = found.until[index(level)] <= now;
        if is_sprayed {
            found.until[index(level)] = now + DAY_NS;
        }
        (is_sprayed && is_new).then(|| found.tries[index(level)].len())
    }

    /// Whether tries of this level for a user are limited.
    fn is_sprayed(&self, user: &str, level: Level, now: u64) -> bool {
        self.users.get(user).is_some_and(|user| user.until[index(level)] > now)
    }

    pub(in super::super) fn tidy(&mut self, now: u64, per: u64) {
        self.users.retain(|_, user| {
            user.tries.iter_mut().for_each(|tries| tries.tidy(now, per));
            user.tries.iter().any(|tries| tries.len() > 0)
                || user.until.iter().any(|until| *until > now)
        });
        let users = &self.users;
        self.order.retain(|user| users.contains_key(user));
    }
}

impl Detector {
    /// A stranger was rejected for a user.
    pub(in super::super) fn user_was_tried(
        &mut self,
        source: IpKey,
        rejection: &Rejection,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let rule = self.rules.sprayed;
        let Rejection { user, level, .. } = rejection;
        let is_own = self.known.accepted(&source, user, now);
        if !rule.enabled || is_own || !self.known.is_user(user, now) {
            return;
        }
        let found = self.sprayed.note(user, *level, rule.count as usize, now, rule.per.nanos());
        if let Some(count) = found {
            let text = format!(
                "strangers had {count} passwords rejected for the user {user:?} within {}",
                rule.per
            );
            actions.push(Action::Note("sprayed", text));
        }
        if self.sprayed.is_sprayed(user, *level, now)
            && let Some(state) = self.sources.get_mut(&source)
        {
            state.sprayed.note(now, *level, DAY_NS);
        }
    }

    /// Whether a stranger has had its tries for sprayed users.
    pub(in super::super) fn is_third_for_a_sprayed_user(
        &self,
        state: &SourceState,
        level: Level,
    ) -> bool {
        let tries = state.sprayed.iter().filter(|(_, one)| *one >= level);
        self.rules.sprayed.enabled && tries.count() >= TRIES
    }
}
