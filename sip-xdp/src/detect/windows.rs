//! Counting of evidence: time windows and leaky buckets.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Maximum number of events per window, above any threshold.
pub(super) const MOST: usize = 1_000;

/// Events within a time window.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Window<T> {
    events: VecDeque<(u64, T)>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { events: VecDeque::new() }
    }
}

impl<T> Window<T> {
    /// Adds an event, and drops those older than `per` nanoseconds.
    pub(super) fn note(&mut self, at: u64, event: T, per: u64) {
        self.tidy(at, per);
        if self.events.len() >= MOST {
            self.events.pop_front();
        }
        self.events.push_back((at, event));
    }

    /// Drops events older than `per` nanoseconds.
    pub(super) fn tidy(&mut self, now: u64, per: u64) {
        while self.events.front().is_some_and(|(at, _)| now.saturating_sub(*at) > per) {
            self.events.pop_front();
        }
    }

    /// Keeps only the events for which `keep` is true.
    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.events.retain(|(_, event)| keep(event));
    }

    /// Changes all events.
    pub(super) fn change(&mut self, change: impl FnMut(&mut T)) {
        self.events.iter_mut().map(|(_, event)| event).for_each(change);
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &(u64, T)> + Clone {
        self.events.iter()
    }

    /// Shifts all events in time.
    pub(super) fn shift(&mut self, moved: impl Fn(u64) -> u64) {
        self.events.iter_mut().for_each(|(at, _)| *at = moved(*at));
    }

    /// Age of the first event.
    pub(super) fn since(&self, now: u64) -> u64 {
        self.events.front().map_or(0, |(at, _)| now.saturating_sub(*at))
    }
}

/// A leaky bucket.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct LeakyBucket {
    level: f64,
    at: u64,
}

impl LeakyBucket {
    /// Adds one, where one leaks out in `per` nanoseconds. Returns the level.
    pub(super) fn pour(&mut self, now: u64, per: u64) -> f64 {
        self.pour_part(now, per, 1.0)
    }

    /// Adds a part of one. Returns the level.
    pub(super) fn pour_part(&mut self, now: u64, per: u64, part: f64) -> f64 {
        self.level = self.level(now, per) + part;
        self.at = now.max(self.at);
        self.level
    }

    /// The level at `now`, where one leaks out in `per` nanoseconds.
    pub(super) fn level(&self, now: u64, per: u64) -> f64 {
        (self.level - now.saturating_sub(self.at) as f64 / per.max(1) as f64).max(0.0)
    }

    /// Shifts it in time, unless nothing was ever poured.
    pub(super) fn shift(&mut self, moved: impl Fn(u64) -> u64) {
        self.at = if self.at == 0 { 0 } else { moved(self.at) };
    }
}

/// A duration in words: "40 s", "12 min", "3 h".
pub(super) fn words(nanos: u64) -> String {
    match nanos / 1_000_000_000 {
        seconds @ 0..=120 => format!("{} s", seconds.max(1)),
        seconds @ 121..=7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_window_forgets() {
        let mut window = Window::default();
        (0..10).for_each(|n| window.note(n * SECOND, n, 5 * SECOND));
        assert_eq!(window.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
        assert_eq!(window.since(9 * SECOND), 5 * SECOND);
        (0..5_000).for_each(|n| window.note(9 * SECOND, n, 5 * SECOND));
        assert_eq!(window.len(), MOST);
    }

    #[test]
    fn a_bucket_leaks() {
        let mut bucket = LeakyBucket::default();
        // One per minute never fills it; one every 30 seconds does.
        assert!(
            (0..100).map(|n| bucket.pour(n * 60 * SECOND, 60 * SECOND)).all(|level| level <= 1.0)
        );
        let mut bucket = LeakyBucket::default();
        let over = (0..100).position(|n| bucket.pour(n * 30 * SECOND, 60 * SECOND) >= 20.0);
        assert_eq!(over, Some(38));
    }
}
