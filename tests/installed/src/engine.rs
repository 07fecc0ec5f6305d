//! The container image in an engine: built and run by Podman with the commands of
//! docs/installing.md, and as the Kubernetes manifest describes a container of it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sip_xdp_tests::topology::ATTACKER;
use sip_xdp_tests::{Lab, Machine, manual, wait_until};

use crate::held;
use crate::others::{filters, is_gone};

/// Where the documentation has the files that the image is built from, and where they are in the
/// test.
const DOCUMENTED: &str = "target/packages/container";
const CONTEXT: &str = "/root/container";

/// What an engine wants to set, and may not where it is confined itself, as in a build machine:
/// limits of the container's resources. They have nothing to do with what the container may do.
const CONFINED: &str =
    "podman run --cgroups disabled --ulimit nofile=1024:1024 --ulimit nproc=1024:1024";

/// The command in the container.
const COMMAND: &str = "podman exec sip-xdp sip-xdp";

/// Builds the image and tries it, and leaves the root that a container of it has at this path
/// inside.
pub(crate) fn run(
    lab: &Lab,
    machine: &Machine<'_>,
    context: &Path,
    checkout: &Path,
    root: &str,
) -> Result<()> {
    machine.run(&format!("mkdir {CONTEXT}"))?;
    for entry in fs::read_dir(context)
        .with_context(|| format!("cannot read {}", context.display()))?
        .flatten()
    {
        machine
            .copy(&entry.path(), &format!("{CONTEXT}/{}", entry.file_name().to_string_lossy()))?;
    }
    // As on an Internet host; the filter follows the default route.
    lab.pbx.ip(["route", "add", "default", "via", &ATTACKER.to_string()])?;
    let documented = commands(checkout)?;
    let is_run = |command: &&String| command.starts_with("podman run ");
    ensure!(
        documented.iter().filter(is_run).count() == 1,
        "not one `podman run` among {documented:?}"
    );
    for command in &documented {
        machine.run(&command.replace(DOCUMENTED, CONTEXT).replace("podman run", CONFINED))?;
        if is_run(&command) {
            enforces(machine)?;
        }
    }
    held(format!("Podman builds and runs the image as documented: {}", documented.join("; ")));

    machine.run("podman stop sip-xdp")?;
    let left = machine.run("test -e /sys/fs/bpf/sip-xdp && echo pinned")?;
    ensure!(left == "pinned\n", "the filter ended with its container");
    machine.run("podman start sip-xdp")?;
    enforces(machine)?;
    filters(lab, machine, "the container", 3, &|arguments| {
        machine.run(&format!("{COMMAND} {arguments}"))
    })?;
    machine.run("podman stop sip-xdp")?;
    is_gone(lab, machine)?;

    // Podman's own profile allows bpf(2) with CAP_SYS_ADMIN only; the container has to say what
    // stands in the way.
    let run = documented.iter().find(is_run).context("it was just there")?;
    let confined =
        run.replace("podman run", CONFINED).replace("--security-opt seccomp=unconfined", "");
    let confined = confined.replace("--detach --name sip-xdp", "--rm");
    let refused = machine.try_run(&confined)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.success() || said.contains("a seccomp profile stands in the way"),
        "with the engine's own profile it says: {said}"
    );
    held(format!("with Podman's own profile: {}", said.lines().last().unwrap_or("it runs").trim()));

    machine.run(&format!("podman export --output {root} sip-xdp && podman rm sip-xdp")).map(drop)
}

fn enforces(machine: &Machine<'_>) -> Result<()> {
    wait_until("the container enforces", Duration::from_secs(30), || {
        let state = machine.run("podman inspect --format '{{.State.Status}}' sip-xdp")?;
        if state != "running\n" {
            bail!("{state}{}", machine.run("podman logs sip-xdp 2>&1")?);
        }
        Ok(machine.try_run(&format!("{COMMAND} status --check"))?.status.success())
    })
    .map(drop)
}

/// The commands under "Container", each on one line.
fn commands(checkout: &Path) -> Result<Vec<String>> {
    let blocks = manual::read(checkout, [manual::FOR_OTHER_SYSTEMS])?;
    let block = blocks
        .iter()
        .find(|block| block.heading == "Container")
        .context("no commands under Container")?;
    let joined = block.text.replace("\\\n", " ");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(joined.lines().filter_map(|line| line.strip_prefix("# ")).map(words).collect())
}
