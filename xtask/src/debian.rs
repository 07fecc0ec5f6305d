//! A clean Debian from its mirrors: created once, kept as an archive, unpacked when needed.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::command::{as_root, cache_directory, is_root, run_quietly, say};
use crate::packages;

/// The release that the package is tried on: the oldest one that it supports.
const SUITE: &str = "bookworm";

/// What it has beside the essential packages: what any server has, the shells whose completions are
/// tried, and rpm, by which the other package is installed.
const PACKAGES: &str =
    "bash-completion,ca-certificates,dbus,fish,iproute2,man-db,rpm,sudo,systemd-sysv,zsh";

/// What a host of containers has: Podman, and what it asks to make a container's control group.
const ENGINE: &str = "crun,dbus,iproute2,podman,systemd-sysv";

/// The packed root.
pub(crate) fn clean_root() -> Result<PathBuf> {
    make(&format!("debian-{SUITE}-3.tar"), PACKAGES)
}

/// Another, with a container engine in the place of what servers have.
pub(crate) fn engine_root() -> Result<PathBuf> {
    make(&format!("debian-{SUITE}-podman.tar"), ENGINE)
}

fn make(name: &str, include: &str) -> Result<PathBuf> {
    let directory = cache_directory()?;
    let path = directory.join(name);
    if path.is_file() {
        say(format!("clean Debian: {}", path.display()));
        return Ok(path);
    }
    if !packages::has_apt() {
        bail!("the package can be tried on Debian and its relatives only: there is no apt here");
    }
    packages::install(&["mmdebstrap".to_owned()])?;
    say(format!("making a clean Debian ({SUITE}) from the mirrors, one to four minutes"));
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    // Complete or not there at all, should this be interrupted.
    let partial = path.with_extension(format!("partial-{}.tar", std::process::id()));
    let made = run_quietly(
        as_root("mmdebstrap")?
            .args(["--variant=apt", &format!("--include={include}"), SUITE])
            .arg(&partial),
    );
    if made.is_err() {
        let _ = fs::remove_file(&partial);
    }
    made.context("no clean Debian could be made; is there a way to a mirror?")?;
    if !is_root() {
        let user = std::env::var("USER").context("USER is not set")?;
        run_quietly(as_root("chown")?.arg(user).arg(&partial))?;
    }
    fs::rename(&partial, &path)
        .with_context(|| format!("cannot put {} in place", path.display()))?;
    Ok(path)
}
