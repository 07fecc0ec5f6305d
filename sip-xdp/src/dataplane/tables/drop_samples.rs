//! Copies of what is dropped: no capture on the host sees these packets any more. The kernel makes
//! as many as are left in a counter, which is filled up each second while somebody watches. Should
//! the daemon die, it runs out by itself.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use aya::maps::Map;
use sip_xdp_common::abi::names;

use crate::dataplane::mmap::{Mapped, View};

/// How many copies are made in a second.
const A_SECOND: u64 = 200;

/// The counter.
pub struct Tap {
    view: View,
}

impl Tap {
    /// Opens the map by name, through `open`.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let map = Mapped::new(open(names::DROP_SAMPLE_BUDGET)?)
            .context("the counter of copies cannot be used")?;
        Ok(Self { view: map.all()? })
    }

    /// Lets the kernel make copies for another second, or no more of them.
    pub fn fill(&self, is_wanted: bool) {
        let left = if is_wanted { A_SECOND } else { 0 };
        self.view.words().iter().take(1).for_each(|word| word.store(left, Ordering::Relaxed));
    }
}
