//! Debian packages: for this machine by cargo-deb, for arm64 the same with another binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{self, ask, cache_directory, clean, install_once, run, run_quietly, say};
use crate::workspace::Workspace;

const CARGO_DEB: &str = "3.8.0";

/// The newest GNU C library that the package for this machine needs is what the one for arm64 may
/// need: they are built from the same sources for the same release.
const LIBRARY: &str = "libc6";

/// Packs what was built, with something added to its version.
pub(super) fn pack(workspace: &Workspace, suffix: &str) -> Result<PathBuf> {
    let directory = workspace.target.join(format!("debian{suffix}"));
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let mut pack = Command::new(cargo_deb()?);
    pack.env("CARGO", command::cargo()).current_dir(&workspace.root);
    // Not built again by cargo-deb: only we know where the kernel object is.
    pack.args(["--no-build", "--package", "sip-xdp"]);
    pack.args(["--deb-version", &format!("{}-1{suffix}", env!("CARGO_PKG_VERSION"))]);
    pack.arg("--output").arg(&directory);
    let made = ask(&mut pack)
        .context("cargo-deb failed; `cargo deb --no-build --package sip-xdp` says why")?;
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

/// The files of a package, unpacked.
pub(super) fn unpack(package: &Path, directory: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(directory);
    run_quietly(Command::new("dpkg-deb").arg("--extract").arg(package).arg(directory))
}

/// A package with another machine's binary in the place of the one that it has.
pub(super) fn with_binary(
    package: &Path,
    binary: &Path,
    architecture: &str,
    to: &Path,
) -> Result<PathBuf> {
    let tree = to.join(format!("tree-{architecture}"));
    let _ = fs::remove_dir_all(&tree);
    run_quietly(Command::new("dpkg-deb").arg("--raw-extract").arg(package).arg(&tree))?;
    strip("aarch64-linux-gnu-strip", binary, &tree.join("usr/bin/sip-xdp"))?;
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).context("the package has no control file")?;
    let before = text
        .lines()
        .find_map(|line| line.strip_prefix("Architecture: "))
        .context("no architecture")?;
    let text =
        text.replace(&format!("Architecture: {before}"), &format!("Architecture: {architecture}"));
    needs_no_newer_library(&text, &tree.join("usr/bin/sip-xdp"))?;
    fs::write(&control, text)?;
    sums(&tree)?;
    let name =
        package.file_name().and_then(|name| name.to_str()).context("the package has no name")?;
    let made = to.join(name.replace(&format!("_{before}."), &format!("_{architecture}.")));
    run_quietly(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", "--build"])
            .arg(&tree)
            .arg(&made),
    )?;
    fs::remove_dir_all(&tree)?;
    Ok(made)
}

/// Copies a binary without its symbols, as packages have them.
pub(super) fn strip(program: &str, from: &Path, to: &Path) -> Result<()> {
    run(Command::new(program).arg("-o").arg(to).arg(from))
        .with_context(|| format!("{program} failed"))
}

/// The other machine's binary must not need what this package does not depend on.
fn needs_no_newer_library(control: &str, binary: &Path) -> Result<()> {
    let depends = control
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))
        .context("no dependencies")?;
    let allowed = depends
        .split(", ")
        .find_map(|one| one.strip_prefix(LIBRARY)?.trim().strip_prefix("(>= ")?.strip_suffix(')'))
        .with_context(|| format!("no version of {LIBRARY} in: {depends}"))?;
    let symbols = ask(Command::new("readelf").args(["--version-info", "--wide"]).arg(binary))
        .context("readelf does not read the binary")?;
    let version =
        |text: &str| -> Vec<u32> { text.split('.').map_while(|part| part.parse().ok()).collect() };
    let marks =
        symbols.split("Name: GLIBC_").skip(1).filter_map(|rest| rest.split_whitespace().next());
    let needed = marks.map(version).max().context("the binary needs no GNU C library")?;
    ensure!(
        needed <= version(allowed),
        "it needs {LIBRARY} {needed:?}, and the package depends on {allowed}"
    );
    Ok(())
}

/// Writes the sums of the files anew.
fn sums(tree: &Path) -> Result<()> {
    let script = "find . -type f -not -path './DEBIAN/*' -printf '%P\\0' | sort -z | xargs -0 \
                  md5sum > DEBIAN/md5sums";
    run(Command::new("sh").current_dir(tree).args(["-e", "-c", script]))
}
