//! Any bytes as a script of traffic for the detector. Invariants: peers are not banned by volume;
//! sources with an acceptance within a day are not banned on forgeable evidence; every ban has a
//! reason; the number of remembered sources is bounded.

use std::collections::HashMap;

use bytemuck::Zeroable as _;
use sip_xdp::config::{Config, Detect};
use sip_xdp::dataplane::tables::ledger::Tier;
use sip_xdp::detect::{Acceptance, Action, Detector, Finding, Growth};
use sip_xdp::net::network::Network;
use sip_xdp_common::abi::layout::{
    BY_ADDRESS, EventKind, FRAGMENTED, HEAD, KernelEvent, SUSPECTED,
};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::gcra::LimitKind;
use sip_xdp_common::limits::ladder::WIDTHS;

use crate::script::{Deed, STEP, Step};
use crate::texts;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 24 * 3_600 * SECOND;

/// Start of a script, since boot.
const START: u64 = 1_000 * SECOND;
const YEAR: u64 = 365 * DAY;

/// Maximum number of events per script.
const MAX_EVENTS: usize = 2_000;

/// Maximum number of keys for the sources of a script: each by itself, and as a network of two
/// lengths.
const KEYS: usize = 8 * 3;

/// Runs a script, and panics if an invariant is violated.
pub fn run(bytes: &[u8]) {
    let Some((first, steps)) = bytes.split_first() else {
        return;
    };
    let mut fixture = Fixture::new(*first);
    let mut rest = steps;
    while let Some((step, behind)) = rest.split_first_chunk::<STEP>() {
        rest = behind;
        let step = Step::read(*step);
        for time in 0..1_u32 << step.times {
            if fixture.events >= MAX_EVENTS || fixture.now > YEAR {
                return;
            }
            fixture.act(&step, time, rest);
            if step.pause > 0 {
                fixture.now += 1_000_000 << (step.pause - 1);
            }
        }
    }
}

/// The daemon's configuration, by the bits of a byte.
fn config(bits: u8) -> Config {
    let mut config = Config::default();
    if bits & 1 != 0 {
        config.detect.decoy.users = vec!["honey".to_owned()];
    }
    config.ipv6_prefix = if bits & 2 != 0 { 56 } else { 64 };
    config.detect.signature.enabled = bits & 4 == 0;
    config.detect.requests.enabled = bits & 8 == 0;
    config
}

struct Fixture {
    detector: Detector,
    now: u64,
    events: usize,
    /// The number of the transaction.
    number: u32,
    /// Last acceptance by source, and end of peer by source.
    accepted: HashMap<IpKey, u64>,
    peers: HashMap<IpKey, u64>,
}

impl Fixture {
    fn new(bits: u8) -> Self {
        let detector = Detector::new(&config(bits));
        Self {
            detector,
            now: START,
            events: 0,
            number: 0,
            accepted: HashMap::new(),
            peers: HashMap::new(),
        }
    }

    fn act(&mut self, step: &Step, time: u32, rest: &[u8]) {
        self.events += 1;
        if step.anew {
            self.number += 1;
        }
        let message =
            |nonce, credentials, status| texts::Message { step, time, nonce, credentials, status };
        let (own, status) = (self.number, usize::from(step.status));
        let plain = message(own, usize::from(step.credentials), status);
        match step.deed {
            Deed::Request => {
                self.event(EventKind::Request, step, time, &plain.request(self.number))
            }
            Deed::Answer => self.event(EventKind::Answer, step, time, &plain.response(self.number)),
            Deed::Exchange => self.exchange(step, time, &plain),
            Deed::Register | Deed::Guess => {
                self.exchange(step, time, &message(own, 0, texts::CHALLENGED));
                self.number += 1;
                let status =
                    if step.deed == Deed::Register { texts::ACCEPTED } else { texts::CHALLENGED };
                self.exchange(step, time, &message(own, 1, status));
            }
            Deed::Limited => {
                self.event(EventKind::Limited, step, time, &plain.request(self.number))
            }
            Deed::PendingRequest => {
                self.event(EventKind::PendingRequest, step, time, &plain.request(self.number))
            }
            Deed::Response => {
                self.event(EventKind::Response, step, time, &plain.response(self.number))
            }
            Deed::Conflict => {
                self.event(EventKind::Conflict, step, time, &plain.request(self.number))
            }
            Deed::Storm => self.event(EventKind::Storm, step, time, &plain.request(self.number)),
            Deed::Tidy => self.detector.tidy(self.now),
            Deed::Forget => self.detector.forget(&Network::around(texts::source(step, time), 128)),
            Deed::Restart => self.restart(step.user),
            Deed::Configure => self.detector.configure(&config(step.user)),
            Deed::Tick => {
                let actions = self.detector.tick(self.now);
                self.check(actions);
            }
            Deed::Raw => {
                let kind = EventKind::from_number(step.method).unwrap_or(EventKind::Request);
                self.event(kind, step, time, &rest[..rest.len().min(HEAD)]);
            }
        }
        assert!(self.detector.watched() <= KEYS, "{} sources are watched", self.detector.watched());
        let (good, peers) = self.detector.known(self.now);
        assert!(
            good <= self.accepted.len() && peers <= self.peers.len(),
            "{good} are good, {peers} are peers"
        );
        for (source, at) in &self.accepted {
            // Offenders, and addresses beyond an account's sixteen, lose known good early.
            let lately = self.now.saturating_sub(*at) < DAY;
            let is_remembered = self.detector.was_good_lately(source, self.now);
            assert!(lately || !is_remembered, "{source:?} is good for longer than a day");
        }
    }

