//! What is known against one source.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use sip_xdp_common::ip_key::Source;

use super::counting::{Bucket, Window};

/// How many numbers of one source are remembered, with the prefixes under which each was called.
const MAX_NUMBERS: usize = 256;

/// One rejected try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rejection {
    pub(super) user: String,
    pub(super) port: u16,
    /// It echoed a nonce of ours.
    pub(super) echoed: bool,
}

/// A source and the evidence against it.
#[derive(Debug)]
pub(super) struct Subject {
    /// An address of it: where the last packet came from.
    pub(super) source: Source,
    pub(super) by_address: bool,
    pub(super) last: u64,
    /// It echoed a nonce that was given to it alone, or was accepted.
    pub(super) proven: bool,
    /// Rejections that may still turn out to be a retry.
    pub(super) tentative: Vec<(u64, Rejection)>,
    pub(super) rejected: Window<Rejection>,
    pub(super) slow: Bucket,
    /// Users that were refused, and how it was said.
    pub(super) refused: Window<String>,
    /// Challenges that are waiting for credentials: when, which user, and whether it was a call.
    pub(super) challenged: Vec<(u64, String, bool)>,
    /// What gave it away as a tool.
    pub(super) signature: Option<String>,
    pub(super) calls: HashSet<u64>,
    pub(super) invites: Bucket,
    pub(super) refused_calls: u32,
    pub(super) answered_calls: u32,
    pub(super) numbers: HashMap<String, BTreeSet<String>>,
    /// When the kernel last dropped packets of it because of a limit.
    pub(super) limited: u64,
    /// Requests seen, and how many of them were answered.
    pub(super) asked: u64,
    pub(super) answered: u64,
    /// When it was last banned for something, so that one offence is one ban.
    pub(super) banned: u64,
    /// The first line of its last request, and the user that it named, as they came, but not all of it.
    pub(super) start_line: Vec<u8>,
    pub(super) user: Vec<u8>,
}

impl Subject {
    pub(super) fn new(source: Source, by_address: bool) -> Self {
        Self {
            source,
            by_address,
            last: 0,
            proven: false,
            tentative: Vec::new(),
            rejected: Window::default(),
            slow: Bucket::default(),
            refused: Window::default(),
            challenged: Vec::new(),
            signature: None,
            calls: HashSet::new(),
            invites: Bucket::default(),
            refused_calls: 0,
            answered_calls: 0,
            numbers: HashMap::new(),
            limited: 0,
            asked: 0,
            answered: 0,
            banned: 0,
            start_line: Vec::new(),
            user: Vec::new(),
        }
    }

    /// Notes a call. Returns under how many prefixes the last nine digits of this number were called.
    pub(super) fn call(&mut self, number: &str) -> Option<(String, usize)> {
        let digits: String = number.chars().filter(char::is_ascii_digit).collect();
        if digits.len() < 9 || digits.len() > 40 {
            return None;
        }
        let (prefix, end) = digits.split_at(digits.len() - 9);
        // A plus is a prefix too.
        let prefix = if number.starts_with('+') { format!("+{prefix}") } else { prefix.to_owned() };
        if self.numbers.len() >= MAX_NUMBERS && !self.numbers.contains_key(end) {
            self.numbers.clear();
        }
        let prefixes = self.numbers.entry(end.to_owned()).or_default();
        if prefixes.len() < 16 {
            prefixes.insert(prefix);
        }
        Some((end.to_owned(), prefixes.len()))
    }

    /// How many users, and how many ports, its rejections are about.
    pub(super) fn rejected_users(&self) -> (BTreeSet<&str>, BTreeSet<u16>) {
        let users = self.rejected.iter().map(|(_, rejection)| rejection.user.as_str()).collect();
        let ports = self.rejected.iter().map(|(_, rejection)| rejection.port).collect();
        (users, ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_under_many_prefixes() {
        let mut subject = Subject::new(Source::v4(1), true);
        for (number, prefixes) in [
            ("00441234567890", 1),
            ("00441234567890", 1),
            ("+441234567890", 2),
            ("011441234567890", 3),
            ("900441234567890", 4),
        ] {
            assert_eq!(subject.call(number), Some(("234567890".to_owned(), prefixes)), "{number}");
        }
        assert_eq!(subject.call("0049301234567").map(|found| found.1), Some(1));
        assert_eq!((subject.call("1001"), subject.call("alice")), (None, None));
    }
}
