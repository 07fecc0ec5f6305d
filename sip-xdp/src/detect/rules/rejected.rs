//! `rejected`, `slow` and `misconfigured`: wrong passwords, fast, slow, or of a misconfigured
//! phone.
//!
//! For an unknown address all rejections count together. At an address with accepted users, or with
//! several forgotten phones ([`super::forgotten`]), the offender is the pair of user and port: a
//! bad phone must not take its office down, and a good account must not cover guesses for others.
//!
//! Above 400 lines: admission, counting and weighing of rejections are one matter.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Map, Value};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::ladder::{Digest, PORTS_SHARE};

use super::super::claim::{Growth, Level, Rejection};
use super::super::digest::digest;
use super::super::explain::named;
use super::super::source_state::{SourceState, Waiting};
use super::super::windows::{LeakyBucket, Window, words};
use super::super::{Action, Detector, Finding, GRACE_NS, Metering, Step};
use super::Signal;
use super::forgotten::{FORGOTTEN, PATIENT_NS, Sites, Way, quick_leak_ns};
use super::rule::{BanKind, Counts, Heard, Rule, Told, recalled};
use super::slow::Slow;
use super::sprayed::Sprayed;
use crate::sip::transport::Transport;

/// Other kinds of bans on rejected passwords, beside the names of the rules.
const MISCONFIGURED: &str = "misconfigured";

threshold! {
    /// `[detect.rejected]`.
    count = 10, seconds = 600
}

pub(in super::super) struct Rejected;

impl Rule for Rejected {
    const NAME: &'static str = "rejected";
    const COMMENT: &'static str = "Rejected passwords, with none accepted for that user.";
    const KINDS: &'static [BanKind] = &[
        BanKind {
            name: "rejected",
            evidence: "`count` rejected passwords within `per`: 401 or 407 to credentials, or 403 \
                       for a user that was not accepted from there within a day",
            limits: "what may be a phone with an old nonce counts after 5 s, and not at all if \
                     its next try is accepted",
        },
        BanKind {
            name: MISCONFIGURED,
            evidence: "as `rejected` or `slow`, but for one user with 20 s or more between tries: \
                       a phone with an old password",
            limits: "bans the port, or the address where nobody else lives; at most 1 h for up to \
                     4 such users of an address, and up to 4 h for 16",
        },
    ];
    const MAX_COUNT: u32 = 1_000;

    type Settings = Settings;
    type Counts = Rejections;
    type Memory = Sites;

    fn hear(detector: &mut Detector, heard: &Heard<'_>, actions: &mut Vec<Action>) {
        if let Signal::Accepted(request, users) = heard.what {
            let named: Vec<String> = users.iter().chain(request.aor()).cloned().collect();
            let refused = detector.memory.rejected.take_back(&heard.source, &named, heard.now);
            let freed = refused.iter().map(|user| Digest::of(user.as_bytes()).0);
            actions.extend(freed.map(|user| Action::RefuseUser(heard.source, user, 0)));
        }
    }

    fn tell(detector: &Detector, state: &SourceState, now: u64) -> Option<Told> {
        let within = detector.rules.rejected.per.nanos();
        let tries = state.counts.rejected.tries.iter();
        let lately = || tries.clone().filter(|(at, _)| now.saturating_sub(*at) <= within);
        let count = lately().count();
        let users = named(lately().map(|(_, rejection)| rejection.user.as_str()));
        let echoed = lately().filter(|(_, rejection)| rejection.level == Level::Routable).count();
        let text =
            format!("{count} rejected passwords for {users}, {echoed} with a nonce of its own");
        Some(Told { count: count as f64, text })
    }
}

/// Rejected passwords of one source.
#[derive(Debug, Default)]
pub(in super::super) struct Rejections {
    pub(in super::super) tries: Window<Rejection>,
    /// Level 0 rejections at an address with standing.
    hidden: Window<()>,
    /// Users of an address with accepted users, by digest, and ports where they were rejected
    /// within a day; those of connections apart.
    places: Window<(u64, u16, bool)>,
    /// Level 1 rejections that came sooner after the user's try before than a phone's.
    pub(in super::super) quick: LeakyBucket,
    /// Banned users of the address, with their ports.
    convicted: Window<(String, u16)>,
}

