//! A reader of the ring buffer that never catches up with the programs.
//!
//! The kernel wakes a reader that has caught up, by an interrupt to its own CPU, which would take
//! longer than the program (`bpf_ringbuf_commit` in kernel/bpf/ringbuf.c). A replay need not wait,
//! since a run's events are there when it ends; so each record is released only with the next one.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use aya::maps::Map;
use bytemuck::Pod;
use memmap2::{MmapOptions, MmapRaw};
use nix::unistd::{SysconfVar, sysconf};

/// Flags in a record's first word: busy, and discarded (include/uapi/linux/bpf.h).
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// Length of a record header: length and page offset.
const HEADER: u64 = 8;

/// A reader of records of one size.
pub(super) struct Ring {
    /// The page of the consumer position.
    consumer: MmapRaw,
    /// The page of the producer position, followed by the records, mapped twice, so that none
    /// wraps.
    producer: MmapRaw,
    page: usize,
    mask: u64,
    at: u64,
}

impl Ring {
    /// A ring without other readers.
    pub(super) fn new(map: Map) -> Result<Self> {
        let Map::RingBuf(data) = map else {
            bail!("this is no ring buffer");
        };
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| usize::try_from(size).ok());
        let page = page.context("the size of a page is not known")?;
        let (size, file) = (data.info()?.max_entries(), data.fd().as_fd().as_raw_fd());
        let failed = "the ring of events cannot be mapped into memory";
        let consumer = MmapOptions::new().len(page).map_raw(file).context(failed)?;
        let length = page + 2 * size as usize;
        let producer = MmapOptions::new()
            .offset(page as u64)
            .len(length)
            .map_raw_read_only(file)
            .context(failed)?;
        Ok(Self { consumer, producer, page, mask: u64::from(size) - 1, at: 0 })
    }

    /// Copies the next record that is a whole `T` to `into`, and returns whether there is one;
    /// others are skipped.
    pub(super) fn next<T: Pod>(&mut self, into: &mut T) -> bool {
        while self.at < self.written() {
            let header = self.header();
            if header & BUSY != 0 {
                return false;
            }
            // Releases everything before this record.
            self.read().store(self.at, Ordering::Release);
            let length = header & !DISCARDED;
            let is_wanted = header & DISCARDED == 0 && length as usize == size_of::<T>();
            if is_wanted {
                bytemuck::bytes_of_mut(into).copy_from_slice(self.record(length));
            }
            self.at += (HEADER + u64::from(length)).next_multiple_of(8);
            if is_wanted {
                return true;
            }
        }
        false
    }

    /// The producer position.
    fn written(&self) -> u64 {
        // SAFETY: the mapping starts with a page that starts with this word, and lives as long as
        // `self`.
        unsafe { &*self.producer.as_ptr().cast::<AtomicU64>() }.load(Ordering::Acquire)
    }

    /// The consumer position.
    fn read(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { &*self.consumer.as_ptr().cast::<AtomicU64>() }
    }

    /// The first word of the current record.
    fn header(&self) -> u32 {
        // SAFETY: a record starts within the first of both copies, at a multiple of 8 bytes, and
        // the kernel has started this one.
        unsafe { &*self.place().cast::<AtomicU32>() }.load(Ordering::Acquire)
    }

    /// The current record without its header.
    fn record(&self, length: u32) -> &[u8] {
        // SAFETY: the kernel has committed a record of this length here, which is never longer than
        // the ring, and does not overwrite it before its release.
        unsafe { std::slice::from_raw_parts(self.place().add(HEADER as usize), length as usize) }
    }

    fn place(&self) -> *const u8 {
        // SAFETY: the mask keeps it within the records.
        unsafe { self.producer.as_ptr().add(self.page + (self.at & self.mask) as usize) }
    }
}
