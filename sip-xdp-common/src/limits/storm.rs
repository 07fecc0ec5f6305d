//! Storms: more distinct new sources in a second than can be real, which is what a flood with
//! forged sources looks like.
//!
//! Each source that has no meter leaves a mark in a sketch: one word out of [`MARKS`], chosen by a
//! seeded hash, so that nobody can aim. A mark is the number of the window, in 32 bits: it does not
//! come round for 146 years, so no mark of the past counts in a later window and nothing needs to
//! be cleared. Marks that are new count the distinct sources of the window; one heavy sender leaves
//! one. Beyond a threshold it is a storm, and for the time being strangers share one budget and
//! (nearly) none of them is given a meter: memory and cost stay flat, and sources with a meter keep
//! theirs.

use bytemuck::{Pod, Zeroable};

use crate::limits::gcra::Limit;
/// How many marks the sketch has. At the largest threshold of half of it, two sources in five share
/// a mark with another, and the estimate is 21 % low; at the default of 2,000 it is 1.5 % low.
pub const MARKS: usize = 1 << 16;

/// The largest threshold that the sketch can tell.
pub const MAX_NEW_SOURCES: u64 = MARKS as u64 / 2;

/// A window is this power of two of nanoseconds: 1.07 s.
const WINDOW_BITS: u32 = 30;

/// How long a storm goes on after the last window that was over the threshold, in nanoseconds: two
/// windows.
const CALM: u64 = 2 << WINDOW_BITS;

/// How many strangers are given a meter in a storm. Slow enough that 65,536 meters of real sources
/// last for 20 minutes.
pub const NEWCOMERS: Limit = Limit::new(50, 1_000_000_000);

/// What a storm is, and what strangers may send in one.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct StormLimits {
    /// How many distinct new sources in a window are no storm.
    pub new_sources: u64,
    /// The budget that strangers share in a storm.
    pub budget: Limit,
}

const _: () = assert!(size_of::<StormLimits>() == 24);

impl StormLimits {
    /// `count` distinct new sources in `per` nanoseconds are no storm.
    pub const fn new(count: u32, per: u64, budget: Limit) -> Self {
        let in_window = ((count as u128) << WINDOW_BITS) / per as u128;
        let new_sources =
            if in_window > MAX_NEW_SOURCES as u128 { MAX_NEW_SOURCES } else { in_window as u64 };
        Self { new_sources, budget }
    }
}

/// The weather, shared by all CPUs. Two CPUs that write it in the same instant may lose a count, no
/// more.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct StormState {
    /// The number of the present window.
    pub window: u64,
    /// Distinct new sources in it so far.
    pub new_sources: u64,
    /// When the storm is over, if there is one.
    pub storm_until: u64,
    /// When the strangers' budget is full again.
    pub budget: u64,
    /// When the bucket of newcomers is full again.
    pub newcomers: u64,
    /// When the daemon was last told of a storm.
    pub reported: u64,
    /// When a response that arrived was last not seen by the daemon.
    pub response_unseen: u64,
}

const _: () = assert!(size_of::<StormState>() == 56);

/// What a source without a meter meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewSourcePolicy {
    /// Fair weather: it is given a meter.
    Meter,
    /// A storm, but its packet is within the budget; it stays a stranger.
    Pass,
    /// A storm, and the budget is spent.
    Drop,
}

/// One mark of the sketch.
pub type Mark = u32;

/// The mark of the window at `now`: never 0, which is what an untouched sketch holds. The clock's
/// 64 bits of nanoseconds make 34 bits of windows, of which 32 last for 146 years.
#[inline(always)]
pub const fn window_mark(now: u64) -> Mark {
    ((now >> WINDOW_BITS) as Mark).wrapping_add(1)
}

impl StormState {
    /// Notes a source without a meter, whose mark was `found`, at `now`, and says what it meets.
    #[inline(always)]
    pub fn on_new_source(
        &mut self,
        found: Mark,
        now: u64,
        limits: &StormLimits,
    ) -> NewSourcePolicy {
        let window = now >> WINDOW_BITS;
        if self.window != window {
            self.window = window;
            self.new_sources = 0;
        }
        if found != window_mark(now) {
            self.new_sources += 1;
            if self.new_sources > limits.new_sources {
                self.storm_until = now.saturating_add(CALM);
            }
        }
        if !self.is_storm(now) {
            return NewSourcePolicy::Meter;
        }
        let Some(budget) = limits.budget.take(self.budget, now) else {
            return NewSourcePolicy::Drop;
        };
        self.budget = budget;
        match NEWCOMERS.take(self.newcomers, now) {
            Some(newcomers) => {
                self.newcomers = newcomers;
                NewSourcePolicy::Meter
            }
            None => NewSourcePolicy::Pass,
        }
    }

