//! The filter's clock (`CLOCK_MONOTONIC`, in nanoseconds) and its relation to the wall clock.
//!
//! All expiry is on the filter's clock: setting the wall clock neither ends nor prolongs a ban. The
//! clock stops while the machine is suspended, and bans last that much longer.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};
use sip_xdp_common::abi::layout::NEVER;

/// The current time on the filter's clock, in nanoseconds.
pub fn now() -> u64 {
    // Infallible: the clock has existed since Linux 2.6 and needs no permission.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        .unwrap_or_default()
}

/// The expiry of something that lasts `ttl` from now, on the filter's clock; [`NEVER`] without a
/// ttl.
pub fn after(ttl: Option<Duration>) -> u64 {
    ttl.map_or(NEVER, |ttl| later(now(), ttl))
}

/// One instant on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// On the filter's clock, in nanoseconds.
    pub now: u64,
    /// On the wall clock, in milliseconds since 1970.
    pub wall_ms: u64,
}

impl Moment {
    /// The current instant.
    pub fn present() -> Self {
        Self { now: now(), wall_ms: wall_ms() }
    }

    /// The expiry of something that lasts `ttl` from this instant, on the filter's clock.
    pub fn after(&self, ttl: Duration) -> u64 {
        later(self.now, ttl)
    }
}

/// `now` plus `ttl`, never equal to [`NEVER`].
fn later(now: u64, ttl: Duration) -> u64 {
    now.saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(NEVER)).min(NEVER - 1)
}

/// A time on the filter's clock as wall-clock time; `None` for [`NEVER`].
pub fn to_wall(time: u64) -> Option<Timestamp> {
    if time == NEVER {
        return None;
    }
    let ahead = i128::from(time) - i128::from(now());
    let ahead = SignedDuration::from_nanos(i64::try_from(ahead).unwrap_or(i64::MAX));
    Some(round(Timestamp::now().checked_add(ahead).unwrap_or(Timestamp::MAX)))
}

/// A wall-clock time on the filter's clock; 0 if it has passed.
pub fn from_wall(time: Timestamp) -> u64 {
    let ahead = time.duration_since(Timestamp::now()).as_nanos();
    u64::try_from((i128::from(now()) + ahead).max(0)).unwrap_or(NEVER - 1)
}

/// Detector of wall-clock jumps and suspends, by the difference between the wall clock and the
/// filter's clock.
#[derive(Debug, Clone)]
pub struct WallWatch {
    /// The difference in milliseconds.
    ahead: i64,
}

/// Smallest jump, in milliseconds: clocks are slewed all the time. Accumulated small steps count as
/// one jump.
const JUMP: u64 = 2_000;

impl Default for WallWatch {
    fn default() -> Self {
        Self { ahead: ahead() }
    }
}

impl WallWatch {
    /// Milliseconds by which the wall clock was set forward (negative: back) since the last call.
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

/// Milliseconds by which the wall clock is ahead of the filter's clock.
fn ahead() -> i64 {
    Timestamp::now().as_millisecond().saturating_sub_unsigned(now() / 1_000_000)
}

/// A time in milliseconds since 1970, corrected for a later `jump` of the wall clock.
pub fn moved(ms: u64, jump: i64) -> u64 {
    ms.saturating_add_signed(jump)
}

/// To milliseconds, so that repeated conversions give equal results.
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
