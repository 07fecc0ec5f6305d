//! Packets per second, from counters read at irregular times.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::net::network::Network;
use crate::observe::snapshot::Overview;

/// Number of rates kept per row.
const KEPT: usize = 240;

/// Readings over which new sources are maximised: each has the count of a window so far, so that
/// the maximum is closest to the true number.
const NEWCOMERS: usize = 5;

/// The counter of a row: verdict and reason.
pub(super) type Column = (&'static str, &'static str);

/// Identity of a source.
pub(super) type EntryKey = (Network, Option<u16>, &'static str);

/// Rates of all counters.
#[derive(Debug, Default)]
pub(super) struct Rates {
    columns: BTreeMap<Column, VecDeque<u64>>,
    sources: HashMap<EntryKey, f64>,
    newcomers: VecDeque<u64>,
}

impl Rates {
    /// Adds the difference between two readings.
    pub(super) fn update(&mut self, before: &Overview, after: &Overview) {
        let seconds = after.time.duration_since(before.time).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        push(&mut self.newcomers, NEWCOMERS, after.storm.new_sources);
        let (earlier, now) = (before.packets(), after.packets());
        for (column, count) in &now {
            let more = count.saturating_sub(earlier.get(column).copied().unwrap_or(0));
            let rates = self.columns.entry(*column).or_default();
            push(rates, KEPT, (more as f64 / seconds).round() as u64);
        }
        let earlier: HashMap<EntryKey, u64> =
            before.worst.iter().map(|one| (place(one), one.packets)).collect();
        self.sources = after
            .worst
            .iter()
            .filter_map(|one| {
                let more = one.packets.saturating_sub(*earlier.get(&place(one))?);
                Some((place(one), more as f64 / seconds))
            })
            .collect();
    }

    /// Summed rates of some columns, latest last.
    pub(super) fn of(&self, columns: &[Column]) -> Vec<u64> {
        let length = columns
            .iter()
            .filter_map(|column| self.columns.get(column))
            .map(VecDeque::len)
            .max()
            .unwrap_or(0);
        let mut sums = vec![0; length];
        for rates in columns.iter().filter_map(|column| self.columns.get(column)) {
            let late = length - rates.len();
            sums.iter_mut().skip(late).zip(rates).for_each(|(sum, rate)| *sum += rate);
        }
        sums
    }

    /// New sources per window of about a second, at least.
    pub(super) fn newcomers(&self) -> u64 {
        self.newcomers.iter().copied().max().unwrap_or(0)
    }

    /// The rate of a source; 0 if it was absent in the previous reading.
    pub(super) fn of_source(&self, one: &crate::observe::snapshot::Worst) -> f64 {
        self.sources.get(&place(one)).copied().unwrap_or(0.0)
    }
}

/// Appends; removes the oldest beyond the capacity.
fn push(to: &mut VecDeque<u64>, most: usize, what: u64) {
    if to.len() >= most {
        to.pop_front();
    }
    to.push_back(what);
}

fn place(one: &crate::observe::snapshot::Worst) -> EntryKey {
    (one.network, one.port, one.state)
}
