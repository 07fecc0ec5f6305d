//! What is installed without apt: the rpm package, the tarball in a root that holds nothing else,
//! and the container image, in an engine and with exactly what the Kubernetes manifest gives it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sip_xdp_tests::dns::{DOMAIN, NameServer};
use sip_xdp_tests::process::succeed;
use sip_xdp_tests::topology::{LAN, PBX_WAN, WAN};
use sip_xdp_tests::{Capture, Lab, Machine, stream, wait_until};

use crate::{engine, held, service};

/// The files to test.
#[derive(Debug, clap::Args)]
pub(crate) struct Others {
    /// An rpm package
    #[arg(long, value_name = "FILE")]
    rpm: std::path::PathBuf,
    /// The same as a later version
    #[arg(long, value_name = "FILE")]
    rpm_next: std::path::PathBuf,
    /// An rpm package that provides what any system with rpm has
    #[arg(long, value_name = "FILE")]
    rpm_stand_in: std::path::PathBuf,
    /// The tarball
    #[arg(long, value_name = "FILE")]
    tarball: std::path::PathBuf,
    /// What the image is built from
    #[arg(long, value_name = "DIR")]
    context: std::path::PathBuf,
    /// A clean Debian with Podman, as a tar archive
    #[arg(long, value_name = "FILE")]
    engine_root: std::path::PathBuf,
    /// The Kubernetes manifest's documents, as a JSON array
    #[arg(long, value_name = "FILE")]
    manifest: std::path::PathBuf,
}

/// Contents of the rpm package besides the man pages.
const FILES: [&str; 9] = [
    "/etc/fail2ban/action.d/sip-xdp.conf",
    "/etc/sip-xdp/config.toml",
    "/usr/bin/sip-xdp",
    "/usr/lib/systemd/system/sip-xdp.service",
    "/usr/lib/sysusers.d/sip-xdp.conf",
    "/usr/share/bash-completion/completions/sip-xdp",
    "/usr/share/fish/vendor_completions.d/sip-xdp.fish",
    "/usr/share/man/man1/sip-xdp.1.gz",
    "/usr/share/zsh/site-functions/_sip-xdp",
];

/// Debian's rpm requires this flag.
const RPM: &str = "rpm --force-debian --quiet";

/// What confines a container by default, in systemd's words: its own /proc, /sys and /dev, and an
/// error for what its profile refuses.
const CONTAINER: [&str; 4] = [
    "MountAPIVFS=yes",
    "PrivateTmp=yes",
    "SystemCallErrorNumber=EPERM",
    "SystemCallFilter=@system-service bpf",
];

/// Where the root of a container is, inside.
const IMAGE: &str = "/root/image.tar";

pub(crate) fn run(root: &Path, checkout: &Path, others: &Others) -> Result<()> {
    let lab = Lab::new()?;
    let machine = Machine::boot(root, &lab.pbx, lab.directory())?;
    rpm(&lab, &machine, others)?;
    tarball(&lab, &machine, &others.tarball)?;
    drop(machine);
    let machine = Machine::boot(&others.engine_root, &lab.pbx, lab.directory())?;
    engine::run(&lab, &machine, &others.context, checkout, IMAGE)?;
    image(&lab, &machine, others)
}

