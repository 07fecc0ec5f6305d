//! What follows from events and findings: bans, and what is known of hosts. The daemon and a replay share it: what differs
//! is whose tables these are, what time it is, and who hears of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use log::Level;
use sip_xdp_common::abi::layout::{Event, EventKind, List, Owner};
use sip_xdp_common::ip_key::Source;
use sip_xdp_common::limits::gcra::Bucket;

use super::STALE;
use super::events::Event as Said;
use crate::bans::duration::ban_duration;
pub(crate) use crate::bans::notes::Notes;
use crate::config::Config;
use crate::dataplane::tables::ledger::{Entry, Tier};
use crate::detect::{Acceptance, Action, Detector, Finding};
use crate::lists::never_ban::{Exempt, near};
use crate::lists::{HostStanding, Lists};
use crate::net::network::{Network, address_of};
use crate::store;
use crate::sys::clock::Moment;
use crate::text::Quoted;

/// The length of the IPv6 networks in which several banned networks condemn the whole.
const SITE: u8 = 56;

/// So many of them.
const CROWD: usize = 4;

/// Within this time, in nanoseconds.
pub(super) const HOUR: u64 = 3_600_000_000_000;

/// Accepted users for which the usual limit is enough; twice as many double it.
const USERS: usize = 64;

/// For how long a host is no stranger in a storm after its last registration has ended, in nanoseconds: a week.
pub(crate) const FORMER: u64 = 7 * 24 * HOUR;

/// How many hosts are under suspicion at the same time.
const MAX_SUSPECTS: usize = 4_096;

/// How many offenders are remembered.
pub(crate) const MAX_OFFENCES: usize = 131_072;

/// How often a network was banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offence {
    /// Times.
    pub(crate) count: u32,
    /// When it was last, on the filter's clock.
    pub(crate) at: u64,
}

/// Who hears of what is decided, and remembers it.
pub(crate) trait Chronicle {
    /// A decision: as a line for the log, and as an event.
    fn say(&mut self, event: Said, level: Level, line: fmt::Arguments<'_>);

    /// An event that is not worth a line.
    fn tell(&mut self, event: &Said);

    /// A user was accepted.
    fn accepted(&mut self, acceptance: &Acceptance);

    /// A host is a peer until then.
    fn peer(&mut self, source: Source, until: u64);

    /// A network has offended again.
    fn offence(&mut self, offence: store::Offence);

    /// A ban is in force, because of evidence of this kind.
    fn banned(&mut self, kind: &str, entry: &Entry, lists: &mut Lists);

    /// An entry has ended by itself.
    fn expired(&mut self, list: List, entry: &Entry);
}

/// Where findings are judged, for one event or one tick.
pub(crate) struct Court<'a, C> {
    /// The rules.
    pub(crate) config: &'a Config,
    /// The tables that the kernel asks.
    pub(crate) lists: &'a mut Lists,
    /// Who turns events into findings.
    pub(crate) detector: &'a mut Detector,
    /// Who is never banned.
    pub(crate) exempt: &'a Exempt,
    /// How often each network was banned.
    pub(crate) offences: &'a mut BTreeMap<Network, Offence>,
    /// What was said a moment ago.
    pub(crate) notes: &'a mut Notes,
    /// Volume does not ban before this time.
    pub(crate) learning_until: u64,
    /// What time it is.
    pub(crate) at: Moment,
    /// Who hears of it.
    pub(crate) chronicle: C,
}

