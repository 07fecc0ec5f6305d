//! Replay of a capture: incoming packets go through the kernel's ingress program, outgoing ones
//! through its egress program, their events through the daemon's detector and ban engine, and the
//! bans into the tables for the next packet. Nothing leaves the process. The clock is the
//! capture's.
//!
//! More than 400 lines: the loop over the packets of a capture with its whole state.

mod capture;
mod compare;
mod compression;
mod duplicates;
mod frame;
mod hep;
mod kernel;
mod registrar;
mod report;
mod ring;
mod session;
mod tcp;
mod timeline;
mod unwrap;
#[cfg(test)]
mod unwrap_tests;

use std::collections::{BTreeMap, HashSet};
use std::panic::resume_unwind;
use std::thread;

use anyhow::{Context, Result};
use bytemuck::Zeroable as _;
use sip_xdp_common::abi::layout::{FRAGMENTED, KernelEvent, List, NEVER, Owner};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::packet::headers::{Inspects, TCP, UDP};
use sip_xdp_common::verdict::{Message, Reason, Verdict};

use crate::bans::engine::BanEngine;
use crate::bans::notes::Notes;
use crate::bans::offences::{Offence, Repeats};
use crate::config::{BlockScope, Config};
use crate::dataplane::tables::ledger::Entry;
use crate::detect::{Detector, Evidence, Observation};
use crate::lists::Lists;
use crate::lists::never_ban::NeverBan;
use crate::net::network::{Network, address_of};
use crate::sip::stream::{Direction, Streams};
use crate::sys::clock::{self, Moment};

use duplicates::Duplicates;
use frame::{Ends, Prefilter};
use kernel::{Kernel, OneCpu};
use registrar::{Guess, Registrar};
use timeline::{ReplaySink, Timeline};
use unwrap::{Unread, Unwrapped};

pub use capture::{Capture, Input, Packet};
pub use compare::{Comparison, Difference, Outcome};
pub use report::{Ban, CaptureFacts, Close, Good, Limited, Replayed, Skipped, TcpFacts};
pub use session::{Session, SessionBan};
pub use timeline::Fate;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

/// The filter's clock at the first packet: late enough for look-back periods, early enough not to
/// overflow.
const START: u64 = 3_600 * SECOND;

/// Seconds without a packet after which elapsed time decides nothing more.
const SETTLES: u64 = 10;

/// Minutes without a packet after which nothing decays any further.
const FADES: u64 = 64;

/// Maximum reordering in nanoseconds; an earlier packet means that the clock was set back.
const LATE: u64 = 5 * SECOND;

/// Interval of the checks how close sources are to a ban, in nanoseconds.
const CLOSE_CHECK: u64 = 10 * SECOND;

/// Packets between two progress reports.
const REPORT: u64 = 4_096;

/// Maximum number of sources recorded as close to a ban.
const MAX_CLOSE: usize = 65_536;

/// Options of a replay.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The local networks; guessed if empty.
    pub registrar: Vec<Network>,
}

