//! Privileges of the running daemon: capabilities of each thread, and of started programs. Needs
//! root and Linux 6.6 or later.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context, Result};
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, ListServer, Reply, stream, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// Bits, by their numbers in include/uapi/linux/capability.h.
const NET_ADMIN: u64 = 1 << 12;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// The capability sets of a thread (capabilities(7)), and whether it can gain any.
#[derive(Debug, PartialEq, Eq)]
struct Rights {
    inheritable: u64,
    permitted: u64,
    effective: u64,
    bounding: u64,
    ambient: u64,
    can_gain: bool,
}

impl Rights {
    fn read(status: &str) -> Result<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).with_context(|| format!("no {name} in {status}"))
        };
        let set = |name: &str| {
            u64::from_str_radix(field(name)?, 16).with_context(|| format!("{name} is no number"))
        };
        Ok(Self {
            inheritable: set("CapInh")?,
            permitted: set("CapPrm")?,
            effective: set("CapEff")?,
            bounding: set("CapBnd")?,
            ambient: set("CapAmb")?,
            can_gain: field("NoNewPrivs")? == "0",
        })
    }

    /// The rights of a thread that keeps exactly these.
    fn only(kept: u64) -> Self {
        Self {
            inheritable: 0,
            permitted: kept,
            effective: kept,
            bounding: kept,
            ambient: 0,
            can_gain: false,
        }
    }
}

/// The rights of each thread of a process, by the thread's name.
fn threads(filter: &Filter<'_>) -> Result<BTreeMap<String, Rights>> {
    let tasks = format!("/proc/{}/task", filter.pid().context("no daemon")?);
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(tasks)? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let name =
            status.lines().next().and_then(|line| line.strip_prefix("Name:")).unwrap_or_default();
        threads.insert(name.trim().to_owned(), Rights::read(&status)?);
    }
    Ok(threads)
}

#[test]
fn a_daemon_keeps_what_it_needs_and_what_it_starts_gets_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let lists =
        ListServer::start_in(&lab.pbx, "127.0.0.1:8001".parse()?, Reply::list("192.0.2.1\n"))?;
    let (told, program) = (lab.directory().join("told"), lab.directory().join("page"));
    fs::write(
        &program,
        format!("#!/bin/sh\ncat /proc/self/status > {0}.new && mv {0}.new {0}\n", told.display()),
    )?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let configuration = format!(
        "[notify]\ncommand = [\"{}\"]\nevents = [\"ban\"]\n[[feeds]]\nname = \"public\"\nurl \
         = \"{}\"\n",
        program.display(),
        lists.url("list.txt")
    );
    let options = FilterOptions { configuration, ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    filter.succeed(&["feed", "sync", "public"])?;

    let found = threads(&filter)?;
    println!("{found:#x?}");
    assert_eq!(found.get("sip-xdp"), Some(&Rights::only(NET_ADMIN | BPF | PERFMON)));
    assert_eq!(found.get("metrics"), Some(&Rights::only(BPF)));
    for name in ["feed", "notify", "store"] {
        assert_eq!(found.get(name), Some(&Rights::only(0)), "{name}");
    }
    let allowed = NET_ADMIN | BPF | PERFMON;
    for (name, rights) in &found {
        let all = rights.permitted
            | rights.effective
            | rights.inheritable
            | rights.ambient
            | rights.bounding;
        assert!(all & !allowed == 0 && !rights.can_gain, "{name}: {rights:x?}");
    }

    let flood = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 1000)?;
    wait_until("a ban is told", SOON, || Ok(told.exists()))?;
    flood.stop()?;
    let started = Rights::read(&fs::read_to_string(&told)?)?;
    assert_eq!(started, Rights::only(0), "what a notified program may do");

    // The rest suffices: for another configuration, another interface, and for detaching.
    filter.configure("[limits.unknown]\nrequests = { count = 7, per = \"10s\" }\n")?;
    filter.succeed(&["reload"])?;
    lab.pbx.ip(["link", "set", WAN, "name", "away"])?;
    let interface = |name: &str| -> Result<bool> {
        let status = filter.json(&["status"])?;
        let interfaces = status["interfaces"].as_array().context("no interfaces")?;
        Ok(interfaces.iter().any(|found| found["interface"] == name && found["attached"] == true))
    };
    lab.pbx.ip(["link", "add", WAN, "type", "veth", "peer", "name", "peer"])?;
    lab.pbx.ip(["link", "set", WAN, "up"])?;
    wait_until("the new interface is filtered", SOON, || {
        Ok(filter.log().iter().any(|line| line.text.contains("interface wan kind=attached"))
            && interface(WAN)?)
    })?;
    filter.succeed(&["unload"])?;
    Ok(())
}
