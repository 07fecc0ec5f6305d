//! Served sources: the server processes their calls without credentials, such as those of a
//! carrier. Each address earns it separately. A carrier is one before, while its first calls ring:
//! a source whose calls the server works on is no flood.

use std::collections::{HashMap, HashSet};

use sip_xdp_common::ip_key::IpKey;

use super::digest::digest;

/// Number of different numbers that must be processed.
const ENOUGH: usize = 5;

/// Maximum number of remembered sources, and of numbers of each.
const MAX_SOURCES: usize = 4_096;
const MAX_NUMBERS: usize = 256;

/// Number of last characters that identify a number.
const DIGITS: usize = 9;

/// Calls that the server works on, or took, from which on a source may be a carrier.
const FEW_CALLS: usize = 5;

/// How long a call may ring (timer C of RFC 3261, section 16.6), in nanoseconds.
const RINGING_NS: u64 = 180_000_000_000;

/// How long a number counts, and how long a source is served after its last one, in nanoseconds.
const DAY_NS: u64 = 24 * 3_600_000_000_000;

#[derive(Debug, Default)]
struct Calls {
    /// Digests of numbers, with the time at which each last counted.
    processed: HashMap<u64, u64>,
    refused: HashMap<u64, u64>,
    /// Answered calls without acknowledgement: Call-ID and number.
    open: Vec<(u64, u64)>,
    /// Calls with a provisional response and no final one, by Call-ID: time and number.
    ringing: HashMap<u64, (u64, u64)>,
    /// Time at which the server last took a call, or at which the first one rang.
    taken_at: u64,
    /// Numbers of calls that the server took and refused, halved every [`RINGING_NS`], last at
    /// `halved_at`.
    ended: [u32; 2],
    halved_at: u64,
    /// Start and end of being served.
    since: u64,
    until: u64,
    last: u64,
}

/// Served sources and candidates.
#[derive(Debug, Default)]
pub(super) struct Served {
    sources: HashMap<IpKey, Calls>,
}

impl Served {
    /// Processes a call without credentials that was processed: 2xx, 480, 486, 487 or 603. Returns
    /// the end, if the source is served: acknowledgements are then no longer needed.
    pub(super) fn process(
        &mut self,
        source: IpKey,
        call: u64,
        number: &str,
        now: u64,
    ) -> Option<u64> {
        self.make_room(&source);
        let number = identity(number);
        let calls = self.sources.entry(source).or_default();
        calls.last = now;
        if calls.until > now {
            calls.count(number, now);
            return calls.renew(now);
        }
        if calls.open.len() >= MAX_NUMBERS {
            calls.open.remove(0);
        }
        calls.open.push((call, number));
        None
    }

    /// Processes an acknowledgement. Returns as [`Served::process`] does.
    pub(super) fn acknowledge(&mut self, source: &IpKey, call: u64, now: u64) -> Option<u64> {
        let calls = self.sources.get_mut(source)?;
        let at = calls.open.iter().position(|(open, _)| *open == call)?;
        let (_, number) = calls.open.swap_remove(at);
        calls.count(number, now);
        calls.renew(now)
    }

    /// Processes a response to a call without credentials.
    pub(super) fn answered(
        &mut self,
        source: IpKey,
        call: u64,
        number: &str,
        status: u16,
        now: u64,
    ) {
        let is_taken = matches!(status, 200..=299 | 480 | 486 | 487 | 603);
        if is_taken || status < 200 {
            self.make_room(&source);
            let calls = self.sources.entry(source).or_default();
            calls.last = now;
            if status < 200 {
                calls.ring(call, identity(number), now);
                return;
            }
        }
        let is_refused = matches!(status, 401 | 403 | 404 | 407 | 484 | 604);
        if let Some(calls) = self.sources.get_mut(&source) {
            calls.conclude(call, (is_taken || is_refused).then_some(is_taken), now);
        }
    }

