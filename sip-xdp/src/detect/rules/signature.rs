//! `signature`: requests with a tool's signature: User-Agent, form of the tags, and user names that
//! only tools try.
//!
//! Such a request may be forged. So it first leads to a limit, and is decided at the final
//! response: a right password clears it; a ban needs a routable sender, a second kind of evidence
//! in another packet, or several calls.

use std::collections::HashMap;

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sip_xdp_common::ip_key::IpKey;

use super::super::claim::Level;
use super::super::responses::Answer;
use super::super::source_state::SourceState;
use super::super::transactions::Request;
use super::super::{Action, Detector, GRACE_NS, Metering, Step};
use super::rule::{BanKind, Counts, Heard, Rule, Signal, Told};
use crate::config::Span;
use crate::sip::message::{Head, user_name};

/// `[detect.signature]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
#[serde(default)]
pub struct Settings {
    /// Whether it can ban.
    pub enabled: bool,
    /// Prefixes of tools' User-Agents, case-insensitive.
    pub agents: Vec<String>,
    /// Prefixes of User-Agents that attackers share with legitimate products, case-insensitive: no
    /// verdict by themselves, but they halve the thresholds.
    pub products: Vec<String>,
    /// Whether From-tags in the form of a known tool count.
    pub tags: bool,
    /// User names that only tools try.
    pub users: Vec<String>,
}

/// Tools whose User-Agents were seen on the wire. Products for people, such as softphones whose
/// library attackers use as well, are excluded.
const TOOLS: [&str; 14] = [
    "friendly-scanner",
    "friendly-request",
    "sipvicious",
    "sipcli",
    "sundayddr",
    "iWar",
    "sip-scan",
    "sipscan",
    "SIVuS",
    "Gulp",
    "smap",
    "pplsip",
    "Nmap NSE",
    "Nsauditor",
];

/// Products that attackers use as well.
const PRODUCTS: [&str; 2] = ["VaxSIPUserAgent", "VaxIPUserAgent"];

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            agents: TOOLS.map(str::to_owned).to_vec(),
            products: PRODUCTS.map(str::to_owned).to_vec(),
            tags: true,
            users: ["sipvicious", "nm"].map(str::to_owned).to_vec(),
        }
    }
}

impl super::rule::Settings for Settings {
    fn enabled(&self) -> bool {
        self.enabled
    }

    fn rate(&self) -> Option<(u32, Span)> {
        None
    }

    fn check(&self, name: &str) -> Result<()> {
        if self.agents.iter().chain(&self.products).any(|agent| agent.trim().len() < 3) {
            bail!(
                "{name}.agents or .products contains a name of less than three characters, which \
                 would match anything"
            );
        }
        Ok(())
    }
}

pub(in super::super) struct Signature;

impl Rule for Signature {
    const NAME: &'static str = "signature";
    const COMMENT: &'static str = "Requests that only attack tools send: beginnings of their \
        User-Agents, shapes of their From-tags, users that they try. Products are used by \
        attackers and by others: they halve the evidence that the other rules need.";
    const KINDS: &'static [BanKind] = &[BanKind {
        name: "signature",
        evidence: "a User-Agent, From-tag or user that only attack tools have",
        limits: "limited to 1 request/s at once; banned at the final answer, with proof, with a \
                 second kind of evidence, or after 3 Call-IDs; a right password clears it",
    }];

    type Settings = Settings;
    type Counts = Suspicion;
    type Memory = ();

    fn hear(detector: &mut Detector, heard: &Heard<'_>, actions: &mut Vec<Action>) {
        let (source, now) = (heard.source, heard.now);
        match heard.what {
            Signal::Head(head) => detector.look_for_signature(source, head, now, actions),
            Signal::Answered(request, answer) => {
                detector.tool_was_answered(request, answer, actions);
            }
            Signal::Tagged(call) => detector.tool_is_proven(source, call, now, actions),
            Signal::Due => detector.settle_tool_calls(source, now, actions),
            _ => {}
        }
    }

    fn tell(_: &Detector, state: &SourceState, _: u64) -> Option<Told> {
        let Suspicion { found, calls, .. } = &state.counts.signature;
        let text = format!("{}, in {} calls", found.as_ref()?, calls.len());
        Some(Told { count: 1.0, text })
    }
}

