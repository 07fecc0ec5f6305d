//! One synchronisation of a feed: fetch, parse, and compare with the current list.

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

/// The current list, and its origin.
#[derive(Debug, Default, Clone)]
pub(super) struct Last {
    /// Its size.
    pub(super) size: Size,
    /// Whether there has been a list, possibly empty.
    pub(super) is_known: bool,
    /// Cache validators of the list.
    pub(super) validators: Validators,
    /// Position in the server's sequence of changes.
    pub(super) cursor: Option<String>,
    /// The server's entries with their ends, in seconds since 1970.
    pub(super) ends: BTreeMap<Network, u64>,
    /// The same per decision, where the server ends each by itself: by number and network.
    pub(super) decided: BTreeMap<(u64, Network), u64>,
    /// The protected networks at its application.
    pub(super) protected_set: Arc<ProtectedSet>,
}

impl Last {
    /// From the saved state.
    pub(super) fn recall(
        config: &FeedConfig,
        saved: &Saved,
        protected_set: Arc<ProtectedSet>,
    ) -> Self {
        // For CrowdSec, only the server knows what an earlier daemon received last.
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

/// A list that may be applied.
#[derive(Debug, Default)]
pub(super) struct Candidate {
    pub(super) listed: NetworkSet,
    /// Its size.
    pub(super) size: Size,
    /// Name of its format.
    pub(super) format: &'static str,
    pub(super) tally: Tally,
    pub(super) validators: Validators,
    pub(super) cursor: Option<String>,
    pub(super) ends: BTreeMap<Network, u64>,
    pub(super) decided: BTreeMap<(u64, Network), u64>,
    /// Time until the rest, which the server withholds for now.
    pub(super) come_back: Option<Duration>,
}

impl Candidate {
    /// Number of entries before splits, so that splits do not count as growth.
    pub(super) fn entries(&self) -> usize {
        self.listed.networks().len().saturating_sub(self.tally.pieces as usize)
    }
}

/// Why there is no list to apply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The error.
    pub(super) reason: String,
    /// The server's `Retry-After`.
    pub(super) retry_after: Option<Duration>,
    /// Whether a guard refused the list, so that an operator may accept it.
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

/// Synchronises once. `None` if the current list is up to date. `accept` skips the size guards.
pub(super) fn sync(
    config: &FeedConfig,
    fetcher: &Fetcher,
    last: &Last,
    protected_set: &ProtectedSet,
    accept: bool,
) -> Result<Option<Candidate>, Trouble> {
    // Protected networks that were removed from the last list may have to be in it now, and vice
    // versa.
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
        // An accepted empty list may stay empty, and a feed that never had an entry may be empty.
        let was_empty = last.is_known && last.size.entries == 0;
        let is_declared_empty = last.size.entries == 0 && parsed.comments > 0;
        if !is_protocol && count == 0 && !was_empty && !is_declared_empty {
            return refuse("it is empty".to_owned());
        }
        // Incremental formats have no total size to judge.
        if format.is_none_or(|format| format.is_whole())
            && let Some(reason) = implausible(&last.size, &candidate.size, &config.guards)
        {
            return refuse(reason);
        }
    }
    Ok(Some(candidate))
}

/// Entries that have not ended, where the server has ends.
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
