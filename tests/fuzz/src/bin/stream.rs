//! The fuzz target `stream`: see the module of that name.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sip_xdp_fuzz::stream::run(bytes));
