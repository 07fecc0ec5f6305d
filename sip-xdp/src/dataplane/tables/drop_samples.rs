//! Drop samples: copies of dropped packets, which no capture on the host sees. The kernel sends as
//! many as a budget allows, which is refilled every second while somebody watches, and runs out by
//! itself if the daemon dies.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use aya::maps::Map;
use sip_xdp_common::abi::names;

use crate::dataplane::mmap::{Mapped, View};

/// Samples per second.
const A_SECOND: u64 = 200;

/// The budget.
pub struct DropSampleBudget {
    view: View,
}

impl DropSampleBudget {
    /// Opens the map by name, through `open`.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let map = Mapped::new(open(names::DROP_SAMPLE_BUDGET)?)
            .context("the counter of copies cannot be used")?;
        Ok(Self { view: map.all()? })
    }

    /// Refills the budget for another second, or clears it.
    pub fn fill(&self, is_wanted: bool) {
        let left = if is_wanted { A_SECOND } else { 0 };
        self.view.words().iter().take(1).for_each(|word| word.store(left, Ordering::Relaxed));
    }
}
