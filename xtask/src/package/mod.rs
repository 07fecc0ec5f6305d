//! `cargo xtask package`: what users install, none of which needs a toolchain there: Debian
//! packages for amd64 and arm64, an rpm package, a tarball with a static binary, and what a
//! container image is built from. With `--test` each is installed or run: in a clean Debian with
//! its own systemd, where a newcomer follows the README as well, or in a root that holds nothing
//! else.

mod container;
mod deb;
mod rpm;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use anyhow::{Context, Result, bail};

use crate::command::{self, as_root, ask, run_quietly, say};
use crate::cross::{self, Target};
use crate::workspace::Workspace;
use crate::{build, debian, packages};

/// What the second of two packages has behind its version, so that it is an upgrade of the first.
const NEXT: &str = "+next";

/// The most that the binary may take, in bytes, without its symbols.
const MOST: u64 = 15_000_000;

/// What was made beside the Debian package for this machine.
struct Others {
    arm64: PathBuf,
    rpm: PathBuf,
    rpm_next: Option<PathBuf>,
    tarball: PathBuf,
    container: PathBuf,
}

/// The command.
pub(crate) fn run(tests: bool) -> Result<()> {
    let workspace = Workspace::find()?;
    // cargo-deb asks dpkg-shlibdeps for the libraries that the binary needs.
    if packages::has_apt() {
        packages::install(&["dpkg-dev", "rpm"].map(str::to_owned))?;
    }
    build::binary(&workspace, true)?;
    generate(&workspace)?;
    // First of all: cargo-deb empties the usual directory whenever it makes a package, wherever
    // that goes.
    let next = if tests { Some(deb::pack(&workspace, NEXT)?) } else { None };
    let package = deb::pack(&workspace, "")?;
    made("Debian package for this machine", &package)?;
    let tree = tempfile::tempdir().context("cannot make a temporary directory")?;
    deb::unpack(&package, tree.path())?;
    size("for this machine", &tree.path().join("usr/bin/sip-xdp"))?;
    object_size(&workspace)?;
    let others = others(&workspace, &package, tests)?;
    match next {
        Some(next) => test(&workspace, &package, &next, others.as_ref()),
        None => Ok(()),
    }
}

/// Makes the rest, from the files of the Debian package. Says so where that cannot be.
fn others(workspace: &Workspace, package: &Path, tests: bool) -> Result<Option<Others>> {
    const ALL: &str = "the packages for arm64 and with rpm, the tarball, and the container image";
    if !packages::has_apt() || !cfg!(target_arch = "x86_64") {
        say(format!("NOT MADE: {ALL}: they are made on Debian and its relatives, on x86_64"));
        return Ok(None);
    }
    let to = workspace.target.join("packages");
    let _ = fs::remove_dir_all(&to);
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;

    let tree = to.join("tree");
    let binary = tree.join("usr/bin/sip-xdp");
    let arm64 = deb::with_binary(package, &cross::build(workspace, Target::Arm64)?, "arm64", &to)?;
    made("Debian package for arm64", &arm64)?;
    deb::unpack(&arm64, &tree)?;
    size("for arm64", &binary)?;

    deb::unpack(package, &tree)?;
    deb::strip("strip", &cross::build(workspace, Target::Static)?, &binary)?;
    is_static(&binary)?;
    size("without libraries", &binary)?;
    let rpm_next = if tests { Some(rpm::pack(workspace, &tree, NEXT, &to)?) } else { None };
    let rpm = rpm::pack(workspace, &tree, "", &to)?;
    made("rpm package for x86_64", &rpm)?;
    let tarball = container::tarball(&tree, &to)?;
    made("tarball for x86_64", &tarball)?;
    let container = container::context(workspace, &tree, &to)?;
    say(format!("container image and Kubernetes manifest: {}", container.display()));
    fs::remove_dir_all(&tree)?;
    Ok(Some(Others { arm64, rpm, rpm_next, tarball, container }))
}

fn made(what: &str, file: &Path) -> Result<()> {
    let bytes =
        fs::metadata(file).with_context(|| format!("{} was not made", file.display()))?.len();
    say(format!("{what}: {} ({:.1} MB)", file.display(), bytes as f64 / 1e6));
    Ok(())
}

/// Fails when a binary asks for a program interpreter or a library, which a static one does not.
fn is_static(binary: &Path) -> Result<()> {
    let headers =
        ask(Command::new("readelf").args(["--program-headers", "--dynamic", "--wide"]).arg(binary))
            .context("readelf does not read the binary")?;
    if let Some(line) =
        headers.lines().find(|line| line.contains("INTERP") || line.contains("(NEEDED)"))
    {
        bail!("the binary that is to need no library does: {}", line.trim());
    }
    Ok(())
}

/// Says what a binary takes without symbols, and fails when that is more than it may.
fn size(what: &str, binary: &Path) -> Result<()> {
    let bytes =
        fs::metadata(binary).with_context(|| format!("there is no {}", binary.display()))?.len();
    say(format!("the binary {what} takes {:.2} MB without symbols", bytes as f64 / 1e6));
    within_limit(what, bytes)
}

fn within_limit(what: &str, bytes: u64) -> Result<()> {
    if bytes > MOST {
        bail!("the binary {what} takes {bytes} bytes without symbols, more than {MOST}");
    }
    Ok(())
}

