//! The writer of the table header ([`sip_xdp_common::lookup::networks::TableHeader`]).

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use aya::maps::{Array, Map, MapData};
use bytemuck::Zeroable as _;
use sip_xdp_common::lookup::networks::{
    Hashing, IPV6_LENGTHS, Kind, Length, MAX_LENGTHS, TableHeader,
};

use crate::dataplane::mmap::{Mapped, View};
use crate::dataplane::rcu::grace_period;
use crate::net::network::Network;

/// Word of the current version, written last.
const VERSION_WORD: usize = std::mem::offset_of!(TableHeader, version) / size_of::<u64>();

/// Prefix lengths in use, by family and kind: `(is IPv4, kind, length out of 128)`.
pub type Lengths = BTreeSet<(bool, Kind, u8)>;

/// Word of both numbers of blocked networks.
const COUNTS_WORD: usize = std::mem::offset_of!(TableHeader, ipv4) / size_of::<u64>();

const _: () = assert!(std::mem::offset_of!(TableHeader, ipv4).is_multiple_of(size_of::<u64>()));
const _: () = assert!(std::mem::offset_of!(TableHeader, ipv6) / size_of::<u64>() == COUNTS_WORD);

/// The table header, with a copy of its contents.
pub struct TableHeaderWriter {
    view: View,
    copy: Box<TableHeader>,
    lengths: Lengths,
}

impl TableHeaderWriter {
    /// Takes over the map, which [`write_new`] has initialised.
    pub fn open(map: &Mapped) -> Result<Self> {
        let view = map.all()?;
        let copy = copy_of(&view);
        // The lengths of an earlier daemon are determined again when the tables have been read.
        Ok(Self { view, copy, lengths: Lengths::new() })
    }

    /// The current contents.
    pub fn get(&self) -> &TableHeader {
        &self.copy
    }

    /// The prefix lengths in use.
    pub fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// Writes the numbers of blocked networks, IPv4 and IPv6.
    pub fn set_counts(&mut self, counts: [usize; 2]) {
        if counts != [self.copy.ipv4 as usize, self.copy.ipv6 as usize] {
            [self.copy.ipv4, self.copy.ipv6] = counts.map(|count| count as u32);
            // Only these: they change with every entry, the rest of the header hardly ever.
            let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(&*self.copy));
            self.view.words()[COUNTS_WORD].store(words[COUNTS_WORD], Ordering::Relaxed);
        }
    }

    /// Adds prefix lengths, so that their networks are found.
    pub fn ensure_prefix_lengths(
        &mut self,
        wanted: impl Iterator<Item = (bool, Kind, u8)>,
    ) -> Result<()> {
        let new: Vec<_> = wanted.filter(|length| !self.lengths.contains(length)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut lengths = self.lengths.clone();
        lengths.extend(new);
        self.set_lengths(lengths)
    }

    /// Sets the prefix lengths. Readers always see a complete version: the new one is written to
    /// the unused half, then made current.
    pub fn set_lengths(&mut self, lengths: Lengths) -> Result<()> {
        if lengths == self.lengths {
            return Ok(());
        }
        // A packet may still be reading the previous version, which is overwritten now.
        grace_period()?;
        let version = (self.copy.version ^ 1) & 1;
        let [mut ipv4, mut ipv6] = [0_usize; 2];
        // Longest first, so that the most specific entry counts the hit.
        for kind in Kind::ALL {
            for (is_v4, _, bits) in lengths.iter().filter(|(_, of, _)| *of == kind).rev() {
                let (count, base) = if *is_v4 { (&mut ipv4, 0) } else { (&mut ipv6, IPV6_LENGTHS) };
                if *count == MAX_LENGTHS {
                    bail!("networks of more than {MAX_LENGTHS} lengths are listed");
                }
                self.copy.lengths[version as usize][base + *count] = Length::of(kind, *bits);
                *count += 1;
            }
        }
        self.copy.counts[version as usize] = [ipv4 as u32, ipv6 as u32];
        self.copy.version = version;
        self.lengths = lengths;
        self.write();
        Ok(())
    }

    fn write(&self) {
        let to = self.view.words();
        let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(&*self.copy));
        for (n, word) in words.iter().enumerate() {
            if n != VERSION_WORD && to[n].load(Ordering::Relaxed) != *word {
                to[n].store(*word, Ordering::Relaxed);
            }
        }
        to[VERSION_WORD].store(words[VERSION_WORD], Ordering::Release);
    }
}

/// Hash parameters of new tables with these capacities.
pub fn new_hashing(networks: u32, sources: u32) -> Hashing {
    // The standard library's hasher is seeded from system randomness. Never 0, which marks an
    // unwritten header.
    Hashing::new(RandomState::new().hash_one(0_u64) | 1, networks, sources)
}

/// Hash parameters of the tables whose header is pinned at `path`, if it exists and is written.
pub fn pinned_hashing(path: &Path) -> Result<Option<Hashing>> {
    if !path.exists() {
        return Ok(None);
    }
    let map = MapData::from_pin(path).with_context(|| format!("cannot open {}", path.display()))?;
    let hashing = read(Map::Array(map))?.hashing;
    Ok((hashing.seed != 0).then_some(hashing))
}

/// Writes the header of new tables, unless it is written.
pub fn write_new(map: &mut Array<&mut MapData, TableHeader>, hashing: Hashing) -> Result<()> {
    let found = map.get(&0, 0)?.hashing;
    if found.seed == 0 {
        map.set(0, TableHeader::new(hashing), 0)?;
    } else if found != hashing {
        bail!("another process has made the tables at the same time; start again");
    }
    Ok(())
}

/// The length of a network, as an element of [`Lengths`].
pub fn length_of(kind: Kind, network: &Network) -> (bool, Kind, u8) {
    (network.is_v4(), kind, network.bits())
}

/// Reads the header from its map.
pub fn read(map: Map) -> Result<Box<TableHeader>> {
    Ok(copy_of(&Mapped::new(map)?.all()?))
}

/// On the heap: it has 24 KiB, and its owners are moved.
fn copy_of(view: &View) -> Box<TableHeader> {
    let mut table_header = Box::new(TableHeader::zeroed());
    let words: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut *table_header));
    for (word, from) in words.iter_mut().zip(view.words()) {
        *word = from.load(Ordering::Acquire);
    }
    table_header
}
