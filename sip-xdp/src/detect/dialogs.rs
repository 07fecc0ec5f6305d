//! To-tags: a sender that repeats one that we made, and sent to its address alone, is where it
//! says.
//!
//! Some servers compute tags from the request, or put a constant before them. So a tag proves
//! nothing if any 16 characters of it were in a tag of another dialog, nor while there is no other
//! dialog to compare it with.

use sip_xdp_common::ip_key::IpKey;

use super::digest::digest;
use super::recent::Recent;

/// How many dialogs are remembered.
const MAX_DIALOGS: usize = 32_768;

/// How many pieces of tags are.
const MAX_PIECES: usize = 131_072;

/// For how long, in nanoseconds.
const LIFETIME_NS: u64 = 3_600_000_000_000;

/// Characters that two tags made at random do not share.
const PIECE: usize = 16;

/// Where pieces of a tag begin: at every so many characters.
const STEP: usize = 4;

/// Pieces of one tag that are compared, and tags of one Call-ID that are kept.
const MAX_PIECES_OF_A_TAG: usize = 12;
const MAX_TAGS: usize = 4;

/// Whose piece it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Of the dialog with this Call-ID's digest.
    One(u64),
    Several,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Dialogs {
    /// By Call-ID: to whom, and which tag.
    tags: Recent<u64, Vec<(IpKey, u64)>>,
    pieces: Recent<u64, Owner>,
    /// The first Call-ID of which there was a tag, and whether there was another.
    first: Option<u64>,
    comparable: bool,
    /// A repetition that came before there was another dialog: by whom, of which tag.
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
    /// Notes that we sent a tag of our own making.
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

    /// Whether it proves that `by` is where it says that it repeats a tag.
    pub(super) fn proves(&mut self, call: u64, tag: &[u8], by: IpKey, now: u64) -> bool {
        let was_given =
            self.tags.get(&call, now).is_some_and(|tags| tags.contains(&(by, digest(tag))));
        if was_given && !self.comparable && self.early.is_none() {
            self.early = Some((by, call, tag.to_vec()));
        }
        let is_alone = |piece| self.pieces.get(&digest(piece), now) == Some(&Owner::One(call));
        self.comparable && was_given && pieces(tag).all(is_alone)
    }

    /// The source and the call of a repetition that proves something by now.
    pub(super) fn take_early(&mut self, now: u64) -> Option<(IpKey, u64)> {
        let (by, call, tag) = self.early.take_if(|_| self.comparable)?;
        self.proves(call, &tag, by, now).then_some((by, call))
    }
}

/// The pieces of a tag: all of a short one.
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
        // As stateless servers make them: a constant, and a sum over the request.
        let computed = |sum: &str| format!("b27e1a1d33761e85846fc98f5f3a7e58.{sum}").into_bytes();
        for (call, sum) in [(3, "4bc1"), (4, "9f00")] {
            dialogs.give(call, &computed(sum), caller, NOW);
        }
        assert!(!dialogs.proves(3, &computed("4bc1"), caller, NOW));
        assert!(!dialogs.proves(4, &computed("9f00"), caller, NOW));
        // Short ones are compared whole.
        dialogs.give(5, b"as58f4201b", caller, NOW);
        dialogs.give(6, b"constant", caller, NOW);
        dialogs.give(7, b"constant", caller, NOW);
        assert!(dialogs.proves(5, b"as58f4201b", caller, NOW));
        assert!(!dialogs.proves(6, b"constant", caller, NOW));
        assert!(!dialogs.proves(1, random, caller, NOW + LIFETIME_NS));
    }
}
