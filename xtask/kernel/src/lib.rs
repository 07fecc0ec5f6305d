//! Finds the toolchain of the kernel programs and compiles them, for the build scripts that embed
//! them. It installs nothing: `cargo xtask setup` does.
//!
//! The toolchain is not the one for everything else: it needs a core library for the BPF target and
//! a linker that reads the compiler's bitcode. Two are known, and the one that needs no download is
//! preferred:
//! - a distribution's compiler with its prebuilt core library for BPF (Debian: `rustc-web`,
//!   `libstd-rust-web-dev-bpf`);
//! - rustup's nightly with the `rust-src` component, which builds the core library from source.
//!
//! Linker flags and the target CPU are cargo's to know: `.cargo/config.toml` names them.

mod command;
mod linker;
mod script;
mod toolchain;

pub use command::{ask, cache_directory, clean, find};
pub use linker::{Linker, VERSION as LINKER_VERSION};
pub use script::{embed, without_dwarf};
pub use toolchain::{Compiler, DISTRIBUTION_CARGO, DISTRIBUTION_RUSTC, Source, TARGET, Toolchain};

/// The one command that makes a fresh clone complete.
pub const SETUP: &str = "cargo xtask setup";