/// What looks like a tool in the requests of one source.
#[derive(Debug, Default)]
pub(in super::super) struct Suspicion {
    /// The tool's signature.
    pub(in super::super) found: Option<String>,
    /// Calls with a tool's signature: start by Call-ID; `None` once decided.
    calls: HashMap<u64, Option<u64>>,
    /// Whether its User-Agent is of a product that attackers use as well.
    pub(in super::super) is_doubtful: bool,
}

impl Counts for Suspicion {
    fn take_back(&mut self, _users: &[String], _call: u64) {
        self.found = None;
        self.calls.clear();
    }

    fn begin_anew(&mut self, port: Option<u16>) {
        if port.is_none() {
            self.calls.clear();
        }
    }
}

/// How long a source with a tool's signature is limited.
const SUSPICION_NS: u64 = 600_000_000_000;

/// Number of calls with a tool's signature that ban although forgeable.
const CALLS: usize = 3;

impl Detector {
    /// Checks a request for signatures.
    fn look_for_signature(
        &mut self,
        source: IpKey,
        head: &Head<'_>,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        if !self.rules.signature.enabled || self.has_standing(&source, now) {
            return;
        }
        let is_doubtful =
            head.agent.is_some_and(|agent| names(agent, &self.rules.signature.products));
        // A tool's requests all have its signature. One without it came from another sender: what
        // was forged in the name of a phone must not be proven by the phone.
        let found = signature(head, &self.rules.signature);
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        state.counts.signature.is_doubtful |= is_doubtful;
        let Some(found) = found else {
            return;
        };
        if let Some(call) = head.call_id.map(|call| super::super::digest::digest(&Some(call)))
            && state.counts.signature.calls.len() < 4 * CALLS
            && !state.counts.signature.calls.contains_key(&call)
        {
            state.counts.signature.calls.insert(call, Some(now));
            self.due.push_back((now + GRACE_NS, source));
        }
        if state.counts.signature.found.is_none() {
            state.counts.signature.found = Some(found.clone());
            let metering = Metering::of_host(source, Step::First, now + SUSPICION_NS, found);
            actions.push(Action::Meter(metering));
        }
    }

    /// Processes the final response to a request with a tool's signature.
    fn tool_was_answered(
        &mut self,
        request: &Request,
        answer: &Answer<'_>,
        actions: &mut Vec<Action>,
    ) {
        let (source, now) = (request.source, answer.now);
        let level = self.level_of(request, now);
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        let Some(decided) = state.counts.signature.calls.get_mut(&request.call) else {
            return;
        };
        // A challenge is a response, too: right credentials after it clear all of this.
        *decided = None;
        if level == Level::Routable && !answer.is_foreign && answer.to == source {
            self.convict_tool(source, level, ", and it echoes its nonce", now, actions);
        } else {
            self.weigh_tool(source, now, actions);
        }
    }

    /// Processes a dialog that proves the address of a source with a tool's signature.
    fn tool_is_proven(&mut self, source: IpKey, call: u64, now: u64, actions: &mut Vec<Action>) {
        if self
            .sources
            .get(&source)
            .is_some_and(|state| state.counts.signature.calls.contains_key(&call))
        {
            self.convict_tool(source, Level::Routable, ", and it repeats our tag", now, actions);
        }
    }

    /// Decides calls with a tool's signature that stay without response or credentials.
    fn settle_tool_calls(&mut self, source: IpKey, now: u64, actions: &mut Vec<Action>) {
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        let mut changed = false;
        for since in state.counts.signature.calls.values_mut() {
            if since.take_if(|at| now.saturating_sub(*at) >= GRACE_NS).is_some() {
                changed = true;
            }
        }
        if changed {
            self.weigh_tool(source, now, actions);
        }
    }

    fn weigh_tool(&mut self, source: IpKey, now: u64, actions: &mut Vec<Action>) {
        let Some(state) = self.sources.get(&source) else {
            return;
        };
        let calls = state.counts.signature.calls.values().filter(|since| since.is_none()).count();
        let refused =
            state.counts.enumeration.iter().next_back().map(|(_, one)| one.target().to_owned());
        if calls >= CALLS {
            self.convict_tool(source, Level::Seen, &format!(" in {calls} calls"), now, actions);
        } else if calls >= 2
            && let Some(user) = refused
        {
            let more = format!(", and the user {user:?} was refused");
            self.convict_tool(source, Level::Seen, &more, now, actions);
        }
    }

    fn convict_tool(
        &mut self,
        source: IpKey,
        level: Level,
        more: &str,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        // A signature before an acceptance from there may have been forged.
        if !self.rules.signature.enabled || self.has_standing(&source, now) {
            return;
        }
        let Some(what) =
            self.sources.get(&source).and_then(|state| state.counts.signature.found.clone())
        else {
            return;
        };
        let finding = self.about(source, Signature::NAME, level, format!("{what}{more}"));
        self.emit_ban(level, finding, now, actions);
    }
}

