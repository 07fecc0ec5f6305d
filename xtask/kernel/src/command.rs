//! Queries of other programs, without the environment of the running cargo.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

/// A command's output, or `None` if it is missing or fails: the check whether something is
/// installed.
pub fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The path of a program, on the search path or in the administrators' directories.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(administrators)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A command without the environment of the running cargo and rustup, whose variables would select
/// the wrong compiler, flags or libraries. Network and registry settings are kept.
pub fn clean(program: impl AsRef<Path>) -> Command {
    const DROPPED: [&str; 9] = [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
        "LD_LIBRARY_PATH",
    ];
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_TERM_",
    ];
    let mut command = Command::new(program.as_ref());
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        let of_cargo = name == "CARGO"
            || (name.starts_with("CARGO_") && !KEPT.iter().any(|kept| name.starts_with(kept)))
            || name.starts_with("LLVM_SYS_");
        if of_cargo || DROPPED.contains(&name.as_ref()) {
            command.env_remove(&key);
        }
    }
    command
}

/// The per-user directory for tools that we build: never a place where another version may be in
/// use.
pub fn cache_directory() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context("neither HOME nor XDG_CACHE_HOME is set: there is no place to keep the tools")?;
    Ok(base.join("sip-xdp"))
}
