//! Admission of evidence: what a response of the server proves about its destination, and at which
//! level ([`Level`]). There is no other place where evidence is admitted.
//!
//! Above 400 lines: admission has to be reviewed as a whole.

use std::sync::Arc;

use sip_xdp_common::abi::layout::RESPONSES_UNSEEN;
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::ladder::Digest;

use super::claim::{Level, Rejection};
use super::digest::digest;
use super::nonces::Echo;
use super::observation::Observation;
use super::registrations::Acceptance;
use super::rules::Signal;
use super::source_state::{Challenged, Waiting};
use super::transactions::{Answered, Credential, Match, Method, Request};
use super::windows::LeakyBucket;
use super::{Action, Detector, GRACE_NS};
use crate::sip::message::{Head, StartLine, user_name};
use crate::sip::transport::Transport;

/// How long an accepted request other than REGISTER makes its source known good.
const SESSION_NS: u64 = 3_600 * SECOND_NS;

/// Bounds of accepted registration lifetimes, in seconds. RFC 3261 (10.2.1.1) has an hour as its
/// default.
const SHORTEST: u32 = 10;
const USUAL: u32 = 3_600;
const LONGEST: u32 = 24 * 3_600;

const SECOND_NS: u64 = 1_000_000_000;

/// Number of rejections of one user within the grace period that cannot be retries any more.
const NO_RETRY: usize = 2;

/// Maximum number of pending tries and challenges per source.
const MAX_WAITING: usize = 64;

/// How long a response without its request is excused for the same source and user.
pub(super) const EXCUSE_NS: u64 = 600 * SECOND_NS;

/// Level of the leaky bucket of a source's excuses from which on it has none. An acceptance that
/// follows takes a rejection back without one.
const MOST_EXCUSES: f64 = 16.0;

/// A response of the server, and its destination.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    /// Destination.
    pub(super) to: IpKey,
    pub(super) port: u16,
    pub(super) status: u16,
    pub(super) head: &'a Head<'a>,
    pub(super) now: u64,
    /// Whether it is, or may be, a forwarded response, which proves nothing about its destination.
    pub(super) is_foreign: bool,
    /// How it goes there.
    pub(super) transport: Transport,
    /// Whether its request may have been hidden by the destination, whose address is proven.
    pub(super) is_hidden: bool,
    /// Whether its end was not seen.
    pub(super) is_cut: bool,
}

impl Detector {
    /// Processes a response of the server.
    pub(super) fn answer(
        &mut self,
        event: &Observation<'_>,
        head: &Head<'_>,
        actions: &mut Vec<Action>,
    ) {
        let StartLine::Response(status) = head.start else {
            return;
        };
        let (to, port, now) = (event.source, event.port, event.time);
        let is_foreign = event.flags & RESPONSES_UNSEEN != 0
            || !event.is_certain
            || self.arrived.is_foreign(head, now);
        let transport = event.transport;
        let is_hidden = event.is_proven && event.may_hide;
        let is_cut = event.is_cut;
        let answer =
            Answer { to, port, status, head, now, is_foreign, transport, is_hidden, is_cut };
        for one in &head.challenges {
            if is_foreign {
                // Who was given it is not certain, so that it is nobody's alone.
                self.share_nonce(one.nonce, to, now, actions);
            } else {
                self.give_nonce(one.nonce, to, now, actions);
            }
        }
        match self.transactions.answer(to, head, now) {
            Match::Of(answered) => {
                let Answered { request, .. } = &answered;
                if !is_foreign && request.source == to {
                    for one in &head.challenges {
                        self.nonces.challenge(digest(one.nonce), request, now);
                    }
                    if let (false, Some(tag), Some(_)) =
                        (request.in_dialog, head.to.tag, head.call_id)
                    {
                        self.dialogs.give(request.call, tag, to, now);
                    }
                }
                if answered.is_first {
                    let is_good = self.has_rights(&request.source, now);
                    self.registrar.answered(is_good);
                    if let Some(state) = self.sources.get_mut(&request.source) {
                        state.answered += 1;
                    }
                }
                if request.method == Method::Invite {
                    self.forget_orphans(&answer);
                }
                self.outcome(&answer, &answered, actions);
                if request.is_proven && status >= 200 {
                    let call = Signal::Proven(request.call);
                    self.hear(request.source, now, call, actions);
                }
            }
            Match::Repeated => {}
            Match::Unknown
                if head.cseq.is_some_and(|(_, method)| method == b"REGISTER")
                    && !head.challenges.is_empty()
                    && !is_foreign =>
            {
                // In a storm requests without credentials are not remembered.
                if let Some(user) = head.to.user.map(user_name) {
                    for one in &head.challenges {
                        self.nonces.challenge_registration(digest(one.nonce), to, &user, now);
                    }
                }
                self.orphan(&answer, actions);
            }
            Match::Unknown if status >= 180 => self.orphan(&answer, actions),
            Match::Unknown => {}
        }
    }