impl Rejections {
    /// Pairs of a user and a port where it was rejected within a day, by UDP; of one user no more
    /// than a router that changes ports makes of one phone.
    pub(super) fn places(&self, now: u64) -> usize {
        let is_recent = |at: u64| now.saturating_sub(at) <= DAY_NS;
        let mut of_users: BTreeMap<u64, usize> = BTreeMap::new();
        for (_, (user, ..)) in
            self.places.iter().filter(|(at, (.., by_stream))| is_recent(*at) && !by_stream)
        {
            *of_users.entry(*user).or_default() += 1;
        }
        of_users.into_values().map(|ports| ports.min(FEW_PORTS)).sum()
    }
}

impl Counts for Rejections {
    fn take_back(&mut self, users: &[String], _call: u64) {
        self.tries.retain(|rejection| !users.contains(&rejection.user));
        let accepted: Vec<u64> = users.iter().map(digest).collect();
        self.places.retain(|(user, ..)| !accepted.contains(user));
    }

    fn begin_anew(&mut self, port: Option<u16>) {
        match port {
            Some(port) => self.tries.retain(|rejection| rejection.port != port),
            None => self.tries = Window::default(),
        }
    }

    fn is_worth_keeping(&self) -> bool {
        self.tries.len() > 0
    }

    fn keep(&self, kept: &mut Map<String, Value>) -> Result<()> {
        kept.insert("rejected".to_owned(), serde_json::to_value(&self.tries)?);
        Ok(())
    }

    fn recall(&mut self, kept: &mut Map<String, Value>, moved: &dyn Fn(u64) -> u64) -> Result<()> {
        self.tries = recalled(kept, "rejected")?.unwrap_or_default();
        self.tries.shift(moved);
        Ok(())
    }
}

/// Number of ports from which a phone with a wrong password may try within ten minutes.
const FEW_PORTS: usize = 3;

/// Tries of one user by new connections within so short a time that no phone makes them: two a
/// second. Phones wait for longer before they connect again (RFC 5626, section 4.5: 30 s).
const FAST_TRIES: usize = 30;
const FAST_NS: u64 = 15_000_000_000;

/// Multiple of the threshold, over all ports of an office, that misconfigured phones do not reach.
const MUCH: usize = 3;

/// Number of banned ports within an hour after which a user counts as moving between ports.
const MANY_CONVICTIONS: usize = 3;
const HOUR_NS: u64 = 3_600_000_000_000;

/// How long the ladder meters never-accepted ports of an office.
const LADDER_NS: u64 = DAY_NS;
const DAY_NS: u64 = 24 * HOUR_NS;

/// Maximum wait of a rejection for the response to its next try.
const LONGEST_WAIT_NS: u64 = 180_000_000_000;

impl Detector {
    /// Counts the rejections whose wait is over.
    pub(in super::super) fn settle_rejections(
        &mut self,
        source: IpKey,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        let mut again = false;
        let transactions = &self.transactions;
        let is_certain = |one: &mut Waiting| {
            let age = now.saturating_sub(one.at);
            let is_open = one.may_be_retried
                && age < LONGEST_WAIT_NS
                && transactions.is_open(&source, one.rejection.call, now);
            again |= age >= GRACE_NS && is_open;
            age >= GRACE_NS && !is_open
        };
        let certain: Vec<Waiting> = state.waiting.extract_if(.., is_certain).collect();
        if again {
            self.due.push_back((now + GRACE_NS, source));
        }
        let mut is_new = false;
        for one in &certain {
            if !one.counted {
                self.count_rejection(source, one.at, &one.rejection, now, actions);
                is_new = true;
            }
            self.hear(source, now, Signal::Settled(&one.rejection), actions);
        }
        if is_new {
            self.weigh_rejections(source, now, actions);
        }
    }

