//! Servers that tell what is new, and when that ends: APIBAN and CrowdSec.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use super::fetch::{Failure, Fetcher, key, refused};
use super::parse::{Page, Parsed, decisions, page};
use super::sync::{Candidate, Last, Trouble};
use crate::config::FeedConfig;
use crate::net::network::Network;
use crate::sys::clock;

/// How long APIBAN keeps an address listed.
const APIBAN_TTL: u64 = 7 * 24 * 3_600;

/// The ID under which APIBAN's list begins.
const APIBAN_FIRST: &str = "100";

/// How many pages are asked for in turn. The rest comes with the next synchronisation.
const MOST_PAGES: usize = 200;

/// How long pages are asked for in turn.
const PAGES_TIME: Duration = Duration::from_secs(45);

/// When to ask again for what APIBAN did not want to give, if it does not say.
const APIBAN_PAUSE: Duration = Duration::from_secs(120);

fn seconds() -> u64 {
    clock::wall_ms() / 1_000
}

/// Asks APIBAN for what is new, page by page.
pub(super) fn apiban(
    config: &FeedConfig,
    fetcher: &Fetcher,
    last: &Last,
    from_the_start: bool,
) -> Result<(Parsed, Candidate), Trouble> {
    let key = key(config)?;
    let (now, start) = (seconds(), Instant::now());
    let mut candidate = Candidate { cursor: last.cursor.clone(), ends: last.ends.clone(), ..Candidate::default() };
    if from_the_start {
        candidate.cursor = None;
        candidate.ends.clear();
    }
    let mut tally = Default::default();
    for number in 0.. {
        let id = candidate.cursor.as_deref().unwrap_or(APIBAN_FIRST);
        let answer = match ask_apiban(config, fetcher, &key, id) {
            Ok(answer) => answer,
            // What came before is good all the same.
            Err(failure) if number > 0 => {
                log::debug!("feed {}: page {number}: {}", config.name, failure.reason);
                candidate.come_back = Some(failure.retry_after.unwrap_or(APIBAN_PAUSE));
                break;
            }
            Err(failure) => return Err(failure.into()),
        };
        let Page::More(parsed, next) = answer else {
            break;
        };
        let is_last = next == id || next == "none";
        candidate.ends.extend(parsed.networks.into_iter().map(|network| (network, now + APIBAN_TTL)));
        merge(&mut tally, parsed.tally);
        if !is_last {
            candidate.cursor = Some(next);
        }
        if is_last || number + 1 == MOST_PAGES || start.elapsed() > PAGES_TIME {
            break;
        }
    }
    Ok(live(tally, candidate, now))
}

fn ask_apiban(config: &FeedConfig, fetcher: &Fetcher, key: &str, id: &str) -> Result<Page, Failure> {
    let url = format!("{}/{key}/banned/{id}", config.url.trim_end_matches('/'));
    let (status, headers, mut body) = fetcher.page(&url, &[])?;
    let mut bytes = Vec::new();
    body.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    page(status, &bytes).map_err(|reason| match status {
        429 | 500.. => refused(status, &headers),
        _ => Failure::from(reason),
    })
}

/// Asks CrowdSec for what has changed, or for everything.
pub(super) fn crowdsec(
    config: &FeedConfig,
    fetcher: &Fetcher,
    last: &Last,
    from_the_start: bool,
) -> Result<(Parsed, Candidate), Trouble> {
    let key = key(config)?;
    let now = seconds();
    let is_first = from_the_start || last.cursor.is_none();
    let base = config.url.trim_end_matches('/');
    let base = base.strip_suffix("/v1/decisions/stream").unwrap_or(base);
    // All decisions about an address, not only the longest: that one may be ours, or end before its time.
    let url = format!("{base}/v1/decisions/stream?dedup=false{}", if is_first { "&startup=true" } else { "" });
    let (status, headers, body) = fetcher.page(&url, &[("X-Api-Key", &key)])?;
    if status != 200 {
        return Err(refused(status, &headers).into());
    }
    let found = decisions(std::io::BufReader::new(body), config.own.as_deref())?;
    let mut decided = if is_first { BTreeMap::new() } else { last.decided.clone() };
    for place in &found.deleted {
        decided.remove(place);
    }
    decided.extend(found.new.into_iter().map(|(place, duration)| (place, now.saturating_add(duration.as_secs()))));
    decided.retain(|_, end| *end > now);
    let mut ends: BTreeMap<Network, u64> = BTreeMap::new();
    for ((_, network), end) in &decided {
        let known = ends.entry(*network).or_default();
        *known = (*known).max(*end);
    }
    // From here on it tells what is new, as long as nothing goes wrong.
    let candidate = Candidate { cursor: Some("stream".to_owned()), decided, ends, ..Candidate::default() };
    Ok(live(found.tally, candidate, now))
}

/// What has not ended.
fn live(tally: super::parse::Tally, mut candidate: Candidate, now: u64) -> (Parsed, Candidate) {
    candidate.ends.retain(|_, end| *end > now);
    let networks: Vec<Network> = candidate.ends.keys().copied().collect();
    (Parsed { networks, tally }, candidate)
}

fn merge(tally: &mut super::parse::Tally, other: super::parse::Tally) {
    for (reason, count) in other.skipped {
        *tally.skipped.entry(reason).or_default() += count;
    }
    tally.host_bits += other.host_bits;
    tally.first_malformed = tally.first_malformed.or(other.first_malformed);
}
