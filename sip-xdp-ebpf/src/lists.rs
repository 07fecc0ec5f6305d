//! The block list's tables, over the maps.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use sip_xdp_common::blocklist::{self, Bucket, Guide, Search, Shelves};
use sip_xdp_common::front;
use sip_xdp_common::layout::CpuState;

use crate::maps::{BLOCKLIST, FILTER, FRONT, GUIDE, cpu_state};
use crate::{clock, reader};

/// The kernel's tables, on one CPU.
pub(crate) struct Lists {
    state: *mut CpuState,
}

impl Lists {
    #[inline(always)]
    pub(crate) fn new(state: *mut CpuState) -> Self {
        Self { state }
    }
}

impl Shelves for Lists {
    #[inline(always)]
    fn guide(&self) -> Option<&Guide> {
        GUIDE.get(0)
    }

    #[inline(always)]
    fn front(&self, element: u32) -> Option<&front::Element> {
        FRONT.get(element)
    }

    #[inline(always)]
    fn filter(&self, element: u32) -> Option<&front::Element> {
        FILTER.get(element)
    }

    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<&Bucket> {
        BLOCKLIST.get(number)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        clock::now()
    }

    #[inline(always)]
    fn is_sample(&self) -> bool {
        // SAFETY: this CPU's map value, valid while the program runs; nothing else uses the field.
        unsafe {
            (*self.state).whole = (*self.state).whole.wrapping_add(1);
            (*self.state).whole % blocklist::SAMPLE == 0
        }
    }

    #[inline(always)]
    fn each_length(&self, search: &mut Search) {
        let count = search.count;
        let step: unsafe extern "C" fn(u32, *mut Search) -> u64 = step;
        // SAFETY: the helper calls `step`, at most `count` times, with the search, which outlives the call; it refuses
        // counts of more than 8 million, and flags other than 0.
        unsafe { bpf_loop(count, step as *mut c_void, core::ptr::from_mut(search).cast(), 0) };
    }

    #[inline(always)]
    fn forget(&self, value: usize) -> usize {
        // SAFETY: a field of this CPU's map value, valid while the program runs.
        unsafe { reader::forget(&raw mut (*self.state).forgotten, value) }
    }
}

/// One step of a search, as `bpf_loop` calls it. Returns 0: go on.
unsafe extern "C" fn step(_: u32, search: *mut Search) -> u64 {
    if let Some(state) = cpu_state() {
        // SAFETY: by `each_length`, this is its search.
        unsafe { (*search).step(&Lists::new(state)) };
    }
    0
}