    /// What refused calls are compared with: different numbers whose calls ring, or that the server
    /// took within a day, acknowledged or not. What the kernel limits is acknowledged late.
    pub(super) fn carried(&self, source: &IpKey, now: u64) -> usize {
        self.sources.get(source).map_or(0, |calls| calls.carried(now))
    }

    /// Whether a source may be a carrier that is not served yet: five calls ring or were taken
    /// lately, even if all were to the number of a call center; one was taken since calls had the
    /// time to ring; and at most twice as many calls were refused as there are carried numbers.
    pub(super) fn is_carrying(&self, source: &IpKey, now: u64) -> bool {
        self.sources.get(source).is_some_and(|calls| {
            let [taken, refused] = calls.ended.map(|count| count as usize);
            calls.ringing(now).count() + taken >= FEW_CALLS
                && now.saturating_sub(calls.taken_at) < RINGING_NS
                && refused <= 2 * calls.carried(now)
        })
    }

    /// Processes a refused call.
    pub(super) fn refuse(&mut self, source: &IpKey, number: &str, now: u64) {
        if let Some(calls) = self.sources.get_mut(source)
            && (calls.refused.len() < MAX_NUMBERS || calls.refused.contains_key(&identity(number)))
        {
            calls.refused.insert(identity(number), now);
        }
    }

    /// Number of different numbers processed for a source within a day.
    pub(super) fn numbers(&self, source: &IpKey, now: u64) -> usize {
        self.sources.get(source).map_or(0, |calls| lately(&calls.processed, now))
    }

    pub(super) fn is_served(&self, source: &IpKey, now: u64) -> bool {
        self.until(source) > now
    }

    /// End of being served; 0 if it never was.
    pub(super) fn until(&self, source: &IpKey) -> u64 {
        self.sources.get(source).map_or(0, |calls| calls.until)
    }

    /// Whether a source has been served for a day or longer.
    pub(super) fn is_established(&self, source: &IpKey, now: u64) -> bool {
        self.sources
            .get(source)
            .is_some_and(|calls| calls.until > now && now.saturating_sub(calls.since) >= DAY_NS)
    }

    /// Ends it: the source has offended.
    pub(super) fn end(&mut self, source: &IpKey) {
        self.sources.remove(source);
    }

    /// Number of served sources.
    pub(super) fn count(&self, now: u64) -> usize {
        self.sources.values().filter(|calls| calls.until > now).count()
    }

    /// All served sources, with start and end.
    pub(super) fn all(&self, now: u64) -> impl Iterator<Item = (IpKey, u64, u64)> + '_ {
        let served = self.sources.iter().filter(move |(_, calls)| calls.until > now);
        served.map(|(source, calls)| (*source, calls.since, calls.until))
    }

    pub(super) fn restore(&mut self, source: IpKey, since: u64, until: u64) {
        self.make_room(&source);
        let calls = self.sources.entry(source).or_default();
        (calls.since, calls.until, calls.last) = (since, until, since);
    }

    pub(super) fn tidy(&mut self, now: u64) {
        self.sources.retain(|_, calls| {
            calls.processed.retain(|_, at| now.saturating_sub(*at) < DAY_NS);
            calls.refused.retain(|_, at| now.saturating_sub(*at) < DAY_NS);
            calls.until > now || now.saturating_sub(calls.last) < DAY_NS
        });
    }

    /// Drops the least recent source that is not served, first of those that the server took no
    /// calls of: anybody's may ring.
    fn make_room(&mut self, source: &IpKey) {
        if self.sources.len() < MAX_SOURCES || self.sources.contains_key(source) {
            return;
        }
        let least = self.sources.iter().min_by_key(|(_, calls)| {
            let has_none = calls.processed.is_empty() && calls.open.is_empty();
            (calls.until, !has_none, calls.last)
        });
        if let Some(least) = least.map(|(source, _)| *source) {
            self.sources.remove(&least);
        }
    }
}

