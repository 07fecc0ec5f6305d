//! Events of decisions, as `watch` shows them.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sip_xdp_common::ip_key::IpKey;

use crate::dataplane::counters;
use crate::dataplane::tables::ledger::{Entry, OwnerName, Tier};
use crate::detect::kinds;
use crate::net::network::Network;
use crate::sip::transport::Transport;
use crate::sys::clock;
use crate::sys::schema::{one_of, schema_of};

schema_of!(
    /// The name of an event, in schemas.
    EventName,
    one_of(
        "The name of an event.",
        NAMES
    )
);

schema_of!(
    /// The kind of an event, in schemas.
    EventKind,
    one_of(
        "The kind of an event: of a ban its evidence, of a limit its bucket, of others what \
         happened.",
        kinds().iter().map(|(kind, _)| kind.name).chain(KINDS)
    )
);

/// The kinds of events that are no kinds of bans.
const KINDS: [&str; 21] = [
    "attached",
    "blind",
    "command",
    "detached",
    "displaced",
    "dry_run_over",
    "expired",
    "failed",
    "fragments",
    "gone",
    "guard",
    "import",
    "other",
    "refused",
    "renamed",
    "seeing",
    "storm",
    "suspect",
    "swapped",
    "synced",
    "well",
];

/// The names of events.
pub(crate) const NAMES: [&str; 21] = [
    "ban",
    "block",
    "conflict",
    "exempt",
    "expelled",
    "feed",
    "good",
    "interface",
    "limit",
    "nearly_full",
    "neighbours",
    "peer",
    "registrar_failing",
    "served",
    "sprayed",
    "storm",
    "suspect",
    "trust",
    "unban",
    "unseen_responses",
    "untrust",
];

/// One event, of one type from the ban engine to every consumer. Fields that do not apply are null
/// in JSON.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Event {
    /// Time of the decision.
    pub time: jiff::Timestamp,
    /// Its name: `ban`, `unban`, `limit`, `storm`, `feed`, ...
    #[schemars(with = "EventName")]
    pub event: Cow<'static, str>,
    /// Its kind, of a small set per event; for a ban the kind of evidence.
    #[schemars(with = "Option<EventKind>")]
    pub kind: Option<String>,
    /// Its subject: an address or network.
    pub address: Option<Network>,
    /// The port, if a single port is the subject.
    pub port: Option<u16>,
    /// How the messages came that it is about, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// Reason in words. Attackers choose parts of it: escape it before display.
    pub reason: Option<String>,
    /// Evidence tier of a ban.
    pub tier: Option<Tier>,
    /// Whether the event is without effect because of a dry run.
    pub dry_run: bool,
    /// Owner of the list entry.
    #[schemars(with = "Option<OwnerName>")]
    pub owner: Option<Cow<'static, str>>,
    /// Expiry of the entry; `None` for permanent.
    pub expires: Option<jiff::Timestamp>,
    /// The interface that is its subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The Call-ID of the latest request that it is about, for whoever relates it to calls.
    #[serde(skip)]
    pub call_id: Option<String>,
    /// The feed that is its subject.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub feed: Option<FeedFigures>,
}

/// The figures of a feed.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct FeedFigures {
    /// Name of the feed.
    pub feed: String,
    /// Number of networks added.
    pub added: usize,
    /// Number of networks removed.
    pub removed: usize,
    /// Number of networks listed now.
    pub total: usize,
}

impl Event {
    /// An event of this name, now, without a subject.
    pub fn new(event: &'static str) -> Self {
        let time = counters::now();
        Self {
            time,
            event: event.into(),
            kind: None,
            address: None,
            port: None,
            transport: None,
            reason: None,
            tier: None,
            dry_run: false,
            owner: None,
            expires: None,
            interface: None,
            call_id: None,
            feed: None,
        }
    }

    /// An event about a feed.
    pub(crate) fn of_feed(kind: &str, figures: FeedFigures) -> Self {
        Self { feed: Some(figures), ..Self::new("feed").kind(kind) }
    }

    /// An event about an entry.
    pub(crate) fn of(event: &'static str, entry: &Entry) -> Self {
        Self {
            address: Some(entry.network),
            port: entry.port,
            reason: Some(entry.reason.clone()),
            tier: entry.tier,
            dry_run: entry.dry_run,
            owner: Some(entry.owner.name().into()),
            expires: clock::to_wall(entry.expires),
            ..Self::new(event)
        }
    }

    /// Sets a source as subject.
    pub(crate) fn from(self, source: IpKey) -> Self {
        self.about(Network::around(source, 128))
    }

    /// Sets a network as subject.
    pub(crate) fn about(self, network: Network) -> Self {
        Self { address: Some(network), ..self }
    }

    /// Sets the port.
    pub(crate) fn port(self, port: u16) -> Self {
        Self { port: Some(port), ..self }
    }

    /// By this transport.
    pub(crate) fn transport(self, transport: Transport) -> Self {
        Self { transport: Some(transport), ..self }
    }

    /// Sets the kind.
    pub(crate) fn kind(self, kind: impl Into<String>) -> Self {
        Self { kind: Some(kind.into()), ..self }
    }

    /// Sets the reason.
    pub(crate) fn reason(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// Sets the interface.
    pub(crate) fn interface(self, name: &str) -> Self {
        Self { interface: Some(name.to_owned()), ..self }
    }

    /// Marks an event of a dry run.
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
