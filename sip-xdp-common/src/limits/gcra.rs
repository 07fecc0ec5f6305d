//! Token buckets per source, as the generic cell rate algorithm (ITU-T I.371): one timestamp per
//! bucket, no refill task, no division. The timestamp is the time at which the bucket is full; a
//! packet that would move it further into the future than the burst is over the limit and costs
//! nothing.
//!
//! More than 400 lines: 200 of them are tests.

use bytemuck::{Pod, Zeroable};

use crate::verdict::Message;

/// A limit in nanoseconds: `burst / interval` packets at once, then one per `interval`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Limit {
    /// Nanoseconds that one packet costs.
    pub interval: u64,
    /// Nanoseconds that a full bucket holds.
    pub burst: u64,
}

impl Limit {
    /// `count` packets in `per` nanoseconds. `count` must be at least 1.
    pub const fn new(count: u32, per: u64) -> Self {
        let interval = per / count as u64;
        // The burst is a whole number of packets, so that rounding never costs the last one.
        Self { interval, burst: interval * count as u64 }
    }

    /// Takes one packet at `now` from a bucket that is full at `full_at`. Returns the new
    /// `full_at`, or `None` if the packet is over the limit.
    #[inline(always)]
    pub const fn take(&self, full_at: u64, now: u64) -> Option<u64> {
        let from = if full_at > now { full_at } else { now };
        let to = from.saturating_add(self.interval);
        if to > now.saturating_add(self.burst) { None } else { Some(to) }
    }
}

/// One tick is 2^16 ns (66 us).
pub const TICK_BITS: u32 = 16;

/// A time in nanoseconds as ticks of 66 us; 32 bits wrap after 78 hours.
#[inline(always)]
pub const fn ticks(now: u64) -> u32 {
    (now >> TICK_BITS) as u32
}

/// A per-source limit in ticks, which keeps a meter small. Its error grows with the rate (1 % at
/// 150 packets per second, 10 % at 1,500; never stricter than configured), and it allows at most
/// one packet per tick.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Pace {
    /// Ticks that one packet costs; 0 for no limit.
    pub interval: u32,
    /// Ticks that a full bucket holds: at most 2^31.
    pub burst: u32,
}

/// The largest burst in ticks: half of the range before ticks wrap.
const MAX_BURST: u64 = 1 << 31;

/// The greatest age of a timestamp in ticks: 24 h, since user space refreshes the meters every hour
/// ([`Meter::refreshed`]). Ticks wrap after 78 h and a bucket holds at most 39 h, so a timestamp of
/// up to 25 h is never mistaken for a future one. Without the refresh a source that was silent for
/// 54 to 78 h would be refused under a limit per day.
pub const OLDEST: u32 = ticks(24 * 3_600 * 1_000_000_000);

impl Pace {
    /// No limit.
    pub const NONE: Self = Self { interval: 0, burst: 0 };

    /// `count` packets, at least 1, in `per` nanoseconds, at most 39 hours.
    pub const fn new(count: u32, per: u64) -> Self {
        Self::with_burst(count, per, count)
    }

    /// As [`Pace::new`], with `burst` packets at once.
    pub const fn with_burst(count: u32, per: u64, burst: u32) -> Self {
        // Rounded down, so that a source at the configured rate is never refused.
        let interval = (per / count as u64) >> TICK_BITS;
        let interval = if interval == 0 { 1 } else { interval };
        let ticks = interval * burst as u64;
        let ticks = if ticks > MAX_BURST { MAX_BURST } else { ticks };
        Self { interval: interval as u32, burst: ticks as u32 }
    }

    /// This limit times 2^`scale`, in burst and rate, as far as ticks can express it.
    #[inline(always)]
    #[must_use]
    pub const fn scaled(&self, scale: u64) -> Self {
        let interval = self.interval >> (scale & 15);
        Self { interval: if interval == 0 { 1 } else { interval }, burst: self.burst }
    }

