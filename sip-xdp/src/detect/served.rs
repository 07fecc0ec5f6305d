//! Served sources: the server processes their calls without credentials, such as those of a
//! carrier. Each address earns it separately.

use std::collections::HashMap;

use sip_xdp_common::ip_key::IpKey;

use super::digest::digest;

/// Number of different numbers that must be processed.
const ENOUGH: usize = 5;

/// Maximum number of remembered sources, and of numbers of each.
const MAX_SOURCES: usize = 4_096;
const MAX_NUMBERS: usize = 256;

/// Number of last characters that identify a number.
const DIGITS: usize = 9;

/// How long a number counts, and how long a source is served after its last one, in nanoseconds.
const DAY_NS: u64 = 24 * 3_600_000_000_000;

#[derive(Debug, Default)]
struct Calls {
    /// Digests of numbers, with the time at which each last counted.
    processed: HashMap<u64, u64>,
    refused: HashMap<u64, u64>,
    /// Answered calls without acknowledgement: Call-ID and number.
    open: Vec<(u64, u64)>,
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

    /// Drops the least recent source that is not served.
    fn make_room(&mut self, source: &IpKey) {
        if self.sources.len() < MAX_SOURCES || self.sources.contains_key(source) {
            return;
        }
        let least = self.sources.iter().min_by_key(|(_, calls)| (calls.until, calls.last));
        if let Some(least) = least.map(|(source, _)| *source) {
            self.sources.remove(&least);
        }
    }
}

impl Calls {
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
    fn memory_is_bounded() {
        let mut served = Served::default();
        for n in 0..10_000 {
            (0..300).take(if n == 0 { 300 } else { 1 }).for_each(|m| {
                served.process(IpKey::v4(n), m, &m.to_string(), u64::from(n));
            });
        }
        assert!(served.sources.len() <= MAX_SOURCES);
    }
}
