//! `doctor` on deliberately broken hosts: it must report exactly the defect; and `trust suggest`.
//! Needs root.
//!
//! More than 400 lines: one test per defect of a host, with shared helpers.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::foreign::ForeignProgram;
use sip_xdp_tests::process::Process;
use sip_xdp_tests::topology::{LAN, PBX_LAN, PBX_WAN, PHONE, WAN};
use sip_xdp_tests::{
    Filter, FilterOptions, Lab, ListServer, Namespace, Phone, Registrar, Reply, Stream, wait_until,
};
use sip_xdp_tests::{sip, stream};

const SOON: Duration = Duration::from_secs(15);

/// The result of `doctor`.
struct Diagnosis {
    checks: Vec<Value>,
    is_well: bool,
}

impl Diagnosis {
    fn read(output: &Output) -> Result<Self> {
        let text = String::from_utf8_lossy(&output.stdout);
        let said = || format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        let mut json: Value = serde_json::from_str(&text).with_context(said)?;
        anyhow::ensure!(json["schema"] == 1, said());
        let checks: Vec<Value> = serde_json::from_value(json["checks"].take())?;
        let is_well = output.status.success();
        // The exit status matches the checks, and every problem has a remedy.
        assert_eq!(checks.iter().all(|check| check["status"] != "fail"), is_well, "{}", said());
        assert!(
            checks.iter().all(|check| (check["status"] == "ok") == check["remedy"].is_null()),
            "{}",
            said()
        );
        Ok(Self { checks, is_well })
    }

    fn of(filter: &Filter<'_>, arguments: &[&str]) -> Result<Self> {
        Self::read(&filter.cli(&[&["doctor", "--json"], arguments].concat())?)
    }

    /// The check of this name, for this interface if given.
    fn check(&self, name: &str, interface: Option<&str>) -> &Value {
        let found: Vec<_> = self
            .checks
            .iter()
            .filter(|check| {
                check["check"] == name
                    && interface.is_none_or(|interface| check["interface"] == interface)
            })
            .collect();
        assert_eq!(found.len(), 1, "{name} in {:#?}", self.checks);
        found[0]
    }

    /// Asserts a check's status and part of its text.
    fn says(&self, name: &str, status: &str, part: &str) {
        let check = self.check(name, None);
        println!("{check}");
        assert_eq!(check["status"], status, "{check}");
        assert!(check.to_string().contains(part), "{check}");
    }

    /// The checks that failed.
    fn failed(&self) -> Vec<&str> {
        let failed = self.checks.iter().filter(|check| check["status"] == "fail");
        failed.filter_map(|check| check["check"].as_str()).collect()
    }
}

fn nothing_loaded(lab: &Lab) -> Result<Filter<'_>> {
    Filter::prepare(
        &lab.pbx,
        lab.directory(),
        FilterOptions { interfaces: Vec::new(), ..FilterOptions::default() },
    )
}

/// A process of this name that listens on a port, on UDP and TCP: a name server without clients.
fn server(
    lab: &Lab,
    namespace: &Namespace,
    name: &str,
    address: impl Into<IpAddr>,
    port: u16,
) -> Result<Process> {
    let program = lab.directory().join(name);
    if !program.exists() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .map(|directory| directory.join("dnsmasq"))
            .find(|file| file.exists());
        symlink(found.context("dnsmasq is not installed")?, &program)?;
    }
    let mut command = namespace.command(&program);
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--pid-file=",
    ]);
    command.args(["--user=root", "--group=root", "--bind-interfaces", "--except-interface=lo"]);
    command.arg(format!("--listen-address={}", address.into())).arg(format!("--port={port}"));
    let server = Process::spawn(name, &mut command)?;
    wait_until("the server listens", SOON, || {
        namespace.enter(|| {
            let listed = fs::read_to_string("/proc/thread-self/net/tcp")?;
            Ok(listed.contains(&format!(":{port:04X} 00000000:0000 0A")))
        })
    })?;
    Ok(server)
}

