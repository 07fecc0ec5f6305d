//! Attachment: refusals carry their reason, blind programs are noticed, and switched-off offloads
//! are restored. Needs root.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp::daemon::Overrides;
use sip_xdp_tests::process::succeed;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, stream, wait_until};

use crate::e2e::egress::with_daemon;

const SOON: Duration = Duration::from_secs(15);

fn prepare<'a>(lab: &'a Lab, interface: &str, configuration: &str) -> Result<Filter<'a>> {
    let options = FilterOptions { interfaces: Vec::new(), ..FilterOptions::default() };
    let filter = Filter::prepare(&lab.pbx, lab.directory(), options)?;
    filter.configure(&format!("interfaces = [\"{interface}\"]\n{configuration}"))?;
    Ok(filter)
}

/// What `run` prints when it refuses.
fn refusal(filter: &mut Filter<'_>) -> Result<String> {
    let (status, errors) = filter.launch_in_vain()?;
    println!("{errors:?}");
    assert_eq!(status.code(), Some(1));
    Ok(errors.join("\n"))
}

/// The driver's extended acknowledgement, from netlink, and the remedy.
#[test]
fn a_refusal_says_why_and_what_to_do() -> Result<()> {
    let lab = Lab::new()?;
    let add = "link add q0 numrxqueues 1 numtxqueues 1 type veth peer name q1 numrxqueues 4 \
               numtxqueues 4";
    lab.pbx.ip(add.split(' '))?;
    for name in ["q0", "q1"] {
        lab.pbx.ip(["link", "set", name, "up"])?;
    }
    let mut filter = prepare(&lab, "q0", "mode = \"native\"\n")?;
    let said = refusal(&mut filter)?;
    assert!(said.contains("veth: ") && said.contains("number of rx queues"), "{said}");
    assert!(
        said.contains("`ethtool -L q0 rx N`") && said.contains("--mode auto or generic"),
        "{said}"
    );
    let links = lab.pbx.ip(["-details", "link", "show", "dev", "q0"])?;
    assert!(!links.contains("prog/xdp"), "asking again left a program: {links}");

    // The same message when generic mode takes over, in the log and in `status`.
    filter.configure("interfaces = [\"q0\"]\n")?;
    filter.launch()?;
    let status = filter.json(&["status"])?;
    assert_eq!(status["interfaces"][0]["mode"], "generic");
    let warnings = status["warnings"].to_string();
    assert!(
        warnings.contains("number of rx queues") && warnings.contains("ethtool -L q0"),
        "{warnings}"
    );
    assert!(filter.log().iter().any(|line| line.text.contains("number of rx queues")));
    filter.unload()
}

#[test]
fn no_update_is_proposed_for_drivers_without_support() -> Result<()> {
    let lab = Lab::new()?;
    lab.pbx.ip(["link", "add", "br0", "type", "bridge"])?;
    lab.pbx.ip(["link", "set", "br0", "up"])?;
    let mut filter = prepare(&lab, "br0", "mode = \"native\"\n")?;
    let said = refusal(&mut filter)?;
    assert!(
        said.contains("not supported by the driver [bridge]")
            && said.contains("filter on the ports"),
        "{said}"
    );
    assert!(!said.contains("update the driver"), "{said}");
    Ok(())
}

/// Whether packets of the blocked source are dropped.
fn drops(lab: &Lab, filter: &Filter<'_>) -> Result<bool> {
    let before = filter.packets(WAN, "drop.blocked")?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
    std::thread::sleep(Duration::from_millis(300));
    stream.stop()?;
    Ok(filter.packets(WAN, "drop.blocked")? > before)
}

fn mode(filter: &Filter<'_>) -> Result<String> {
    let status = filter.json(&["status"])?;
    Ok(status["interfaces"][0]["mode"].as_str().context("no mode")?.to_owned())
}

fn check(filter: &Filter<'_>, name: &str) -> Result<Value> {
    let output = filter.cli(&["doctor", "--json"])?;
    let json: Value = serde_json::from_slice(&output.stdout)?;
    let checks = json["checks"].as_array().context("no checks")?;
    Ok(checks
        .iter()
        .find(|check| check["check"] == name)
        .with_context(|| format!("no {name}"))?
        .clone())
}

