//! `register` and `requests`: from limit events to findings: floods by one sender.
//!
//! The kernel has already dropped the excess; a finding only decides on a ban. It may therefore
//! take the second that distinguishes one flooding sender from an office whose phones all register
//! at once. Pure: time comes with the events.
//!
//! A file of more than 400 lines: nearly half are its tests.

use std::collections::HashMap;

use sip_xdp_common::abi::layout::BY_ADDRESS;
use sip_xdp_common::ip_key::{IpKey, mask};
use sip_xdp_common::limits::gcra::LimitKind;

use crate::config::{Config, Rate, Span};
use crate::net::network::Network;
use crate::sip::message::Head;

use super::super::claim::Level;
use super::super::digest::{digest, most_common};
use super::super::nonces::Echo;
use super::super::observation::Observation;
use super::super::registrar::Answers;
use super::super::{Action, Detector, Finding};
use super::rule::Settings;
use super::stream_meters::{OverLimit, StreamMeters};

/// Observation time before a decision, in nanoseconds.
const WATCH: u64 = 1_000_000_000;

/// Minimum number of events before a decision.
const MIN_SAMPLES: usize = 8;

/// Maximum number of recent events kept per source.
const MAX_SAMPLES: usize = 64;

/// Maximum number of watched sources. The kernel sends at most some thousand events per second;
/// further sources are limited all the same, and watched when there is room.
const MAX_SUSPECTS: usize = 16_384;

/// Idle time after which a source is dropped, in nanoseconds.
const QUIET: u64 = 60_000_000_000;

/// Sources over a limit.
#[derive(Debug)]
pub(in super::super) struct Volume {
    rules: Rules,
    suspects: HashMap<IpKey, Suspect>,
    meters: StreamMeters,
}

#[derive(Debug, Clone)]
struct Rules {
    register: (Threshold, Rate),
    requests: (Threshold, Rate),
    ipv6_mask: (u64, u64),
    ipv6_prefix: u8,
}

/// The threshold of one of the two rules.
#[derive(Debug, Clone, Copy)]
struct Threshold {
    enabled: bool,
    count: u32,
    per: Span,
}

impl Threshold {
    fn of(settings: &impl Settings) -> Self {
        let (count, per) = settings.rate().unwrap_or((u32::MAX, Span::seconds(1)));
        Self { enabled: settings.enabled(), count, per }
    }
}

/// A source over a limit.
#[derive(Debug)]
struct Suspect {
    /// First event of the current window.
    first: u64,
    last: u64,
    /// Requests and REGISTER requests before the window.
    seen: u64,
    registers: u64,
    samples: Vec<Sample>,
    next: usize,
}

/// The sender's features in one event.
#[derive(Debug, Clone, Copy)]
struct Sample {
    source: IpKey,
    port: u16,
    user: Option<u64>,
    call_id: Option<u64>,
    routable: bool,
}

/// A flood by one sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Flood {
    /// The source of most of the sampled packets.
    pub(in super::super) source: IpKey,
    /// The port of most of them.
    pub(in super::super) port: u16,
    /// Whether at least half of the samples echo a nonce that only their sender was given.
    pub(in super::super) routable: bool,
    /// Prefix length: 128 for a host, less for an IPv6 network whose hosts take turns.
    pub(in super::super) bits: u8,
    /// Kind of evidence.
    pub(in super::super) kind: LimitKind,
    /// The evidence in words and numbers.
    pub(in super::super) reason: String,
}

impl Volume {
    /// A detector with the rules of `config`.
    pub(in super::super) fn new(config: &Config) -> Self {
        let meters = StreamMeters::default();
        Self { rules: Rules::new(config), suspects: HashMap::new(), meters }
    }

    /// Changes the rules, and keeps all evidence.
    pub(in super::super) fn configure(&mut self, config: &Config) {
        self.rules = Rules::new(config);
    }

    /// Number of watched sources.
    #[cfg(test)]
    pub(in super::super) fn watched(&self) -> usize {
        self.suspects.len()
    }

    /// Drops the sources in a pardoned network, and the one that it is metered with.
    pub(in super::super) fn forget(&mut self, pardoned: &Network) {
        let around = pardoned.first().masked(self.rules.ipv6_mask);
        self.suspects.retain(|suspect, _| {
            *suspect != around && !pardoned.contains(&Network::around(*suspect, 128))
        });
    }

