//! Evidence kept over restarts: patient attackers of the last hours, and served sources.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sip_xdp_common::ip_key::IpKey;

use super::source_state::SourceState;
use super::{Detector, MAX_SOURCES};

/// Maximum number of sources kept over a restart: the most recent ones.
const MAX_KEPT: usize = 4_096;

/// The kept state. Times are on the filter's clock of that time, stored with the wall clock.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    now: u64,
    wall_ms: u64,
    sources: Vec<KeptSource>,
    served: Vec<KeptServed>,
    decoys_from: u64,
    /// What rules remember of all sources together.
    #[serde(default)]
    rules: Map<String, Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptSource {
    source: [u8; 16],
    last: u64,
    routable: bool,
    /// What rules keep, each under names of its own.
    #[serde(flatten)]
    counts: Map<String, Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptServed {
    source: [u8; 16],
    since: u64,
    until: u64,
}

impl Detector {
    /// The evidence against sources, for [`Detector::recall`].
    pub fn evidence(&self, now: u64, wall_ms: u64) -> Result<Vec<u8>> {
        let is_worth_it = |state: &SourceState| state.routable || state.counts.is_worth_keeping();
        let mut states: Vec<_> =
            self.sources.iter().filter(|(_, state)| is_worth_it(state)).collect();
        states.sort_unstable_by_key(|(_, state)| std::cmp::Reverse(state.last));
        let sources = states.into_iter().take(MAX_KEPT).map(|(source, state)| {
            let SourceState { last, routable, .. } = **state;
            let (source, counts) = (source.octets(), state.counts.keep()?);
            Ok(KeptSource { source, last, routable, counts })
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        let served = self.served.all(now).take(MAX_KEPT).map(|(source, since, until)| KeptServed {
            source: source.octets(),
            since,
            until,
        });
        let decoys_from = self.decoys_from;
        let (served, rules) = (served.collect(), self.memory.keep()?);
        Ok(serde_json::to_vec(&Kept { now, wall_ms, sources, served, decoys_from, rules })?)
    }

    /// Restores the evidence of an earlier run.
    pub fn recall(&mut self, kept: &[u8], now: u64, wall_ms: u64) -> Result<()> {
        let kept: Kept = serde_json::from_slice(kept)?;
        // The offset between the two filter clocks, which restarts with a reboot.
        let passed = wall_ms.saturating_sub(kept.wall_ms).saturating_mul(1_000_000);
        let shift = i128::from(now) - i128::from(passed) - i128::from(kept.now);
        let moved =
            |time: u64| u64::try_from((i128::from(time) + shift).max(0)).unwrap_or(u64::MAX);
        if kept.decoys_from != u64::MAX {
            self.decoys_from = self.decoys_from.min(moved(kept.decoys_from));
        }
        for one in kept.served {
            // Never longer than allowed, whatever the clock.
            let until = moved(one.until).min(now.saturating_add(super::FIRST_DAY_NS));
            self.served.restore(IpKey::new(one.source), moved(one.since), until);
        }
        self.memory.recall(kept.rules, &moved)?;
        for of in kept.sources.into_iter().take(MAX_SOURCES) {
            let source = IpKey::new(of.source);
            let (last, routable) = (moved(of.last), of.routable);
            let mut state = SourceState { last, routable, ..SourceState::new(source) };
            state.counts.recall(of.counts, &moved)?;
            self.sources.entry(source).or_insert_with(|| Box::new(state));
        }
        Ok(())
    }
}
