//! What follows from events and findings: bans, and what is known of hosts. The daemon and a replay
//! share it: what differs is whose tables these are, what time it is, and who hears of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use log::Level;
use sip_xdp_common::abi::layout::{EventKind, KernelEvent, List, Owner};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::gcra::LimitKind;

use super::event::Event;
use super::offences::{HOUR, MAX_OFFENCES, Offence, OffenceRecord, Repeats, UNPROVEN_ONCE};
use crate::bans::duration::ban_duration;
use crate::bans::notes::Notes;
use crate::config::Config;
use crate::dataplane::tables::ledger::{Entry, Tier};
use crate::detect::{Acceptance, Action, Detector, Finding, Growth, Observation};
use crate::lists::never_ban::{NeverBan, near};
use crate::lists::{HostReputation, Lists};
use crate::net::network::{Network, address_of};
use crate::sip::transport::Transport;
use crate::sys::clock::Moment;
use crate::text::Quoted;

/// IPv6 networks that are banned when their parts were, within an hour, by level 1 evidence: width,
/// how many bans of hosts, and the width of the parts of which two or more must be among them.
const ESCALATION: [(u8, usize, u8); 3] = [(64, 2, 128), (56, 3, 64), (48, 4, 56)];

/// The same for IPv4, which is only said unless the configuration asks for it.
const IPV4_ESCALATION: (u8, usize) = (24, 5);

/// Events older than this were meant for a daemon that has died, in nanoseconds.
const STALE: u64 = 5_000_000_000;

/// The longest ban of a misconfigured phone.
const LONGEST_MILD: Duration = Duration::from_secs(3_600);

/// Accepted users for which the usual limit is enough; twice as many double it.
const USERS: usize = 64;

/// For how long a host is no stranger in a storm after its last registration has ended, in
/// nanoseconds: a week.
pub(crate) const FORMER: u64 = 7 * 24 * HOUR;

/// How many hosts are under suspicion at the same time.
const MAX_SUSPECTS: usize = 4_096;

/// Who hears of what is decided, and remembers it.
pub(crate) trait EventSink {
    /// A decision: as a line for the log, and as an event.
    fn announce(&mut self, event: Event, level: Level, line: fmt::Arguments<'_>);

    /// An event that is not worth a line.
    fn publish(&mut self, event: Event);

    /// A user was accepted.
    fn accepted(&mut self, acceptance: &Acceptance);

    /// A host is a peer until then.
    fn peer(&mut self, source: IpKey, until: u64);

    /// A network has offended again.
    fn offence(&mut self, offence: OffenceRecord);

    /// A ban is in force, because of evidence of this kind.
    fn banned(&mut self, kind: &str, entry: &Entry, lists: &mut Lists);

    /// An entry has ended by itself.
    fn expired(&mut self, list: List, entry: &Entry);
}

/// Where findings are judged, for one event or one tick.
pub(crate) struct BanEngine<'a, C> {
    /// The rules.
    pub(crate) config: &'a Config,
    /// The tables that the kernel asks.
    pub(crate) lists: &'a mut Lists,
    /// Who turns events into findings.
    pub(crate) detector: &'a mut Detector,
    /// Who is never banned.
    pub(crate) never_ban: &'a NeverBan,
    /// How often each network was banned.
    pub(crate) offences: &'a mut BTreeMap<Network, Offence>,
    /// What else is remembered of bans.
    pub(crate) repeats: &'a mut Repeats,
    /// What was said a moment ago.
    pub(crate) notes: &'a mut Notes,
    /// Volume does not ban before this time.
    pub(crate) learning_until: u64,
    /// What time it is.
    pub(crate) at: Moment,
    /// Who hears of it.
    pub(crate) event_sink: C,
}

