//! APIBAN: new addresses page by page, each with the ID of the next page. There are two interfaces:
//! `POST URL/get` with the key as a bearer token, and the older `GET URL/KEY/banned/ID`.

use std::io::Read as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::http::HeaderMap;

use super::{Asking, Format, Limits, Parsed, Word, take_word};
use crate::feeds::fetch::{Answer, Failure, key, refused};
use crate::feeds::sync::{Candidate, Trouble, live};
use crate::sys::clock;

/// Lifetime of APIBAN's entries, in seconds.
const TTL: u64 = 7 * 24 * 3_600;

/// ID of the first page.
const FIRST: &str = "100";

/// Default data set, as in APIBAN's own client.
const SET: &str = "sip";

/// Maximum number of pages per round. The rest follows in the next one.
const MOST_PAGES: usize = 200;

/// Maximum time for the pages of a round.
const PAGES_TIME: Duration = Duration::from_secs(45);

/// Pause after a refusal without `Retry-After`.
const PAUSE: Duration = Duration::from_secs(120);

pub(super) struct Apiban;

impl Format for Apiban {
    fn name(&self) -> &'static str {
        "apiban"
    }

    fn words(&self) -> &'static str {
        "the API of APIBAN, in both of its versions; wants a `key_file`, and may be asked for a \
         `set`"
    }

    fn has_sets(&self) -> bool {
        true
    }

    fn ask(&self, asking: &Asking<'_>) -> Result<Option<(Parsed, Candidate)>, Trouble> {
        pages(asking).map(Some)
    }

    fn is_protocol(&self) -> bool {
        true
    }

    fn is_whole(&self) -> bool {
        false
    }
}

/// Fetches the new pages.
fn pages(asking: &Asking<'_>) -> Result<(Parsed, Candidate), Trouble> {
    let Asking { config, last, .. } = asking;
    let key = key(config)?;
    let (now, start) = (clock::wall_ms() / 1_000, Instant::now());
    let mut candidate =
        Candidate { cursor: last.cursor.clone(), ends: last.ends.clone(), ..Candidate::default() };
    if asking.from_the_start {
        candidate.cursor = None;
        candidate.ends.clear();
    }
    let mut tally = super::Tally::default();
    for number in 0.. {
        let id = candidate.cursor.as_deref().unwrap_or(FIRST);
        let answer = match ask_page(asking, &key, id) {
            Ok(answer) => answer,
            // Earlier pages are valid all the same.
            Err(failure) if number > 0 => {
                log::debug!("feed {}: page {number}: {}", config.name, failure.reason);
                candidate.come_back = Some(failure.retry_after.unwrap_or(PAUSE));
                break;
            }
            Err(failure) => return Err(failure.into()),
        };
        let Page::More(parsed, next) = answer else {
            break;
        };
        let is_last = next == id || next == "none";
        candidate.ends.extend(parsed.networks.into_iter().map(|network| (network, now + TTL)));
        tally.add(parsed.tally);
        if !is_last {
            candidate.cursor = Some(next);
        }
        if is_last || number + 1 == MOST_PAGES || start.elapsed() > PAGES_TIME {
            break;
        }
    }
    Ok(live("apiban", tally, candidate, now))
}

/// Fetches one page by the newer interface, or by the older one if the server lacks the newer.
fn ask_page(asking: &Asking<'_>, key: &str, id: &str) -> Result<Page, Failure> {
    let Asking { config, fetcher, .. } = asking;
    let base = config.url.trim_end_matches('/');
    if fetcher.speaks_older() {
        return older(asking, base, key, id);
    }
    let question = json!({ "set": config.set.as_deref().unwrap_or(SET), "id": id }).to_string();
    let bearer = format!("Bearer {key}");
    let answer = fetcher.post(&format!("{base}/get"), &[("Authorization", &bearer)], &question)?;
    let (status, headers, bytes) = whole(answer)?;
    let reason = match page(status, &bytes) {
        Ok(page) => return Ok(page),
        Err(reason) => reason,
    };
    // A server without the interface may respond with 404, or as to a wrong key.
    let may_not_know = matches!(status, 400..=499) && status != 429;
    if !may_not_know {
        return Err(failure(status, &headers, reason));
    }
    let is_known =
        serde_json::from_slice::<Value>(&bytes).is_ok_and(|value| !value["ipaddress"].is_null());
    if config.set.is_some() {
        let no_sets =
            format!("HTTP {status}: the server knows no sets (POST .../get); leave `set` out");
        return Err(if is_known { reason } else { no_sets }.into());
    }
    match older(asking, base, key, id) {
        Ok(page) => {
            fetcher.speak_older();
            Ok(page)
        }
        Err(_) if is_known => Err(failure(status, &headers, reason)),
        Err(failure) => Err(failure),
    }
}

