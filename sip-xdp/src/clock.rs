//! The filter's clock (`CLOCK_MONOTONIC`, in nanoseconds) and its relation to the wall clock.
//!
//! Everything that ends, ends by the filter's clock: setting the wall clock neither ends a ban nor makes it eternal.
//! While the machine is suspended that clock stands still, and bans last that much longer.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use sip_xdp_common::layout::NEVER;

/// The filter's time now, in nanoseconds.
pub fn now() -> u64 {
    // The clock has existed since Linux 2.6 and needs no permission.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        .unwrap_or_default()
}

/// The time on the filter's clock at which something ends that lasts `ttl` from now; without a ttl it never does.
pub fn after(ttl: Option<Duration>) -> u64 {
    ttl.map_or(NEVER, |ttl| later(now(), ttl))
}

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// On the filter's clock, in nanoseconds.
    pub now: u64,
    /// On the wall clock, in milliseconds since 1970.
    pub wall_ms: u64,
}

impl Moment {
    /// This one.
    pub fn present() -> Self {
        Self { now: now(), wall_ms: wall_ms() }
    }

    /// The time on the filter's clock at which something ends that lasts `ttl` from this moment on.
    pub fn after(&self, ttl: Duration) -> u64 {
        later(self.now, ttl)
    }
}

/// The time `ttl` after `now`, which is never [`NEVER`].
fn later(now: u64, ttl: Duration) -> u64 {
    now.saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(NEVER)).min(NEVER - 1)
}

/// A time on the filter's clock as wall-clock time; `None` for what never comes.
pub fn to_wall(time: u64) -> Option<Timestamp> {
    if time == NEVER {
        return None;
    }
    let ahead = i128::from(time) - i128::from(now());
    let ahead = SignedDuration::from_nanos(i64::try_from(ahead).unwrap_or(i64::MAX));
    Some(round(Timestamp::now().checked_add(ahead).unwrap_or(Timestamp::MAX)))
}

/// A wall-clock time on the filter's clock; what has passed becomes 0.
pub fn from_wall(time: Timestamp) -> u64 {
    let ahead = time.duration_since(Timestamp::now()).as_nanos();
    u64::try_from((i128::from(now()) + ahead).max(0)).unwrap_or(NEVER - 1)
}

/// To milliseconds, so that a time that is computed twice reads the same.
fn round(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond((time.as_nanosecond() + 500_000).div_euclid(1_000_000) as i64).unwrap_or(time)
}

/// The wall clock in milliseconds since 1970.
pub fn wall_ms() -> u64 {
    to_ms(Timestamp::now())
}

/// A timestamp in milliseconds since 1970.
pub fn to_ms(time: Timestamp) -> u64 {
    time.as_millisecond().try_into().unwrap_or_default()
}

/// Milliseconds since 1970 as a timestamp.
pub fn from_ms(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree() {
        let then = after(Some(Duration::from_secs(90)));
        let back = from_wall(to_wall(then).unwrap());
        assert!(back.abs_diff(then) < 50_000_000, "{back} {then}");
        assert_eq!(to_wall(NEVER), None);
        assert!(to_wall(NEVER - 1) > to_wall(then), "the far future lies ahead");
        assert_eq!(from_wall(Timestamp::UNIX_EPOCH), 0);
    }

    #[test]
    fn the_longest_ttl_is_not_never() {
        assert_eq!(after(Some(Duration::MAX)), NEVER - 1);
        assert_eq!(after(None), NEVER);
    }
}
