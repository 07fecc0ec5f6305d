//! Running other programs: with their name in every error, and without the environment of the cargo that runs us.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::{env, io};

use anyhow::{Context, Result, bail};

/// One line on what was found or is being done.
pub(crate) fn say(text: impl AsRef<str>) {
    eprintln!("xtask: {}", text.as_ref());
}

/// Runs a command with our own output, and fails when it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run `{}`", describe(command)))?;
    check(&describe(command), status)
}

/// Fails when a command did.
pub(crate) fn check(what: &str, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{what}` failed ({status})");
    }
    Ok(())
}

/// Runs a command quietly; its output is shown only when it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{}`", describe(command)))?;
    if !output.status.success() {
        eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    check(&describe(command), output.status)
}

/// What a command prints, or `None` when it is not there or fails: the way to ask whether something is installed.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Where a program of this name is on the search path.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(administrators)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    ask(Command::new("id").arg("-u")).is_some_and(|id| id == "0")
}

/// A command that runs as root: as it is when we are, through sudo otherwise.
pub(crate) fn as_root(program: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if find("sudo").is_none() {
        bail!("`{program}` needs root: run this command as root, or install sudo");
    }
    let mut command = Command::new("sudo");
    command.arg("--preserve-env").arg(program);
    Ok(command)
}

/// A command that is not affected by the cargo and rustup that started us: another toolchain's variables would make it use
/// the wrong compiler, flags or libraries. What says where the network and the registries are is kept.
pub(crate) fn clean(program: impl AsRef<Path>) -> Command {
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
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_TERM_"];
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

/// The cargo that started us.
pub(crate) fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// The per-user directory for tools that we build: never a place where another version may be in use.
pub(crate) fn cache_directory() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context("neither HOME nor XDG_CACHE_HOME is set: there is no place to keep the tools")?;
    Ok(base.join("sip-xdp"))
}

/// Does `install` into a fresh directory and moves the result to `directory` when it is complete, so that an interrupted
/// installation is never taken for a finished one.
pub(crate) fn install_once(directory: &Path, install: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = directory.parent().context("a tool's directory has a parent")?;
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let mut partial = OsString::from(directory);
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = PathBuf::from(partial);
    let result = install(&partial).and_then(|()| match std::fs::rename(&partial, directory) {
        Ok(()) => Ok(()),
        // Somebody else finished the same installation in the meantime.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot put {} in place", directory.display())),
    });
    // Nothing is there after a success, and what a failure left is of no use.
    let _ = std::fs::remove_dir_all(&partial);
    result
}

/// A command as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    words.join(" ")
}
