//! `sprayed`: an accepted user whose password many unknown sources try. Each of them is then banned
//! at its third rejection in a day; places where the user was accepted are not affected.

use std::collections::{BTreeSet, HashMap, VecDeque};

use sip_xdp_common::ip_key::IpKey;

use super::super::claim::{Level, Rejection};
use super::super::digest::digest;
use super::super::recent::Recent;
use super::super::source_state::SourceState;
use super::super::windows::{LeakyBucket, Window};
use super::super::{Action, Detector, Metering, Step};
use super::rule::{BanKind, Counts, Heard, Memory, Rule, Signal};
use crate::dataplane::tables::ledger::Tier;

threshold! {
    /// `[detect.sprayed]`.
    count = 10, seconds = 3_600
}

// The rule, and what it remembers of all sources, have one name.
impl Rule for Sprayed {
    const NAME: &'static str = "sprayed";
    const COMMENT: &'static str = "A user for which strangers had \"count\" passwords rejected \
        within \"per\": each stranger is banned at the third rejection in a day.";
    const KINDS: &'static [BanKind] = &[BanKind {
        name: "sprayed",
        evidence: "the third rejected password in a day from a stranger, for a user for which \
                   strangers had `count` rejected within `per`",
        limits: "never the places where that user was accepted",
    }];
    const MAX_COUNT: u32 = 1_000;

    type Settings = Settings;
    type Counts = Window<Level>;
    type Memory = Self;

    fn hear(detector: &mut Detector, heard: &Heard<'_>, actions: &mut Vec<Action>) {
        if let Signal::Rejected(rejection) = heard.what {
            detector.user_was_tried(heard.source, rejection, heard.now, actions);
        }
    }

    fn tick(detector: &mut Detector, now: u64, actions: &mut Vec<Action>) {
        actions.extend(detector.memory.sprayed.news(now).into_iter().map(Action::Sprayed));
    }
}

/// Rejections for sprayed users, of a day. They outlive a ban: the third bans, and so does each
/// after it.
impl Counts for Window<Level> {}

/// Tries that an unknown source has for sprayed users.
const TRIES: usize = 3;

/// Proven sources that try a user whom many sources spray: a forgotten phone alone, whose user has
/// moved to another place, makes that user sprayed.
const MANY_SOURCES: usize = 3;

/// Maximum number of remembered users.
const MAX_USERS: usize = 16_384;

const DAY_NS: u64 = 24 * 3_600_000_000_000;

/// Pairs of user and source that are remembered, so that sources are counted once.
const MAX_PAIRS: usize = 65_536;

/// Interval at which changed figures of sprayed users are reported.
const NEWS_NS: u64 = 10_000_000_000;

/// An accepted user whose password unknown sources try, with figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spray {
    /// User.
    pub user: String,
    /// Time of the first try, on the filter's clock in nanoseconds.
    pub first: u64,
    /// Time of the last try.
    pub last: u64,
    /// Proven if enough of the tries came from addresses that cannot be forged.
    pub tier: Tier,
    /// Number of rejected passwords.
    pub tries: u64,
    /// Number of their addresses; one that paused for a day counts again.
    pub sources: u64,
}

/// Tries of unknown sources for accepted users.
#[derive(Debug)]
pub(in super::super) struct Sprayed {
    users: HashMap<String, User>,
    order: VecDeque<String>,
    /// Recent pairs of user and source, by the user's digest.
    pairs: Recent<(u64, IpKey), ()>,
    /// Sprayed users with unreported tries, and the time of the last report.
    changed: BTreeSet<String>,
    told: u64,
}

impl Default for Sprayed {
    fn default() -> Self {
        Self {
            users: HashMap::new(),
            order: VecDeque::new(),
            pairs: Recent::new(MAX_PAIRS, DAY_NS),
            changed: BTreeSet::new(),
            told: 0,
        }
    }
}

#[derive(Debug, Default)]
struct User {
    /// Level 1 tries, and level 0 tries, which only affect each other.
    tries: [Window<()>; 2],
    /// The same in leaky buckets.
    slow: [LeakyBucket; 2],
    until: [u64; 2],
    /// Times of the first and the last try, numbers of tries and of sources.
    first: u64,
    last: u64,
    count: u64,
    sources: u64,
    /// Digests of level 1 sources, up to [`MANY_SOURCES`].
    proven: BTreeSet<u64>,
}

/// Thresholds of a sprayed user: a count per time, or a leaky bucket.
struct Limits {
    count: usize,
    per_ns: u64,
    bucket: f64,
    leak_ns: u64,
}

const fn index(level: Level) -> usize {
    match level {
        Level::Routable => 0,
        Level::Seen => 1,
    }
}