impl<C: EventSink> BanEngine<'_, C> {
    fn announce(&mut self, event: Event, level: Level, line: fmt::Arguments<'_>) {
        self.event_sink.announce(event, level, line);
    }

    fn note_due(&mut self, source: IpKey, kind: &'static str, now: u64) -> bool {
        self.notes.are_due(source, kind, now)
    }

    /// Takes out what has ended, and looks at what has become certain by the mere passing of time.
    pub(crate) fn tick(&mut self) {
        let now = self.at.now;
        match self.lists.expire(now) {
            Ok(expired) => {
                for (list, entry) in expired {
                    self.event_sink.expired(list, &entry);
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

    /// Tells the kernel in which IPv6 networks hosts live that must not share their network's fate.
    pub(crate) fn judge_by_address(&mut self) -> Result<()> {
        let prefix = self.config.ipv6_prefix;
        let mut networks = self.never_ban.ipv6_networks(prefix);
        networks.extend(near(self.lists.entries(List::Trust).map(|entry| &entry.network), prefix));
        let now = self.at.now;
        let good = self.lists.known_hosts().filter(|(_, reputation)| reputation.good_until > now);
        networks.extend(near(good.map(|(network, _)| network), prefix));
        Ok(self.lists.set_by_address(networks)?)
    }

    /// Takes one event of the kernel's.
    pub(crate) fn observe(&mut self, event: &KernelEvent) {
        let now = self.at.now;
        if now.saturating_sub(event.time) > STALE {
            return;
        }
        match EventKind::from_number(event.kind) {
            Some(EventKind::Storm) => {
                // Who sent this very packet does not matter: its address is as likely as not
                // forged.
                if self.note_due(IpKey::v4(0), "storm", now) {
                    let (seen, dry_run) = (event.seen, self.config.dry_run);
                    // Those in the present window so far, of which there may be few while the storm
                    // goes on.
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

    /// Does what follows from events.
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
                Action::Served(source, until) => {
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
                Action::Limit(source, until, what) => self.suspect(source, until, &what, now),
                Action::Rejected(source, port, text) => {
                    if self.note_due(source, "rejected", now) {
                        log::info!("not held against {} port={port}: {text}", address_of(source));
                    }
                }
                Action::Note(kind, text) => {
                    if self.note_due(IpKey::v4(0), kind, now) {
                        let said = Event::new(kind).reason(&*text);
                        self.announce(
                            said,
                            Level::Warn,
                            format_args!("{kind} reason={}", Quoted(&text)),
                        );
                    }
                }
            }
        }
    }

    /// Notes what is known of a host.
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

    /// A user was accepted, or has taken its registration back.
    fn accepted(&mut self, acceptance: &Acceptance, now: u64) {
        let Acceptance { source, port, transport, .. } = acceptance;
        self.event_sink.accepted(acceptance);
        if self.note_good(*source, *port, now) {
            self.announce(
                Event::new("good").from(*source).port(*port).transport(*transport),
                Level::Info,
                format_args!("good {} port={port}", address_of(*source)),
            );
            // Its IPv6 neighbours are judged one by one from now on.
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

    /// Tells the kernel what is known of an address and one of its ports. Returns whether it was
    /// not known good before.
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

    /// Limits a source that looks like a tool, but may be forged.
    fn suspect(&mut self, source: IpKey, until: u64, what: &str, now: u64) {
        let host = Network::around(source, 128);
        let reputation = self.lists.reputation(source);
        // Forged senders must not fill the tables; beyond this many the usual limit has to do.
        if self.lists.suspects() >= MAX_SUSPECTS {
            return;
        }
        if self.ban_exemption(&host, now).is_some()
            || reputation.good_until > now
            || reputation.peer_until > now
        {
            return;
        }
        self.know(source, now, |reputation| reputation.suspect_until = until);
        if self.note_due(source, "suspect", now) {
            let (address, dry_run) = (address_of(source), self.config.dry_run);
            self.announce(
                Event::new("suspect").from(source).reason(what).dry_run(dry_run),
                Level::Info,
                format_args!("suspect {address} dry_run={dry_run} reason={}", Quoted(what)),
            );
        }
    }

    /// Bans the source of a finding, unless a rule that no evidence overrides speaks against it.
    fn emit_ban(&mut self, finding: &Finding, now: u64) {
        let host = Network::around(finding.source, 128);
        let around = Network::around(finding.source, finding.bits);
        // A network with somebody in it who must stay reachable, or is known good, is judged host
        // by host.
        let by_host = finding.bits >= 128
            || finding.port.is_some()
            || self.ban_exemption(&around, now).is_some()
            || self.lists.knows_within(&around, now);
        let network = if by_host { host } else { around };
        // Who has lost its standing loses it before anything else is decided.
        for port in finding.port.iter().chain(&finding.ports) {
            self.note_good(finding.source, *port, now);
        }
        if let Some(what) = self.ban_exemption(&network, now) {
            if self.note_due(finding.source, "exempt", now) {
                self.announce(
                    Event::new("exempt").about(network).kind(finding.kind).reason(&*finding.reason),
                    Level::Warn,
                    format_args!(
                        "not banned {network} although it attacks: it {what}; reason={}",
                        Quoted(&finding.reason)
                    ),
                );
            }
            return;
        }
        let by_volume = matches!(finding.kind, "register" | "requests");
        if by_volume && now < self.learning_until {
            if self.note_due(finding.source, "learn", now) {
                log::info!(
                    "not banned {network} while learning; reason={}",
                    Quoted(&finding.reason)
                );
            }
            return;
        }
        if finding.tier == Tier::Unproven && !self.repeats.may_ban_unproven(&network, now) {
            // What could be forged bans once a day. After that it only goes slower, until a day
            // without.
            self.suspect(finding.source, now.saturating_add(UNPROVEN_ONCE), &finding.reason, now);
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
            if finding.port.is_none() {
                self.escalate(&network, now);
            }
        }
    }

    /// How long a ban is.
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
            // What a dry run decides is nothing when it is over.
            _ if self.config.dry_run => {}
            (Growth::Mild, port) => {
                let count = self.repeats.count((*network, port.unwrap_or(0)), now, forget);
                return longer(count, LONGEST_MILD.max(bans.first.0).min(bans.max.0));
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
        let length = longer(count, bans.max.0);
        // What a dry run decides is nothing when it is over.
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
        let owners = self.lists.owners(List::Block, &entry.network);
        if entry.port.is_none()
            && owners.iter().any(|other| other.owner == Owner::Auto && other.expires >= expires)
        {
            return false;
        }
        let (source, reason) = (entry.network.first(), entry.reason.clone());
        match self.lists.put(List::Block, entry.clone()) {
            Ok(()) => {
                self.event_sink.banned(kind, &entry, self.lists);
                self.announce(
                    Event { transport, ..Event::of("ban", &entry).kind(kind) },
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

    /// Bans an IPv6 network whose hosts were banned one after the other within an hour: somebody
    /// hops from one to the next. An IPv4 network is only told of, unless the configuration says
    /// so.
    fn escalate(&mut self, network: &Network, now: u64) {
        if network.first().is_v4() {
            self.escalate_ipv4(network, now);
            return;
        }
        for (bits, many, part_bits) in ESCALATION {
            let around = Network::around(network.first(), bits);
            if network.bits() <= bits || self.spares(&around, now) {
                continue;
            }
            let banned = self.banned_lately(around);
            let parts: BTreeSet<Network> =
                banned.iter().map(|one| Network::around(one.first(), part_bits)).collect();
            if banned.len() < many || parts.len() < 2 {
                continue;
            }
            let reason = format!("{} banned hosts of this network within an hour", banned.len());
            self.ban_around(around, &reason, now);
            return;
        }
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

    /// Hosts of a network that were banned within an hour by evidence that could not be forged.
    fn banned_lately(&self, around: Network) -> Vec<Network> {
        let lately = self.at.wall_ms.saturating_sub(HOUR / 1_000_000);
        let all = self.lists.entries_within(List::Block, around).filter(|entry| {
            entry.owner == Owner::Auto
                && entry.port.is_none()
                && entry.network.is_host()
                && entry.tier == Some(Tier::Proven)
                && entry.added_ms >= lately
        });
        all.map(|entry| entry.network).collect()
    }

    /// Whether somebody lives in a network who must not share its fate.
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

    /// Forgets offences that are long past.
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

/// Why nothing in `network` may be banned by evidence, if so.
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
