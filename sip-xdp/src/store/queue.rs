//! The queue of changes to be written, in order and in bounded memory.

use std::collections::HashSet;
use std::net::IpAddr;

use sip_xdp_common::abi::layout::{List, Owner};

use super::change::Change;
use crate::net::network::Network;

/// Maximum number of queued changes.
pub(super) const LIMIT: usize = 200_000;

/// Number to which an overfull queue is reduced.
const REDUCED: usize = LIMIT / 4 * 3;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    changes: Vec<Change>,
    /// Changes of entries, or the file, were lost: all entries must be recorded again.
    lost_track: bool,
    /// Number of other changes that were lost.
    dropped: u64,
}

/// The subject of a change. Of several changes with one subject only the last counts.
#[derive(PartialEq, Eq, Hash)]
enum Subject<'a> {
    Entry(List, Network, Option<u16>, Owner),
    AllEntries,
    Offence(Network),
    Accepted(IpAddr, &'a str, u16),
    Peer(IpAddr),
    Sprayed(&'a str, u64),
    Served(IpAddr),
    Note(&'a str),
}

impl Queue {
    /// Adds a change.
    pub(super) fn push(&mut self, change: Change) {
        if matches!(change, Change::Entries(_)) {
            self.lost_track = false;
        }
        self.changes.push(change);
        self.bound();
    }

    /// Takes all changes, without superseded ones.
    pub(super) fn take(&mut self) -> Vec<Change> {
        coalesce(&mut self.changes);
        std::mem::take(&mut self.changes)
    }

    /// Returns changes that could not be written to the front.
    pub(super) fn put_back(&mut self, mut changes: Vec<Change>) {
        changes.append(&mut self.changes);
        self.changes = changes;
        self.bound();
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether all entries must be recorded again.
    pub(super) fn has_lost_track(&self) -> bool {
        self.lost_track
    }

    /// Requests all entries again: the file's contents are not what was written.
    pub(super) fn lose_track(&mut self) {
        self.lost_track = true;
    }

    /// Number of lost changes that do not concern entries.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Enforces the limit. The oldest changes that do not concern entries are dropped first. If
    /// those of entries alone exceed it they are dropped as well, and all entries are recorded
    /// again later.
    fn bound(&mut self) {
        if self.changes.len() <= LIMIT {
            return;
        }
        coalesce(&mut self.changes);
        let mut excess = self.changes.len().saturating_sub(REDUCED);
        let dropped = &mut self.dropped;
        self.changes.retain(|change| {
            let goes = excess > 0 && !change.is_of_entries();
            excess -= usize::from(goes);
            *dropped += u64::from(goes);
            !goes
        });
        if excess > 0 {
            self.changes.retain(|change| !change.is_of_entries());
            self.lost_track = true;
        }
    }
}

fn coalesce(changes: &mut Vec<Change>) {
    let mut keeps = vec![true; changes.len()];
    let mut seen = HashSet::new();
    let mut all_entries = false;
    for (change, keep) in changes.iter().zip(&mut keeps).rev() {
        *keep = !(all_entries && change.is_of_entries())
            && subject(change).is_none_or(|subject| seen.insert(subject));
        all_entries |= matches!(change, Change::Entries(_));
    }
    let mut keeps = keeps.into_iter();
    changes.retain(|_| keeps.next().unwrap_or(true));
}

/// The subject of a change; `None` if it is never superseded.
fn subject(change: &Change) -> Option<Subject<'_>> {
    match change {
        Change::Put(list, entry) => {
            Some(Subject::Entry(*list, entry.network, entry.port, entry.owner))
        }
        Change::Remove(list, network, port, owner) => {
            Some(Subject::Entry(*list, *network, *port, *owner))
        }
        Change::Entries(_) => Some(Subject::AllEntries),
        Change::Offence(offence) => Some(Subject::Offence(offence.network)),
        Change::Pardon(network) => Some(Subject::Offence(*network)),
        Change::Accepted(accepted) => {
            Some(Subject::Accepted(accepted.address, &accepted.user, accepted.port))
        }
        Change::Peer(peer) => Some(Subject::Peer(peer.address)),
        Change::Sprayed(row) => Some(Subject::Sprayed(&row.user, row.from_ms)),
        Change::Served(address, _) => Some(Subject::Served(*address)),
        Change::Note { name, .. } => Some(Subject::Note(name)),
        Change::Banned(_) | Change::Ended { .. } | Change::Past(..) | Change::Forgotten(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::tables::ledger::Entry;
    use sip_xdp_common::ip_key::IpKey;

    fn put(number: u32, reason: &str) -> Change {
        Change::Put(List::Block, Entry::manual(Network::around(IpKey::v4(number), 128), 1, reason))
    }

    fn removal(number: u32) -> Change {
        Change::Remove(List::Block, Network::around(IpKey::v4(number), 128), None, Owner::Manual)
    }

    fn note(name: &str, value: u8) -> Change {
        Change::Note { name: name.to_owned(), value: vec![value] }
    }

    #[test]
    fn only_the_last_change_counts() {
        let mut queue = Queue::default();
        for change in
            [put(1, "first"), note("a", 1), put(2, "other"), removal(1), note("a", 2), removal(2)]
        {
            queue.push(change);
        }
        assert_eq!(queue.take(), [removal(1), note("a", 2), removal(2)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn all_entries_replace_what_was_said_before() {
        let mut queue = Queue::default();
        let all = Change::Entries(Vec::new());
        for change in [all.clone(), put(1, "before"), note("a", 1), all.clone(), removal(3)] {
            queue.push(change);
        }
        assert_eq!(queue.take(), [note("a", 1), all, removal(3)]);
    }

    #[test]
    fn returned_changes_come_first() {
        let mut queue = Queue::default();
        queue.push(put(1, "first"));
        let taken = queue.take();
        queue.push(removal(1));
        queue.put_back(taken);
        assert_eq!(queue.take(), [removal(1)]);
    }

    #[test]
    fn too_many_changes_cost_the_oldest_notes_and_never_an_entry() {
        let mut queue = Queue::default();
        let half = LIMIT / 2;
        for number in 0..half as u32 {
            queue.push(put(number, "kept"));
        }
        for number in 0..LIMIT {
            queue.push(note(&number.to_string(), 0));
        }
        let changes = queue.take();
        assert!(changes.len() <= LIMIT);
        assert_eq!(changes.iter().filter(|change| change.is_of_entries()).count(), half);
        assert_eq!(
            changes.last(),
            Some(&note(&(LIMIT - 1).to_string(), 0)),
            "the newest were dropped"
        );
        assert_eq!(queue.dropped() as usize, LIMIT + half - changes.len());
        assert!(!queue.has_lost_track());
    }

    #[test]
    fn too_many_entries_are_asked_for_again() {
        let mut queue = Queue::default();
        for number in 0..=LIMIT as u32 {
            queue.push(put(number, "too many"));
        }
        assert!(queue.has_lost_track());
        assert!(queue.is_empty());
        queue.push(Change::Entries(Vec::new()));
        assert!(!queue.has_lost_track());
    }
}