    /// Drops idle sources.
    pub(in super::super) fn tidy(&mut self, now: u64) {
        self.suspects.retain(|_, suspect| now.saturating_sub(suspect.last) < QUIET);
    }

    /// Meters a request that came by TCP.
    pub(in super::super) fn meter(
        &mut self,
        source: IpKey,
        is_register: bool,
        now: u64,
    ) -> Option<OverLimit> {
        let limits = (self.rules.register.1, self.rules.requests.1);
        self.meters.charge(source, is_register, limits, now)
    }

    /// Processes an event. Returns a flood, if the evidence is complete.
    pub(in super::super) fn observe(
        &mut self,
        event: &Observation<'_>,
        routable: bool,
    ) -> Option<Flood> {
        let kind = LimitKind::from_number(event.bucket)?;
        // Responses, keepalives and noise are limited, but never evidence.
        let (rule, limit) = match kind {
            LimitKind::Register => self.rules.register,
            LimitKind::Requests => self.rules.requests,
            LimitKind::Other
            | LimitKind::Storm
            | LimitKind::Fragments
            | LimitKind::Connections
            | LimitKind::Stream => return None,
        };
        // The width of the kernel's meter.
        let by_address = event.flags & BY_ADDRESS != 0 || event.source.is_v4();
        let key = if by_address { event.source } else { event.source.masked(self.rules.ipv6_mask) };
        if self.suspects.len() >= MAX_SUSPECTS && !self.suspects.contains_key(&key) {
            return None;
        }
        let suspect = self.suspects.entry(key).or_insert_with(|| Suspect::new(event));
        if event.time.saturating_sub(suspect.first) > rule.per.nanos() {
            *suspect = Suspect::new(event);
        }
        suspect.note(event, routable);
        if !rule.enabled
            || event.time.saturating_sub(suspect.first) < WATCH
            || suspect.samples.len() < MIN_SAMPLES
        {
            return None;
        }
        // What had passed when the bucket ran dry, and all that followed.
        let (before, seen) = match kind {
            LimitKind::Register => (suspect.registers, event.registers),
            _ => (suspect.seen, event.seen),
        };
        let count = u64::from(limit.count) + seen.saturating_sub(before);
        if count <= u64::from(rule.count) {
            return None;
        }
        let (sender, described) = suspect.one_sender()?;
        let registers = event.registers.saturating_sub(suspect.registers);
        let requests = event.seen.saturating_sub(suspect.seen).max(1);
        let seconds = event.time.saturating_sub(suspect.first) as f64 / 1e9;
        let what = if kind == LimitKind::Register { "REGISTER" } else { "requests" };
        let share = if kind == LimitKind::Requests {
            format!(", {}% REGISTER", 100 * registers / requests)
        } else {
            String::new()
        };
        let finding = Flood {
            source: sender.source,
            port: sender.port,
            routable: 2 * suspect.samples.iter().filter(|sample| sample.routable).count()
                >= suspect.samples.len(),
            bits: if by_address || suspect.is_one_host(sender.source) {
                128
            } else {
                self.rules.ipv6_prefix
            },
            kind,
            reason: format!(
                "{what} flood: {requests} in {seconds:.1} s over the limit of {} in {}{share}, \
                 {described}",
                limit.count, limit.per
            ),
        };
        self.suspects.remove(&key);
        Some(finding)
    }
}

impl Rules {
    fn new(config: &Config) -> Self {
        let limits = &config.limits.unknown;
        Self {
            register: (Threshold::of(&config.detect.register), limits.register),
            requests: (Threshold::of(&config.detect.requests), limits.requests),
            ipv6_mask: mask(config.ipv6_prefix),
            ipv6_prefix: config.ipv6_prefix,
        }
    }
}

impl Suspect {
    fn new(event: &Observation<'_>) -> Self {
        Self {
            first: event.time,
            last: event.time,
            seen: event.seen.saturating_sub(1),
            registers: event.registers.saturating_sub(1),
            samples: Vec::with_capacity(MIN_SAMPLES),
            next: 0,
        }
    }

