//! Rate limit of messages, and counts of suppressed events.

use std::collections::BTreeMap;
use std::time::Duration;

use sip_xdp_common::limits::gcra::Limit;

use crate::config::Rate;

/// Number of suppressed events by name.
pub(super) type Suppressed = BTreeMap<String, u64>;

/// Rate limit.
#[derive(Debug)]
pub(super) struct Gate {
    limit: Limit,
    full_at: u64,
    suppressed: Suppressed,
}

impl Gate {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            limit: Limit::new(rate.count, rate.per.nanos()),
            full_at: 0,
            suppressed: Suppressed::new(),
        }
    }

    /// Whether another message is allowed at `now`.
    pub(super) fn admits(&mut self, now: u64) -> bool {
        let full_at = self.limit.take(self.full_at, now);
        self.full_at = full_at.unwrap_or(self.full_at);
        full_at.is_some()
    }

    /// Counts suppressed events.
    pub(super) fn suppress(&mut self, event: &str, count: u64) {
        if count > 0 {
            *self.suppressed.entry(event.to_owned()).or_default() += count;
        }
    }

    /// Suppressed events since the last call.
    pub(super) fn take_suppressed(&mut self) -> Suppressed {
        std::mem::take(&mut self.suppressed)
    }

    /// Time until suppressed events may be reported; `None` without any.
    pub(super) fn until_due(&self, now: u64) -> Option<Duration> {
        let due = (self.full_at + self.limit.interval).saturating_sub(self.limit.burst);
        (!self.suppressed.is_empty()).then(|| Duration::from_nanos(due.saturating_sub(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn so_many_in_a_time_and_the_rest_is_counted() {
        let mut gate = Gate::new(Rate { count: 3, per: Span::seconds(60) });
        let start = 1_000 * SECOND;
        let admitted = (0..10).filter(|number| gate.admits(start + number)).count();
        assert_eq!(admitted, 3);
        assert_eq!(gate.until_due(start), None, "nothing was kept back yet");
        gate.suppress("ban", 5);
        gate.suppress("ban", 1);
        gate.suppress("others", 0);
        let wait = gate.until_due(start).unwrap();
        assert!(wait > Duration::from_secs(19) && wait <= Duration::from_secs(20), "{wait:?}");
        assert!(!gate.admits(start + 19 * SECOND) && gate.admits(start + wait.as_nanos() as u64));
        assert_eq!(gate.take_suppressed(), [("ban".to_owned(), 6)].into());
        assert_eq!(gate.until_due(start), None);
        // An hour later there is room for three again, not more.
        assert_eq!(
            (0..10).filter(|number| gate.admits(start + 3_600 * SECOND + number)).count(),
            3
        );
    }
}