    /// Records a nonce sent to an address. The kernel learns it if the address is on the ladder.
    fn give_nonce(&mut self, nonce: &[u8], to: IpKey, now: u64, actions: &mut Vec<Action>) {
        let lost = self.nonces.give(digest(nonce), to, now);
        if let Some(state) = self.sources.get_mut(&to) {
            state.note_nonce((digest(nonce), Digest::of(nonce).0));
        }
        let mut tell = |source: IpKey, is_own: bool| {
            if self.is_metered(&source, now) {
                actions.push(Action::OwnNonce(source, Digest::of(nonce).0, is_own));
            }
        };
        match lost {
            Some(before) => tell(before, false),
            None if self.nonces.echo(digest(nonce), to, now) == Echo::Own => tell(to, true),
            None => {}
        }
    }

    /// Records a nonce that may have been sent to an address.
    fn share_nonce(&mut self, nonce: &[u8], to: IpKey, now: u64, actions: &mut Vec<Action>) {
        if let Some(before) = self.nonces.share(digest(nonce), to, now)
            && self.is_metered(&before, now)
        {
            actions.push(Action::OwnNonce(before, Digest::of(nonce).0, false));
        }
    }

    /// Processes the response to a known request.
    fn outcome(&mut self, answer: &Answer<'_>, answered: &Answered, actions: &mut Vec<Action>) {
        let request = &answered.request;
        let has_pending_request = request.authorized || request.cut;
        if self.accepts(answer, answered) {
            self.accepted(answer, request, actions);
            return;
        }
        if Self::is_open_call(answer, request) {
            let number = request.target.as_deref().unwrap_or_default();
            let Answer { status, now, .. } = *answer;
            self.served.answered(request.source, request.call, number, status, now);
        }
        match answer.status {
            100..=199 => {}
            // The password was right, but the nonce too old.
            401 | 407 if has_pending_request && answer.head.is_stale() => {}
            401 | 407 if has_pending_request => self.rejected(answer, request, actions),
            401 | 407 => self.challenged(request, answer.now),
            403 if request.authorized && !self.is_accepted_lately(request, answer.now) => {
                self.rejected(answer, request, actions);
            }
            403 | 404 | 484 | 604 => self.refused(answer, request, actions),
            200..=299 | 480 | 486 | 487 | 603 => self.processed(answer, request, actions),
            // Silence and server failures are never evidence.
            _ => {}
        }
        if answer.status >= 200 {
            let what = Signal::Answered(request, answer);
            self.hear(request.source, answer.now, what, actions);
        }
    }

    /// Whether a response proves that its request's password was right.
    fn accepts(&self, answer: &Answer<'_>, answered: &Answered) -> bool {
        let Answered { request, rang, is_only, .. } = answered;
        // Of several requests, or readings of one, it is not known which was accepted.
        if !request.authorized
            || !is_only
            || request.is_ambiguous
            || request.in_dialog
            || answer.is_foreign
            || request.source != answer.to
        {
            return false;
        }
        let now = answer.now;
        match request.method {
            // It only renews proven standing, so that an unseen nonce will do.
            Method::Register => {
                matches!(answer.status, 200..=299)
                    && (self.nonces.was_challenged(request, now)
                        || self
                            .own_users(request, now)
                            .iter()
                            .any(|user| self.known.is_own_place(user, &request.place(), now)))
            }
            Method::Invite | Method::Session => {
                let says_so = match answer.status {
                    487 => *rang,
                    180..=189 | 200..=399 | 404 | 480 | 484 | 486 | 600 | 603 | 604 => true,
                    _ => false,
                };
                says_so && self.nonces.was_challenged(request, now)
            }
            _ => false,
        }
    }

