//! The detector: from kernel events to findings and acceptances.
//!
//! Data flow: an event is parsed ([`crate::sip::message`]), a response is matched to its request
//! (`transactions`), evidence is admitted with its level (`responses`) and weighed by a rule
//! (`rules`, one file each), and enough of it is a finding (`rules::emit_ban`). Pure: time comes
//! with the events, and results are returned as [`Action`]s.
//!
//! Above 400 lines: the types of results, and the one place that combines all state.

mod arrived;
mod claim;
mod dialogs;
mod digest;
mod explain;
mod nonces;
mod observation;
mod peers;
mod persistence;
mod recent;
mod registrar;
mod registrations;
mod responses;
pub(crate) mod rules;
mod served;
mod source_state;
#[cfg(test)]
mod tests;
mod transactions;
mod windows;

pub(crate) use rules::kinds;
pub use rules::{EvidenceName, KindName, RuleName};

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use sip_xdp_common::abi::layout::{EventKind, IN_STORM, KernelEvent, LADDERS, SUSPECTED};
use sip_xdp_common::ip_key::{IpKey, mask};
use sip_xdp_common::limits::gcra::LimitKind;
use sip_xdp_common::limits::ladder::WIDTHS;

use crate::config::{Config, Detect};
use crate::dataplane::tables::ledger::Tier;
use crate::net::network::Network;
use crate::sip::message::{Head, StartLine};
use crate::sip::transport::Transport;

use arrived::Arrived;
use claim::Level;
use dialogs::Dialogs;
use digest::digest;
use nonces::{Echo, Nonces};
use peers::Peers;
use recent::Recent;
use registrar::{Answers, Registrar};
use registrations::Registrations;
use rules::{Memories, Signal, networks, stream_meters::OverLimit, volume::Volume};
use served::Served;
use source_state::SourceState;
use transactions::{Method, Request, Transactions};
use windows::LeakyBucket;

pub use claim::Growth;
pub use explain::{Accepted, Evidence, LastRequest, View};
pub use observation::Observation;
pub use registrations::Acceptance;
pub use rules::sprayed::Spray;

/// Maximum number of watched sources. Beyond it the one idle longest is dropped.
const MAX_SOURCES: usize = 32_768;

/// Maximum number of remembered offenders, and of places where nobody earns standing.
const MAX_OFFENDERS: usize = 32_768;

/// Maximum number of responses without a request.
const MAX_ORPHANS: usize = 32_768;

/// Idle time after which a source without evidence is dropped.
const QUIET_NS: u64 = 24 * 3_600_000_000_000;

/// Time for a rejection to turn out as a retry, for credentials to follow a challenge, and for an
/// acknowledgement to follow a response.
const GRACE_NS: u64 = 5_000_000_000;

/// Time without learned decoys after a start without stored state.
const FIRST_DAY_NS: u64 = 24 * 3_600_000_000_000;

/// Lifetime of calls whose responses had no request.
const ORPHAN_NS: u64 = 3_600_000_000_000;

/// Enough evidence against a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// An address of the source.
    pub source: IpKey,
    /// Prefix length: 128 for a host; 64, 56 or 48 for an IPv6 network around it.
    pub bits: u8,
    /// The port, if a single flow of the address offended.
    pub port: Option<u16>,
    /// Offending ports of an address with accepted users; its other ports are not affected.
    pub ports: Vec<u16>,
    /// How its last request came.
    pub transport: Transport,
    /// The kind of evidence: a rule of `[detect]`, or `misconfigured`.
    pub kind: &'static str,
    /// Evidence tier.
    pub tier: Tier,
    /// Growth of further bans.
    pub growth: Growth,
    /// The evidence in words and numbers.
    pub reason: String,
}

