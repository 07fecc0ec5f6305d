//! The writer of the guide: how the kernel is to read the tables
//! ([`sip_xdp_common::lookup::networks::TableHeader`]).

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

/// The word that says which version of the lengths is in force; written last.
const VERSION_WORD: usize = std::mem::offset_of!(TableHeader, version) / size_of::<u64>();

/// The lengths of networks that occur, by family and kind: `(is IPv4, kind, length out of 128)`.
pub type Lengths = BTreeSet<(bool, Kind, u8)>;

/// The word with both numbers of blocked networks.
const COUNTS_WORD: usize = std::mem::offset_of!(TableHeader, ipv4) / size_of::<u64>();

const _: () = assert!(std::mem::offset_of!(TableHeader, ipv4).is_multiple_of(size_of::<u64>()));
const _: () = assert!(std::mem::offset_of!(TableHeader, ipv6) / size_of::<u64>() == COUNTS_WORD);

/// The guide, with a copy of what the kernel reads.
pub struct GuideWriter {
    view: View,
    copy: Box<TableHeader>,
    lengths: Lengths,
}

impl GuideWriter {
    /// Takes the map, which [`write_new`] has written.
    pub fn open(map: &Mapped) -> Result<Self> {
        let view = map.all()?;
        let copy = copy_of(&view);
        // What an earlier daemon has listed is looked for anew when the tables have been read.
        Ok(Self { view, copy, lengths: Lengths::new() })
    }

    /// What the kernel reads.
    pub fn get(&self) -> &TableHeader {
        &self.copy
    }

    /// The lengths that are looked for.
    pub fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// Says how many networks are blocked, IPv4 and IPv6.
    pub fn set_counts(&mut self, counts: [usize; 2]) {
        if counts != [self.copy.ipv4 as usize, self.copy.ipv6 as usize] {
            [self.copy.ipv4, self.copy.ipv6] = counts.map(|count| count as u32);
            // They change with every entry, and the rest of the guide hardly ever does.
            let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(&*self.copy));
            self.view.words()[COUNTS_WORD].store(words[COUNTS_WORD], Ordering::Relaxed);
        }
    }

    /// Makes sure that networks of these lengths are looked for.
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

    /// Sets the lengths that occur. Both the old ones and the new ones are complete at every
    /// moment: the new ones are written beside the old ones, and then put in force.
    pub fn set_lengths(&mut self, lengths: Lengths) -> Result<()> {
        if lengths == self.lengths {
            return Ok(());
        }
        // A packet may still be reading the version before the present one, which is now
        // overwritten.
        grace_period()?;
        let version = (self.copy.version ^ 1) & 1;
        let [mut ipv4, mut ipv6] = [0_usize; 2];
        // The longest first: of several entries for a source, the most specific one counts the hit.
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

/// How new tables for this capacity are to be hashed.
pub fn new_hashing(networks: u32, sources: u32) -> Hashing {
    // The standard library's hasher is seeded from the system's randomness. Never 0: that is a
    // guide not yet written.
    Hashing::new(RandomState::new().hash_one(0_u64) | 1, networks, sources)
}

/// How the tables are hashed whose guide is pinned at `path`, if one is there and has been written.
pub fn pinned_hashing(path: &Path) -> Result<Option<Hashing>> {
    if !path.exists() {
        return Ok(None);
    }
    let map = MapData::from_pin(path).with_context(|| format!("cannot open {}", path.display()))?;
    let hashing = read(Map::Array(map))?.hashing;
    Ok((hashing.seed != 0).then_some(hashing))
}

/// Writes the guide of new tables, unless it has been written.
pub fn write_new(map: &mut Array<&mut MapData, TableHeader>, hashing: Hashing) -> Result<()> {
    let found = map.get(&0, 0)?.hashing;
    if found.seed == 0 {
        map.set(0, TableHeader::new(hashing), 0)?;
    } else if found != hashing {
        bail!("another process has made the tables at the same time; start again");
    }
    Ok(())
}

/// The length of a network, as [`Lengths`] holds it.
pub fn length_of(kind: Kind, network: &Network) -> (bool, Kind, u8) {
    (network.is_v4(), kind, network.bits())
}

/// Reads the guide from its map.
pub fn read(map: Map) -> Result<Box<TableHeader>> {
    Ok(copy_of(&Mapped::new(map)?.all()?))
}

/// On the heap: it has 24 KiB, and its owners move about.
fn copy_of(view: &View) -> Box<TableHeader> {
    let mut table_header = Box::new(TableHeader::zeroed());
    let words: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut *table_header));
    for (word, from) in words.iter_mut().zip(view.words()) {
        *word = from.load(Ordering::Acquire);
    }
    table_header
}