fn rpm(lab: &Lab, machine: &Machine<'_>, others: &Others) -> Result<()> {
    machine.copy(&others.rpm_stand_in, "/root/stand-in.rpm")?;
    machine.copy(&others.rpm, "/root/sip-xdp.rpm")?;
    machine.copy(&others.rpm_next, "/root/next.rpm")?;
    machine.run(&format!(
        "rpm --initdb; {RPM} --install stand-in.rpm && {RPM} --install sip-xdp.rpm"
    ))?;
    let listed = machine.run("rpm --query --list sip-xdp")?;
    for file in FILES {
        ensure!(listed.lines().any(|line| line == file), "{file} is not in the rpm package");
        machine.run(&format!("test -s {file}"))?;
    }
    let configuration = machine.run("rpm --query --configfiles sip-xdp")?;
    ensure!(configuration.lines().count() == 2, "configuration files: {configuration}");
    machine.run("rpm --verify sip-xdp && getent group sip-xdp && sip-xdp config check")?;
    let state =
        machine.run("systemctl is-enabled sip-xdp || true; systemctl is-active sip-xdp || true")?;
    ensure!(state == "disabled\ninactive\n", "after the installation: {state}");
    machine.run(&format!(
        "sed -i 's/^#interfaces = .*/interfaces = [\"{WAN}\", \"{LAN}\"]/' /etc/sip-xdp/config.toml"
    ))?;
    service::unit(machine)?;

    machine.run("sip-xdp block add 192.0.2.77 --reason 'by hand'")?;
    let before = service::pid(machine)?;
    machine.run(&format!("{RPM} --upgrade next.rpm"))?;
    wait_until("the new daemon watches", Duration::from_secs(30), || {
        Ok(machine.try_run("sip-xdp status --check")?.status.success())
    })?;
    ensure!(service::pid(machine)? != before, "the upgrade did not restart the daemon");
    machine.run("sip-xdp block list | grep -q 'by hand'")?;
    machine.run(&format!("grep -q '^interfaces = .\"{WAN}\"' /etc/sip-xdp/config.toml"))?;
    held("rpm: installed, run by systemd, upgraded with its block list and its configuration kept");

    machine.run(&format!("{RPM} --erase sip-xdp"))?;
    is_gone(lab, machine)?;
    machine.run(
        "test ! -e /usr/bin/sip-xdp && rm -rf /etc/sip-xdp /var/lib/sip-xdp && groupdel sip-xdp",
    )?;
    held("rpm: erased; nothing is filtered, nothing is pinned");
    Ok(())
}

/// Neither a program nor a pin is left.
pub(crate) fn is_gone(lab: &Lab, machine: &Machine<'_>) -> Result<()> {
    for interface in [WAN, LAN] {
        let shown = succeed(Command::new("ip").args([
            "-n",
            lab.pbx.name(),
            "link",
            "show",
            "dev",
            interface,
        ]))?;
        ensure!(!shown.contains("xdp"), "{interface} is still filtered: {shown}");
    }
    ensure!(
        machine.try_run("test -e /sys/fs/bpf/sip-xdp")?.status.code() == Some(1),
        "something is still pinned"
    );
    Ok(())
}

/// A daemon with its own root and properties, under systemd.
struct Contained<'m> {
    machine: &'m Machine<'m>,
    name: &'static str,
    properties: Vec<String>,
    binary: &'static str,
}

impl Contained<'_> {
    /// The prefix of a command line that runs like the daemon.
    fn systemd_run(&self, options: &str) -> String {
        let properties: Vec<_> =
            self.properties.iter().map(|property| format!("--property='{property}'")).collect();
        format!("systemd-run --quiet {options} {}", properties.join(" "))
    }

    fn start(&self, arguments: &str) -> Result<()> {
        let unit = self.name;
        let run = self.systemd_run(&format!(
            "--unit={unit} --property=Type=notify --property=NotifyAccess=main"
        ));
        self.machine.run(&format!(
            "{run} {} {arguments} || {{ journalctl --unit {unit} --output cat --lines 20; exit 1; \
             }}",
            self.binary
        ))?;
        Ok(())
    }

    fn command(&self, arguments: &str) -> Result<String> {
        self.machine.run(&format!(
            "{} {} {arguments}",
            self.systemd_run("--wait --pipe"),
            self.binary
        ))
    }

    /// It filters, and leaves nothing.
    fn filters(&self, lab: &Lab, number: u8) -> Result<()> {
        filters(lab, self.machine, self.name, number, &|arguments| self.command(arguments))
    }
}

