//! The programs that log each packet's way through the decision order, for contributors: the kernel
//! takes them, too, and they say what was decided.

use std::path::Path;

use aya::maps::RingBuf;
use aya::programs::{TestRun as _, TestRunOptions};
use sip_xdp::dataplane::loader;
use sip_xdp_kernel::{TARGET, Toolchain};

use crate::kernel::frames::{request, sip};
use crate::kernel::harness::settings;

#[test]
fn a_traced_packet_says_what_was_decided() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let directory = workspace.join("target/bpf-trace");
    let mut build = Toolchain::find().unwrap().build(&workspace, &["sip-xdp-ebpf"], &directory);
    let built = build.args(["--features", "trace"]).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let object = std::fs::read(directory.join(TARGET).join("bpf/sip-xdp-ebpf")).unwrap();
    let mut object = loader::load_other(&object, &settings()).unwrap();
    let mut log: RingBuf<_> = object.take_map("AYA_LOGS").unwrap().try_into().unwrap();
    let frame = sip("192.0.2.7", &request("OPTIONS"));
    let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() };
    loader::ingress(&mut object).unwrap().test_run(options).unwrap();
    let mut said = String::new();
    while let Some(record) = log.next() {
        said.push_str(&String::from_utf8_lossy(&record));
    }
    assert!(said.contains("the lists say") && said.contains("unknown"), "{said:?}");
}
