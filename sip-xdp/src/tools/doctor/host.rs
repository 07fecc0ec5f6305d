//! The host itself: kernel, rights, file systems, clock.

use std::fs;
use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::is_program_supported;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access, geteuid};

use super::Check;
use crate::dataplane::loader;
use crate::dataplane::pins;
use crate::sys::privileges;

/// XDP links, on which everything rests, came with 5.9; the oldest kernel with long support that has them is 5.10.
const OLDEST: (u32, u32) = (5, 10);

/// Since then what leaves is read through a link of its own, which takes no qdisc.
const TCX: (u32, u32) = (6, 6);

/// Below this the store, and the lists of feeds, may soon not fit, in bytes.
const ROOM: u64 = 64 << 20;

pub(super) fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    judge_kernel(release.trim())
}

fn judge_kernel(release: &str) -> Check {
    const CHECK: &str = "kernel";
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        let remedy = "mount /proc; the filter needs Linux 5.10 or newer";
        return Check::warn(CHECK, format!("the release \"{release}\" says nothing"), remedy);
    };
    if (major, minor) < OLDEST {
        let detail = format!("Linux {release} has no XDP links, with which the filter outlives its daemon");
        return Check::fail(CHECK, detail, "install a kernel of version 5.10 or newer");
    }
    let egress = if (major, minor) < TCX { "a filter on the clsact qdisc, since tcx came with 6.6" } else { "tcx" };
    Check::ok(CHECK, format!("Linux {release}: XDP links; responses are read by {egress}"))
}

pub(super) fn bpf() -> Check {
    const CHECK: &str = "bpf";
    match is_program_supported(ProgramType::Xdp) {
        Ok(true) => Check::ok(CHECK, "the kernel takes XDP programs from this process"),
        Ok(false) => Check::fail(
            CHECK,
            "the kernel takes no XDP programs",
            "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS or CONFIG_NET, as distributions build it",
        ),
        Err(error) => {
            let cause = crate::dataplane::attach::xdp::innermost(&error);
            let detail = format!("bpf(2) is refused to this process: {cause}");
            if geteuid().is_root() {
                let remedy = "this is root without its rights (a container, lockdown, seccomp): run it on the host itself, or \
                              give the container CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON of the host";
                Check::fail(CHECK, detail, remedy)
            } else {
                Check::warn(CHECK, detail, "run it as root to see whether the daemon may")
            }
        }
    }
}

pub(super) fn capabilities() -> Check {
    const CHECK: &str = "capabilities";
    match loader::check_capabilities() {
        Ok(()) => Check::ok(CHECK, "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or what stands in for them"),
        Err(error) if geteuid().is_root() => Check::fail(
            CHECK,
            format!("{error:#}"),
            "give them to the service or the container (AmbientCapabilities=, --cap-add), or run it on the host as root",
        ),
        Err(_) => Check::warn(
            CHECK,
            "you are not root, so that this says nothing of the daemon's rights",
            "run it as root to see everything",
        ),
    }
}

pub(super) fn container() -> Check {
    let marks = [("/.dockerenv", "Docker"), ("/run/.containerenv", "Podman")];
    let marked = marks.iter().find(|(file, _)| Path::new(file).exists()).map(|(_, kind)| (*kind).to_owned());
    let variable = fs::read("/proc/1/environ").unwrap_or_default();
    let variable = variable.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"container="));
    let kind = marked.or_else(|| variable.map(|kind| String::from_utf8_lossy(kind).into_owned()));
    let uid_map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // Who is not root has none anywhere, which says nothing of the container.
    let has_rights = !geteuid().is_root() || loader::check_capabilities().is_ok();
    judge_container(kind.as_deref(), &uid_map, has_rights)
}

fn judge_container(kind: Option<&str>, uid_map: &str, has_rights: bool) -> Check {
    const CHECK: &str = "container";
    const RUN: &str = "run it on the host, where the interfaces are, or as a privileged container there: --network host \
                       --cap-add BPF --cap-add NET_ADMIN --cap-add PERFMON -v /sys/fs/bpf:/sys/fs/bpf";
    // The first user namespace maps all there are.
    let in_user_namespace = uid_map.split_whitespace().nth(2).is_some_and(|count| count != "4294967295");
    if in_user_namespace {
        return Check::fail(
            CHECK,
            "root of this user namespace is not root of the host: the kernel takes no programs",
            RUN,
        );
    }
    match kind {
        None => Check::ok(CHECK, "not in a container, as far as can be seen"),
        Some(kind) if !has_rights => Check::fail(CHECK, format!("in a container ({kind}) without the rights"), RUN),
        Some(kind) => Check::warn(
            CHECK,
            format!(
                "in a container ({kind}): its own interfaces are filtered, which see who attacks only if nothing in \
                     front of them translates addresses"
            ),
            "filter on the host's interface, or use --network host",
        ),
    }
}

pub(super) fn bpffs(pin_dir: &Path) -> Check {
    const CHECK: &str = "bpffs";
    if pins::is_bpffs(pin_dir) {
        return Check::ok(CHECK, format!("{} is on a BPF file system", pin_dir.display()));
    }
    let remedy =
        "mount -t bpf bpf /sys/fs/bpf; to keep it over a reboot: `bpf /sys/fs/bpf bpf defaults 0 0` in /etc/fstab";
    let detail = format!("{} is not on a BPF file system: nothing can be pinned", pin_dir.display());
    if pin_dir.starts_with("/sys/fs/bpf") && Path::new("/sys/fs/bpf").is_dir() && privileges::can_mount() {
        let detail = format!("{detail}; `sip-xdp run` would mount it, a service without CAP_SYS_ADMIN could not");
        return Check::warn(CHECK, detail, remedy);
    }
    let elsewhere = !pin_dir.starts_with("/sys/fs/bpf");
    let remedy =
        if elsewhere { "choose a --pin-dir below /sys/fs/bpf, or mount a BPF file system there" } else { remedy };
    Check::fail(CHECK, detail, remedy)
}

