//! The deadline of a trial (`run --confirm`), in the map that the kernel programs read. It survives
//! the daemon: after it the programs drop nothing, and the next daemon detaches them.

use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData};
use sip_xdp_common::abi::layout::CLOCK_DEADLINE;
use sip_xdp_common::abi::names;

use crate::dataplane::pins::Pins;

/// The word that the programs compare with their clock.
pub(crate) struct Trial(Array<MapData, u64>);

impl Trial {
    /// Opens the maps pinned in a directory.
    pub(crate) fn open(maps: &Path) -> Result<Self> {
        let what = || format!("{} cannot be opened", maps.join(names::CLOCK).display());
        let map = MapData::from_pin(maps.join(names::CLOCK)).with_context(what)?;
        Ok(Self(Map::from_map_data(map)?.try_into()?))
    }

    /// The deadline in nanoseconds of `CLOCK_MONOTONIC`; `None` without a trial.
    pub(crate) fn deadline(&self) -> Result<Option<u64>> {
        let deadline =
            self.0.get(&CLOCK_DEADLINE, 0).context("the end of the trial cannot be read")?;
        Ok(Some(deadline).filter(|deadline| *deadline != 0))
    }

    /// Sets the deadline for all programs at once, or ends the trial.
    pub(crate) fn set(&mut self, deadline: Option<u64>) -> Result<()> {
        let deadline = deadline.unwrap_or(0);
        self.0.set(CLOCK_DEADLINE, deadline, 0).context("the end of the trial cannot be written")
    }
}

/// The deadline of the pinned trial; `None` without tables of this version.
pub(crate) fn pinned_deadline(pins: &Pins) -> Option<u64> {
    Trial::open(&pins.maps()).and_then(|trial| trial.deadline()).ok().flatten()
}

/// Detaches the programs of a trial when the daemon panics, since it can no longer end the trial
/// itself.
#[derive(Debug)]
pub(crate) struct DetachOnPanic(pub(crate) Pins);

impl Drop for DetachOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() && pinned_deadline(&self.0).is_some() {
            detach_all(&self.0);
        }
    }
}

/// Detaches all programs. Logs and returns the failures.
pub(crate) fn detach_all(pins: &Pins) -> Vec<anyhow::Error> {
    let failed = pins.linked().into_iter().filter_map(|index| {
        let error = pins.detach(index).err()?;
        Some(error.context(format!("interface {index} stays filtered")))
    });
    failed.inspect(|error| log::error!("{error:#}")).collect()
}
