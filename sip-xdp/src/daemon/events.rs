//! What the daemon says of what it decides: one stable line in the log, and one event to whoever watches.

use std::fmt;

use log::Level;
use serde::Serialize;
use sip_xdp_common::source::Source;

use super::Daemon;
use crate::ledger::{Entry, Tier};
use crate::network::Network;
use crate::report;
use crate::watch::Told;

/// One event. What does not apply is null in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Event {
    time: jiff::Timestamp,
    event: &'static str,
    kind: Option<String>,
    address: Option<Network>,
    port: Option<u16>,
    reason: Option<String>,
    tier: Option<Tier>,
    dry_run: bool,
    /// What it says of a feed, if it is about one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    feed: Option<FeedFigures>,
}

/// What an event says of a feed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct FeedFigures {
    /// Its name.
    pub(super) feed: String,
    /// How many networks it listed for the first time, ...
    pub(super) added: usize,
    /// ... lists no longer, ...
    pub(super) removed: usize,
    /// ... and lists now.
    pub(super) total: usize,
}

impl Event {
    /// Of this name, now, about nobody in particular.
    pub(super) fn new(event: &'static str) -> Self {
        let time = report::now();
        Self {
            time,
            event,
            kind: None,
            address: None,
            port: None,
            reason: None,
            tier: None,
            dry_run: false,
            feed: None,
        }
    }

    /// About a feed.
    pub(super) fn of_feed(kind: &str, figures: FeedFigures) -> Self {
        Self { feed: Some(figures), ..Self::new("feed").kind(kind) }
    }

    /// About an entry of a list.
    pub(super) fn of(event: &'static str, entry: &Entry) -> Self {
        Self {
            address: Some(entry.network),
            port: entry.port,
            reason: Some(entry.reason.clone()),
            tier: entry.tier,
            dry_run: entry.dry_run,
            ..Self::new(event)
        }
    }

    /// About a source.
    pub(super) fn from(self, source: Source) -> Self {
        self.about(Network::around(source, 128))
    }

    /// About a network.
    pub(super) fn about(self, network: Network) -> Self {
        Self { address: Some(network), ..self }
    }

    /// Of a port.
    pub(super) fn port(self, port: u16) -> Self {
        Self { port: Some(port), ..self }
    }

    /// Of this kind.
    pub(super) fn kind(self, kind: impl Into<String>) -> Self {
        Self { kind: Some(kind.into()), ..self }
    }

    /// For this reason.
    pub(super) fn reason(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// Whether nothing follows from it, since nothing is dropped.
    pub(super) fn dry_run(self, dry_run: bool) -> Self {
        Self { dry_run, ..self }
    }
}

impl Daemon {
    /// Writes the line to the log, and tells the event to whoever watches.
    pub(super) fn say(&self, event: Event, level: Level, line: fmt::Arguments<'_>) {
        log::log!(level, "{line}");
        self.tell(&event);
    }

    /// Tells an event to whoever watches.
    pub(super) fn tell(&self, event: &Event) {
        if !self.hub.is_watched() {
            return;
        }
        match serde_json::to_string(event) {
            Ok(line) => self.hub.tell(Told { about: event.address, line: line.into() }),
            Err(error) => log::error!("an event cannot be told: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn an_event_has_all_fields() {
        let entry = Entry {
            port: Some(5062),
            tier: Some(Tier::Proven),
            ..Entry::manual("192.0.2.7".parse().unwrap(), 1, "ten \"passwords\"")
        };
        let event = Event::of("ban", &entry).kind("rejected").dry_run(true);
        let json = serde_json::to_value(&event).unwrap();
        let fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, ["time", "event", "kind", "address", "port", "reason", "tier", "dry_run"]);
        assert_eq!(
            (&json["address"], &json["port"], &json["tier"]),
            (&"192.0.2.7".into(), &5062.into(), &"proven".into())
        );
        let figures = FeedFigures { feed: "public".to_owned(), added: 3, removed: 2, total: 20 };
        let synced = serde_json::to_value(Event::of_feed("synced", figures)).unwrap();
        assert_eq!(
            (&synced["event"], &synced["kind"], &synced["feed"]),
            (&"feed".into(), &"synced".into(), &"public".into())
        );
        assert_eq!((&synced["added"], &synced["removed"], &synced["total"]), (&3.into(), &2.into(), &20.into()));
        let storm = serde_json::to_value(Event::new("storm")).unwrap();
        assert_eq!((&storm["address"], &storm["kind"], &storm["dry_run"]), (&Value::Null, &Value::Null, &false.into()));
    }
}
