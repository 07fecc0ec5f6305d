//! To-tags: a sender that echoes a tag which the server made, and sent only to its address, is
//! routable.
//!
//! Some servers compute tags from the request, or give them a constant prefix. So a tag proves
//! nothing if any 16 of its characters occurred in a tag of another dialog, or while there is no
//! other dialog to compare with.

use sip_xdp_common::ip_key::IpKey;

use super::digest::digest;
use super::recent::Recent;

/// Maximum number of remembered dialogs.
const MAX_DIALOGS: usize = 32_768;

/// Maximum number of remembered tag pieces.
const MAX_PIECES: usize = 131_072;

/// Their lifetime, in nanoseconds.
const LIFETIME_NS: u64 = 3_600_000_000_000;

/// Number of characters that two random tags do not share.
const PIECE: usize = 16;

/// Distance between the starts of pieces of a tag, in characters.
const STEP: usize = 4;

/// Maximum number of pieces compared per tag, and of tags kept per Call-ID.
const MAX_PIECES_OF_A_TAG: usize = 12;
const MAX_TAGS: usize = 4;

/// The dialogs in which a piece occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The one with this Call-ID digest.
    One(u64),
    Several,
}

/// The server's To-tags.
#[derive(Debug)]
pub(super) struct Dialogs {
    /// By Call-ID: recipients and tags.
    tags: Recent<u64, Vec<(IpKey, u64)>>,
    pieces: Recent<u64, Owner>,
    /// The first Call-ID with a tag, until there is another one.
    first: Option<u64>,
    comparable: bool,
    /// An echo before there was another dialog: source, call and tag.
    early: Option<(IpKey, u64, Vec<u8>)>,
}

impl Default for Dialogs {
    fn default() -> Self {
        let tags = Recent::new(MAX_DIALOGS, LIFETIME_NS);
        let pieces = Recent::new(MAX_PIECES, LIFETIME_NS);
        Self { tags, pieces, first: None, comparable: false, early: None }
    }
}

impl Dialogs {
    /// Records a tag that the server made and sent.
    pub(super) fn give(&mut self, call: u64, tag: &[u8], to: IpKey, now: u64) {
        self.comparable |= self.first.get_or_insert(call) != &call;
        let given = (to, digest(tag));
        let tags = self.tags.touch(call, now, Vec::new);
        if tags.contains(&given) {
            return;
        }
        if tags.len() >= MAX_TAGS {
            tags.remove(0);
        }
        tags.push(given);
        for piece in pieces(tag) {
            let owner = self.pieces.touch(digest(piece), now, || Owner::One(call));
            if *owner != Owner::One(call) {
                *owner = Owner::Several;
            }
        }
    }

    /// Whether an echo of a tag proves the address of `by`.
    pub(super) fn proves(&mut self, call: u64, tag: &[u8], by: IpKey, now: u64) -> bool {
        let was_given =
            self.tags.get(&call, now).is_some_and(|tags| tags.contains(&(by, digest(tag))));
        if was_given && !self.comparable && self.early.is_none() {
            self.early = Some((by, call, tag.to_vec()));
        }
        let is_alone = |piece| self.pieces.get(&digest(piece), now) == Some(&Owner::One(call));
        self.comparable && was_given && pieces(tag).all(is_alone)
    }

    /// Source and call of an early echo that is proof by now.
    pub(super) fn take_early(&mut self, now: u64) -> Option<(IpKey, u64)> {
        let (by, call, tag) = self.early.take_if(|_| self.comparable)?;
        self.proves(call, &tag, by, now).then_some((by, call))
    }
}

/// The pieces of a tag; a short tag is one piece.
fn pieces(tag: &[u8]) -> impl Iterator<Item = &[u8]> {
    let last = tag.len().saturating_sub(PIECE);
    let starts = (0..last).step_by(STEP).take(MAX_PIECES_OF_A_TAG - 1).chain([last]);
    starts.map(|start| &tag[start..tag.len().min(start + PIECE)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;

    #[test]
    fn only_tags_made_at_random_prove_anything() {
        let (caller, other) = (IpKey::v4(1), IpKey::v4(2));
        let mut dialogs = Dialogs::default();
        dialogs.give(1, b"685679650d14a58de9e4b740", caller, NOW);
        let random = b"685679650d14a58de9e4b740";
        assert!(!dialogs.proves(1, random, caller, NOW), "nothing to compare it with");
        assert_eq!(dialogs.take_early(NOW), None);
        dialogs.give(2, b"ab612c1e34950d9d49f66406", other, NOW);
        assert_eq!((dialogs.take_early(NOW), dialogs.take_early(NOW)), (Some((caller, 1)), None));
        assert!(dialogs.proves(1, random, caller, NOW));
        assert!(!dialogs.proves(1, random, other, NOW), "it was sent elsewhere");
        assert!(!dialogs.proves(2, random, caller, NOW), "of another dialog");
        assert!(!dialogs.proves(1, b"guessed", caller, NOW));
        // As stateless servers make them: a constant, and a checksum of the request.
        let computed = |sum: &str| format!("b27e1a1d33761e85846fc98f5f3a7e58.{sum}").into_bytes();
        for (call, sum) in [(3, "4bc1"), (4, "9f00")] {
            dialogs.give(call, &computed(sum), caller, NOW);
        }
        assert!(!dialogs.proves(3, &computed("4bc1"), caller, NOW));
        assert!(!dialogs.proves(4, &computed("9f00"), caller, NOW));
        // Short tags are compared as a whole.
        dialogs.give(5, b"as58f4201b", caller, NOW);
        dialogs.give(6, b"constant", caller, NOW);
        dialogs.give(7, b"constant", caller, NOW);
        assert!(dialogs.proves(5, b"as58f4201b", caller, NOW));
        assert!(!dialogs.proves(6, b"constant", caller, NOW));
        assert!(!dialogs.proves(1, random, caller, NOW + LIFETIME_NS));
    }
}
