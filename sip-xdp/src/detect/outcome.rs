//! What a response says of the source that it goes to: accepted, challenged, rejected, refused.

use sip_xdp_common::abi::layout::Event;
use sip_xdp_common::ip_key::Source;

use super::exchange::{Method, Request};
use super::known::Acceptance;
use super::nonces::Echo;
use super::subject::Rejection;
use super::{Action, Detector, GRACE};
use crate::sip::message::{Head, StartLine};

/// For how long an accepted request other than a REGISTER makes its source known good, in nanoseconds.
const SESSION: u64 = 3_600_000_000_000;

/// The lifetimes of registrations that are believed, in seconds. RFC 3261 (10.2.1.1) has an hour as its default.
const SHORTEST: u32 = 10;
const USUAL: u32 = 3_600;
const LONGEST: u32 = 24 * 3_600;

const SECOND: u64 = 1_000_000_000;

/// So many rejections of one user within the grace period cannot be retries any more.
const NO_RETRY: usize = 2;

/// How many tries and challenges of one source may be waiting.
const MAX_WAITING: usize = 64;

/// How many users, and sources for each, are remembered that strangers have tried.
const MAX_USERS: usize = 16_384;

impl Detector {
    /// A request was answered.
    pub(super) fn outcome(
        &mut self,
        key: Source,
        event: &Event,
        request: &Request,
        head: &Head<'_>,
        actions: &mut Vec<Action>,
    ) {
        let now = event.time;
        let StartLine::Response(status) = head.start else {
            return;
        };
        match status {
            200..=299 => self.accepted(key, event, request, head, actions),
            401 | 407 if head.challenge.is_some_and(|challenge| challenge.stale) => {}
            401 | 407 if request.authorized || request.cut => self.rejected(key, event, request, actions),
            401 | 407 => self.challenged(key, request, now),
            403 if request.method == Method::Register && request.authorized => {
                self.rejected(key, event, request, actions)
            }
            403 | 404 | 484 | 604 => self.refused(key, event, request, status, actions),
            // Silence and failures of the server are never evidence.
            _ => {}
        }
    }

    /// 2xx. Without credentials, and to OPTIONS or inside of dialogs, it proves nothing.
    fn accepted(&mut self, key: Source, event: &Event, request: &Request, head: &Head<'_>, actions: &mut Vec<Action>) {
        let now = event.time;
        if request.method == Method::Invite
            && let Some(subject) = self.subjects.get_mut(&key)
        {
            subject.answered_calls += 1;
        }
        let echoes = request.nonces.iter().any(|nonce| self.nonces.echo(*nonce, key) != Echo::Foreign);
        let (true, Some(user)) = (request.authorized, &request.user) else {
            return;
        };
        let until = match request.method {
            Method::Register if request.removes => now,
            Method::Register => {
                let seconds = head.lifetime().or(request.expires).unwrap_or(USUAL).clamp(SHORTEST, LONGEST);
                now + u64::from(seconds) * SECOND
            }
            // A server that takes such requests from anybody does not mind credentials; one that asked for them does.
            Method::Invite | Method::Session if echoes && !request.in_dialog => now + SESSION,
            _ => return,
        };
        let acceptance = Acceptance { source: event.source, user: user.clone(), port: request.port, at: now, until };
        if until == now {
            self.known.end(event.source, user, request.port, now);
        } else {
            self.known.accept(&acceptance);
        }
        if let Some(subject) = self.subjects.get_mut(&key) {
            subject.proven = true;
            // A success pays for its own user.
            subject.tentative.retain(|(_, rejection)| rejection.user != *user);
            subject.rejected.retain(|rejection| rejection.user != *user);
            subject.refused.retain(|refused| refused != user);
            subject.challenged.retain(|(_, challenged, _)| challenged != user);
        }
        self.tried.remove(user);
        actions.push(Action::Accepted(acceptance));
    }

    /// 401 or 407 to a request without credentials: those should follow.
    fn challenged(&mut self, key: Source, request: &Request, now: u64) {
        let matters = matches!(request.method, Method::Register | Method::Invite | Method::Options | Method::Session);
        let (true, Some(user), Some(subject)) = (matters, &request.user, self.subjects.get_mut(&key)) else {
            return;
        };
        if subject.challenged.len() < MAX_WAITING {
            // An enumerator of calls says that it is somebody else each time, or never; what it tries is whom it calls.
            let user = if request.method == Method::Register { user } else { request.target.as_ref().unwrap_or(user) };
            subject.challenged.push((now, user.clone(), request.method == Method::Invite));
            self.due.push_back((now + GRACE, key));
        }
    }

