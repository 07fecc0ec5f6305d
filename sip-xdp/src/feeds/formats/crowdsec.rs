//! The decisions of a CrowdSec local API: new and deleted ones since the last response.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::time::Duration;

use serde::Deserialize;

use super::{Asking, Format, Parsed, Tally, Word, reason};
use crate::feeds::fetch::{key, refused};
use crate::feeds::sync::{Candidate, Trouble, live};
use crate::net::network::Network;
use crate::sys::clock;

pub(super) struct Crowdsec;

impl Format for Crowdsec {
    fn name(&self) -> &'static str {
        "crowdsec"
    }

    fn words(&self) -> &'static str {
        "the decisions of a CrowdSec local API; wants a `key_file`"
    }

    fn ask(&self, asking: &Asking<'_>) -> Result<Option<(Parsed, Candidate)>, Trouble> {
        stream(asking).map(Some)
    }

    fn is_protocol(&self) -> bool {
        true
    }
}

/// Fetches the changes, or everything.
fn stream(asking: &Asking<'_>) -> Result<(Parsed, Candidate), Trouble> {
    let Asking { config, fetcher, last, .. } = asking;
    let key = key(config)?;
    let now = clock::wall_ms() / 1_000;
    let is_first = asking.from_the_start || last.cursor.is_none();
    let base = config.url.trim_end_matches('/');
    let base = base.strip_suffix("/v1/decisions/stream").unwrap_or(base);
    // All decisions about an address, not only the longest, which may be our own or be deleted
    // early.
    let url = format!(
        "{base}/v1/decisions/stream?dedup=false{}",
        if is_first { "&startup=true" } else { "" }
    );
    let (status, headers, body) = fetcher.page(&url, &[("X-Api-Key", &key)])?;
    if status != 200 {
        return Err(refused(status, &headers).into());
    }
    let found = decisions(BufReader::new(body), config.own.as_deref())?;
    let mut decided = if is_first { BTreeMap::new() } else { last.decided.clone() };
    for place in &found.deleted {
        decided.remove(place);
    }
    decided.extend(
        found
            .new
            .into_iter()
            .map(|(place, duration)| (place, now.saturating_add(duration.as_secs()))),
    );
    decided.retain(|_, end| *end > now);
    let mut ends: BTreeMap<Network, u64> = BTreeMap::new();
    for ((_, network), end) in &decided {
        let known = ends.entry(*network).or_default();
        *known = (*known).max(*end);
    }
    // From here on responses contain only changes, until a failure.
    let candidate =
        Candidate { cursor: Some("stream".to_owned()), decided, ends, ..Candidate::default() };
    Ok(live("crowdsec", found.tally, candidate, now))
}

/// A decision about a network. Several may exist for one network, with independent ends.
pub(super) type DecisionKey = (u64, Network);

/// A set of changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decisions {
    /// Networks to block, with durations.
    pub(super) new: Vec<(DecisionKey, Duration)>,
    /// Decisions that have ended.
    pub(super) deleted: Vec<DecisionKey>,
    /// What was left out of `new`.
    pub(super) tally: Tally,
}

#[derive(Deserialize)]
struct Answer {
    new: Option<Vec<Decision>>,
    deleted: Option<Vec<Decision>>,
}

#[derive(Deserialize)]
struct Decision {
    #[serde(default)]
    id: u64,
    #[serde(default)]
    scenario: String,
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    duration: String,
}

impl Decision {
    /// Whether it bans an address or a network. Captchas, countries and users are ignored.
    fn is_ban(&self) -> bool {
        self.kind.eq_ignore_ascii_case("ban")
            && ["ip", "range"].iter().any(|scope| self.scope.eq_ignore_ascii_case(scope))
    }
}

/// Parses a response. Decisions whose scenario begins with `own` are this host's own and ignored:
/// imported again, they would outlive their origin.
pub(super) fn decisions(body: impl Read, own: Option<&str>) -> Result<Decisions, String> {
    let answer: Answer = serde_json::from_reader(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Io => error.to_string(),
        _ => format!("the answer is not CrowdSec's JSON, or cut off (line {})", error.line()),
    })?;
    let mut found = Decisions::default();
    let is_ours = |decision: &Decision| own.is_some_and(|own| decision.scenario.starts_with(own));
    for (number, decision) in (1..).zip(answer.new.unwrap_or_default()) {
        if is_ours(&decision) {
            continue;
        }
        if !decision.is_ban() {
            found.tally.skip(reason::OTHER);
            continue;
        }
        let Some(duration) = duration(&decision.duration) else {
            found.tally.malformed(number);
            continue;
        };
        match Word::read(&decision.value) {
            Word::Network { network, host_bits } => {
                found.tally.host_bits += u64::from(host_bits);
                found.new.push(((decision.id, network), duration));
            }
            Word::Everybody => found.tally.skip(reason::TOO_BROAD),
            Word::Mapped => found.tally.skip(reason::SPECIAL),
            Word::Malformed | Word::Range(_) => found.tally.malformed(number),
        }
    }
    for decision in answer.deleted.unwrap_or_default().iter().filter(|decision| decision.is_ban()) {
        if let Word::Network { network, .. } = Word::read(&decision.value) {
            found.deleted.push((decision.id, network));
        }
    }
    Ok(found)
}

