//! The tested kernels: their packages, and the parts that a virtual machine needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::apt::{Apt, Distribution};
use super::archive;
use crate::command::{self, install_once, run_quietly, say};

/// One kernel that can be asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// What it is called on the command line; `newest` is the newest that Debian has.
    pub(crate) name: &'static str,
    distribution: Distribution,
    /// How its packages' names begin after `linux-image-`.
    version: &'static str,
    /// What follows the version.
    release: &'static str,
    /// Whose kernel it is.
    pub(crate) platform: &'static str,
}

/// All of them, oldest first.
pub(crate) const KERNELS: [Kernel; 8] = [
    debian("5.10", "5.10.0-", "", "Debian 11"),
    ubuntu("5.15", "5.15.0-", "Ubuntu 22.04"),
    debian("6.1", "6.1.0-", "", "Debian 12, FreePBX 17"),
    ubuntu("6.5", "6.5.0-", "Ubuntu 22.04 HWE, Proxmox 8"),
    ubuntu("6.8", "6.8.0-", "Ubuntu 24.04"),
    debian("6.12", "6.12.", "+deb13", "Debian 13"),
    debian("6.18", "6.18.", "+deb13", "Debian 13 backports"),
    debian("newest", "7.", "+deb13", "newest in Debian backports"),
];

const fn debian(
    name: &'static str,
    version: &'static str,
    release: &'static str,
    platform: &'static str,
) -> Kernel {
    Kernel { name, distribution: Distribution::Debian, version, release, platform }
}

const fn ubuntu(name: &'static str, version: &'static str, platform: &'static str) -> Kernel {
    Kernel { name, distribution: Distribution::Ubuntu, version, release: "", platform }
}

/// The kernels of `cargo xtask machines` without `--kernel`.
pub(crate) const USUAL: [&str; 4] = ["6.1", "6.8", "6.12", "newest"];

/// Modules that the machines use, with what they depend on; those that a kernel has built in are
/// not missed.
const MODULES: [&str; 21] = [
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "e1000",
    "e1000e",
    "igb",
    "vmxnet3",
    "veth",
    "8021q",
    "bonding",
    "bridge",
    "macvlan",
    "af_packet",
    "ipv6",
    "sch_ingress",
    "sch_fq_codel",
    "cls_bpf",
    "act_bpf",
    "crc32c_generic",
    "crc32c_intel",
];

/// A kernel that is ready to boot.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The image.
    pub(crate) image: PathBuf,
    /// Its modules, as a part of an initial file system.
    pub(crate) modules: PathBuf,
    /// What `uname -r` says.
    pub(crate) release: String,
}

impl Kernel {
    /// The kernel with this name.
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        KERNELS.iter().find(|kernel| kernel.name == name).with_context(|| {
            let names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
            format!("no kernel is called {name}; there are {}", names.join(", "))
        })
    }

    /// How the package's name ends: Debian's cloud flavour boots in half the time, but has few
    /// drivers.
    fn flavour(&self, architecture: &str, cloud: bool) -> String {
        match (self.distribution, cloud) {
            (Distribution::Ubuntu, _) => "-generic".to_owned(),
            (Distribution::Debian, true) => format!("{}-cloud-{architecture}", self.release),
            (Distribution::Debian, false) => format!("{}-{architecture}", self.release),
        }
    }

    /// Fetches it if it is not in the cache, or if the newest is asked for.
    pub(crate) fn prepare(
        &self,
        cache: &Path,
        architecture: &str,
        cloud: bool,
        refresh: bool,
    ) -> Result<Prepared> {
        let flavour = if cloud { "cloud" } else { "full" };
        let directory =
            cache.join("kernels").join(format!("{}-{flavour}-{architecture}", self.name));
        if refresh {
            let _ = fs::remove_dir_all(&directory);
        }
        if !directory.is_dir() {
            install_once(&directory, |partial| self.fetch(cache, architecture, cloud, partial))
                .with_context(|| {
                    format!("kernel {} for {architecture} cannot be had", self.name)
                })?;
        }
        let release = fs::read_to_string(directory.join("release"))?.trim().to_owned();
        Ok(Prepared {
            image: directory.join("vmlinuz"),
            modules: directory.join("modules.cpio"),
            release,
        })
    }

    fn fetch(&self, cache: &Path, architecture: &str, cloud: bool, directory: &Path) -> Result<()> {
        let apt = Apt::open(cache, self.distribution, architecture)?;
        let end = self.flavour(architecture, cloud);
        let mut packages = Vec::new();
        // Debian's newest are in two packages, `linux-binary` and `linux-modules`; Ubuntu's are in
        // two as well.
        for kind in ["linux-binary-", "linux-image-", "linux-modules-"] {
            let has_image = packages.iter().any(|name: &String| name.starts_with("linux-binary-"));
            if has_image && kind == "linux-image-" {
                continue;
            }
            packages.extend(apt.newest(&format!("{kind}{}", self.version), &end)?);
        }
        if packages.is_empty() {
            bail!("no package is called linux-image-{}*{end}", self.version);
        }
        say(format!("fetching kernel {}: {}", self.name, packages.join(", ")));
        let root = directory.join("root");
        apt.unpack(&packages, &root)?;
        let modules = modules_directory(&root)?;
        let release =
            modules.file_name().context("modules have a directory")?.to_string_lossy().into_owned();
        let image = [root.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
            .into_iter()
            .find(|path| path.is_file())
            .context("the package has no kernel image")?;
        fs::copy(image, directory.join("vmlinuz"))?;
        let pruned = directory.join("pruned");
        prune(&root, &release, &modules, &pruned)?;
        archive::pack(&pruned, &directory.join("modules.cpio"))?;
        fs::write(directory.join("release"), &release)?;
        fs::remove_dir_all(root)?;
        fs::remove_dir_all(pruned)?;
        Ok(())
    }
}

