//! Embeds the compiled kernel programs of the laboratory.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match sip_xdp_kernel::embed(
        "sip-xdp-tests-ebpf",
        "SIP_XDP_TESTS_OBJECT",
        &workspace,
        &["tests/ebpf"],
    ) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
