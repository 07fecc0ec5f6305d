//! What the daemon makes of findings: bans, and what is known of hosts.

use std::time::Duration;

use log::Level;
use sip_xdp_common::layout::{Event, EventKind, List, Owner};
use sip_xdp_common::meter::Bucket;
use sip_xdp_common::source::Source;

use super::events::Event as Said;
use super::{Daemon, STALE};
use crate::clock;
use crate::detect::{Acceptance, Action, Finding};
use crate::ledger::{Entry, Tier};
use crate::network::{Network, address_of};
use crate::store::{self, Change};

/// The length of the IPv6 networks in which several banned networks condemn the whole.
const SITE: u8 = 56;

/// So many of them.
const CROWD: usize = 4;

/// Within this time, in nanoseconds.
pub(super) const HOUR: u64 = 3_600_000_000_000;

/// Accepted users for which the usual limit is enough; twice as many double it.
const USERS: usize = 64;

/// For how long a host is no stranger in a storm after its last registration has ended, in nanoseconds: a week.
pub(super) const FORMER: u64 = 7 * 24 * HOUR;

/// How many hosts are under suspicion at the same time.
const MAX_SUSPECTS: usize = 4_096;

/// Bans on evidence that could be forged may take one place in so many of the tables.
const UNPROVEN_SHARE: usize = 4;

/// How many offenders are remembered.
pub(super) const MAX_OFFENCES: usize = 131_072;

/// How often a network was banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offence {
    /// Times.
    pub(super) count: u32,
    /// When it was last, on the filter's clock.
    pub(super) at: u64,
}

impl Daemon {
    /// Takes one event of the kernel's.
    pub(super) fn observe(&mut self, event: &Event) {
        let now = clock::now();
        if now.saturating_sub(event.time) > STALE {
            return;
        }
        match EventKind::from_number(event.kind) {
            Some(EventKind::Storm) => {
                // Who sent this very packet does not matter: its address is as likely as not forged.
                if self.note_due(Source::v4(0), "storm", now) {
                    let (seen, dry_run) = (event.seen, self.config.dry_run);
                    self.say(
                        Said::new("storm").reason(format!("{seen} new sources in a second")).dry_run(dry_run),
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
        self.act(actions, now);
    }

    /// Does what follows from events.
    pub(super) fn act(&mut self, actions: Vec<Action>, now: u64) {
        for action in actions {
            match action {
                Action::Ban(finding) => self.ban(&finding, now),
                Action::Accepted(acceptance) => self.accepted(&acceptance, now),
                Action::Peer(source, until) => {
                    if self.lists.standing(source).peer_until <= now {
                        self.tell(&Said::new("peer").from(source));
                    }
                    self.know(source, now, |standing| standing.peer_until = until);
                    self.remember_peer(source, until);
                }
                Action::Suspect(source, until, what) => self.suspect(source, until, &what, now),
                Action::Note(kind, text) => {
                    if self.note_due(Source::v4(0), kind, now) {
                        let said = Said::new(kind).reason(&*text);
                        self.say(said, Level::Warn, format_args!("{kind} reason=\"{text}\""));
                    }
                }
            }
        }
    }

    pub(super) fn know(&mut self, source: Source, now: u64, change: impl FnOnce(&mut crate::lists::HostStanding)) {
        if let Err(error) = self.lists.know(source, now, change)
            && self.note_due(Source::v4(0), "known", now)
        {
            log::error!("{} is not remembered: {error}", address_of(source));
        }
    }

    /// A user was accepted, or has taken its registration back.
    fn accepted(&mut self, acceptance: &Acceptance, now: u64) {
        let Acceptance { source, port, .. } = acceptance;
        self.remember_acceptance(acceptance);
        if self.note_good(*source, *port, now) {
            self.say(
                Said::new("good").from(*source).port(*port),
                Level::Info,
                format_args!("good {} port={port}", address_of(*source)),
            );
            // Its IPv6 neighbours are judged one by one from now on.
            if !source.is_v4()
                && let Err(error) = self.judge_by_address()
            {
                log::error!("networks of known hosts: {error:#}");
            }
        }
    }

    /// Tells the kernel what is known of an address and one of its ports. Returns whether it was not known good before.
    pub(super) fn note_good(&mut self, source: Source, port: u16, now: u64) -> bool {
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
                format_args!("suspect {address} dry_run={dry_run} reason=\"{what}\""),
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
                    format_args!("not banned {network} although it attacks: it {what}; {}", finding.reason),
                );
            }
            return;
        }
        let by_volume = matches!(finding.kind, "register" | "requests");
        if by_volume && now < self.learning_until {
            if self.note_due(finding.source, "learn", now) {
                log::info!("not banned {network} while learning; {}", finding.reason);
            }
            return;
        }
        let length = self.sentence(&network, finding, now);
        let entry = Entry {
            owner: Owner::Auto,
            port: finding.port,
            tier: Some(finding.tier),
            dry_run: self.config.dry_run,
            ..Entry::manual(network, clock::after(Some(length)), &finding.reason)
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
        let length = (0..count).fold(bans.first.0, |length, _| length.saturating_mul(bans.factor).min(bans.max.0));
        // What a dry run decides is nothing when it is over.
        if !self.config.dry_run && (self.offences.len() < MAX_OFFENCES || before.is_some()) {
            let count = count.saturating_add(1);
            self.offences.insert(*network, Offence { count, at: now });
            let offence = store::Offence { network: *network, count, last_ms: clock::wall_ms() };
            self.store.record(Change::Offence(offence));
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
        if tier == Some(Tier::Unproven) && self.lists.unproven() >= self.lists.capacity() / UNPROVEN_SHARE {
            if self.note_due(Source::v4(0), "unproven", now) {
                log::error!("not banned {place}, its excess is dropped all the same: too many bans could be forged");
            }
            return false;
        }
        match self.lists.put(List::Block, entry.clone()) {
            Ok(()) => {
                self.store.record_ban(kind, &entry);
                self.save();
                self.say(
                    Said::of("ban", &entry).kind(kind),
                    Level::Warn,
                    format_args!(
                        "ban {place} kind={kind} tier={} for={} dry_run={} reason=\"{reason}\"",
                        tier.map_or("none", Tier::name),
                        humantime::format_duration(length),
                        self.config.dry_run,
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
        let lately = clock::wall_ms().saturating_sub(HOUR / 1_000_000);
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
            ..Entry::manual(site, clock::after(Some(length)), &reason)
        };
        self.enter(entry, "site", length, now);
    }

    /// Forgets offences that are long past.
    pub(super) fn forgive(&mut self, now: u64) {
        let forget = self.config.bans.forget.nanos();
        self.offences.retain(|_, offence| now.saturating_sub(offence.at) < forget);
    }

    /// Why nothing in `network` may be banned by evidence, if so.
    pub(super) fn must_stay(&self, network: &Network, now: u64) -> Option<String> {
        if let Some((host, what)) = self.exempt.inside(network) {
            return Some(if network.is_host() { format!("is {what}") } else { format!("contains {what} ({host})") });
        }
        if self.lists.trusts(network, now) {
            return Some("is trusted".to_owned());
        }
        self.lists.trusted_within(network, now).first().map(|inside| format!("contains {inside}, which is trusted"))
    }
}