#[test]
fn a_host_in_good_order_is_well() -> Result<()> {
    let lab = Lab::new()?;
    lab.pbx.ip(["route", "add", "default", "via", "198.51.100.254"])?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let healthy = Diagnosis::of(&filter, &[])?;
    assert!(healthy.is_well, "{:?}", healthy.failed());
    healthy.says("filter", "ok", "enforcing on wan, lan");
    healthy.says("listeners", "ok", "kamailio (pid ");
    healthy.says("exposure", "ok", "198.51.100.1 (wan)");
    healthy.says("responses", "ok", "by wan");
    for check in ["driver", "mtu", "queues", "offloads", "xdp_programs", "tc_programs"] {
        assert_eq!(healthy.check(check, Some(WAN))["status"], "ok", "{check}");
    }
    assert!(
        healthy.check("driver", Some(LAN))["detail"].to_string().contains("runs in the driver")
    );
    // The kernel's state of the clock, which a test must not set. SAFETY: all zeroes is a valid
    // `timex`, which only queries.
    let state = unsafe { libc::adjtimex(&mut std::mem::zeroed()) };
    let is_synchronised = state != libc::TIME_ERROR && state != -1;
    assert_eq!(
        healthy.check("clock", None)["status"] == "ok",
        is_synchronised,
        "{}",
        healthy.check("clock", None)
    );

    // Without a daemon.
    filter.kill9()?;
    let alone = Diagnosis::of(&filter, &[])?;
    alone.says("filter", "warn", "no daemon answers");
    alone.says("exposure", "ok", "198.51.100.1 (wan)");
    let text = filter.cli(&["doctor"])?;
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("\nwarn  filter ") && text.contains("-> start `sip-xdp run`"), "{text}");
    Ok(())
}

#[test]
fn a_server_that_the_world_reaches_unfiltered() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    let open = server(&lab, &lab.pbx, "asterisk", PBX_WAN, 5060)?;
    let found = Diagnosis::of(&filter, &["--iface", WAN])?;
    assert_eq!(found.failed(), ["exposure"]);
    found.says("exposure", "fail", "sip-xdp run --iface wan");
    found.says("listeners", "ok", "asterisk (pid ");
    found.says("listeners", "ok", "reachable from the world");
    found.says("policy", "ok", "phones that use TCP or TLS (port 5060) and are not known yet");
    found.says("filter", "warn", "no filter is loaded");
    drop(open);
    assert!(Diagnosis::of(&filter, &["--iface", WAN])?.is_well);
    Ok(())
}

#[test]
fn a_server_on_a_port_that_is_not_listed() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    let _server = server(&lab, &lab.pbx, "freeswitch", PBX_LAN, 5080)?;
    let found = Diagnosis::of(&filter, &["--iface", LAN])?;
    assert_eq!(found.failed(), ["unlisted_ports"]);
    found.says("unlisted_ports", "fail", "freeswitch (pid ");
    found.says("unlisted_ports", "fail", "ports = [5060, 5061, 5080]");
    // Its remedy works.
    filter.configure("ports = [5060, 5061, 5080]\n")?;
    let found = Diagnosis::of(&filter, &["--iface", LAN])?;
    found.says("unlisted_ports", "ok", "");
    found.says("exposure", "fail", "203.0.113.1 (lan)");
    Ok(())
}

#[test]
fn another_product_on_the_interface() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    let foreign = ForeignProgram::attach(&lab.pbx, WAN)?;
    let found = Diagnosis::of(&filter, &["--iface", WAN, "--iface", LAN])?;
    assert_eq!(found.failed(), ["xdp_programs"]);
    assert_eq!(found.check("xdp_programs", Some(WAN))["status"], "fail");
    assert_eq!(found.check("xdp_programs", Some(LAN))["status"], "ok");
    drop(foreign);
    Ok(())
}

#[test]
fn an_mtu_that_is_too_long_for_the_driver() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    lab.pbx.ip(["tuntap", "add", "dev", "tap0", "mode", "tap"])?;
    for name in ["tap0", WAN] {
        lab.pbx.ip(["link", "set", name, "mtu", "9000"])?;
    }
    let found = Diagnosis::of(&filter, &["--iface", "tap0", "--iface", WAN])?;
    println!("{}", found.check("mtu", Some("tap0")));
    assert_eq!(found.check("mtu", Some("tap0"))["status"], "warn");
    // Its driver supports multi-buffer packets.
    assert_eq!(found.check("mtu", Some(WAN))["status"], "ok");
    assert_eq!(found.check("interface", Some("tap0"))["status"], "warn", "it is down");
    Ok(())
}

#[test]
fn an_interface_that_is_not_there() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    let found = Diagnosis::of(&filter, &["--iface", "wna"])?;
    assert_eq!(found.failed(), ["interface"]);
    found.says("interface", "fail", "there is no interface wna; there are: lo, ");
    // And without any candidate interface.
    Diagnosis::of(&filter, &[])?.says("interface", "fail", "no interface has a default route");
    Ok(())
}

