//! Cross builds: for arm64, and a static binary.
//!
//! For arm64 Debian's compiler is preferred: the standard library of the same version for that
//! machine comes from the same archive, and is unpacked beside it rather than installed. Elsewhere
//! rustup's target is used. gcc compiles C code (SQLite, zstd) and links.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sip_xdp_kernel::{DISTRIBUTION_CARGO, DISTRIBUTION_RUSTC};

use crate::command::{self, ask, cache_directory, clean, find, install_once, run_quietly, say};
use crate::packages;
use crate::workspace::Workspace;

/// What the binary is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// 64-bit ARM, with the GNU C library
    Arm64,
    /// This machine's own kind, without a need for any library
    Static,
}

const ARM64: &str = "aarch64-unknown-linux-gnu";
const X86_64: &str = "x86_64-unknown-linux-gnu";
/// The cross compiler: the program, and Debian's name for its package.
const ARM64_GCC: &str = "aarch64-linux-gnu-gcc";
const ARM64_PACKAGES: [&str; 2] = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
/// Debian's packages with the standard library; the second has the compiler's version in its name.
const STANDARD_LIBRARY: &str = "libstd-rust-web-dev";
/// Where Debian 13 has them, for machines whose own release has none for arm64.
const DEBIAN_13: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                         http://deb.debian.org/debian trixie main\n";

impl Target {
    /// The compiler's name for it.
    pub(crate) const fn triple(self) -> &'static str {
        match self {
            Self::Arm64 => ARM64,
            Self::Static => X86_64,
        }
    }
}

/// Builds the release binary; its build script embeds the kernel programs, which are the same for
/// all machines.
pub(crate) fn build(workspace: &Workspace, target: Target) -> Result<PathBuf> {
    build_package(workspace, target, "sip-xdp")
}

/// The same for the binary of any package of the workspace that has its name.
pub(crate) fn build_package(
    workspace: &Workspace,
    target: Target,
    package: &str,
) -> Result<PathBuf> {
    let mut cargo = match target {
        Target::Arm64 => arm64()?,
        Target::Static => {
            if !cfg!(all(target_arch = "x86_64", target_env = "gnu")) {
                bail!("the binary without libraries is built on x86_64 with glibc only");
            }
            let mut cargo = clean(command::cargo());
            // Only for what is built for the target: build scripts and macros stay as they are.
            cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
            cargo
        }
    };
    cargo.current_dir(&workspace.root);
    cargo.args(["build", "--release", "--package", package, "--target", target.triple()]);
    command::run(cargo.arg("--target-dir").arg(&workspace.target))
        .with_context(|| format!("{package} cannot be built for {}", target.triple()))?;
    let binary = workspace.target.join(target.triple()).join("release").join(package);
    say(format!("{package} for {}: {}", target.triple(), binary.display()));
    Ok(binary)
}

/// A cargo that compiles for arm64.
fn arm64() -> Result<Command> {
    if find(ARM64_GCC).is_none() {
        if !packages::has_apt() {
            bail!(
                "install a C compiler for arm64 by the name of {ARM64_GCC}: there is no apt here"
            );
        }
        packages::install(&ARM64_PACKAGES.map(str::to_owned))?;
    }
    let mut cargo = match sysroot()? {
        Some(sysroot) => {
            let mut cargo = clean(DISTRIBUTION_CARGO);
            cargo.env("RUSTC", DISTRIBUTION_RUSTC);
            cargo.env("CARGO_ENCODED_RUSTFLAGS", format!("--sysroot={}", sysroot.display()));
            cargo
        }
        None => {
            rustup_target()?;
            clean(command::cargo())
        }
    };
    cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", ARM64_GCC);
    cargo.env("CC_aarch64_unknown_linux_gnu", ARM64_GCC);
    Ok(cargo)
}

/// A directory with the standard libraries of the distribution's compiler, for this machine and for
/// arm64; none if the distribution has no such compiler.
fn sysroot() -> Result<Option<PathBuf>> {
    if !Path::new(DISTRIBUTION_CARGO).is_file() || !packages::has_apt() {
        return Ok(None);
    }
    let Some(version) = ask(Command::new("dpkg-query").args([
        "--show",
        "--showformat=${Version}",
        STANDARD_LIBRARY,
    ])) else {
        return Ok(None);
    };
    let Some(own) = ask(clean(DISTRIBUTION_RUSTC).args(["--print", "sysroot"])) else {
        return Ok(None);
    };
    let directory =
        cache_directory()?.join(format!("std-arm64-{}", version.replace(['~', '+', ':'], "-")));
    if !directory.is_dir() {
        say(format!("fetching {STANDARD_LIBRARY} {version} for arm64"));
        install_once(&directory, |root| {
            fetch(root, &version)?;
            let libraries = root.join("lib/rustlib");
            fs::create_dir_all(&libraries)?;
            symlink(root_of(&directory).join(ARM64), libraries.join(ARM64))?;
            symlink(Path::new(&own).join("lib/rustlib").join(X86_64), libraries.join(X86_64))?;
            Ok(())
        })
        .context("the standard library for arm64 cannot be had; is there a way to a mirror?")?;
    }
    say(format!("standard library for arm64: {}", directory.display()));
    Ok(Some(directory))
}

