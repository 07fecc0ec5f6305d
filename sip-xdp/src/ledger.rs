//! Rows of the ledger: who listed which network, when, until when and why.

use serde::Serialize;
use sip_xdp_common::layout::{LedgerKey, LedgerRow, List, Owner, REASON, ROW_DRY_RUN, TIER_NONE, TIER_UNPROVEN};

use crate::clock;
use crate::network::Network;

/// How sure it is that the source is who it says, [`None`] where that is not the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The source address could be forged.
    Unproven,
}

/// One owner's claim on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The network.
    pub network: Network,
    /// Whose claim it is.
    pub owner: Owner,
    /// When it was made, in milliseconds since 1970.
    pub added_ms: u64,
    /// When it ends, on the filter's clock.
    pub expires: u64,
    /// How sure the evidence is.
    pub tier: Option<Tier>,
    /// Made in a dry run: never enforced.
    pub dry_run: bool,
    /// Why, in at most [`REASON`] bytes.
    pub reason: String,
}

impl Entry {
    /// An operator's entry, made now.
    pub fn manual(network: Network, expires: u64, reason: &str) -> Self {
        let reason = shorten(reason).to_owned();
        Self { network, owner: Owner::Manual, added_ms: clock::wall_ms(), expires, tier: None, dry_run: false, reason }
    }

    /// Whether it has ended at `now`.
    pub fn is_over(&self, now: u64) -> bool {
        self.expires <= now
    }

    /// The row's key in the kernel.
    pub fn key(&self, list: List) -> LedgerKey {
        key(list, &self.network, self.owner)
    }

    /// The row's value in the kernel.
    pub fn row(&self) -> LedgerRow {
        let text = shorten(&self.reason).as_bytes();
        let mut reason = [0; REASON];
        reason[..text.len()].copy_from_slice(text);
        LedgerRow {
            expires: self.expires,
            added_ms: self.added_ms,
            tier: if self.tier.is_some() { TIER_UNPROVEN } else { TIER_NONE },
            flags: if self.dry_run { ROW_DRY_RUN } else { 0 },
            reason_length: text.len() as u16,
            pad: 0,
            reason,
        }
    }

    /// Reads a row. `None` if it is not one that this version writes.
    pub fn read(key: &LedgerKey, row: &LedgerRow) -> Option<(List, Self)> {
        let list = match key.list {
            0 => List::Block,
            1 => List::Trust,
            _ => return None,
        };
        let reason = row.reason.get(..usize::from(row.reason_length))?;
        let entry = Self {
            network: Network::around(key.network, key.prefix),
            owner: Owner::from_number(key.owner)?,
            added_ms: row.added_ms,
            expires: row.expires,
            tier: (row.tier == TIER_UNPROVEN).then_some(Tier::Unproven),
            dry_run: row.flags & ROW_DRY_RUN != 0,
            reason: String::from_utf8_lossy(reason).into_owned(),
        };
        Some((list, entry))
    }
}

/// The key of an owner's claim on a network.
pub fn key(list: List, network: &Network, owner: Owner) -> LedgerKey {
    LedgerKey { network: network.first(), prefix: network.bits(), list: list as u8, owner: owner as u8, pad: 0 }
}

/// Cuts a reason to what a row holds, between characters.
fn shorten(reason: &str) -> &str {
    let mut end = reason.len().min(REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_as_it_went() {
        let mut entry = Entry::manual("192.0.2.0/24".parse().unwrap(), 77, "überfällig: Ärger");
        entry.dry_run = true;
        entry.tier = Some(Tier::Unproven);
        for list in [List::Block, List::Trust] {
            assert_eq!(Entry::read(&entry.key(list), &entry.row()), Some((list, entry.clone())));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let entry = Entry::manual("192.0.2.1".parse().unwrap(), 1, &"ü".repeat(200));
        assert_eq!(entry.reason.len(), REASON);
        let entry = Entry::manual("192.0.2.1".parse().unwrap(), 1, &format!("a{}", "ü".repeat(200)));
        assert_eq!(entry.reason.len(), REASON - 1);
        assert!(Entry::read(&entry.key(List::Block), &entry.row()).is_some());
    }
}