#[test]
fn no_bpf_file_system() -> Result<()> {
    const HIDDEN: [&str; 5] =
        ["unshare", "--mount", "sh", "-c", "umount -l /sys/fs/bpf && exec \"$0\" \"$@\""];
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    let arguments = ["doctor", "--json", "--iface", WAN];
    let found = Diagnosis::read(&filter.cli_inside(&HIDDEN, &arguments)?)?;
    found.says("bpffs", "warn", "mount -t bpf bpf /sys/fs/bpf");
    // A service may not mount it.
    let mut without = HIDDEN;
    without[4] = "umount -l /sys/fs/bpf && exec setpriv --bounding-set -sys_admin -- \"$0\" \"$@\"";
    let found = Diagnosis::read(&filter.cli_inside(&without, &arguments)?)?;
    found.says("bpffs", "fail", "nothing can be pinned");
    Ok(())
}

#[test]
fn root_without_its_rights() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    let arguments = ["doctor", "--json", "--iface", WAN];
    let bare = Diagnosis::read(
        &filter.cli_inside(&["setpriv", "--bounding-set", "-all", "--"], &arguments)?,
    )?;
    bare.says("capabilities", "fail", "missing CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON");
    bare.says("bpf", "fail", "refused");
    // Root of a user namespace seems to have all capabilities.
    let inside = Diagnosis::read(
        &filter.cli_inside(&["unshare", "--user", "--map-root-user"], &arguments)?,
    )?;
    inside.says("container", "fail", "root of this user namespace is not root of the host");
    inside.says("bpf", "fail", "refused");
    Ok(())
}

#[test]
fn users_other_than_root_see_the_accessible_part() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let _server = server(&lab, &lab.pbx, "asterisk", PBX_WAN, 5060)?;
    fs::set_permissions(lab.directory(), fs::Permissions::from_mode(0o755))?;
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    let found =
        Diagnosis::read(&filter.cli_inside(&nobody, &["doctor", "--json", "--iface", WAN])?)?;
    assert!(found.is_well, "{:?}", found.failed());
    found.says("capabilities", "warn", "you are not root");
    found.says("bpf", "warn", "run it as root");
    found.says("filter", "warn", "may only be read by root");
    found.says("listeners", "ok", "somebody on UDP 198.51.100.1:5060");
    Ok(())
}

#[test]
fn a_state_directory_that_cannot_be_written() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    let directory = filter.state_directory();
    fs::create_dir_all(&directory)?;
    let directory = directory.to_str().context("a path that is no text")?;
    let script = format!(
        "mount --bind {directory} {directory} && mount -o remount,bind,ro {directory} && \
         exec \"$0\" \"$@\""
    );
    let read_only = ["unshare", "--mount", "sh", "-c", &script];
    let found =
        Diagnosis::read(&filter.cli_inside(&read_only, &["doctor", "--json", "--iface", WAN])?)?;
    assert_eq!(found.failed(), ["state"]);
    found.says("state", "fail", "cannot be written (Read-only file system)");
    Diagnosis::of(&filter, &["--iface", WAN])?.says("state", "ok", "MiB are free");
    Ok(())
}

#[test]
fn feeds_that_cannot_be_reached() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    let reached =
        ListServer::start_in(&lab.pbx, "127.0.0.1:8080".parse()?, Reply::list("192.0.2.1\n"))?;
    let secret = "http://127.0.0.1:8081/list?key=sEcret";
    filter.configure(&format!(
        "[[feeds]]\nname = \"here\"\nurl = \"{}\"\n[[feeds]]\nname = \"away\"\nurl \
         = \"{secret}\"\n",
        reached.url("list")
    ))?;
    let found = Diagnosis::of(&filter, &["--iface", WAN])?;
    assert_eq!(found.failed(), ["feed"]);
    let feeds: Vec<_> = found
        .checks
        .iter()
        .filter(|check| check["check"] == "feed")
        .map(Value::to_string)
        .collect();
    println!("{feeds:?}");
    assert!(feeds[0].contains("here: 127.0.0.1:8080 can be reached"), "{}", feeds[0]);
    assert!(
        feeds[1].contains("away: 127.0.0.1:8081") && !feeds[1].contains("sEcret"),
        "{}",
        feeds[1]
    );
    assert!(reached.requests().is_empty(), "a list was asked for");
    Ok(())
}

#[test]
fn responses_on_unfiltered_interfaces() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    lab.pbx.ip(["route", "add", "default", "via", "203.0.113.254"])?;
    let found = Diagnosis::of(&filter, &["--iface", WAN])?;
    assert_eq!(found.failed(), ["responses"]);
    found.says("responses", "fail", "leaves by lan, which is not filtered");
    Diagnosis::of(&filter, &["--iface", WAN, "--iface", LAN])?.says("responses", "ok", "by lan");
    Ok(())
}

