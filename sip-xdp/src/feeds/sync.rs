//! One synchronisation of a feed: what its server has, held against what is in force.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::coverage::Size;
use super::fetch::{Failure, Fetcher, Validators};
use super::formats::{self, Asking, Parsed, Tally};
use super::guards::{ProtectedSet, implausible, trim};
use super::saved::Saved;
use crate::config::{FeedConfig, FeedFormat};
use crate::dataplane::tables::feed_lists::NetworkSet;
use crate::net::network::Network;

/// What is in force, and what it came from.
#[derive(Debug, Default, Clone)]
pub(super) struct Last {
    /// How large it is.
    pub(super) size: Size,
    /// There has been a list, though perhaps an empty one.
    pub(super) is_known: bool,
    /// By what the server knows the list.
    pub(super) validators: Validators,
    /// Where to go on, for servers that tell what is new.
    pub(super) cursor: Option<String>,
    /// What the server listed and when that ends, in seconds since 1970.
    pub(super) ends: BTreeMap<Network, u64>,
    /// The same, one by one, of a server that ends each by itself: by number and network.
    pub(super) decided: BTreeMap<(u64, Network), u64>,
    /// What the guards held it against.
    pub(super) protected_set: Arc<ProtectedSet>,
}

impl Last {
    /// From what was on disk.
    pub(super) fn recall(
        config: &FeedConfig,
        saved: &Saved,
        protected_set: Arc<ProtectedSet>,
    ) -> Self {
        // Only the server knows what it told an earlier daemon last.
        let cursor = saved.cursor.clone().filter(|_| config.format == FeedFormat::Apiban);
        Self {
            size: Size::of(&saved.listed, saved.entries),
            is_known: true,
            validators: saved.validators.clone(),
            cursor,
            ends: saved.ends.clone(),
            decided: BTreeMap::new(),
            protected_set,
        }
    }
}

/// A list that may come into force.
#[derive(Debug, Default)]
pub(super) struct Candidate {
    pub(super) listed: NetworkSet,
    /// How large it is.
    pub(super) size: Size,
    /// The name of the format that it was read by.
    pub(super) format: &'static str,
    pub(super) tally: Tally,
    pub(super) validators: Validators,
    pub(super) cursor: Option<String>,
    pub(super) ends: BTreeMap<Network, u64>,
    pub(super) decided: BTreeMap<(u64, Network), u64>,
    /// There is more, which the server does not want to give now.
    pub(super) come_back: Option<Duration>,
}

impl Candidate {
    /// How many entries it has. Networks that were split count once, or a short list would seem to
    /// have grown.
    pub(super) fn entries(&self) -> usize {
        self.listed.networks().len().saturating_sub(self.tally.pieces as usize)
    }
}

/// Why there is no list that may come into force.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// In words.
    pub(super) reason: String,
    /// When the server wants to be asked again, at the earliest.
    pub(super) retry_after: Option<Duration>,
    /// A guard refused the list; somebody may accept it.
    pub(super) is_refused: bool,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self { reason: failure.reason, retry_after: failure.retry_after, is_refused: false }
    }
}

impl From<String> for Trouble {
    fn from(reason: String) -> Self {
        Self { reason, retry_after: None, is_refused: false }
    }
}

/// Asks once. `None` if what is in force is what the server has. With `accept`, no size is too
/// strange.
pub(super) fn sync(
    config: &FeedConfig,
    fetcher: &Fetcher,
    last: &Last,
    protected_set: &ProtectedSet,
    accept: bool,
) -> Result<Option<Candidate>, Trouble> {
    // What was taken out of the last list may have to be in it now, and the other way round.
    let knows_it = !accept && *last.protected_set == *protected_set;
    let known = if knows_it { last.validators.clone() } else { Validators::default() };
    let asking = Asking { config, fetcher, last, known, from_the_start: accept };
    let Some((parsed, mut candidate)) = formats::ask(&asking)? else {
        return Ok(None);
    };
    if parsed.networks.len() > config.guards.max_entries as usize {
        return Err(format!("it has more than {} entries", config.guards.max_entries).into());
    }
    candidate.format = parsed.format;
    candidate.tally = parsed.tally;
    candidate.listed =
        trim(parsed.networks, &config.effective_guards(), protected_set, &mut candidate.tally);
    let refuse = |reason| Err(Trouble { reason, retry_after: None, is_refused: true });
    let count = candidate.entries();
    candidate.size = Size::of(&candidate.listed, count);
    let format = formats::of(config.format);
    let is_protocol = format.is_some_and(|format| format.is_protocol());
    if !accept {
        // One that was accepted may stay as it is, and one that never had an entry may say that it
        // has none.
        let was_empty = last.is_known && last.size.entries == 0;
        let is_said = last.size.entries == 0 && parsed.comments > 0;
        if !is_protocol && count == 0 && !was_empty && !is_said {
            return refuse("it is empty".to_owned());
        }
        // What is added page by page is no list that could be too long or too short.
        if format.is_none_or(|format| format.is_whole())
            && let Some(reason) = implausible(&last.size, &candidate.size, &config.guards)
        {
            return refuse(reason);
        }
    }
    Ok(Some(candidate))
}

/// What has not ended, of a server that says when things do.
pub(super) fn live(
    format: &'static str,
    tally: Tally,
    mut candidate: Candidate,
    now: u64,
) -> (Parsed, Candidate) {
    candidate.ends.retain(|_, end| *end > now);
    let networks: Vec<Network> = candidate.ends.keys().copied().collect();
    (Parsed { networks, tally, format, ..Parsed::default() }, candidate)
}