/// Fetches one page by the older interface.
fn older(asking: &Asking<'_>, base: &str, key: &str, id: &str) -> Result<Page, Failure> {
    let (status, headers, bytes) =
        whole(asking.fetcher.page(&format!("{base}/{key}/banned/{id}"), &[])?)?;
    page(status, &bytes).map_err(|reason| failure(status, &headers, reason))
}

fn whole((status, headers, mut body): Answer) -> Result<(u16, HeaderMap, Vec<u8>), Failure> {
    let mut bytes = Vec::new();
    body.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok((status, headers, bytes))
}

fn failure(status: u16, headers: &HeaderMap, reason: String) -> Failure {
    match status {
        429 | 500.. => refused(status, headers),
        _ => Failure::from(reason),
    }
}

/// A page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// Addresses, and the ID of the next page.
    More(Parsed, String),
    /// The end of the list.
    End,
}

/// Parses a page with this status.
pub(super) fn page(status: u16, body: &[u8]) -> Result<Page, String> {
    let value: Value = serde_json::from_slice(body).map_err(|_| match body.trim_ascii_start() {
        [b'<', ..] => format!("the answer (HTTP {status}) is HTML or XML, not APIBAN's JSON"),
        _ => format!("the answer (HTTP {status}) is not APIBAN's JSON, or cut off"),
    })?;
    let id = match &value["ID"] {
        Value::String(id) => id.clone(),
        Value::Number(id) => id.to_string(),
        _ => String::new(),
    };
    let addresses: Vec<&str> = match &value["ipaddress"] {
        Value::Array(addresses) => {
            addresses.iter().map(|address| address.as_str().unwrap_or_default()).collect()
        }
        Value::String(text) => vec![text.as_str()],
        _ => return Err(format!("the answer (HTTP {status}) has no addresses")),
    };
    if addresses.iter().any(|text| text.eq_ignore_ascii_case("no new bans")) {
        return Ok(Page::End);
    }
    if addresses.iter().any(|text| text.to_ascii_lowercase().contains("rate limit")) {
        return Err(format!("HTTP {status}: the server was asked too often (its rate limit)"));
    }
    match status {
        200 => {}
        401 | 403 => {
            return Err("the server refuses the key (unauthorized); see key_file".to_owned());
        }
        _ => return Err(format!("HTTP {status}")),
    }
    if addresses.is_empty() {
        return Ok(Page::End);
    }
    // It becomes part of the next URL.
    if id.is_empty()
        || id.len() > 64
        || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        return Err("the answer has no ID to go on with".to_owned());
    }
    let mut parsed = Parsed::default();
    // Pages contain single addresses only.
    let limits = Limits {
        entries: usize::MAX,
        bytes: u64::MAX,
        min_count: 1,
        min_prefix: 8,
        min_prefix6: 19,
    };
    for (number, address) in (1..).zip(addresses) {
        match Word::read(address) {
            Word::Malformed => parsed.tally.malformed(number),
            word => take_word(&mut parsed, word, &limits),
        }
    }
    Ok(Page::More(parsed, id))
}

#[cfg(test)]
mod tests {
    use super::super::reason;
    use super::super::tests::networks;
    use super::*;

    #[test]
    fn pages_and_their_ends() {
        let more =
            page(200, b"{\"ipaddress\":[\"192.0.2.1\",\"192.0.2.2\",\"x\"],\"ID\":\"98765\"}")
                .unwrap();
        let Page::More(parsed, id) = more else { panic!("{more:?}") };
        assert_eq!(
            (networks(&parsed).len(), id.as_str(), parsed.tally.count(reason::MALFORMED)),
            (2, "98765", 1)
        );
        for status in [200, 400, 404] {
            assert_eq!(
                page(status, b"{\"ipaddress\":[\"no new bans\"],\"ID\":\"none\"}"),
                Ok(Page::End)
            );
        }
        assert!(
            page(403, b"{\"ipaddress\":[\"0.0.0.0\"],\"ID\":\"unauthorized\"}")
                .unwrap_err()
                .contains("key")
        );
        assert!(
            page(429, b"{\"ipaddress\":\"rate limit exceeded\",\"ID\":\"none\"}")
                .unwrap_err()
                .contains("429")
        );
        assert!(page(200, b"<html>").unwrap_err().contains("HTML"));
        assert!(page(200, b"{\"ipaddress\":[\"192.0.2.1\"").unwrap_err().contains("cut off"));
        assert!(
            page(200, b"{\"ipaddress\":[\"192.0.2.1\"],\"ID\":\"../x\"}")
                .unwrap_err()
                .contains("no ID")
        );
    }
}
