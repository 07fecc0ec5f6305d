//! Events: what was decided, as those who watch are told.

use serde::Serialize;
use sip_xdp_common::ip_key::IpKey;

use crate::dataplane::counters;
use crate::dataplane::tables::ledger::{Entry, Tier};
use crate::net::network::Network;
use crate::sys::clock;

/// One event. What does not apply is null in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Event {
    pub(crate) time: jiff::Timestamp,
    pub(crate) event: &'static str,
    pub(crate) kind: Option<String>,
    pub(crate) address: Option<Network>,
    pub(crate) port: Option<u16>,
    pub(crate) reason: Option<String>,
    pub(crate) tier: Option<Tier>,
    pub(crate) dry_run: bool,
    pub(crate) owner: Option<&'static str>,
    pub(crate) expires: Option<jiff::Timestamp>,
    /// Only of events about an interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) interface: Option<String>,
    /// What it says of a feed, if it is about one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) feed: Option<FeedFigures>,
}

/// What an event says of a feed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct FeedFigures {
    /// Its name.
    pub(crate) feed: String,
    /// How many networks it listed for the first time, ...
    pub(crate) added: usize,
    /// ... lists no longer, ...
    pub(crate) removed: usize,
    /// ... and lists now.
    pub(crate) total: usize,
}

impl Event {
    /// Of this name, now, about nobody in particular.
    pub(crate) fn new(event: &'static str) -> Self {
        let time = counters::now();
        Self {
            time,
            event,
            kind: None,
            address: None,
            port: None,
            reason: None,
            tier: None,
            dry_run: false,
            owner: None,
            expires: None,
            interface: None,
            feed: None,
        }
    }

    /// About a feed.
    pub(crate) fn of_feed(kind: &str, figures: FeedFigures) -> Self {
        Self { feed: Some(figures), ..Self::new("feed").kind(kind) }
    }

    /// About an entry of a list.
    pub(crate) fn of(event: &'static str, entry: &Entry) -> Self {
        Self {
            address: Some(entry.network),
            port: entry.port,
            reason: Some(entry.reason.clone()),
            tier: entry.tier,
            dry_run: entry.dry_run,
            owner: Some(entry.owner.name()),
            expires: clock::to_wall(entry.expires),
            ..Self::new(event)
        }
    }

    /// About a source.
    pub(crate) fn from(self, source: IpKey) -> Self {
        self.about(Network::around(source, 128))
    }

    /// About a network.
    pub(crate) fn about(self, network: Network) -> Self {
        Self { address: Some(network), ..self }
    }

    /// Of a port.
    pub(crate) fn port(self, port: u16) -> Self {
        Self { port: Some(port), ..self }
    }

    /// Of this kind.
    pub(crate) fn kind(self, kind: impl Into<String>) -> Self {
        Self { kind: Some(kind.into()), ..self }
    }

    /// For this reason.
    pub(crate) fn reason(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// About an interface.
    pub(crate) fn interface(self, name: &str) -> Self {
        Self { interface: Some(name.to_owned()), ..self }
    }

    /// Whether nothing follows from it, since nothing is dropped.
    pub(crate) fn dry_run(self, dry_run: bool) -> Self {
        Self { dry_run, ..self }
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
        assert_eq!(
            fields,
            [
                "time", "event", "kind", "address", "port", "reason", "tier", "dry_run", "owner",
                "expires"
            ]
        );
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
        assert_eq!(
            (&synced["added"], &synced["removed"], &synced["total"]),
            (&3.into(), &2.into(), &20.into())
        );
        let storm = serde_json::to_value(Event::new("storm")).unwrap();
        assert_eq!(
            (&storm["address"], &storm["kind"], &storm["dry_run"]),
            (&Value::Null, &Value::Null, &false.into())
        );
    }
}