    /// Takes one packet at `now` from a bucket that is full at `full_at`. Returns the new
    /// `full_at`, or `None` if the packet is over the limit. A `full_at` further ahead than the
    /// burst has wrapped: the bucket is full.
    #[inline(always)]
    pub const fn take(&self, full_at: u32, now: u32) -> Option<u32> {
        let ahead = full_at.wrapping_sub(now);
        let from = if ahead > self.burst { 0 } else { ahead };
        let to = from + self.interval;
        if to > self.burst { None } else { Some(now.wrapping_add(to)) }
    }

    /// Takes `count` packets' worth at once, or all that a full bucket holds if that is less: what
    /// is larger than the bucket passes when it is full.
    #[inline(always)]
    pub const fn take_many(&self, count: u32, full_at: u32, now: u32) -> Option<u32> {
        let cost = self.interval.saturating_mul(count);
        let cost = if cost > self.burst { self.burst } else { cost };
        Self { interval: cost, burst: self.burst }.take(full_at, now)
    }

    /// Packets that a bucket which is full at `full_at` would pass at once at `now`.
    pub const fn left(&self, full_at: u32, now: u32) -> u32 {
        let ahead = full_at.wrapping_sub(now);
        let from = if ahead > self.burst { 0 } else { ahead };
        match (self.burst - from).checked_div(self.interval) {
            Some(left) => left,
            // No limit.
            None => u32::MAX,
        }
    }

    /// Packets that a full bucket passes at once.
    pub const fn whole(&self) -> u32 {
        self.left(0, 0)
    }
}

/// Bytes of [`STREAM`]'s unit.
pub const STREAM_UNIT: u32 = 64;

/// Bytes of TCP payload of an unknown source: 8 KiB at once, then 8 KiB/s, in [`STREAM_UNIT`]s. The
/// daemon bans a guesser within 10 ms of the last guess that it may make; until then a server would
/// answer all guesses that stand in its buffer. What is dropped is sent again, more slowly.
pub const STREAM: Pace = Pace::new(128, 1_000_000_000);

/// The limits of an unknown source.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Limits {
    /// REGISTER requests.
    pub register: Pace,
    /// All requests, REGISTER among them.
    pub requests: Pace,
    /// Responses, keepalives and unparsed payloads, together.
    pub other: Pace,
    /// First fragments, and messages longer than a sample ([`crate::abi::layout::HEAD`]), together.
    pub fragments: Pace,
    /// TCP connections, by their SYN.
    pub connections: Pace,
    /// TCP payload, in [`STREAM_UNIT`]s: [`STREAM`], or none.
    pub stream: Pace,
}

const _: () = assert!(size_of::<Limits>() == 48);

/// A source of limits. The kernel loads each field when it is needed.
pub trait LimitSource {
    /// Limit of REGISTER requests.
    fn register(&self) -> Pace;
    /// Limit of all requests.
    fn requests(&self) -> Pace;
    /// Limit of everything else.
    fn other(&self) -> Pace;
    /// Limit of first fragments and of messages longer than a sample.
    fn fragments(&self) -> Pace;
    /// Limit of TCP connections.
    fn connections(&self) -> Pace;
    /// Limit of TCP payload, in [`STREAM_UNIT`]s.
    fn stream(&self) -> Pace;
}

impl LimitSource for Limits {
    fn register(&self) -> Pace {
        self.register
    }

    fn requests(&self) -> Pace {
        self.requests
    }

    fn other(&self) -> Pace {
        self.other
    }

    fn fragments(&self) -> Pace {
        self.fragments
    }

    fn connections(&self) -> Pace {
        self.connections
    }

    fn stream(&self) -> Pace {
        self.stream
    }
}

/// The limit that a packet exceeded.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// [`Limits::register`].
    Register,
    /// [`Limits::requests`].
    Requests,
    /// [`Limits::other`].
    Other,
    /// The budget shared by unknown sources in a storm ([`crate::limits::storm`]).
    Storm,
    /// [`Limits::fragments`].
    Fragments,
    /// [`Limits::connections`].
    Connections,
    /// [`Limits::stream`].
    Stream,
}

impl LimitKind {
    /// Whether it is one of TCP segments.
    pub const fn is_of_segments(self) -> bool {
        matches!(self, Self::Connections | Self::Stream)
    }