/// A result of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A ban, unless the source is never banned.
    Ban(Finding),
    /// A user was accepted, or has unregistered: see [`Detector::good`].
    Accepted(Acceptance),
    /// These ports have lost their standing, by eviction or by an offence.
    Ended(Vec<(IpKey, u16)>),
    /// A host that answers the server's requests is a peer until this time.
    Peer(IpKey, u64),
    /// The server processes calls of this source without credentials; it is served until this time.
    Served(IpKey, u64),
    /// Strangers try passwords for this accepted user.
    Sprayed(Spray),
    /// A source goes on the ladder, or a step down.
    Meter(Metering),
    /// A nonce, by its kernel digest, was given to this source on the ladder and to nobody else;
    /// or, if false, also to others.
    OwnNonce(IpKey, u64, bool),
    /// The passwords of this user, by its kernel digest, are refused from this source until this
    /// time; 0 ends that.
    RefuseUser(IpKey, u64, u64),
    /// Accounts earn no standing at this source for a day: why.
    Expelled(IpKey, String),
    /// A notable event of this source and port that is no evidence against it.
    Rejected(IpKey, u16, String),
    /// A note of this kind for the operator.
    Note(&'static str, String),
}

/// A source that goes on the ladder ([`sip_xdp_common::limits::ladder`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metering {
    /// An address of the source.
    pub source: IpKey,
    /// Prefix length: 128 for a host; 64, 56 or 48 for an IPv6 network around it.
    pub bits: u8,
    /// The step.
    pub step: Step,
    /// How else it is limited: [`Ladder::modes`](sip_xdp_common::limits::ladder::Ladder::modes).
    pub modes: u32,
    /// End, on the filter's clock in nanoseconds.
    pub until: u64,
    /// Reason.
    pub reason: String,
}

impl Metering {
    /// Of a host, whose own nonces stay free.
    pub fn of_host(source: IpKey, step: Step, until: u64, reason: String) -> Self {
        Self { source, bits: 128, step, modes: 0, until, reason }
    }
}

/// A move on the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// To the first step, unless lower already.
    First,
    /// One step down.
    Down,
    /// To the last step.
    Last,
}

/// The known-good state of an address and one of its flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Good {
    /// End for the address.
    pub until: u64,
    /// End for the flow.
    pub flow_until: u64,
    /// Number of registered users.
    pub users: usize,
}

/// The detector.
#[derive(Debug)]
pub struct Detector {
    rules: Detect,
    volume: Volume,
    transactions: Transactions,
    nonces: Nonces,
    dialogs: Dialogs,
    arrived: Arrived,
    known: Registrations,
    peers: Peers,
    served: Served,
    /// Boxed, because a growing table reserves twice its size.
    sources: HashMap<IpKey, Box<SourceState>>,
    networks: Recent<(u8, IpKey), networks::Network>,
    /// Number of level 1 offences by source.
    offenders: Recent<IpKey, u32>,
    /// Places where nobody earns standing during a ban, with its end.
    offending: Recent<(IpKey, Option<u16>), u64>,
    /// Sources on the ladder, by width, with the end.
    metered: Recent<(u8, IpKey), u64>,
    /// Times at which evidence of sources becomes final.
    due: VecDeque<(u64, IpKey)>,
    /// What rules remember of all sources together.
    memory: Box<Memories>,
    /// Start of learned decoys.
    decoys_from: u64,
    /// Calls with a response whose request was not seen, by source and user.
    orphans: Recent<u64, ()>,
    excused: Recent<u64, ()>,
    /// How many of them each source had.
    excuses: Recent<IpKey, LeakyBucket>,
    registrar: Registrar,
    /// Whether requests with a wrong UDP checksum count. In captures it is often left to the
    /// network device.
    takes_any_checksum: bool,
    /// Whether the nearly full tables of known sources were reported.
    was_filling: bool,
}

/// Fill level that is reported as nearly full.
const NEARLY_FULL: f64 = 0.8;

