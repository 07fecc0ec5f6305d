//! The detector's part of `explain`. Read-only.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sip_xdp_common::ip_key::IpKey;

use super::source_state::SourceState;
use super::windows::words;
use super::{Detector, EvidenceName};
use crate::net::network::Network;
use crate::sip::message::{Head, StartLine};
use crate::sip::transport::Transport;

/// Maximum number of bytes kept of a start line, or of a user.
const REMEMBERED: usize = 128;

/// Maximum number of names listed.
const TOLD: usize = 10;

/// The evidence of one kind against a source.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Evidence {
    /// A rule of `[detect]`.
    #[schemars(with = "EvidenceName")]
    pub kind: String,
    /// Amount of evidence.
    pub count: f64,
    /// Threshold; `None` if the rule is off, or has none.
    pub limit: Option<u64>,
    /// Time window, or time for one to leak out, in seconds.
    pub per: Option<u64>,
    /// The evidence in words.
    pub text: String,
}

/// The last request of a source.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct LastRequest {
    /// Its age in seconds.
    pub age: u64,
    /// Its start line, at most 128 bytes.
    pub start_line: String,
    /// The user, if it named one.
    pub user: Option<String>,
    /// How it came.
    #[serde(default)]
    pub transport: Transport,
}

/// A user accepted with credentials.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Accepted {
    /// User.
    pub user: String,
    /// Port of its phone.
    pub port: u16,
    /// How it was accepted.
    #[serde(default)]
    pub transport: Transport,
    /// Remaining lifetime of its registration in seconds; 0 if it has expired.
    pub left: u64,
}

/// A user whose passwords are refused from an address, or whose account earns no standing there.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct RefusedUser {
    /// User.
    pub user: String,
    /// For how many more seconds.
    pub left: u64,
}

/// The detector's knowledge of a source.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct View {
    /// Whether its address is proven.
    pub proven: bool,
    /// Evidence against it.
    pub evidence: Vec<Evidence>,
    /// Its last sampled request.
    pub last: Option<LastRequest>,
    /// Number of sampled requests.
    pub asked: u64,
    /// Number of answered ones.
    pub answered: u64,
    /// Users accepted from this address.
    pub accepted: Vec<Accepted>,
    /// Remaining seconds for which the source counts as served; 0 if it does not.
    #[serde(default)]
    pub served: u64,
    /// Users whose passwords are refused from this address.
    #[serde(default)]
    pub refused: Vec<RefusedUser>,
    /// Accounts that earn no standing at this address, or IPv6 site, because passwords of others
    /// were tried at their ports.
    #[serde(default)]
    pub expelled: Vec<RefusedUser>,
}

impl SourceState {
    /// Remembers a request.
    pub(super) fn note_last(&mut self, head: &Head<'_>) {
        let StartLine::Request { method, uri } = head.start else {
            return;
        };
        let claimed = head.credentials.first().map(|credentials| credentials.username);
        let user = claimed.filter(|user| !user.is_empty()).or(head.from.user).or(head.to.user);
        remember(&mut self.start_line, &[method, b" ", uri, b" SIP/2.0"]);
        remember(&mut self.user, &[user.unwrap_or_default()]);
        remember(&mut self.call_id, &[head.call_id.unwrap_or_default()]);
    }
}

/// Replaces the kept text by the start of another one, given in parts. It is sanitised only for
/// display, since this runs for each request.
fn remember(kept: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    kept.clear();
    kept.reserve_exact(length.min(REMEMBERED));
    for part in parts {
        kept.extend_from_slice(&part[..part.len().min(REMEMBERED - kept.len())]);
    }
}

/// The start of a hostile text, sanitised for terminals.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(REMEMBERED)]);
    let clean: String =
        text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
    let end = (0..=REMEMBERED.min(clean.len()))
        .rev()
        .find(|end| clean.is_char_boundary(*end))
        .unwrap_or(0);
    clean[..end].to_owned()
}