/// What the filter is told to block by a command does not get behind it. Unloaded, it leaves
/// nothing.
pub(crate) fn filters(
    lab: &Lab,
    machine: &Machine<'_>,
    name: &str,
    number: u8,
    command: &dyn Fn(&str) -> Result<String>,
) -> Result<()> {
    command("status --check")?;
    let blocked = lab.further_attacker(number)?;
    command(&format!("block add {blocked}"))?;
    let passed =
        Capture::start(&lab.pbx, WAN, &format!("udp and src host {blocked}"), lab.directory())?;
    let attack = stream::registers(&lab.attacker, blocked, PBX_WAN, 500)?;
    wait_until("packets are sent", Duration::from_secs(30), || Ok(attack.sent() >= 200))?;
    let (sent, passed) = (attack.stop()?, passed.stop()?.len());
    ensure!(passed == 0, "{passed} of {sent} packets of a blocked source passed");
    command("unload")?;
    is_gone(lab, machine)?;
    held(format!(
        "{name}: it filters (0 of {sent} packets of a blocked source passed), and unloads"
    ));
    Ok(())
}

/// The binary runs without any other file.
fn tarball(lab: &Lab, machine: &Machine<'_>, tarball: &Path) -> Result<()> {
    machine.copy(tarball, "/root/sip-xdp.tar.gz")?;
    machine.run(
        "mkdir tarball && tar -xzf sip-xdp.tar.gz -C tarball --strip-components=1 && \
         mkdir -p /srv/empty /run/sip-xdp /var/lib/sip-xdp && cp tarball/sip-xdp /srv/empty/",
    )?;
    machine.run(
        "test -s tarball/sip-xdp.service && test -s tarball/doc/installing.md && chroot /srv/empty \
         /sip-xdp --version",
    )?;
    let files = machine.run("cd /srv/empty && find . -type f")?;
    ensure!(files == "./sip-xdp\n", "the root is not empty: {files}");
    let mut properties: Vec<_> = CONTAINER.map(str::to_owned).into();
    properties.push("RootDirectory=/srv/empty".to_owned());
    properties.push("BindPaths=/sys/fs/bpf /run/sip-xdp /var/lib/sip-xdp".to_owned());
    let contained = Contained { machine, name: "tarball", properties, binary: "/sip-xdp" };
    contained.start(&format!("run --iface {WAN}"))?;
    contained.filters(lab, 1)?;
    names(lab, machine, contained)
}

/// Without the libraries of the system it finds hosts by their names, which feeds need.
fn names(lab: &Lab, machine: &Machine<'_>, mut contained: Contained<'_>) -> Result<()> {
    let host = format!("lists.{DOMAIN}");
    let mut server = NameServer::prepare(&lab.pbx, PBX_WAN, lab.directory())?;
    server.serve(&[format!("host-record={host},{PBX_WAN}")])?;
    machine.copy(server.resolv_conf(), "/srv/resolv.conf")?;
    // The name server itself is what is connected with.
    let feed = format!("[[feeds]]\nname = \"named\"\nurl = \"http://{host}:53/list\"\n");
    machine.run(&format!("cat > /srv/feeds.toml <<'EOF'\n{feed}EOF"))?;
    let files = "BindReadOnlyPaths=/srv/resolv.conf:/etc/resolv.conf /srv/feeds.toml:/feeds.toml";
    contained.properties.push(files.to_owned());
    let doctor = contained.systemd_run("--wait --pipe");
    // It fails for other reasons: no SIP server listens here.
    let script =
        format!("{doctor} {} --config /feeds.toml --json doctor --iface {WAN}", contained.binary);
    let output = machine.try_run(&script)?;
    let found: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`doctor` printed no JSON, but: {output:?}"))?;
    let checks = found["checks"].as_array().context("no checks")?;
    let check =
        checks.iter().find(|check| check["check"] == "feed").context("no check of the feed")?;
    ensure!(check["status"] == "ok", "the feed's host is not found: {check}");
    held(format!("{}: it finds a feed's host by its name", contained.name));
    Ok(())
}

