//! Pinned objects and their paths: the shared maps, and per interface a program and links. Pins
//! outlive the daemon.
//!
//! ```text
//! PIN_DIR/v4/MAP            the shared maps, in the layout of version 4
//! PIN_DIR/v4-new/MAP        their replacement under construction; left over only by a crash
//! PIN_DIR/links/INDEX       the link of the ingress program on the interface with that index
//! PIN_DIR/egress/INDEX      the link of the egress program there
//! PIN_DIR/clsact/INDEX      a directory: on kernels without tcx, our filter is on that
//!                           interface's clsact qdisc
//! PIN_DIR/clsact/INDEX/qdisc   a directory: we created that qdisc
//! PIN_DIR/programs/INDEX    the ingress program itself, for use with bpftool
//! PIN_DIR/offloads/INDEX/DEVICE/NAME   a directory: attaching to interface INDEX switched this
//!                                      offload of DEVICE (the same, or one beneath) off
//! PIN_DIR/blind/INDEX/SECONDS/PACKETS  a directory: generic mode replaced a native program there
//!                                      at that Unix time, after that many unseen packets
//! ```
//!
//! Names are interface indices, because bpffs does not allow dots, which VLAN interfaces have.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Map, MapData};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};
use sip_xdp_common::abi::layout::LAYOUT_VERSION;

use super::bpf;
use crate::dataplane::attach::offloads::{self, Offload};
use crate::dataplane::attach::tcx::detach_filter;
use crate::dataplane::attach::xdp::innermost;

/// The magic number of the BPF file system (`BPF_FS_MAGIC` in `include/uapi/linux/magic.h`).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Conventional mount point of the BPF file system.
const BPFFS: &str = "/sys/fs/bpf";

/// Name of the directory that records our qdisc.
const QDISC: &str = "qdisc";

/// The pins of one instance.
#[derive(Debug, Clone)]
pub struct Pins {
    root: PathBuf,
}

/// Lock of an instance: while it lives, no other daemon uses these pins.
#[derive(Debug)]
pub struct Lock {
    _directory: Flock<File>,
}

