//! Checks of the host: kernel, rights, file systems, clock.

use std::fs;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access, geteuid};

use super::Check;
use crate::dataplane::loader::{Figures, Trial};
use crate::dataplane::pins;
use crate::dataplane::probe::{BTF, Platform};
use crate::sys::privileges;

/// Free space in bytes below which the store and the feeds' lists may soon not fit.
const ROOM: u64 = 64 << 20;

/// Obstacles and limitations of the platform, in the words of `run`, and passed checks.
pub(super) fn platform(platform: &Platform) -> Vec<Check> {
    judge_platform(platform, geteuid().is_root())
}

fn judge_platform(platform: &Platform, is_root: bool) -> Vec<Check> {
    let (obstacles, limitations) = (platform.obstacles(), platform.limitations());
    let well = [
        ("kernel", format!("Linux {}: has all that the programs call", platform.release)),
        ("egress", platform.responses().to_owned()),
        ("bpf", "the kernel takes XDP programs from this process".to_owned()),
        (
            "capabilities",
            "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or what stands in for them".to_owned(),
        ),
        (
            "grace_period",
            match &platform.grace {
                Ok(way) => format!("the daemon waits for running programs by {way}"),
                Err(error) => error.clone(),
            },
        ),
        ("btf", format!("{BTF} is there")),
    ];
    let mut checks = Vec::new();
    for (check, detail) in well {
        let before = checks.len();
        for finding in obstacles.iter().filter(|finding| finding.check == check) {
            // Other users lack rights that the daemon may have.
            checks.push(if is_root {
                Check::fail(check, finding.detail.clone(), finding.remedy.clone())
            } else {
                let remedy = "you are not root, so that this says nothing of the daemon's rights: \
                              run it as root";
                Check::warn(check, finding.detail.clone(), remedy)
            });
        }
        for finding in limitations.iter().filter(|finding| finding.check == check) {
            checks.push(Check::warn(check, finding.detail.clone(), finding.remedy.clone()));
        }
        // On a kernel that refuses every program the other probes say nothing.
        let is_known = platform.xdp.is_ok() || matches!(check, "capabilities" | "btf");
        if checks.len() == before && is_known {
            checks.push(Check::ok(check, detail));
        }
    }
    checks
}

/// Loads both programs as `run` would, without attaching them.
pub(super) fn programs(trial: &anyhow::Result<Trial>) -> Check {
    const CHECK: &str = "programs";
    let figures = |of: &Figures| {
        let verified = of
            .instructions
            .map(|count| format!("{count} instructions verified, "))
            .unwrap_or_default();
        format!("{verified}{} ms", of.load_ms)
    };
    match trial {
        Ok(Trial { ingress, egress }) => {
            let detail = format!(
                "the kernel takes both: what arrives ({}), what leaves ({})",
                figures(ingress),
                figures(egress)
            );
            Check::ok(CHECK, detail)
        }
        Err(error) => Check::fail(
            CHECK,
            format!("{error:#}"),
            "`sip-xdp run` cannot start here; report this line with the log",
        ),
    }
}

pub(super) fn container(platform: &Platform) -> Check {
    let marks = [("/.dockerenv", "Docker"), ("/run/.containerenv", "Podman")];
    let marked =
        marks.iter().find(|(file, _)| Path::new(file).exists()).map(|(_, kind)| (*kind).to_owned());
    let variable = fs::read("/proc/1/environ").unwrap_or_default();
    let variable =
        variable.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"container="));
    let kind = marked.or_else(|| variable.map(|kind| String::from_utf8_lossy(kind).into_owned()));
    let uid_map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // Other users lack rights everywhere, which says nothing about a container.
    let has_rights =
        !geteuid().is_root() || platform.capabilities.as_ref().is_ok_and(Vec::is_empty);
    judge_container(kind.as_deref(), &uid_map, has_rights)
}

