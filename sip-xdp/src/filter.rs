//! The writer of the filter: two bits for each network on any list, where its hash says
//! ([`sip_xdp_common::blocklist`]).
//!
//! Several networks may share a place, so bits are only set when networks come; bits that nobody needs any more cost
//! the kernel a look into a table, and go when the filter is made anew.

use std::sync::atomic::Ordering;

use anyhow::Result;
use sip_xdp_common::blocklist::{Guide, Hashed};
use sip_xdp_common::front::Place;

use crate::mapped::Mapped;
use crate::network::Network;

/// The filter.
pub struct Filter {
    map: Mapped,
    seed: u64,
    mask: u32,
    /// Networks that have gone since the filter was made.
    gone: usize,
}

impl Filter {
    /// Takes the map, to be read as the guide says.
    pub fn new(map: Mapped, guide: &Guide) -> Self {
        Self { map, seed: guide.seed, mask: guide.filter_mask, gone: 0 }
    }

    /// Sets `bits` for a network.
    pub fn mark(&self, network: &Network, bits: u64) -> Result<()> {
        let place = self.place(network);
        let view = self.map.one(place.element)?;
        view.words()[place.word].fetch_or(bits << place.shift, Ordering::Relaxed);
        Ok(())
    }

    /// Notes that networks have gone. Returns whether it is time to make the filter anew.
    pub fn note_gone(&mut self, networks: usize) -> bool {
        self.gone += networks;
        // A sixteenth of the networks that the filter is made for.
        self.gone > self.mask as usize >> 9
    }

    /// Makes the filter anew. A network that stays has its bits before, after and all the time between.
    pub fn rebuild<'a>(&mut self, networks: impl Iterator<Item = (&'a Network, u64)>) -> Result<()> {
        let mut wanted = vec![0_u64; self.map.elements() as usize * self.map.words()];
        for (network, bits) in networks {
            let place = self.place(network);
            wanted[place.element as usize * self.map.words() + place.word] |= bits << place.shift;
        }
        let view = self.map.all()?;
        for (word, wanted) in view.words().iter().zip(wanted) {
            if word.load(Ordering::Relaxed) != wanted {
                word.store(wanted, Ordering::Relaxed);
            }
        }
        self.gone = 0;
        Ok(())
    }

    fn place(&self, network: &Network) -> Place {
        let (high, low) = network.first().words();
        Hashed::new(high, low, network.bits().into(), self.seed).filter(self.mask)
    }
}