    /// Counts the pending rejections for which `counts` is true.
    pub(in super::super) fn count_rejections(
        &mut self,
        source: IpKey,
        now: u64,
        counts: impl Fn(&Waiting) -> bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        let mut certain = Vec::new();
        for one in state.waiting.iter_mut().filter(|one| !one.counted && counts(one)) {
            one.counted = true;
            certain.push((one.at, one.rejection.clone()));
        }
        if certain.is_empty() {
            return;
        }
        for (at, rejection) in &certain {
            self.count_rejection(source, *at, rejection, now, actions);
        }
        self.weigh_rejections(source, now, actions);
    }

    /// Rejections at an address with standing, with nonces that it was not given: tries without a
    /// nonce of its own are slowed down.
    pub(in super::super) fn limit_hidden(
        &mut self,
        source: IpKey,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let (rule, slow) = (self.rules.rejected, self.rules.slow);
        // Forgotten phones that have used up what they have together have nothing beside it.
        let is_last = !self.known.was_good(&source, now) && self.has_used_up(&source, now);
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        state.counts.rejected.hidden.note(now, (), rule.per.nanos());
        let filled = state.counts.slow.hidden.pour(now, slow.per.nanos());
        let by_count = rule.enabled && state.counts.rejected.hidden.len() >= rule.count as usize;
        let by_level = slow.enabled && filled >= f64::from(slow.count) - 0.5;
        if by_count || by_level || is_last {
            state.counts.rejected.hidden = Window::default();
            let reason = "passwords are rejected that echo no nonce of its own".to_owned();
            let step = if is_last { Step::Last } else { Step::Down };
            let metering = Metering::of_host(source, step, now + DAY_NS, reason);
            actions.push(Action::Meter(metering));
        }
    }

    fn count_rejection(
        &mut self,
        source: IpKey,
        at: u64,
        rejection: &Rejection,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let (rejected, slow) = (self.rules.rejected, self.rules.slow);
        let is_real = rejection.level == Level::Routable || rejection.network;
        let per = slow.per.nanos();
        let is_settled = self.known.has_place(&source, rejection.port);
        let is_covered = is_settled && rejection.level == Level::Routable;
        let is_quick = is_real
            && !self.known.accepted(&source, &rejection.user, now)
            && self.memory.rejected.note(
                &source,
                &rejection.user,
                Way::of(rejection.transport, is_covered),
                self.known.known_users(&source),
                at,
                per,
            );
        if is_quick && let Some(state) = self.sources.get_mut(&source) {
            state.counts.rejected.quick.pour(at, quick_leak_ns(&rejected));
        }
        // Forgeable evidence never ends standing, and bans no office.
        let is_office = self.is_office(&source, now);
        if rejection.level == Level::Seen && (is_office || self.has_standing(&source, now)) {
            self.limit_hidden(source, at, actions);
            return;
        }
        if is_covered {
            self.expel_wanderers(source, rejection.port, now, actions);
        }
        let is_phone = !is_quick && self.memory.rejected.is_phone(&source, &rejection.user, now);
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        if is_office && rejection.level == Level::Routable {
            let (user, port) = (digest(&rejection.user), rejection.port);
            let places = &mut state.counts.rejected.places;
            places.tidy(at, DAY_NS);
            // A misconfigured phone keeps its port; a guesser changes it.
            let hops = places.iter().any(|(_, (known, other, _))| *known == user && *other != port);
            if hops && !is_settled {
                state.counts.slow.roaming.pour(at, per);
            }
            let place = (user, port, rejection.transport.is_stream());
            if !places.iter().any(|(_, known)| *known == place) {
                places.note(at, place, DAY_NS);
            }
        }
        state.counts.slow.all.pour(at, per);
        if rejection.level == Level::Routable {
            state.counts.slow.routable.pour(at, per);
            state.counts.slow.port(rejection.port, at, per).pour(at, per);
        }
        state.counts.rejected.tries.note(at, rejection.clone(), rejected.per.nanos().max(GRACE_NS));
        self.hear(source, now, Signal::Rejected(rejection), actions);
        if !is_phone && !self.known.was_good(&source, now) {
            self.weigh_networks(source, is_real, now, actions);
        }
    }

