//! Recent events, for clients that connect later: `top`, the web page and metrics.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bans::event::Event;
use crate::dataplane::counters;
use crate::net::network::Network;

/// Capacity for bans, and for other decisions.
const DECISIONS: usize = 50;

/// Capacity for sources over a limit.
const LIMITED: usize = 256;

/// The recent events.
#[derive(Debug)]
pub(super) struct Recent {
    since: Timestamp,
    bans: VecDeque<Arc<Event>>,
    others: VecDeque<Arc<Event>>,
    /// One event per source.
    limited: VecDeque<(Network, Arc<Event>)>,
    events: BTreeMap<String, u64>,
    by_kind: BTreeMap<String, u64>,
}

/// A copy of the recent events, in the form of `watch`, latest first.
#[derive(Debug, Clone, Default, JsonSchema, Serialize, Deserialize)]
pub struct Latest {
    /// Start of counting.
    pub since: Option<Timestamp>,
    /// Bans.
    pub bans: Vec<Arc<Event>>,
    /// Other decisions and observations.
    pub others: Vec<Arc<Event>>,
    /// Sources that went over a limit.
    pub limited: Vec<Arc<Event>>,
    /// Number of events by name since then.
    pub events: BTreeMap<String, u64>,
    /// Number of bans by kind since then.
    pub bans_by_kind: BTreeMap<String, u64>,
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            since: counters::now(),
            bans: VecDeque::new(),
            others: VecDeque::new(),
            limited: VecDeque::new(),
            events: BTreeMap::new(),
            by_kind: BTreeMap::new(),
        }
    }
}

impl Recent {
    /// Adds an event.
    pub(super) fn note(&mut self, event: &Arc<Event>) {
        *self.events.entry(event.event.to_string()).or_default() += 1;
        match (&*event.event, event.address) {
            ("ban", _) => {
                *self.by_kind.entry(event.kind.clone().unwrap_or_default()).or_default() += 1;
                push(&mut self.bans, DECISIONS, Arc::clone(event));
            }
            ("limit", Some(source)) => {
                self.limited.retain(|(known, _)| *known != source);
                push(&mut self.limited, LIMITED, (source, Arc::clone(event)));
            }
            // Too frequent: registrations would displace everything else.
            ("good" | "peer", _) => {}
            _ => push(&mut self.others, DECISIONS, Arc::clone(event)),
        }
    }

    /// A copy.
    pub(super) fn latest(&self) -> Latest {
        let copy = |events: &VecDeque<Arc<Event>>| events.iter().rev().cloned().collect();
        Latest {
            since: Some(self.since),
            bans: copy(&self.bans),
            others: copy(&self.others),
            limited: self.limited.iter().rev().map(|(_, event)| Arc::clone(event)).collect(),
            events: self.events.clone(),
            bans_by_kind: self.by_kind.clone(),
        }
    }
}

/// Appends; removes the oldest beyond the capacity.
fn push<T>(to: &mut VecDeque<T>, most: usize, what: T) {
    if to.len() >= most {
        to.pop_front();
    }
    to.push_back(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &'static str, kind: &str, number: u32) -> Arc<Event> {
        let about = Network::around(sip_xdp_common::ip_key::IpKey::v4(number), 128);
        Arc::new(Event::new(name).about(about).kind(kind).reason(number.to_string()))
    }

    #[test]
    fn the_latest_are_kept_and_all_are_counted() {
        let mut recent = Recent::default();
        recent.note(&named("ban", "rejected", 7));
        for number in 0..1_000 {
            recent.note(&named("unban", "expired", number));
            recent.note(&named("limit", "requests", number % 300));
            recent.note(&named("good", "", number));
        }
        let latest = recent.latest();
        let number = |event: &Event| event.reason.clone().unwrap();
        assert_eq!(number(&latest.bans[0]), "7", "frequent events do not push out a ban");
        assert_eq!((latest.others.len(), number(&latest.others[0])), (DECISIONS, "999".into()));
        assert_eq!((latest.limited.len(), number(&latest.limited[0])), (LIMITED, "99".into()));
        assert_eq!((latest.events["unban"], latest.events["good"]), (1_000, 1_000));
        assert_eq!(latest.bans_by_kind, [("rejected".to_owned(), 1)].into());
        let copy: Latest = serde_json::from_value(serde_json::to_value(&latest).unwrap()).unwrap();
        assert_eq!(copy.limited, latest.limited);
    }
}
