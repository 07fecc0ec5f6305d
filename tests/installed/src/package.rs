//! Installation, upgrade, removal and purge.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sip_xdp_tests::process::succeed;
use sip_xdp_tests::topology::{LAN, PBX_LAN, PBX_WAN, PHONE, WAN};
use sip_xdp_tests::{Capture, Lab, Machine, stream, wait_until};

use crate::{held, service, start};

/// Contents of the package besides the man pages.
const FILES: [&str; 13] = [
    "/etc/fail2ban/action.d/sip-xdp.conf",
    "/etc/sip-xdp/config.toml",
    "/usr/bin/sip-xdp",
    "/usr/lib/systemd/system/sip-xdp.service",
    "/usr/lib/sysusers.d/sip-xdp.conf",
    "/usr/share/bash-completion/completions/sip-xdp",
    "/usr/share/doc/sip-xdp/README.md",
    "/usr/share/doc/sip-xdp/copyright",
    "/usr/share/doc/sip-xdp/grafana/sip-xdp.json",
    "/usr/share/fish/vendor_completions.d/sip-xdp.fish",
    "/usr/share/man/man1/sip-xdp.1.gz",
    "/usr/share/man/man1/sip-xdp-block-add.1.gz",
    "/usr/share/zsh/vendor-completions/_sip-xdp",
];

/// Each shell loads its completions and completes a command with them.
const COMPLETIONS: [(&str, &str); 3] = [
    (
        "bash",
        "bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader sip-xdp; \
         completer=$(complete -p sip-xdp | grep -o \"F [^ ]*\") && COMP_WORDS=(sip-xdp blo) \
         COMP_CWORD=1 && \
         ${completer#F } sip-xdp blo sip-xdp; echo ${COMPREPLY[@]}'",
    ),
    (
        "zsh",
        "zsh -f -c 'autoload -U compinit; compinit -u -d /tmp/zcompdump; [[ $_comps[sip-xdp] = \
         _sip-xdp ]] || exit 1; \
         autoload +X _sip-xdp; functions _sip-xdp_commands _sip-xdp' | grep -o -m1 block",
    ),
    ("fish", "fish -c 'complete -C \"sip-xdp blo\"'"),
];

pub(crate) fn run(root: &Path, package: &Path, next: &Path) -> Result<()> {
    let lab = Lab::new()?;
    let machine = Machine::boot(root, &lab.pbx, lab.directory())?;
    held("a clean Debian with its own systemd runs");
    machine.copy(package, "/root/sip-xdp.deb")?;
    machine.copy(next, "/root/next.deb")?;

    install(&machine)?;
    documentation(&machine)?;
    completions(&machine)?;
    configuration(&machine)?;
    service::unit(&machine)?;
    service::capabilities(&machine)?;
    service::group(&machine)?;
    start::install_servers(&machine)?;
    start::order(&machine)?;
    start::broken_configuration(&machine)?;
    upgrade(&lab, &machine)?;
    hostile_upgrade(&machine)?;
    remove(&lab, &machine)?;
    purge(&machine)
}

fn install(machine: &Machine<'_>) -> Result<()> {
    // Its dependencies are part of any Debian, so that no network is needed.
    machine.run("apt-get install --yes --no-install-recommends ./sip-xdp.deb")?;
    let listed = machine.run("dpkg --listfiles sip-xdp")?;
    for file in FILES {
        ensure!(listed.lines().any(|line| line == file), "{file} is not in the package");
        machine.run(&format!("test -s {file}"))?;
    }
    let conffiles = machine.run("dpkg-query --show --showformat='${Conffiles}' sip-xdp")?;
    for file in ["/etc/sip-xdp/config.toml", "/etc/fail2ban/action.d/sip-xdp.conf"] {
        ensure!(conffiles.contains(file), "{file} is no conffile: {conffiles}");
    }
    let version = machine.run("sip-xdp --version")?;
    ensure!(version.trim() == concat!("sip-xdp ", env!("CARGO_PKG_VERSION")), "{version}");
    machine.run("getent group sip-xdp")?;
    let state = machine.try_run("systemctl is-enabled sip-xdp; systemctl is-active sip-xdp")?;
    let state = String::from_utf8_lossy(&state.stdout).into_owned();
    ensure!(state.starts_with("disabled"), "the installation has enabled it: {state}");
    ensure!(
        machine.run("systemctl is-active sip-xdp || true")?.trim() == "inactive",
        "the installation has started it"
    );
    let dashboard = machine.run("cat /usr/share/doc/sip-xdp/grafana/sip-xdp.json")?;
    let dashboard: serde_json::Value =
        serde_json::from_str(&dashboard).context("the dashboard is no JSON")?;
    ensure!(
        dashboard["panels"].as_array().is_some_and(|panels| !panels.is_empty()),
        "the dashboard shows nothing"
    );
    held(format!(
        "installed: {} with {} files, neither enabled nor started",
        version.trim(),
        listed.lines().count()
    ));
    Ok(())
}

