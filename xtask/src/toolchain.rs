//! The toolchain for the kernel programs, which is not the one for everything else: it needs a core library for the BPF
//! target and a linker that reads the compiler's bitcode.
//!
//! Two worlds are known, and the one that needs no download is preferred:
//! - a distribution's compiler with its prebuilt core library for BPF (Debian: `rustc-web`, `libstd-rust-web-dev-bpf`);
//! - rustup's nightly with the `rust-src` component, which builds the core library from source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{ask, cargo, clean, find, run, say};
use crate::linker;
use crate::packages;
use crate::workspace::Workspace;

/// The product's kernel programs, and those of the tests.
pub(crate) const KERNEL_PACKAGES: [&str; 2] = ["sip-xdp-ebpf", "sip-xdp-tests-ebpf"];

const TARGET: &str = "bpfel-unknown-none";
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";
const DISTRIBUTION_CARGO: &str = "/usr/bin/cargo";
/// What Debian calls its up-to-date compiler, its cargo, and its core library for BPF.
const DISTRIBUTION_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// What Debian calls the formatter and the linter that fit that compiler.
const DISTRIBUTION_CHECKERS: [&str; 2] = ["rustfmt-web", "rust-web-clippy"];
const RUSTUP_INSTALL: &str = "rustup toolchain install nightly --profile minimal --component rust-src";

/// A compiler that can build the kernel programs, and its linker.
pub(crate) struct Toolchain {
    world: World,
    linker: PathBuf,
}

#[derive(Clone, Copy)]
enum World {
    /// The distribution's own compiler and cargo, with a prebuilt core library.
    Distribution,
    /// rustup's nightly, which builds the core library from source.
    Nightly,
}

/// What a compiler says about itself.
#[derive(Debug, PartialEq, Eq)]
struct Compiler {
    release: String,
    llvm: u32,
}

impl Toolchain {
    /// Finds what is there, installs what is missing, and says what it did.
    pub(crate) fn find_or_install() -> Result<Self> {
        let world = World::find_or_install()?;
        let compiler = world.compiler()?;
        let place = match world {
            World::Distribution => "the distribution's",
            World::Nightly => "rustup's nightly",
        };
        say(format!("kernel toolchain: {place} rustc {} (LLVM {})", compiler.release, compiler.llvm));
        let linker = linker::find_or_install(compiler.llvm, matches!(world, World::Nightly))?;
        say(format!("kernel linker: {}", linker.display()));
        Ok(Self { world, linker })
    }

    /// The command that compiles the kernel programs.
    pub(crate) fn build(&self, workspace: &Workspace) -> Command {
        let flags = [
            format!("-Clinker={}", self.linker.display()),
            "-Clink-arg=--btf".to_owned(),
            "-Cdebuginfo=2".to_owned(),
            "-Ctarget-cpu=v3".to_owned(),
        ];
        let mut command = match self.world {
            World::Distribution => {
                let mut command = clean(DISTRIBUTION_CARGO);
                command.env("RUSTC", DISTRIBUTION_RUSTC);
                command
            }
            World::Nightly => {
                let mut command = clean("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
        };
        // The kernel crates use unstable features; the distribution's compiler is a stable release.
        command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        command.current_dir(&workspace.root).arg("build");
        if matches!(self.world, World::Nightly) {
            command.arg("-Zbuild-std=core");
        }
        command.args(["--profile", "bpf", "--target", TARGET]);
        for package in KERNEL_PACKAGES {
            command.args(["--package", package]);
        }
        command.arg("--target-dir").arg(workspace.kernel_target());
        command
    }
}

impl World {
    fn find_or_install() -> Result<Self> {
        if has_core(Path::new(DISTRIBUTION_RUSTC)) && Path::new(DISTRIBUTION_CARGO).is_file() {
            return Ok(Self::Distribution);
        }
        if nightly_has_source() {
            return Ok(Self::Nightly);
        }
        if packages::has_apt() {
            let wanted = DISTRIBUTION_PACKAGES.map(str::to_owned);
            if packages::are_available(&wanted)? {
                packages::install(&wanted)?;
                return Ok(Self::Distribution);
            }
        }
        if find("rustup").is_some() {
            say(format!("installing a nightly toolchain: {RUSTUP_INSTALL}"));
            let words: Vec<_> = RUSTUP_INSTALL.split(' ').collect();
            run(clean(words[0]).args(&words[1..]))
                .context("the nightly toolchain with its source cannot be installed")?;
            return Ok(Self::Nightly);
        }
        bail!(
            "no toolchain for the kernel programs: install either the packages {} (Debian), or rustup and then `{RUSTUP_INSTALL}`",
            DISTRIBUTION_PACKAGES.join(" ")
        );
    }

    fn compiler(self) -> Result<Compiler> {
        let version = match self {
            Self::Distribution => ask(clean(DISTRIBUTION_RUSTC).arg("-vV")),
            Self::Nightly => ask(clean("rustup").args(["run", "nightly", "rustc", "-vV"])),
        };
        version.as_deref().and_then(Compiler::parse).context("the compiler does not say its version and LLVM's")
    }
}

impl Compiler {
    fn parse(version: &str) -> Option<Self> {
        let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
        Some(Self { release: field("release:")?.to_owned(), llvm })
    }
}

/// Makes `cargo fmt` and `cargo clippy` available to the contributor's own cargo: neither Debian's nor rustup's smallest
/// toolchain brings them.
pub(crate) fn install_checkers() -> Result<()> {
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
    bail!("`cargo fmt` or `cargo clippy` is missing: install rustfmt and clippy, which belong to your Rust toolchain");
}

/// Whether this compiler has a prebuilt core library for the BPF target.
fn has_core(rustc: &Path) -> bool {
    let Some(sysroot) = ask(clean(rustc).args(["--print", "sysroot"])) else { return false };
    let directory = PathBuf::from(sysroot).join("lib/rustlib").join(TARGET).join("lib");
    fs::read_dir(directory).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-")))
    })
}

/// Whether rustup's nightly is there with its source. rustup is not asked to run a toolchain that it would first download.
fn nightly_has_source() -> bool {
    let Some(toolchains) = ask(clean("rustup").args(["toolchain", "list"])) else { return false };
    if !toolchains.lines().any(|line| line.starts_with("nightly-")) {
        return false;
    }
    ask(clean("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
        .is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_compiler_says_about_itself() {
        let version = "rustc 1.96.0 (abc 2026-05-25)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
                       release: 1.96.0\nLLVM version: 22.1.8";
        assert_eq!(Compiler::parse(version), Some(Compiler { release: "1.96.0".into(), llvm: 22 }));
        assert_eq!(Compiler::parse("rustc 1.96.0"), None);
    }
}
