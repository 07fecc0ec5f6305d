//! `cargo xtask setup`: installs build requirements besides Rust, once; from then on `cargo build`,
//! `cargo test`, `cargo clippy` and rust-analyzer work as in any other workspace.
//!
//! It uses the same detection as the build scripts, so that both agree.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sip_xdp_kernel::{Compiler, DISTRIBUTION_CARGO, LINKER_VERSION, Linker, Source};

use crate::command::{ask, cargo, clean, find, install_once, run, run_quietly, say};
use crate::packages;

/// What Debian calls its up-to-date compiler, its cargo, and its core library for BPF.
const DISTRIBUTION_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// What Debian calls the formatter and the linter that fit that compiler.
const DISTRIBUTION_CHECKERS: [&str; 2] = ["rustfmt-web", "rust-web-clippy"];
const RUSTUP_INSTALL: &str =
    "rustup toolchain install nightly --profile minimal --component rust-src";
/// The LLVM versions that this bpf-linker can be built against.
const KNOWN_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// The command.
pub(crate) fn run_all() -> Result<()> {
    kernel_toolchain()?;
    checkers()?;
    say("complete: `cargo build`, `cargo test -p sip-xdp` and `cargo clippy` work now");
    Ok(())
}

/// Finds the compiler and the linker of the kernel programs, installs what is missing, and says
/// what it did.
pub(crate) fn kernel_toolchain() -> Result<()> {
    let source = match Source::look() {
        Some(source) => source,
        None => install_compiler()?,
    };
    let compiler = source.compiler()?;
    let place = match source {
        Source::Distribution => "the distribution's",
        Source::Nightly => "rustup's nightly",
    };
    say(format!("kernel toolchain: {place} rustc {} (LLVM {})", compiler.release, compiler.llvm));
    let linker = match source.linker(&compiler)? {
        Linker { found: Some(linker), .. } => linker,
        Linker { directory, .. } => build_linker(&compiler, &directory)?,
    };
    say(format!("kernel linker: {}", linker.display()));
    Ok(())
}

fn install_compiler() -> Result<Source> {
    if packages::has_apt() {
        let wanted = DISTRIBUTION_PACKAGES.map(str::to_owned);
        if packages::are_available(&wanted)? {
            packages::install(&wanted)?;
            return Ok(Source::Distribution);
        }
    }
    if find("rustup").is_some() {
        say(format!("installing a nightly toolchain: {RUSTUP_INSTALL}"));
        let words: Vec<_> = RUSTUP_INSTALL.split(' ').collect();
        run(clean(words[0]).args(&words[1..]))
            .context("the nightly toolchain with its source cannot be installed")?;
        return Ok(Source::Nightly);
    }
    bail!(
        "no toolchain for the kernel programs: install either the packages {} (Debian), or rustup \
         and \
         then `{RUSTUP_INSTALL}`",
        DISTRIBUTION_PACKAGES.join(" ")
    );
}

/// Builds bpf-linker into its directory.
fn build_linker(compiler: &Compiler, directory: &Path) -> Result<PathBuf> {
    let llvm = compiler.llvm;
    if !KNOWN_LLVM.contains(&llvm) {
        bail!(
            "bpf-linker {LINKER_VERSION} does not support LLVM {llvm}: install one that does on \
             the \
             search path, for rustup's nightly"
        );
    }
    let prefix = match llvm_prefix(llvm) {
        Some(prefix) => prefix,
        None => install_llvm(llvm)?,
    };
    let _ = std::fs::remove_dir_all(directory);
    say(format!(
        "building bpf-linker {LINKER_VERSION} against {}, about a minute",
        prefix.display()
    ));
    install_once(directory, |root| {
        run_quietly(
            clean(cargo())
                .env("LLVM_PREFIX", &prefix)
                .current_dir("/")
                .args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION])
                .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
                .arg(root),
        )
    })
    .context("bpf-linker cannot be built")?;
    Ok(Linker::inside(directory))
}

/// Where LLVM of this major version is installed with what is needed to link against it.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    let has_headers =
        prefix.join("include/llvm-c/Core.h").exists() || prefix.join("lib/libLLVM.so").exists();
    (prefix.join("bin/llvm-config").is_file() && has_headers).then_some(prefix)
}

fn install_llvm(llvm: u32) -> Result<PathBuf> {
    let package = format!("llvm-{llvm}-dev");
    if !packages::has_apt() {
        bail!(
            "bpf-linker needs LLVM {llvm}: install its development files in /usr/lib/llvm-{llvm}, \
             or put \
             a bpf-linker that reads LLVM {llvm} bitcode on the search path (`cargo binstall \
             bpf-linker`)"
        );
    }
    packages::install(&[package])?;
    llvm_prefix(llvm).with_context(|| format!("llvm-{llvm}-dev did not bring /usr/lib/llvm-{llvm}"))
}

/// Makes `cargo fmt` and `cargo clippy` available to the contributor's own cargo: neither Debian's
/// nor rustup's smallest toolchain brings them.
pub(crate) fn checkers() -> Result<()> {
    let is_there = |name: &str| ask(Command::new(cargo()).args([name, "--version"])).is_some();
    if is_there("fmt") && is_there("clippy") {
        return Ok(());
    }
    if cargo() == Path::new(DISTRIBUTION_CARGO) && packages::has_apt() {
        return packages::install(&DISTRIBUTION_CHECKERS.map(str::to_owned));
    }
    if find("rustup").is_some() {
        say("installing the formatter and the linter: rustup component add rustfmt clippy");
        return run(Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]));
    }
    bail!(
        "`cargo fmt` or `cargo clippy` is missing: install rustfmt and clippy, which belong to \
         your \
         Rust toolchain"
    );
}
