//! Turns what the kernel samples into findings: who attacks, by which evidence, and who is real.
//!
//! Data goes one way: an event is read ([`crate::sip::message`]), a response finds its request (`exchange`), the outcome is
//! evidence for or against its source (`outcome`), and enough of it is a finding (`rules`). Pure: time comes with the
//! events, and what follows is handed back as [`Action`]s.

mod counting;
mod digest;
mod evidence;
mod exchange;
mod explain;
mod known;
mod nonces;
mod outcome;
mod registrar;
mod rules;
mod signature;
mod subject;
#[cfg(test)]
mod tests;
mod volume;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use sip_xdp_common::abi::layout::{BY_ADDRESS, Event, EventKind, FRAGMENTED, IN_STORM, SUSPECTED};
use sip_xdp_common::ip_key::{Source, mask};

use crate::config::{Config, Detect};
use crate::dataplane::tables::ledger::Tier;
use crate::sip::message::Head;

use digest::digest;
use exchange::{Exchanges, Request};
use known::Known;
use nonces::{Echo, Nonces};
use registrar::Registrar;
use subject::Subject;
use volume::Volume;

pub use explain::{Accepted, Evidence, LastRequest, View};
pub use known::Acceptance;

/// How many sources are watched at the same time. When there are more, the one that was silent for longest goes.
const MAX_SUBJECTS: usize = 32_768;

/// A source against which there is nothing is forgotten when it has been quiet for this long, in nanoseconds.
const QUIET: u64 = 24 * 3_600_000_000_000;

/// For how long a rejection may turn out to be a retry, and credentials may follow a challenge, in nanoseconds.
const GRACE: u64 = 5_000_000_000;

/// One source attacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whose: an address of the source.
    pub source: Source,
    /// The port, if one flow of the address is to blame and not all of it.
    pub port: Option<u16>,
    /// Whether the source is judged by its full address.
    pub by_address: bool,
    /// Which kind of evidence: a row of `[detect]`, or `misconfigured`.
    pub kind: &'static str,
    /// How sure it is that the source is where it says.
    pub tier: Tier,
    /// Whether the next ban of this source is longer.
    pub grows: bool,
    /// The evidence in words and numbers.
    pub reason: String,
}

/// What follows from an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ban it, unless a rule that no evidence overrides speaks against it.
    Ban(Finding),
    /// A user was accepted, or has taken its registration back: see [`Detector::good`].
    Accepted(Acceptance),
    /// A host answers our requests; it is a peer until then.
    Peer(Source, u64),
    /// Limit it to one request a second until then: it looks like a tool, but anybody can have sent this.
    Suspect(Source, u64, String),
    /// Something that an operator should know, of this kind.
    Note(&'static str, String),
}

/// Until when an address and one of its flows are known good, and how many users it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Good {
    /// The address.
    pub until: u64,
    /// The flow.
    pub flow_until: u64,
    /// Users that are registered now.
    pub users: usize,
}

/// The detector.
#[derive(Debug)]
pub struct Detector {
    rules: Detect,
    ipv6_mask: (u64, u64),
    volume: Volume,
    exchanges: Exchanges,
    nonces: Nonces,
    known: Known,
    /// Boxed, since a table that grows has room for twice as many as it holds.
    subjects: HashMap<Source, Box<Subject>>,
    /// Sources of which something becomes certain at a time.
    due: VecDeque<(u64, Source)>,
    /// Users that were never accepted, and who has tried them.
    tried: BTreeMap<String, counting::Window<u64>>,
    /// Accepted users, and which strangers were rejected for them.
    sprayed: BTreeMap<String, counting::Window<u64>>,
    registrar: Registrar,
}

impl Detector {
    /// A detector with the rules of `config`.
    pub fn new(config: &Config) -> Self {
        Self {
            rules: config.detect.clone(),
            ipv6_mask: mask(config.ipv6_prefix),
            volume: Volume::new(config),
            exchanges: Exchanges::default(),
            nonces: Nonces::default(),
            known: Known::default(),
            subjects: HashMap::new(),
            due: VecDeque::new(),
            tried: BTreeMap::new(),
            sprayed: BTreeMap::new(),
            registrar: Registrar::default(),
        }
    }

    /// Takes new rules, and keeps what was seen.
    pub fn configure(&mut self, config: &Config) {
        self.rules = config.detect.clone();
        self.ipv6_mask = mask(config.ipv6_prefix);
        self.volume.configure(config);
    }

