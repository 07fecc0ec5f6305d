//! The fuzz target `message`: see the module of that name.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sip_xdp_fuzz::message::run(bytes));
