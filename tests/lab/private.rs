//! A filter inside this process: its programs are run by BPF_PROG_TEST_RUN and never attached, its
//! maps are private.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use sip_xdp::dataplane::loader::{self, Settings};
use sip_xdp::lists::Lists;
use sip_xdp_common::abi::names;

/// The filter.
pub struct Private {
    object: Ebpf,
    maps: Maps,
    /// Its lists.
    pub lists: Lists,
}

impl Private {
    /// Loads a filter.
    pub fn load(settings: &Settings) -> Result<Self> {
        let object = loader::load(settings, None)?;
        let maps = Maps::of(&object)?;
        let lists = Lists::open(|name| maps.open(name))?;
        Ok(Self { object, maps, lists })
    }

    /// A separate handle on one of its maps.
    pub fn map(&self, name: &str) -> Result<Map> {
        self.maps.open(name)
    }

    /// The ingress program.
    pub fn ingress(&self) -> Result<&Xdp> {
        let program = self
            .object
            .program(names::INGRESS)
            .context("the kernel object has no ingress program")?;
        Ok(program.try_into()?)
    }

    /// The XDP action for a frame.
    pub fn action(&self, frame: &[u8]) -> Result<u32> {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        Ok(self.ingress()?.test_run(options)?.return_value)
    }
}

/// The maps of a loaded object, which can be opened again by name, as the next daemon would.
pub struct Maps {
    ids: Vec<(&'static str, u32)>,
}

impl Maps {
    /// The maps that the product pins. None may have been taken out of the object yet.
    pub fn of(object: &Ebpf) -> Result<Self> {
        let id = |name| id(object.map(name).with_context(|| format!("no map {name}"))?);
        let ids: Result<_> =
            names::PINNED_MAPS.into_iter().map(|name| Ok((name, id(name)?))).collect();
        Ok(Self { ids: ids? })
    }

    /// A separate handle on a map.
    pub fn open(&self, name: &str) -> Result<Map> {
        let id = self
            .ids
            .iter()
            .find(|(known, _)| *known == name)
            .with_context(|| format!("no map {name}"))?
            .1;
        Ok(Map::from_map_data(MapData::from_id(id)?)?)
    }
}

fn id(map: &Map) -> Result<u32> {
    let (Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::Array(data)
    | Map::PerCpuArray(data)
    | Map::RingBuf(data)) = map
    else {
        anyhow::bail!("another kind of map: {map:?}");
    };
    Ok(data.info()?.id())
}