impl Calls {
    /// Numbers of calls that ring.
    fn ringing(&self, now: u64) -> impl Iterator<Item = u64> + '_ {
        let rings = move |(at, _): &&(u64, u64)| now.saturating_sub(*at) < RINGING_NS;
        self.ringing.values().filter(rings).map(|(_, number)| *number)
    }

    fn carried(&self, now: u64) -> usize {
        let taken = self.processed.iter().filter(|(_, at)| now.saturating_sub(**at) < DAY_NS);
        let taken = taken.map(|(number, _)| *number);
        let open = self.open.iter().map(|(_, number)| *number);
        taken.chain(open).chain(self.ringing(now)).collect::<HashSet<u64>>().len()
    }

    /// Processes a provisional response.
    fn ring(&mut self, call: u64, number: u64, now: u64) {
        self.ringing.retain(|_, (at, _)| now.saturating_sub(*at) < RINGING_NS);
        if self.ringing.is_empty() {
            self.taken_at = now;
        }
        self.halve(now);
        if self.ringing.len() < MAX_NUMBERS {
            self.ringing.entry(call).or_insert((now, number));
        }
    }

    /// Processes a final response: the server took the call, refused it, or neither.
    fn conclude(&mut self, call: u64, is_taken: Option<bool>, now: u64) {
        self.ringing.remove(&call);
        self.halve(now);
        match is_taken {
            Some(true) => (self.taken_at, self.ended[0]) = (now, self.ended[0] + 1),
            Some(false) => self.ended[1] += 1,
            None => {}
        }
    }

    /// Halves the numbers of calls that ended, for each interval that has passed.
    fn halve(&mut self, now: u64) {
        let halvings = now.saturating_sub(self.halved_at) / RINGING_NS;
        if halvings > 0 {
            self.ended = self.ended.map(|count| count >> halvings.min(31));
            self.halved_at = now;
        }
    }

    fn count(&mut self, number: u64, now: u64) {
        if self.processed.len() < MAX_NUMBERS || self.processed.contains_key(&number) {
            self.processed.insert(number, now);
        }
    }

    fn renew(&mut self, now: u64) -> Option<u64> {
        let (processed, refused) = (lately(&self.processed, now), lately(&self.refused, now));
        let is_served = self.until > now;
        if processed <= refused || processed < ENOUGH && !is_served {
            return None;
        }
        if !is_served {
            self.since = now;
            self.open.clear();
        }
        self.until = now + DAY_NS;
        Some(self.until)
    }
}

/// Digest of the last digits of a number: callers who look for a way out try one number with
/// several prefixes.
fn identity(number: &str) -> u64 {
    let start = number.char_indices().rev().nth(DIGITS - 1).map_or(0, |(at, _)| at);
    digest(&number[start..])
}