#[test]
fn source_nat_that_hides_sources() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    let proxy = server(&lab, &lab.pbx, "docker-proxy", PBX_WAN, 5060)?;
    let found = Diagnosis::of(&filter, &["--iface", WAN])?;
    found.says("source_nat", "warn", "docker-proxy (pid ");
    drop(proxy);
    Diagnosis::of(&filter, &["--iface", WAN])?.says("source_nat", "ok", "");
    for rule in [
        "add table ip nat",
        "add chain ip nat postrouting { type nat hook postrouting priority 100 ; }",
        "add rule ip nat postrouting ip daddr 203.0.113.10 udp dport 5060 masquerade",
    ] {
        sip_xdp_tests::process::succeed(lab.pbx.command("nft").arg(rule))?;
    }
    Diagnosis::of(&filter, &["--iface", WAN])?.says(
        "source_nat",
        "warn",
        "udp dport 5060 masquerade",
    );
    Ok(())
}

#[test]
fn a_configuration_that_locks_everybody_out() -> Result<()> {
    let lab = Lab::new()?;
    let filter = nothing_loaded(&lab)?;
    filter.configure("polici = \"closed\"\n")?;
    let found = Diagnosis::of(&filter, &["--iface", WAN])?;
    assert_eq!(found.failed(), ["configuration"]);
    found.says("configuration", "fail", "did you mean policy?");
    filter.configure("policy = \"closed\"\n")?;
    let found = Diagnosis::of(&filter, &["--iface", WAN])?;
    assert_eq!(found.failed(), ["policy"]);
    found.says("policy", "fail", "nobody can talk");
    // Users of TCP and TLS are never learnt.
    filter.configure("policy = \"closed\"\n[trust]\nnetworks = [\"192.0.2.0/24\"]\n")?;
    let _server = server(&lab, &lab.pbx, "asterisk", PBX_WAN, 5061)?;
    Diagnosis::of(&filter, &["--iface", WAN])?.says("policy", "warn", "TCP or TLS (port 5061)");
    Ok(())
}

#[test]
fn a_known_phone_that_is_at_its_limit_is_proposed() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let configuration =
        "[limits.good]\nrequests = { count = 5, per = \"1s\", burst = 5 }\n".to_owned();
    let options = FilterOptions { configuration, ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    let pbx = lab.directory().join("pbx");
    fs::create_dir_all(&pbx)?;
    fs::write(
        pbx.join("pjsip.conf"),
        "[carrier]\ntype=identify\nmatch=192.0.2.0/28\nmatch=0.0.0.0/0\n",
    )?;
    let pbx = pbx.to_str().context("a path that is no text")?;
    let proposed = || -> Result<Vec<String>> {
        let found = filter.json(&["trust", "suggest", "--pbx-dir", pbx])?;
        assert_eq!(found["refused"][0]["who"], "0.0.0.0/0", "{found}");
        let who = found["proposals"].as_array().context("no proposals")?.iter();
        Ok(who.filter_map(|one| one["who"].as_str().map(str::to_owned)).collect())
    };
    assert_eq!(proposed()?, ["192.0.2.0/28"]);
    let phone = Phone::new(&lab.phone, lab.directory());
    wait_until("the phone is known good", SOON, || {
        phone.register()?;
        Ok(filter.json(&["stats"])?["sources"]["good"] == 1)
    })?;
    let (from, to) = (SocketAddr::from((PHONE, 5071)), SocketAddr::from((PBX_LAN, 5060)));
    let flood = Stream::start(stream::socket(&lab.phone, from, to)?, 100, move |number| {
        let sequence = u32::try_from(number).unwrap_or(u32::MAX);
        sip::Request { method: "OPTIONS", user: "ping", call_id: "flood", sequence, from, to }
            .bytes()
    })?;
    wait_until("it is proposed", SOON, || Ok(proposed()? == ["192.0.2.0/28", "203.0.113.10"]))?;
    // Between two of its packets one more may be allowed.
    wait_until("it is proposed in words", SOON, || {
        let text = filter.succeed(&["trust", "suggest", "--pbx-dir", pbx])?;
        Ok(text.contains("sip-xdp trust add 203.0.113.10 --reason 'known good, but at its limit"))
    })?;
    flood.stop()?;
    // Trusted addresses are not proposed.
    filter.succeed(&["trust", "add", "203.0.113.10"])?;
    filter.succeed(&["trust", "add", "192.0.2.0/24"])?;
    assert!(proposed()?.is_empty());
    Ok(())
}