/// Where Debian's packages have the libraries of each target, unpacked in a directory.
fn root_of(directory: &Path) -> PathBuf {
    directory.join("usr/lib/rustlib")
}

/// Downloads and unpacks the library's packages for arm64: from where this machine has its own,
/// else from Debian 13, whose builds of the same release of the compiler make the same library.
fn fetch(root: &Path, version: &str) -> Result<()> {
    let apt = root.join("apt");
    let own = fetch_from(&apt, root, None, version);
    own.or_else(|error| {
        say(format!("{error:#}: trying Debian 13"));
        fetch_from(&apt, root, Some(DEBIAN_13), version)
    })?;
    fs::remove_dir_all(&apt).context("cannot clean up")
}

/// The same from one set of sources, this machine's or others. Its lists are its own, so that the
/// machine's apt does not learn of another architecture.
fn fetch_from(apt: &Path, root: &Path, sources: Option<&str>, version: &str) -> Result<()> {
    let _ = fs::remove_dir_all(apt);
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(part))?;
    }
    fs::write(apt.join("status"), "")?;
    let mut options = vec![
        "-oAPT::Architecture=arm64".to_owned(),
        "-oAPT::Architectures=arm64".to_owned(),
        "-oAPT::Sandbox::User=root".to_owned(),
        format!("-oDir::State::lists={}", apt.join("lists").display()),
        format!("-oDir::State::status={}", apt.join("status").display()),
        format!("-oDir::Cache={}", apt.join("cache").display()),
    ];
    if let Some(sources) = sources {
        let list = apt.join("sources.list");
        fs::write(&list, sources)?;
        options.push(format!("-oDir::Etc::sourcelist={}", list.display()));
        options.push("-oDir::Etc::sourceparts=-".to_owned());
    }
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.current_dir(apt).args(&options);
        command
    };
    // A foreign source without arm64 is no reason to stop: missing packages are reported below.
    let _ = ask(apt_get().args(["--quiet", "update"]));
    let apt_cache = |command: &str, package: &str| {
        ask(Command::new("apt-cache").args(&options).args([command, package]))
            .with_context(|| format!("apt knows no {package} for arm64"))
    };
    let known = apt_cache("madison", STANDARD_LIBRARY)?;
    let is_ours = |known: &&str| match sources {
        None => *known == version,
        Some(_) => release(known) == release(version),
    };
    let version = known
        .lines()
        .filter_map(|line| Some(line.split('|').nth(1)?.trim()))
        .find(is_ours)
        .with_context(|| format!("apt knows no {STANDARD_LIBRARY} {version} for arm64"))?;
    let shown = apt_cache("show", &format!("{STANDARD_LIBRARY}={version}"))?;
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    let library = depends
        .split(", ")
        .filter_map(|one| one.split_whitespace().next())
        .find(|name| name.starts_with("libstd-rust-"))
        .context("the package with the standard library depends on no library")?;
    for package in [STANDARD_LIBRARY, library] {
        run_quietly(apt_get().arg("download").arg(format!("{package}={version}")))?;
    }
    for file in fs::read_dir(apt)?.flatten().map(|entry| entry.path()) {
        if file.extension().is_some_and(|extension| extension == "deb") {
            run_quietly(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(root))?;
        }
    }
    Ok(())
}

/// The compiler's release in the version of a Debian package.
fn release(version: &str) -> &str {
    version.split(['+', '-']).next().unwrap_or(version)
}

/// Makes rustup's standard library for arm64 available to the contributor's own cargo.
fn rustup_target() -> Result<()> {
    if find("rustup").is_none() {
        bail!(
            "no standard library for {ARM64}: install Debian's rustc-web, cargo-web and \
             {STANDARD_LIBRARY}, \
             or rustup and then `rustup target add {ARM64}`"
        );
    }
    if ask(Command::new("rustup").args(["target", "list", "--installed"]))
        .is_some_and(|installed| installed.lines().any(|target| target == ARM64))
    {
        return Ok(());
    }
    say(format!("installing the standard library for arm64: rustup target add {ARM64}"));
    command::run(Command::new("rustup").args(["target", "add", ARM64]))
}