    /// Processes an acceptance.
    fn accepted(&mut self, answer: &Answer<'_>, request: &Request, actions: &mut Vec<Action>) {
        let (now, source) = (answer.now, request.source);
        // Which of several credentials the server has looked at is not known.
        let users = self.own_users(request, now);
        let [user] = users.as_slice() else {
            return;
        };
        let user = user.clone();
        if let Some(state) = self.sources.get_mut(&source) {
            state.routable = true;
            state.take_back(&users, request.call);
            if let Some(aor) = request.aor() {
                state.take_back(std::slice::from_ref(aor), request.call);
            }
        }
        self.hear(source, now, Signal::Accepted(request, &users), actions);
        let account = digest(&(&user, source));
        if self.known.accepted_lately(&source, &user, now) {
            self.registrar.tried(now, account, true, 0);
        }
        let until = match request.method {
            Method::Register if request.removes => now,
            Method::Register => {
                let granted = answer.head.lifetime().or(request.expires).unwrap_or(USUAL);
                now + u64::from(granted.clamp(SHORTEST, LONGEST)) * SECOND_NS
            }
            _ => now + SESSION_NS,
        };
        let Request { port, transport, .. } = *request;
        let acceptance = Acceptance { source, user, port, transport, at: now, until };
        if until == now {
            self.known.end(&source, &acceptance.user, now);
        } else if !self.accept(&acceptance, request, actions) {
            return;
        }
        actions.push(Action::Accepted(acceptance));
    }

    /// Users in the credentials that echo a nonce of the source alone, else of the server; the
    /// first one if none does.
    fn own_users(&self, request: &Request, now: u64) -> Vec<String> {
        let echo = |one: &Credential| self.nonces.echo(one.nonce, request.source, now);
        let has_own = request.credentials.iter().any(|one| echo(one) == Echo::Own);
        request.claimed_users(|one| match echo(one) {
            Echo::Foreign => false,
            Echo::Own => true,
            Echo::Shared | Echo::Network => !has_own,
        })
    }

    fn is_accepted_lately(&self, request: &Request, now: u64) -> bool {
        let users = self.own_users(request, now);
        users.iter().all(|user| self.known.accepted_lately(&request.source, user, now))
    }

    /// The level of evidence that a request carries.
    pub(super) fn level_of(&self, request: &Request, now: u64) -> Level {
        let echoes = |nonce| self.nonces.echo(nonce, request.source, now) == Echo::Own;
        let routable = request.is_proven || request.credentials.iter().any(|one| echoes(one.nonce));
        if routable { Level::Routable } else { Level::Seen }
    }

    /// Processes a 401 or 407 to a request without credentials, which should follow in the same
    /// call.
    fn challenged(&mut self, request: &Request, now: u64) {
        let matters = matches!(
            request.method,
            Method::Register | Method::Invite | Method::Options | Method::Session
        );
        if !matters || request.in_dialog {
            return;
        }
        // An enumerator of calls varies or omits its own user; the tried user is the callee.
        let target =
            if request.method == Method::Register { &request.user } else { &request.target };
        let (Some(target), Some(state)) =
            (target.as_ref().or(request.user.as_ref()), self.sources.get_mut(&request.source))
        else {
            return;
        };
        if state.challenged.len() < MAX_WAITING {
            state.challenged.push(Challenged {
                at: now,
                target: target.clone(),
                call: request.call,
                is_invite: request.method == Method::Invite,
                is_register: request.method == Method::Register,
                is_proven: request.is_proven,
            });
            self.due.push_back((now + GRACE_NS, request.source));
        }
    }

    /// Processes rejected credentials.
    fn rejected(&mut self, answer: &Answer<'_>, request: &Arc<Request>, actions: &mut Vec<Action>) {
        let (now, source) = (answer.now, request.source);
        let mut level = self.level_of(request, now);
        // Nobody else knows the branch and Call-ID of a request that came by a connection.
        if answer.is_foreign && !request.is_proven || answer.to != source {
            level = Level::Seen;
        }
        if level == Level::Routable
            && let Some(state) = self.sources.get_mut(&source)
        {
            state.routable = true;
        }
        let echoes = |nonce| self.nonces.echo(nonce, source, now) == Echo::Own;
        // The server may have looked at any of several credentials.
        let own = request.claimed_users(|one| echoes(one.nonce));
        let users = request.claimed_users(|_| true);
        let is_near = |nonce| self.nonces.echo(nonce, source, now) == Echo::Network;
        let network =
            !answer.is_foreign && request.credentials.iter().any(|one| is_near(one.nonce));
        let account = |user: &String| digest(&(user, source));
        for user in users {
            if self.known.accepted_lately(&source, &user, now) && level == Level::Routable {
                let known = self.known.accounts_lately(now, 5);
                self.registrar.tried(now, account(&user), false, known);
            }
            // A rejection at the user's own place is an event, never evidence.
            if self.known.is_own_place(&user, &request.place(), now)
                && !self.may_cover(&user, request)
            {
                let text = format!("the user {user:?} is rejected where it was accepted before");
                actions.push(Action::Rejected(source, request.port, text));
                continue;
            }
            let Request { port, transport, call, is_proven, .. } = **request;
            let level = if is_proven || own.contains(&user) { level } else { Level::Seen };
            // Under cover of an account it is the address-of-record whose password is tried.
            let is_account = self.known.accepted(&source, &user, now);
            let aor = self.other_aor(&user, request).filter(|_| is_account);
            let user = aor.cloned().unwrap_or(user);
            let rejection = Rejection { user, port, transport, level, network, call };
            self.wait(source, rejection, now, actions);
        }
    }

