//! Who may take how much of the tables, so that nobody can fill them for everybody else; and how
//! full they are.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sip_xdp_common::abi::layout::{FLOWS, Owner};

use super::entries::is_unproven;
use crate::dataplane::tables::ledger::Entry;

/// The share of a bound from which an operator should know, in per cent.
pub const NEARLY_FULL: usize = 80;

/// How much of the tables for `capacity` networks is for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// All networks, and all entries of the ledger.
    pub networks: usize,
}

impl Quotas {
    /// What is kept for operators, the configuration, tools, and bans that are proven: one place in
    /// 16.
    pub const fn reserve(self) -> usize {
        self.networks / 16
    }

    /// What everybody else may fill.
    pub const fn open(self) -> usize {
        self.networks - self.reserve()
    }

    /// What feeds may take: three quarters.
    pub const fn feeds(self) -> usize {
        self.networks - self.networks / 4
    }

    /// What known hosts may take: half.
    pub const fn known(self) -> usize {
        self.networks / 2
    }

    /// What bans on evidence that could be forged may take: a quarter.
    pub const fn unproven(self) -> usize {
        self.networks / 4
    }

    /// How many networks there may be beside a new entry.
    pub(super) fn for_entry(self, entry: &Entry) -> usize {
        if is_unproven(entry) || entry.owner == Owner::Feed { self.open() } else { self.networks }
    }
}

/// Ports of addresses: how many of them may be known good, and how many there may be of which none
/// is banned.
pub(crate) const GOOD_FLOWS: usize = FLOWS / 2;

/// A bound, and how much of it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// What is bounded.
    pub table: Cow<'static, str>,
    /// How much there is.
    pub used: usize,
    /// How much there may be.
    pub limit: usize,
}

impl Fill {
    /// Whether an operator should know.
    pub fn is_nearly_full(&self) -> bool {
        self.limit > 0 && self.used * 100 >= self.limit * NEARLY_FULL
    }

    /// What an operator should know, and what becomes of who comes next.
    pub fn warning(&self) -> String {
        let Self { table, used, limit } = self;
        let (what, then) = match &**table {
            "networks" => (
                "the table of networks",
                "the last sixteenth is kept for operators and proven bans",
            ),
            "entries" => ("the ledger", "the last sixteenth is kept for operators and proven bans"),
            "known" => (
                "what known hosts may take",
                "the one that is known for the shortest time makes room",
            ),
            "unproven" => ("what unproven bans may take", "the one that is hit least makes room"),
            "ports" => ("the table of ports", "a known-good port makes room for a banned one"),
            _ => (
                "what known-good ports may take",
                "the one that is known for the shortest time makes room",
            ),
        };
        let help = match &**table {
            "ports" | "good_ports" => "",
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
            assert!(
                quotas.feeds() <= networks
                    && quotas.known() <= quotas.open()
                    && quotas.unproven() <= quotas.open()
            );
            assert!(networks < 64 || quotas.feeds() <= quotas.open());
        }
    }

    #[test]
    fn what_is_nearly_full_says_so_and_what_follows() {
        for table in ["networks", "entries", "known", "unproven", "ports", "good_ports"] {
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
                !table.contains("ports"),
                "{warning}"
            );
        }
        assert!(!Fill { table: "known".into(), used: 0, limit: 0 }.is_nearly_full());
    }
}