    /// Whether an address is weighed by ports: users were accepted there, or several forgotten
    /// phones seem to be.
    fn is_office(&self, source: &IpKey, now: u64) -> bool {
        self.known.was_good(source, now) || self.is_forgotten_site(source, now)
    }

    fn weigh_rejections(&mut self, source: IpKey, now: u64, actions: &mut Vec<Action>) {
        let found = if self.is_office(&source, now) {
            self.refuse_users(source, now, actions);
            self.weigh_office(source, now, actions)
        } else {
            self.weigh_stranger(source, now)
        };
        if let Some((level, finding)) = found {
            if level == Level::Routable
                && let Some(state) = self.sources.get(&source)
            {
                let is_here = |one: &Rejection| finding.port.is_none_or(|port| port == one.port);
                let tries = state.counts.rejected.tries.iter().map(|(_, one)| one);
                let users = SourceState::users_of(tries.filter(|one| is_here(one)));
                self.memory.rejected.convict(&source, &users, now);
            }
            self.emit_ban(level, finding, now, actions);
        }
    }

    /// Weighs the rejections of any other address.
    fn weigh_stranger(&self, source: IpKey, now: u64) -> Option<(Level, Finding)> {
        let state = self.sources.get(&source)?;
        for level in [Level::Routable, Level::Seen] {
            let tries: Vec<&(u64, Rejection)> =
                state.counts.rejected.tries.iter().filter(|(_, one)| one.level >= level).collect();
            if let Some(finding) = self.weigh_tries(source, state, level, &tries, now) {
                return Some((level, finding));
            }
        }
        None
    }

    fn weigh_tries(
        &self,
        source: IpKey,
        state: &SourceState,
        level: Level,
        tries: &[&(u64, Rejection)],
        now: u64,
    ) -> Option<Finding> {
        let (rejected, slow) = (self.rules.rejected, self.rules.slow);
        let bucket = if level == Level::Routable {
            &state.counts.slow.routable
        } else {
            &state.counts.slow.all
        };
        let filled = bucket.level(now, slow.per.nanos());
        let users = SourceState::users_of(tries.iter().map(|(_, one)| one));
        let by_count =
            rejected.enabled && tries.len() >= self.threshold(&source, rejected.count, now);
        // Halved, but not further: the bucket leaks over hours.
        let many = self.threshold(&source, slow.count, now).max(slow.count.div_ceil(2) as usize);
        let by_level = slow.enabled && filled >= many as f64 - 0.5;
        let by_spray = self.is_third_for_a_sprayed_user(state, level, now);
        // A single try has no pace, and a source banned for more is no phone.
        let has_offended = self.offenders.get(&source, now).is_some();
        let is_phone = is_phone(tries, &users) && !by_spray && !has_offended;
        let by_part = is_phone
            && level == Level::Routable
            && users.iter().any(|user| self.has_used_up_part(&source, user, filled, now));
        if tries.is_empty() || !by_count && !by_level && !by_spray && !by_part {
            return None;
        }
        let kind = match () {
            () if is_phone => MISCONFIGURED,
            () if by_count => Rejected::NAME,
            () if by_spray => Sprayed::NAME,
            () => Slow::NAME,
        };
        let reason = evidence_text(state, &users, tries, level, filled, now);
        let mut finding = self.about(source, kind, level, reason);
        if is_phone && level == Level::Routable {
            finding.growth = Growth::Mild { times: self.times_as_long(&source, now) };
        }
        Some(finding)
    }

