//! Conversion between values and columns.

use sip_xdp_common::abi::layout::{List, Owner};

use crate::dataplane::tables::ledger::Tier;

/// A port as a column: 0 for the whole network.
pub(super) fn from_port(port: Option<u16>) -> u16 {
    port.unwrap_or(0)
}

/// A column as a port.
pub(super) fn to_port(column: u16) -> Option<u16> {
    (column != 0).then_some(column)
}

/// A list as a column.
pub(super) fn from_list(list: List) -> &'static str {
    list.name()
}

/// A column as a list.
pub(super) fn to_list(column: &str) -> Option<List> {
    List::ALL.into_iter().find(|list| from_list(*list) == column)
}

/// A column as an owner, stored by name.
pub(super) fn to_owner(column: &str) -> Option<Owner> {
    (0..u8::MAX).filter_map(Owner::from_number).find(|owner| owner.name() == column)
}

/// A tier as a column.
pub(super) fn from_tier(tier: Option<Tier>) -> &'static str {
    match tier {
        None => "none",
        Some(tier) => tier.name(),
    }
}

/// A column as a tier.
pub(super) fn to_tier(column: &str) -> Option<Option<Tier>> {
    [None, Some(Tier::Unproven), Some(Tier::Proven)]
        .into_iter()
        .find(|tier| from_tier(*tier) == column)
}

/// A number as a signed column.
pub(super) fn from_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A column as a number.
pub(super) fn to_number(column: i64) -> u64 {
    u64::try_from(column).unwrap_or(0)
}