    /// Credentials were rejected. It may be a retry with an old nonce, so it counts when no acceptance has followed, or
    /// at once when there are more of them than any retry makes.
    fn rejected(&mut self, key: Source, event: &Event, request: &Request, actions: &mut Vec<Action>) {
        let now = event.time;
        let (Some(user), port) = (request.user.clone(), request.port) else {
            return;
        };
        let echoed = request.nonces.iter().any(|nonce| self.nonces.echo(*nonce, key) == Echo::Own);
        // Whoever says that it is somebody who was accepted here, without an echo, may be anybody.
        if !echoed && self.is_spared(&event.source, now) {
            return;
        }
        self.note_try(key, &event.source, &user, now, actions);
        let Some(subject) = self.subjects.get_mut(&key) else {
            return;
        };
        let waiting = subject.tentative.iter().filter(|(_, rejection)| rejection.user == user).count();
        let is_certain =
            |(at, rejection): &&(u64, Rejection)| rejection.user == user && now.saturating_sub(*at) < GRACE;
        let certain = subject.rejected.iter().rev().take_while(|(at, _)| now.saturating_sub(*at) < GRACE);
        let before = waiting + certain.filter(is_certain).count();
        if subject.tentative.len() < MAX_WAITING {
            subject.tentative.push((now, Rejection { user: user.clone(), port, echoed }));
            self.due.push_back((now + GRACE, key));
        }
        if before >= NO_RETRY {
            self.count_rejections(key, now, |(_, rejection)| rejection.user == user, actions);
        }
    }

    /// 403, 404, 484 or 604: this user, or this number, is refused.
    fn refused(&mut self, key: Source, event: &Event, request: &Request, status: u16, actions: &mut Vec<Action>) {
        let now = event.time;
        let Some(target) = request.target.clone() else {
            return;
        };
        if self.is_spared(&event.source, now) {
            // Nobody is banned for wrong numbers, or for what somebody else may have sent.
            let echoes_own = request.nonces.iter().any(|nonce| self.nonces.echo(*nonce, key) == Echo::Own);
            if request.method == Method::Invite && echoes_own {
                self.refused_call(key, &target, Some(request.port), now, actions);
            }
            return;
        }
        if request.method == Method::Invite {
            self.refused_call(key, &target, None, now, actions);
        }
        if matches!(status, 403 | 404) {
            self.enumerated(key, &target, now, actions);
        }
        self.note_try(key, &event.source, &target, now, actions);
    }

    /// Looks at what was waiting for something to follow, now that it is too late for that.
    pub(super) fn settle(&mut self, key: Source, now: u64, actions: &mut Vec<Action>) {
        self.count_rejections(key, now, |(at, _)| now.saturating_sub(*at) >= GRACE, actions);
        let Some(subject) = self.subjects.get_mut(&key) else {
            return;
        };
        let late = |(at, ..): &(u64, String, bool)| now.saturating_sub(*at) >= GRACE;
        let over: Vec<_> = subject.challenged.extract_if(.., |waiting| late(waiting)).collect();
        let (source, limited) = (subject.source, subject.limited);
        if self.is_spared(&source, now) || self.known.was_good(&source, now) {
            return;
        }
        // Credentials that the kernel's own limit has held up are not missing.
        let over = over.into_iter().filter(|(at, ..)| limited == 0 || limited.saturating_add(GRACE) < *at);
        for (_, user, is_call) in over {
            if is_call {
                self.refused_call(key, &user, None, now, actions);
            }
            self.enumerated(key, &user, now, actions);
        }
    }

    /// Notes that a source was refused, or rejected, for a user: whoever tries what nobody has, or what many try.
    fn note_try(&mut self, key: Source, source: &Source, user: &str, now: u64, actions: &mut Vec<Action>) {
        let id = super::digest(&key);
        if self.known.is_user(user) {
            if self.known.accepted(source, user, now) {
                return;
            }
            let per = self.rules.sprayed.per.nanos();
            let is_new = note(&mut self.sprayed, user, id, now, per);
            let count = self.sprayed.get(user).map_or(0, |window| window.len());
            if self.rules.sprayed.enabled && is_new && count == self.rules.sprayed.count as usize {
                let text = format!(
                    "{count} strange sources were rejected for the user {user:?} within {}",
                    self.rules.sprayed.per
                );
                actions.push(Action::Note("sprayed", text));
            }
            return;
        }
        if !self.rules.decoy.enabled {
            return;
        }
        note(&mut self.tried, user, id, now, self.rules.decoy.per.nanos());
        self.tried_a_decoy(key, user, now, actions);
    }
}

/// Notes that a source has tried a user. Returns whether it is the first time.
fn note(
    users: &mut std::collections::BTreeMap<String, super::counting::Window<u64>>,
    user: &str,
    source: u64,
    now: u64,
    per: u64,
) -> bool {
    if users.len() >= MAX_USERS && !users.contains_key(user) {
        users.pop_first();
    }
    let window = users.entry(user.to_owned()).or_default();
    window.tidy(now, per);
    let is_new = !window.iter().any(|(_, known)| *known == source);
    if is_new {
        window.note(now, source, per);
    }
    is_new
}
