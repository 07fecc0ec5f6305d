//! The end of a trial (`run --confirm`), where the kernel programs read it. It survives the daemon:
//! past it they drop nothing, and the next daemon takes them off.

use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData};
use sip_xdp_common::abi::layout::CLOCK_DEADLINE;
use sip_xdp_common::abi::names;

use crate::dataplane::pins::Pins;

/// The word that the programs compare with their clock.
pub(crate) struct Trial(Array<MapData, u64>);

impl Trial {
    /// Of the maps pinned in a directory.
    pub(crate) fn open(maps: &Path) -> Result<Self> {
        let what = || format!("{} cannot be opened", maps.join(names::CLOCK).display());
        let map = MapData::from_pin(maps.join(names::CLOCK)).with_context(what)?;
        Ok(Self(Map::from_map_data(map)?.try_into()?))
    }

    /// When nobody has confirmed in time, in nanoseconds of `CLOCK_MONOTONIC`; `None` without a
    /// trial.
    pub(crate) fn deadline(&self) -> Result<Option<u64>> {
        let deadline =
            self.0.get(&CLOCK_DEADLINE, 0).context("the end of the trial cannot be read")?;
        Ok(Some(deadline).filter(|deadline| *deadline != 0))
    }

    /// Sets it for all programs at once, or ends the trial.
    pub(crate) fn set(&mut self, deadline: Option<u64>) -> Result<()> {
        let deadline = deadline.unwrap_or(0);
        self.0.set(CLOCK_DEADLINE, deadline, 0).context("the end of the trial cannot be written")
    }
}

/// The end of the trial that is pinned. Tables of other versions, or none, know of none.
pub(crate) fn pinned_deadline(pins: &Pins) -> Option<u64> {
    Trial::open(&pins.maps()).and_then(|trial| trial.deadline()).ok().flatten()
}

/// Takes the programs of a trial off when its daemon unwinds: whoever panics cannot step back any
/// more.
#[derive(Debug)]
pub(crate) struct DetachOnPanic(pub(crate) Pins);

impl Drop for DetachOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() && pinned_deadline(&self.0).is_some() {
            detach_all(&self.0);
        }
    }
}

/// Takes all programs off. Returns what could not be, which is said, too.
pub(crate) fn detach_all(pins: &Pins) -> Vec<anyhow::Error> {
    let failed = pins.linked().into_iter().filter_map(|index| {
        let error = pins.detach(index).err()?;
        Some(error.context(format!("interface {index} stays filtered")))
    });
    failed.inspect(|error| log::error!("{error:#}")).collect()
}
