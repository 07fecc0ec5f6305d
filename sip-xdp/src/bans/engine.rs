//! The ban engine: from kernel events and findings to bans and host reputations. Shared by the
//! daemon and replay, which differ in tables, clock and event sink.
//!
//! More than 400 lines: all decisions about bans, in one type.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use log::Level;
use sip_xdp_common::abi::layout::{EventKind, KernelEvent, List, Owner};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::gcra::LimitKind;
use sip_xdp_common::limits::ladder::{
    LOWEST, LOWEST_BY_OFFENCES, PACES, REFUSES_USERS, STRANGERS_SHARE,
};

use super::event::Event;
use super::offences::{HOUR, MAX_OFFENCES, Offence, OffenceRecord, Repeats, UNPROVEN_ONCE};
use crate::bans::duration::ban_duration;
use crate::bans::notes::Notes;
use crate::config::Config;
use crate::dataplane::tables::ledger::{Entry, Tier};
use crate::detect::{
    Acceptance, Action, Detector, Finding, Growth, Metering, Observation, Spray, Step,
};
use crate::lists::never_ban::{NeverBan, near};
use crate::lists::{HostReputation, Lists};
use crate::net::network::{Network, address_of};
use crate::sip::transport::Transport;
use crate::sys::clock::Moment;
use crate::text::Quoted;

/// Escalation of level 1 bans within an hour to IPv6 networks: prefix length, number of banned
/// hosts, and the prefix length of which at least two different networks must be among them.
const ESCALATION: [(u8, usize, u8); 3] = [(64, 2, 128), (56, 3, 64), (48, 4, 56)];

/// The same for IPv4, which bans only if configured, and is otherwise an event.
const IPV4_ESCALATION: (u8, usize) = (24, 5);

/// Prefix length of an IPv6 network that is one customer's.
const SITE_BITS: u8 = 64;

/// The kind of bans for users whom many strangers try.
const SPRAYED: &str = "sprayed";

/// Events older than this were queued for an earlier daemon, in nanoseconds.
pub(crate) const STALE: u64 = 5_000_000_000;

/// The longest ban of a misconfigured phone that is the only one of its address.
const LONGEST_MILD: Duration = Duration::from_secs(3_600);

/// Accepted users that the base limit serves; twice as many double it.
const USERS: usize = 64;

/// How long a formerly known-good host keeps that state after its last registration, in
/// nanoseconds: a week. In a storm it is not a new source.
pub(crate) const FORMER: u64 = 7 * 24 * HOUR;

/// The consumer of the engine's events.
pub(crate) trait EventSink {
    /// A decision: a log line and an event.
    fn announce(&mut self, event: Event, level: Level, line: fmt::Arguments<'_>);

    /// An event without a log line.
    fn publish(&mut self, event: Event);

    /// A user was accepted.
    fn accepted(&mut self, acceptance: &Acceptance);

    /// A host is a peer until this time.
    fn peer(&mut self, source: IpKey, until: u64);

    /// The offence count of a network has changed.
    fn offence(&mut self, offence: OffenceRecord);

    /// A ban is in force; `kind` is its kind of evidence.
    fn banned(&mut self, kind: &str, entry: &Entry, lists: &mut Lists);

    /// The server takes calls of a host without credentials.
    fn served(&mut self, source: IpKey);

    /// Strangers try passwords for an accepted user.
    fn sprayed(&mut self, spray: &Spray);

    /// An entry has ended by itself, after so many packets were dropped for it, if it was a ban.
    fn expired(&mut self, list: List, entry: &Entry, hits: Option<u64>);
}

/// The ban engine, for one event or one tick.
pub(crate) struct BanEngine<'a, C> {
    /// Configuration.
    pub(crate) config: &'a Config,
    /// The lists, with the kernel's tables.
    pub(crate) lists: &'a mut Lists,
    /// Source of findings.
    pub(crate) detector: &'a mut Detector,
    /// Addresses that are never banned.
    pub(crate) never_ban: &'a NeverBan,
    /// Offence counts by network.
    pub(crate) offences: &'a mut BTreeMap<Network, Offence>,
    /// Repeated bans that are not offences.
    pub(crate) repeats: &'a mut Repeats,
    /// Rate limits of log lines.
    pub(crate) notes: &'a mut Notes,
    /// End of the learning period, in which volume does not ban.
    pub(crate) learning_until: u64,
    /// Current time.
    pub(crate) at: Moment,
    /// The consumer of events.
    pub(crate) event_sink: C,
}

