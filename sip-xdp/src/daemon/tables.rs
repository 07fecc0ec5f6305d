//! Warnings about nearly full tables, and about evicted entries.

use std::borrow::Cow;
use std::collections::BTreeSet;

use log::Level;

use super::Daemon;
use crate::bans::event::Event;
use crate::lists::Fill;
use crate::text::Quoted;

/// The bounds that were reported as nearly full.
#[derive(Debug, Default)]
pub(super) struct NearlyFull(BTreeSet<Cow<'static, str>>);

impl NearlyFull {
    /// Bounds that have become nearly full since the last call. Hysteresis: a bound is reported
    /// again only after it was below three quarters.
    fn new_ones(&mut self, fill: &[Fill]) -> Vec<Fill> {
        self.0.retain(|table| {
            fill.iter().any(|one| one.table == *table && one.used * 4 >= one.limit * 3)
        });
        fill.iter()
            .filter(|one| one.is_nearly_full() && self.0.insert(one.table.clone()))
            .cloned()
            .collect()
    }
}

impl Daemon {
    /// Reports nearly full tables and evictions.
    pub(super) fn watch_tables(&mut self) {
        for fill in self.nearly_full.new_ones(&self.lists.fill()) {
            let warning = fill.warning();
            let Fill { table, used, limit } = fill;
            self.announce(
                Event::new("nearly_full").reason(&*warning),
                Level::Warn,
                format_args!(
                    "nearly_full table={table} used={used} limit={limit} reason={}",
                    Quoted(&warning)
                ),
            );
        }
        for (list, entry) in self.lists.take_displaced() {
            let hits = self.lists.take_hits(&entry);
            self.store.record_end(list, &entry, "displaced", hits);
            let (place, owner, dry_run) = (entry.place(), entry.owner.name(), entry.dry_run);
            self.announce(
                Event::of("unban", &entry).kind("displaced"),
                Level::Info,
                format_args!("unban {place} owner={owner} dry_run={dry_run} reason=\"displaced\""),
            );
        }
    }

    /// The fill levels in `status`.
    pub(super) fn tables_status(&self) -> Vec<Fill> {
        self.lists.fill().into()
    }

    /// Warnings about tables.
    pub(super) fn tables_warnings(&self) -> Vec<String> {
        self.lists.fill().iter().filter(|fill| fill.is_nearly_full()).map(Fill::warning).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nearly_full_table_is_reported_once_until_there_is_room_again() {
        let mut said = NearlyFull::default();
        for (used, is_new) in [
            (79, false),
            (80, true),
            (100, false),
            (76, false),
            (90, false),
            (74, false),
            (80, true),
        ] {
            let fill = [
                Fill { table: "known".into(), used, limit: 100 },
                Fill { table: "ports".into(), used: 0, limit: 100 },
            ];
            assert_eq!(!said.new_ones(&fill).is_empty(), is_new, "{used}");
        }
    }
}
