//! Debian packages: installed only when missing, without starting services and without removing
//! anything.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{as_root, ask, find, is_root, run, run_quietly, say};

/// What every test in network namespaces uses. Each line: a program, and the package that brings
/// it.
const LAB_TOOLS: [(&str, &str); 3] =
    [("ip", "iproute2"), ("nsenter", "util-linux"), ("tcpdump", "tcpdump")];

/// What the demo uses beside that: nobody should have to install a browser to see an attacker being
/// banned.
const DEMO_TOOLS: [(&str, &str); 4] = [
    ("kamailio", "kamailio"),
    ("kamcmd", "kamailio"),
    ("sipp", "sip-tester"),
    ("svcrack", "sipvicious"),
];

/// What the end-to-end tests use beside all of these.
const TEST_TOOLS: [(&str, &str); 14] = [
    ("chromium", "chromium"),
    ("crowdsec", "crowdsec"),
    ("cscli", "crowdsec"),
    ("dnsmasq", "dnsmasq-base"),
    ("ethtool", "ethtool"),
    ("fail2ban-server", "fail2ban"),
    ("faketime", "faketime"),
    ("nft", "nftables"),
    ("openssl", "openssl"),
    ("sipsak", "sipsak"),
    ("svmap", "sipvicious"),
    ("svwar", "sipvicious"),
    ("tmux", "tmux"),
    ("tshark", "tshark"),
];

/// The other filters that the benchmark measures against.
const BENCH_TOOLS: [(&str, &str); 6] = [
    ("ethtool", "ethtool"),
    ("fail2ban-server", "fail2ban"),
    ("ipset", "ipset"),
    ("iptables-legacy", "iptables"),
    ("nft", "nftables"),
    ("xdp-filter", "xdp-tools"),
];

