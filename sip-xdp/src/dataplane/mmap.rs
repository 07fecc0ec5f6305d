//! Memory-mapped array maps: they make loading a million entries a matter of milliseconds, and
//! allow a single word of an entry to change.
//!
//! Mapped pages count as this process's memory, so that only the needed part is mapped, while it is
//! used, unless the map is to be kept mapped.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result, bail};
use aya::maps::{Map, MapData};
use memmap2::{MmapOptions, MmapRaw};

/// An array map with `BPF_F_MMAPABLE`, whose elements are whole 64-bit words.
pub struct Mapped {
    data: MapData,
    elements: u32,
    /// Element size in bytes.
    size: usize,
    /// The whole mapping, if it is kept.
    kept: Option<Arc<MmapRaw>>,
}

/// Mapped elements.
pub struct View {
    mapping: Arc<MmapRaw>,
    /// Offset in the mapping, in bytes.
    start: usize,
    words: usize,
}

impl Mapped {
    /// Takes over the map.
    pub fn new(map: Map) -> Result<Self> {
        let Map::Array(data) = map else {
            bail!("this is not an array map");
        };
        let info = data.info()?;
        let (elements, size) = (info.max_entries(), info.value_size() as usize);
        if size == 0 || !size.is_multiple_of(size_of::<u64>()) {
            bail!("its elements of {size} bytes are not whole words");
        }
        Ok(Self { data, elements, size, kept: None })
    }

    /// Number of elements.
    pub fn elements(&self) -> u32 {
        self.elements
    }

    /// Words per element.
    pub fn words(&self) -> usize {
        self.size / size_of::<u64>()
    }

    /// Keeps the map mapped from now on, for processes whose many changes make mapping and
    /// unmapping more expensive than the memory.
    pub fn keep(&mut self) -> Result<()> {
        self.kept = Some(self.all()?.mapping);
        Ok(())
    }

    /// Maps all elements.
    pub fn all(&self) -> Result<View> {
        self.view(0..self.elements)
    }

    /// Maps one element.
    pub fn one(&self, element: u32) -> Result<View> {
        self.view(element..element.saturating_add(1))
    }

    /// Maps some elements.
    pub fn view(&self, elements: Range<u32>) -> Result<View> {
        if elements.start >= elements.end || elements.end > self.elements {
            bail!("elements {elements:?} of a map of {}", self.elements);
        }
        let (start, bytes) = (elements.start as usize * self.size, elements.len() * self.size);
        let words = bytes / size_of::<u64>();
        if let Some(kept) = &self.kept {
            return Ok(View { mapping: Arc::clone(kept), start, words });
        }
        let mapping = MmapOptions::new()
            .offset(start as u64)
            .len(bytes)
            .map_raw(self.data.fd().as_fd().as_raw_fd())
            .context("a table cannot be mapped into memory")?;
        Ok(View { mapping: Arc::new(mapping), start: 0, words })
    }
}

impl View {
    /// The words, first element first. The kernel reads and writes them concurrently.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has this many words from there on, lives as long as `self`, and
        // elements start at multiples of 8 bytes from a page boundary. The kernel's programs change
        // single aligned words of it.
        unsafe {
            std::slice::from_raw_parts(
                self.mapping.as_mut_ptr().add(self.start).cast::<AtomicU64>(),
                self.words,
            )
        }
    }
}
