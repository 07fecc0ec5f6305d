//! The meters of unknown sources: a table of fixed size, in which a newcomer takes the place of whoever in its set has
//! been silent for longest. Nothing is allocated, so a flood of new sources costs the same as any other.
//!
//! A source belongs to one [`Set`] of [`WAYS`]. A set begins with a line of tags, which is all that looking for a source
//! reads before it is found. Two CPUs that change one set in the same instant may lose a charge or a newcomer, no more:
//! a meter counts for whom its own line names, whatever the tag says.

use bytemuck::{Pod, Zeroable};

use crate::hash;
use crate::meter::{Meter, ticks};
use crate::source::Source;

/// How many sources a set holds.
pub const WAYS: usize = 8;

/// How many sets there are for a capacity of `sources`: a power of two. A set has room for twice its share, so that when
/// the table holds as many as it is meant for, one set in fifty has more members than ways.
pub const fn sets(sources: u32) -> u32 {
    sources.div_ceil(WAYS as u32 / 2).next_power_of_two()
}

/// A source and its meter: a cache line.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Way {
    /// Whose meter it is.
    pub source: Source,
    /// The meter.
    pub meter: Meter,
}

/// Sources whose hashes begin alike.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Set {
    /// By way: a part of the source's hash, never 0, in the upper half, and when it was last seen, in [`ticks`], in the
    /// lower one. 0 is a free way.
    pub tags: [u64; WAYS],
    /// The sources.
    pub ways: [Way; WAYS],
}

const _: () = assert!(size_of::<Way>() == 64 && size_of::<Set>() == 64 * (1 + WAYS));

/// Where a source belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    hash: u64,
}

impl Home {
    /// Of a source, in a table with this seed.
    #[inline(always)]
    pub const fn of(source: &Source, seed: u64) -> Self {
        let (high, low) = source.words();
        Self { hash: hash::mix(high, low, 0, seed) }
    }

    /// Its set, of a number less one that is a power of two.
    #[inline(always)]
    pub const fn set(&self, mask: u32) -> u32 {
        self.hash as u32 & mask
    }

    /// Its tag, seen at `now`.
    #[inline(always)]
    pub const fn tag(&self, now: u64) -> u64 {
        self.mark() << 32 | ticks(now) as u64
    }

    /// Whether a tag may be its own.
    #[inline(always)]
    pub const fn fits(&self, tag: u64) -> bool {
        tag >> 32 == self.mark()
    }

    /// Its mark in the sketch of new sources ([`crate::storm::MARKS`]).
    #[inline(always)]
    pub const fn sketch(&self) -> usize {
        (self.hash >> 48) as usize
    }

    #[inline(always)]
    const fn mark(&self) -> u64 {
        self.hash >> 32 | 1
    }
}

/// Which of the tags gives way to a newcomer at `now`: a free one, else the one that was silent for longest.
#[inline(always)]
pub fn oldest(tags: &[u64; WAYS], now: u64) -> usize {
    let (mut way, mut longest) = (0, 0);
    for (n, tag) in tags.iter().enumerate() {
        let silent = if *tag == 0 { 1 << 32 } else { ticks(now).wrapping_sub(*tag as u32) as u64 };
        if silent > longest {
            (way, longest) = (n, silent);
        }
    }
    way
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_takes_a_free_way_and_then_that_of_the_longest_silent() {
        let source = Source::v4(7);
        let home = Home::of(&source, 1);
        let second = 1_000_000_000_u64;
        let mut tags = [0; WAYS];
        let mut given = [false; WAYS];
        for n in 0..WAYS as u64 {
            let way = oldest(&tags, (100 + n) * second);
            assert!(!given[way], "{way} twice");
            given[way] = true;
            tags[way] = home.tag((100 + n) * second);
        }
        let first = tags.iter().position(|tag| *tag as u32 == ticks(100 * second));
        assert_eq!(Some(oldest(&tags, 200 * second)), first);
    }

    #[test]
    fn a_tag_is_never_free_and_fits_its_source() {
        for n in 0..10_000 {
            let home = Home::of(&Source::v4(n), 3);
            let tag = home.tag(0);
            assert!(tag != 0 && home.fits(tag) && home.fits(home.tag(u64::MAX / 2)));
            assert!(home.set(63) < 64);
        }
    }

    #[test]
    fn places_spread_and_depend_on_the_seed() {
        for seed in [1, 2, u64::MAX] {
            let marks: std::collections::HashSet<_> =
                (0..4_096).map(|n| Home::of(&Source::v4(n << 12), seed).sketch()).collect();
            assert!(marks.len() > 3_800, "{}", marks.len());
        }
        let home = |n, seed| Home::of(&Source::v4(n), seed);
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
