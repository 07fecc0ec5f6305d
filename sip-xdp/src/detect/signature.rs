//! Requests that only tools send: their User-Agents, the shape of their tags, and users that nobody has.

use sip_xdp_common::abi::layout::Event;
use sip_xdp_common::ip_key::Source;

use super::{Action, Detector, Finding};
use crate::config::Signature;
use crate::dataplane::tables::ledger::Tier;
use crate::sip::message::{Head, user_name};

/// For how long a source that looks like a tool is limited, in nanoseconds.
const SUSPICION: u64 = 600_000_000_000;

/// So many calls of a source that looks like a tool ban it although it may be forged.
const CALLS: usize = 3;

impl Detector {
    /// Looks at a request for what gives a tool away.
    pub(super) fn look_for_signature(
        &mut self,
        key: Source,
        event: &Event,
        head: &Head<'_>,
        actions: &mut Vec<Action>,
    ) {
        if !self.rules.signature.enabled || self.is_spared(&event.source, event.time) {
            return;
        }
        // A tool gives itself away in every request. One that does not was sent by somebody else: what was forged in the name
        // of a phone must not be proven by the phone.
        let Some(found) = signature(head, &self.rules.signature) else {
            return;
        };
        let Some(subject) = self.subjects.get_mut(&key) else {
            return;
        };
        if let Some(call) = head.call_id
            && subject.calls.len() < CALLS
        {
            subject.calls.insert(super::digest(call));
        }
        let is_new = subject.signature.is_none();
        let what = subject.signature.get_or_insert(found).clone();
        let calls = subject.calls.len();
        if subject.proven || calls >= CALLS {
            let more = if subject.proven { String::new() } else { format!(" in {calls} calls") };
            self.convict_by_signature(key, event.time, &more, actions);
        } else if is_new {
            actions.push(Action::Suspect(event.source, event.time + SUSPICION, what));
        }
    }

    /// Bans a source that looks like a tool, now that there is something else against it.
    pub(super) fn convict_by_signature(&mut self, key: Source, now: u64, more: &str, actions: &mut Vec<Action>) {
        if !self.rules.signature.enabled {
            return;
        }
        let Some(subject) = self.subjects.get(&key) else {
            return;
        };
        // What looked like a tool before somebody was accepted from there may have been forged.
        if self.is_spared(&subject.source, now) {
            return;
        }
        let Some(what) = &subject.signature else {
            return;
        };
        let finding = Finding {
            source: subject.source,
            port: None,
            by_address: subject.by_address,
            kind: "signature",
            tier: if subject.proven { Tier::Proven } else { Tier::Unproven },
            grows: subject.proven,
            reason: format!("{what}{more}"),
        };
        self.convict(key, finding, now, actions);
    }
}

/// What gives a message away as a tool's, if anything does.
fn signature(head: &Head<'_>, rules: &Signature) -> Option<String> {
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

/// sipvicious writes what it is after into its tags: text, a byte 1 and a number, all as hexadecimal digits
/// (`createTag` in its svhelper.py). What another phone draws at random does not come out like that.
fn is_sipvicious_tag(tag: &[u8]) -> bool {
    if tag.len() < 8 || !tag.len().is_multiple_of(2) || tag.len() > 512 {
        return false;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes: Option<Vec<u8>> =
        tag.chunks_exact(2).map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect();
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
        signature(&Head::read(text.as_bytes()).unwrap(), &Signature::default())
    }

    #[test]
    fn tools_are_known_by_name() {
        assert!(found("User-Agent: friendly-scanner").is_some());
        assert!(found("user-agent : FRIENDLY-SCANNER 0.3").is_some());
        for product in
            ["Yealink SIP-T46S 66.84", "Asterisk PBX", "PortSIP UC", "sipsak 0.9.8", "my friendly-scanner", ""]
        {
            assert_eq!(found(&format!("User-Agent: {product}")), None, "{product}");
        }
    }

    #[test]
    fn tags_of_a_tool_are_known_by_their_shape() {
        let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        for text in ["100\x011234567890", "100:secret\x0199", "c6336401\x0142"] {
            assert!(is_sipvicious_tag(hex(text).as_bytes()), "{text:?}");
        }
        for tag in ["31303001", "1928301774", "a6c85cf", "as58f4201b", "", "0102030405060708", "deadbeefdeadbeef"] {
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
