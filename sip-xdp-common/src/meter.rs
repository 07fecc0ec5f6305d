//! Token buckets per source, as the generic cell rate algorithm (ITU-T I.371): one time stamp per bucket, no refill
//! task, no division. A bucket's stamp is the time at which it would be full again; a packet that would push it
//! further than the burst into the future is over the limit and costs nothing.

use bytemuck::{Pod, Zeroable};

use crate::verdict::Message;

/// The shortest time between two events about one source, in [`ticks`]: 50 ms. Twenty a second are enough to tell one
/// sender from many, and bound what a flood can make the daemon read.
const EVENT_INTERVAL: u32 = 48;

/// A limit: `burst / interval` packets at once, then one per `interval`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Limit {
    /// Nanoseconds that one packet costs.
    pub interval: u64,
    /// Nanoseconds that an untouched bucket holds.
    pub burst: u64,
}

impl Limit {
    /// `count` packets in `per` nanoseconds. `count` must be at least 1.
    pub const fn new(count: u32, per: u64) -> Self {
        let interval = per / count as u64;
        // The burst is a whole number of packets, so that rounding never costs the last one.
        Self { interval, burst: interval * count as u64 }
    }

    /// Takes one packet's worth at `now` from a bucket that is full again at `full_at`. Returns the new `full_at`,
    /// or `None` if the packet is over the limit.
    #[inline(always)]
    pub const fn take(&self, full_at: u64, now: u64) -> Option<u64> {
        let from = if full_at > now { full_at } else { now };
        let to = from.saturating_add(self.interval);
        if to > now.saturating_add(self.burst) { None } else { Some(to) }
    }
}

/// The limits of an unknown source.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Limits {
    /// REGISTER requests.
    pub register: Limit,
    /// All requests, REGISTER among them.
    pub requests: Limit,
    /// Responses, keepalives and what cannot be parsed, together.
    pub other: Limit,
}

const _: () = assert!(size_of::<Limits>() == 48);

/// Where limits come from. The kernel reads each of them when it is needed: its stack has no room for all.
pub trait LimitSource {
    /// The limit of REGISTER requests.
    fn register(&self) -> Limit;
    /// The limit of all requests.
    fn requests(&self) -> Limit;
    /// The limit of everything else.
    fn other(&self) -> Limit;
}

impl LimitSource for Limits {
    fn register(&self) -> Limit {
        self.register
    }

    fn requests(&self) -> Limit {
        self.requests
    }

    fn other(&self) -> Limit {
        self.other
    }
}

/// Which of the limits a packet ran into.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// [`Limits::register`].
    Register,
    /// [`Limits::requests`].
    Requests,
    /// [`Limits::other`].
    Other,
    /// The budget that strangers share in a storm ([`crate::storm`]).
    Storm,
}

impl Bucket {
    /// The name in configuration, events and reasons.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Requests => "requests",
            Self::Other => "other",
            Self::Storm => "storm",
        }
    }

    /// The bucket with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Register),
            1 => Some(Self::Requests),
            2 => Some(Self::Other),
            3 => Some(Self::Storm),
            _ => None,
        }
    }
}

/// One tick of the clock of [`ticks`], as a power of two of nanoseconds: 1.05 ms.
const TICK_BITS: u32 = 20;

/// A time in nanoseconds as ticks of 1.05 ms, which begin again after 52 days.
#[inline(always)]
pub const fn ticks(now: u64) -> u32 {
    (now >> TICK_BITS) as u32
}

/// What the kernel remembers of an unknown source.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Meter {
    /// When the bucket of REGISTER requests is full again, in nanoseconds of the filter's clock.
    pub register: u64,
    /// When the bucket of all requests is full again.
    pub requests: u64,
    /// When the bucket of everything else is full again.
    pub other: u64,
    /// When the last event about this source was due, in [`ticks`]; 0 if there was none.
    pub reported: u32,
    /// When the source was first seen, in [`ticks`].
    pub first: u32,
    /// Requests seen, passed or not.
    pub seen: u32,
    /// REGISTER requests seen, passed or not.
    pub registers: u32,
    /// Packets over a limit.
    pub limited: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Meter>() == 48);

/// The answer of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// Within the limits.
    Within,
    /// Over this limit; `report` says whether the daemon should hear of this very packet.
    Over {
        /// The limit.
        bucket: Bucket,
        /// Whether an event is due.
        report: bool,
    },
}

impl Meter {
    /// When the source was first seen, in nanoseconds, if it is `now` less than 52 days later.
    #[inline(always)]
    pub const fn first_seen(&self, now: u64) -> u64 {
        now.saturating_sub((ticks(now).wrapping_sub(self.first) as u64) << TICK_BITS)
    }

    /// The meter of a source that is seen for the first time at `now`.
    #[inline(always)]
    pub fn new(now: u64) -> Self {
        Self { first: ticks(now), ..Self::default() }
    }

    /// Charges one message. A REGISTER needs room in two buckets, and takes from both or from none.
    #[inline(always)]
    pub fn charge(&mut self, message: Message, now: u64, limits: &impl LimitSource) -> Charge {
        if !message.is_request() {
            return match limits.other().take(self.other, now) {
                Some(full_at) => {
                    self.other = full_at;
                    Charge::Within
                }
                None => self.over(Bucket::Other, now),
            };
        }
        self.seen = self.seen.saturating_add(1);
        let Some(requests) = limits.requests().take(self.requests, now) else {
            if matches!(message, Message::Register) {
                self.registers = self.registers.saturating_add(1);
            }
            return self.over(Bucket::Requests, now);
        };
        if matches!(message, Message::Register) {
            self.registers = self.registers.saturating_add(1);
            let Some(register) = limits.register().take(self.register, now) else {
                return self.over(Bucket::Register, now);
            };
            self.register = register;
        }
        self.requests = requests;
        Charge::Within
    }

