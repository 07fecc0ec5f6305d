//! Ban durations.

use std::time::Duration;

/// The duration of the ban after `before` earlier ones: `first`, multiplied by `factor` each time,
/// at most `max`. Constant time for any count, since counts may be imported.
pub fn ban_duration(first: Duration, factor: u32, max: Duration, before: u32) -> Duration {
    let grown = u128::from(factor).saturating_pow(before).saturating_mul(first.as_nanos());
    let grown = grown.min(max.as_nanos());
    const SECOND: u128 = 1_000_000_000;
    let seconds = u64::try_from(grown / SECOND).unwrap_or(u64::MAX);
    // Less than a second, so that it fits.
    Duration::new(seconds, (grown % SECOND) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected result, step by step.
    fn stepped(first: Duration, factor: u32, max: Duration, before: u32) -> Duration {
        (0..before).fold(first, |length, _| length.saturating_mul(factor).min(max)).min(max)
    }

    #[test]
    fn it_grows_as_step_by_step() {
        let (first, max) = (Duration::from_secs(600), Duration::from_secs(86_400));
        for factor in [1, 2, 3, 10, u32::MAX] {
            for first in [
                first,
                Duration::from_millis(1_500),
                Duration::from_nanos(1),
                max,
                2 * max,
                Duration::MAX,
            ] {
                for max in [max, first, Duration::MAX] {
                    for before in 0..200 {
                        let expected = stepped(first, factor, max, before);
                        assert_eq!(
                            ban_duration(first, factor, max, before),
                            expected,
                            "{first:?} {factor} {before}"
                        );
                    }
                }
            }
        }
    }

    /// Step by step, the largest count takes minutes per ban.
    #[test]
    fn it_takes_no_time_whatever_the_number() {
        let (first, max) = (Duration::from_secs(600), Duration::from_secs(86_400));
        let begun = std::time::Instant::now();
        for factor in [1, 2, u32::MAX] {
            for before in [u32::MAX, u32::MAX - 1, 1 << 31, 1 << 16] {
                for _ in 0..1_000 {
                    let length = ban_duration(first, factor, max, std::hint::black_box(before));
                    assert_eq!(length, if factor == 1 { first } else { max });
                }
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}