    /// The name in configuration, events and reasons.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Requests => "requests",
            Self::Other => "other",
            Self::Storm => "storm",
            Self::Fragments => "fragments",
            Self::Connections => "connections",
            Self::Stream => "stream",
        }
    }

    /// The limit with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Register),
            1 => Some(Self::Requests),
            2 => Some(Self::Other),
            3 => Some(Self::Storm),
            4 => Some(Self::Fragments),
            5 => Some(Self::Connections),
            6 => Some(Self::Stream),
            _ => None,
        }
    }
}

/// The meter of an unknown source: 16 bytes, a quarter of a cache line. Times in [`ticks`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Meter {
    /// Part of the source's hash, to identify it; 0 for a free meter.
    pub mark: u32,
    /// Time at which the bucket of all requests is full.
    pub requests: u32,
    /// Time at which the bucket of REGISTER requests is full.
    pub register: u32,
    /// Time at which the bucket of everything else is full.
    pub other: u32,
}

const _: () = assert!(size_of::<Meter>() == 16);

impl Meter {
    /// The meter of a source that is seen for the first time at `now`.
    #[inline(always)]
    pub const fn new(mark: u32, now: u32) -> Self {
        Self { mark, requests: now, register: now, other: now }
    }

    /// Charges one message. Returns the exceeded limit, if any. A REGISTER takes from two buckets,
    /// or from neither.
    #[inline(always)]
    pub fn charge(
        &mut self,
        message: Message,
        now: u32,
        limits: &impl LimitSource,
    ) -> Option<LimitKind> {
        if !message.is_request() {
            let Some(full_at) = limits.other().take(self.other, now) else {
                return Some(LimitKind::Other);
            };
            self.other = full_at;
            return None;
        }
        let Some(requests) = limits.requests().take(self.requests, now) else {
            return Some(LimitKind::Requests);
        };
        if matches!(message, Message::Register) {
            let Some(register) = limits.register().take(self.register, now) else {
                return Some(LimitKind::Register);
            };
            self.register = register;
        }
        self.requests = requests;
        None
    }

    /// Charges a message of a known source, of any kind. Returns whether it is within the limit.
    #[inline(always)]
    pub const fn charge_known(&mut self, now: u32, limit: &Pace) -> bool {
        match limit.take(self.requests, now) {
            Some(full_at) => {
                self.requests = full_at;
                true
            }
            None => false,
        }
    }

    /// Notes that its source is in use at `now`, so that it is not the first to be replaced. A
    /// bucket that was full before is full now.
    #[inline(always)]
    pub const fn touch(&mut self, now: u32) {
        // The upper half of the range is the future: such a bucket is not full yet.
        if now.wrapping_sub(self.other) <= u32::MAX / 2 {
            self.other = now;
        }
        if now.wrapping_sub(self.requests) <= u32::MAX / 2 {
            self.requests = now;
        }
    }

    /// This meter with timestamps that cannot wrap: one older than [`OLDEST`] is moved up to it.
    /// Its bucket has been full since, so nothing else changes.
    pub const fn refreshed(self, now: u32) -> Self {
        const fn newer(stamp: u32, now: u32) -> u32 {
            let age = now.wrapping_sub(stamp);
            // The other half of the range lies in the future.
            if age > OLDEST && age < MAX_BURST as u32 { now.wrapping_sub(OLDEST) } else { stamp }
        }
        let Self { mark, requests, register, other } = self;
        Self {
            mark,
            requests: newer(requests, now),
            register: newer(register, now),
            other: newer(other, now),
        }
    }

