//! The compiler of the kernel programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::SETUP;
use crate::command::{ask, clean};
use crate::linker::Linker;

/// What the kernel programs are compiled for.
pub const TARGET: &str = "bpfel-unknown-none";
/// The distribution's cargo.
pub const DISTRIBUTION_CARGO: &str = "/usr/bin/cargo";
/// The distribution's compiler.
pub const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";

/// Origin of a compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The distribution's own compiler and cargo, with a prebuilt core library.
    Distribution,
    /// rustup's nightly, which builds the core library from source.
    Nightly,
}

/// What a compiler says about itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Compiler {
    /// Its version.
    pub release: String,
    /// The major version of its LLVM.
    pub llvm: u32,
}

/// A compiler that can build the kernel programs, and its linker.
#[derive(Debug)]
pub struct Toolchain {
    /// Origin of a compiler.
    pub source: Source,
    /// The linker that reads its bitcode.
    pub linker: PathBuf,
}

impl Source {
    /// The one that is there and complete.
    pub fn look() -> Option<Self> {
        if has_core(Path::new(DISTRIBUTION_RUSTC)) && Path::new(DISTRIBUTION_CARGO).is_file() {
            Some(Self::Distribution)
        } else if nightly_has_source() {
            Some(Self::Nightly)
        } else {
            None
        }
    }

    /// Asks the compiler for its versions.
    pub fn compiler(self) -> Result<Compiler> {
        let version = match self {
            Self::Distribution => ask(clean(DISTRIBUTION_RUSTC).arg("-vV")),
            Self::Nightly => ask(clean("rustup").args(["run", "nightly", "rustc", "-vV"])),
        };
        version
            .as_deref()
            .and_then(Compiler::parse)
            .context("the compiler of the kernel programs does not say its version and LLVM's")
    }

    /// The linker for its compiler.
    pub fn linker(self, compiler: &Compiler) -> Result<Linker> {
        Linker::look(compiler.llvm, self == Self::Nightly)
    }
}

impl Toolchain {
    /// Finds what `cargo xtask setup` installed, or what was there before.
    pub fn find() -> Result<Self> {
        let Some(source) = Source::look() else {
            bail!(
                "there is no toolchain for the kernel programs: run `{SETUP}` once, which installs \
                 it"
            )
        };
        let linker = source.linker(&source.compiler()?)?.found;
        let linker = linker.with_context(|| {
            format!(
                "there is no bpf-linker for the kernel programs: run `{SETUP}` once, which builds \
                 it"
            )
        })?;
        Ok(Self { source, linker })
    }

    /// The command that compiles packages of kernel programs into a target directory.
    pub fn build(&self, workspace: &Path, packages: &[&str], target_directory: &Path) -> Command {
        let mut command = match self.source {
            Source::Distribution => {
                let mut command = clean(DISTRIBUTION_CARGO);
                command.env("RUSTC", DISTRIBUTION_RUSTC);
                command
            }
            Source::Nightly => {
                let mut command = clean("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
        };
        // The kernel crates use unstable features; the distribution's compiler is a stable release.
        command.env("RUSTC_BOOTSTRAP", "1");
        command.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        command.current_dir(workspace).arg("build");
        if self.source == Source::Nightly {
            command.arg("-Zbuild-std=core");
        }
        command.args(["--profile", "bpf", "--target", TARGET]);
        for package in packages {
            command.args(["--package", package]);
        }
        command.arg("--target-dir").arg(target_directory);
        command
    }
}

impl Compiler {
    fn parse(version: &str) -> Option<Self> {
        let field =
            |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
        Some(Self { release: field("release:")?.to_owned(), llvm })
    }
}

/// Whether this compiler has a prebuilt core library for the BPF target.
fn has_core(rustc: &Path) -> bool {
    let Some(sysroot) = ask(clean(rustc).args(["--print", "sysroot"])) else { return false };
    let directory = PathBuf::from(sysroot).join("lib/rustlib").join(TARGET).join("lib");
    fs::read_dir(directory).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
        })
    })
}

/// Whether rustup's nightly is there with its source. rustup is not asked to run a toolchain that
/// it would first download.
fn nightly_has_source() -> bool {
    let Some(toolchains) = ask(clean("rustup").args(["toolchain", "list"])) else { return false };
    if !toolchains.lines().any(|line| line.starts_with("nightly-")) {
        return false;
    }
    ask(clean("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"])).is_some_and(
        |sysroot| {
            Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_compiler_says_about_itself() {
        let version = "rustc 1.96.0 (abc 2026-05-25)\nbinary: rustc\nhost: \
                       x86_64-unknown-linux-gnu\n\
                       release: 1.96.0\nLLVM version: 22.1.8";
        assert_eq!(Compiler::parse(version), Some(Compiler { release: "1.96.0".into(), llvm: 22 }));
        assert_eq!(Compiler::parse("rustc 1.96.0"), None);
    }
}
