//! `cargo xtask package`: a Debian package that needs no toolchain where it is installed; with `--test` also a clean Debian
//! in which it is installed, used, upgraded and removed, and in which a newcomer follows the README.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use anyhow::{Context, Result, bail};

use crate::command::{self, as_root, ask, cache_directory, clean, install_once, run_quietly, say};
use crate::workspace::Workspace;
use crate::{build, debian, packages};

const CARGO_DEB: &str = "3.8.0";

/// What the second of two packages has behind its version, so that it is an upgrade of the first.
const NEXT: &str = "+next";

/// The command.
pub(crate) fn run(tests: bool) -> Result<()> {
    let workspace = Workspace::find()?;
    // cargo-deb asks dpkg-shlibdeps for the libraries that the binary needs.
    if packages::has_apt() {
        packages::install(&["dpkg-dev".to_owned()])?;
    }
    build::binary(&workspace, true)?;
    generate(&workspace)?;
    // First of all: cargo-deb empties the usual directory whenever it makes a package, wherever that goes.
    let next = if tests { Some(pack(&workspace, NEXT)?) } else { None };
    let package = pack(&workspace, "")?;
    say(format!("package: {}", package.display()));
    match next {
        Some(next) => test(&workspace, &package, &next),
        None => Ok(()),
    }
}

/// Has the program write its man pages and completions, where `sip-xdp/Cargo.toml` says that they are.
fn generate(workspace: &Workspace) -> Result<()> {
    let binary = workspace.binary(true);
    let directory = binary.with_file_name("package");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let man = directory.join("man");
    run_quietly(Command::new(&binary).arg("man").arg(&man))?;
    // Without a time in them, so that the same sources make the same package.
    run_quietly(Command::new("gzip").args(["-9", "--no-name", "--recursive"]).arg(&man))?;
    for (shell, name) in [("bash", "sip-xdp.bash"), ("zsh", "_sip-xdp"), ("fish", "sip-xdp.fish")] {
        let path = directory.join(name);
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        command::run(Command::new(&binary).args(["completions", shell]).stdout(file))?;
    }
    Ok(())
}

/// Packs what was built, with something added to its version.
fn pack(workspace: &Workspace, suffix: &str) -> Result<PathBuf> {
    let directory = workspace.target.join(format!("debian{suffix}"));
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut pack = Command::new(cargo_deb()?);
    pack.env("CARGO", command::cargo()).current_dir(&workspace.root);
    // Not built again by cargo-deb: only we know where the kernel object is.
    pack.args(["--no-build", "--package", "sip-xdp"]);
    pack.args(["--deb-version", &format!("{}-1{suffix}", env!("CARGO_PKG_VERSION"))]);
    pack.arg("--output").arg(&directory);
    let made = ask(&mut pack).context("cargo-deb failed; `cargo deb --no-build --package sip-xdp` says why")?;
    let package = made.lines().last().map(PathBuf::from).filter(|path| path.is_file());
    package.with_context(|| format!("cargo-deb named no package, but said: {made}"))
}

fn cargo_deb() -> Result<PathBuf> {
    let directory = cache_directory()?.join(format!("cargo-deb-{CARGO_DEB}"));
    let cargo_deb = directory.join("bin/cargo-deb");
    if ask(Command::new(&cargo_deb).arg("--version")).is_none() {
        say(format!("building cargo-deb {CARGO_DEB}, one to two minutes"));
        let _ = fs::remove_dir_all(&directory);
        install_once(&directory, |root| {
            run_quietly(
                clean(command::cargo())
                    .current_dir("/")
                    .args(["install", "cargo-deb", "--locked", "--version", CARGO_DEB, "--root"])
                    .arg(root),
            )
        })
        .context("cargo-deb cannot be built")?;
    }
    Ok(cargo_deb)
}

/// Tries what was packed, and that it can be upgraded.
fn test(workspace: &Workspace, package: &Path, next: &Path) -> Result<()> {
    packages::install_lab_tools()?;
    let root = debian::clean_root()?;
    let arguments = ["package".into(), "--package".into(), package.into(), "--next".into(), next.into()];
    try_installed(workspace, &root, arguments)
}

/// Runs the tests of the installed package, which need a clean Debian; their exit status is ours.
pub(crate) fn try_installed(
    workspace: &Workspace,
    root: &Path,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<()> {
    command::run(workspace.cargo().args(["build", "--package", "sip-xdp-installed"]))?;
    // What is unpacked and built there is too much for a file system in memory.
    let status = as_root("env")?
        .arg("TMPDIR=/var/tmp")
        .arg(workspace.target.join("debug/installed"))
        .args(["--root".as_ref(), root.as_os_str(), "--checkout".as_ref(), workspace.root.as_os_str()])
        .args(arguments)
        .status()
        .context("cannot run the tests of the package")?;
    match status.code() {
        Some(0) => Ok(()),
        // The tests have said what did not hold.
        Some(code) => exit(code),
        None => bail!("the tests of the package ended with {status}"),
    }
}
