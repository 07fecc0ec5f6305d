//! Embeds the compiled kernel programs, so that hosts of `sip-xdp` need no Rust toolchain.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sources = ["sip-xdp-ebpf", "sip-xdp-common"];
    match sip_xdp_kernel::embed("sip-xdp-ebpf", "SIP_XDP_OBJECT", &workspace, &sources) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
