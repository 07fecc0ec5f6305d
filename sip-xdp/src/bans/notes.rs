//! Rate limits of log lines per source, so that a flood does not fill the log.

use std::collections::{HashMap, VecDeque};

use crate::net::network::Network;

/// Minimum interval between equal notes about one network, in nanoseconds.
const NOTE_INTERVAL: u64 = 60_000_000_000;

/// Maximum number of remembered notes. At this number nothing is noted until the oldest expire.
const MAX_NOTES: usize = 4_096;

type Key = (Network, &'static str);

/// Times of the last notes by network, or host, and kind. Constant cost per note, because notes
/// expire in the order of their creation.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    at: HashMap<Key, u64>,
    order: VecDeque<(u64, Key)>,
}

impl Notes {
    /// Whether a note of this kind about this network is due.
    pub(crate) fn are_due(&mut self, about: Network, kind: &'static str, now: u64) -> bool {
        while let Some((at, key)) = self.order.front().copied()
            && now.saturating_sub(at) >= NOTE_INTERVAL
        {
            self.order.pop_front();
            self.at.remove(&key);
        }
        let key = (about, kind);
        if self.at.len() >= MAX_NOTES || self.at.contains_key(&key) {
            return false;
        }
        self.at.insert(key, now);
        self.order.push_back((now, key));
        true
    }
}

#[cfg(test)]
mod tests {
    use sip_xdp_common::ip_key::IpKey;

    use super::*;

    fn host(number: u32) -> Network {
        Network::around(IpKey::v4(number), 128)
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_note_is_written_once_a_minute() {
        let mut notes = Notes::default();
        let source = host(7);
        for (second, due) in
            [(1, true), (2, false), (60, false), (61, true), (90, false), (121, true)]
        {
            assert_eq!(notes.are_due(source, "limit", second * SECOND), due, "{second}");
        }
        assert!(
            notes.are_due(source, "ban", 121 * SECOND)
                && notes.are_due(host(8), "ban", 121 * SECOND)
        );
    }

    /// A flood of new sources once caused a scan of 4,096 notes per packet.
    #[test]
    fn a_full_book_costs_no_more_than_an_empty_one() {
        let mut notes = Notes::default();
        let begun = std::time::Instant::now();
        let due = (0..1_000_000)
            .filter(|n| notes.are_due(host(*n), "limit", SECOND + u64::from(*n)))
            .count();
        assert_eq!(due, MAX_NOTES);
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        assert!(notes.are_due(host(0), "limit", 62 * SECOND));
        assert!(notes.order.len() <= MAX_NOTES && notes.at.len() == notes.order.len());
    }
}
