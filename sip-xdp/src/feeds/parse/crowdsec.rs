//! The decisions of a CrowdSec local API: what is new, and what has been deleted since the last answer.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;

use super::{Tally, Word, reason};
use crate::net::network::Network;

/// A decision about a network. Several may be about the same one, and each ends by itself.
pub(in crate::feeds) type Place = (u64, Network);

/// What has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::feeds) struct Decisions {
    /// What is to be blocked, and for how long.
    pub(in crate::feeds) new: Vec<(Place, Duration)>,
    /// What is not to be blocked any more.
    pub(in crate::feeds) deleted: Vec<Place>,
    /// What was left out of `new`.
    pub(in crate::feeds) tally: Tally,
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
    /// Whether it is about a ban of an address or a network. Captchas, countries and users are others' business.
    fn is_ban(&self) -> bool {
        self.kind.eq_ignore_ascii_case("ban")
            && ["ip", "range"].iter().any(|scope| self.scope.eq_ignore_ascii_case(scope))
    }
}

/// Reads an answer. Decisions whose scenario begins with `own` are ours: taken back, they would outlive what they came from.
pub(in crate::feeds) fn decisions(body: impl Read, own: Option<&str>) -> Result<Decisions, String> {
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
            Word::Malformed => found.tally.malformed(number),
        }
    }
    for decision in answer.deleted.unwrap_or_default().iter().filter(|decision| decision.is_ban()) {
        if let Word::Network { network, .. } = Word::read(&decision.value) {
            found.deleted.push((decision.id, network));
        }
    }
    Ok(found)
}

/// A duration as Go writes it: `3h59m44.5s`. What is negative is over.
pub(super) fn duration(text: &str) -> Option<Duration> {
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
        let unit = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(&rest[end..], |next| &rest[end..end + next]);
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
    // Longer than anybody lives is for good.
    Duration::try_from_secs_f64(seconds.min(3.2e9)).ok()
}