impl Sprayed {
    /// Records a try. Returns the number of tries, if it makes the user sprayed.
    fn note(
        &mut self,
        source: IpKey,
        user: &str,
        level: Level,
        limits: &Limits,
        now: u64,
    ) -> Option<usize> {
        let pair = (digest(user), source);
        let is_new_source = self.pairs.get(&pair, now).is_none();
        self.pairs.insert(pair, now, ());
        if !self.users.contains_key(user) {
            if self.users.len() >= MAX_USERS
                && let Some(oldest) = self.order.pop_front()
            {
                self.users.remove(&oldest);
            }
            self.order.push_back(user.to_owned());
        }
        let found = self
            .users
            .entry(user.to_owned())
            .or_insert_with(|| User { first: now, ..User::default() });
        found.last = now;
        found.count += 1;
        found.sources += u64::from(is_new_source);
        if level == Level::Routable && found.proven.len() < MANY_SOURCES {
            found.proven.insert(digest(&source));
        }
        let tries = &mut found.tries[index(level)];
        tries.note(now, (), limits.per_ns);
        let filled = found.slow[index(level)].pour(now, limits.leak_ns);
        let is_sprayed = tries.len() >= limits.count || filled >= limits.bucket - 0.5;
        let is_new = found.until[index(level)] <= now;
        if is_sprayed {
            found.until[index(level)] = now + DAY_NS;
        }
        if found.until.iter().any(|until| *until > now) {
            self.changed.insert(user.to_owned());
        }
        (is_sprayed && is_new).then(|| found.tries[index(level)].len())
    }

    /// Sprayed users whose figures have changed, at most once per interval.
    fn news(&mut self, now: u64) -> Vec<Spray> {
        if self.changed.is_empty() || now.saturating_sub(self.told) < NEWS_NS {
            return Vec::new();
        }
        self.told = now;
        let spray = |user: String| {
            let found = self.users.get(&user)?;
            let is_proven = found.until[index(Level::Routable)] > now;
            Some(Spray {
                first: found.first,
                last: found.last,
                tier: if is_proven { Tier::Proven } else { Tier::Unproven },
                tries: found.count,
                sources: found.sources,
                user,
            })
        };
        std::mem::take(&mut self.changed).into_iter().filter_map(spray).collect()
    }

    /// Whether a user is sprayed at this level.
    fn is_sprayed(&self, user: &str, level: Level, now: u64) -> bool {
        self.users.get(user).is_some_and(|user| user.until[index(level)] > now)
    }
}

impl Memory for Sprayed {
    fn tidy(&mut self, rules: &super::Detect, now: u64) {
        let (per, leak_ns) = (rules.sprayed.per.nanos(), rules.slow.per.nanos());
        self.users.retain(|_, user| {
            user.tries.iter_mut().for_each(|tries| tries.tidy(now, per));
            let holds = user.slow.iter().any(|bucket| bucket.level(now, leak_ns) > 0.0);
            holds
                || user.tries.iter().any(|tries| tries.len() > 0)
                || user.until.iter().any(|until| *until > now)
        });
        let users = &self.users;
        self.order.retain(|user| users.contains_key(user));
    }
}

impl Detector {
    /// Processes a rejection of an unknown source.
    fn user_was_tried(
        &mut self,
        source: IpKey,
        rejection: &Rejection,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let rule = self.rules.sprayed;
        let Rejection { user, level, .. } = rejection;
        let is_own = self.known.accepted(&source, user, now);
        if !rule.enabled || is_own || !self.known.is_user(user, now) {
            return;
        }
        let slow = self.rules.slow;
        let limits = Limits {
            count: rule.count as usize,
            per_ns: rule.per.nanos(),
            bucket: if slow.enabled { f64::from(slow.count) } else { f64::INFINITY },
            leak_ns: slow.per.nanos(),
        };
        let found = self.memory.sprayed.note(source, user, *level, &limits, now);
        if let Some(count) = found {
            let text = format!(
                "strangers had {count} passwords rejected for the user {user:?} within {}",
                rule.per
            );
            actions.push(Action::Note("sprayed", text));
        }
        if self.memory.sprayed.is_sprayed(user, *level, now)
            && let Some(state) = self.sources.get_mut(&source)
        {
            state.counts.sprayed.note(now, *level, DAY_NS);
            // Forgeable evidence does not ban here; it slows down.
            if *level == Level::Seen && state.counts.sprayed.len() >= TRIES {
                let reason =
                    format!("a third password for the user {user:?}, whom many strangers try");
                let metering = Metering::of_host(source, Step::Last, now + DAY_NS, reason);
                actions.push(Action::Meter(metering));
            }
        }
    }

    /// Whether an unknown source has used up its tries for sprayed users, and tries one whom other
    /// sources try as well.
    pub(super) fn sprays_with_others(&self, source: &IpKey, now: u64) -> bool {
        let users = &self.memory.sprayed.users;
        let by_many =
            |user: &str| users.get(user).is_some_and(|user| user.proven.len() >= MANY_SOURCES);
        self.sources.get(source).is_some_and(|state| {
            self.is_third_for_a_sprayed_user(state, Level::Routable, now)
                && state.counts.rejected.tries.iter().any(|(_, one)| by_many(&one.user))
        })
    }

    /// Whether an unknown source has used up its tries for sprayed users, by level 1 evidence.
    pub(in super::super) fn is_third_for_a_sprayed_user(
        &self,
        state: &SourceState,
        level: Level,
        now: u64,
    ) -> bool {
        let lately = |at: u64| now.saturating_sub(at) < DAY_NS;
        let tries =
            state.counts.sprayed.iter().filter(|(at, one)| *one == Level::Routable && lately(*at));
        self.rules.sprayed.enabled && level == Level::Routable && tries.count() >= TRIES
    }
}