/// Whether a User-Agent starts with one of these.
fn names(agent: &[u8], known: &[String]) -> bool {
    known.iter().any(|known| starts_with(agent, known.as_bytes()))
}

/// The signature in a message, if any.
fn signature(head: &Head<'_>, rules: &Settings) -> Option<String> {
    if let Some(agent) = head.agent
        && let Some(known) = rules.agents.iter().find(|known| starts_with(agent, known.as_bytes()))
    {
        return Some(format!("the User-Agent of an attack tool ({known})"));
    }
    if rules.tags
        && let Some(tag) = head.from.tag
        && is_sipvicious_tag(tag)
    {
        return Some("a From-tag of the shape that sipvicious makes".to_owned());
    }
    let user = head.from.user.or(head.to.user).map(user_name)?;
    rules.users.contains(&user).then(|| format!("the user {user:?}, which only tools have"))
}

fn starts_with(agent: &[u8], known: &[u8]) -> bool {
    agent.get(..known.len()).is_some_and(|start| start.eq_ignore_ascii_case(known))
}

/// sipvicious encodes its target in its tags: text, a byte 1 and a number, as hexadecimal digits
/// (`createTag` in its svhelper.py). Random tags of phones do not decode like that.
fn is_sipvicious_tag(tag: &[u8]) -> bool {
    if tag.len() < 8 || !tag.len().is_multiple_of(2) || tag.len() > 512 {
        return false;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes: Option<Vec<u8>> = tag
        .chunks_exact(2)
        .map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8))
        .collect();
    let Some(bytes) = bytes else {
        return false;
    };
    let Some(at) = bytes.iter().position(|byte| *byte == 1) else {
        return false;
    };
    let (text, number) = (&bytes[..at], &bytes[at + 1..]);
    !text.is_empty()
        && text.iter().all(|byte| (b' '..0x7f).contains(byte))
        && (1..=10).contains(&number.len())
        && number.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(lines: &str) -> Option<String> {
        let text = format!("OPTIONS sip:100@a SIP/2.0\r\n{lines}\r\n\r\n");
        signature(&Head::read(text.as_bytes()).unwrap(), &Settings::default())
    }

    #[test]
    fn tools_are_known_by_name() {
        assert!(found("User-Agent: friendly-scanner").is_some());
        assert!(found("user-agent : FRIENDLY-SCANNER 0.3").is_some());
        for product in [
            "Yealink SIP-T46S 66.84",
            "Asterisk PBX",
            "PortSIP UC",
            "sipsak 0.9.8",
            "my friendly-scanner",
            "",
        ] {
            assert_eq!(found(&format!("User-Agent: {product}")), None, "{product}");
        }
    }

    #[test]
    fn tags_of_a_tool_are_known_by_their_shape() {
        let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        for text in ["100\x011234567890", "100:secret\x0199", "c6336401\x0142"] {
            assert!(is_sipvicious_tag(hex(text).as_bytes()), "{text:?}");
        }
        for tag in [
            "31303001",
            "1928301774",
            "a6c85cf",
            "as58f4201b",
            "",
            "0102030405060708",
            "deadbeefdeadbeef",
        ] {
            assert!(!is_sipvicious_tag(tag.as_bytes()), "{tag}");
        }
        assert!(found(&format!("From: <sip:x@a>;tag={}", hex("100\x0142"))).is_some());
    }

    #[test]
    fn users_that_only_tools_have() {
        assert!(found("From: \"x\" <sip:sipvicious@a>;tag=1").is_some());
        assert_eq!(found("From: <sip:alice@a>;tag=1"), None);
    }
}
