//! Prerequisites of the machines: the emulator, kernels, a small root, the product and the agent. A
//! second run finds all of it in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::archive;
use super::kernels::{Kernel, Prepared};
use super::qemu::Architecture;
use crate::command::{self, as_root, ask, cache_directory, find, run_quietly, say};
use crate::cross::{self, Target};
use crate::workspace::Workspace;
use crate::{build, packages};

/// The first version with all the cards: igb came with 8.0.
const EMULATOR: u32 = 8;

/// The agent's package.
const GUEST: &str = "sip-xdp-guest";

/// What is ready to be booted.
pub(crate) struct Files {
    /// The root, as a part of an initial file system.
    pub(crate) root: PathBuf,
    /// In the order of what was asked for.
    pub(crate) kernels: Vec<Prepared>,
    /// Where all that is kept.
    pub(crate) cache: PathBuf,
    /// The product's binary.
    pub(crate) binary: PathBuf,
    /// The agent.
    pub(crate) guest: PathBuf,
}

/// What need not be built.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Built<'a> {
    pub(crate) binary: Option<&'a Path>,
    pub(crate) guest: Option<&'a Path>,
}

impl Files {
    /// Packs the product and the agent, as the last part of an initial file system.
    pub(crate) fn overlay(&self, architecture: Architecture, to: &Path) -> Result<()> {
        archive::overlay(&self.binary, &self.guest, architecture.is_native(), to)
    }
}

/// Makes it.
pub(crate) fn prepare(
    architecture: Architecture,
    built: Built<'_>,
    kernels: &[&Kernel],
    cloud: bool,
    refresh: bool,
) -> Result<Files> {
    install(architecture)?;
    let workspace = Workspace::find()?;
    let cache = cache_directory()?.join("machines");
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let prepared = kernels
        .iter()
        .map(|kernel| kernel.prepare(&cache, architecture.name(), cloud, refresh))
        .collect::<Result<Vec<_>>>()?;
    let root = archive::root(&cache, architecture.name())?.join("root.cpio");
    let binary = match built.binary {
        Some(path) => path.to_path_buf(),
        None if architecture.is_native() => {
            build::binary(&workspace, true)?;
            workspace.binary(true)
        }
        None => cross::build(&workspace, foreign(architecture)?)?,
    };
    let guest = built
        .guest
        .map_or_else(|| guest(&workspace, architecture), |path| Ok(path.to_path_buf()))?;
    Ok(Files { root, kernels: prepared, cache, binary, guest })
}

/// What is built for machines of another architecture than ours.
fn foreign(architecture: Architecture) -> Result<Target> {
    match architecture {
        Architecture::Arm64 => Ok(Target::Arm64),
        Architecture::Amd64 => {
            bail!("x86-64 machines are tried on x86-64 only: name a binary and an agent")
        }
    }
}

/// Builds the agent.
fn guest(workspace: &Workspace, architecture: Architecture) -> Result<PathBuf> {
    if !architecture.is_native() {
        return cross::build_package(workspace, foreign(architecture)?, GUEST);
    }
    command::run(workspace.cargo().args(["build", "--package", GUEST]))?;
    Ok(workspace.target.join("debug").join(GUEST))
}

/// Installs the emulator and the tools that images are made with.
fn install(architecture: Architecture) -> Result<()> {
    packages::install_machine_tools()?;
    let package = match architecture {
        Architecture::Amd64 => "qemu-system-x86",
        Architecture::Arm64 => "qemu-system-arm",
    };
    if let Some(version) = emulator(architecture)
        && version >= EMULATOR
    {
        say(format!("emulator: {} {version}", architecture.program()));
        return Ok(());
    }
    if !packages::has_apt() {
        bail!("install {} {EMULATOR} or newer: there is no apt here", architecture.program());
    }
    let wanted = [package.to_owned(), "ipxe-qemu".to_owned()];
    if candidate(package).is_some_and(|version| version >= EMULATOR) {
        return packages::install(&wanted);
    }
    install_from_backports(&wanted)?;
    match emulator(architecture) {
        Some(version) if version >= EMULATOR => Ok(()),
        _ => bail!("{package} is older than {EMULATOR} here, and in backports too"),
    }
}

/// The emulator's major version, if it is installed.
fn emulator(architecture: Architecture) -> Option<u32> {
    let text = ask(Command::new(find(architecture.program())?).arg("--version"))?;
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

/// The major version that apt would install.
fn candidate(package: &str) -> Option<u32> {
    let text = ask(Command::new("apt-cache").args(["policy", package]))?;
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    version.rsplit(':').next()?.split(['.', '+']).next()?.parse().ok()
}

/// Installs from the backports of the release that this machine has, without adding them to its
/// sources.
fn install_from_backports(wanted: &[String]) -> Result<()> {
    let os = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename =
        os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
    let uri = ask(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(ORIGIN)",
        "Created-By: Packages",
    ]))
    .unwrap_or_default();
    let mirror = uri.lines().find_map(|line| line.strip_suffix(" Debian")).map(str::to_owned);
    let Some(mirror) = mirror.filter(|_| !codename.is_empty()) else {
        bail!("install {}, {EMULATOR} or newer: this release has an older one", wanted.join(" "));
    };
    let mirror = mirror.trim_end_matches('/');
    say(format!("installing from {codename}-backports: {}", wanted.join(" ")));
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let list = directory.path().join("backports.list");
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let lines = ["", "-backports"]
        .map(|suffix| format!("deb [signed-by={keys}] {mirror} {codename}{suffix} main\n"));
    std::fs::write(&list, lines.concat())?;
    std::fs::create_dir_all(directory.path().join("lists/partial"))?;
    let apt = |arguments: &[&str]| -> Result<()> {
        let mut command = as_root("env")?;
        command.args([
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=120",
        ]);
        for option in [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}/lists", directory.path().display()),
            "APT::Default-Release=".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        run_quietly(command.args(arguments))
    };
    apt(&["update"])?;
    let release = format!("{codename}-backports");
    let mut arguments =
        vec!["install", "--yes", "--no-remove", "--no-install-recommends", "-t", &release];
    arguments.extend(wanted.iter().map(String::as_str));
    apt(&arguments)
}
