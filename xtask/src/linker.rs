//! bpf-linker, which must read the compiler's bitcode: it is built against the LLVM of the same major version, into a
//! directory that names both versions, so that it is known to match and never disturbs another one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{ask, cache_directory, cargo, clean, find, install_once, run_quietly, say};
use crate::packages;

const VERSION: &str = "0.13.0";
/// The LLVM versions that this bpf-linker can be built against.
const KNOWN_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// The linker for a compiler with this LLVM. One on the search path is taken only if `any_will_do`: those that its project
/// publishes read every bitcode up to the newest, those built by hand often do not.
pub(crate) fn find_or_install(llvm: u32, any_will_do: bool) -> Result<PathBuf> {
    let directory = cache_directory()?.join(format!("bpf-linker-{VERSION}-llvm-{llvm}"));
    let linker = directory.join("bin/bpf-linker");
    // Asking for the version proves that the shared LLVM it was built against is still installed.
    if ask(clean(&linker).arg("--version")).is_some() {
        return Ok(linker);
    }
    if !KNOWN_LLVM.contains(&llvm) {
        return on_path(any_will_do).with_context(|| {
            format!("bpf-linker {VERSION} does not support LLVM {llvm}: install one that does, on the search path")
        });
    }
    let prefix = match llvm_prefix(llvm) {
        Some(prefix) => prefix,
        None => {
            if let Some(found) = on_path(any_will_do) {
                return Ok(found);
            }
            install_llvm(llvm)?
        }
    };
    let _ = std::fs::remove_dir_all(&directory);
    say(format!("building bpf-linker {VERSION} against {}, about a minute", prefix.display()));
    install_once(&directory, |root| {
        run_quietly(
            clean(cargo())
                .env("LLVM_PREFIX", &prefix)
                .current_dir("/")
                .args(["install", "bpf-linker", "--locked", "--version", VERSION, "--no-default-features"])
                .args(["--features", &format!("llvm-{llvm}"), "--root"])
                .arg(root),
        )
    })
    .context("bpf-linker cannot be built")?;
    Ok(linker)
}

fn on_path(any_will_do: bool) -> Option<PathBuf> {
    any_will_do.then(|| find("bpf-linker")).flatten()
}

/// Where LLVM of this major version is installed with what is needed to link against it.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    (prefix.join("bin/llvm-config").is_file() && has_development_files(&prefix)).then_some(prefix)
}

fn has_development_files(prefix: &Path) -> bool {
    prefix.join("include/llvm-c/Core.h").exists() || prefix.join("lib/libLLVM.so").exists()
}

fn install_llvm(llvm: u32) -> Result<PathBuf> {
    let package = format!("llvm-{llvm}-dev");
    if !packages::has_apt() {
        bail!(
            "bpf-linker needs LLVM {llvm}: install its development files in /usr/lib/llvm-{llvm}, \
             or put a bpf-linker that reads LLVM {llvm} bitcode on the search path (`cargo binstall bpf-linker`)"
        );
    }
    packages::install(&[package])?;
    llvm_prefix(llvm).with_context(|| format!("llvm-{llvm}-dev did not bring /usr/lib/llvm-{llvm}"))
}
