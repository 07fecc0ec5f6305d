//! Evidence kept over restarts: patient attackers of the last hours, and served sources.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sip_xdp_common::ip_key::IpKey;

use super::claim::Rejection;
use super::rules::enumeration::Refused;
use super::source_state::SourceState;
use super::windows::{LeakyBucket, Window};
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
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptSource {
    source: [u8; 16],
    last: u64,
    routable: bool,
    rejected: Window<Rejection>,
    slow: LeakyBucket,
    slow_seen: LeakyBucket,
    refused: Window<Refused>,
    calls: LeakyBucket,
    calls_seen: LeakyBucket,
    refused_calls: u32,
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
        let is_worth_it = |state: &SourceState| {
            state.rejected.len() > 0
                || state.refused.len() > 0
                || state.calls.refused > 0
                || state.routable
        };
        let mut sources: Vec<_> =
            self.sources.iter().filter(|(_, state)| is_worth_it(state)).collect();
        sources.sort_unstable_by_key(|(_, state)| std::cmp::Reverse(state.last));
        let sources = sources.into_iter().take(MAX_KEPT).map(|(source, state)| KeptSource {
            source: source.octets(),
            last: state.last,
            routable: state.routable,
            rejected: state.rejected.clone(),
            slow: state.slow,
            slow_seen: state.slow_seen,
            refused: state.refused.clone(),
            calls: state.calls.routable,
            calls_seen: state.calls.all,
            refused_calls: state.calls.refused,
        });
        let served = self.served.all(now).take(MAX_KEPT).map(|(source, since, until)| KeptServed {
            source: source.octets(),
            since,
            until,
        });
        let decoys_from = self.decoys_from;
        let (sources, served) = (sources.collect(), served.collect());
        Ok(serde_json::to_vec(&Kept { now, wall_ms, sources, served, decoys_from })?)
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
        for mut of in kept.sources.into_iter().take(MAX_SOURCES) {
            of.rejected.shift(moved);
            of.refused.shift(moved);
            [&mut of.slow, &mut of.slow_seen, &mut of.calls, &mut of.calls_seen]
                .into_iter()
                .for_each(|bucket| bucket.shift(moved));
            let source = IpKey::new(of.source);
            let mut state = SourceState {
                last: moved(of.last),
                routable: of.routable,
                rejected: of.rejected,
                slow: of.slow,
                slow_seen: of.slow_seen,
                refused: of.refused,
                ..SourceState::new(source)
            };
            (state.calls.routable, state.calls.all) = (of.calls, of.calls_seen);
            state.calls.refused = of.refused_calls;
            self.sources.entry(source).or_insert_with(|| Box::new(state));
        }
        Ok(())
    }
}
