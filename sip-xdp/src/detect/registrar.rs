//! How the registrar is doing, as far as that says whether evidence can be trusted: one that rejects everybody makes
//! attackers of all its customers, and one whose responses we do not see says nothing at all.

use std::collections::HashSet;

use super::counting::{Window, words};
use super::digest::digest;

/// For how long rejections are remembered here, in nanoseconds.
const WINDOW: u64 = 600_000_000_000;

/// More than so many sources or phones rejected, of which more than one in so many was good within a day.
const MANY: usize = 5;
const SHARE: usize = 5;

const TENTH: u64 = 100_000_000;

/// How many requests must have been seen before it can be told whether responses are.
const ENOUGH: u64 = 50;

/// One rejection.
#[derive(Debug, Clone, Copy)]
struct Rejected {
    /// Digest of the source.
    source: u64,
    /// Digest of the source and the user.
    phone: u64,
    /// Whether somebody was accepted from there within a day.
    good_source: bool,
    /// Whether this very user was.
    good_phone: bool,
}

/// The registrar.
#[derive(Debug, Default)]
pub(super) struct Registrar {
    rejections: Window<Rejected>,
    said: bool,
    failing_until: u64,
    counted: u64,
    asked: u64,
    answered: u64,
}

impl Registrar {
    /// A request has passed.
    pub(super) fn asked(&mut self) {
        self.asked += 1;
    }

    /// One was answered.
    pub(super) fn answered(&mut self) {
        self.answered += 1;
    }

    /// Whether responses are seen: one of ten at least, over all sources but one that has sent and been answered so many.
    pub(super) fn sees_responses(&self, asked: u64, answered: u64) -> bool {
        let (asked, answered) = (self.asked.saturating_sub(asked), self.answered.saturating_sub(answered));
        asked < ENOUGH || answered * 10 >= asked
    }

    /// Credentials were rejected.
    pub(super) fn rejected(&mut self, now: u64, source: &[u8], user: &str, good_source: bool, good_phone: bool) {
        let rejected = Rejected { source: digest(source), phone: digest(&(source, user)), good_source, good_phone };
        self.rejections.note(now, rejected, WINDOW);
        // Counting takes a while; a flood of rejections is counted ten times a second.
        if now.saturating_sub(self.counted) < TENTH && self.rejections.len() > 2 * MANY {
            return;
        }
        self.counted = now;
        let too_many = |all: usize, good: usize| all > MANY && good > MANY / 2 && good * SHARE > all;
        let count = |value: fn(&Rejected) -> u64, good: fn(&Rejected) -> bool| {
            let all: HashSet<u64> = self.rejections.iter().map(|(_, one)| value(one)).collect();
            let real: HashSet<u64> =
                self.rejections.iter().filter(|(_, one)| good(one)).map(|(_, one)| value(one)).collect();
            (all.len(), real.len())
        };
        let (sources, good_sources) = count(|one| one.source, |one| one.good_source);
        let (phones, good_phones) = count(|one| one.phone, |one| one.good_phone);
        if too_many(sources, good_sources) || too_many(phones, good_phones) {
            self.failing_until = now + WINDOW;
        }
    }

    /// Whether rejections prove nothing at the moment.
    pub(super) fn is_failing(&self, now: u64) -> bool {
        now < self.failing_until
    }

    /// What should be said of it, once.
    pub(super) fn news(&mut self, now: u64) -> Option<String> {
        let failing = self.is_failing(now);
        if failing == self.said {
            return None;
        }
        self.said = failing;
        Some(if failing {
            format!(
                "the registrar rejects sources that it accepted within a day: rejections ban nobody until it has been well \
                 for {}",
                words(WINDOW)
            )
        } else {
            "the registrar accepts its users again: rejections ban as before".to_owned()
        })
    }

    /// Lets older traffic count less. Once a minute.
    pub(super) fn tidy(&mut self) {
        self.asked /= 2;
        self.answered /= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn one_that_rejects_its_own_is_failing() {
        let mut registrar = Registrar::default();
        for n in 0..20_u8 {
            registrar.rejected(SECOND, &[n], "100", false, false);
        }
        assert!(!registrar.is_failing(SECOND), "strangers");
        for n in 20..26_u8 {
            registrar.rejected(u64::from(n) * SECOND / 10, &[n], "100", true, true);
        }
        assert!(registrar.is_failing(3 * SECOND));
        assert!(registrar.news(3 * SECOND).is_some() && registrar.news(4 * SECOND).is_none());
        assert!(!registrar.is_failing(3 * SECOND + WINDOW) && registrar.news(3 * SECOND + WINDOW).is_some());
    }

    #[test]
    fn one_office_is_enough_to_tell() {
        let mut registrar = Registrar::default();
        for n in 0..6 {
            registrar.rejected(SECOND, &[7], &format!("{n}"), true, true);
        }
        assert!(registrar.is_failing(SECOND));
        let mut registrar = Registrar::default();
        for n in 0..60 {
            registrar.rejected(SECOND, &[7], &format!("{n}"), true, n < 2);
        }
        assert!(!registrar.is_failing(SECOND), "somebody guesses from an office");
    }

    #[test]
    fn whether_responses_are_seen() {
        let mut registrar = Registrar::default();
        assert!(registrar.sees_responses(0, 0), "too little to tell");
        (0..1_000).for_each(|_| registrar.asked());
        assert!(!registrar.sees_responses(0, 0));
        assert!(registrar.sees_responses(960, 0), "nearly all of it is the one that is judged");
        (0..100).for_each(|_| registrar.answered());
        assert!(registrar.sees_responses(0, 0));
    }
}