/// Says what the kernel programs take, of which the binary has all but the DWARF sections, and what
/// they would take in it if they were compressed.
fn object_size(workspace: &Workspace) -> Result<()> {
    let object = workspace.target.join("bpf").join(sip_xdp_kernel::TARGET).join("bpf/sip-xdp-ebpf");
    let object = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    let embedded = sip_xdp_kernel::without_dwarf(&object)?;
    let file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    fs::write(file.path(), &embedded)?;
    let compressed =
        Command::new("gzip").args(["-9", "--stdout"]).arg(file.path()).output()?.stdout;
    let kilobytes = |bytes: &[u8]| bytes.len() as f64 / 1e3;
    say(format!(
        "the kernel programs take {:.0} kB in it ({:.0} with DWARF, which is left out); \
         compressed they would take {:.0}",
        kilobytes(&embedded),
        kilobytes(&object),
        kilobytes(&compressed),
    ));
    Ok(())
}

/// Has the program write its man pages and completions, where `sip-xdp/Cargo.toml` says that they
/// are.
fn generate(workspace: &Workspace) -> Result<()> {
    let binary = workspace.binary(true);
    let directory = binary.with_file_name("package");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let man = directory.join("man");
    run_quietly(Command::new(&binary).arg("man").arg(&man))?;
    // Without a time in them, so that the same sources make the same package.
    run_quietly(Command::new("gzip").args(["-9", "--no-name", "--recursive"]).arg(&man))?;
    for (shell, name) in [("bash", "sip-xdp.bash"), ("zsh", "_sip-xdp"), ("fish", "sip-xdp.fish")] {
        let path = directory.join(name);
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        command::run(Command::new(&binary).args(["completions", shell]).stdout(file))?;
    }
    Ok(())
}

/// Tries what was packed, and that it can be upgraded.
fn test(workspace: &Workspace, package: &Path, next: &Path, others: Option<&Others>) -> Result<()> {
    packages::install_lab_tools()?;
    packages::install(&["dnsmasq-base".to_owned()])?;
    let root = debian::clean_root()?;
    if let Some(others) = others {
        try_others(workspace, &root, others)?;
    }
    let arguments =
        ["package".into(), "--package".into(), package.into(), "--next".into(), next.into()];
    try_installed(workspace, &root, arguments)
}

/// Tries what was made beside the Debian package for this machine, and says what was not tried.
fn try_others(workspace: &Workspace, root: &Path, others: &Others) -> Result<()> {
    let Others { arm64, rpm, rpm_next, tarball, container } = others;
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    emulate(arm64, directory.path())?;
    say(
        "NOT TRIED here: the package for arm64 on a kernel for arm64; `cargo xtask machines --arch \
         arm64` boots one",
    );

    let manifest = container::validate(&container.join("kubernetes.yaml"), directory.path())?;
    say("the manifest is valid for Kubernetes, and names nothing that its schemas do not know");
    let engine_root = debian::engine_root()?;
    let stand_in = rpm::stand_in(directory.path())?;
    let next = rpm_next.as_ref().context("the next rpm package was not made")?;
    let mut arguments: Vec<OsString> = vec!["others".into()];
    for (option, file) in [
        ("--rpm", rpm),
        ("--rpm-next", next),
        ("--rpm-stand-in", &stand_in),
        ("--tarball", tarball),
        ("--context", container),
        ("--engine-root", &engine_root),
        ("--manifest", &manifest),
    ] {
        arguments.extend([option.into(), file.into()]);
    }
    try_installed(workspace, root, arguments)?;
    say(
        "NOT TRIED here: the rpm package on a distribution with rpm and SELinux, and the image in \
         a Kubernetes cluster",
    );
    Ok(())
}

/// Runs the binary for arm64 on an emulated processor: commands that ask nothing of the kernel.
fn emulate(package: &Path, directory: &Path) -> Result<()> {
    packages::install(&["qemu-user-static".to_owned()])?;
    let tree = directory.join("arm64");
    deb::unpack(package, &tree)?;
    let field = |name: &str| ask(Command::new("dpkg-deb").arg("--field").arg(package).arg(name));
    let binary = tree.join("usr/bin/sip-xdp");
    let emulated = || {
        let mut command = Command::new("qemu-aarch64-static");
        command.args(["-L", "/usr/aarch64-linux-gnu"]).arg(&binary);
        command
    };
    let version = ask(emulated().arg("--version")).context("the binary for arm64 does not run")?;
    run_quietly(
        emulated()
            .arg("--config")
            .arg(tree.join("etc/sip-xdp/config.toml"))
            .args(["config", "check"]),
    )?;
    let architecture = field("Architecture").unwrap_or_default();
    if architecture != "arm64" || version != concat!("sip-xdp ", env!("CARGO_PKG_VERSION")) {
        bail!("the package for arm64 says {architecture}, its binary {version}");
    }
    say(format!(
        "the binary for arm64 runs on an emulated processor: {version}, and it accepts its \
         configuration"
    ));
    Ok(())
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
        .args([
            "--root".as_ref(),
            root.as_os_str(),
            "--checkout".as_ref(),
            workspace.root.as_os_str(),
        ])
        .args(arguments)
        .status()
        .context("cannot run the tests of the package")?;
    match status.code() {
        Some(0) => Ok(()),
        // The tests have printed the failed checks.
        Some(code) => exit(code),
        None => bail!("the tests of the package ended with {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_of_the_limit_is_packed_and_a_larger_one_is_not() {
        assert!(within_limit("", MOST).is_ok());
        let error = within_limit("for arm64", MOST + 1).map_err(|error| error.to_string());
        assert_eq!(
            error,
            Err("the binary for arm64 takes 15000001 bytes without symbols, more than 15000000"
                .into())
        );
    }
}
