//! How the unit starts beside SIP servers: they come up behind the filter, and never because of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sip_xdp_tests::{Machine, wait_until};

use crate::held;

/// The servers that the unit orders itself before, by the names of their own units.
const SERVERS: [&str; 5] = ["asterisk", "freepbx", "freeswitch", "kamailio", "opensips"];

/// A SIP server starts within this time, however broken the filter's configuration is.
const UNHINDERED: Duration = Duration::from_secs(10);

/// The configuration, and where a test keeps the valid one meanwhile.
const CONFIGURATION: &str = "/etc/sip-xdp/config.toml";
const KEPT: &str = "/root/config.toml";

/// The first line of a broken configuration, and what is said of it.
const BROKEN: &str = "intrefaces = [\"eth0\"]";
pub(crate) const COMPLAINT: &str =
    "/etc/sip-xdp/config.toml:1: unknown key intrefaces; did you mean interfaces?";

/// Units of the servers' names, which start at once: without an order they would be there before
/// the filter.
pub(crate) fn install_servers(machine: &Machine<'_>) -> Result<()> {
    let unit = "[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/true\\n";
    for server in SERVERS {
        machine.run(&format!("printf '{unit}' > /run/systemd/system/{server}.service"))?;
    }
    machine.run("systemctl daemon-reload").map(drop)
}

/// Started together, as at boot, each server starts when the filter enforces.
pub(crate) fn order(machine: &Machine<'_>) -> Result<()> {
    start_together(machine)?;
    let ready = moment(machine, "sip-xdp", "ActiveEnterTimestampMonotonic")?;
    for server in SERVERS {
        let started = moment(machine, server, "InactiveExitTimestampMonotonic")?;
        ensure!(
            started >= ready,
            "{server} started {} µs before the filter was there",
            ready - started
        );
    }
    machine.run("sip-xdp status --check")?;
    held(format!("started together, {} came after the filter", SERVERS.join(", ")));
    Ok(())
}

/// With a broken configuration the unit fails and says where the mistake is; servers start all the
/// same, and what was enforced is enforced. Repaired, it comes back.
pub(crate) fn broken_configuration(machine: &Machine<'_>) -> Result<()> {
    break_configuration(machine)?;
    let refused = machine.try_run("systemctl reload sip-xdp")?;
    ensure!(!refused.status.success(), "a reload of a broken configuration succeeds");
    machine.run("sip-xdp status --check").context("after the reload that was refused")?;

    let start = Instant::now();
    ensure!(!start_together(machine)?, "the unit starts with a broken configuration");
    let took = start.elapsed();
    for server in SERVERS {
        machine
            .run(&format!("systemctl is-active {server}"))
            .with_context(|| format!("{server} did not start"))?;
    }
    ensure!(
        took < UNHINDERED,
        "a broken configuration of the filter held the SIP servers up for {took:.1?}"
    );
    let state = machine.try_run("systemctl is-active sip-xdp")?;
    ensure!(state.stdout != b"active\n", "the unit is active with a broken configuration");
    let mut said = String::new();
    wait_until("the journal has the reason", Duration::from_secs(10), || {
        said =
            machine.run("journalctl --unit sip-xdp --identifier sip-xdp --output cat --lines 1")?;
        Ok(said.contains(COMPLAINT))
    })
    .with_context(|| format!("the daemon's last line: {said}"))?;
    ensure!(said.lines().count() == 1, "that is more than a line: {said}");
    let status = machine.run("sip-xdp status --json")?;
    let status: serde_json::Value =
        serde_json::from_str(&status).context("`status` printed no JSON")?;
    ensure!(
        status["enforcing"] == true,
        "with a broken configuration the filter is gone: {status}"
    );

    repair_configuration(machine)?;
    machine.run("systemctl restart sip-xdp && sip-xdp status --check")?;
    held(format!(
        "a broken configuration: \"{}\"; SIP servers started {took:.1?} later",
        said.trim()
    ));
    Ok(())
}

/// Adds a line that the configuration must not have.
pub(crate) fn break_configuration(machine: &Machine<'_>) -> Result<()> {
    machine
        .run(&format!("cp -p {CONFIGURATION} {KEPT} && sed -i '1i {BROKEN}' {CONFIGURATION}"))
        .map(drop)
}

/// Takes it out again.
pub(crate) fn repair_configuration(machine: &Machine<'_>) -> Result<()> {
    machine
        .run(&format!("sed -i '1d' {CONFIGURATION} && cmp {CONFIGURATION} {KEPT} && rm {KEPT}"))
        .map(drop)
}

/// Stops the daemon and all servers and starts them as one transaction; whether the daemon started.
fn start_together(machine: &Machine<'_>) -> Result<bool> {
    let all = format!("sip-xdp {}", SERVERS.join(" "));
    let started =
        machine.try_run(&format!("systemctl stop {all}; timeout 60 systemctl start {all}"))?;
    Ok(started.status.success())
}

/// When systemd has noted a change of a unit's state, in microseconds since boot.
fn moment(machine: &Machine<'_>, unit: &str, property: &str) -> Result<u64> {
    let value = machine.run(&format!("systemctl show --property={property} --value {unit}"))?;
    let moment =
        value.trim().parse().with_context(|| format!("{property} of {unit} is {value:?}"))?;
    ensure!(moment > 0, "{unit} never started: no {property}");
    Ok(moment)
}