    fn note(&mut self, event: &Observation<'_>, routable: bool) {
        self.last = event.time;
        let found = Head::read(event.bytes);
        let sample = Sample {
            source: event.source,
            port: event.port,
            user: found.as_ref().and_then(|head| head.from.user).map(digest),
            call_id: found.as_ref().and_then(|head| head.call_id).map(digest),
            routable,
        };
        if self.samples.len() < MAX_SAMPLES {
            self.samples.push(sample);
        } else {
            self.samples[self.next] = sample;
            self.next = (self.next + 1) % MAX_SAMPLES;
        }
    }

    /// Whether most samples are of one host.
    fn is_one_host(&self, host: IpKey) -> bool {
        2 * self.samples.iter().filter(|sample| sample.source == host).count() >= self.samples.len()
    }

    /// The common feature, if one sender causes most of it: one port, one call, or one user on any
    /// port. Phones behind one address differ in all three.
    fn one_sender(&self) -> Option<(Sample, String)> {
        let all = self.samples.len();
        let (ports, port, by_port) =
            most_common(self.samples.iter().map(|s| Some((s.source, s.port))))?;
        let sender = *self.samples.iter().find(|s| (s.source, s.port) == port)?;
        if 2 * by_port >= all {
            return Some((sender, format!("{by_port} of {all} samples from port {}", sender.port)));
        }
        if let Some((_, _, calls)) = most_common(self.samples.iter().map(|s| s.call_id))
            && 2 * calls >= all
        {
            return Some((
                sender,
                format!("{calls} of {all} samples with one Call-ID, from {ports} ports"),
            ));
        }
        if let Some((_, _, users)) = most_common(self.samples.iter().map(|s| s.user))
            && all >= 2 * MIN_SAMPLES
            && 10 * users >= 9 * all
        {
            return Some((
                sender,
                format!("{users} of {all} samples for one user, from {ports} ports"),
            ));
        }
        None
    }
}

