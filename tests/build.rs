//! Embeds the compiled kernel programs of the laboratory.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=SIP_XDP_TESTS_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = env::var_os("SIP_XDP_TESTS_OBJECT")
        .map_or_else(|| manifest.join("../target/bpf/bpfel-unknown-none/bpf/sip-xdp-tests-ebpf"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("sip-xdp-tests-ebpf.o");
    if let Err(error) = fs::copy(&object, embedded) {
        println!(
            "cargo::error=the compiled kernel object {} cannot be read ({error}); `cargo xtask build` makes it",
            object.display()
        );
    }
}