    /// Weighs the rejections of an address with accepted users or several forgotten phones.
    fn weigh_office(
        &mut self,
        source: IpKey,
        now: u64,
        actions: &mut Vec<Action>,
    ) -> Option<(Level, Finding)> {
        let state = self.sources.get(&source)?;
        let (rejected, slow) = (self.rules.rejected, self.rules.slow);
        let real: Vec<&(u64, Rejection)> = state
            .counts
            .rejected
            .tries
            .iter()
            .filter(|(_, one)| one.level == Level::Routable)
            .collect();
        let enough = |tries: usize, bucket: f64| {
            rejected.enabled && tries >= rejected.count as usize
                || slow.enabled && bucket >= f64::from(slow.count) - 0.5
        };

        // Each port separately. A port with other accepted users offends only if rejected users
        // outnumber accepted ones; with as many, only at a pace that no phone has.
        let mut by_port: BTreeMap<u16, Vec<&(u64, Rejection)>> = BTreeMap::new();
        real.iter().for_each(|one| by_port.entry(one.1.port).or_default().push(one));
        for (port, tries) in &by_port {
            let users = SourceState::users_of(tries.iter().map(|(_, one)| one));
            let bucket = state
                .counts
                .slow
                .ports
                .get(port)
                .map_or(0.0, |bucket| bucket.level(now, slow.per.nanos()));
            let has_used_up_part = !tries.iter().any(|(_, one)| one.transport.is_stream())
                && users.iter().any(|user| {
                    !self.known.accepted(&source, user, now)
                        && self.has_used_up_part(&source, user, bucket, now)
                });
            if !enough(tries.len(), bucket) && !has_used_up_part {
                continue;
            }
            let is_phone = is_phone(tries, &users);
            let only = if users.len() == 1 { users.first().copied().unwrap_or("") } else { "" };
            let accepted = self.known.users_at(&source, *port, now, only);
            if users.len() < accepted || users.len() == accepted && is_phone {
                continue;
            }
            // Where the site's bucket decides, it tells of more.
            let filled = if has_used_up_part { self.site_level(&source, now) } else { bucket };
            let reason = evidence_text(state, &users, tries, Level::Routable, filled, now);
            return self.convict_port(source, *port, reason, now, actions);
        }

        let others = |one: &Rejection| !self.known.accepted(&source, &one.user, now);
        let strange: Vec<_> = real.iter().copied().filter(|(_, one)| others(one)).collect();

        // Over TLS and WebSocket a ban of a port bounds nothing, and the kernel refuses nobody.
        // Where users were accepted, their next connections have other ports as well.
        let is_unread = strange
            .iter()
            .any(|(_, one)| !matches!(one.transport, Transport::Udp | Transport::Tcp));
        let is_cold = !self.known.was_good(&source, now);
        if is_unread && is_cold && self.has_used_up_unread(&source, now) {
            let (level, finding) = self.convict_address(source, &strange, now);
            let growth = Growth::Mild { times: self.times_as_long(&source, now) };
            return Some((level, Finding { kind: MISCONFIGURED, growth, ..finding }));
        }

        // One user from changing ports.
        let mut by_user: BTreeMap<&str, Vec<&(u64, Rejection)>> = BTreeMap::new();
        strange.iter().for_each(|one| by_user.entry(one.1.user.as_str()).or_default().push(one));
        for (user, tries) in &by_user {
            if !enough(tries.len(), 0.0) {
                continue;
            }
            let users = BTreeSet::from([*user]);
            let is_phone = is_phone(tries, &users);
            if is_phone || ports_taken(tries, user, state, now) <= FEW_PORTS {
                let last = tries.last().map(|(_, one)| one.port)?;
                let accepted = self.known.users_at(&source, last, now, user);
                if accepted > 1 || accepted == 1 && is_phone {
                    continue;
                }
                let reason = evidence_text(state, &users, tries, Level::Routable, 0.0, now);
                return self.convict_port(source, last, reason, now, actions);
            }
            return Some(self.convict_address(source, tries, now));
        }

        // More never-accepted users than an office has misconfigured phones.
        let users = SourceState::users_of(strange.iter().map(|(_, one)| one));
        let few = FORGOTTEN + self.known.known_users(&source);
        // Or a few users from changing ports, unlike misconfigured phones.
        let hops = |(user, tries): (&&str, &Vec<&(u64, Rejection)>)| {
            ports_taken(tries, user, state, now) > FEW_PORTS
                && !is_phone(tries, &BTreeSet::from([*user]))
        };
        let is_much = strange.len() >= MUCH * rejected.count as usize && by_user.iter().any(hops);
        if (users.len() > few || is_much) && enough(strange.len(), 0.0) {
            return Some(self.convict_address(source, &strange, now));
        }

        // So many in a day, however slowly: ports without a standing share the ladder.
        if self.is_beyond_an_office(&source, now) {
            let tried: BTreeSet<u16> = strange.iter().map(|(_, one)| one.port).collect();
            self.expel_accounts(source, &tried, now, actions);
            let why = "passwords of more users are rejected than an office has phones";
            self.meter_strange_ports(source, why, now, actions);
            return None;
        }

        // Slowly, by users from changing ports: these share the ladder.
        let filled = state.counts.slow.roaming.level(now, slow.per.nanos());
        if slow.enabled && filled >= f64::from(slow.count) - 0.5 {
            let why = "passwords are rejected from ever new ports";
            self.meter_strange_ports(source, why, now, actions);
        }
        None
    }