/// Where the modules are: `/lib/modules` or `/usr/lib/modules`, one release in it.
fn modules_directory(root: &Path) -> Result<PathBuf> {
    for place in ["lib/modules", "usr/lib/modules"] {
        for entry in fs::read_dir(root.join(place)).into_iter().flatten().flatten() {
            if entry.path().join("kernel").is_dir() {
                return Ok(entry.path());
            }
        }
    }
    bail!("the package has no modules")
}

/// Copies what is needed of the modules, unpacked, with an index of its own.
fn prune(root: &Path, release: &str, modules: &Path, pruned: &Path) -> Result<()> {
    let base =
        if modules.starts_with(root.join("usr")) { root.join("usr") } else { root.to_path_buf() };
    depmod(&base, release)?;
    let index = fs::read_to_string(modules.join("modules.dep")).context("depmod left no index")?;
    let target = pruned.join("lib/modules").join(release);
    for path in closure(&index) {
        let to = target.join(&path);
        fs::create_dir_all(to.parent().context("a module has a directory")?)?;
        let from = modules.join(&path);
        let unpack = match from.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => Some("xz"),
            Some("zst") => Some("zstd"),
            _ => None,
        };
        match unpack {
            Some(program) => {
                let file = fs::File::create(to.with_extension(""))?;
                let mut command = Command::new(program);
                command::run(
                    command.args(["-d", "-c", "-q"]).arg(&from).stdout(Stdio::from(file)),
                )?;
            }
            None => {
                fs::copy(&from, &to)?;
            }
        }
    }
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        let _ = fs::copy(modules.join(name), target.join(name));
    }
    depmod(pruned, release)
}

fn depmod(base: &Path, release: &str) -> Result<()> {
    run_quietly(Command::new("depmod").arg("-b").arg(base).arg(release))
}

/// The files of the modules that we want and of those that they need, from an index of depmod.
fn closure(index: &str) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for line in index.lines() {
        let Some((path, needed)) = line.split_once(':') else { continue };
        let name = path
            .rsplit('/')
            .next()
            .unwrap_or(path)
            .split('.')
            .next()
            .unwrap_or_default()
            .replace('-', "_");
        if MODULES.contains(&name.as_str()) {
            files.insert(path.to_owned());
            // The index names all that is needed, not only the next.
            files.extend(needed.split_ascii_whitespace().map(str::to_owned));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_with_all_that_they_need() {
        let index = "kernel/net/8021q/8021q.ko.xz: kernel/net/802/garp.ko.xz \
                     kernel/net/llc/llc.ko.xz\n\
                     kernel/drivers/net/virtio-net.ko:\nkernel/fs/ext4/ext4.ko: \
                     kernel/lib/crc16.ko\n";
        let files: Vec<_> = closure(index).into_iter().collect();
        assert_eq!(
            files,
            [
                "kernel/drivers/net/virtio-net.ko",
                "kernel/net/802/garp.ko.xz",
                "kernel/net/8021q/8021q.ko.xz",
                "kernel/net/llc/llc.ko.xz"
            ]
        );
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        let error = Kernel::named("6.3").map(|_| ()).map_err(|error| error.to_string());
        assert_eq!(
            error,
            Err("no kernel is called 6.3; there are 5.10, 5.15, 6.1, 6.5, 6.8, 6.12, 6.18, newest"
                .to_owned())
        );
    }
}