impl Pins {
    /// The pins under `root`. Creates nothing.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Directory of the shared maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}"))
    }

    /// Directory of the shared maps that will replace the current ones.
    pub fn new_maps(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT_VERSION}-new"))
    }

    /// The link of an interface.
    pub fn link(&self, index: u32) -> PathBuf {
        self.root.join("links").join(index.to_string())
    }

    /// The egress link of an interface.
    pub fn egress_link(&self, index: u32) -> PathBuf {
        self.root.join("egress").join(index.to_string())
    }

    /// Record of our filter on the clsact qdisc of an interface.
    pub fn clsact(&self, index: u32) -> PathBuf {
        self.root.join("clsact").join(index.to_string())
    }

    /// The program of an interface.
    pub fn program(&self, index: u32) -> PathBuf {
        self.root.join("programs").join(index.to_string())
    }

    /// Indices of the interfaces with a link.
    pub fn linked(&self) -> Vec<u32> {
        self.indices("links")
    }

    fn indices(&self, name: &str) -> Vec<u32> {
        let Ok(directory) = fs::read_dir(self.root.join(name)) else {
            return Vec::new();
        };
        let mut indices: Vec<u32> = directory
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        indices.sort_unstable();
        indices
    }

    /// Whether the filter is loaded: the shared maps exist.
    pub fn is_loaded(&self) -> bool {
        self.maps().is_dir()
    }

    /// Checks that this process may read the pins.
    pub fn check_access(&self) -> Result<()> {
        match fs::metadata(self.maps()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                bail!("{} may not be read; run it as root", self.root.display())
            }
            _ => Ok(()),
        }
    }

    /// Opens a shared map.
    pub fn open(&self, name: &str) -> Result<Map> {
        self.check_access()?;
        if !self.is_loaded() {
            bail!(
                "no filter is loaded (nothing is pinned in {}); start it with `sip-xdp run`",
                self.root.display()
            );
        }
        let path = self.maps().join(name);
        let data = MapData::from_pin(&path).map_err(|error| {
            anyhow!("{} cannot be opened ({}); run it as root", path.display(), innermost(&error))
        })?;
        Ok(Map::from_map_data(data)?)
    }

    /// Creates the directories, on a BPF file system, and locks the instance.
    pub fn prepare(&self) -> Result<Lock> {
        self.check_bpffs()?;
        let inside = ["links", "egress", "clsact", "programs"].map(|name| self.root.join(name));
        for directory in [self.root.clone()].into_iter().chain(inside) {
            fs::create_dir_all(&directory).with_context(|| {
                format!("{} cannot be made; run it as root", directory.display())
            })?;
        }
        self.lock()
    }

    /// Locks the instance.
    pub fn lock(&self) -> Result<Lock> {
        let directory = File::open(&self.root)
            .with_context(|| format!("{} cannot be opened", self.root.display()))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(directory) => Ok(Lock { _directory: directory }),
            Err((_, error)) if error == nix::errno::Errno::EWOULDBLOCK => bail!(
                "another sip-xdp runs with {}; stop it, or give this one its own --pin-dir, \
                 --run-dir and --state-dir",
                self.root.display()
            ),
            Err((_, error)) => bail!("{} cannot be locked: {error}", self.root.display()),
        }
    }

    /// Checks that the pin directory is on a BPF file system; mounts one at its conventional place
    /// if needed.
    fn check_bpffs(&self) -> Result<()> {
        if is_bpffs(&self.root) {
            return Ok(());
        }
        if self.root.starts_with(BPFFS) && Path::new(BPFFS).is_dir() {
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(|error| {
                anyhow!(
                    "no BPF file system on {BPFFS} and it cannot be mounted ({error}); run: mount \
                     -t bpf bpf {BPFFS}"
                )
            })?;
            log::info!("mounted the BPF file system on {BPFFS}");
            return Ok(());
        }
        bail!(
            "{} is not on a BPF file system; choose a --pin-dir below {BPFFS}, or mount one there: \
             mount -t bpf bpf DIR",
            self.root.display()
        )
    }

    /// Replaces the shared maps by those in [`Pins::new_maps`], and removes other layout versions.
    pub fn promote_new_maps(&self) -> Result<()> {
        remove_directory(&self.maps())?;
        fs::rename(self.new_maps(), self.maps()).context("the new maps cannot be put in place")?;
        self.remove_other_versions()
    }

    /// Removes other layout versions.
    pub fn remove_other_versions(&self) -> Result<()> {
        let keep = self.maps();
        for entry in fs::read_dir(&self.root)?.flatten() {
            let is_version = entry.file_name().to_str().is_some_and(|name| name.starts_with('v'));
            if is_version && entry.path() != keep {
                remove_directory(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Records our filter on an interface, and whether we created its qdisc; an existing record of
    /// that stays.
    pub(crate) fn note_clsact(&self, index: u32, owns_qdisc: bool) -> Result<()> {
        let note = self.clsact(index);
        let note = if owns_qdisc { note.join(QDISC) } else { note };
        fs::create_dir_all(&note).with_context(|| format!("{} cannot be made", note.display()))
    }

    /// Whether the qdisc of an interface is recorded as ours.
    pub(crate) fn owns_qdisc(&self, index: u32) -> bool {
        self.clsact(index).join(QDISC).exists()
    }

    /// Removes the record of an interface.
    pub(crate) fn forget_clsact(&self, index: u32) -> Result<()> {
        remove_directory(&self.clsact(index))
    }

    /// Records an offload of a device that attaching to an interface switched off.
    pub(crate) fn note_offload(&self, index: u32, device: u32, name: &str) -> Result<()> {
        let note = self.offloads(index).join(device.to_string()).join(name);
        fs::create_dir_all(&note).with_context(|| format!("{} cannot be made", note.display()))
    }

    /// Recorded offloads of an interface, by device.
    pub(crate) fn noted_offloads(&self, index: u32) -> Vec<(u32, String)> {
        let entries =
            |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().collect::<Vec<_>>();
        let devices = entries(&self.offloads(index)).into_iter().filter_map(|device| {
            let index: u32 = device.file_name().to_str()?.parse().ok()?;
            Some((index, entries(&device.path())))
        });
        let mut noted: Vec<_> = devices
            .flat_map(|(device, names)| {
                names
                    .into_iter()
                    .filter_map(move |name| Some((device, name.file_name().into_string().ok()?)))
            })
            .collect();
        noted.sort_unstable();
        noted
    }

    /// Removes the offload records of an interface.
    pub(crate) fn forget_offloads(&self, index: u32) -> Result<()> {
        remove_directory(&self.offloads(index))
    }

    /// Records that generic mode replaced a program that saw none of its packets.
    pub(crate) fn note_blind(&self, index: u32, since: i64, packets: u64) -> Result<()> {
        self.forget_blind(index)?;
        let note = self.blind(index).join(since.to_string()).join(packets.to_string());
        fs::create_dir_all(&note).with_context(|| format!("{} cannot be made", note.display()))
    }

    /// The record: time in seconds since 1970, and number of packets.
    pub(crate) fn noted_blind(&self, index: u32) -> Option<(i64, u64)> {
        let only =
            |path: &Path| fs::read_dir(path).ok()?.flatten().next()?.file_name().into_string().ok();
        let since = only(&self.blind(index))?;
        let packets = only(&self.blind(index).join(&since))?;
        Some((since.parse().ok()?, packets.parse().ok()?))
    }

    /// Removes the record.
    pub(crate) fn forget_blind(&self, index: u32) -> Result<()> {
        remove_directory(&self.blind(index))
    }

    fn blind(&self, index: u32) -> PathBuf {
        self.root.join("blind").join(index.to_string())
    }

    fn offloads(&self, index: u32) -> PathBuf {
        self.root.join("offloads").join(index.to_string())
    }

    /// Removes the egress link of an interface, which detaches its program.
    pub(crate) fn remove_egress_link(&self, index: u32) -> Result<()> {
        remove_link(&self.egress_link(index))
    }

    /// Removes links, program pin and egress filter of an interface, which detaches its programs.
    /// Returns the offloads that were restored, or could not be.
    pub fn detach(&self, index: u32) -> Result<Vec<Offload>> {
        remove_link(&self.link(index))?;
        self.remove_egress_link(index)?;
        detach_filter(index, self)?;
        remove_file(&self.program(index))?;
        self.forget_blind(index)?;
        offloads::put_back(self, index)
    }

    /// Cleans up after a failed start: new tables, and directories if empty.
    pub fn clean_up_start(&self) -> Result<()> {
        if self.linked().is_empty() && !self.is_loaded() {
            return self.remove_all().map(drop);
        }
        remove_directory(&self.new_maps())
    }

    /// Removes all pins. Returns the offloads that were restored, or could not be.
    pub fn remove_all(&self) -> Result<Vec<Offload>> {
        for index in self.linked() {
            remove_link(&self.link(index))?;
        }
        remove_directory(&self.root.join("links"))?;
        let mut offloads = Vec::new();
        for index in self.indices("offloads") {
            offloads.extend(offloads::put_back(self, index)?);
        }
        for index in self.indices("clsact") {
            detach_filter(index, self)?;
        }
        remove_directory(&self.root)?;
        Ok(offloads)
    }
}

/// Whether `path`, or its nearest existing ancestor, is on a BPF file system.
pub(crate) fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find(|path| path.exists())
        .and_then(|path| statfs(path).ok())
        .is_some_and(|stat| stat.filesystem_type() == FsType(BPF_FS_MAGIC))
}

/// Detaches a pinned link, and removes the pin. Removal alone detaches too, but only after a grace
/// period, during which nothing else can attach.
fn remove_link(path: &Path) -> Result<()> {
    if path.exists()
        && let Err(error) = bpf::detach_link(path)
    {
        log::debug!("{}: detached when its pin goes ({error})", path.display());
    }
    remove_file(path)
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a directory recursively.
pub fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}
