//! The latest events, for those who come after they happened: screens, and counters that are read
//! now and then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::event_stream::StreamEvent;
use crate::dataplane::counters;
use crate::net::network::Network;

/// How many bans are kept, and how many other decisions.
const DECISIONS: usize = 50;

/// How many sources that went over a limit are kept.
const LIMITED: usize = 256;

/// The latest events.
#[derive(Debug)]
pub(super) struct Recent {
    since: Timestamp,
    bans: VecDeque<Arc<str>>,
    others: VecDeque<Arc<str>>,
    /// A source is in it once.
    limited: VecDeque<(Network, Arc<str>)>,
    events: BTreeMap<String, u64>,
    by_kind: BTreeMap<String, u64>,
}

/// A copy of them. Events come as `watch` tells them, the latest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Latest {
    /// Since when the daemon counts.
    pub since: Option<Timestamp>,
    /// Bans.
    pub bans: Vec<Value>,
    /// What else was decided or noticed.
    pub others: Vec<Value>,
    /// Sources that went over a limit.
    pub limited: Vec<Value>,
    /// Events by name, since then.
    pub events: BTreeMap<String, u64>,
    /// Bans by kind, since then.
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
    /// Takes an event.
    pub(super) fn note(&mut self, stream_event: &StreamEvent) {
        *self.events.entry(stream_event.event.to_owned()).or_default() += 1;
        match (stream_event.event, stream_event.about) {
            ("ban", _) => {
                *self.by_kind.entry(stream_event.kind.clone().unwrap_or_default()).or_default() +=
                    1;
                push(&mut self.bans, DECISIONS, Arc::clone(&stream_event.line));
            }
            ("limit", Some(source)) => {
                self.limited.retain(|(known, _)| *known != source);
                push(&mut self.limited, LIMITED, (source, Arc::clone(&stream_event.line)));
            }
            // So many phones come and go that nothing else would be left.
            ("good" | "peer", _) => {}
            _ => push(&mut self.others, DECISIONS, Arc::clone(&stream_event.line)),
        }
    }

    /// A copy.
    pub(super) fn latest(&self) -> Latest {
        let read = |line: &Arc<str>| serde_json::from_str(line).ok();
        Latest {
            since: Some(self.since),
            bans: self.bans.iter().rev().filter_map(read).collect(),
            others: self.others.iter().rev().filter_map(read).collect(),
            limited: self.limited.iter().rev().filter_map(|(_, line)| read(line)).collect(),
            events: self.events.clone(),
            bans_by_kind: self.by_kind.clone(),
        }
    }
}

/// Appends what is new; the oldest goes if there would be too many.
fn push<T>(to: &mut VecDeque<T>, most: usize, what: T) {
    if to.len() >= most {
        to.pop_front();
    }
    to.push_back(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream_event(event: &'static str, kind: &str, number: u32) -> StreamEvent {
        let about = Some(Network::around(sip_xdp_common::ip_key::IpKey::v4(number), 128));
        let line = format!("{{\"event\":\"{event}\",\"number\":{number}}}").into();
        StreamEvent { about, event, kind: Some(kind.to_owned()), line }
    }

    #[test]
    fn the_latest_are_kept_and_all_are_counted() {
        let mut recent = Recent::default();
        recent.note(&stream_event("ban", "rejected", 7));
        for number in 0..1_000 {
            recent.note(&stream_event("unban", "expired", number));
            recent.note(&stream_event("limit", "requests", number % 300));
            recent.note(&stream_event("good", "", number));
        }
        let latest = recent.latest();
        assert_eq!(latest.bans[0]["number"], 7, "what is frequent does not push out what matters");
        assert_eq!((latest.others.len(), &latest.others[0]["number"]), (DECISIONS, &999.into()));
        assert_eq!((latest.limited.len(), &latest.limited[0]["number"]), (LIMITED, &99.into()));
        assert_eq!((latest.events["unban"], latest.events["good"]), (1_000, 1_000));
        assert_eq!(latest.bans_by_kind, [("rejected".to_owned(), 1)].into());
        let copy: Latest = serde_json::from_value(serde_json::to_value(&latest).unwrap()).unwrap();
        assert_eq!(copy.limited, latest.limited);
    }
}