impl<C: EventSink> BanEngine<'_, C> {
    fn announce(&mut self, event: Event, level: Level, line: fmt::Arguments<'_>) {
        self.event_sink.announce(event, level, line);
    }

    fn note_due(&mut self, source: IpKey, kind: &'static str, now: u64) -> bool {
        self.notes.are_due(Network::around(source, 128), kind, now)
    }

    /// Removes expired entries, and evaluates evidence that depends on elapsed time.
    pub(crate) fn tick(&mut self) {
        let now = self.at.now;
        match self.lists.expire(now) {
            Ok(expired) => {
                for (list, entry) in expired {
                    let hits = self.lists.take_hits(&entry);
                    self.event_sink.expired(list, &entry, hits);
                    let what = if list == List::Block { "unban" } else { "untrust" };
                    let place = entry.place();
                    let (owner, dry_run) = (entry.owner.name(), entry.dry_run);
                    self.announce(
                        Event::of(what, &entry).kind("expired"),
                        Level::Info,
                        format_args!(
                            "{what} {place} owner={owner} dry_run={dry_run} reason=\"expired\""
                        ),
                    );
                }
            }
            Err(error) => log::error!(
                "expired entries stay in the tables, where they no longer match: {error}"
            ),
        }
        let actions = self.detector.tick(now);
        self.apply_actions(actions);
    }

    /// Tells the kernel the IPv6 networks whose hosts are metered one by one.
    pub(crate) fn judge_by_address(&mut self) -> Result<()> {
        let prefix = self.config.ipv6_prefix;
        let mut networks = self.never_ban.ipv6_networks(prefix);
        networks.extend(near(self.lists.entries(List::Trust).map(|entry| &entry.network), prefix));
        let now = self.at.now;
        let good = self.lists.known_hosts().filter(|(_, reputation)| reputation.good_until > now);
        networks.extend(near(good.map(|(network, _)| network), prefix));
        Ok(self.lists.set_by_address(networks)?)
    }

    /// Processes one kernel event.
    pub(crate) fn observe(&mut self, event: &KernelEvent) {
        let now = self.at.now;
        if now.saturating_sub(event.time) > STALE {
            return;
        }
        match EventKind::from_number(event.kind) {
            Some(EventKind::Storm) => {
                // The packet's own source is irrelevant: most likely forged.
                if self.note_due(IpKey::v4(0), "storm", now) {
                    let (seen, dry_run) = (event.seen, self.config.dry_run);
                    // Those of the current window so far, possibly few while the storm lasts.
                    let limit = self.config.limits.storm.new_sources;
                    let reason = format!("more than {} new sources in {}", limit.count, limit.per);
                    self.announce(
                        Event::new("storm").reason(reason).dry_run(dry_run),
                        Level::Warn,
                        format_args!("storm new_sources={seen} dry_run={dry_run}"),
                    );
                }
                return;
            }
            Some(EventKind::Limited) if self.note_due(event.source, "limit", now) => {
                let kind = LimitKind::from_number(event.bucket).map_or("?", |bucket| bucket.name());
                let (address, dry_run) = (address_of(event.source), self.config.dry_run);
                self.announce(
                    Event::new("limit")
                        .from(event.source)
                        .port(event.port)
                        .kind(kind)
                        .dry_run(dry_run),
                    Level::Info,
                    format_args!("limit {address} kind={kind} dry_run={dry_run}"),
                );
            }
            Some(EventKind::Conflict) if self.note_due(event.source, "conflict", now) => {
                let (address, port) = (address_of(event.source), event.port);
                let reason = "blocked, but a phone is registered there";
                self.announce(
                    Event::new("conflict").from(event.source).port(port).reason(reason),
                    Level::Warn,
                    format_args!("conflict {address} port={port} reason=\"{reason}\""),
                );
            }
            _ => {}
        }
        let actions = self.detector.observe(event);
        self.apply_actions(actions);
    }

    /// Takes a message that is no sample of the kernel's.
    pub(crate) fn observe_message(&mut self, message: &Observation<'_>) {
        let actions = self.detector.observe_message(message);
        self.apply_actions(actions);
    }

    /// Carries out the detector's actions.
    fn apply_actions(&mut self, actions: Vec<Action>) {
        let now = self.at.now;
        for action in actions {
            match action {
                Action::Ban(finding) => self.emit_ban(&finding, now),
                Action::Accepted(acceptance) => self.accepted(&acceptance, now),
                Action::Peer(source, until) => {
                    let is_new = self.lists.reputation(source).peer_until <= now;
                    self.know(source, now, |reputation| reputation.peer_until = until);
                    if is_new {
                        self.event_sink.publish(Event::new("peer").from(source));
                    }
                    self.event_sink.peer(source, until);
                }
                Action::Ended(places) => {
                    for (source, port) in places {
                        self.note_good(source, port, now);
                    }
                }
                Action::Sprayed(spray) => self.event_sink.sprayed(&spray),
                Action::Served(source, until) => {
                    self.event_sink.served(source);
                    let is_new = self.lists.reputation(source).good_until <= now;
                    self.know(source, now, |reputation| {
                        reputation.good_until = reputation.good_until.max(until);
                        reputation.former_until =
                            reputation.former_until.max(until.saturating_add(FORMER));
                    });
                    if is_new {
                        let reason = "the server takes its calls without credentials";
                        self.announce(
                            Event::new("served").from(source).reason(reason),
                            Level::Info,
                            format_args!("served {} reason=\"{reason}\"", address_of(source)),
                        );
                    }
                }
                Action::Meter(metering) => self.meter(&metering, now),
                Action::OwnNonce(source, nonce, is_own) => {
                    self.own_nonce(source, nonce, is_own, now);
                }
                Action::RefuseUser(source, user, until) => {
                    let host = Network::around(source, 128);
                    if until > now && self.ban_exemption(&host, now).is_some() {
                        continue;
                    }
                    if let Err(error) = self.lists.refuse_user(source, user, until)
                        && self.note_due(IpKey::v4(0), "users", now)
                    {
                        log::error!("a user of {} is not refused: {error}", address_of(source));
                    }
                }
                Action::Expelled(source, text) => {
                    self.announce(
                        Event::new("expelled").from(source).reason(&*text),
                        Level::Warn,
                        format_args!("expelled {} reason={}", address_of(source), Quoted(&text)),
                    );
                }
                Action::Rejected(source, port, text) => {
                    if self.note_due(source, "rejected", now) {
                        log::info!("not held against {} port={port}: {text}", address_of(source));
                    }
                }
                Action::Note(kind, text) => {
                    if self.note_due(IpKey::v4(0), kind, now) {
                        self.announce(
                            Event::new(kind).reason(&*text),
                            Level::Warn,
                            format_args!("{kind} reason={}", Quoted(&text)),
                        );
                    }
                }
            }
        }
    }

    /// Stores the reputation of a host.
    pub(crate) fn know(
        &mut self,
        source: IpKey,
        now: u64,
        change: impl FnOnce(&mut HostReputation),
    ) {
        if let Err(error) = self.lists.know(source, now, change)
            && self.note_due(IpKey::v4(0), "known", now)
        {
            log::error!("{} is not remembered: {error}", address_of(source));
        }
    }

    /// A user was accepted, or has unregistered.
    fn accepted(&mut self, acceptance: &Acceptance, now: u64) {
        let Acceptance { source, port, transport, .. } = acceptance;
        self.event_sink.accepted(acceptance);
        if self.note_good(*source, *port, now) {
            self.announce(
                Event::new("good").from(*source).port(*port).transport(*transport),
                Level::Info,
                format_args!("good {} port={port}", address_of(*source)),
            );
            // From now on its IPv6 neighbours are judged one by one.
            if !source.is_v4()
                && let Err(error) = self.lists.meter_by_address(near(
                    [Network::around(*source, 128)].iter(),
                    self.config.ipv6_prefix,
                ))
            {
                log::error!("networks of known hosts: {error:#}");
            }
        }
    }

    /// Updates the reputation of an address and one of its ports. Returns whether it was not known
    /// good before.
    pub(crate) fn note_good(&mut self, source: IpKey, port: u16, now: u64) -> bool {
        let good = self.detector.good(&source, port, now);
        let is_new = good.until != 0 && self.lists.reputation(source).good_until == 0;
        let scale = (good.users / USERS).checked_ilog2().map_or(0, |log| u64::from(log) + 1).min(8);
        self.know(source, now, |reputation| {
            (reputation.good_until, reputation.scale) = (good.until, scale);
            reputation.former_until = good.until.max(now).saturating_add(FORMER);
        });
        if let Err(error) = self.lists.know_flow(source, port, good.flow_until)
            && self.note_due(source, "flow", now)
        {
            log::error!("{} port={port} has no reserve of its own: {error}", address_of(source));
        }
        is_new
    }

    /// Tells the kernel whether a nonce is a source's own.
    fn own_nonce(&mut self, source: IpKey, nonce: u64, is_own: bool, now: u64) {
        if let Err(error) = self.lists.own_nonce(source, nonce, is_own)
            && self.note_due(IpKey::v4(0), "nonces", now)
        {
            log::error!("a nonce of {} is not noted: {error}", address_of(source));
        }
    }

    /// Puts a source on the ladder, or a step further down.
    fn meter(&mut self, metering: &Metering, now: u64) {
        let Metering { source, bits, step, modes, until, ref reason } = *metering;
        let place = Network::around(source, bits);
        if let Some(what) = self.ban_exemption(&place, now) {
            // An exempt host is never metered. That others of a network are not, is said.
            if !place.is_host() {
                self.note_exempt("limited", place, "site", reason, &what, now);
            }
            return;
        }
        let before = self.lists.ladder_step(&place, now);
        let step = match (step, before) {
            (Step::First, before) => before.unwrap_or(0),
            (Step::Down, None) => 0,
            (Step::Down, Some(before)) => before.max((before + 1).min(LOWEST_BY_OFFENCES)),
            (Step::Last, _) => LOWEST,
        };
        if !self.put_on_ladder(source, bits, step, modes, until, now) {
            return;
        }
        let pace = PACES[step as usize];
        // Which users are refused is told of each of them. On the first step they alone are.
        let is_refusal = modes & REFUSES_USERS != 0 && step == 0;
        if is_refusal || self.notes.are_due(place, pace, now) {
            let dry_run = self.config.dry_run;
            let reason = if is_refusal { reason.clone() } else { format!("{reason}; {pace}") };
            self.announce(
                Event::new("suspect").about(place).reason(&*reason).dry_run(dry_run),
                Level::Info,
                format_args!("suspect {place} dry_run={dry_run} reason={}", Quoted(&reason)),
            );
        }
    }

    /// Puts an offender by level 1 evidence on the first step of the ladder, or leaves it on a
    /// lower one: after its ban it has one request a second, with a burst of 4, until its offence
    /// is forgotten.
    pub(crate) fn meter_offender(&mut self, network: Network, offence: u64, now: u64) {
        let until = offence.saturating_add(self.config.bans.forget.nanos());
        let is_one_site = network.is_host() || network.bits() == SITE_BITS;
        if until <= now || !is_one_site || self.ban_exemption(&network, now).is_some() {
            return;
        }
        let step = self.lists.ladder_step(&network, now).unwrap_or(0);
        self.put_on_ladder(network.first(), network.bits(), step, 0, until, now);
    }

    /// Writes the step of a source, or of a network around it, and the source's own nonces. Returns
    /// whether there was room.
    fn put_on_ladder(
        &mut self,
        source: IpKey,
        bits: u8,
        step: u32,
        modes: u32,
        until: u64,
        now: u64,
    ) -> bool {
        let place = Network::around(source, bits);
        if let Err(error) = self.lists.meter(place, step, modes, until, now) {
            if self.note_due(IpKey::v4(0), "ladder", now) {
                log::error!("{place} is not limited further: {error}");
            }
            return false;
        }
        for (host, nonce) in self.detector.metered(source, bits, until, now) {
            self.own_nonce(host, nonce, true, now);
        }
        true
    }

    /// Bans the source of a finding, unless it is exempt.
    fn emit_ban(&mut self, finding: &Finding, now: u64) {
        let host = Network::around(finding.source, 128);
        let around = Network::around(finding.source, finding.bits);
        // A network that contains an exempt or known-good host is judged per host. Its strangers
        // share the ladder, or one account would cover guesses from each of its hosts.
        let of_network = finding.bits < 128 && finding.port.is_none();
        let by_host = !of_network || self.spares(&around, now);
        let by_volume = matches!(finding.kind, "register" | "requests");
        if of_network && by_host && finding.tier == Tier::Proven && !by_volume {
            self.meter_strangers(finding.source, finding.bits, Step::Down, &finding.reason, now);
        }
        let network = if by_host { host } else { around };
        // Convicted ports lose known good first, so that it no longer protects them below.
        for port in finding.port.iter().chain(&finding.ports) {
            self.note_good(finding.source, *port, now);
        }
        if let Some(what) = self.ban_exemption(&network, now) {
            self.note_exempt("banned", network, finding.kind, &finding.reason, &what, now);
            return;
        }
        if by_volume && now < self.learning_until {
            if self.note_due(finding.source, "learn", now) {
                log::info!(
                    "not banned {network} while learning; reason={}",
                    Quoted(&finding.reason)
                );
            }
            return;
        }
        // Evidence that could be forged bans a host once a day; then the ladder slows it, until a
        // day without an offence. A tool's signature leads to the first step before any ban.
        let is_metered = self.lists.ladder_step(&network, now).is_some_and(|step| step > 0);
        if finding.tier == Tier::Unproven
            && (is_metered || !self.repeats.may_ban_unproven(&network, now))
        {
            let (until, reason) = (now.saturating_add(UNPROVEN_ONCE), finding.reason.clone());
            let host = Metering::of_host(finding.source, Step::Down, until, reason);
            self.meter(&Metering { bits: finding.bits, ..host }, now);
            return;
        }
        let length = self.length_of_ban(&network, finding, now);
        let entry = Entry {
            owner: Owner::Auto,
            port: finding.port,
            tier: Some(finding.tier),
            dry_run: self.config.dry_run,
            added_ms: self.at.wall_ms,
            ..Entry::manual(network, self.at.after(length), &finding.reason)
        };
        let until = entry.expires;
        if !self.apply_ban(entry, finding.kind, Some(finding.transport), length, now) {
            return;
        }
        if finding.tier == Tier::Proven {
            self.detector.banned(finding.source, finding.port, until, now);
            if finding.port.is_none() && finding.growth == Growth::Full {
                self.meter_offender(network, now, now);
            }
            if finding.port.is_none() {
                let is_misconfigured = matches!(finding.growth, Growth::Mild { .. });
                self.repeats.note_ban(&network, is_misconfigured, now);
                if !is_misconfigured {
                    self.escalate(&network, now);
                }
            }
        }
    }

    /// Says that a host or network attacks and is not `spared` (banned, or limited), because of
    /// what it is or contains.
    fn note_exempt(
        &mut self,
        spared: &str,
        place: Network,
        kind: &str,
        reason: &str,
        what: &str,
        now: u64,
    ) {
        if self.notes.are_due(place, "exempt", now) {
            self.announce(
                Event::new("exempt").about(place).kind(kind).reason(reason),
                Level::Warn,
                format_args!(
                    "not {spared} {place} although it attacks: it {what}; reason={}",
                    Quoted(reason)
                ),
            );
        }
    }

    /// The duration of a ban.
    fn length_of_ban(&mut self, network: &Network, finding: &Finding, now: u64) -> Duration {
        let bans = &self.config.bans;
        if finding.tier == Tier::Unproven {
            return bans.unproven.0;
        }
        let forget = bans.forget.nanos();
        let longer =
            |count: u32, most: Duration| ban_duration(bans.first.0, bans.factor, most, count);
        match (finding.growth, finding.port) {
            (Growth::None, _) => return bans.first.0,
            // Dry-run offences do not count later.
            _ if self.config.dry_run => {}
            (Growth::Mild { times }, port) => {
                let count = self.repeats.count((*network, port.unwrap_or(0)), now, forget);
                let length = longer(count, LONGEST_MILD.max(bans.first.0));
                return length.saturating_mul(times).min(bans.max.0);
            }
            (Growth::Full, Some(port)) => {
                let count = self.repeats.count((*network, port), now, forget);
                return longer(count, bans.max.0);
            }
            (Growth::Full, None) => {}
        }
        let before =
            self.offences.get(network).filter(|offence| now.saturating_sub(offence.at) < forget);
        let count = before.map_or(0, |offence| offence.count);
        // A stranger that was banned before, and tries a user whom many strangers try, has no typo:
        // otherwise each of a thousand bots gets four guesses on its second day.
        let is_botnet = finding.kind == SPRAYED && count > 0;
        let length = if is_botnet { bans.max.0 } else { longer(count, bans.max.0) };
        // Dry-run offences do not count later.
        if !self.config.dry_run && (self.offences.len() < MAX_OFFENCES || before.is_some()) {
            let count = count.saturating_add(1);
            self.offences.insert(*network, Offence { count, at: now });
            let offence = OffenceRecord { network: *network, count, last_ms: self.at.wall_ms };
            self.event_sink.offence(offence);
        }
        length
    }

    /// Puts a ban in force, unless a longer one is. Returns whether it did.
    fn apply_ban(
        &mut self,
        entry: Entry,
        kind: &str,
        transport: Option<Transport>,
        length: Duration,
        now: u64,
    ) -> bool {
        let (place, expires, tier) = (entry.place(), entry.expires, entry.tier);
        let earlier = self.lists.entry(List::Block, &entry.network, entry.port, Owner::Auto);
        if earlier.is_some_and(|earlier| earlier.expires >= expires) {
            return false;
        }
        let (source, reason) = (entry.network.first(), entry.reason.clone());
        let call_id = self.detector.last_call_id(&source);
        match self.lists.put(List::Block, entry.clone()) {
            Ok(()) => {
                self.event_sink.banned(kind, &entry, self.lists);
                self.announce(
                    Event { transport, call_id, ..Event::of("ban", &entry).kind(kind) },
                    Level::Warn,
                    format_args!(
                        "ban {place} kind={kind} tier={} for={} dry_run={} reason={}",
                        tier.map_or("none", Tier::name),
                        humantime::format_duration(length),
                        self.config.dry_run,
                        Quoted(&reason),
                    ),
                );
                true
            }
            Err(error) => {
                if self.note_due(source, "full", now) {
                    log::error!("not banned {place}, its excess is dropped all the same: {error}");
                }
                false
            }
        }
    }

    /// Escalates to a network when several of its hosts were banned within an hour: an attacker
    /// hopping between them. IPv4 networks are only reported, unless configured otherwise.
    fn escalate(&mut self, network: &Network, now: u64) {
        if network.first().is_v4() {
            self.escalate_ipv4(network, now);
            return;
        }
        for (bits, many, part_bits) in ESCALATION {
            let around = Network::around(network.first(), bits);
            if network.bits() <= bits {
                continue;
            }
            let banned = self.banned_lately(around);
            let parts: BTreeSet<Network> =
                banned.iter().map(|one| Network::around(one.first(), part_bits)).collect();
            if banned.len() < many || parts.len() < 2 {
                continue;
            }
            let reason = format!("{} banned hosts of this network within an hour", banned.len());
            if self.spares(&around, now) {
                // What each host did has taken the network down already.
                self.meter_strangers(network.first(), bits, Step::First, &reason, now);
                continue;
            }
            self.ban_around(around, &reason, now);
            return;
        }
    }

    /// Hosts that are not known share the ladder in the IPv6 network around a source. It is not
    /// banned, since somebody good lives there.
    fn meter_strangers(&mut self, source: IpKey, bits: u8, step: Step, reason: &str, now: u64) {
        let until = now.saturating_add(UNPROVEN_ONCE);
        let host = Metering::of_host(source, step, until, reason.to_owned());
        self.meter(&Metering { bits, modes: STRANGERS_SHARE, ..host }, now);
    }

    fn escalate_ipv4(&mut self, network: &Network, now: u64) {
        let (bits, many) = IPV4_ESCALATION;
        let around = Network::around(network.first(), 96 + bits);
        if !network.is_host() || self.spares(&around, now) {
            return;
        }
        let count = self.banned_lately(around).len();
        if count < many {
            return;
        }
        let reason = format!("{count} banned hosts of this network within an hour");
        if self.config.bans.ipv4_networks {
            self.ban_around(around, &reason, now);
        } else if self.note_due(around.first(), "neighbours", now) {
            self.announce(
                Event::new("neighbours").about(around).reason(&*reason),
                Level::Warn,
                format_args!("neighbours {around} reason=\"{reason}\""),
            );
        }
    }

    /// Hosts of a network that were banned at level 1 within an hour, for more than a misconfigured
    /// phone.
    fn banned_lately(&self, around: Network) -> Vec<Network> {
        let lately = self.at.wall_ms.saturating_sub(HOUR / 1_000_000);
        let all = self.lists.entries_within(List::Block, around).filter(|entry| {
            entry.owner == Owner::Auto
                && entry.port.is_none()
                && entry.network.is_host()
                && entry.tier == Some(Tier::Proven)
                && entry.added_ms >= lately
                && !self.repeats.is_misconfigured(&entry.network, self.at.now)
        });
        all.map(|entry| entry.network).collect()
    }

    /// Whether a network contains a host that must not be banned with it.
    fn spares(&self, network: &Network, now: u64) -> bool {
        self.ban_exemption(network, now).is_some() || self.lists.knows_within(network, now)
    }

    fn ban_around(&mut self, network: Network, reason: &str, now: u64) {
        let length = self.config.bans.first.0;
        let entry = Entry {
            owner: Owner::Auto,
            tier: Some(Tier::Proven),
            dry_run: self.config.dry_run,
            added_ms: self.at.wall_ms,
            ..Entry::manual(network, self.at.after(length), reason)
        };
        self.apply_ban(entry, "site", None, length, now);
    }

    /// Removes old offences.
    pub(crate) fn forgive(&mut self) {
        let now = self.at.now;
        let forget = self.config.bans.forget.nanos();
        self.offences.retain(|_, offence| now.saturating_sub(offence.at) < forget);
        self.repeats.tidy(now, forget);
    }

    fn ban_exemption(&self, network: &Network, now: u64) -> Option<String> {
        ban_exemption(self.never_ban, self.lists, network, now)
    }
}

/// Why `network` is exempt from bans by evidence, if it is.
pub(crate) fn ban_exemption(
    never_ban: &NeverBan,
    lists: &Lists,
    network: &Network,
    now: u64,
) -> Option<String> {
    if let Some((host, what)) = never_ban.inside(network) {
        return Some(if network.is_host() {
            format!("is {what}")
        } else {
            format!("contains {what} ({host})")
        });
    }
    if lists.trusts(network, now) {
        return Some("is trusted".to_owned());
    }
    lists
        .trusted_within(network, now)
        .first()
        .map(|inside| format!("contains {inside}, which is trusted"))
}