    /// Ports of an address without standing share the ladder from now on, whatever their nonces.
    fn meter_strange_ports(&self, source: IpKey, why: &str, now: u64, actions: &mut Vec<Action>) {
        // An IPv6 site has many addresses.
        let has_more = source.is_v4() || !self.has_used_up(&source, now);
        let step = if has_more { Step::Down } else { Step::Last };
        let host = Metering::of_host(source, step, now + LADDER_NS, why.to_owned());
        actions.push(Action::Meter(Metering { modes: PORTS_SHARE, ..host }));
    }

    /// A finding about a whole address with accepted users. Accepted ports that did not offend are
    /// not affected.
    fn convict_address(
        &self,
        source: IpKey,
        tries: &[&(u64, Rejection)],
        now: u64,
    ) -> (Level, Finding) {
        let users = SourceState::users_of(tries.iter().map(|(_, one)| one));
        let mut ports: Vec<u16> = tries.iter().map(|(_, one)| one.port).collect();
        ports.sort_unstable();
        ports.dedup();
        let reason = self
            .sources
            .get(&source)
            .map(|state| evidence_text(state, &users, tries, Level::Routable, 0.0, now))
            .unwrap_or_default();
        let finding =
            Finding { ports, ..self.about(source, Rejected::NAME, Level::Routable, reason) };
        (Level::Routable, finding)
    }

    /// A finding about one port of an address with accepted users.
    fn convict_port(
        &mut self,
        source: IpKey,
        port: u16,
        reason: String,
        now: u64,
        actions: &mut Vec<Action>,
    ) -> Option<(Level, Finding)> {
        let state = self.sources.get_mut(&source)?;
        let tries: Vec<&(u64, Rejection)> = state
            .counts
            .rejected
            .tries
            .iter()
            .filter(|(_, one)| one.level == Level::Routable && one.port == port)
            .collect();
        let users = SourceState::users_of(tries.iter().map(|(_, one)| one));
        let is_stream = tries.iter().any(|(_, one)| one.transport.is_stream());
        // Several users of one port may be as many phones. But none hides several tries.
        let hidden = state.waiting.iter().filter(|one| {
            let Rejection { port: at, transport, level, .. } = one.rejection;
            let is_open = !one.counted && !one.may_be_retried && at == port;
            // Over TCP others count at once, or may be tried again.
            is_open && transport.is_stream() && level == Level::Routable
        });
        let is_phone = hidden.count() < 2 && users.iter().all(|user| is_phone_of(&tries, user));
        let users: Vec<String> = users.into_iter().map(str::to_owned).collect();
        let mut roams = false;
        for user in users {
            state.counts.rejected.convicted.tidy(now, HOUR_NS);
            if !state
                .counts
                .rejected
                .convicted
                .iter()
                .any(|(_, (known, at))| *known == user && *at == port)
            {
                state.counts.rejected.convicted.note(now, (user.clone(), port), HOUR_NS);
            }
            let places = state
                .counts
                .rejected
                .convicted
                .iter()
                .filter(|(_, (known, _))| *known == user)
                .count();
            // Each connection has another port: that of a phone that comes back is new as well.
            roams |= places >= MANY_CONVICTIONS && !is_stream;
        }
        if roams {
            self.meter_strange_ports(
                source,
                "a user that was convicted comes back from other ports",
                now,
                actions,
            );
        }
        let kind = if is_phone { MISCONFIGURED } else { Rejected::NAME };
        let times = self.times_as_long(&source, now);
        let growth = if is_phone { Growth::Mild { times } } else { Growth::Full };
        let finding = Finding {
            port: Some(port),
            growth,
            ..self.about(source, kind, Level::Routable, reason)
        };
        Some((Level::Routable, finding))
    }
}

