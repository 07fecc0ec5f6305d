//! The evidence as it is kept over restarts: what patient attackers did in the last hours.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sip_xdp_common::ip_key::Source;

use super::counting::{Bucket, Window};
use super::subject::{Rejection, Subject};
use super::{Detector, MAX_SUBJECTS};

/// How many sources are remembered over a restart: those that were heard of last.
const MAX_KEPT: usize = 4_096;

/// All of it. Times are on the filter's clock of then, which is said beside the wall clock's.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    now: u64,
    wall_ms: u64,
    subjects: Vec<KeptSubject>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptSubject {
    key: [u8; 16],
    source: [u8; 16],
    by_address: bool,
    last: u64,
    proven: bool,
    rejected: Window<Rejection>,
    slow: Bucket,
    refused: Window<String>,
    invites: Bucket,
    refused_calls: u32,
    answered_calls: u32,
}

impl Detector {
    /// What is known against sources, to be taken up by [`Detector::recall`].
    pub fn evidence(&self, now: u64, wall_ms: u64) -> Result<Vec<u8>> {
        let is_worth_it = |subject: &Subject| {
            subject.rejected.len() > 0 || subject.refused.len() > 0 || subject.refused_calls > 0 || subject.proven
        };
        let mut subjects: Vec<_> = self.subjects.iter().filter(|(_, subject)| is_worth_it(subject)).collect();
        subjects.sort_unstable_by_key(|(_, subject)| std::cmp::Reverse(subject.last));
        let subjects = subjects.into_iter().take(MAX_KEPT).map(|(key, subject)| KeptSubject {
            key: key.octets(),
            source: subject.source.octets(),
            by_address: subject.by_address,
            last: subject.last,
            proven: subject.proven,
            rejected: subject.rejected.clone(),
            slow: subject.slow,
            refused: subject.refused.clone(),
            invites: subject.invites,
            refused_calls: subject.refused_calls,
            answered_calls: subject.answered_calls,
        });
        Ok(serde_json::to_vec(&Kept { now, wall_ms, subjects: subjects.collect() })?)
    }

    /// Takes up what an earlier run knew against sources.
    pub fn recall(&mut self, kept: &[u8], now: u64, wall_ms: u64) -> Result<()> {
        let kept: Kept = serde_json::from_slice(kept)?;
        // How far the two clocks of then and now are apart; after a reboot the filter's clock began anew.
        let passed = wall_ms.saturating_sub(kept.wall_ms).saturating_mul(1_000_000);
        let shift = i128::from(now) - i128::from(passed) - i128::from(kept.now);
        let moved = |time: u64| u64::try_from((i128::from(time) + shift).max(0)).unwrap_or(u64::MAX);
        for mut of in kept.subjects.into_iter().take(MAX_SUBJECTS) {
            of.rejected.shift(moved);
            of.refused.shift(moved);
            of.slow.shift(moved);
            of.invites.shift(moved);
            let subject = Subject {
                last: moved(of.last),
                proven: of.proven,
                rejected: of.rejected,
                slow: of.slow,
                refused: of.refused,
                invites: of.invites,
                refused_calls: of.refused_calls,
                answered_calls: of.answered_calls,
                ..Subject::new(Source::new(of.source), of.by_address)
            };
            self.subjects.entry(Source::new(of.key)).or_insert_with(|| Box::new(subject));
        }
        Ok(())
    }
}
