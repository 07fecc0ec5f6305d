//! The counters of the last hour, for a newly opened web page.

use std::collections::VecDeque;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp_common::verdict::{Reason, Verdict};

use crate::dataplane::counters::{InterfaceStats, SCHEMA};
use crate::observe::snapshot;
use crate::sys::clock;

/// Interval between two points.
pub(super) const STEP: Duration = Duration::from_secs(10);

/// Number of points: one hour.
const POINTS: usize = 361;

/// The counters over time.
#[derive(Debug, Default)]
pub(crate) struct History {
    points: VecDeque<Point>,
}

#[derive(Debug)]
struct Point {
    at_ms: u64,
    /// In the order of [`columns`].
    counts: Vec<u64>,
}

/// The columns of a point: verdicts and reasons.
fn columns() -> Vec<(&'static str, &'static str)> {
    let dropped = || Reason::ALL.into_iter().filter(|reason| reason.verdict() == Verdict::Drop);
    let passed = Reason::ALL.into_iter().filter(|reason| reason.verdict() == Verdict::Pass);
    let passed = passed.map(|reason| ("pass", reason.name()));
    let would = dropped().map(|reason| ("would_drop", reason.name()));
    passed.chain(dropped().map(|reason| ("drop", reason.name()))).chain(would).collect()
}

impl History {
    /// Adds a point.
    pub(crate) fn note(&mut self, interfaces: &[InterfaceStats]) {
        let sums = snapshot::packets(interfaces);
        let counts =
            columns().iter().map(|column| sums.get(column).copied().unwrap_or(0)).collect();
        if self.points.len() >= POINTS {
            self.points.pop_front();
        }
        self.points.push_back(Point { at_ms: clock::wall_ms(), counts });
    }

    /// For the web page: columns, and for each point its time in milliseconds since 1970 and the
    /// counters.
    pub(crate) fn page(&self) -> HistoryPage {
        let columns = columns().into_iter().map(|(verdict, reason)| Column { verdict, reason });
        HistoryPage {
            schema: SCHEMA,
            step: STEP.as_secs(),
            columns: columns.collect(),
            points: self.points.iter().map(|point| (point.at_ms, point.counts.clone())).collect(),
        }
    }
}

/// The packets of the last hour, for the web page.
#[derive(Debug, JsonSchema, Serialize)]
pub struct HistoryPage {
    /// Version of the format.
    schema: u32,
    /// Seconds between two points.
    step: u64,
    /// The columns of a point.
    columns: Vec<Column>,
    /// Points: time in milliseconds since 1970, and a counter of packets for each column.
    points: Vec<(u64, Vec<u64>)>,
}

/// A column of the history.
#[derive(Debug, JsonSchema, Serialize)]
struct Column {
    /// Verdict.
    #[schemars(extend("enum" = ["pass", "drop", "would_drop"]))]
    verdict: &'static str,
    /// The reason, as `stats` names it.
    reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_an_hour_and_no_more() {
        let mut history = History::default();
        let mut one = InterfaceStats {
            interface: "eth0".to_owned(),
            mode: None,
            packets: Default::default(),
            bytes: Default::default(),
            methods: Default::default(),
            tcp: Default::default(),
        };
        for n in 0..1_000 {
            one.packets.drop.insert("blocked", n);
            history.note(&[one.clone(), one.clone()]);
        }
        let json = serde_json::to_value(history.page()).unwrap();
        let points = json["points"].as_array().unwrap();
        assert_eq!(points.len(), POINTS);
        let column = columns().iter().position(|column| *column == ("drop", "blocked")).unwrap();
        assert_eq!(points[POINTS - 1][1][column], 2 * 999, "both interfaces together");
        assert_eq!(json["columns"][column]["reason"], "blocked");
    }
}
