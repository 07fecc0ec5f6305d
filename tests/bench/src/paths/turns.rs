//! Sources for measured programs: see `tests/ebpf/src/turn.rs`.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use aya::maps::{MapData, ProgramArray};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader};
use sip_xdp::dataplane::mmap::Mapped;
use sip_xdp::net::network::Network;
use sip_xdp_tests::programs;

/// A program that gives another one its sources.
pub(super) struct Turns {
    object: Ebpf,
    _measured: ProgramArray<MapData>,
}

impl Turns {
    /// Makes `program` run with these sources in turn, all of one family. Their number is a power
    /// of two.
    pub(super) fn new(sources: &[Network], program: &ProgramFd) -> Result<Self> {
        let ipv6 = u8::from(sources.first().is_some_and(|source| !source.is_v4()));
        let count = u32::try_from(sources.len())?;
        anyhow::ensure!(count.is_power_of_two(), "{count} sources are no power of two");
        let mask = count - 1;
        let mut loader = EbpfLoader::new();
        loader.override_global("ADDRESS_MASK", &mask, true).override_global(
            "ADDRESS_IPV6",
            &ipv6,
            true,
        );
        loader.map_max_entries("ADDRESSES", count);
        let mut object = programs::load_with(loader, programs::TURN)?;
        let addresses =
            Mapped::new(object.take_map("ADDRESSES").context("there are no addresses")?)?.all()?;
        for (words, source) in addresses.words().chunks_exact(2).zip(sources) {
            let (high, low) = source.first().words();
            let [first, second] = if ipv6 == 1 { [high, low] } else { [low >> 32, 0] };
            words[0].store(first, Ordering::Relaxed);
            words[1].store(second, Ordering::Relaxed);
        }
        let map =
            object.take_map("MEASURED").context("there is no place for the measured program")?;
        let mut measured = ProgramArray::try_from(map)?;
        measured.set(0, program, 0).context("the measured program cannot be called")?;
        Ok(Self { object, _measured: measured })
    }

    /// What is run.
    pub(super) fn program(&self) -> Result<&Xdp> {
        programs::program(&self.object, programs::TURN)
    }
}
