//! The systemd service: its privileges, and proof that each is needed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use sip_xdp_tests::{Machine, wait_until};

use crate::held;

/// The unit's capabilities, by number (include/uapi/linux/capability.h).
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// Maximum exposure by `systemd-analyze security`, in tenths: 0 is none, 100 is no confinement at
/// all.
const EXPOSURE: u32 = 27;

/// Directory of a test's changes of the unit.
const DROP_IN: &str = "/run/systemd/system/sip-xdp.service.d";

/// The daemon.
pub(crate) fn pid(machine: &Machine<'_>) -> Result<Pid> {
    machine.main_process("sip-xdp.service")
}

/// The unit is valid for systemd, and the daemon works in its confinement.
pub(crate) fn unit(machine: &Machine<'_>) -> Result<()> {
    let complaints = machine.run("systemd-analyze verify sip-xdp.service 2>&1")?;
    ensure!(complaints.trim().is_empty(), "systemd complains about the unit: {complaints}");
    let path = "/usr/lib/systemd/system/sip-xdp.service";
    let judged = machine
        .run(&format!("systemd-analyze security --offline=true --threshold={EXPOSURE} {path}"))?;
    let level = judged
        .lines()
        .rfind(|line| line.contains("exposure level"))
        .context("no exposure level")?
        .trim();

    machine.run(
        "systemctl enable --now sip-xdp || { journalctl --unit sip-xdp --output cat --lines 20; \
         exit 1; }",
    )?;
    machine.run("sip-xdp status --check")?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid(machine)?))?;
    let expected: u64 = CAPABILITIES.iter().map(|(_, number)| 1 << number).sum();
    for (field, value) in [
        ("CapPrm", expected),
        ("CapEff", expected),
        ("CapBnd", expected),
        ("CapInh", 0),
        ("CapAmb", 0),
    ] {
        let line = format!("{field}:\t{value:016x}");
        ensure!(status.contains(&line), "no {line} in the daemon's status: {status}");
    }
    // With all of it: a reload loads and replaces programs, a ban is stored, the web page responds.
    machine.run(
        "systemctl reload sip-xdp && sip-xdp block add 192.0.2.1 && sip-xdp block del 192.0.2.1",
    )?;
    machine.run("test -s /var/lib/sip-xdp/state.db")?;
    let warnings = machine.run("journalctl --unit sip-xdp --output cat --priority warning")?;
    ensure!(
        !warnings.contains("denied") && !warnings.contains("not permitted"),
        "it misses something: {warnings}"
    );
    held(format!("the unit: nothing to complain about, {}", level.trim_start_matches(['→', ' '])));
    Ok(())
}

/// Without any one capability it does not start, and names it; the filter stays in force.
pub(crate) fn capabilities(machine: &Machine<'_>) -> Result<()> {
    for (name, _) in CAPABILITIES {
        let unit = format!("[Service]\\nRestart=no\\nCapabilityBoundingSet=~{name}\\n");
        machine.run(&format!(
            "mkdir -p {DROP_IN} && printf '{unit}' > {DROP_IN}/less.conf && systemctl daemon-reload"
        ))?;
        ensure!(
            !machine.try_run("systemctl restart sip-xdp")?.status.success(),
            "it starts without {name}"
        );
        let expected = format!("missing {name} ");
        wait_until("the journal has its last words", Duration::from_secs(10), || {
            Ok(machine.run("journalctl --unit sip-xdp --output cat --lines 8")?.contains(&expected))
        })?;
        let interfaces = machine.run("sip-xdp status --json")?;
        let interfaces: serde_json::Value =
            serde_json::from_str(&interfaces).context("`status` printed no JSON")?;
        ensure!(
            interfaces["enforcing"] == true,
            "without the daemon the filter is gone: {interfaces}"
        );
    }
    machine
        .run(&format!("rm -r {DROP_IN} && systemctl daemon-reload && systemctl restart sip-xdp"))?;
    machine.run("sip-xdp status --check")?;
    held(
        "with CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF it works; without any one of them it says \
         which one it misses",
    );
    Ok(())
}

/// Members of the group may send commands, others may not.
pub(crate) fn group(machine: &Machine<'_>) -> Result<()> {
    machine.run(
        "useradd colleague && useradd stranger && usermod --append --groups sip-xdp colleague",
    )?;
    machine.run(
        "runuser -u colleague -- sip-xdp block add 192.0.2.9 && runuser -u colleague -- sip-xdp \
         block del 192.0.2.9",
    )?;
    let refused = machine.try_run("runuser -u stranger -- sip-xdp block add 192.0.2.9")?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && said.lines().count() == 1,
        "a stranger got: {said}"
    );
    held("who is in the group sip-xdp may give commands, a stranger may not");
    Ok(())
}
