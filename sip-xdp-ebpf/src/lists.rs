//! The lookup tables, over the maps.

use core::arch::asm;
use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::helpers::bpf_loop;
use sip_xdp_common::abi::layout::Scratch;
use sip_xdp_common::lookup::host_rows;
use sip_xdp_common::lookup::networks::{Hashing, Prints, Slot, SlotBucket, TableHeader};
use sip_xdp_common::lookup::search::{self, LookupTables, Search};
use sip_xdp_common::lookup::summary;

use crate::maps::{
    FEED_HOSTS, FINGERPRINTS, NETWORKS, SUMMARY_COARSE, SUMMARY_FINE, TABLE_HEADER, scratch,
};
use crate::{clock, globals, reader};

/// The lookup tables as one CPU sees them.
pub(crate) struct Lists {
    scratch: *mut Scratch,
}

impl Lists {
    #[inline(always)]
    pub(crate) fn new(scratch: *mut Scratch) -> Self {
        Self { scratch }
    }
}

impl LookupTables for Lists {
    #[inline(always)]
    fn hashing(&self) -> &Hashing {
        globals::hashing()
    }

    #[inline(always)]
    fn table_header(&self) -> Option<&TableHeader> {
        TABLE_HEADER.get(0)
    }

    #[inline(always)]
    fn coarse(&self, element: u32) -> Option<&summary::Element> {
        SUMMARY_COARSE.get(element)
    }

    #[inline(always)]
    fn fine(&self, element: u32) -> Option<&summary::Element> {
        SUMMARY_FINE.get(element)
    }

    #[inline(always)]
    fn feed_hosts(&self, row: u32) -> Option<&host_rows::Row> {
        FEED_HOSTS.get(row)
    }

    #[inline(always)]
    fn prints(&self, group: u32) -> Option<&Prints> {
        FINGERPRINTS.get(group)
    }

    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&SlotBucket> {
        NETWORKS.get(number)
    }

    #[inline(always)]
    fn hit(&self, slot: &Slot, hits: u64) {
        // SAFETY: the slot is map memory, which lives as long as the map and which programs may
        // write; its state is an aligned word. The addition is atomic; its result is not used, so
        // that it compiles to a plain BPF atomic add.
        unsafe {
            let state = (&raw const slot.state).cast_mut();
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(state, hits)
        };
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        clock::now(self.scratch)
    }

    #[inline(always)]
    fn is_sample(&self) -> bool {
        // SAFETY: this CPU's map value, valid while the program runs; nothing else uses the field.
        unsafe {
            (*self.scratch).feed_samples = (*self.scratch).feed_samples.wrapping_add(1);
            (*self.scratch).feed_samples.is_multiple_of(search::SAMPLE)
        }
    }

    #[inline(always)]
    fn each_length(&self, search: &mut Search) {
        let count = search.count;
        let step: unsafe extern "C" fn(u32, *mut Search) -> u64 = step;
        // SAFETY: the helper calls `step`, at most `count` times, with the search, which outlives
        // the call; it refuses counts of more than 8 million, and flags other than 0.
        unsafe { bpf_loop(count, step as *mut c_void, core::ptr::from_mut(search).cast(), 0) };
    }

    #[inline(always)]
    fn mask_from_bit(&self, bit: u64) -> u64 {
        let mut mask = bit;
        // SAFETY: changes a register; touches no memory.
        unsafe { asm!("{mask} = -{mask}", mask = inout(reg) mask, options(pure, nomem, nostack)) };
        mask
    }

    #[inline(always)]
    fn black_box(&self, bits: u64) -> u64 {
        let mut bits = bits;
        // One no-op instruction, not none: the kernel refuses a program in which two source lines
        // start at the same instruction. SAFETY: changes nothing.
        unsafe { asm!("{bits} = {bits}", bits = inout(reg) bits, options(pure, nomem, nostack)) };
        bits
    }

    #[inline(always)]
    fn verifier_widen(&self, value: usize) -> usize {
        // SAFETY: a field of this CPU's map value, valid while the program runs.
        unsafe { reader::verifier_widen(&raw mut (*self.scratch).widened, value) }
    }
}

/// One step of a search, as `bpf_loop` calls it. Returns 1 to stop, 0 to continue.
unsafe extern "C" fn step(_: u32, search: *mut Search) -> u64 {
    match scratch() {
        // SAFETY: `each_length` passes its search.
        Some(scratch) => unsafe { (*search).step(&Lists::new(scratch)) }.into(),
        None => 1,
    }
}