/// Each command, and each command of a command, has a page that renders.
fn documentation(machine: &Machine<'_>) -> Result<()> {
    let pages = machine.run("cd /usr/share/man/man1 && ls sip-xdp*.1.gz")?;
    let pages: Vec<_> = pages.lines().map(|page| page.trim_end_matches(".1.gz")).collect();
    let mut commands = 0;
    for command in subcommands(machine, "sip-xdp")? {
        let nested = subcommands(machine, &format!("sip-xdp {command}"))?;
        for name in nested
            .iter()
            .map(|nested| format!("sip-xdp-{command}-{nested}"))
            .chain([format!("sip-xdp-{command}")])
        {
            ensure!(pages.contains(&name.as_str()), "no man page {name}; there are: {pages:?}");
            commands += 1;
        }
    }
    for page in &pages {
        let text = machine.run(&format!("MANWIDTH=100 man {page} 2>&1"))?;
        ensure!(
            text.contains("NAME") && text.contains("SYNOPSIS"),
            "{page} does not render: {text}"
        );
        ensure!(!text.contains("warning:"), "{page} does not render cleanly: {text}");
    }
    held(format!("{} man pages render, for all {commands} commands", pages.len()));
    Ok(())
}

/// The commands that a command's help names.
fn subcommands(machine: &Machine<'_>, command: &str) -> Result<Vec<String>> {
    let help = machine.run(&format!("{command} -h"))?;
    let commands = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| line.strip_prefix("  ")?.split([' ', ',']).next());
    Ok(names.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect())
}

fn completions(machine: &Machine<'_>) -> Result<()> {
    for (shell, script) in COMPLETIONS {
        let completed = machine.run(script)?;
        ensure!(completed.contains("block"), "{shell} does not complete: {completed:?}");
    }
    held("bash, zsh and fish load their completions");
    Ok(())
}

fn configuration(machine: &Machine<'_>) -> Result<()> {
    machine.run("sip-xdp config check")?;
    // An operator's line, which must survive the upgrade.
    machine.run(&format!(
        "sed -i 's/^#interfaces = .*/interfaces = [\"{WAN}\", \"{LAN}\"]/' /etc/sip-xdp/config.toml"
    ))?;
    let shown = machine.run("sip-xdp config show")?;
    ensure!(shown.contains(&format!("\"{LAN}\"")), "the configuration was not changed: {shown}");
    held("the configuration that comes with it is valid");
    Ok(())
}

/// A new version takes over from the old one while a blocked source and a phone send.
fn upgrade(lab: &Lab, machine: &Machine<'_>) -> Result<()> {
    let blocked = lab.further_attacker(0)?;
    machine.run(&format!(
        "sip-xdp block add {blocked} --reason 'by hand' && sip-xdp trust add {PHONE}"
    ))?;
    let passed =
        Capture::start(&lab.pbx, WAN, &format!("udp and src host {blocked}"), lab.directory())?;
    let heard =
        Capture::start(&lab.pbx, LAN, &format!("udp and src host {PHONE}"), lab.directory())?;
    let attack = stream::registers(&lab.attacker, blocked, PBX_WAN, 1000)?;
    let phone = stream::registers(&lab.phone, PHONE, PBX_LAN, 500)?;
    let before = (service::pid(machine)?, attack.sent());

    machine.run("apt-get install --yes ./next.deb")?;
    wait_until("the new daemon watches", Duration::from_secs(30), || {
        Ok(machine.try_run("sip-xdp status --check")?.status.success())
    })?;
    let (pid, sent) = (service::pid(machine)?, attack.sent());
    ensure!(pid != before.0, "the upgrade did not restart the daemon");
    ensure!(sent > before.1, "nothing was sent during the upgrade");
    let version = machine.run("dpkg-query --show --showformat='${Version}' sip-xdp")?;
    ensure!(version.ends_with("+next"), "{version} is installed");
    let (attacked, called) = (attack.stop()?, phone.stop()?);
    let (passed, heard) = (passed.stop()?.len() as u64, heard.stop()?.len() as u64);
    ensure!(
        passed == 0,
        "{passed} of {attacked} packets of a blocked source passed during the upgrade"
    );
    ensure!(
        heard == called,
        "{} of {called} packets of a phone were lost during the upgrade",
        called.abs_diff(heard)
    );
    let listed = machine.run(&format!("sip-xdp block list --match {blocked}"))?;
    ensure!(listed.contains("by hand"), "the upgrade has lost a block: {listed}");
    machine.run(&format!("grep -q '^interfaces = .\"{WAN}\"' /etc/sip-xdp/config.toml"))?;
    held(format!(
        "upgraded under traffic: 0 of {attacked} packets of a blocked source passed, {heard} of \
         {called} of a phone"
    ));
    Ok(())
}

