//! The ring by which the programs tell what happens, read without ever catching up with them.
//!
//! The kernel wakes a reader when it has caught up, by an interrupt that this CPU sends to itself:
//! that would take longer than the program itself (`bpf_ringbuf_commit` in kernel/bpf/ringbuf.c). A
//! replay waits for nobody, since what a packet has to tell is there when its run is over; so the
//! record that was read last is given back to the kernel only with the next one.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use aya::maps::Map;
use bytemuck::Pod;
use memmap2::{MmapOptions, MmapRaw};
use nix::unistd::{SysconfVar, sysconf};

/// The flags in a record's first word: it is not finished, or not wanted
/// (include/uapi/linux/bpf.h).
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// What stands before a record: its length, and where it is.
const HEADER: u64 = 8;

/// Reads records of one size.
pub(super) struct Ring {
    /// A page with how far we have read.
    consumer: MmapRaw,
    /// A page with how far the kernel has written, and behind it the records, twice, so that none
    /// is broken at the end.
    producer: MmapRaw,
    page: usize,
    mask: u64,
    at: u64,
}

impl Ring {
    /// Of a ring that nobody else reads.
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
    /// others are left out.
    pub(super) fn next<T: Pod>(&mut self, into: &mut T) -> bool {
        while self.at < self.written() {
            let header = self.header();
            if header & BUSY != 0 {
                return false;
            }
            // What lies before this record may be written again.
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

    /// How far the kernel has written.
    fn written(&self) -> u64 {
        // SAFETY: the mapping begins with a page that begins with this word, and lives as long as
        // `self`.
        unsafe { &*self.producer.as_ptr().cast::<AtomicU64>() }.load(Ordering::Acquire)
    }

    /// How far we have read, as the kernel is told.
    fn read(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { &*self.consumer.as_ptr().cast::<AtomicU64>() }
    }

    /// The first word of the record at which we are.
    fn header(&self) -> u32 {
        // SAFETY: a record begins within the first of both copies, at a multiple of 8 bytes, and
        // the kernel has begun this one.
        unsafe { &*self.place().cast::<AtomicU32>() }.load(Ordering::Acquire)
    }

    /// The record at which we are, without its header.
    fn record(&self, length: u32) -> &[u8] {
        // SAFETY: the kernel has finished a record of this length here, which is never longer than
        // the ring, and leaves it alone until it is told that we have read beyond it.
        unsafe { std::slice::from_raw_parts(self.place().add(HEADER as usize), length as usize) }
    }

    fn place(&self) -> *const u8 {
        // SAFETY: the mask keeps it within the records.
        unsafe { self.producer.as_ptr().add(self.page + (self.at & self.mask) as usize) }
    }
}
