//! One synchronisation of a feed: what its server has, held against what is in force.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::sync::Arc;
use std::time::Duration;

use super::fetch::{Failure, Fetched, Fetcher, Validators};
use super::guards::{Untouchable, implausible, trim};
use super::parse::{Parsed, Tally, parse};
use super::saved::Saved;
use super::{Listed, apis};
use crate::config::{FeedConfig, FeedFormat};
use crate::net::network::Network;

/// What is in force, and what it came from.
#[derive(Debug, Default, Clone)]
pub(super) struct Last {
    /// How many entries; what was split counts once.
    pub(super) count: usize,
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
    pub(super) untouchable: Arc<Untouchable>,
}

impl Last {
    /// From what was on disk.
    pub(super) fn recall(config: &FeedConfig, saved: &Saved, untouchable: Arc<Untouchable>) -> Self {
        // Only the server knows what it told an earlier daemon last.
        let cursor = saved.cursor.clone().filter(|_| config.format == FeedFormat::Apiban);
        Self {
            count: saved.entries,
            is_known: true,
            validators: saved.validators.clone(),
            cursor,
            ends: saved.ends.clone(),
            decided: BTreeMap::new(),
            untouchable,
        }
    }
}

/// A list that may come into force.
#[derive(Debug, Default)]
pub(super) struct Candidate {
    pub(super) listed: Listed,
    pub(super) tally: Tally,
    pub(super) validators: Validators,
    pub(super) cursor: Option<String>,
    pub(super) ends: BTreeMap<Network, u64>,
    pub(super) decided: BTreeMap<(u64, Network), u64>,
    /// There is more, which the server does not want to give now.
    pub(super) come_back: Option<Duration>,
}

impl Candidate {
    /// How many entries it has. Networks that were split count once, or a short list would seem to have grown.
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

/// Asks once. `None` if what is in force is what the server has. With `accept`, no size is too strange.
pub(super) fn sync(
    config: &FeedConfig,
    fetcher: &Fetcher,
    last: &Last,
    untouchable: &Untouchable,
    accept: bool,
) -> Result<Option<Candidate>, Trouble> {
    let (found, is_whole) = match config.format {
        FeedFormat::Apiban => (Some(apis::apiban(config, fetcher, last, accept)?), false),
        FeedFormat::Crowdsec => (Some(apis::crowdsec(config, fetcher, last, accept)?), false),
        FeedFormat::List | FeedFormat::Spamhaus | FeedFormat::Dshield => {
            // What was taken out of the last list may have to be in it now, and the other way round.
            let knows_it = !accept && *last.untouchable == *untouchable;
            let known = if knows_it { last.validators.clone() } else { Validators::default() };
            (fetch_list(config, fetcher, &known)?, true)
        }
    };
    let Some((parsed, mut candidate)) = found else {
        return Ok(None);
    };
    if parsed.networks.len() > config.guards.max_entries as usize {
        return Err(format!("it has more than {} entries", config.guards.max_entries).into());
    }
    candidate.tally = parsed.tally;
    candidate.listed = trim(parsed.networks, &config.effective_guards(), untouchable, &mut candidate.tally);
    let refuse = |reason| Err(Trouble { reason, retry_after: None, is_refused: true });
    let count = candidate.entries();
    if !accept {
        // One that was accepted may stay as it is.
        let was_empty = last.is_known && last.count == 0;
        if is_whole && count == 0 && !was_empty {
            return refuse("it is empty".to_owned());
        }
        // What APIBAN adds page by page is no list that could be too long or too short.
        if config.format != FeedFormat::Apiban
            && let Some(reason) = implausible(last.count, count, &config.guards)
        {
            return refuse(reason);
        }
    }
    Ok(Some(candidate))
}

fn fetch_list(
    config: &FeedConfig,
    fetcher: &Fetcher,
    known: &Validators,
) -> Result<Option<(Parsed, Candidate)>, Trouble> {
    match fetcher.list(config, known)? {
        Fetched::Same => Ok(None),
        Fetched::List(body, validators) => {
            let reader = BufReader::with_capacity(1 << 16, body);
            let parsed = parse(config.format, reader, config.guards.max_entries as usize)?;
            Ok(Some((parsed, Candidate { validators, ..Candidate::default() })))
        }
    }
}