    /// How many sources are being watched.
    pub fn watched(&self) -> usize {
        self.subjects.len()
    }

    /// How many addresses are known good, and how many hosts are peers.
    pub fn known(&self, now: u64) -> (usize, usize) {
        self.known.counts(now)
    }

    /// What is known of an address and one of its ports.
    pub fn good(&self, source: &Source, port: u16, now: u64) -> Good {
        let known = &self.known;
        let (until, flow_until) = (known.good_until(source, now), known.flow_until(source, port, now));
        Good { until, flow_until, users: known.users(source, now) }
    }

    /// Whether somebody was accepted from an address within a day.
    pub fn was_good_lately(&self, source: &Source, now: u64) -> bool {
        self.known.was_good_lately(source, now)
    }

    /// Whether the registrar seems to reject everybody, so that rejections prove nothing.
    pub fn registrar_is_failing(&self, now: u64) -> bool {
        self.registrar.is_failing(now)
    }

    /// Whether responses are seen at all, so that their absence says something.
    pub fn sees_responses(&self) -> bool {
        self.registrar.sees_responses(0, 0)
    }

    /// All that was accepted.
    pub fn acceptances(&self) -> impl Iterator<Item = Acceptance> + '_ {
        self.known.acceptances()
    }

    /// Takes up what an earlier run knew.
    pub fn restore(
        &mut self,
        acceptances: impl IntoIterator<Item = Acceptance>,
        peers: impl IntoIterator<Item = (Source, u64)>,
    ) {
        acceptances.into_iter().for_each(|acceptance| self.known.accept(&acceptance));
        peers.into_iter().for_each(|(source, until)| self.known.restore_peer(source, until));
    }

    /// Forgets what a source did: an operator has pardoned it.
    pub fn forget(&mut self, source: &Source) {
        let around = source.masked(self.ipv6_mask);
        self.subjects.retain(|key, _| key != source && (source.is_v4() || *key != around));
        self.volume.forget(source);
    }

    /// Forgets sources that have been quiet.
    pub fn tidy(&mut self, now: u64) {
        self.volume.tidy(now);
        self.known.tidy(now);
        self.subjects.retain(|_, subject| now.saturating_sub(subject.last) < QUIET);
        for windows in [(&mut self.tried, self.rules.decoy.per), (&mut self.sprayed, self.rules.sprayed.per)] {
            let (users, per) = windows;
            users.values_mut().for_each(|window| window.tidy(now, per.nanos()));
            users.retain(|_, window| window.len() > 0);
        }
        self.registrar.tidy();
    }

    /// Looks at what has become certain by the mere passing of time.
    pub fn tick(&mut self, now: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some((at, key)) = self.due.front().copied() {
            if at > now {
                break;
            }
            self.due.pop_front();
            self.settle(key, now, &mut actions);
        }
        if let Some(text) = self.registrar.news(now) {
            actions.push(Action::Note("registrar_failing", text));
        }
        actions
    }

    /// Takes an event, and says what follows from it.
    pub fn observe(&mut self, event: &Event) -> Vec<Action> {
        let now = event.time;
        let mut actions = self.tick(now);
        let bytes = event.head.get(..usize::from(event.head_length)).unwrap_or_default();
        let head = Head::read(bytes);
        let kind = EventKind::from_number(event.kind);
        match (kind, head) {
            (Some(EventKind::Limited), head) => self.limited(event, head.as_ref(), &mut actions),
            (Some(EventKind::Request | EventKind::Conflict), Some(head)) => self.request(event, &head, &mut actions),
            (Some(EventKind::Answer), Some(head)) => self.answer(event, &head, &mut actions),
            (Some(EventKind::Asked), Some(head)) => {
                // A request inside their dialog makes nobody a peer.
                if let Some(branch) = head.branch.filter(|_| head.to.tag.is_none()) {
                    self.known.ask(event.source, digest(branch), now);
                }
            }
            (Some(EventKind::Response), Some(head)) => {
                let until = head.branch.and_then(|branch| self.known.respond(event.source, digest(branch), now));
                actions.extend(until.map(|until| Action::Peer(event.source, until)));
            }
            _ => {}
        }
        actions
    }

    /// The key under which a source is judged.
    fn key(&self, event: &Event) -> Source {
        if is_by_address(event) { event.source } else { event.source.masked(self.ipv6_mask) }
    }

    /// The source of an event, among those that are watched.
    fn subject(&mut self, event: &Event) -> (Source, &mut Subject) {
        let key = self.key(event);
        if self.subjects.len() >= MAX_SUBJECTS && !self.subjects.contains_key(&key) {
            // Those that were silent for longest go, several at once, since looking for them takes a while.
            let mut last: Vec<u64> = self.subjects.values().map(|subject| subject.last).collect();
            let (_, oldest, _) = last.select_nth_unstable(MAX_SUBJECTS / 16);
            let oldest = *oldest;
            self.subjects.retain(|_, subject| subject.last > oldest);
        }
        let subject =
            self.subjects.entry(key).or_insert_with(|| Box::new(Subject::new(event.source, is_by_address(event))));
        subject.last = event.time;
        subject.source = event.source;
        (key, subject)
    }

    /// A source is over a limit.
    fn limited(&mut self, event: &Event, head: Option<&Head<'_>>, actions: &mut Vec<Action>) {
        let (key, subject) = self.subject(event);
        subject.limited = event.time;
        let (asked, answered, proven) = (subject.asked, subject.answered, subject.proven);
        if let Some(head) = head {
            subject.note_last(head);
            self.look_for_signature(key, event, head, actions);
        }
        // A limit of one request a second tells no flood.
        if event.flags & SUSPECTED != 0 {
            return;
        }
        let Some(flood) = self.volume.observe(event) else {
            return;
        };
        let now = event.time;
        if self.is_spared(&flood.source, now) {
            return;
        }
        if !self.registrar.sees_responses(asked, answered) {
            let text = "hardly any of our responses is seen: volume limits, but bans nobody; do they leave by an interface \
                        that is not filtered?";
            actions.push(Action::Note("unseen_responses", text.to_owned()));
            return;
        }
        actions.push(Action::Ban(Finding {
            source: flood.source,
            port: None,
            by_address: flood.by_address,
            kind: flood.kind.name(),
            tier: if proven { Tier::Proven } else { Tier::Unproven },
            grows: proven,
            reason: flood.reason,
        }));
    }

    /// A request has passed.
    fn request(&mut self, event: &Event, head: &Head<'_>, actions: &mut Vec<Action>) {
        let now = event.time;
        let unseen = event.flags & FRAGMENTED != 0 || event.length > event.head_length;
        let Some(request) = Request::new(head, event.port, unseen).map(Arc::new) else {
            return;
        };
        let judged_as = self.key(event);
        let echoes = |echo| request.nonces.iter().any(|nonce| self.nonces.echo(*nonce, judged_as) == echo);
        let echoes_own = echoes(Echo::Own);
        // Nearly all of a storm's strangers are forged: who has not shown that it receives our responses is not remembered.
        let is_strange = event.flags & IN_STORM != 0 && !self.subjects.contains_key(&judged_as);
        if is_strange && !echoes_own && !echoes(Echo::Shared) {
            return;
        }
        if !self.exchanges.ask(event.source, head, &request, now) {
            return;
        }
        let (key, subject) = self.subject(event);
        subject.proven |= echoes_own;
        subject.note_last(head);
        if request.method != exchange::Method::Ack {
            subject.asked += 1;
            self.registrar.asked();
        }
        if request.authorized || request.cut {
            let subject = self.subjects.get_mut(&key);
            if let (Some(subject), Some(user)) = (subject, &request.user) {
                subject.challenged.retain(|(_, challenged, _)| challenged != user);
            }
        }
        self.look_for_signature(key, event, head, actions);
    }

    /// A final response of ours has left.
    fn answer(&mut self, event: &Event, head: &Head<'_>, actions: &mut Vec<Action>) {
        if let Some(challenge) = head.challenge {
            // An IPv6 network is one source: one of its addresses may fetch what another one uses.
            self.nonces.give(digest(challenge.nonce), self.key(event), event.time);
        }
        // What was not sampled on its way in proves nothing.
        let Ok(Some(request)) = self.exchanges.answer(event.source, head) else {
            return;
        };
        let (key, subject) = self.subject(event);
        subject.answered += 1;
        self.registrar.answered();
        self.outcome(key, event, &request, head, actions);
    }

    /// Whether no evidence that could be forged may ban a source: it is a peer, or somebody was accepted from there.
    fn is_spared(&self, source: &Source, now: u64) -> bool {
        self.known.is_peer(source, now) || self.known.was_good_lately(source, now)
    }
}

/// Whether the source of an event is judged by its full address.
fn is_by_address(event: &Event) -> bool {
    event.flags & BY_ADDRESS != 0 || event.source.is_v4()
}