pub(super) fn btf() -> Check {
    const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(VMLINUX).exists() {
        return Check::ok("btf", format!("{VMLINUX} is there"));
    }
    Check::warn(
        "btf",
        format!("no {VMLINUX}: the filter works without it, but bpftool shows less of it"),
        "use a kernel with CONFIG_DEBUG_INFO_BTF, as distributions build it; nothing needs to be done",
    )
}

pub(super) fn clock() -> Check {
    // SAFETY: all zeroes is a valid `timex`, which asks and changes nothing; the kernel fills it in and keeps no pointer.
    let (state, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&mut timex), timex)
    };
    let is_synchronised = match state {
        -1 => None,
        libc::TIME_ERROR => Some(false),
        _ => Some(timex.status & libc::STA_UNSYNC == 0),
    };
    judge_clock(jiff::Timestamp::now().as_second(), is_synchronised)
}

/// Seconds since 1970, and whether the kernel's clock is disciplined by another one.
fn judge_clock(now: i64, is_synchronised: Option<bool>) -> Check {
    const CHECK: &str = "clock";
    const REMEDY: &str = "synchronise it: `timedatectl set-ntp true`, or install chrony";
    /// The first day of 2025: this program is younger.
    const YOUNGEST: i64 = 1_735_689_600;
    if now < YOUNGEST {
        let year = jiff::Timestamp::from_second(now).unwrap_or_default().strftime("%Y").to_string();
        let detail =
            format!("the clock says {year}: certificates of feeds will not be valid, and no date in the log is right");
        return Check::fail(CHECK, detail, REMEDY);
    }
    match is_synchronised {
        Some(true) => Check::ok(CHECK, "the clock is synchronised"),
        Some(false) => Check::warn(
            CHECK,
            "the clock is not synchronised: bans end in time all the same, but dates in the log, and what is handed to other \
             hosts, may be off",
            REMEDY,
        ),
        None => Check::warn(CHECK, "whether the clock is synchronised cannot be asked", REMEDY),
    }
}

pub(super) fn state(directory: &Path) -> Check {
    const CHECK: &str = "state";
    let shown = directory.display();
    // A directory that is not there yet is made by the daemon.
    let Some(existing) = directory.ancestors().find(|path| path.exists()) else {
        return Check::fail(CHECK, format!("{shown} does not exist and cannot be made"), "choose another --state-dir");
    };
    if !existing.is_dir() {
        let detail = format!("{} is not a directory", existing.display());
        return Check::fail(CHECK, detail, "move it out of the way, or choose another --state-dir");
    }
    let writable = access(existing, AccessFlags::W_OK | AccessFlags::X_OK);
    let free = statvfs(existing).map(|stat| stat.blocks_available() * stat.fragment_size());
    match (writable, free) {
        (Err(nix::errno::Errno::EACCES), _) if !geteuid().is_root() => Check::warn(
            CHECK,
            format!("{shown} may not be written by you; root may be able to"),
            "run it as root to see",
        ),
        (Err(error), _) => Check::fail(
            CHECK,
            format!("{shown} cannot be written ({}): the lists would not survive a reboot", error.desc()),
            "make it writable for root (a read-only file system?), or choose another --state-dir",
        ),
        (Ok(()), Ok(free)) if free < ROOM => Check::fail(
            CHECK,
            format!("{shown} has {} MiB left: the lists may not survive a reboot", free >> 20),
            "make room, or choose a --state-dir on another disk",
        ),
        (Ok(()), Ok(free)) => Check::ok(CHECK, format!("{shown} can be written, {} MiB are free", free >> 20)),
        (Ok(()), Err(error)) => {
            Check::warn(CHECK, format!("how much room {shown} has cannot be asked: {error}"), "look at `df`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::doctor::Status;

    #[test]
    fn kernels() {
        for (release, status, part) in [
            ("6.18.5", Status::Ok, "tcx"),
            ("6.1.0-28-amd64", Status::Ok, "clsact"),
            ("5.10.0-9", Status::Ok, "clsact"),
            ("5.4.0-42-generic", Status::Fail, "no XDP links"),
            ("4.19", Status::Fail, "no XDP links"),
            ("", Status::Warn, "says nothing"),
        ] {
            let check = judge_kernel(release);
            assert!(check.status == status && check.detail.contains(part), "{check:?}");
        }
    }

    #[test]
    fn containers() {
        let all = "         0          0 4294967295\n";
        assert_eq!(judge_container(None, all, false).status, Status::Ok);
        assert_eq!(judge_container(None, "0 100000 65536", true).status, Status::Fail);
        assert_eq!(judge_container(Some("docker"), all, false).status, Status::Fail);
        assert_eq!(judge_container(Some("docker"), all, true).status, Status::Warn);
    }

    #[test]
    fn clocks() {
        let now = 1_800_000_000;
        assert_eq!(judge_clock(now, Some(true)).status, Status::Ok);
        assert_eq!(judge_clock(now, Some(false)).status, Status::Warn);
        assert_eq!(judge_clock(now, None).status, Status::Warn);
        let check = judge_clock(60, Some(true));
        assert!(check.status == Status::Fail && check.detail.contains("1970"), "{check:?}");
    }

    #[test]
    fn places_for_the_state() {
        let directory = tempfile::tempdir().unwrap();
        assert_ne!(state(&directory.path().join("a/b")).status, Status::Fail);
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(state(&file.join("state")).status, Status::Fail);
        assert_eq!(bpffs(directory.path()).status, Status::Fail);
    }
}