    fn exchange(&mut self, step: &Step, time: u32, message: &texts::Message<'_>) {
        self.event(EventKind::Request, step, time, &message.request(self.number));
        self.event(EventKind::Answer, step, time, &message.response(self.number));
    }

    fn event(&mut self, kind: EventKind, step: &Step, time: u32, text: &[u8]) {
        let shown = if step.cut { text.len() / 2 } else { text.len() }.min(HEAD);
        let flag = |is: bool, flag: u8| u8::from(is) * flag;
        let mut event = KernelEvent {
            time: self.now,
            kind: kind as u8,
            source: texts::source(step, time),
            port: texts::port(step, time),
            local_port: 5060,
            bucket: [LimitKind::Register, LimitKind::Requests, LimitKind::Other, LimitKind::Storm]
                [usize::from(step.expires & 3)] as u8,
            seen: u64::from(time) * 7,
            registers: u64::from(time) * 5,
            limited: u64::from(time),
            flags: flag(step.by_address, BY_ADDRESS)
                | flag(step.in_dialog && step.cut, FRAGMENTED)
                | flag(step.agent == 3, SUSPECTED),
            head_length: shown as u16,
            length: text.len().min(usize::from(u16::MAX)) as u16,
            ..KernelEvent::zeroed()
        };
        event.head[..shown].copy_from_slice(&text[..shown]);
        let actions = self.detector.observe(&event);
        self.check(actions);
    }

    /// A new daemon with the state that the last one has saved.
    fn restart(&mut self, bits: u8) {
        let kept = self.detector.evidence(self.now, self.now / 1_000_000);
        let mut detector = Detector::new(&config(bits));
        detector.restore(
            self.detector.acceptances(),
            self.peers.iter().map(|(source, until)| (*source, *until)),
        );
        let recalled = kept.and_then(|kept| detector.recall(&kept, self.now, self.now / 1_000_000));
        assert!(recalled.is_ok(), "the evidence is lost: {recalled:?}");
        self.detector = detector;
    }

    fn check(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ban(finding) => self.check_ban(&finding),
                Action::Accepted(Acceptance { source, user, at, until, .. }) => {
                    assert!(at == self.now && !user.chars().any(char::is_control));
                    // An unregistration counts from the time of its registration.
                    if until > at {
                        self.accepted.insert(source, at);
                    }
                }
                Action::Peer(source, until) => {
                    assert!(until > self.now);
                    self.peers.insert(source, until);
                }
                Action::Served(_, until) => assert!(until > self.now),
                Action::Sprayed(spray) => {
                    assert!(spray.first <= spray.last && spray.last <= self.now);
                    assert!(spray.sources <= spray.tries);
                }
                Action::Meter(metering) => {
                    assert!(metering.until > self.now && WIDTHS.contains(&metering.bits));
                    is_sanitised(&metering.reason);
                }
                Action::OwnNonce(..) | Action::RefuseUser(..) => {}
                Action::Ended(ports) => assert!(!ports.is_empty()),
                Action::Rejected(_, _, text)
                | Action::Expelled(_, text)
                | Action::Note(_, text) => is_sanitised(&text),
            }
        }
    }

    fn check_ban(&self, finding: &Finding) {
        is_sanitised(&finding.reason);
        assert!(Detect::kinds().contains(&finding.kind), "{}", finding.kind);
        // A peer that registers or tries passwords is a client like any other.
        let by_volume = ["register", "requests", "invites"].contains(&finding.kind);
        assert!(!by_volume || !self.is_peer(&finding.source), "a peer is banned: {finding:?}");
        let grows = finding.growth != Growth::None;
        assert!(finding.tier == Tier::Proven || !grows, "it grows on nothing: {finding:?}");
        assert!(
            finding.port.is_none() || finding.tier == Tier::Proven,
            "a flow on nothing: {finding:?}"
        );
        // Sources that lost known good by an offence are judged like others.
        if self.was_accepted(&finding.source)
            && self.detector.was_good_lately(&finding.source, self.now)
        {
            assert_eq!(
                finding.tier,
                Tier::Proven,
                "whoever was accepted is banned on what may be forged: {finding:?}"
            );
            // Other ports of an address are not banned for a single offence.
            let by_count = finding.kind == "rejected";
            assert!(finding.port.is_some() || by_count, "an office is banned: {finding:?}");
        }
    }

    fn is_peer(&self, source: &IpKey) -> bool {
        self.peers.get(source).is_some_and(|until| *until > self.now)
    }

    fn was_accepted(&self, source: &IpKey) -> bool {
        self.accepted.get(source).is_some_and(|at| self.now.saturating_sub(*at) < DAY)
    }
}

/// Texts are single lines without terminal controls.
fn is_sanitised(text: &str) {
    assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
}