fn lately(numbers: &HashMap<u64, u64>, now: u64) -> usize {
    numbers.values().filter(|at| now.saturating_sub(**at) < DAY_NS).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn five_numbers_that_were_processed_and_acknowledged() {
        let (carrier, mut served) = (IpKey::v4(1), Served::default());
        for n in 0..5 {
            served.process(carrier, n, "0301", n * SECOND_NS);
            assert_eq!(
                served.acknowledge(&carrier, n, n * SECOND_NS),
                None,
                "one number, once a day"
            );
        }
        for n in 10..14 {
            assert_eq!(served.process(carrier, n, &n.to_string(), n * SECOND_NS), None);
            assert!(!served.is_served(&carrier, n * SECOND_NS), "not acknowledged");
            let until = served.acknowledge(&carrier, n, n * SECOND_NS);
            assert_eq!(until.is_some(), n == 13);
        }
        assert!(served.is_served(&carrier, 20 * SECOND_NS));
        assert!(!served.is_served(&IpKey::v4(2), 20 * SECOND_NS), "each address alone");
        assert!(!served.is_established(&carrier, 20 * SECOND_NS));
        assert!(!served.is_served(&carrier, 13 * SECOND_NS + DAY_NS));
    }

    #[test]
    fn who_is_refused_more_often_is_not_served() {
        let (caller, mut served) = (IpKey::v4(1), Served::default());
        served.process(caller, 99, "x", 1);
        (0..9).for_each(|n| served.refuse(&caller, &format!("no {n}"), 1));
        for n in 0..9 {
            served.process(caller, n, &format!("yes {n}"), 1);
            assert_eq!(served.acknowledge(&caller, n, 1), None);
        }
        served.process(caller, 10, "one more", 1);
        assert!(served.acknowledge(&caller, 10, 1).is_some());
    }

    #[test]
    fn one_number_under_many_prefixes_is_one() {
        let (caller, mut served) = (IpKey::v4(1), Served::default());
        for (n, prefix) in (0..).zip(["00", "011", "9011", "900", "+", "000", "7011"]) {
            served.process(caller, n, &format!("{prefix}442071838750"), n * SECOND_NS);
            assert_eq!(served.acknowledge(&caller, n, n * SECOND_NS), None);
        }
        assert_eq!(served.numbers(&caller, 10 * SECOND_NS), 1);
    }

    #[test]
    fn calls_that_ring_for_long_may_be_a_carriers() {
        let (carrier, mut served) = (IpKey::v4(1), Served::default());
        let answered = |served: &mut Served, n: u64, status: u16, now: u64| {
            served.answered(carrier, n, &n.to_string(), status, now);
        };
        for n in 0..2_000 {
            let now = n * SECOND_NS / 10;
            answered(&mut served, n, 100, now);
            // Three minutes without a call that was taken.
            assert_eq!(served.is_carrying(&carrier, now), (4..1_800).contains(&n), "{n}");
        }
        let now = 200 * SECOND_NS;
        answered(&mut served, 2_000, 500, now);
        assert!(!served.is_carrying(&carrier, now), "neither taken nor refused");
        answered(&mut served, 1_999, 486, now);
        served.process(carrier, 1_999, "1999", now);
        assert!(served.is_carrying(&carrier, now));
        // Wrong numbers, and more of them than a carrier has.
        let carried = served.carried(&carrier, now) as u64;
        (0..2 * carried).for_each(|n| answered(&mut served, 3_000 + n, 404, now));
        assert!(served.is_carrying(&carrier, now), "{carried} carried");
        answered(&mut served, 4_000, 404, now);
        assert!(!served.is_carrying(&carrier, now));
        assert!(!served.is_carrying(&IpKey::v4(2), now));
        // An hour later it may begin again, with calls to one number.
        let later = now + 3_600 * SECOND_NS;
        (0..5).for_each(|n| served.answered(carrier, 5_000 + n, "0", 180, later));
        assert!(served.is_carrying(&carrier, later));
        // Which pay for no more than two other numbers.
        served.end(&carrier);
        (0..50).for_each(|n| served.answered(carrier, n, "0", 180, later));
        (0..2).for_each(|n| answered(&mut served, 100 + n, 404, later));
        assert!(served.is_carrying(&carrier, later));
        answered(&mut served, 102, 404, later);
        assert!(!served.is_carrying(&carrier, later));
    }

    #[test]
    fn calls_that_only_ring_displace_no_candidate() {
        let (carrier, mut served) = (IpKey::v4(1), Served::default());
        for n in 0..5 {
            served.process(carrier, n, &n.to_string(), n);
            assert_eq!(served.acknowledge(&carrier, n, n).is_some(), n == 4);
            let forged = (0..2 * MAX_SOURCES as u32).map(|n| IpKey::v4(1_000 + n));
            forged.for_each(|source| served.answered(source, 1, "1", 100, n + 1));
        }
        assert!(served.sources.len() <= MAX_SOURCES);
    }

    #[test]
    fn memory_is_bounded() {
        let mut served = Served::default();
        for n in 0..10_000 {
            (0..300).take(if n == 0 { 300 } else { 1 }).for_each(|m| {
                served.answered(IpKey::v4(n), m, "1", 180, u64::from(n));
                served.process(IpKey::v4(n), m, &m.to_string(), u64::from(n));
            });
        }
        assert!(served.sources.len() <= MAX_SOURCES);
        assert!(served.sources.values().all(|calls| calls.ringing.len() <= MAX_NUMBERS));
    }
}
