//! User space's view of the meters of unknown sources ([`sip_xdp_common::sources`]).

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use aya::maps::Map;
use sip_xdp_common::blocklist::Guide;
use sip_xdp_common::names;
use sip_xdp_common::source::Source;
use sip_xdp_common::sources::{Home, Set, WAYS};

use crate::guide;
use crate::mapped::Mapped;

/// Words of a set.
const SET_WORDS: usize = size_of::<Set>() / size_of::<u64>();

/// The table of meters.
pub struct Sources {
    map: Mapped,
    guide: Guide,
}

impl Sources {
    /// Opens the maps by name, through `open`.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let guide = guide::read(&Mapped::new(open(names::GUIDE)?)?.all()?);
        let map = Mapped::new(open(names::SOURCES)?).context("the table of sources cannot be used")?;
        Ok(Self { map, guide })
    }

    /// How many sources have a meter.
    pub fn tracked(&self) -> Result<usize> {
        let view = self.map.all()?;
        let tags = view.words().chunks_exact(SET_WORDS).flat_map(|set| &set[..WAYS]);
        Ok(tags.filter(|tag| tag.load(Ordering::Relaxed) != 0).count())
    }

    /// How many can have one.
    pub fn capacity(&self) -> usize {
        self.map.elements() as usize * WAYS
    }

    /// Takes a source's meter away: its next packet is its first.
    pub fn forget(&self, source: &Source) -> Result<()> {
        let home = Home::of(source, self.guide.seed);
        let view = self.map.one(home.set(self.guide.set_mask))?;
        let own = view.words()[..WAYS].iter().filter(|tag| home.fits(tag.load(Ordering::Relaxed)));
        own.for_each(|tag| tag.store(0, Ordering::Relaxed));
        Ok(())
    }

    /// Takes all meters away.
    pub fn forget_all(&self) -> Result<()> {
        let view = self.map.all()?;
        let tags = view.words().chunks_exact(SET_WORDS).flat_map(|set| &set[..WAYS]);
        tags.for_each(|tag| tag.store(0, Ordering::Relaxed));
        Ok(())
    }
}
