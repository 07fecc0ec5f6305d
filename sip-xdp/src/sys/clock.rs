//! The filter's clock (`CLOCK_MONOTONIC`, in nanoseconds) and its relation to the wall clock.
//!
//! Everything that ends, ends by the filter's clock: setting the wall clock neither ends a ban nor
//! makes it eternal. While the machine is suspended that clock stands still, and bans last that
//! much longer.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use sip_xdp_common::abi::layout::NEVER;

/// The filter's time now, in nanoseconds.
pub fn now() -> u64 {
    // The clock has existed since Linux 2.6 and needs no permission.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        .unwrap_or_default()
}

/// The time on the filter's clock at which something ends that lasts `ttl` from now; without a ttl
/// it never does.
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

/// Notices that the wall clock was set, or that the machine was suspended: the wall clock is then
/// further ahead of the filter's clock than before, or less.
#[derive(Debug, Clone)]
pub struct WallWatch {
    /// By how many milliseconds.
    ahead: i64,
}

/// What is less than this, in milliseconds, is no jump: clocks are slewed all the time. Many such
/// steps together are one.
const JUMP: u64 = 2_000;

impl Default for WallWatch {
    fn default() -> Self {
        Self { ahead: ahead() }
    }
}

impl WallWatch {
    /// By how many milliseconds the wall clock was set forward (or back, if negative) since this
    /// was last asked.
    pub fn jump(&mut self) -> Option<i64> {
        self.jump_to(ahead())
    }

    fn jump_to(&mut self, ahead: i64) -> Option<i64> {
        let jump = ahead.saturating_sub(self.ahead);
        (jump.unsigned_abs() >= JUMP).then(|| {
            self.ahead = ahead;
            jump
        })
    }
}

/// By how many milliseconds the wall clock is ahead of the filter's.
fn ahead() -> i64 {
    Timestamp::now().as_millisecond().saturating_sub_unsigned(now() / 1_000_000)
}

/// A time in milliseconds since 1970 that was written when the wall clock was `jump` milliseconds
/// behind what it is now.
pub fn moved(ms: u64, jump: i64) -> u64 {
    ms.saturating_add_signed(jump)
}

/// To milliseconds, so that a time that is computed twice reads the same.
fn round(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond((time.as_nanosecond() + 500_000).div_euclid(1_000_000) as i64)
        .unwrap_or(time)
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
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
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
    fn a_clock_that_is_set_is_noticed_once() {
        const DAY: i64 = 24 * 3_600_000;
        let mut watch = WallWatch { ahead: 5_000 };
        assert_eq!(watch.jump_to(5_000), None);
        assert_eq!(watch.jump_to(6_999), None, "slewed");
        assert_eq!(watch.jump_to(7_000), Some(2_000), "slewed long enough");
        assert_eq!(watch.jump_to(7_000 + DAY), Some(DAY));
        assert_eq!(watch.jump_to(7_000 + DAY), None);
        assert_eq!(watch.jump_to(7_000), Some(-DAY));
        assert_eq!(
            (moved(5, -DAY), moved(DAY as u64, -DAY), moved(1, DAY)),
            (0, 0, DAY as u64 + 1)
        );
        assert_eq!(WallWatch::default().jump(), None);
    }

    #[test]
    fn the_longest_ttl_is_not_never() {
        assert_eq!(after(Some(Duration::MAX)), NEVER - 1);
        assert_eq!(after(None), NEVER);
    }
}
