//! What people are told: the event as JSON, its fields for a program's environment, and a sentence.

use std::fs;

use serde_json::{Value, json};

use super::gate::Suppressed;
use crate::dataplane::counters;
use crate::integrations::IntegrationEvent;
use crate::text;

/// A message.
#[derive(Debug)]
pub(super) struct Message {
    /// One JSON object.
    pub(super) json: String,
    /// Variables for a program, which have no control characters.
    pub(super) variables: Vec<(&'static str, String)>,
}

impl Message {
    /// About an event, and what was not told before it.
    pub(super) fn of(integration_event: &IntegrationEvent, suppressed: &Suppressed) -> Self {
        let mut text = integration_event.event.clone();
        let place = integration_event.address.map(|address| match integration_event.port {
            Some(port) => format!(" {address} port {port}"),
            None => format!(" {address}"),
        });
        text.push_str(&place.unwrap_or_default());
        let tier = integration_event.tier.map(|tier| tier.name().to_owned());
        let dry_run = integration_event.dry_run.then(|| "dry run".to_owned());
        let what: Vec<_> =
            [integration_event.kind.clone(), tier, dry_run].into_iter().flatten().collect();
        if !what.is_empty() {
            text.push_str(&format!(" ({})", what.join(", ")));
        }
        if let Some(reason) = integration_event.reason.as_ref().filter(|reason| !reason.is_empty())
        {
            text.push_str(&format!(": {reason}"));
        }
        if let Some(expires) =
            integration_event.expires.filter(|_| integration_event.event == "ban")
        {
            text.push_str(&format!("; until {}", expires.strftime("%F %T UTC")));
        }
        Self::new(integration_event, text, suppressed)
    }

    /// About nothing but what was not told.
    pub(super) fn summary(suppressed: &Suppressed) -> Self {
        let nothing = IntegrationEvent {
            time: counters::now(),
            event: "suppressed".to_owned(),
            ..IntegrationEvent::default()
        };
        Self::new(&nothing, "too many events to tell each".to_owned(), suppressed)
    }

    fn new(
        integration_event: &IntegrationEvent,
        mut text: String,
        suppressed: &Suppressed,
    ) -> Self {
        let IntegrationEvent {
            time,
            event,
            kind,
            address,
            port,
            reason,
            tier,
            dry_run,
            owner,
            expires,
        } = integration_event;
        let count: u64 = suppressed.values().sum();
        if count > 0 {
            let each: Vec<_> =
                suppressed.iter().map(|(event, count)| format!("{count} {event}")).collect();
            text.push_str(&format!("; not told before this: {}", each.join(", ")));
        }
        let host = host();
        let text = format!("sip-xdp on {host}: {text}");
        let object = json!({
            "time": time, "event": event, "kind": kind, "address": address, "port": port, "reason": reason, "tier": tier,
            "dry_run": dry_run, "owner": owner, "expires": expires, "host": host, "suppressed": count, "text": text,
        });
        let variables = [
            ("SIP_XDP_EVENT", "event"),
            ("SIP_XDP_KIND", "kind"),
            ("SIP_XDP_ADDRESS", "address"),
            ("SIP_XDP_PORT", "port"),
            ("SIP_XDP_REASON", "reason"),
            ("SIP_XDP_TIER", "tier"),
            ("SIP_XDP_EXPIRES", "expires"),
            ("SIP_XDP_SUPPRESSED", "suppressed"),
            ("SIP_XDP_TEXT", "text"),
        ];
        let variables = variables.map(|(name, field)| (name, variable(&object[field]))).into();
        Self { json: text::json(&object.to_string()), variables }
    }
}

/// A field as text. Attackers have a say in reasons: what could end a line, or begin an escape
/// sequence, is taken out.
fn variable(field: &Value) -> String {
    match field {
        Value::Null => String::new(),
        Value::String(text) => text::line(text),
        other => other.to_string(),
    }
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
    use crate::integrations::tests::stream_event;

    fn integration_event(event: &'static str) -> IntegrationEvent {
        serde_json::from_str(&stream_event(event, "192.0.2.7", "").line).unwrap()
    }

    #[test]
    fn a_message_says_what_happened_and_what_was_not_told() {
        let message = Message::of(
            &integration_event("ban"),
            &[("ban".to_owned(), 3), ("feed".to_owned(), 1)].into(),
        );
        let object: Value = serde_json::from_str(&message.json).unwrap();
        assert_eq!((&object["address"], &object["suppressed"]), (&"192.0.2.7".into(), &4.into()));
        let text = object["text"].as_str().unwrap();
        assert!(
            text.ends_with(
                ": ban 192.0.2.7 (rejected, proven): 10 passwords; not told before \
                            this: 3 ban, 1 feed"
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
        let hostile = IntegrationEvent {
            reason: Some("user \"a\0b\nPATH=x\u{1b}[2J\"".to_owned()),
            ..integration_event("ban")
        };
        let message = Message::of(&hostile, &Suppressed::new());
        assert!(
            message.variables.iter().all(|(_, value)| !value.contains(char::is_control)),
            "{message:?}"
        );
        assert!(!message.json.contains('\n'));
    }
}
