//! The initial file system of a machine: a root from Debian packages, the product and the agent, as
//! cpio archives that the kernel unpacks in order.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::apt::{Apt, Distribution};
use crate::command::{ask, install_once, run_quietly, say};

/// What the root is made of, with what these depend on.
const PACKAGES: [&str; 4] = ["busybox-static", "iproute2", "ethtool", "libc6"];

/// What is kept of it, beside libraries.
const PROGRAMS: [&str; 5] = ["bin/busybox", "bin/ip", "sbin/tc", "sbin/bridge", "sbin/ethtool"];

/// The root's part before the agent.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/usr/sbin:/bin:/usr/bin HOME=/root RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
ulimit -l unlimited
for module in virtio_pci virtio_console virtio_rng virtio_net af_packet e1000 e1000e igb vmxnet3; do
  modprobe $module 2>/dev/null
done
# Without this parameter it makes a bond by itself.
modprobe bonding max_bonds=0 2>/dev/null
for module in veth 8021q bridge macvlan sch_ingress cls_bpf; do
  modprobe $module 2>/dev/null
done
sysctl -q -w net.ipv4.ip_forward=0 net.ipv6.conf.all.disable_ipv6=1
ip link set lo up
/usr/bin/sip-xdp-guest
echo the agent ended: $?
poweroff -f
";

/// Packs a directory, as the kernel wants it.
pub(crate) fn pack(directory: &Path, to: &Path) -> Result<()> {
    let find = Command::new("find").current_dir(directory).arg(".").stdout(Stdio::piped()).spawn();
    let mut find = find.context("cannot run find")?;
    let names = find.stdout.take().context("find has an output")?;
    let mut cpio = Command::new("cpio");
    cpio.current_dir(directory).args(["--create", "--format=newc", "--owner=+0:+0", "--quiet"]);
    let status = cpio.stdin(names).stdout(File::create(to)?).status().context("cannot run cpio")?;
    if !find.wait()?.success() || !status.success() {
        bail!("{} cannot be packed", directory.display());
    }
    Ok(())
}

/// The root for this architecture, made once.
pub(crate) fn root(cache: &Path, architecture: &str) -> Result<PathBuf> {
    let directory = cache.join(format!("root-{architecture}"));
    if !directory.is_dir() {
        say(format!("making a small root for {architecture}: {}", PACKAGES.join(", ")));
        install_once(&directory, |partial| {
            let unpacked = partial.join("unpacked");
            let apt = Apt::open(cache, Distribution::Debian, architecture)?;
            apt.unpack_with_dependencies(&PACKAGES, &unpacked)?;
            select(&unpacked, &partial.join("root"))?;
            fs::remove_dir_all(unpacked)?;
            pack(&partial.join("root"), &partial.join("root.cpio"))
        })?;
    }
    Ok(directory)
}

/// Copies the programs and all libraries.
fn select(unpacked: &Path, root: &Path) -> Result<()> {
    for directory in [
        "bin", "dev", "proc", "sys", "run", "tmp", "etc", "root", "var/lib", "usr/bin", "usr/sbin",
        "sbin",
    ] {
        fs::create_dir_all(root.join(directory))?;
    }
    for program in PROGRAMS {
        let from = [unpacked.join(program), unpacked.join("usr").join(program)];
        let from = from
            .iter()
            .find(|path| path.exists())
            .with_context(|| format!("no package has {program}"))?;
        // Beside busybox's links, which are made in /bin at start.
        let name = Path::new(program).file_name().context("a program has a name")?;
        let place = if program == "bin/busybox" { "bin" } else { "sbin" };
        fs::copy(from, root.join(place).join(name))?;
    }
    for place in ["lib", "lib64", "usr/lib"] {
        libraries(&unpacked.join(place), &root.join(place))?;
    }
    Ok(())
}

/// Copies shared libraries, links to them as files.
fn libraries(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type()?.is_dir() {
            // Only the architecture's own directory: what lies deeper are plug-ins.
            if name.contains("linux-gnu") {
                libraries(&path, &to.join(&name))?;
            }
        } else if name.contains(".so") {
            fs::create_dir_all(to)?;
            let resolved = if path.exists() { path.clone() } else { resolve(&path)? };
            if resolved.exists() {
                fs::copy(resolved, to.join(&name))?;
            }
        }
    }
    Ok(())
}

/// Where an absolute link inside an unpacked root leads to.
fn resolve(link: &Path) -> Result<PathBuf> {
    let target = fs::read_link(link)?;
    let name = target.file_name().context("a library has a name")?;
    Ok(link.with_file_name(name))
}

/// What is put on top of the root: the product, the agent, and the libraries that they use here.
pub(crate) fn overlay(binary: &Path, guest: &Path, native: bool, to: &Path) -> Result<()> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let root = directory.path();
    let programs = root.join("usr/bin");
    fs::create_dir_all(&programs)?;
    for (program, name) in [(binary, "sip-xdp"), (guest, "sip-xdp-guest")] {
        let copy = programs.join(name);
        fs::copy(program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
        if native {
            // A debug build is ten times larger with what only a debugger reads.
            run_quietly(Command::new("strip").arg("--strip-debug").arg(&copy))?;
            for library in needed(program) {
                let place = root.join(library.strip_prefix("/")?);
                fs::create_dir_all(place.parent().context("a library has a directory")?)?;
                fs::copy(&library, place)?;
            }
        }
    }
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(root.join("etc"))?;
    symlink("/proc/mounts", root.join("etc/mtab"))?;
    pack(root, to)
}

/// The libraries of a program of this machine.
fn needed(program: &Path) -> Vec<PathBuf> {
    let text = ask(Command::new("ldd").arg(program)).unwrap_or_default();
    text.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Joins archives into one.
pub(crate) fn join(parts: &[&Path], to: &Path) -> Result<()> {
    let mut file = File::create(to)?;
    for part in parts {
        io::copy(
            &mut File::open(part).with_context(|| format!("cannot open {}", part.display()))?,
            &mut file,
        )?;
    }
    Ok(())
}
