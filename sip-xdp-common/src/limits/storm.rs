//! Storms: more distinct new sources per second than are plausible, which is how a flood with
//! forged sources looks.
//!
//! Each source without a meter sets a mark in a sketch: one word out of [`MARKS`], chosen by a
//! seeded hash, so that an attacker cannot choose it. The mark is the window number in 32 bits,
//! which wraps after 146 years: old marks never count in a later window, and nothing has to be
//! cleared. Newly set marks count the distinct sources of the window; one heavy sender sets one.
//! Above a threshold it is a storm: unknown sources then share one budget, and only [`NEWCOMERS`]
//! of them are given a meter. Memory and cost stay constant, and existing meters stay.

use bytemuck::{Pod, Zeroable};

use crate::limits::gcra::Limit;
/// Words of the sketch. At the largest threshold (half of it) two sources in five share a mark, and
/// the estimate is 21 % low; at the default of 2,000 it is 1.5 % low.
pub const MARKS: usize = 1 << 16;

/// The largest threshold that the sketch can measure.
pub const MAX_NEW_SOURCES: u64 = MARKS as u64 / 2;

/// A window is 2^30 ns: 1.07 s.
const WINDOW_BITS: u32 = 30;

/// Duration of a storm after the last window above the threshold, in nanoseconds: two windows.
const CALM: u64 = 2 << WINDOW_BITS;

/// Rate of new meters in a storm: slow enough that 65,536 meters of real sources last for 20
/// minutes.
pub const NEWCOMERS: Limit = Limit::new(50, 1_000_000_000);

/// Thresholds and budget of a storm.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct StormLimits {
    /// Distinct new sources per window up to which there is no storm.
    pub new_sources: u64,
    /// The budget that unknown sources share in a storm.
    pub budget: Limit,
}

const _: () = assert!(size_of::<StormLimits>() == 24);

impl StormLimits {
    /// A storm begins above `count` distinct new sources in `per` nanoseconds.
    pub const fn new(count: u32, per: u64, budget: Limit) -> Self {
        let in_window = ((count as u128) << WINDOW_BITS) / per as u128;
        let new_sources =
            if in_window > MAX_NEW_SOURCES as u128 { MAX_NEW_SOURCES } else { in_window as u64 };
        Self { new_sources, budget }
    }
}

/// Storm state, shared by all CPUs. Two CPUs that write it at once may lose a count, no more.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct StormState {
    /// Number of the current window.
    pub window: u64,
    /// Distinct new sources in it.
    pub new_sources: u64,
    /// End of the storm; 0 if there was none.
    pub storm_until: u64,
    /// Time at which the shared budget is full.
    pub budget: u64,
    /// Time at which the bucket of new meters is full.
    pub newcomers: u64,
    /// Time of the last storm event.
    pub reported: u64,
    /// Time at which an incoming response was last lost or truncated on its way to the daemon.
    pub response_unseen: u64,
}

const _: () = assert!(size_of::<StormState>() == 56);

/// The treatment of a source without a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewSourcePolicy {
    /// No storm, or one of the [`NEWCOMERS`]: it is given a meter.
    Meter,
    /// Storm: the packet is within the shared budget; the source is given no meter.
    Pass,
    /// Storm: the shared budget is spent.
    Drop,
}

/// One word of the sketch.
pub type Mark = u32;

/// The mark of the window at `now`: never 0, the value of an unused word. The 64-bit clock has 34
/// bits of windows, of which 32 last for 146 years.
#[inline(always)]
pub const fn window_mark(now: u64) -> Mark {
    ((now >> WINDOW_BITS) as Mark).wrapping_add(1)
}

impl StormState {
    /// Counts a source without a meter, whose sketch word was `found`, at `now`, and decides its
    /// treatment.
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

    /// Storm state.
    #[inline(always)]
    pub const fn is_storm(&self, now: u64) -> bool {
        self.storm_until > now
    }

    /// Whether a storm event is due: once per second.
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
        // 2,000 per second are 2,147 per window; sources that share a mark are counted once.
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
            // 1,800 per second for half a minute.
            assert_eq!(
                sketch.on_new_source(n, START + u64::from(n) * SECOND / 1_800),
                NewSourcePolicy::Meter,
                "source {n}"
            );
        }
    }

    /// Marks of an earlier flood do not count in this window, whatever its number: 255 windows
    /// later (when a one-byte mark would wrap), 65,535 (two bytes), and any other.
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
            // Of 2,000 sources 1.5 % share a mark.
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
            // 100,000 per second for ten seconds.
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
