//! Health of the registrar, which decides whether evidence can be trusted: one that rejects
//! previously accepted accounts would make attackers of its customers, and without its responses
//! there is no evidence.

use std::collections::HashMap;

use super::windows::words;

/// Time window of tries, in nanoseconds.
const WINDOW_NS: u64 = 600_000_000_000;

/// Number of rejected accounts that indicates a failure, if there are that many accounts.
const MANY: usize = 5;
/// Minimum number of rejected accounts, if there are fewer and all are rejected.
const FEW: usize = 2;

/// Minimum ratio of rejected to accepted accounts.
const SHARE: usize = 5;

/// Maximum number of remembered accounts.
const MAX_ACCOUNTS: usize = 16_384;

/// Minimum interval between two evaluations, in nanoseconds.
const TENTH_NS: u64 = 100_000_000;

/// Minimum number of requests for a statement about responses.
const ENOUGH: u64 = 50;

/// Requests, and how many were answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Answers {
    pub(super) asked: u64,
    pub(super) answered: u64,
}

/// The registrar.
#[derive(Debug, Default)]
pub(super) struct Registrar {
    /// By account and address: time of the last try, and whether it was accepted.
    tries: HashMap<u64, (u64, bool)>,
    failing_until: u64,
    was_failing: bool,
    were_unseen: bool,
    counted: u64,
    /// Requests of known-good and served sources, and of all others.
    good: Answers,
    others: Answers,
}

impl Registrar {
    /// Counts a request.
    pub(super) fn asked(&mut self, is_good: bool) {
        if is_good { self.good.asked += 1 } else { self.others.asked += 1 }
    }

    /// Counts an answered request.
    pub(super) fn answered(&mut self, is_good: bool) {
        if is_good { self.good.answered += 1 } else { self.others.answered += 1 }
    }

    /// Whether responses are seen: to at least one in ten requests of known-good and served
    /// sources, or, while there are none, of all but the judged one. Silence towards a flood is the
    /// server's choice.
    pub(super) fn sees_responses(&self, judged: Answers) -> bool {
        if self.good.asked > 0 {
            return self.good.asked < ENOUGH / 5 || self.good.answered * 10 >= self.good.asked;
        }
        let asked = self.others.asked.saturating_sub(judged.asked);
        let answered = self.others.answered.saturating_sub(judged.answered);
        asked < ENOUGH || answered * 10 >= asked
    }

    /// Counts a try of an account at an address where it was accepted within a day. `known` is the
    /// number of such accounts.
    pub(super) fn tried(&mut self, now: u64, account: u64, accepted: bool, known: usize) {
        if self.tries.len() >= MAX_ACCOUNTS && !self.tries.contains_key(&account) {
            return;
        }
        self.tries.insert(account, (now, accepted));
        if accepted || now.saturating_sub(self.counted) < TENTH_NS && self.tries.len() > 2 * MANY {
            return;
        }
        self.counted = now;
        let lately = self.tries.values().filter(|(at, _)| now.saturating_sub(*at) < WINDOW_NS);
        let (accepted, rejected) =
            lately.fold((0, 0), |(accepted, rejected), (_, was_accepted)| {
                if *was_accepted { (accepted + 1, rejected) } else { (accepted, rejected + 1) }
            });
        let enough = MANY.min(known).max(FEW);
        if rejected >= enough && rejected >= SHARE * accepted {
            self.failing_until = now + WINDOW_NS;
        }
    }

    /// Whether rejections of known accounts currently prove nothing.
    pub(super) fn is_failing(&self, now: u64) -> bool {
        now < self.failing_until
    }

    /// New notes for the operator: kind and text.
    pub(super) fn news(&mut self, now: u64) -> Vec<(&'static str, String)> {
        let mut news = Vec::new();
        let failing = self.is_failing(now);
        if failing != self.was_failing {
            self.was_failing = failing;
            let text = if failing {
                format!(
                    "the registrar rejects users where it accepted them within a day: their \
                     rejections ban nobody until \
                     it has been well for {}; those of others do",
                    words(WINDOW_NS)
                )
            } else {
                "the registrar accepts its users again: rejections ban as before".to_owned()
            };
            news.push(("registrar_failing", text));
        }
        let unseen = !self.sees_responses(Answers::default());
        if unseen && !self.were_unseen {
            let text = "hardly any of our responses is seen: volume limits, but bans nobody, and \
                        rejected passwords are not \
                        seen; do they leave by an interface, or from a port, that is not filtered?";
            news.push(("unseen_responses", text.to_owned()));
        }
        self.were_unseen = unseen;
        news
    }

    /// Decays older traffic. Once a minute.
    pub(super) fn tidy(&mut self, now: u64) {
        for one in [&mut self.good, &mut self.others] {
            (one.asked, one.answered) = (one.asked / 2, one.answered / 2);
        }
        self.tries.retain(|_, (at, _)| now.saturating_sub(*at) < WINDOW_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn one_that_rejects_its_own_is_failing() {
        let mut registrar = Registrar::default();
        (0..100).for_each(|n| registrar.tried(SECOND_NS, n, true, 200));
        (100..119).for_each(|n| registrar.tried(SECOND_NS, n, false, 200));
        assert!(!registrar.is_failing(SECOND_NS), "one customer is suspended");
        (0..100).for_each(|n| registrar.tried(2 * SECOND_NS, n, false, 200));
        registrar.tried(3 * SECOND_NS, 100, false, 200);
        assert!(registrar.is_failing(3 * SECOND_NS));
        assert_eq!(registrar.news(3 * SECOND_NS).len(), 1);
        assert!(registrar.news(4 * SECOND_NS).is_empty());
        assert!(!registrar.is_failing(3 * SECOND_NS + WINDOW_NS));
        assert_eq!(registrar.news(3 * SECOND_NS + WINDOW_NS).len(), 1);
    }

    #[test]
    fn where_there_are_few_accounts_all_of_them_tell() {
        let failing = |known, rejected: u64, accepted: u64| {
            let mut registrar = Registrar::default();
            (0..accepted).for_each(|n| registrar.tried(SECOND_NS, n, true, known));
            (100..100 + rejected).for_each(|n| registrar.tried(SECOND_NS, n, false, known));
            registrar.is_failing(SECOND_NS)
        };
        assert!(failing(3, 3, 0) && !failing(3, 2, 0) && !failing(1, 1, 0) && failing(2, 2, 0));
        assert!(failing(50, 5, 0) && failing(50, 5, 1) && !failing(50, 5, 2) && !failing(50, 4, 0));
    }

    #[test]
    fn whether_responses_are_seen() {
        let none = Answers::default();
        let mut registrar = Registrar::default();
        assert!(registrar.sees_responses(none), "too little to tell");
        (0..1_000).for_each(|_| registrar.asked(false));
        assert!(!registrar.sees_responses(none));
        assert_eq!(registrar.news(SECOND_NS)[0].0, "unseen_responses");
        assert!(registrar.news(SECOND_NS).is_empty(), "once");
        let judged = Answers { asked: 960, answered: 0 };
        assert!(registrar.sees_responses(judged), "nearly all of it is the one that is judged");
        (0..20).for_each(|_| registrar.asked(true));
        assert!(!registrar.sees_responses(none));
        (0..20).for_each(|_| registrar.answered(true));
        assert!(registrar.sees_responses(none), "silence towards a flood is the server's choice");
    }
}