/// A duration in Go's syntax: `3h59m44.5s`. Negative ones are over.
fn duration(text: &str) -> Option<Duration> {
    if let Some(rest) = text.strip_prefix('-') {
        return duration(rest).map(|_| Duration::ZERO);
    }
    let (mut seconds, mut rest) = (0.0_f64, text);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit = rest[end..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(&rest[end..], |next| &rest[end..end + next]);
        seconds += number
            * match unit {
                "h" => 3_600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" | "μs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[end + unit.len()..];
    }
    // A century counts as permanent.
    Duration::try_from_secs_f64(seconds.min(3.2e9)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn we_do_not_get_our_own_back() {
        let decision = |id: u32, scenario: &str| {
            format!(
                r#"{{"id":{id},"origin":"crowdsec","type":"ban","scope":"Ip","value":"192.0.2.1",
                    "duration":"1h","scenario":"{scenario}"}}"#
            )
        };
        let new = [
            decision(4, "sip-xdp/gw1/rejected"),
            decision(5, "sip-xdp/gw10/rejected"),
            decision(6, "ssh-bf"),
        ];
        let text = format!(
            "{{\"new\":[{}],\"deleted\":[{}]}}",
            new.join(","),
            decision(3, "sip-xdp/gw1/slow")
        );
        let ids = |own| -> Vec<u64> {
            decisions(text.as_bytes(), own).unwrap().new.iter().map(|((id, _), _)| *id).collect()
        };
        assert_eq!(ids(Some("sip-xdp/gw1/")), [5, 6]);
        assert_eq!(ids(None), [4, 5, 6]);
    }

    #[test]
    fn new_and_deleted_decisions() {
        let text = r#"{"new":[
            {"id":1,"origin":"CAPI","type":"ban","scope":"Ip","value":"192.0.2.1",
             "duration":"3h59m","scenario":"x"},
            {"type":"ban","scope":"Range","value":"198.51.100.0/24","duration":"1h"},
            {"type":"captcha","scope":"Ip","value":"192.0.2.2","duration":"1h"},
            {"type":"ban","scope":"Country","value":"ZZ","duration":"1h"}],"deleted":null}"#;
        let found = decisions(text.as_bytes(), None).unwrap();
        assert_eq!(found.new.len(), 2);
        assert_eq!(found.new[0].1, Duration::from_secs(4 * 3_600 - 60));
        assert_eq!(found.tally.count(reason::OTHER), 2);
        assert_eq!(
            decisions(&b"{\"new\":null,\"deleted\":null}"[..], None),
            Ok(Decisions::default())
        );
        let text = r#"{"deleted":[
            {"type":"ban","scope":"Ip","value":"192.0.2.1","duration":"-5s"}],"new":[]}"#;
        assert_eq!(decisions(text.as_bytes(), None).unwrap().deleted.len(), 1);
        assert!(
            decisions(&b"<html>"[..], None).is_err()
                && decisions(&b"{\"new\":["[..], None).is_err()
        );
        for (text, expected) in [
            ("3h59m", Some(14_340.0)),
            ("1h2m3.5s", Some(3_723.5)),
            ("250ms", Some(0.25)),
            ("-1h", Some(0.0)),
            ("", None),
            ("5", None),
            ("1x", None),
            ("h", None),
            ("1.2.3h", None),
        ] {
            assert_eq!(duration(text).map(|found| found.as_secs_f64()), expected, "{text}");
        }
        assert!(
            duration(&"9".repeat(300)).is_none()
                && duration(&format!("{}h", "9".repeat(300))).is_some()
        );
    }

    proptest! {
        #[test]
        fn durations_never_panic(text in "[-0-9.hmsnuµ]{0,40}") {
            let _ = duration(&text);
        }

        #[test]
        fn no_bytes_upset_it(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decisions(&bytes[..], None);
        }
    }
}
