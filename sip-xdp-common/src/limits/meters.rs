//! The meters of unknown sources: a set-associative table of fixed size, in which a new source
//! replaces the one of its set that has been idle longest. Nothing is allocated, so that a flood of
//! new sources costs no more than any other.
//!
//! A source maps to one [`MeterSet`] of [`WAYS`], which is one cache line: one access finds its
//! meter, and 65,536 sources fit in 2 MiB. A meter identifies its source by 29 hash bits besides
//! those that select the set; two sources that agree in all of them share a meter (by chance one
//! pair in 10^12). State that matters only over a limit is in [`Records`]. Two CPUs that update one
//! set at once may lose a charge or a new source, no more.

use bytemuck::{Pod, Zeroable};

use crate::ip_key::IpKey;
use crate::limits::gcra::Meter;
use crate::limits::over_limit::Record;
use crate::lookup::hash;

/// Meters per set.
pub const WAYS: usize = 4;

/// Number of sets for a capacity of `sources`: a power of two. A set has room for at least twice
/// its share, so that at full capacity one set in twenty has more members than ways.
pub const fn sets(sources: u32) -> u32 {
    sources.div_ceil(WAYS as u32 / 2).next_power_of_two()
}

/// Sources with the same leading hash bits.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct MeterSet {
    /// Their meters, unordered.
    pub ways: [Meter; WAYS],
}

/// The records of one set's sources.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Records {
    /// By way.
    pub ways: [Record; WAYS],
}

const _: () = assert!(size_of::<MeterSet>() == 64 && size_of::<Records>() == 144);

/// [`Meter::mark`]: the source has a [`Record`].
pub const RECORDED: u32 = 1;

/// [`Meter::mark`]: the timestamps are those of a known source.
pub const KNOWN: u32 = 2;

const FLAGS: u32 = RECORDED | KNOWN;

/// The position of a source in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeterKey {
    hash: u64,
}

impl MeterKey {
    /// The key of a source, in a table with this seed.
    #[inline(always)]
    pub const fn of(source: &IpKey, seed: u64) -> Self {
        let (high, low) = source.words();
        Self { hash: hash::mix(high, low, 0, seed) }
    }

    /// Its set; `mask` is the number of sets less one.
    #[inline(always)]
    pub const fn set(&self, mask: u32) -> u32 {
        self.hash as u32 & mask
    }

    /// Its mark, without [`RECORDED`] and [`KNOWN`]: never 0.
    #[inline(always)]
    pub const fn mark(&self) -> u32 {
        ((self.hash >> 32) as u32 | 4) & !FLAGS
    }

    /// Whether this meter belongs to the source.
    #[inline(always)]
    pub const fn owns(&self, meter: &Meter) -> bool {
        meter.mark & !FLAGS == self.mark()
    }

    /// Its index in the sketch of new sources ([`crate::limits::storm::MARKS`]).
    #[inline(always)]
    pub const fn sketch(&self) -> usize {
        (self.hash >> 20 & 0xffff) as usize
    }
}

/// The way of a source's meter; [`WAYS`] or more if it has none. Branch-free, because the way is
/// unpredictable. Two marks are compared at a time: a comparison of one is recognised by the
/// compiler and becomes a branch.
#[inline(always)]
pub fn way_of(home: &MeterKey, ways: &[Meter; WAYS]) -> usize {
    const LOWEST: u64 = 0x1_0000_0001;
    let own = home.mark() as u64 * LOWEST;
    let pair = |n: usize| {
        let marks = ways[n].mark as u64 | (ways[n + 1].mark as u64) << 32;
        let differ = marks & (!FLAGS as u64 * LOWEST) ^ own;
        // The highest bit of each half that is 0, as `!(differ - LOWEST) & !differ` has it. No half
        // is 1, so that no borrow is wrong.
        let same = !((LOWEST - 1).wrapping_sub(differ) | differ);
        same >> 31 & 1 | same >> 62 & 2
    };
    let bits = pair(0) | pair(2) << 2;
    // 1, 2, 4, 8 to 0, 1, 2, 3; 0 to a large number. Of two equal marks the first wins.
    let lowest = bits & bits.wrapping_neg();
    (lowest >> 1).wrapping_sub(lowest >> 3).wrapping_sub((bits == 0) as u64) as usize
}

/// The meter that a new source replaces at `now` (ticks): a free one, else the one idle longest.
#[inline(always)]
pub fn least_missed(ways: &[Meter; WAYS], now: u32) -> usize {
    let (mut way, mut longest) = (0, 0);
    for (n, meter) in ways.iter().enumerate() {
        let rested = if meter.mark == 0 { 1 << 32 } else { meter.rested(now) as u64 };
        if rested > longest {
            (way, longest) = (n, rested);
        }
    }
    way
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::gcra::ticks;

    #[test]
    fn a_newcomer_takes_a_free_way_and_then_that_of_the_longest_silent() {
        let second = 1_000_000_000_u64;
        let mut ways = [Meter::default(); WAYS];
        for n in 0..WAYS as u64 {
            let now = ticks((100 + n) * second);
            let way = least_missed(&ways, now);
            assert_eq!(ways[way].mark, 0, "{way} twice");
            ways[way] = Meter::new(4 + 4 * n as u32, now);
        }
        assert_eq!(
            ways[least_missed(&ways, ticks(200 * second))].mark,
            4,
            "the first one is the longest silent"
        );
    }

    #[test]
    fn a_mark_is_never_free_and_fits_its_source() {
        for n in 0..10_000 {
            let home = MeterKey::of(&IpKey::v4(n), 3);
            let mut meter = Meter::new(home.mark(), 0);
            assert!(meter.mark != 0 && home.owns(&meter) && home.set(63) < 64);
            meter.mark |= RECORDED;
            assert!(home.owns(&meter));
            assert!(!home.owns(&Meter::default()));
        }
    }

    #[test]
    fn a_source_is_found_wherever_it_is() {
        let home = MeterKey::of(&IpKey::v4(7), 1);
        let others: [Meter; WAYS] = std::array::from_fn(|n| Meter::new(8 * n as u32 + 4, 0));
        assert!(way_of(&home, &others) >= WAYS && way_of(&home, &[Meter::default(); WAYS]) >= WAYS);
        for way in 0..WAYS {
            for flag in [0, RECORDED, KNOWN] {
                let mut ways = others;
                ways[way].mark = home.mark() | flag;
                assert_eq!(way_of(&home, &ways), way);
                ways[WAYS - 1].mark = home.mark();
                assert_eq!(way_of(&home, &ways), way);
            }
        }
    }

    #[test]
    fn places_spread_and_depend_on_the_seed() {
        for seed in [1, 2, u64::MAX] {
            let marks: std::collections::HashSet<_> =
                (0..4_096).map(|n| MeterKey::of(&IpKey::v4(n << 12), seed).sketch()).collect();
            assert!(marks.len() > 3_800, "{}", marks.len());
        }
        let home = |n, seed| MeterKey::of(&IpKey::v4(n), seed);
        let same = (0..4_096).filter(|n| home(*n, 1).sketch() == home(*n, 2).sketch()).count();
        assert!(same < 10, "{same}");
    }

    #[test]
    fn there_is_room_for_as_many_as_are_asked_for() {
        for sources in [1, 8, 9, 64, 65_536, 65_537, 1_000_000] {
            assert!(sets(sources) * WAYS as u32 >= 2 * sources && sets(sources).is_power_of_two());
        }
    }
}