impl Detector {
    /// A detector with the rules of `config`.
    pub fn new(config: &Config) -> Self {
        Self {
            rules: config.detect.clone(),
            volume: Volume::new(config),
            transactions: Transactions::default(),
            nonces: Nonces::default(),
            dialogs: Dialogs::default(),
            arrived: Arrived::default(),
            known: Registrations::new(config.capacity.networks as usize),
            peers: Peers::default(),
            served: Served::default(),
            sources: HashMap::new(),
            networks: Recent::new(networks::MAX_NETWORKS, networks::LIFETIME_NS),
            offenders: Recent::new(MAX_OFFENDERS, rules::MEMORY_NS),
            offending: Recent::new(MAX_OFFENDERS, FIRST_DAY_NS),
            metered: Recent::new(LADDERS, rules::MEMORY_NS),
            due: VecDeque::new(),
            memory: Box::default(),
            decoys_from: u64::MAX,
            orphans: Recent::new(MAX_ORPHANS, ORPHAN_NS),
            excused: Recent::new(MAX_ORPHANS, responses::EXCUSE_NS),
            excuses: Recent::new(MAX_ORPHANS, FIRST_DAY_NS),
            registrar: Registrar::default(),
            takes_any_checksum: false,
            was_filling: false,
        }
    }

    /// Changes the rules, and keeps all evidence.
    pub fn configure(&mut self, config: &Config) {
        self.rules = config.detect.clone();
        self.volume.configure(config);
    }

    /// Number of watched sources.
    pub fn watched(&self) -> usize {
        self.sources.len()
    }

    /// Number of known-good addresses, and of peers.
    pub fn known(&self, now: u64) -> (usize, usize) {
        (self.known.count(now), self.peers.count(now))
    }

    /// Number of served sources.
    pub fn served(&self, now: u64) -> usize {
        self.served.count(now)
    }