impl Detector {
    /// Weighs a message over a limit.
    pub(super) fn flooded(
        &mut self,
        event: &Observation<'_>,
        head: Option<&Head<'_>>,
        actions: &mut Vec<Action>,
    ) {
        let (source, now) = (event.source, event.time);
        let echoes_own = head.is_some_and(|head| {
            let nonces = head.credentials.iter().map(|one| digest(one.nonce));
            nonces.into_iter().any(|nonce| self.nonces.echo(nonce, source, now) == Echo::Own)
        });
        let Some(flood) = self.volume.observe(event, echoes_own || event.is_proven) else {
            return;
        };
        // Nor is a carrier that delivers more calls than a stranger may, and is not served yet.
        let is_register = flood.kind == LimitKind::Register;
        let is_carrying = !is_register && self.served.is_carrying(&flood.source, now);
        if self.has_standing(&flood.source, now) || is_carrying {
            return;
        }
        let judged = self.sources.get(&source).map_or_else(Answers::default, |state| Answers {
            asked: state.asked,
            answered: state.answered,
        });
        if !self.registrar.sees_responses(judged) {
            let text = "hardly any of our responses is seen: volume limits, but bans nobody; do \
                        they leave by an interface \
                        that is not filtered?";
            actions.push(Action::Note("unseen_responses", text.to_owned()));
            return;
        }
        let level = if flood.routable { Level::Routable } else { Level::Seen };
        let finding = Finding {
            bits: flood.bits,
            ..self.about(flood.source, flood.kind.name(), level, flood.reason)
        };
        self.emit_ban(level, finding, now, actions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;
    use sip_xdp_common::abi::layout::{EventKind, HEAD, KernelEvent};
    use sip_xdp_common::verdict::Message;

    const MS: u64 = 1_000_000;

    /// An event every 50 ms, as the kernel sends them, for a flood of `rate` per second.
    fn flood(
        rate: u64,
        shape: impl Fn(u64) -> (u16, String, String),
    ) -> impl Iterator<Item = KernelEvent> {
        (0..400).map(move |n| {
            let (port, user, call) = shape(n);
            let seen = 51 + n * rate / 20;
            let mut event = KernelEvent {
                time: 1_000_000 * MS + n * 50 * MS,
                source: crate::net::network::source_of("192.0.2.66".parse().unwrap()),
                port,
                kind: EventKind::Limited as u8,
                message: Message::Register as u8,
                bucket: LimitKind::Requests as u8,
                seen,
                registers: seen,
                ..KernelEvent::zeroed()
            };
            let head = format!(
                "REGISTER sip:x SIP/2.0\r\nFrom: <sip:{user}@x>;tag=1\r\nCall-ID: {call}\r\n\r\n"
            );
            assert!(head.len() <= HEAD);
            event.head[..head.len()].copy_from_slice(head.as_bytes());
            event.head_length = head.len() as u16;
            event
        })
    }

    fn run(events: impl Iterator<Item = KernelEvent>, config: &Config) -> Option<(u64, Flood)> {
        let mut detector = Volume::new(config);
        let mut start = None;
        events.into_iter().find_map(|event| {
            let start = *start.get_or_insert(event.time);
            let event = Observation::try_from(&event).unwrap();
            detector.observe(&event, false).map(|finding| ((event.time - start) / MS, finding))
        })
    }

    #[test]
    fn one_port_is_one_sender() {
        let events = flood(180, |n| (5060, format!("{n}"), format!("call-{n}")));
        let (after, finding) = run(events, &Config::default()).unwrap();
        assert_eq!(after, 1_000);
        assert_eq!((finding.kind, finding.port), (LimitKind::Requests, 5060));
        assert!(
            finding.reason.starts_with(
                "requests flood: 181 in 1.0 s over the limit of 50 in 10s, 100% REGISTER"
            ),
            "{}",
            finding.reason
        );
    }

    #[test]
    fn changing_ports_does_not_hide_one_call_or_one_user() {
        let config = Config::default();
        let (_, by_call) =
            run(flood(180, |n| (n as u16, format!("{n}"), "c".into())), &config).unwrap();
        assert!(by_call.reason.contains("with one Call-ID"), "{}", by_call.reason);
        let (_, by_user) =
            run(flood(180, |n| (n as u16, "100".into(), format!("{n}"))), &config).unwrap();
        assert!(by_user.reason.contains("for one user"), "{}", by_user.reason);
    }

    #[test]
    fn many_phones_behind_one_address_are_no_sender() {
        // 300 phones, each with its own port, user and calls, for 20 s.
        let events = flood(600, |n| {
            (10_000 + (n % 300) as u16, format!("{}", n % 300), format!("call-{n}"))
        });
        assert_eq!(run(events, &Config::default()), None);
        // The same with few phones: four, none with half of the traffic.
        let events = flood(60, |n| {
            (10_000 + (n % 4) as u16, format!("{}", n % 4), format!("call-{}", n % 40))
        });
        assert_eq!(run(events, &Config::default()), None);
    }

    #[test]
    fn a_short_burst_is_no_flood() {
        let events = flood(180, |_| (5060, "a".into(), "c".into())).take(19);
        assert_eq!(run(events, &Config::default()), None);
    }

    #[test]
    fn a_rule_can_be_switched_off_or_raised() {
        let one = |n: u64| (5060, format!("{n}"), "c".to_owned());
        let mut config = Config::default();
        config.detect.requests.enabled = false;
        assert_eq!(run(flood(180, one), &config), None);
        let mut config = Config::default();
        config.detect.requests.count = 500;
        let (after, _) = run(flood(180, one), &config).unwrap();
        assert_eq!(after, 2_500, "50 before the first event, and 180 a second");
    }

    #[test]
    fn noise_is_never_evidence() {
        let events = flood(1_000, |_| (5060, "a".into(), "c".into())).map(|event| KernelEvent {
            bucket: LimitKind::Other as u8,
            message: Message::Keepalive as u8,
            ..event
        });
        assert_eq!(run(events, &Config::default()), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut detector = Volume::new(&Config::default());
        let mut event = flood(180, |_| (5060, "a".into(), "c".into())).next().unwrap();
        for n in 0..2 * MAX_SUSPECTS as u32 {
            event.source = crate::net::network::source_of(std::net::Ipv4Addr::from(n).into());
            detector.observe(&Observation::try_from(&event).unwrap(), false);
        }
        assert_eq!(detector.watched(), MAX_SUSPECTS);
        detector.tidy(event.time + QUIET);
        assert_eq!(detector.watched(), 0);
    }
}