/// A container of the image runs with what the manifest gives it, and no more.
fn image(lab: &Lab, machine: &Machine<'_>, others: &Others) -> Result<()> {
    machine.run(&format!("mkdir /srv/image && tar -xf {IMAGE} -C /srv/image"))?;
    let manifest = fs::read_to_string(&others.manifest).context("no manifest")?;
    let manifest: Value = serde_json::from_str(&manifest).context("the manifest is no JSON")?;
    let documents = manifest.as_array().context("the manifest is no array")?;
    let of_kind = |kind: &str| documents.iter().find(|document| document["kind"] == kind);
    let pod = &of_kind("DaemonSet").context("no DaemonSet")?["spec"]["template"]["spec"];
    ensure!(pod["hostNetwork"] == true, "the pods have a network of their own");
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    ensure!(
        security["privileged"] == false && security["capabilities"]["drop"][0] == "ALL",
        "more than it needs"
    );
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let added = security["capabilities"]["add"].as_array().context("no capabilities")?;
    let added: Vec<_> =
        added.iter().map(|name| Ok(format!("CAP_{}", text(name)?))).collect::<Result<_>>()?;

    let mut properties: Vec<_> = CONTAINER.map(str::to_owned).into();
    properties.push("RootDirectory=/srv/image".to_owned());
    properties.push(format!("CapabilityBoundingSet={}", added.join(" ")));
    if security["allowPrivilegeEscalation"] == false {
        properties.push("NoNewPrivileges=yes".to_owned());
    }
    if security["readOnlyRootFilesystem"] == true {
        properties.push("ReadOnlyPaths=/".to_owned());
    }
    for mount in container["volumeMounts"].as_array().context("no mounts")? {
        let inside = text(&mount["mountPath"])?;
        let volumes = pod["volumes"].as_array().context("no volumes")?;
        let volume = volumes
            .iter()
            .find(|volume| volume["name"] == mount["name"])
            .context("no such volume")?;
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            machine.run(&format!("mkdir -p {path}"))?;
            properties
                .extend([format!("BindPaths={path}:{inside}"), format!("ReadWritePaths={inside}")]);
        } else {
            let data = &of_kind("ConfigMap").context("no ConfigMap")?["data"];
            machine.run("mkdir -p /srv/configuration")?;
            for (name, value) in data.as_object().context("no data")? {
                machine.run(&format!(
                    "cat > /srv/configuration/{name} <<'EOF'\n{}\nEOF",
                    text(value)?
                ))?;
            }
            properties.push(format!("BindReadOnlyPaths=/srv/configuration:{inside}"));
        }
    }
    machine.run(&format!(
        "sed -i 's/^#interfaces = .*/interfaces = [\"{WAN}\"]/' /srv/configuration/config.toml"
    ))?;
    let arguments: Vec<_> = container["args"]
        .as_array()
        .context("no arguments")?
        .iter()
        .map(text)
        .collect::<Result<_>>()?;
    let contained = Contained { machine, name: "image", properties, binary: "/usr/bin/sip-xdp" };
    contained.start(&arguments.join(" "))?;
    let status =
        fs::read_to_string(format!("/proc/{}/status", machine.main_process("image.service")?))?;
    let effective = status
        .lines()
        .find(|line| line.starts_with("CapEff"))
        .context("no capabilities")?
        .to_owned();
    let probe = &container["readinessProbe"]["exec"]["command"];
    let probe: Vec<_> =
        probe.as_array().context("no probe")?.iter().map(text).collect::<Result<_>>()?;
    ensure!(probe[0] == contained.binary, "the probe is another program");
    contained.command(&probe[1..].join(" "))?;
    held(format!(
        "image: it runs with {} only ({effective}), and its probe finds it ready",
        added.join(", ")
    ));
    contained.filters(lab, 2)
}