    /// Served sources, with start and end.
    pub fn served_sources(&self, now: u64) -> impl Iterator<Item = (IpKey, u64, u64)> + '_ {
        self.served.all(now)
    }

    /// The known-good state of an address and one of its ports.
    pub fn good(&self, source: &IpKey, port: u16, now: u64) -> Good {
        let known = &self.known;
        let flow_until = known.flow_until(source, port, now);
        let served = Some(self.served.until(source)).filter(|until| *until > now).unwrap_or(0);
        let until = known.good_until(source, now).max(served);
        Good { until, flow_until, users: known.users(source, now) }
    }

    /// Whether a user was accepted from an address within a day.
    pub fn was_good_lately(&self, source: &IpKey, now: u64) -> bool {
        self.known.was_good_lately(source, now)
    }

    /// Whether the registrar seems to reject accounts that it accepted before, so that their
    /// rejections prove nothing.
    pub fn registrar_is_failing(&self, now: u64) -> bool {
        self.registrar.is_failing(now)
    }

    /// Whether responses are seen, so that missing ones are significant.
    pub fn sees_responses(&self) -> bool {
        self.registrar.sees_responses(Answers::default())
    }

    /// Whether the server gives the same nonces to several sources, so that they prove nobody's
    /// address.
    pub fn nonces_are_shared(&self, now: u64) -> bool {
        self.nonces.are_shared(now)
    }

    /// All acceptances.
    pub fn acceptances(&self) -> impl Iterator<Item = Acceptance> + '_ {
        self.known.acceptances()
    }

    /// Restores the state of an earlier run.
    pub fn restore(
        &mut self,
        acceptances: impl IntoIterator<Item = Acceptance>,
        peers: impl IntoIterator<Item = (IpKey, u64)>,
    ) {
        for acceptance in acceptances {
            self.known.accept(&acceptance);
            // With a stored state the users are known.
            self.decoys_from = 0;
        }
        peers.into_iter().for_each(|(source, until)| self.peers.restore(source, until));
    }

    /// Records a ban: nobody earns standing at this place until its end.
    pub fn banned(&mut self, source: IpKey, port: Option<u16>, until: u64, now: u64) {
        self.offending.insert((source, port), now, until);
    }

    /// Records a source on the ladder until this time, or a network around it, whose nonces the
    /// kernel must learn. Returns the kernel digests of those that were given before, each with its
    /// host.
    pub fn metered(&mut self, source: IpKey, bits: u8, until: u64, now: u64) -> Vec<(IpKey, u64)> {
        let network = source.masked(mask(bits));
        let before = self.metered.get(&(bits, network), now);
        let is_new = before.is_none_or(|until| *until <= now);
        self.metered.insert((bits, network), now, until);
        if !is_new {
            return Vec::new();
        }
        let mut own = Vec::new();
        let mut take = |source: &IpKey, state: &SourceState| {
            let is_own = |nonce: u64| self.nonces.echo(nonce, *source, now) == Echo::Own;
            let nonces = state.nonces.iter().filter(|(nonce, _)| is_own(*nonce));
            own.extend(nonces.map(|(_, key)| (*source, *key)));
        };
        if bits == 128 {
            self.sources.get(&source).into_iter().for_each(|state| take(&source, state));
        } else {
            // All hosts of a network are on it with the first one.
            let inside = self.sources.iter().filter(|(host, _)| host.masked(mask(bits)) == network);
            inside.for_each(|(host, state)| take(host, state));
        }
        own
    }

    /// Whether a source is on the ladder, by itself or by a network around it.
    fn is_metered(&self, source: &IpKey, now: u64) -> bool {
        let widths = if source.is_v4() { &WIDTHS[..1] } else { &WIDTHS[..] };
        let is_there = |bits: &u8| self.metered.get(&(*bits, source.masked(mask(*bits))), now);
        widths.iter().any(|bits| is_there(bits).is_some_and(|until| *until > now))
    }

    /// Restores an offender of an earlier run.
    pub fn restore_offender(&mut self, source: IpKey, count: u32, at: u64) {
        self.offenders.insert(source, at, count);
    }

    /// Records lost kernel events: an incoming response may have been among them.
    pub fn lost_events(&mut self, now: u64) {
        self.arrived.lost(now);
    }

    /// Accepts requests with any UDP checksum.
    pub fn take_any_checksum(&mut self) {
        self.takes_any_checksum = true;
    }

    /// Removes the evidence against the hosts of a network, and against the networks around it: an
    /// operator has pardoned it.
    pub fn forget(&mut self, pardoned: &Network) {
        let is_inside = |host: &IpKey| pardoned.contains(&Network::around(*host, 128));
        let meets = |(bits, first): &(u8, IpKey)| pardoned.meets(&Network::around(*first, *bits));
        self.sources.retain(|host, _| !is_inside(host));
        self.offenders.remove_where(is_inside);
        self.offending.remove_where(|(host, _)| is_inside(host));
        self.excuses.remove_where(is_inside);
        self.metered.remove_where(meets);
        self.networks.remove_where(meets);
        self.memory.rejected.forget(pardoned);
        self.volume.forget(pardoned);
    }

    /// Drops idle sources.
    pub fn tidy(&mut self, now: u64) {
        self.volume.tidy(now);
        self.known.tidy(now);
        self.peers.tidy(now);
        self.served.tidy(now);
        self.sources.retain(|_, state| now.saturating_sub(state.last) < QUIET_NS);
        self.memory.tidy(&self.rules, now);
        self.registrar.tidy(now);
    }

    /// Evaluates evidence that depends on elapsed time.
    pub fn tick(&mut self, now: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some((at, source)) = self.due.front().copied() {
            if at > now {
                break;
            }
            self.due.pop_front();
            self.settle(source, now, &mut actions);
        }
        self.tick_rules(now, &mut actions);
        actions.extend(
            self.registrar.news(now).into_iter().map(|(kind, text)| Action::Note(kind, text)),
        );
        let is_filling = self.known.fill() >= NEARLY_FULL;
        if is_filling && !self.was_filling {
            let text = "the table of who is known good is nearly full: who is known for the \
                        shortest time makes room";
            actions.push(Action::Note("nearly_full", text.to_owned()));
        }
        self.was_filling = is_filling;
        actions
    }

    /// Processes a kernel event.
    pub fn observe(&mut self, event: &KernelEvent) -> Vec<Action> {
        match Observation::try_from(event) {
            Ok(observation) => self.observe_message(&observation),
            Err(()) => self.tick(event.time),
        }
    }

    /// Processes a message.
    pub fn observe_message(&mut self, event: &Observation<'_>) -> Vec<Action> {
        let now = event.time;
        if self.decoys_from == u64::MAX {
            self.decoys_from = now.saturating_add(FIRST_DAY_NS);
        }
        let mut actions = self.tick(now);
        let head = Head::read(event.bytes);
        match (event.kind, head) {
            (EventKind::Limited, head) => self.limited(event, head.as_ref(), &mut actions),
            (EventKind::Request | EventKind::Conflict, Some(head)) => {
                self.meter_stream(event, &head, &mut actions);
                self.request(event, &head, &mut actions);
            }
            (EventKind::Answer, Some(head)) => self.answer(event, &head, &mut actions),
            (EventKind::PendingRequest, Some(head)) => {
                // Responses to requests within a dialog make no peers.
                if let Some(branch) = head.branch.filter(|_| head.to.tag.is_none()) {
                    self.peers.ask(event.source, digest(branch), digest(&head.call_id), now);
                }
            }
            (EventKind::Response, head) => self.response(event, head.as_ref(), &mut actions),
            _ => {}
        }
        actions
    }

    /// Processes an incoming response.
    fn response(
        &mut self,
        event: &Observation<'_>,
        head: Option<&Head<'_>>,
        actions: &mut Vec<Action>,
    ) {
        let (source, now) = (event.source, event.time);
        let branch = head.and_then(|head| head.branch).map(digest);
        let answers = branch.is_some_and(|branch| self.peers.answers(source, branch, now));
        if !answers {
            self.arrived.note(head, event);
            return;
        }
        // A host with a binding here is a client, whatever it answers.
        if self.known.good_until(&source, now) > now {
            return;
        }
        let until = branch.and_then(|branch| self.peers.respond(source, branch, now));
        actions.extend(until.map(|until| Action::Peer(source, until)));
    }

    /// The state of a source, created if missing.
    fn source_state(&mut self, source: IpKey, now: u64) -> &mut SourceState {
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            // Drops those idle longest, several at once, since finding them is expensive.
            let mut last: Vec<u64> = self.sources.values().map(|state| state.last).collect();
            let (_, oldest, _) = last.select_nth_unstable(MAX_SOURCES / 16);
            let oldest = *oldest;
            self.sources.retain(|_, state| state.last > oldest);
        }
        let state =
            self.sources.entry(source).or_insert_with(|| Box::new(SourceState::new(source)));
        state.last = now;
        state
    }

    /// Meters a request that came by TCP: the kernel does so with UDP alone.
    fn meter_stream(
        &mut self,
        event: &Observation<'_>,
        head: &Head<'_>,
        actions: &mut Vec<Action>,
    ) {
        if !event.transport.is_stream() || self.has_standing(&event.source, event.time) {
            return;
        }
        let is_register = matches!(head.start, StartLine::Request { method, .. }
            if method.eq_ignore_ascii_case(b"REGISTER"));
        if let Some(over) = self.volume.meter(event.source, is_register, event.time) {
            let OverLimit { kind, seen, registers } = over;
            let (kind, bucket) = (EventKind::Limited, kind as u8);
            let over = Observation { kind, bucket, seen, registers, ..*event };
            self.limited(&over, Some(head), actions);
        }
    }

    /// Processes a limit event.
    fn limited(
        &mut self,
        event: &Observation<'_>,
        head: Option<&Head<'_>>,
        actions: &mut Vec<Action>,
    ) {
        // Anybody can send a SYN or a segment in the name of another one, and what a connection
        // has lost is sent again.
        if LimitKind::from_number(event.bucket).is_some_and(LimitKind::is_of_segments) {
            return;
        }
        let (source, now) = (event.source, event.time);
        let state = self.source_state(source, now);
        state.transport = event.transport;
        // Over TCP nothing was dropped.
        if !event.transport.is_stream() {
            state.limited = now;
        }
        if let Some(head) = head {
            state.note_last(head);
            self.hear(source, now, Signal::Head(head), actions);
        }
        // A limit of one request per second does not indicate a flood.
        if event.flags & SUSPECTED != 0 {
            return;
        }
        self.hear(source, now, Signal::OverLimit(event, head), actions);
    }

    /// Processes a passed request.
    fn request(&mut self, event: &Observation<'_>, head: &Head<'_>, actions: &mut Vec<Action>) {
        let (source, now) = (event.source, event.time);
        if !self.takes_any_checksum && !event.is_cut && !event.is_delivered() {
            return;
        }
        let request = Request::new(event, head).map(Arc::new);
        let Some(request) = request else {
            return;
        };
        // Nearly all new sources in a storm are forged: sources that have not shown that they
        // receive responses are not remembered.
        let echoes = |one: &transactions::Credential| {
            self.nonces.echo(one.nonce, source, now) != Echo::Foreign
        };
        let is_strange = event.flags & IN_STORM != 0 && !self.sources.contains_key(&source);
        if is_strange && !request.credentials.iter().any(echoes) {
            return;
        }
        let asked = self.transactions.ask(head, &request, now);
        if let (true, Some(tag), Some(_)) = (request.in_dialog, head.to.tag, head.call_id) {
            let is_proven = self.dialogs.proves(request.call, tag, source, now);
            self.acknowledged(source, request.call, is_proven, request.method, now, actions);
            if let Some((source, call)) = self.dialogs.take_early(now) {
                self.acknowledged(source, call, true, request.method, now, actions);
            }
        }
        if asked == Some(false) {
            return;
        }
        let is_good = self.has_rights(&source, now);
        let level = self.level_of(&request, now);
        let state = self.source_state(source, now);
        state.routable |= level == Level::Routable;
        state.transport = event.transport;
        state.note_last(head);
        if request.authorized || request.cut {
            state.challenged.retain(|challenged| challenged.call != request.call);
        }
        if request.method != Method::Ack && asked.is_some() {
            state.asked += 1;
            self.registrar.asked(is_good);
        }
        self.hear(source, now, Signal::Head(head), actions);
        self.hear(source, now, Signal::Request(&request), actions);
        if asked.is_none() && request.authorized && !event.is_cut {
            self.unmatched(&request, now, actions);
        }
    }

    /// Processes a request within a dialog, which echoes the server's tag.
    fn acknowledged(
        &mut self,
        source: IpKey,
        call: u64,
        is_proven: bool,
        method: Method,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        if is_proven && let Some(state) = self.sources.get_mut(&source) {
            state.routable = true;
        }
        if method == Method::Ack
            && let Some(until) = self.served.acknowledge(&source, call, now)
        {
            actions.push(Action::Served(source, until));
        }
        if is_proven {
            self.hear(source, now, Signal::Proven(call), actions);
            self.hear(source, now, Signal::Tagged(call), actions);
        }
    }

    /// Records an acceptance, and returns whether it earns standing: not at a place that offended,
    /// while the ban lasts, nor for a day where this account covered tries of other users.
    fn accept(
        &mut self,
        acceptance: &Acceptance,
        request: &Request,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Acceptance { source, port, at: now, ref user, .. } = *acceptance;
        let is_barred = |port: Option<u16>| {
            self.offending.get(&(source, port), now).is_some_and(|until| *until > now)
        };
        if is_barred(Some(port))
            || is_barred(None) && !self.known.has_place(&source, port)
            || self.memory.rejected.is_expelled(&source, user, now)
        {
            return false;
        }
        let earned = self.known.accept(acceptance);
        if let Some(name) = &request.user {
            let is_aor = request.method == Method::Register;
            self.known.call(&source, user, name, is_aor, now);
        }
        if !earned.gone.is_empty() {
            actions.push(Action::Ended(earned.gone));
        }
        earned.standing
    }

    /// Whether forgeable evidence cannot ban a source: it is a peer or served, or a user was
    /// accepted from there within a day.
    fn has_standing(&self, source: &IpKey, now: u64) -> bool {
        self.peers.is_peer(source, now) || self.has_rights(source, now)
    }

    /// Whether a source is served, or a user was accepted from there within a day.
    fn has_rights(&self, source: &IpKey, now: u64) -> bool {
        self.known.was_good_lately(source, now) || self.served.is_served(source, now)
    }
}