impl Detector {
    /// The knowledge of a source at `now`.
    pub fn explain(&self, source: &IpKey, now: u64) -> View {
        let accepted = self.known.accepted_at(source).map(|(user, known)| Accepted {
            user: user.to_owned(),
            port: known.port,
            transport: known.transport,
            left: known.until.saturating_sub(now) / 1_000_000_000,
        });
        let accepted = accepted.take(TOLD * TOLD).collect();
        let served = self.served.until(source).saturating_sub(now) / 1_000_000_000;
        let host = Network::around(*source, 128);
        let told = |user: &str, until: u64| RefusedUser {
            user: printable(user.as_bytes()),
            left: (until - now) / 1_000_000_000,
        };
        let refused = self.refused_users(&host, now);
        let refused = refused.map(|(_, user, until)| told(user, until)).collect();
        let expelled = self.expelled_accounts(&host, now);
        let expelled = expelled.map(|(user, until)| told(user, until)).collect();
        let Some(state) = self.watched_as(source) else {
            return View { accepted, served, refused, expelled, ..View::default() };
        };
        let last = (!state.start_line.is_empty()).then(|| LastRequest {
            age: now.saturating_sub(state.last) / 1_000_000_000,
            start_line: printable(&state.start_line),
            user: (!state.user.is_empty()).then(|| printable(&state.user)),
            transport: state.transport,
        });
        View {
            proven: state.routable,
            evidence: self.evidence_of(state, now),
            last,
            asked: state.asked,
            answered: state.answered,
            accepted,
            served,
            refused,
            expelled,
        }
    }

    /// The evidence against a source at `now`.
    pub(crate) fn evidence_against(&self, source: &IpKey, now: u64) -> Vec<Evidence> {
        self.watched_as(source).map(|state| self.evidence_of(state, now)).unwrap_or_default()
    }

    /// The state of a source, if it is watched.
    fn watched_as(&self, source: &IpKey) -> Option<&SourceState> {
        self.sources.get(source).map(Box::as_ref)
    }

    /// The Call-ID of the last request of a source, as far as it is kept.
    pub fn last_call_id(&self, source: &IpKey) -> Option<String> {
        let state = self.watched_as(source).filter(|state| !state.call_id.is_empty())?;
        Some(printable(&state.call_id))
    }

    /// End of a user's registration at a port of an address; 0 if there never was one.
    pub fn registered_until(&self, source: &IpKey, user: &str, port: u16) -> u64 {
        let mut accepted = self.known.accepted_at(source);
        accepted
            .find(|(known, at)| *known == user && at.port == port)
            .map_or(0, |(_, known)| known.until)
    }

    /// The evidence against a source.
    fn evidence_of(&self, state: &SourceState, now: u64) -> Vec<Evidence> {
        let mut all = self.tell(state, now);
        if state.limited != 0 {
            let text = format!("over a limit {} ago", words(now.saturating_sub(state.limited)));
            all.push(Evidence {
                kind: "limited".to_owned(),
                count: 1.0,
                limit: None,
                per: None,
                text,
            });
        }
        all
    }
}

/// Some names, without duplicates.
pub(super) fn named<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let all: std::collections::BTreeSet<&str> = names.collect();
    let more = all.len().saturating_sub(TOLD);
    let told: Vec<String> = all.into_iter().take(TOLD).map(|name| format!("{name:?}")).collect();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", told.join(", "))
}

/// Rounded to one decimal.
pub(super) fn rounded(level: f64) -> f64 {
    (level * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_short_and_harmless() {
        assert_eq!(printable(b"REGISTER sip:a SIP/2.0"), "REGISTER sip:a SIP/2.0");
        assert_eq!(printable(b"a\x1b[2Jb\r\n"), "a?[2Jb??");
        let mut kept = b"what was there before".to_vec();
        remember(&mut kept, &[b"OPTIONS", b" ", &[b'x'; 200], b" SIP/2.0"]);
        assert!(
            kept.starts_with(b"OPTIONS xxx") && kept.ends_with(b"xxx") && kept.len() == REMEMBERED
        );
        remember(&mut kept, &[b""]);
        assert!(kept.is_empty());
        for hostile in [vec![0xff; 4_096], "ü".repeat(300).into_bytes(), vec![b'x'; 129]] {
            let kept = printable(&hostile);
            assert!(kept.len() <= REMEMBERED && kept.len() > REMEMBERED - 4, "{}", kept.len());
        }
    }

    #[test]
    fn names_are_told_once_and_not_too_many() {
        assert_eq!(named(["b", "a", "b"].into_iter()), "\"a\", \"b\"");
        let many: Vec<String> = (10..30).map(|n| n.to_string()).collect();
        assert!(named(many.iter().map(String::as_str)).ends_with("\"19\" and 10 more"));
    }
}
