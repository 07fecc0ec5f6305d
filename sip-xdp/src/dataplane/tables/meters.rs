//! The meters of unknown sources in user space ([`sip_xdp_common::limits::meters`]).

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use aya::maps::Map;
use sip_xdp_common::abi::names;
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::gcra::{Meter, ticks};
use sip_xdp_common::limits::meters::{MeterKey, MeterSet};
use sip_xdp_common::lookup::networks::Hashing;

use crate::dataplane::mmap::{Mapped, View};
use crate::dataplane::tables::header;

/// Words per meter; a [`MeterSet`] is an array of meters.
const METER_WORDS: usize = size_of::<Meter>() / size_of::<u64>();

const _: () = assert!(size_of::<MeterSet>().is_multiple_of(size_of::<Meter>()));

/// The table of meters.
pub struct Sources {
    map: Mapped,
    hashing: Hashing,
}

impl Sources {
    /// Opens the maps by name, through `open`.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let hashing = header::read(open(names::TABLE_HEADER)?)?.hashing;
        let map =
            Mapped::new(open(names::SOURCES)?).context("the table of sources cannot be used")?;
        Ok(Self { map, hashing })
    }

    /// Number of sources with a meter.
    pub fn tracked(&self) -> Result<usize> {
        let view = self.map.all()?;
        Ok(meters(&view).filter(|meter| meter.mark != 0).count())
    }

    /// A source's meter, with the set and the way that hold it.
    pub fn meter(&self, source: &IpKey) -> Result<Option<(Meter, u32, usize)>> {
        let meter_key = MeterKey::of(source, self.hashing.seed);
        let set = meter_key.set(self.hashing.set_mask);
        let view = self.map.one(set)?;
        let found = meters(&view).enumerate().find(|(_, meter)| meter_key.owns(meter));
        Ok(found.map(|(way, meter)| (meter, set, way)))
    }

    /// Removes a source's meter.
    pub fn forget(&self, source: &IpKey) -> Result<()> {
        let meter_key = MeterKey::of(source, self.hashing.seed);
        let view = self.map.one(meter_key.set(self.hashing.set_mask))?;
        for (words, _) in view
            .words()
            .chunks_exact(METER_WORDS)
            .zip(meters(&view))
            .filter(|(_, own)| meter_key.owns(own))
        {
            words[0].store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Refreshes timestamps before ticks wrap ([`Meter::refreshed`]): to be called every hour. A
    /// meter that the kernel writes at the same time is skipped until the next call. Returns the
    /// number of changes.
    pub fn refresh(&self, now: u64) -> Result<usize> {
        let (view, now) = (self.map.all()?, ticks(now));
        let mut changed = 0;
        for (words, meter) in
            view.words().chunks_exact(METER_WORDS).zip(meters(&view)).filter(|(_, m)| m.mark != 0)
        {
            let (before, after): ([u64; METER_WORDS], [u64; METER_WORDS]) =
                (bytemuck::cast(meter), bytemuck::cast(meter.refreshed(now)));
            for (word, (before, after)) in words.iter().zip(before.into_iter().zip(after)) {
                let write = || {
                    word.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed)
                        .is_ok()
                };
                changed += usize::from(before != after && write());
            }
        }
        Ok(changed)
    }

    /// Removes all meters.
    pub fn forget_all(&self) -> Result<()> {
        self.map.all()?.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        Ok(())
    }
}

fn meters(view: &View) -> impl Iterator<Item = Meter> {
    view.words().chunks_exact(METER_WORDS).map(|words| {
        let words: [u64; METER_WORDS] = std::array::from_fn(|n| words[n].load(Ordering::Relaxed));
        bytemuck::cast(words)
    })
}