    #[inline(always)]
    fn over(&mut self, bucket: Bucket, now: u64) -> Charge {
        self.limited = self.limited.saturating_add(1);
        let report = self.reported == 0 || ticks(now).wrapping_sub(self.reported) >= EVENT_INTERVAL;
        if report {
            // Never 0, which is "not yet".
            self.reported = ticks(now).max(1);
        }
        Charge::Over { bucket, report }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;
    const LIMITS: Limits = Limits {
        register: Limit::new(100, 60 * SECOND),
        requests: Limit::new(50, 10 * SECOND),
        other: Limit::new(300, 10 * SECOND),
    };

    /// A start far from zero, as on a host that has been up for a while.
    const START: u64 = 1_000 * SECOND;

    fn passed(messages: impl Iterator<Item = (u64, Message)>) -> usize {
        let mut meter = Meter::new(START);
        messages.filter(|(now, m)| meter.charge(*m, *now, &LIMITS) == Charge::Within).count()
    }

    #[test]
    fn the_very_packet_over_the_limit_is_caught() {
        let mut meter = Meter::new(START);
        for n in 0..50 {
            assert_eq!(meter.charge(Message::Options, START, &LIMITS), Charge::Within, "request {n}");
        }
        let over = Charge::Over { bucket: Bucket::Requests, report: true };
        assert_eq!(meter.charge(Message::Options, START, &LIMITS), over);
        assert_eq!((meter.seen, meter.limited), (51, 1));
    }

    #[test]
    fn a_slow_register_flood_meets_the_register_limit() {
        // Four a second stay under 50 in 10 s, but not under 100 in 60 s.
        let mut meter = Meter::new(START);
        let over = (0..600)
            .map(|n| meter.charge(Message::Register, START + n * SECOND / 4, &LIMITS))
            .find(|charge| *charge != Charge::Within);
        assert_eq!(over, Some(Charge::Over { bucket: Bucket::Register, report: true }));
        assert!((100..=180).contains(&meter.seen), "{}", meter.seen);
    }

    #[test]
    fn keepalives_never_cost_a_request() {
        let keepalives = (0..10_000).map(|_| (START, Message::Keepalive));
        assert_eq!(passed(keepalives), 300);
        let mut meter = Meter::new(START);
        for message in [Message::Keepalive, Message::Response, Message::Unparsed].into_iter().cycle().take(900) {
            meter.charge(message, START, &LIMITS);
        }
        assert_eq!((meter.seen, meter.requests, meter.register), (0, 0, 0));
        assert_eq!(meter.charge(Message::Register, START, &LIMITS), Charge::Within);
    }

    #[test]
    fn events_about_one_source_keep_their_distance() {
        let mut meter = Meter::new(START);
        let reports = (0..2_000)
            .map(|n| meter.charge(Message::Invite, START + n * SECOND / 1_000, &LIMITS))
            .filter(|charge| matches!(charge, Charge::Over { report: true, .. }))
            .count();
        assert!((35..=40).contains(&reports), "{reports} events in two seconds");
    }

    #[test]
    fn the_first_time_is_remembered_across_the_end_of_the_ticks() {
        for start in [START, (1 << 52) - SECOND, u64::from(u32::MAX) << TICK_BITS] {
            let meter = Meter::new(start);
            for later in [0, SECOND, 3_600 * SECOND, 24 * 3_600 * SECOND] {
                assert!(meter.first_seen(start + later).abs_diff(start) < 2 << TICK_BITS, "{start} {later}");
            }
        }
    }

    #[test]
    fn a_refused_register_takes_nothing() {
        let mut meter = Meter::new(START);
        for _ in 0..50 {
            meter.charge(Message::Options, START, &LIMITS);
        }
        let before = meter.register;
        assert!(matches!(meter.charge(Message::Register, START, &LIMITS), Charge::Over { .. }));
        assert_eq!(meter.register, before);
    }

    #[test]
    fn a_clock_that_is_far_along_does_not_overflow() {
        let limit = Limit::new(1, u64::MAX / 2);
        assert_eq!(limit.take(0, u64::MAX - 1), Some(u64::MAX));
        assert_eq!(limit.take(u64::MAX, u64::MAX), Some(u64::MAX));
    }

    proptest! {
        /// Over any stretch of time, a bucket passes at most its burst plus what the rate allows, and a sender that
        /// stays below the rate is never refused.
        #[test]
        fn a_bucket_holds_its_rate(count in 1_u32..500, per_ms in 1_u64..100_000,
                                   gaps in prop::collection::vec(0_u64..2_000_000_000, 1..300)) {
            let limit = Limit::new(count, per_ms * 1_000_000);
            let (mut now, mut full_at, mut passed) = (START, 0, 0_u64);
            for gap in &gaps {
                now += gap;
                if let Some(next) = limit.take(full_at, now) {
                    full_at = next;
                    passed += 1;
                }
            }
            let allowed = u64::from(count) + (now - START) / limit.interval.max(1) + 1;
            prop_assert!(passed <= allowed, "{passed} > {allowed}");

            let (mut now, mut full_at) = (START, 0);
            for _ in 0..gaps.len() {
                now += limit.interval;
                let taken = limit.take(full_at, now);
                prop_assert!(taken.is_some());
                full_at = taken.unwrap_or_default();
            }
        }
    }
}
