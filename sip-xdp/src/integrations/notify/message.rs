//! Messages: an event as JSON, as environment variables of a program, and as a sentence.

use std::fs;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::gate::Suppressed;
use crate::bans::event::Event;
use crate::dataplane::tables::ledger::{OwnerName, Tier};
use crate::net::network::Network;
use crate::text;

/// A message.
#[derive(Debug)]
pub(super) struct Message {
    /// One line of JSON.
    pub(super) json: String,
    /// Environment variables, without control characters.
    pub(super) variables: Vec<(&'static str, String)>,
}

impl Message {
    /// The message of an event, with the events suppressed before it.
    pub(super) fn of(event: &Event, suppressed: &Suppressed) -> Self {
        let mut text = event.event.to_string();
        let place = event.address.map(|address| match event.port {
            Some(port) => format!(" {address} port {port}"),
            None => format!(" {address}"),
        });
        text.push_str(&place.unwrap_or_default());
        let tier = event.tier.map(|tier| tier.name().to_owned());
        let dry_run = event.dry_run.then(|| "dry run".to_owned());
        let what: Vec<_> = [event.kind.clone(), tier, dry_run].into_iter().flatten().collect();
        if !what.is_empty() {
            text.push_str(&format!(" ({})", what.join(", ")));
        }
        if let Some(reason) = event.reason.as_ref().filter(|reason| !reason.is_empty()) {
            text.push_str(&format!(": {reason}"));
        }
        if let Some(expires) = event.expires.filter(|_| event.event == "ban") {
            text.push_str(&format!("; until {}", expires.strftime("%F %T UTC")));
        }
        Self::new(event, text, suppressed)
    }

    /// A message about suppressed events only.
    pub(super) fn summary(suppressed: &Suppressed) -> Self {
        let nothing = Event::new("suppressed");
        Self::new(&nothing, "too many events to tell each".to_owned(), suppressed)
    }

    fn new(event: &Event, mut text: String, suppressed: &Suppressed) -> Self {
        let count: u64 = suppressed.values().sum();
        if count > 0 {
            let each: Vec<_> =
                suppressed.iter().map(|(event, count)| format!("{count} {event}")).collect();
            text.push_str(&format!("; not told before this: {}", each.join(", ")));
        }
        let host = host();
        let text = format!("sip-xdp on {host}: {text}");
        let text_of = |value: Option<String>| text::line(&value.unwrap_or_default());
        let variables = vec![
            ("SIP_XDP_EVENT", text::line(&event.event)),
            ("SIP_XDP_KIND", text_of(event.kind.clone())),
            ("SIP_XDP_ADDRESS", text_of(event.address.map(|address| address.to_string()))),
            ("SIP_XDP_PORT", text_of(event.port.map(|port| port.to_string()))),
            ("SIP_XDP_REASON", text_of(event.reason.clone())),
            ("SIP_XDP_TIER", text_of(event.tier.map(|tier| tier.name().to_owned()))),
            ("SIP_XDP_EXPIRES", text_of(event.expires.map(|expires| expires.to_string()))),
            ("SIP_XDP_SUPPRESSED", count.to_string()),
            ("SIP_XDP_TEXT", text::line(&text)),
        ];
        let notice = Notice {
            time: event.time,
            event: &event.event,
            kind: event.kind.as_deref(),
            address: event.address,
            port: event.port,
            reason: event.reason.as_deref(),
            tier: event.tier,
            dry_run: event.dry_run,
            owner: event.owner.as_deref(),
            expires: event.expires,
            host: &host,
            suppressed: count,
            text: &text,
        };
        // No maps and no floats: serialisation is infallible.
        let json = serde_json::to_string(&notice).unwrap_or_default();
        Self { json: text::json(&json), variables }
    }
}

/// The JSON object for webhooks and programs.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Notice<'a> {
    /// Time of the event.
    time: Timestamp,
    /// Its name, as `watch` prints it; `suppressed` if the message tells only how many events were
    /// suppressed.
    event: &'a str,
    /// Its kind, as `watch` prints it.
    kind: Option<&'a str>,
    /// Its subject: an address or network.
    address: Option<Network>,
    /// The port, if a single port is the subject.
    port: Option<u16>,
    /// Reason in words.
    reason: Option<&'a str>,
    /// Evidence tier of a ban.
    tier: Option<Tier>,
    /// Whether the event is without effect because of a dry run.
    dry_run: bool,
    /// Owner of the list entry.
    #[schemars(with = "Option<OwnerName>")]
    owner: Option<&'a str>,
    /// Expiry of the entry; `None` for permanent.
    expires: Option<Timestamp>,
    /// Name of this host.
    host: &'a str,
    /// Number of events suppressed before this one by the rate limit.
    suppressed: u64,
    /// The event as a sentence.
    text: &'a str,
}

/// The name of this host.
fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    use crate::integrations::tests::event;

    #[test]
    fn a_message_has_the_event_and_the_suppressed_ones() {
        let message = Message::of(
            &event("ban", "192.0.2.7"),
            &[("ban".to_owned(), 3), ("feed".to_owned(), 1)].into(),
        );
        let object: Value = serde_json::from_str(&message.json).unwrap();
        assert_eq!((&object["address"], &object["suppressed"]), (&"192.0.2.7".into(), &4.into()));
        let text = object["text"].as_str().unwrap();
        assert!(
            text.ends_with(
                ": ban 192.0.2.7 (rejected, proven): 10 passwords; not told before this: 3 ban, 1 \
                 feed"
            ),
            "{text}"
        );
        let variable = |name: &str| {
            message.variables.iter().find(|(known, _)| *known == name).unwrap().1.clone()
        };
        assert_eq!(variable("SIP_XDP_EVENT"), "ban");
        assert_eq!(variable("SIP_XDP_PORT"), "");
        assert_eq!(variable("SIP_XDP_SUPPRESSED"), "4");
        let object: Value =
            serde_json::from_str(&Message::summary(&[("ban".to_owned(), 7)].into()).json).unwrap();
        assert_eq!((&object["event"], &object["suppressed"]), (&"suppressed".into(), &7.into()));
    }

    #[test]
    fn variables_have_no_control_characters() {
        let hostile = Event {
            reason: Some("user \"a\0b\nPATH=x\u{1b}[2J\"".to_owned()),
            ..event("ban", "192.0.2.7")
        };
        let message = Message::of(&hostile, &Suppressed::new());
        assert!(
            message.variables.iter().all(|(_, value)| !value.contains(char::is_control)),
            "{message:?}"
        );
        assert!(!message.json.contains('\n'));
    }
}