/// What images of virtual machines are made with.
const MACHINE_TOOLS: [(&str, &str); 8] = [
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
    ("strip", "binutils"),
    ("unshare", "util-linux"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// What libFuzzer is compiled with.
const FUZZ_TOOLS: [(&str, &str); 1] = [("c++", "g++")];

/// What lets Kamailio take TLS and WebSocket.
const TEST_LIBRARIES: [&str; 2] = ["kamailio-tls-modules", "kamailio-websocket-modules"];

/// What lets fail2ban be woken by new lines of a log, instead of polling.
const BENCH_LIBRARIES: [&str; 1] = ["python3-pyinotify"];

/// Packages that would start a service once they are installed, and the service.
const SERVICES: [(&str, &str); 4] = [
    ("crowdsec", "crowdsec.service"),
    ("fail2ban", "fail2ban.service"),
    ("kamailio", "kamailio.service"),
    ("nftables", "nftables.service"),
];

/// The package that would register this machine with a service outside, and the file that keeps it
/// from that, as its README.Debian says: one that has something in it.
const OFFLINE: (&str, &str) = ("crowdsec", "/etc/crowdsec/online_api_credentials.yaml");

/// Asked before a package's maintainer scripts start a service; 101 means no.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// Makes available what any test in network namespaces uses.
pub(crate) fn install_lab_tools() -> Result<()> {
    install_tools("network tools", &LAB_TOOLS)
}

/// Makes available what the demo uses.
pub(crate) fn install_demo_tools() -> Result<()> {
    install_tools("what the demo shows", &[&LAB_TOOLS[..], &DEMO_TOOLS].concat())
}

/// Makes the test tools available.
pub(crate) fn install_test_tools() -> Result<()> {
    install_tools("test tools", &[&LAB_TOOLS[..], &DEMO_TOOLS, &TEST_TOOLS].concat())?;
    // Elsewhere they come with Kamailio.
    if has_apt() { install(&TEST_LIBRARIES.map(str::to_owned)) } else { Ok(()) }
}

/// Makes available what the benchmark measures against.
pub(crate) fn install_bench_tools() -> Result<()> {
    install_tools("filters to compare with", &BENCH_TOOLS)?;
    // Elsewhere it comes with fail2ban, or the benchmark says that it is missing.
    if has_apt() { install(&BENCH_LIBRARIES.map(str::to_owned)) } else { Ok(()) }
}

/// Makes available what images of virtual machines are made with.
pub(crate) fn install_machine_tools() -> Result<()> {
    install_tools("what virtual machines are made with", &MACHINE_TOOLS)
}

/// Makes available what the fuzz targets are built with.
pub(crate) fn install_fuzz_tools() -> Result<()> {
    install_tools("what libFuzzer is compiled with", &FUZZ_TOOLS)
}

fn install_tools(what: &str, tools: &[(&str, &str)]) -> Result<()> {
    let missing = |(program, _): &&(&str, &str)| find(program).is_none();
    let mut packages: Vec<_> =
        tools.iter().filter(missing).map(|&(_, package)| package.to_owned()).collect();
    packages.sort();
    packages.dedup();
    if packages.is_empty() {
        say(format!("{what}: all installed"));
        return Ok(());
    }
    if !has_apt() {
        bail!("install {} by your system's own means: there is no apt here", packages.join(", "));
    }
    install(&packages)
}

/// Whether packages can be installed here at all.
pub(crate) fn has_apt() -> bool {
    find("apt-get").is_some() && find("dpkg-query").is_some()
}

/// Whether a package is installed.
pub(crate) fn is_installed(package: &str) -> bool {
    ask(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_some_and(|status| status == "installed")
}

/// Whether the packages could be installed without removing any other; the lists are fetched first
/// if that helps.
pub(crate) fn are_available(packages: &[String]) -> Result<bool> {
    let simulate = || {
        ask(Command::new("apt-get")
            .args(["install", "--simulate", "--no-remove", "--no-install-recommends"])
            .args(packages))
        .is_some()
    };
    if simulate() {
        return Ok(true);
    }
    if !is_root() && find("sudo").is_none() {
        return Ok(false);
    }
    update()?;
    Ok(simulate())
}

/// Installs the packages that are missing among these.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    let missing: Vec<_> =
        packages.iter().filter(|package| !is_installed(package)).cloned().collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !are_available(&missing)? {
        bail!(
            "apt cannot install {} without removing other packages, or does not know them: \
             `apt-get install --no-remove {}` says why",
            missing.join(", "),
            missing.join(" ")
        );
    }
    say(format!("installing Debian packages: {}", missing.join(" ")));
    let services = ServiceGuard::hold(&missing)?;
    stay_offline(&missing)?;
    // Lists can be older than the mirror: one more try with fresh ones.
    let result = apt_install(&missing).or_else(|_| update().and_then(|()| apt_install(&missing)));
    services.release()?;
    result
}

/// Prevents these packages from registering this machine anywhere. An administrator's own
/// configuration is kept.
fn stay_offline(packages: &[String]) -> Result<()> {
    let (package, file) = OFFLINE;
    if !packages.iter().any(|name| name == package) || Path::new(file).exists() {
        return Ok(());
    }
    let note = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    fs::write(note.path(), "# Not registered: installed for the tests of sip-xdp.\n")?;
    run(as_root("install")?.args(["-D", "--mode=600"]).arg(note.path()).arg(file))
}

fn apt_install(packages: &[String]) -> Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-remove", "--no-install-recommends"];
    arguments.extend(packages.iter().map(String::as_str));
    apt_get(&arguments)
}

fn update() -> Result<()> {
    say("fetching the package lists: apt-get update");
    apt_get(&["update"])
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = as_root("env")?;
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=120"])
        .args(arguments);
    run_quietly(&mut command)
}

/// Prevents services of installed packages from being started, now or at the next boot: this may be
/// somebody's workstation. An administrator's own policy is kept.
struct ServiceGuard {
    made_policy: bool,
    services: Vec<&'static str>,
}

impl ServiceGuard {
    fn hold(packages: &[String]) -> Result<Self> {
        let installed = |(package, _): &&(&str, &str)| packages.iter().any(|name| name == package);
        let services: Vec<_> =
            SERVICES.iter().filter(installed).map(|&(_, service)| service).collect();
        let made_policy = !services.is_empty() && !Path::new(SERVICE_POLICY).exists();
        if made_policy {
            let policy = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
            fs::write(policy.path(), "#!/bin/sh\nexit 101\n")?;
            fs::set_permissions(policy.path(), fs::Permissions::from_mode(0o755))?;
            run(as_root("install")?.arg("--mode=755").arg(policy.path()).arg(SERVICE_POLICY))?;
        }
        Ok(Self { made_policy, services })
    }

    fn release(self) -> Result<()> {
        if self.made_policy {
            run(as_root("rm")?.args(["-f", SERVICE_POLICY]))?;
        }
        if find("systemctl").is_none() {
            return Ok(());
        }
        for service in self.services {
            run_quietly(as_root("systemctl")?.args(["disable", service])).with_context(|| {
                format!("{service} is installed, but will start at the next boot")
            })?;
            say(format!("{service}: neither started nor enabled"));
        }
        Ok(())
    }
}
