//! `slow`: rejected passwords at a slow rate, in leaky buckets. [`super::rejected`] fills and
//! weighs them, since a ban names both.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value};

use super::super::Detector;
use super::super::explain::rounded;
use super::super::source_state::SourceState;
use super::super::windows::LeakyBucket;
use super::rule::{BanKind, Counts, Rule, Told, recalled};

/// Maximum number of ports of one source with a bucket of their own.
const MAX_PORTS: usize = 64;

threshold! {
    /// `[detect.slow]`: a leaky bucket.
    count = 20, seconds = 1_800
}

pub(in super::super) struct Slow;

impl Rule for Slow {
    const NAME: &'static str = "slow";
    const COMMENT: &'static str = "Slow password guessing: a leaky bucket of \"count\" rejections, \
        of which one leaks out per \"per\".";
    const KINDS: &'static [BanKind] = &[BanKind {
        name: "slow",
        evidence: "a leaky bucket of `count` rejected passwords, of which one leaks out per `per`",
        limits: "as `rejected`",
    }];

    type Settings = Settings;
    type Counts = Buckets;
    type Memory = ();

    fn tell(detector: &Detector, state: &SourceState, now: u64) -> Option<Told> {
        let Settings { count, per, .. } = detector.rules.slow;
        let level = rounded(state.counts.slow.all.level(now, per.nanos()));
        let text =
            format!("rejected passwords fill {level} of {count}, and one leaks out every {per}");
        Some(Told { count: level, text })
    }
}

/// Rejected passwords of one source.
#[derive(Debug, Default)]
pub(in super::super) struct Buckets {
    /// Level 1 rejections, and all.
    pub(in super::super) routable: LeakyBucket,
    pub(in super::super) all: LeakyBucket,
    /// The former by port, at an address with accepted users.
    pub(in super::super) ports: BTreeMap<u16, LeakyBucket>,
    /// Level 0 rejections at an address with standing.
    pub(in super::super) hidden: LeakyBucket,
    /// Rejections at an address with accepted users, for users that were rejected at other ports as
    /// well.
    pub(in super::super) roaming: LeakyBucket,
}

impl Buckets {
    /// The bucket of a port at `now`, where one leaks out in `per` nanoseconds. For a new one the
    /// emptiest makes room.
    pub(in super::super) fn port(&mut self, port: u16, now: u64, per: u64) -> &mut LeakyBucket {
        if self.ports.len() >= MAX_PORTS && !self.ports.contains_key(&port) {
            let level = |bucket: &LeakyBucket| bucket.level(now, per);
            let emptiest = self
                .ports
                .iter()
                .min_by(|(_, one), (_, other)| level(one).total_cmp(&level(other)))
                .map(|(port, _)| *port);
            emptiest.map(|port| self.ports.remove(&port));
        }
        self.ports.entry(port).or_default()
    }
}

/// Buckets outlive a ban: they drain over hours in any case.
impl Counts for Buckets {
    fn keep(&self, kept: &mut Map<String, Value>) -> Result<()> {
        kept.insert("slow".to_owned(), serde_json::to_value(self.routable)?);
        kept.insert("slow_seen".to_owned(), serde_json::to_value(self.all)?);
        Ok(())
    }

    fn recall(&mut self, kept: &mut Map<String, Value>, moved: &dyn Fn(u64) -> u64) -> Result<()> {
        self.routable = recalled(kept, "slow")?.unwrap_or_default();
        self.all = recalled(kept, "slow_seen")?.unwrap_or_default();
        [&mut self.routable, &mut self.all].into_iter().for_each(|bucket| bucket.shift(moved));
        Ok(())
    }
}