fn judge_container(kind: Option<&str>, uid_map: &str, has_rights: bool) -> Check {
    const CHECK: &str = "container";
    const RUN: &str = "run it on the host, where the interfaces are, or as a privileged container \
                       there: --network host \
                       --cap-add BPF --cap-add NET_ADMIN --cap-add PERFMON -v \
                       /sys/fs/bpf:/sys/fs/bpf";
    // The initial user namespace maps the whole range.
    let in_user_namespace =
        uid_map.split_whitespace().nth(2).is_some_and(|count| count != "4294967295");
    if in_user_namespace {
        return Check::fail(
            CHECK,
            "root of this user namespace is not root of the host: the kernel takes no programs",
            RUN,
        );
    }
    match kind {
        None => Check::ok(CHECK, "not in a container, as far as can be seen"),
        Some(kind) if !has_rights => {
            Check::fail(CHECK, format!("in a container ({kind}) without the rights"), RUN)
        }
        Some(kind) => Check::warn(
            CHECK,
            format!(
                "in a container ({kind}): its own interfaces are filtered, which see who attacks \
                 only if nothing in front of them translates addresses"
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
    let remedy = "mount -t bpf bpf /sys/fs/bpf; to keep it over a reboot: `bpf /sys/fs/bpf bpf \
                  defaults 0 0` in /etc/fstab";
    let detail =
        format!("{} is not on a BPF file system: nothing can be pinned", pin_dir.display());
    if pin_dir.starts_with("/sys/fs/bpf")
        && Path::new("/sys/fs/bpf").is_dir()
        && privileges::can_mount()
    {
        let detail = format!(
            "{detail}; `sip-xdp run` would mount it, a service without CAP_SYS_ADMIN could not"
        );
        return Check::warn(CHECK, detail, remedy);
    }
    let elsewhere = !pin_dir.starts_with("/sys/fs/bpf");
    let remedy = if elsewhere {
        "choose a --pin-dir below /sys/fs/bpf, or mount a BPF file system there"
    } else {
        remedy
    };
    Check::fail(CHECK, detail, remedy)
}

pub(super) fn clock() -> Check {
    // SAFETY: all zeroes is a valid `timex`, which only queries; the kernel fills it in and keeps
    // no pointer.
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

/// Judges the wall clock: seconds since 1970, and whether it is synchronised.
fn judge_clock(now: i64, is_synchronised: Option<bool>) -> Check {
    const CHECK: &str = "clock";
    const REMEDY: &str = "synchronise it: `timedatectl set-ntp true`, or install chrony";
    /// 1 January 2025: this program is newer.
    const YOUNGEST: i64 = 1_735_689_600;
    if now < YOUNGEST {
        let year = jiff::Timestamp::from_second(now).unwrap_or_default().strftime("%Y").to_string();
        let detail = format!(
            "the clock says {year}: certificates of feeds will not be valid, and no date in the \
             log is right"
        );
        return Check::fail(CHECK, detail, REMEDY);
    }
    match is_synchronised {
        Some(true) => Check::ok(CHECK, "the clock is synchronised"),
        Some(false) => Check::warn(
            CHECK,
            "the clock is not synchronised: bans end in time all the same, but dates in the log, \
             and what is handed to other \
             hosts, may be off",
            REMEDY,
        ),
        None => Check::warn(CHECK, "whether the clock is synchronised cannot be asked", REMEDY),
    }
}

pub(super) fn state(directory: &Path) -> Check {
    const CHECK: &str = "state";
    let shown = directory.display();
    // A missing directory is created by the daemon.
    let Some(existing) = directory.ancestors().find(|path| path.exists()) else {
        return Check::fail(
            CHECK,
            format!("{shown} does not exist and cannot be made"),
            "choose another --state-dir",
        );
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
            format!(
                "{shown} cannot be written ({}): the lists would not survive a reboot",
                error.desc()
            ),
            "make it writable for root (a read-only file system?), or choose another --state-dir",
        ),
        (Ok(()), Ok(free)) if free < ROOM => Check::fail(
            CHECK,
            format!("{shown} has {} MiB left: the lists may not survive a reboot", free >> 20),
            "make room, or choose a --state-dir on another disk",
        ),
        (Ok(()), Ok(free)) => {
            Check::ok(CHECK, format!("{shown} can be written, {} MiB are free", free >> 20))
        }
        (Ok(()), Err(error)) => Check::warn(
            CHECK,
            format!("how much room {shown} has cannot be asked: {error}"),
            "look at `df`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::probe::HELPERS;
    use crate::dataplane::rcu::GraceWait;
    use crate::tools::doctor::Status;

    fn platform() -> Platform {
        Platform {
            release: "6.1.0".to_owned(),
            capabilities: Ok(Vec::new()),
            xdp: Ok(()),
            frags: true,
            missing_helpers: Vec::new(),
            ring_buffer: true,
            mapped_arrays: true,
            xdp_links: Some(true),
            tcx: Some(false),
            destroys_sockets: Some(true),
            grace: Ok(GraceWait::MapOfMaps),
            btf: true,
        }
    }

    fn statuses(platform: &Platform, is_root: bool) -> Vec<(&'static str, Status)> {
        judge_platform(platform, is_root).iter().map(|check| (check.check, check.status)).collect()
    }

    #[test]
    fn a_platform_that_has_it_all_is_well() {
        let checks = judge_platform(&platform(), true);
        assert!(checks.iter().all(|check| check.status == Status::Ok), "{checks:?}");
        assert!(
            checks[1].detail.contains("a filter on the clsact qdisc (the kernel has no tcx)"),
            "{checks:?}"
        );
        assert!(checks[4].detail.ends_with("by updates of a map of maps"), "{checks:?}");
    }

    #[test]
    fn doctor_fails_where_run_fails_and_in_its_words() {
        let helper =
            HELPERS.iter().copied().find(|helper| helper.name == "bpf_loop").into_iter().collect();
        for lacking in [
            Platform { missing_helpers: helper, ..platform() },
            Platform { ring_buffer: false, ..platform() },
            Platform { xdp_links: Some(false), ..platform() },
            Platform { grace: Err("no wait".to_owned()), ..platform() },
            Platform { capabilities: Ok(vec!["CAP_BPF".to_owned()]), ..platform() },
            Platform { xdp: Err("Operation not permitted (os error 1)".to_owned()), ..platform() },
        ] {
            let said = lacking.check().unwrap_err().to_string();
            let checks = judge_platform(&lacking, true);
            let failed: Vec<_> =
                checks.iter().filter(|check| check.status == Status::Fail).collect();
            assert_eq!(failed.len(), 1, "{checks:?}");
            let remedy = failed[0].remedy.as_deref().unwrap();
            assert_eq!(said, format!("{}; {remedy}", failed[0].detail));
        }
        // With limitations only it runs, and doctor warns.
        let lacking = Platform { frags: false, btf: false, ..platform() };
        assert!(lacking.check().is_ok());
        let warned =
            statuses(&lacking, true).into_iter().filter(|(_, status)| *status == Status::Warn);
        assert_eq!(warned.map(|(check, _)| check).collect::<Vec<_>>(), ["kernel", "btf"]);
    }

    #[test]
    fn missing_root_is_reported() {
        let lacking = Platform {
            capabilities: Ok(vec!["CAP_BPF".to_owned()]),
            xdp: Err("Operation not permitted (os error 1)".to_owned()),
            grace: Ok(GraceWait::Membarrier),
            ..platform()
        };
        let expected = [("bpf", Status::Warn), ("capabilities", Status::Warn), ("btf", Status::Ok)];
        assert_eq!(statuses(&lacking, false), expected);
    }

    #[test]
    fn a_refused_program_fails_with_its_reason() {
        let figures = Figures { instructions: Some(198_785), load_ms: 421 };
        let check = programs(&Ok(Trial {
            ingress: figures,
            egress: Figures { instructions: None, load_ms: 3 },
        }));
        assert_eq!(
            (check.status, check.detail.as_str()),
            (
                Status::Ok,
                "the kernel takes both: what arrives (198785 instructions verified, 421 ms), what \
                 leaves (3 ms)"
            )
        );
        let check = programs(&Err(anyhow::anyhow!("R4 invalid zero-sized read")));
        assert!(
            check.status == Status::Fail && check.detail == "R4 invalid zero-sized read",
            "{check:?}"
        );
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