/// A driver that accepts the program and never calls it. No driver here does, so the daemon is made
/// to count nothing.
#[test]
fn generic_mode_takes_over_from_a_program_that_sees_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let filter = prepare(&lab, WAN, "")?;
    with_daemon(&lab, &filter, Overrides { blind: true, ..Overrides::default() }, || {
        filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
        assert_eq!(mode(&filter)?, "native");
        let mut watcher = filter.start_command(&["watch", "--json"])?;
        let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
        wait_until("generic mode takes over", SOON, || Ok(mode(&filter)? == "generic"))?;
        let line = watcher.wait_line(SOON, |line| line.text.contains("\"blind\""))?;
        println!("{}", line.text);
        assert!(
            line.text.contains("\"interface\":\"wan\"") && line.text.contains("action=generic"),
            "{}",
            line.text
        );
        // It protects and reports it; generic mode stays.
        let status = filter.json(&["status"])?;
        println!("{} {}", status["daemon"]["blind"], status["warnings"]);
        assert_eq!(status["daemon"]["blind"][0]["action"], "generic");
        assert!(status["warnings"].to_string().contains("generic mode has taken over"), "{status}");
        assert!(filter.cli(&["status", "--check"])?.status.success());
        let sight = check(&filter, "sight")?;
        assert_eq!(sight["status"], "warn", "{sight}");
        lab.pbx.ip(["link", "set", WAN, "down"])?;
        lab.pbx.ip(["link", "set", WAN, "up"])?;
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(mode(&filter)?, "generic");
        assert_eq!(filter.json(&["status"])?["daemon"]["blind"].as_array().map(Vec::len), Some(1));
        stream.stop()?;
        assert!(drops(&lab, &filter)?);
        Ok(())
    })?;
    // The next daemon knows it, and so does doctor.
    with_daemon(&lab, &filter, Overrides::default(), || {
        assert_eq!(mode(&filter)?, "generic");
        let status = filter.json(&["status"])?;
        assert_eq!(status["daemon"]["blind"][0]["action"], "generic", "{status}");
        let driver = check(&filter, "driver")?;
        assert!(driver["detail"].to_string().contains("showed it no packets"), "{driver}");
        filter.succeed(&["unload"]).map(drop_text)
    })?;
    // Nothing of it outlives `unload`.
    with_daemon(&lab, &filter, Overrides::default(), || {
        assert_eq!(mode(&filter)?, "native");
        assert_eq!(filter.json(&["status"])?["daemon"]["blind"], Value::Array(Vec::new()));
        filter.succeed(&["unload"]).map(drop_text)
    })
}

fn drop_text(_: String) {}

#[test]
fn where_only_native_mode_will_do_it_is_an_error() -> Result<()> {
    let lab = Lab::new()?;
    let filter = prepare(&lab, WAN, "mode = \"native\"\n")?;
    with_daemon(&lab, &filter, Overrides { blind: true, ..Overrides::default() }, || {
        assert!(filter.cli(&["status", "--check"])?.status.success());
        let _stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
        wait_until("it is noticed", SOON, || {
            Ok(!filter.cli(&["status", "--check"])?.status.success())
        })?;
        let status = filter.json(&["status"])?;
        println!("{} {}", status["daemon"]["blind"], status["warnings"]);
        assert_eq!(
            (&status["enforcing"], &status["daemon"]["blind"][0]["action"]),
            (&false.into(), &Value::Null)
        );
        assert!(status["warnings"].to_string().contains("wan is blind"), "{status}");
        let sight = check(&filter, "sight")?;
        assert_eq!(sight["status"], "fail", "{sight}");
        assert_eq!(mode(&filter)?, "native");
        filter.succeed(&["unload"]).map(drop_text)
    })
}

/// Ordinary drivers keep their program over a reset, and a single seen packet means that it is not
/// blind.
#[test]
fn a_program_that_sees_is_left_alone() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    let program = |filter: &Filter<'_>| -> Result<String> {
        let links = lab.pbx.ip(["-details", "link", "show", "dev", WAN])?;
        assert_eq!(mode(filter)?, "native");
        links
            .lines()
            .find_map(|line| Some(line.split_once("prog/xdp id ")?.1.to_owned()))
            .context("no program")
    };
    let before = program(&filter)?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 200)?;
    lab.pbx.ip(["link", "set", WAN, "mtu", "1400"])?;
    lab.pbx.ip(["link", "set", WAN, "down"])?;
    lab.pbx.ip(["link", "set", WAN, "up"])?;
    std::thread::sleep(Duration::from_secs(5));
    stream.stop()?;
    assert!(drops(&lab, &filter)?);
    assert_eq!(program(&filter)?, before);
    let status = filter.json(&["status"])?;
    assert_eq!(status["daemon"]["blind"], Value::Array(Vec::new()), "{status}");
    assert!(
        !filter
            .log()
            .iter()
            .any(|line| line.text.contains("kind=blind") || line.text.contains("kind=swapped"))
    );
    filter.unload()
}

/// Virtual interfaces have no offloads that a program switches off; so the record is made by hand.
#[test]
fn offloads_are_put_back_or_named() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let wan = lab.pbx.ip(["-o", "link", "show", "dev", WAN])?;
    let index = wan.split(':').next().context("no index")?;
    let switch = |value: &str| {
        let mut command = lab.pbx.command("ethtool");
        succeed(command.args(["-K", WAN, "tx-checksum-ip-generic", value]))
    };
    let is_on = || -> Result<bool> {
        let mut command = lab.pbx.command("ethtool");
        Ok(succeed(command.args(["-k", WAN]))?.contains("tx-checksum-ip-generic: on"))
    };
    switch("off")?;
    let noted = filter.pins().join("offloads").join(index).join(index);
    for name in ["tx-checksum-ip-generic", "loopback"] {
        fs::create_dir_all(noted.join(name))?;
    }
    let answer = filter.json(&["unload"])?;
    println!("{answer}");
    let rows = answer["offloads"].as_array().context("no offloads")?;
    let errors: BTreeMap<_, _> =
        rows.iter().map(|row| (row["offload"].as_str(), row["error"].as_str())).collect();
    assert_eq!(errors.get(&Some("tx-checksum-ip-generic")), Some(&None), "{answer}");
    assert!(errors.get(&Some("loopback")).is_some_and(Option::is_some), "{answer}");
    assert!(is_on()?);
    assert!(!filter.pins().exists());
    Ok(())
}