/// A later version whose configuration file is another one comes while the operator's file is
/// broken: the installation succeeds and names the mistake, the daemon that runs goes on, the
/// operator's file stays.
fn hostile_upgrade(machine: &Machine<'_>) -> Result<()> {
    let before = service::pid(machine)?;
    start::break_configuration(machine)?;
    machine.run(
        "dpkg-deb --raw-extract next.deb later && cd later && \
         sed -i 's/+next$/+next.later/' DEBIAN/control && \
         echo '# A new default.' >> etc/sip-xdp/config.toml && \
         find . -type f -not -path './DEBIAN/*' -printf '%P\\0' | \
         xargs -0 md5sum > DEBIAN/md5sums && \
         dpkg-deb --root-owner-group -Znone --build . ../later.deb",
    )?;
    let said =
        machine.run("apt-get install --yes -o Dpkg::Options::=--force-confold ./later.deb 2>&1")?;
    let version = machine.run("dpkg-query --show --showformat='${Status} ${Version}' sip-xdp")?;
    ensure!(
        version.starts_with("install ok installed ") && version.ends_with(".later"),
        "{version}"
    );
    let complaints: Vec<_> = said.lines().filter(|line| line.contains(start::COMPLAINT)).collect();
    ensure!(complaints.len() == 1, "the installation does not name the mistake once: {said}");
    ensure!(service::pid(machine)? == before, "the daemon that could not be restarted was stopped");
    machine.run("sip-xdp status --check && test -e /etc/sip-xdp/config.toml.dpkg-dist")?;
    start::repair_configuration(machine)?;
    machine.run("systemctl restart sip-xdp && sip-xdp status --check")?;
    ensure!(service::pid(machine)? != before, "it was not restarted");
    held(format!(
        "upgraded with a broken configuration: the daemon goes on; apt shows \"{}\"",
        complaints[0]
    ));
    Ok(())
}

/// After a removal nothing is enforced.
fn remove(lab: &Lab, machine: &Machine<'_>) -> Result<()> {
    machine.run("apt-get remove --yes sip-xdp")?;
    ensure!(
        machine.try_run("systemctl is-active sip-xdp")?.stdout != b"active\n",
        "the daemon still runs"
    );
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
    let passed = Capture::start(&lab.pbx, WAN, "udp and src host 198.51.100.100", lab.directory())?;
    let stream = stream::registers(&lab.attacker, [198, 51, 100, 100], PBX_WAN, 100)?;
    wait_until("packets pass", Duration::from_secs(10), || Ok(!passed.packets()?.is_empty()))?;
    stream.stop()?;
    machine.run("test -e /etc/sip-xdp/config.toml")?;
    machine.run("test ! -e /usr/bin/sip-xdp")?;
    held("removed: nothing is filtered, nothing is pinned, the configuration is kept");
    Ok(())
}

fn purge(machine: &Machine<'_>) -> Result<()> {
    // A purge removes an operator's key as well.
    machine.run("echo secret > /etc/sip-xdp/feed.key && apt-get purge --yes sip-xdp")?;
    let left = machine.run(
        "find / -xdev -name '*sip-xdp*' -not -path '/var/cache/*' -not -path '/root/*' -not -path \
         '/tmp/*'; \
         find /run /etc/systemd -name '*sip-xdp*'; getent group sip-xdp || true",
    )?;
    let left: Vec<_> = left.lines().filter(|line| !line.starts_with("/var/lib/systemd/")).collect();
    ensure!(left.is_empty(), "the purge has left {left:?}");
    held("purged: no state, no configuration, no group");
    Ok(())
}