impl<C: Chronicle> Court<'_, C> {
    fn say(&mut self, event: Said, level: Level, line: fmt::Arguments<'_>) {
        self.chronicle.say(event, level, line);
    }

    fn note_due(&mut self, source: Source, kind: &'static str, now: u64) -> bool {
        self.notes.are_due(source, kind, now)
    }

    /// Takes out what has ended, and looks at what has become certain by the mere passing of time.
    pub(crate) fn tick(&mut self) {
        let now = self.at.now;
        match self.lists.expire(now) {
            Ok(expired) => {
                for (list, entry) in expired {
                    self.chronicle.expired(list, &entry);
                    let what = if list == List::Block { "unban" } else { "untrust" };
                    let place = entry.place();
                    let (owner, dry_run) = (entry.owner.name(), entry.dry_run);
                    self.say(
                        Said::of(what, &entry).kind("expired"),
                        Level::Info,
                        format_args!("{what} {place} owner={owner} dry_run={dry_run} reason=\"expired\""),
                    );
                }
            }
            Err(error) => log::error!("expired entries stay in the tables, where they no longer match: {error}"),
        }
        let actions = self.detector.tick(now);
        self.act(actions);
    }

    /// Tells the kernel in which IPv6 networks hosts live that must not share their network's fate.
    pub(crate) fn judge_by_address(&mut self) -> Result<()> {
        let prefix = self.config.ipv6_prefix;
        let mut networks = self.exempt.ipv6_networks(prefix);
        networks.extend(near(self.lists.entries(List::Trust).map(|entry| &entry.network), prefix));
        let now = self.at.now;
        let good = self.lists.known_hosts().filter(|(_, standing)| standing.good_until > now);
        networks.extend(near(good.map(|(network, _)| network), prefix));
        Ok(self.lists.set_by_address(networks)?)
    }

    /// Takes one event of the kernel's.
    pub(crate) fn observe(&mut self, event: &Event) {
        let now = self.at.now;
        if now.saturating_sub(event.time) > STALE {
            return;
        }
        match EventKind::from_number(event.kind) {
            Some(EventKind::Storm) => {
                // Who sent this very packet does not matter: its address is as likely as not forged.
                if self.note_due(Source::v4(0), "storm", now) {
                    let (seen, dry_run) = (event.seen, self.config.dry_run);
                    // Those in the present window so far, of which there may be few while the storm goes on.
                    let limit = self.config.limits.storm.new_sources;
                    let reason = format!("more than {} new sources in {}", limit.count, limit.per);
                    self.say(
                        Said::new("storm").reason(reason).dry_run(dry_run),
                        Level::Warn,
                        format_args!("storm new_sources={seen} dry_run={dry_run}"),
                    );
                }
                return;
            }
            Some(EventKind::Limited) if self.note_due(event.source, "limit", now) => {
                let kind = Bucket::from_number(event.bucket).map_or("?", |bucket| bucket.name());
                let (address, dry_run) = (address_of(event.source), self.config.dry_run);
                self.say(
                    Said::new("limit").from(event.source).port(event.port).kind(kind).dry_run(dry_run),
                    Level::Info,
                    format_args!("limit {address} kind={kind} dry_run={dry_run}"),
                );
            }
            Some(EventKind::Conflict) if self.note_due(event.source, "conflict", now) => {
                let (address, port) = (address_of(event.source), event.port);
                let reason = "blocked, but a phone is registered there";
                self.say(
                    Said::new("conflict").from(event.source).port(port).reason(reason),
                    Level::Warn,
                    format_args!("conflict {address} port={port} reason=\"{reason}\""),
                );
            }
            _ => {}
        }
        let actions = self.detector.observe(event);
        self.act(actions);
    }

    /// Does what follows from events.
    fn act(&mut self, actions: Vec<Action>) {
        let now = self.at.now;
        for action in actions {
            match action {
                Action::Ban(finding) => self.ban(&finding, now),
                Action::Accepted(acceptance) => self.accepted(&acceptance, now),
                Action::Peer(source, until) => {
                    let is_new = self.lists.standing(source).peer_until <= now;
                    self.know(source, now, |standing| standing.peer_until = until);
                    if is_new {
                        self.chronicle.tell(&Said::new("peer").from(source));
                    }
                    self.chronicle.peer(source, until);
                }
                Action::Suspect(source, until, what) => self.suspect(source, until, &what, now),
                Action::Note(kind, text) => {
                    if self.note_due(Source::v4(0), kind, now) {
                        let said = Said::new(kind).reason(&*text);
                        self.say(said, Level::Warn, format_args!("{kind} reason={}", Quoted(&text)));
                    }
                }
            }
        }
    }

    /// Notes what is known of a host.
    pub(crate) fn know(&mut self, source: Source, now: u64, change: impl FnOnce(&mut HostStanding)) {
        if let Err(error) = self.lists.know(source, now, change)
            && self.note_due(Source::v4(0), "known", now)
        {
            log::error!("{} is not remembered: {error}", address_of(source));
        }
    }

    /// A user was accepted, or has taken its registration back.
    fn accepted(&mut self, acceptance: &Acceptance, now: u64) {
        let Acceptance { source, port, .. } = acceptance;
        self.chronicle.accepted(acceptance);
        if self.note_good(*source, *port, now) {
            self.say(
                Said::new("good").from(*source).port(*port),
                Level::Info,
                format_args!("good {} port={port}", address_of(*source)),
            );
            // Its IPv6 neighbours are judged one by one from now on.
            if !source.is_v4()
                && let Err(error) =
                    self.lists.meter_by_address(near([Network::around(*source, 128)].iter(), self.config.ipv6_prefix))
            {
                log::error!("networks of known hosts: {error:#}");
            }
        }
    }

    /// Tells the kernel what is known of an address and one of its ports. Returns whether it was not known good before.
    pub(crate) fn note_good(&mut self, source: Source, port: u16, now: u64) -> bool {
        let good = self.detector.good(&source, port, now);
        let is_new = good.until != 0 && self.lists.standing(source).good_until == 0;
        let scale = (good.users / USERS).checked_ilog2().map_or(0, |log| u64::from(log) + 1).min(8);
        self.know(source, now, |standing| {
            (standing.good_until, standing.scale) = (good.until, scale);
            standing.former_until = good.until.max(now).saturating_add(FORMER);
        });
        if let Err(error) = self.lists.know_flow(source, port, good.flow_until)
            && self.note_due(source, "flow", now)
        {
            log::error!("{} port={port} has no reserve of its own: {error}", address_of(source));
        }
        is_new
    }

    /// Limits a source that looks like a tool, but may be forged.
    fn suspect(&mut self, source: Source, until: u64, what: &str, now: u64) {
        let host = Network::around(source, 128);
        let standing = self.lists.standing(source);
        // Forged senders must not fill the tables; beyond this many the usual limit has to do.
        if self.lists.suspects() >= MAX_SUSPECTS {
            return;
        }
        if self.must_stay(&host, now).is_some() || standing.good_until > now || standing.peer_until > now {
            return;
        }
        self.know(source, now, |standing| standing.suspect_until = until);
        if self.note_due(source, "suspect", now) {
            let (address, dry_run) = (address_of(source), self.config.dry_run);
            self.say(
                Said::new("suspect").from(source).reason(what).dry_run(dry_run),
                Level::Info,
                format_args!("suspect {address} dry_run={dry_run} reason={}", Quoted(what)),
            );
        }
    }

    /// Bans the source of a finding, unless a rule that no evidence overrides speaks against it.
    fn ban(&mut self, finding: &Finding, now: u64) {
        let host = Network::around(finding.source, 128);
        let around = Network::neighbourhood(finding.source, self.config.ipv6_prefix);
        // A network with somebody in it who must stay reachable, or is known good, is judged host by host.
        let by_host = finding.by_address || finding.port.is_some() || self.must_stay(&around, now).is_some();
        let network = if by_host || self.lists.knows_within(&around, now) { host } else { around };
        if let Some(what) = self.must_stay(&network, now) {
            if self.note_due(finding.source, "exempt", now) {
                self.say(
                    Said::new("exempt").about(network).kind(finding.kind).reason(&*finding.reason),
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
                log::info!("not banned {network} while learning; reason={}", Quoted(&finding.reason));
            }
            return;
        }
        let length = self.sentence(&network, finding, now);
        let entry = Entry {
            owner: Owner::Auto,
            port: finding.port,
            tier: Some(finding.tier),
            dry_run: self.config.dry_run,
            added_ms: self.at.wall_ms,
            ..Entry::manual(network, self.at.after(length), &finding.reason)
        };
        if self.enter(entry, finding.kind, length, now) && network.bits() == 64 && finding.port.is_none() {
            self.judge_site(&network, now);
        }
    }

    /// How long a ban is.
    fn sentence(&mut self, network: &Network, finding: &Finding, now: u64) -> Duration {
        let bans = &self.config.bans;
        if finding.tier == Tier::Unproven {
            return bans.unproven.0;
        }
        let forget = bans.forget.nanos();
        let before = self.offences.get(network).filter(|offence| now.saturating_sub(offence.at) < forget);
        let count = before.map_or(0, |offence| offence.count);
        if !finding.grows || finding.port.is_some() {
            return bans.first.0;
        }
        let length = ban_duration(bans.first.0, bans.factor, bans.max.0, count);
        // What a dry run decides is nothing when it is over.
        if !self.config.dry_run && (self.offences.len() < MAX_OFFENCES || before.is_some()) {
            let count = count.saturating_add(1);
            self.offences.insert(*network, Offence { count, at: now });
            let offence = store::Offence { network: *network, count, last_ms: self.at.wall_ms };
            self.chronicle.offence(offence);
        }
        length.min(bans.max.0)
    }

    /// Puts a ban in force, unless a longer one is. Returns whether it did.
    fn enter(&mut self, entry: Entry, kind: &str, length: Duration, now: u64) -> bool {
        let (place, expires, tier) = (entry.place(), entry.expires, entry.tier);
        let owners = self.lists.owners(List::Block, &entry.network);
        if entry.port.is_none() && owners.iter().any(|other| other.owner == Owner::Auto && other.expires >= expires) {
            return false;
        }
        let (source, reason) = (entry.network.first(), entry.reason.clone());
        match self.lists.put(List::Block, entry.clone()) {
            Ok(()) => {
                self.chronicle.banned(kind, &entry, self.lists);
                self.say(
                    Said::of("ban", &entry).kind(kind),
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

    /// Bans an IPv6 site of which several networks were banned within an hour: it hops from one to the next.
    fn judge_site(&mut self, network: &Network, now: u64) {
        let site = Network::around(network.first(), SITE);
        let lately = self.at.wall_ms.saturating_sub(HOUR / 1_000_000);
        let banned = self.lists.entries_within(List::Block, site).filter(|entry| {
            entry.owner == Owner::Auto && entry.port.is_none() && entry.network.bits() == 64 && entry.added_ms >= lately
        });
        let (mut count, mut tier) = (0, Tier::Proven);
        for entry in banned {
            count += 1;
            if entry.tier == Some(Tier::Unproven) {
                tier = Tier::Unproven;
            }
        }
        if count < CROWD || self.must_stay(&site, now).is_some() || self.lists.knows_within(&site, now) {
            return;
        }
        let length = if tier == Tier::Proven { self.config.bans.first.0 } else { self.config.bans.unproven.0 };
        let reason = format!("{count} banned networks of this site within an hour");
        let entry = Entry {
            owner: Owner::Auto,
            tier: Some(tier),
            dry_run: self.config.dry_run,
            added_ms: self.at.wall_ms,
            ..Entry::manual(site, self.at.after(length), &reason)
        };
        self.enter(entry, "site", length, now);
    }

    /// Forgets offences that are long past.
    pub(crate) fn forgive(&mut self) {
        let now = self.at.now;
        let forget = self.config.bans.forget.nanos();
        self.offences.retain(|_, offence| now.saturating_sub(offence.at) < forget);
    }

    fn must_stay(&self, network: &Network, now: u64) -> Option<String> {
        must_stay(self.exempt, self.lists, network, now)
    }
}

/// Why nothing in `network` may be banned by evidence, if so.
pub(crate) fn must_stay(exempt: &Exempt, lists: &Lists, network: &Network, now: u64) -> Option<String> {
    if let Some((host, what)) = exempt.inside(network) {
        return Some(if network.is_host() { format!("is {what}") } else { format!("contains {what} ({host})") });
    }
    if lists.trusts(network, now) {
        return Some("is trusted".to_owned());
    }
    lists.trusted_within(network, now).first().map(|inside| format!("contains {inside}, which is trusted"))
}