/// Whether it may be a phone with a wrong password: one user, at a slow pace.
fn is_phone(tries: &[&(u64, Rejection)], users: &BTreeSet<&str>) -> bool {
    let pauses = tries.windows(2).map(|pair| pair[1].0.saturating_sub(pair[0].0));
    users.len() == 1 && pauses.min().is_none_or(|pause| pause >= PATIENT_NS)
}

/// Whether the tries of a user may be those of such a phone.
fn is_phone_of(tries: &[&(u64, Rejection)], user: &str) -> bool {
    let own: Vec<_> = tries.iter().copied().filter(|(_, one)| one.user == user).collect();
    is_phone(&own, &BTreeSet::from([user]))
}

/// Number of ports from which a user was tried. Over TCP each connection has another port, so that
/// only tries faster than a phone's count, including those that led to a ban of their connection.
fn ports_taken(tries: &[&(u64, Rejection)], user: &str, state: &SourceState, now: u64) -> usize {
    let of = |is_stream: bool| {
        let tries = tries.iter().filter(move |(_, one)| one.transport.is_stream() == is_stream);
        tries.map(|(at, one)| (*at, one.port))
    };
    let convicted = state.counts.rejected.convicted.iter().filter(|(_, (known, _))| known == user);
    let by_tcp: BTreeSet<(u64, u16)> =
        of(true).chain(convicted.map(|(at, (_, port))| (*at, *port))).collect();
    let lately = by_tcp.iter().filter(|(at, _)| now.saturating_sub(*at) < FAST_NS).count();
    let is_fast = of(true).next().is_some() && lately >= FAST_TRIES;
    let counted = by_tcp.into_iter().filter(|_| is_fast);
    of(false).chain(counted).map(|(_, port)| port).collect::<BTreeSet<u16>>().len()
}

/// Rejections in words and numbers. `filled` is the level of the leaky bucket, which knows of
/// earlier ones.
fn evidence_text(
    state: &SourceState,
    users: &BTreeSet<&str>,
    tries: &[&(u64, Rejection)],
    level: Level,
    filled: f64,
    now: u64,
) -> String {
    let whom = match users.iter().next() {
        Some(user) if users.len() == 1 => format!("the user {user:?}"),
        _ => format!("{} users", users.len()),
    };
    let by = tries.iter().map(|(_, one)| one.transport).find(|transport| transport.is_stream());
    let nonce = match (level, by) {
        (Level::Routable, Some(transport)) => format!("by {transport}"),
        (Level::Routable, None) => "nonce echoed".to_owned(),
        (Level::Seen, _) => "no nonce of its own".to_owned(),
    };
    let tool =
        state.counts.signature.found.as_ref().map_or_else(String::new, |what| format!(", {what}"));
    let since = tries.first().map_or(0, |(at, _)| now.saturating_sub(*at));
    let (count, all) = (tries.len(), filled.round() as usize);
    let passwords = if count == 1 { "password" } else { "passwords" };
    let before = if all > count { format!(" ({all} in all lately)") } else { String::new() };
    format!(
        "{count} rejected {passwords} for {whom} in {}{before}, {nonce}, none accepted{tool}",
        words(since)
    )
}
