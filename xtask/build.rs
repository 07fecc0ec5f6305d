//! Tells xtask for which target it was built: that is the host of every build that it starts.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=SIP_XDP_HOST={}", std::env::var("TARGET").unwrap_or_default());
}
