//! Running other programs, with their name in every error, and without the environment of the
//! running cargo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::{env, io};

use anyhow::{Context, Result, bail};
pub(crate) use sip_xdp_kernel::{ask, cache_directory, clean, find};

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
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", describe(command)))?;
    if !output.status.success() {
        eprint!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    check(&describe(command), output.status)
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

/// The cargo that started us.
pub(crate) fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Runs `install` in a fresh directory and moves the result to `directory` when complete, so that
/// an interrupted installation is never taken for a finished one.
pub(crate) fn install_once(
    directory: &Path,
    install: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let parent = directory.parent().context("a tool's directory has a parent")?;
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let mut partial = OsString::from(directory);
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = PathBuf::from(partial);
    let result = install(&partial).and_then(|()| match std::fs::rename(&partial, directory) {
        Ok(()) => Ok(()),
        // Another process has finished the same installation meanwhile.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot put {} in place", directory.display()))
        }
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