    /// Whether a rejection at the user's own place may be that of a try for somebody else: servers
    /// may read other credentials, or take the password of the address-of-record that it is to
    /// register.
    fn may_cover(&self, user: &str, request: &Request) -> bool {
        request.is_ambiguous || self.other_aor(user, request).is_some()
    }

    /// The address-of-record that a request is to register, if it is another one than the user has
    /// registered from there.
    fn other_aor<'a>(&self, user: &str, request: &'a Request) -> Option<&'a String> {
        request.aor().filter(|aor| !self.known.may_be_called(&request.source, user, aor))
    }

    /// Processes a request with credentials whose answer cannot be told, since its CSeq is none.
    pub(super) fn unmatched(
        &mut self,
        request: &Arc<Request>,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let level = self.level_of(request, now);
        for user in request.claimed_users(|_| true) {
            let Request { source, port, transport, call, .. } = **request;
            let rejection = Rejection { user, port, transport, level, network: false, call };
            self.wait(source, rejection, now, actions);
        }
    }

    /// Records a rejection. Those of guessers count at once; those of possible phones with an old
    /// nonce, once no acceptance can follow.
    fn wait(&mut self, source: IpKey, rejection: Rejection, now: u64, actions: &mut Vec<Action>) {
        let is_account = self.known.accepted(&source, &rejection.user, now);
        if is_account && self.registrar.is_failing(now) {
            return;
        }
        // Forgeable evidence never ends standing.
        if rejection.level == Level::Seen && self.has_standing(&source, now) {
            self.limit_hidden(source, now, actions);
            return;
        }
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        let (user, level) = (rejection.user.clone(), rejection.level);
        let is_same = |other: &Rejection| other.user == user;
        let waiting =
            state.waiting.iter().filter(|one| !one.counted && is_same(&one.rejection)).count();
        let lately = state
            .counts
            .rejected
            .tries
            .iter()
            .rev()
            .take_while(|(at, _)| now.saturating_sub(*at) < GRACE_NS);
        let certain = lately.filter(|(_, one)| is_same(one)).count();
        // An old nonce, in a call that may ring for long before it is accepted.
        let may_be_retried = is_account || level == Level::Seen;
        if state.waiting.len() < MAX_WAITING {
            state.waiting.push(Waiting { at: now, rejection, counted: false, may_be_retried });
            self.due.push_back((now + GRACE_NS, source));
        } else {
            // That many cannot be retries.
            state.waiting.iter_mut().for_each(|one| one.may_be_retried = false);
        }
        if level == Level::Routable && !is_account || waiting + certain >= NO_RETRY {
            self.count_rejections(source, now, |one| one.rejection.user == user, actions);
        }
    }

    /// Processes a 403, 404, 484 or 604: a refused user or number.
    fn refused(&mut self, answer: &Answer<'_>, request: &Request, actions: &mut Vec<Action>) {
        let Some(target) = &request.target else {
            return;
        };
        if request.in_dialog {
            return;
        }
        let what = Signal::Refused(request, target, answer.status);
        self.hear(request.source, answer.now, what, actions);
    }

    /// Whether a response is ours, to a call without credentials.
    fn is_open_call(answer: &Answer<'_>, request: &Request) -> bool {
        let is_call = request.method == Method::Invite && !request.in_dialog && !request.authorized;
        is_call && !answer.is_foreign && answer.to == request.source
    }

    /// Processes a call that was accepted without credentials.
    fn processed(&mut self, answer: &Answer<'_>, request: &Request, actions: &mut Vec<Action>) {
        if !Self::is_open_call(answer, request) {
            return;
        }
        if let Some(number) = &request.target
            && let Some(until) =
                self.served.process(request.source, request.call, number, answer.now)
        {
            actions.push(Action::Served(request.source, until));
        }
    }

    /// Processes a response whose request was not seen, because it was padded, fragmented or not
    /// sampled: hiding requests gains nothing.
    fn orphan(&mut self, answer: &Answer<'_>, actions: &mut Vec<Action>) {
        let Answer { to, port, status, head, now, .. } = *answer;
        let is_nameless = head.call_id.is_none();
        let call = digest(&head.call_id);
        match status {
            // Without a challenge nothing was tried.
            401 | 407
                if head.challenges.is_empty() && !answer.is_cut && self.has_standing(&to, now) =>
            {
                return;
            }
            401 | 403 | 407 if !head.is_stale() => {}
            _ => return self.forget_orphans(answer),
        }
        let user = head.to.user.or(head.from.user).map(user_name).unwrap_or_default();
        let is_first = self.orphans.get(&digest(&(to, call)), now).is_none();
        self.orphans.insert(digest(&(to, call)), now, ());
        let excuse = digest(&(to, &user));
        // A carrier calls faster than is sampled, and its INVITEs are often challenged once. Those
        // that are sampled show whether they carry a password.
        let is_call_of_peer = head.cseq.is_some_and(|(_, method)| method == b"INVITE")
            && self.peers.is_peer(&to, now);
        if is_first && is_call_of_peer {
            return;
        }
        if is_first
            && !is_nameless
            && self.excused.get(&excuse, now).is_none()
            && self.may_excuse(to, now)
        {
            self.excused.insert(excuse, now, ());
            return;
        }
        self.source_state(to, now);
        let Some(state) = self.sources.get_mut(&to) else {
            return;
        };
        if state.waiting.len() < MAX_WAITING {
            let transport = answer.transport;
            // Samples are lost as well. But who sends fragments over TCP hides something, and the
            // address is its own.
            let is_own_doing = answer.is_hidden && !answer.is_foreign;
            let level = if is_own_doing { Level::Routable } else { Level::Seen };
            let rejection = Rejection { user, port, transport, level, network: false, call };
            state.waiting.push(Waiting {
                at: now,
                rejection,
                counted: false,
                may_be_retried: false,
            });
            self.due.push_back((now + GRACE_NS, to));
        } else {
            // That many are no retries.
            self.count_rejections(to, now, |_| true, actions);
        }
    }

    /// Takes back what was not counted yet of a call that goes on.
    fn forget_orphans(&mut self, answer: &Answer<'_>) {
        let call = digest(&answer.head.call_id);
        if matches!(answer.status, 180..=189 | 200..=299 | 486)
            && let Some(state) = self.sources.get_mut(&answer.to)
        {
            state.waiting.retain(|one| one.counted || one.rejection.call != call);
        }
    }

    /// Whether one more first answer without its request says nothing about a source: users of it
    /// that are challenged once may be as many as an office has phones, and few more in a day.
    fn may_excuse(&mut self, source: IpKey, now: u64) -> bool {
        let leak_ns = self.rules.slow.per.nanos();
        let excuses = self.excuses.touch(source, now, LeakyBucket::default);
        if excuses.level(now, leak_ns) >= MOST_EXCUSES {
            return false;
        }
        excuses.pour(now, leak_ns);
        true
    }

    /// Evaluates pending evidence whose time has run out.
    pub(super) fn settle(&mut self, source: IpKey, now: u64, actions: &mut Vec<Action>) {
        self.settle_rejections(source, now, actions);
        self.settle_challenges(source, now, actions);
        self.hear(source, now, Signal::Due, actions);
    }

    fn settle_challenges(&mut self, source: IpKey, now: u64, actions: &mut Vec<Action>) {
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        let late = |one: &mut Challenged| now.saturating_sub(one.at) >= GRACE_NS;
        let over: Vec<_> = state.challenged.extract_if(.., late).collect();
        let limited = state.limited;
        // Nor tries that the ladder delayed, at an address with standing.
        if self.is_metered(&source, now) && self.has_standing(&source, now) {
            return;
        }
        // Credentials that the kernel's own limit dropped are not missing.
        let was_free = |at: u64| limited == 0 || limited.saturating_add(GRACE_NS) < at;
        for one in over.into_iter().filter(|one| was_free(one.at)) {
            self.hear(source, now, Signal::Unanswered(&one), actions);
        }
    }
}