/// Replays a capture with a configuration. `progress` is called with the completed share, from 0 to
/// 1.
pub fn replay(
    input: &Input,
    config: &Config,
    options: &Options,
    progress: &mut dyn FnMut(f64),
) -> Result<Replayed> {
    // In parallel, since the verifier takes a while.
    let (registrar, loaded) = thread::scope(|scope| {
        let loading = scope.spawn(|| Kernel::load(config));
        let registrar = if options.registrar.is_empty() {
            guess(input, config, &mut |done| progress(done / 4.0)).map(Guess::make)
        } else {
            Ok(Registrar::named(options.registrar.clone()))
        };
        (registrar, loading.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    let registrar = registrar?;
    let before = if options.registrar.is_empty() { 0.25 } else { 0.0 };
    let mut capture = input.packets()?;
    let _cpu = OneCpu::take()?;
    let mut replay = Replay::new(config, registrar, loaded?)?;
    let mut buffers = Buffers { frame: Vec::new(), event: Box::new(KernelEvent::zeroed()) };
    while let Some(packet) = capture.next() {
        replay
            .take(&packet, &mut buffers)
            .with_context(|| format!("packet {} of {}", replay.facts.packets, input.name()))?;
        if replay.facts.packets.is_multiple_of(REPORT) {
            progress(before + (1.0 - before) * input.progress());
        }
    }
    replay.settle();
    report::of(input, &capture, replay)
}

/// Replays a capture with two named configurations.
pub fn compare(
    input: &Input,
    configurations: [(&str, &Config); 2],
    options: &Options,
    progress: &mut dyn FnMut(f64),
) -> Result<Comparison> {
    let [first, second] = configurations;
    let one = replay(input, first.1, options, &mut |done| progress(done / 2.0))?;
    let two = replay(input, second.1, options, &mut |done| progress(0.5 + done / 2.0))?;
    Ok(Comparison::of([(first.0, one), (second.0, two)]))
}

/// Reads a capture once to guess the local addresses.
fn guess(input: &Input, config: &Config, progress: &mut dyn FnMut(f64)) -> Result<Guess> {
    let mut capture = input.packets()?;
    let (mut guess, mut buffer, ports) = (Guess::default(), Vec::new(), config.port_set());
    let mut count = 0_u64;
    while let Some(packet) = capture.next() {
        count += 1;
        if count.is_multiple_of(REPORT) {
            progress(input.progress());
        }
        let Ok(Unwrapped { frame, .. }) = unwrap::unwrap(packet.link, packet.data, &mut buffer)
        else {
            continue;
        };
        let is_sip = |ends: &Ends| {
            matches!(ends.protocol, UDP | TCP)
                && ends.ports.is_some_and(|(from, to)| ports.contains(from) || ports.contains(to))
        };
        let Some(ends) = frame::ends(frame).filter(is_sip) else {
            continue;
        };
        // Whoever takes connections is asked, and answers, however its messages are cut.
        if let Some(segment) = tcp::segment(frame, Direction::Out, 0)
            && segment.syn
            && segment.acknowledges.is_some()
        {
            guess.look(&ends.turned(), Message::Options, &ports);
            guess.look(&ends, Message::Response, &ports);
        } else if let Some(message) = frame::message(frame) {
            guess.look(&ends, message, &ports);
        }
    }
    Ok(guess)
}

/// A replay in progress.
struct Replay<'c> {
    config: &'c Config,
    registrar: Registrar,
    kernel: Kernel,
    lists: Lists,
    detector: Detector,
    never_ban: NeverBan,
    offences: BTreeMap<Network, Offence>,
    repeats: Repeats,
    notes: Notes,
    timeline: Timeline,
    facts: Facts,
    /// Times of the first and the latest packet, in nanoseconds since 1970.
    first: u64,
    latest: u64,
    /// A time on the filter's clock, and the same by the capture.
    anchor: (u64, u64),
    /// Time up to which periodic work is done, on the filter's clock.
    ticked: u64,
    tidied: u64,
    looked: u64,
    /// Sources that were refused since the last check.
    refused: HashSet<IpKey>,
    /// The closest that sources have come to a ban.
    close: BTreeMap<IpKey, Evidence>,
    prefilter: Prefilter,
    duplicates: Duplicates,
    /// What became of the last frame that arrived.
    judged: Option<Reason>,
    /// SIP over TCP.
    streams: Streams,
}

/// Buffers that are reused for each packet.
struct Buffers {
    /// An Ethernet frame.
    frame: Vec<u8>,
    /// An event of the programs.
    event: Box<KernelEvent>,
}

/// Counts of a capture and its replay.
#[derive(Debug, Clone, Default)]
struct Facts {
    packets: u64,
    bytes: u64,
    cut: u64,
    out_of_order: u64,
    links: BTreeMap<String, u64>,
    /// Packets by tunnel.
    tunnels: BTreeMap<&'static str, u64>,
    /// Unsupported packets, by kind.
    not_read: BTreeMap<String, u64>,
    duplicates: u64,
    skipped: Skipped,
    arrived: u64,
    left: u64,
    reasons: [u64; Reason::COUNT],
    messages: [u64; Message::SLOTS],
}

impl<'c> Replay<'c> {
    fn new(
        config: &'c Config,
        registrar: Registrar,
        (kernel, mut lists): (Kernel, Lists),
    ) -> Result<Self> {
        for (list, networks) in
            [(List::Trust, &config.trust.networks), (List::Admit, &config.admit.networks)]
        {
            for network in networks {
                let entry = Entry {
                    owner: Owner::Config,
                    ..Entry::manual(*network, NEVER, "the configuration")
                };
                lists.put(list, entry)?;
            }
        }
        let never_ban = NeverBan::of_networks(&registrar.networks, "an address of the registrar");
        let inspects = Inspects { ipv6: config.inspect.ipv6, tags: config.inspect.tags };
        let mut replay = Self {
            config,
            registrar,
            kernel,
            lists,
            detector: Detector::new(config),
            never_ban,
            offences: BTreeMap::new(),
            repeats: Repeats::default(),
            notes: Notes::default(),
            timeline: Timeline::new(config.ipv6_prefix),
            facts: Facts::default(),
            first: 0,
            latest: 0,
            anchor: (START, 0),
            ticked: START,
            tidied: START,
            looked: START,
            refused: HashSet::new(),
            close: BTreeMap::new(),
            prefilter: Prefilter { ports: config.port_set(), inspects },
            duplicates: Duplicates::default(),
            judged: None,
            streams: Streams::default(),
        };
        replay.detector.take_any_checksum();
        replay.ban_engine(START).judge_by_address()?;
        Ok(replay)
    }

    /// The ban engine at `now`.
    fn ban_engine(&mut self, now: u64) -> BanEngine<'_, ReplaySink<'_>> {
        let at = self.moment(now);
        BanEngine {
            config: self.config,
            lists: &mut self.lists,
            detector: &mut self.detector,
            never_ban: &self.never_ban,
            offences: &mut self.offences,
            repeats: &mut self.repeats,
            notes: &mut self.notes,
            learning_until: 0,
            at,
            event_sink: ReplaySink { timeline: &mut self.timeline, at },
        }
    }

    /// A time on the filter's clock, on both clocks of the capture.
    fn moment(&self, now: u64) -> Moment {
        Moment {
            now,
            wall_ms: self.anchor.1.saturating_add(now.saturating_sub(self.anchor.0)) / 1_000_000,
        }
    }

    /// Processes the next packet.
    fn take(&mut self, packet: &Packet<'_>, buffers: &mut Buffers) -> Result<()> {
        self.facts.packets += 1;
        self.facts.bytes += u64::from(packet.length);
        let is_cut = (packet.data.len() as u64) < u64::from(packet.length);
        self.facts.cut += u64::from(is_cut);
        let name = unwrap::link_name(packet.link);
        match name.and_then(|name| self.facts.links.get_mut(name)) {
            Some(count) => *count += 1,
            None => {
                let name = name.map_or_else(|| format!("link type {}", packet.link), str::to_owned);
                *self.facts.links.entry(name).or_default() += 1;
            }
        }
        let now = self.advance(packet.at);
        let Buffers { frame, event } = buffers;
        let unwrapped = match unwrap::unwrap(packet.link, packet.data, frame) {
            Ok(unwrapped) if unwrapped.frame.len() >= kernel::SHORTEST => unwrapped,
            Err(Unread::LinkType) => {
                self.facts.skipped.link_type += 1;
                *self.facts.not_read.entry(unwrap::unread_name(packet.link)).or_default() += 1;
                return Ok(());
            }
            Ok(_) | Err(Unread::Malformed) => {
                self.facts.skipped.malformed += 1;
                return Ok(());
            }
        };
        let Unwrapped { frame, tunnel, closed } = unwrapped;
        if let Some(tunnel) = tunnel {
            *self.facts.tunnels.entry(tunnel).or_default() += 1;
        }
        if let Some(closed) = closed {
            *self.facts.not_read.entry(closed.to_owned()).or_default() += 1;
        }
        let Some(ends) = frame::ends(frame) else {
            self.facts.skipped.not_ip += 1;
            return Ok(());
        };
        let (is_ours, is_for_us) =
            (self.registrar.has(&ends.source), self.registrar.has(&ends.destination));
        if (is_ours || is_for_us)
            && self.duplicates.is_copy(frame, packet.at, !is_ours, packet.is_any)
        {
            self.facts.duplicates += 1;
            return Ok(());
        }
        if is_ours {
            return self.leave(&ends, frame, now, is_cut, event);
        }
        if is_for_us || self.registrar.is_unknown() {
            return self.arrive(&ends, frame, now, is_cut, event);
        }
        self.facts.skipped.elsewhere += 1;
        Ok(())
    }

    /// Advances the clock to the time of a packet, and returns it on the filter's clock. That never
    /// decreases: a slightly late packet gets the time of its predecessor; a much earlier one means
    /// that the clock was set back, and time continues from there.
    fn advance(&mut self, at: u64) -> u64 {
        if self.facts.packets == 1 {
            (self.first, self.latest, self.anchor) = (at, at, (START, at));
        }
        self.latest = self.latest.max(at);
        let (now, before) = self.anchor;
        self.facts.out_of_order += u64::from(at < before);
        let now = now.saturating_add(at.saturating_sub(before));
        if at >= before || before - at > LATE {
            self.anchor = (now, at);
        }
        let due = (now - self.ticked) / SECOND;
        if due > 0 {
            (1..=due.min(SETTLES)).for_each(|second| self.tick(self.ticked + second * SECOND));
            self.ticked += due * SECOND;
            if due > SETTLES {
                self.tick(self.ticked);
            }
        }
        now
    }

    /// The daemon's work of each second and minute.
    fn tick(&mut self, now: u64) {
        self.kernel.set_clock(now);
        self.ban_engine(now).tick();
        let minutes = (now - self.tidied) / MINUTE;
        if minutes > 0 {
            self.tidied += minutes * MINUTE;
            (0..minutes.min(FADES)).for_each(|_| self.detector.tidy(now));
            self.streams.tidy(now);
            self.ban_engine(now).forgive();
            // Entries that could not be removed are expired all the same.
            let _ = self.lists.tidy(now);
            self.lists.take_displaced();
        }
        if now - self.looked >= CLOSE_CHECK {
            self.looked = now;
            self.look(now);
        }
    }

    /// Lets pending evidence become final, as if the capture continued in silence.
    fn settle(&mut self) {
        if self.facts.packets > 0 {
            (1..=SETTLES).for_each(|second| self.tick(self.ticked + second * SECOND));
            self.look(self.ticked + SETTLES * SECOND);
        }
    }

    /// Processes an incoming packet.
    fn arrive(
        &mut self,
        ends: &Ends,
        frame: &[u8],
        now: u64,
        is_cut: bool,
        event: &mut KernelEvent,
    ) -> Result<()> {
        if self.config.block_scope == BlockScope::Sip
            && let Some(reason) = self.prefilter.passes_by(frame)
        {
            // The kernel would decide the same, and keep no state.
            self.facts.reasons[reason as usize] += 1;
            self.judged = Some(reason);
            return Ok(());
        }
        self.facts.arrived += 1;
        self.kernel.set_clock(now);
        let (reason, message) = self.kernel.arrive(frame)?;
        self.facts.reasons[reason as usize] += 1;
        self.judged = Some(reason);
        if let Some(message) = message {
            self.facts.messages[message as usize] += 1;
        }
        self.timeline.count(ends.source, ends.ports.map(|(from, _)| from), reason);
        self.process_events(now, is_cut, event);
        let is_sip = ends.ports.is_some_and(|(_, to)| self.prefilter.ports.contains(to));
        if ends.protocol == TCP && is_sip && reason.verdict() == Verdict::Pass {
            self.follow(frame, Direction::In, now);
        }
        Ok(())
    }

    /// Processes an outgoing packet.
    fn leave(
        &mut self,
        ends: &Ends,
        frame: &[u8],
        now: u64,
        is_cut: bool,
        event: &mut KernelEvent,
    ) -> Result<()> {
        let is_sip = |(from, _): (u16, u16)| self.prefilter.ports.contains(from);
        if !matches!(ends.protocol, UDP | TCP) || !ends.ports.is_some_and(is_sip) {
            self.facts.skipped.leaving += 1;
            return Ok(());
        }
        if self.refused.len() < MAX_CLOSE {
            self.refused.insert(ends.destination);
        }
        if ends.protocol == TCP {
            let is_read = self.follow(frame, Direction::Out, now);
            self.facts.left += u64::from(is_read);
            self.facts.skipped.tcp_answers += u64::from(!is_read);
            return Ok(());
        }
        self.facts.left += 1;
        if self.prefilter.may_matter(frame) {
            self.kernel.set_clock(now);
            self.kernel.leave(frame)?;
            self.process_events(now, is_cut, event);
        }
        Ok(())
    }

    /// Follows a TCP connection. Returns whether the frame has a segment that can be read.
    fn follow(&mut self, frame: &[u8], direction: Direction, now: u64) -> bool {
        let Some(segment) = tcp::segment(frame, direction, now) else {
            return false;
        };
        let mut streams = std::mem::take(&mut self.streams);
        streams.take(&segment, &mut |message| {
            if let Some(observation) = Observation::of_tcp(&segment, message) {
                self.ban_engine(now).observe_message(&observation);
            }
        });
        self.streams = streams;
        true
    }

    /// Processes the events of the programs.
    fn process_events(&mut self, now: u64, is_cut: bool, event: &mut KernelEvent) {
        while self.kernel.event(event) {
            if is_cut {
                // The capture truncated it, which is like a fragment.
                event.flags |= FRAGMENTED;
            }
            self.ban_engine(now).observe(event);
        }
    }

    /// Checks how close recently answered sources are to a ban.
    fn look(&mut self, now: u64) {
        for source in std::mem::take(&mut self.refused) {
            for evidence in self.detector.evidence_against(&source, now) {
                let share = share(&evidence);
                let is_closest =
                    self.close.get(&source).is_none_or(|before| self::share(before) < share);
                if share > 0.0
                    && is_closest
                    && (self.close.len() < MAX_CLOSE || self.close.contains_key(&source))
                {
                    self.close.insert(source, evidence);
                }
            }
        }
    }

    /// Start and end of the capture.
    fn span(&self) -> Option<(jiff::Timestamp, jiff::Timestamp)> {
        let time = |at: u64| clock::from_ms(at / 1_000_000);
        (self.facts.packets > 0).then(|| (time(self.first), time(self.latest)))
    }
}

/// The share of the evidence needed for a ban; `None` without any.
fn share(evidence: &Evidence) -> f64 {
    evidence.limit.filter(|limit| *limit > 0).map_or(0.0, |limit| evidence.count / limit as f64)
}

/// An address in readable form.
fn address(source: &IpKey) -> std::net::IpAddr {
    address_of(*source)
}
