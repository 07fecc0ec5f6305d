//! Quotas of the tables, so that no class of entries can crowd out the others; and fill levels.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sip_xdp_common::abi::layout::{FLOWS, Owner};

use super::entries::is_unproven;
use crate::dataplane::tables::ledger::Entry;

/// Fill level that triggers a warning, in per cent.
pub const NEARLY_FULL: usize = 80;

/// The quotas of tables with a capacity of `networks`: so many for feeds, and as many for all
/// others. The table has room for a third more than that, so that feeds never take more than three
/// quarters of it, and a list of exactly `capacity.networks` crowds out nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// Capacity in networks without feeds, and in rows of the ledger.
    pub networks: usize,
}

impl Quotas {
    /// Reserve for operators, configuration, tools and level 1 bans: 1/16.
    pub const fn reserve(self) -> usize {
        self.networks / 16
    }

    /// Limit without the reserve.
    pub const fn open(self) -> usize {
        self.networks - self.reserve()
    }

    /// Room of the table.
    pub const fn table(self) -> usize {
        self.networks + self.networks.div_ceil(3)
    }

    /// Limit of feeds: three quarters of the table.
    pub const fn feeds(self) -> usize {
        self.networks
    }

    /// The total number of networks up to which others than feeds may list one more, while feeds
    /// list `feeds`: `own` without feeds, which is [`Quotas::open`] or all. The part of `own` that
    /// is a reserve stays one.
    pub(super) fn with_feeds(self, own: usize, feeds: usize) -> usize {
        (own + feeds).min(self.table() - (self.networks - own))
    }

    /// Limit of known hosts: half.
    pub const fn known(self) -> usize {
        self.networks / 2
    }

    /// Limit of level 0 bans: a quarter.
    pub const fn unproven(self) -> usize {
        self.networks / 4
    }

    /// The total number of networks up to which an entry of this owner and tier is added.
    pub(super) fn for_entry(self, entry: &Entry) -> usize {
        match entry.owner {
            _ if is_unproven(entry) => self.open(),
            // Feeds of trusted and admitted networks.
            Owner::Feed => self.networks - self.networks / 4,
            _ => self.networks,
        }
    }
}

/// Limit of known-good flows: half of the table.
pub(crate) const GOOD_FLOWS: usize = FLOWS / 2;

/// The fill level of a bounded table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// Name of the bound.
    pub table: Cow<'static, str>,
    /// Used.
    pub used: usize,
    /// Limit.
    pub limit: usize,
}

impl Fill {
    /// Whether a warning is due.
    pub fn is_nearly_full(&self) -> bool {
        self.limit > 0 && self.used * 100 >= self.limit * NEARLY_FULL
    }

    /// The warning, with the consequence for new entries.
    pub fn warning(&self) -> String {
        let Self { table, used, limit } = self;
        let (what, then) = match &**table {
            "networks" => (
                "the table of networks",
                "the last sixteenth is kept for operators and proven bans",
            ),
            "feeds" => ("what feeds may list", "a list with more networks is refused as a whole"),
            "entries" => ("the ledger", "the last sixteenth is kept for operators and proven bans"),
            "known" => (
                "what known hosts may take",
                "the one that is known for the shortest time makes room",
            ),
            "suspects" => (
                "what sources on the ladder may take",
                "the one that has been without an offence for longest makes room",
            ),
            "unproven" => ("what unproven bans may take", "the one that is hit least makes room"),
            "ports" => ("the table of ports", "a known-good port makes room for a banned one"),
            _ => (
                "what known-good ports may take",
                "the one that is known for the shortest time makes room",
            ),
        };
        let help = match &**table {
            "ports" | "good_ports" | "suspects" => "",
            _ => "; raise capacity.networks and restart the daemon",
        };
        format!("{what} is nearly full: {used} of {limit}; {then}{help}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fit_into_each_other() {
        for networks in [1, 15, 16, 1_000, 4_097, 131_072, 1_000_000] {
            let quotas = Quotas { networks };
            assert_eq!(quotas.open() + quotas.reserve(), networks);
            assert!(quotas.known() <= quotas.open() && quotas.unproven() <= quotas.open());
            assert!(4 * quotas.feeds() <= 3 * quotas.table());
            assert_eq!(quotas.with_feeds(networks, 0), networks);
            assert_eq!(quotas.with_feeds(quotas.open(), 0), quotas.open());
            // Feeds at their limit leave a quarter of the table, of which the reserve is a part.
            let (all, open) = (
                quotas.with_feeds(networks, networks) - networks,
                quotas.with_feeds(quotas.open(), networks) - networks,
            );
            assert_eq!(all, networks.div_ceil(3));
            assert_eq!(open, all - quotas.reserve());
        }
    }

    #[test]
    fn a_nearly_full_table_warns_of_the_consequence() {
        for table in
            ["networks", "feeds", "entries", "known", "suspects", "unproven", "ports", "good_ports"]
        {
            let fill = |used| Fill { table: table.into(), used, limit: 1_000 };
            assert!(
                !fill(799).is_nearly_full()
                    && fill(800).is_nearly_full()
                    && fill(1_000).is_nearly_full()
            );
            let warning = fill(800).warning();
            assert!(warning.contains("nearly full: 800 of 1000; "), "{warning}");
            assert_eq!(
                warning.contains("capacity.networks"),
                !table.contains("ports") && table != "suspects",
                "{warning}"
            );
        }
        assert!(!Fill { table: "known".into(), used: 0, limit: 0 }.is_nearly_full());
    }
}