    /// Ticks since all of its buckets became full at `now`: the replacement order.
    #[inline(always)]
    pub const fn rested(&self, now: u32) -> u32 {
        let [requests, other] = [now.wrapping_sub(self.requests), now.wrapping_sub(self.other)];
        // The upper half of the range is the future: such a bucket is not full yet. REGISTER
        // requests also count as requests.
        let requests = if requests > u32::MAX / 2 { 0 } else { requests };
        let other = if other > u32::MAX / 2 { 0 } else { other };
        if requests < other { requests } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;
    const LIMITS: Limits = Limits {
        register: Pace::new(100, 60 * SECOND),
        requests: Pace::new(50, 10 * SECOND),
        other: Pace::new(300, 10 * SECOND),
        fragments: Pace::new(10, 10 * SECOND),
        connections: Pace::new(60, 10 * SECOND),
        stream: STREAM,
    };

    /// A start far from zero, as on a host with some uptime.
    const START: u64 = 1_000 * SECOND;

    fn passed(messages: impl Iterator<Item = (u64, Message)>) -> usize {
        let mut meter = Meter::new(1, ticks(START));
        messages.filter(|(now, m)| meter.charge(*m, ticks(*now), &LIMITS).is_none()).count()
    }

    #[test]
    fn the_very_packet_over_the_limit_is_caught() {
        let mut meter = Meter::new(1, ticks(START));
        for n in 0..50 {
            assert_eq!(meter.charge(Message::Options, ticks(START), &LIMITS), None, "request {n}");
        }
        assert_eq!(
            meter.charge(Message::Options, ticks(START), &LIMITS),
            Some(LimitKind::Requests)
        );
    }

    #[test]
    fn the_remainder_equals_what_passes() {
        let pace = LIMITS.requests;
        assert_eq!(pace.whole(), 50);
        let (mut full_at, now) = (ticks(START), ticks(START));
        for passed in 0..50 {
            assert_eq!(pace.left(full_at, now), 50 - passed);
            full_at = pace.take(full_at, now).unwrap();
        }
        assert_eq!((pace.left(full_at, now), pace.take(full_at, now)), (0, None));
        assert_eq!(pace.left(full_at, ticks(START + 5 * SECOND)), 25);
        assert_eq!(pace.left(full_at, ticks(START + 3_600 * SECOND)), 50);
    }

    #[test]
    fn a_slow_register_flood_meets_the_register_limit() {
        // Four per second stay below 50 in 10 s, but not below 100 in 60 s.
        let mut meter = Meter::new(1, ticks(START));
        let over = (0..600)
            .map(|n| (n, meter.charge(Message::Register, ticks(START + n * SECOND / 4), &LIMITS)))
            .find(|(_, over)| over.is_some());
        assert!(
            over.is_some_and(
                |(n, over)| (100..=180).contains(&n) && over == Some(LimitKind::Register)
            ),
            "{over:?}"
        );
    }

    #[test]
    fn keepalives_never_cost_a_request() {
        let keepalives = (0..10_000).map(|_| (START, Message::Keepalive));
        assert_eq!(passed(keepalives), 300);
        let mut meter = Meter::new(1, ticks(START));
        for message in
            [Message::Keepalive, Message::Response, Message::Unparsed].into_iter().cycle().take(900)
        {
            meter.charge(message, ticks(START), &LIMITS);
        }
        assert_eq!((meter.requests, meter.register), (ticks(START), ticks(START)));
        assert_eq!(meter.charge(Message::Register, ticks(START), &LIMITS), None);
    }

    #[test]
    fn a_refused_register_takes_nothing() {
        let mut meter = Meter::new(1, ticks(START));
        for _ in 0..50 {
            meter.charge(Message::Options, ticks(START), &LIMITS);
        }
        let before = meter;
        assert!(meter.charge(Message::Register, ticks(START), &LIMITS).is_some());
        assert_eq!(meter, before);
    }

    #[test]
    fn a_clock_that_is_far_along_does_not_overflow() {
        let limit = Limit::new(1, u64::MAX / 2);
        assert_eq!(limit.take(0, u64::MAX - 1), Some(u64::MAX));
        assert_eq!(limit.take(u64::MAX, u64::MAX), Some(u64::MAX));
        let longest = Pace::new(1, 24 * 3_600 * SECOND);
        assert_eq!(longest.take(u32::MAX, u32::MAX), Some(longest.interval - 1));
    }

    #[test]
    fn ticks_may_come_round() {
        // Silence of a minute, an hour, two days, three and a quarter days: the bucket is full each
        // time.
        for silent in [60, 3_600, 48 * 3_600, 78 * 3_600] {
            let mut meter = Meter::new(1, ticks(START));
            for _ in 0..60 {
                meter.charge(Message::Options, ticks(START), &LIMITS);
            }
            let later = ticks(START + silent * SECOND);
            assert_eq!(meter.charge(Message::Options, later, &LIMITS), None, "after {silent} s");
        }
    }

    /// A source within a limit of a long interval is never refused, whatever the length of its
    /// silence.
    #[test]
    fn a_limit_per_day_survives_that_ticks_begin_again() {
        const HOUR: u64 = 3_600 * SECOND;
        for per in [HOUR, 12 * HOUR, 24 * HOUR, 39 * HOUR] {
            for count in [1, 4, 1_000] {
                let pace = Pace::new(count, per);
                let limits = Limits { register: pace, requests: pace, ..LIMITS };
                for silent in 40..320 {
                    let mut meter = Meter::new(1, ticks(START));
                    for message in [Message::Register, Message::Keepalive] {
                        assert_eq!(meter.charge(message, ticks(START), &limits), None);
                    }
                    for hour in 1..=silent {
                        meter = meter.refreshed(ticks(START + hour * HOUR));
                    }
                    let later = ticks(START + silent * HOUR + HOUR / 2);
                    for message in [Message::Register, Message::Keepalive] {
                        let over = meter.charge(message, later, &limits);
                        assert_eq!(over, None, "{count} per {} h after {silent} h", per / HOUR);
                    }
                }
            }
        }
    }

    #[test]
    fn refreshing_changes_nothing_that_counts() {
        let now = ticks(START);
        for (ahead, unchanged) in
            [(0, true), (1 << 30, true), (u32::MAX, true), (OLDEST.wrapping_neg(), true)]
        {
            let meter =
                Meter { mark: 5, requests: now.wrapping_add(ahead), register: now, other: now };
            assert_eq!(meter.refreshed(now) == meter, unchanged, "{ahead}");
        }
        let old = Meter::new(5, now.wrapping_sub(OLDEST + 1)).refreshed(now);
        assert_eq!((old.rested(now), old.mark), (OLDEST, 5));
    }

    #[test]
    fn the_one_that_rested_longest_is_missed_least() {
        let mut busy = Meter::new(1, ticks(START));
        busy.charge(Message::Options, ticks(START + 10 * SECOND), &LIMITS);
        let idle = Meter::new(1, ticks(START + 5 * SECOND));
        let mut alive = Meter::new(1, ticks(START));
        alive.charge(Message::Keepalive, ticks(START + 11 * SECOND), &LIMITS);
        let now = ticks(START + 12 * SECOND);
        assert!(idle.rested(now) > busy.rested(now));
        assert!(busy.rested(now) > alive.rested(now), "keepalives count as well");
        assert_eq!(Meter::new(1, now + 5).rested(now), 0);
    }

    proptest! {
        /// Over any period a bucket passes at most its burst plus its rate, and a sender below the
        /// rate is never refused.
        #[test]
        fn a_bucket_holds_its_rate(count in 1_u32..500, per_ms in 1_u64..100_000,
                                   gaps in prop::collection::vec(0_u64..2_000_000_000, 1..300)) {
            let pace = Pace::new(count, per_ms * 1_000_000);
            let (mut now, mut full_at, mut passed) = (START, ticks(START), 0_u64);
            for gap in &gaps {
                now += gap;
                if let Some(next) = pace.take(full_at, ticks(now)) {
                    full_at = next;
                    passed += 1;
                }
            }
            let interval = u64::from(pace.interval) << TICK_BITS;
            let allowed = u64::from(count) + (now - START) / interval + 2;
            prop_assert!(passed <= allowed, "{passed} > {allowed}");

            let (mut now, mut full_at) = (ticks(START), ticks(START));
            for _ in 0..gaps.len() {
                now = now.wrapping_add(pace.interval);
                let taken = pace.take(full_at, now);
                prop_assert!(taken.is_some());
                full_at = taken.unwrap_or_default();
            }
        }

        /// The error that ticks introduce.
        #[test]
        fn the_rate_is_the_wanted_one(per_second in 1_u32..1_500) {
            let pace = Pace::new(per_second, SECOND);
            let wanted = SECOND as f64 / f64::from(per_second);
            let got = f64::from(pace.interval) * f64::from(1 << TICK_BITS);
            let tolerance = if per_second <= 150 { 0.01 } else { 0.1 };
            prop_assert!((got / wanted - 1.0).abs() < tolerance, "{got} for {wanted}");
        }
    }
}