    /// Whether there is a storm.
    #[inline(always)]
    pub const fn is_storm(&self, now: u64) -> bool {
        self.storm_until > now
    }

    /// Whether the daemon should be told of the storm now: once a second.
    #[inline(always)]
    pub fn report_due(&mut self, now: u64) -> bool {
        let due = now.saturating_sub(self.reported) >= 1_000_000_000;
        if due {
            self.reported = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip_key::IpKey;
    use crate::limits::meters::MeterKey;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 1_000 << WINDOW_BITS;
    const LIMITS: StormLimits = StormLimits::new(2_000, SECOND, Limit::new(500, SECOND));

    struct Sketch {
        marks: Vec<Mark>,
        storm_state: StormState,
    }

    impl Sketch {
        fn new() -> Self {
            Self { marks: vec![0; MARKS], storm_state: StormState::default() }
        }

        fn on_new_source(&mut self, source: u32, now: u64) -> NewSourcePolicy {
            let mark = &mut self.marks[MeterKey::of(&IpKey::v4(source), 7).sketch()];
            let policy = self.storm_state.on_new_source(*mark, now, &LIMITS);
            *mark = window_mark(now);
            policy
        }
    }

    #[test]
    fn many_new_sources_are_a_storm() {
        let mut sketch = Sketch::new();
        let storm_at = (0..10_000).find(|n| {
            sketch.on_new_source(*n, START + u64::from(*n));
            sketch.storm_state.is_storm(START + u64::from(*n))
        });
        // 2,000 a second are 2,147 in a window; sources that share a mark are counted once.
        assert!(storm_at.is_some_and(|n| (2_147..=2_300).contains(&n)), "{storm_at:?}");
    }

    #[test]
    fn one_heavy_sender_is_none() {
        let mut sketch = Sketch::new();
        for n in 0..1_000_000 {
            assert_eq!(
                sketch.on_new_source(n % 1_000, START + u64::from(n) * 1_000),
                NewSourcePolicy::Meter
            );
        }
    }

    #[test]
    fn a_steady_trickle_of_new_sources_is_none() {
        let mut sketch = Sketch::new();
        for n in 0..60_000_u32 {
            // 1,800 a second for half a minute.
            assert_eq!(
                sketch.on_new_source(n, START + u64::from(n) * SECOND / 1_800),
                NewSourcePolicy::Meter,
                "source {n}"
            );
        }
    }

    /// Marks that an earlier flood left are no marks of this window, whatever number it has: 255
    /// windows later (when a mark of one byte would come round), 65,535 (two bytes), and any
    /// others.
    #[test]
    fn an_earlier_flood_does_not_hide_a_later_one() {
        for apart in [1, 2, 254, 255, 256, 510, 2_550, 65_535, 65_536, 131_070] {
            let mut sketch = Sketch::new();
            (0..100_000).for_each(|n| {
                assert!(matches!(
                    sketch.on_new_source(n, START),
                    NewSourcePolicy::Meter | NewSourcePolicy::Pass | NewSourcePolicy::Drop
                ))
            });
            let later = START + (apart << WINDOW_BITS);
            sketch.storm_state.storm_until = 0;
            (200_000..202_000)
                .for_each(|n| assert_eq!(sketch.on_new_source(n, later), NewSourcePolicy::Meter));
            // Of 2,000 sources 1.5 % share a mark with another one.
            let counted = sketch.storm_state.new_sources;
            assert!(
                (1_940..=2_000).contains(&counted),
                "{counted} of 2,000 sources after {apart} windows"
            );
        }
    }

    #[test]
    fn strangers_share_a_budget_and_few_meters_until_it_is_calm() {
        let mut sketch = Sketch::new();
        let mut counts = [0_u32; 3];
        for n in 0..1_000_000_u32 {
            // 100,000 a second for ten seconds.
            match sketch.on_new_source(n, START + u64::from(n) * SECOND / 100_000) {
                NewSourcePolicy::Meter => counts[0] += 1,
                NewSourcePolicy::Pass => counts[1] += 1,
                NewSourcePolicy::Drop => counts[2] += 1,
            }
        }
        let [meters, passed, dropped] = counts;
        assert!(meters < 2_300 + 50 * 11 + 50, "{meters} meters");
        assert!(meters + passed < 2_300 + 500 * 11, "{passed} passed");
        assert_eq!(meters + passed + dropped, 1_000_000);
        assert_eq!(
            sketch.on_new_source(5, START + 10 * SECOND + CALM + 1),
            NewSourcePolicy::Meter,
            "calm again"
        );
    }
}
