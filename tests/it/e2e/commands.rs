//! Commands: bad input changes nothing and gives a one-line error, instances do not disturb each
//! other, and `unload` leaves nothing.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sip_xdp_tests::foreign::ForeignProgram;
use sip_xdp_tests::topology::{ATTACKER, LAN, PBX_WAN, WAN};
use sip_xdp_tests::{Capture, Filter, FilterOptions, Lab, stream, wait_until};

/// The contents of both lists as a set, without changing values.
fn lists(filter: &Filter<'_>) -> Result<BTreeSet<String>> {
    let mut entries = BTreeSet::new();
    for list in ["block", "trust"] {
        let listed = filter.json(&[list, "list"])?;
        for entry in
            listed.as_array().with_context(|| format!("`{list} list` is no array: {listed}"))?
        {
            let field = |name: &str| entry.get(name).map(Value::to_string).unwrap_or_default();
            entries.insert(format!(
                "{list} {} {} {}",
                field("network"),
                field("owner"),
                field("expires")
            ));
        }
    }
    Ok(entries)
}

/// Runs a command that must fail with status 1, one line on standard error and no effect.
fn is_refused(filter: &Filter<'_>, arguments: &[&str]) -> Result<()> {
    let before = lists(filter)?;
    let output = filter.cli(arguments)?;
    let (said, command) = (String::from_utf8_lossy(&output.stderr), arguments.join(" "));
    println!("{command:45} {}", said.trim_end());
    assert_eq!(output.status.code(), Some(1), "`{command}`: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "`{command}` must say why in one line: {said}");
    assert!(
        output.stdout.is_empty(),
        "`{command}` printed {}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(lists(filter)?, before, "`{command}` changed something");
    Ok(())
}

#[test]
fn bad_input_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    lab.pbx.ip(["route", "add", "default", "via", "198.51.100.254"])?;
    lab.pbx.ip(["-6", "route", "add", "default", "via", "2001:db8:66::fe"])?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["trust", "add", "192.0.2.0/28", "--reason", "the office"])?;
    filter.succeed(&["block", "add", "192.0.2.128/25"])?;

    let malformed = [
        "nonsense",
        "192.0.2",
        "192.0.2.256",
        "192.0.2.0/33",
        "192.0.2.0/-1",
        "192.0.2.0/",
        "192.0.2.77/24",
        "10.0.0.1/8",
        "0.0.0.0/0",
        "::/0",
        "2001:db8::1/32",
        "2001:db8::/129",
        "2001:db8:::1",
        "",
    ];
    for list in ["block", "trust"] {
        for network in malformed {
            is_refused(&filter, &[list, "add", network])?;
        }
    }
    let protected = [
        "198.51.100.1",
        "203.0.113.1",
        "203.0.113.0/24",
        "127.0.0.1",
        "2001:db8:66::1",
        "2001:db8:66::/64",
        "198.51.100.254",
        "2001:db8:66::fe",
        "192.0.2.5",
        "192.0.2.0/28",
        "192.0.2.0/24",
    ];
    for network in protected {
        is_refused(&filter, &["block", "add", network])?;
    }
    for list in ["block", "trust"] {
        is_refused(&filter, &[list, "del", "192.0.2.99"])?;
        is_refused(&filter, &[list, "del", "nonsense"])?;
    }
    for ttl in ["soon", "0s", "-1h", "1"] {
        is_refused(&filter, &["block", "add", "192.0.2.99", &format!("--ttl={ttl}")])?;
    }
    // With --force it is accepted.
    filter.succeed(&["block", "add", "192.0.2.5", "--force"])?;
    assert_eq!(filter.entries("192.0.2.5")?.len(), 1);
    filter.succeed(&["block", "del", "192.0.2.5"])?;
    assert!(filter.entries("192.0.2.5")?.is_empty());
    Ok(())
}

#[test]
fn bad_usage_and_failure_have_different_statuses() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let before = lists(&filter)?;
    for arguments in
        [&["block", "add"][..], &["block", "add", "192.0.2.1", "--nonsense"], &["nonsense"]]
    {
        let output = filter.cli(arguments)?;
        assert_eq!(output.status.code(), Some(2), "`{}`", arguments.join(" "));
    }
    assert_eq!(lists(&filter)?, before);
    Ok(())
}

#[test]
fn commands_say_when_there_is_no_daemon() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["block", "add", "192.0.2.1"])?;
    filter.kill9()?;
    for arguments in [
        &["block", "add", "192.0.2.2"][..],
        &["trust", "add", "192.0.2.2"],
        &["block", "del", "192.0.2.1"],
    ] {
        is_refused(&filter, arguments)?;
    }
    for arguments in [&["status"][..], &["stats"], &["block", "list"]] {
        filter.json(arguments)?;
        filter.succeed(arguments)?;
    }
    Ok(())
}

#[test]
fn a_full_list_refuses_and_keeps_what_it_has() -> Result<()> {
    let lab = Lab::new()?;
    let configuration = "[capacity]\nnetworks = 16\n".to_owned();
    let filter = Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )?;
    let mut added = 0;
    for host in 1..=40 {
        if !filter.cli(&["block", "add", &format!("192.0.2.{host}")])?.status.success() {
            break;
        }
        added += 1;
    }
    println!("{added} entries fit");
    assert!((16..40).contains(&added));
    is_refused(&filter, &["block", "add", "192.0.2.200"])?;
    filter.succeed(&["block", "del", "192.0.2.1"])?;
    filter.succeed(&["block", "add", "192.0.2.200"])?;
    is_refused(&filter, &["block", "add", "192.0.2.201"])
}

/// Limits of the group's members, who may open the socket; what root can do only by force; and
/// texts and times out of bounds, also beyond what the command line sends.
#[test]
fn commands_are_bounded() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let text = "x".repeat(513);
    for list in ["block", "trust"] {
        for network in ["0.0.0.0/1", "224.0.0.0/7", "2000::/3", "3000::/18"] {
            is_refused(&filter, &[list, "add", network])?;
        }
        is_refused(&filter, &[list, "add", "192.0.2.7", "--reason", &text])?;
        filter.succeed(&[list, "add", "192.0.2.7", "--reason", &text[1..], "--force"])?;
        is_refused(&filter, &[list, "add", "192.0.2.7", "--ttl", "100000d"])?;
    }
    // A request as another program could send it, beyond the command line's checks.
    let add = |network: &str, ttl: u64| {
        json!({
            "command": "add", "list": "trust", "network": network, "ttl": ttl,
            "reason": "", "force": true, "operator": null,
        })
    };
    for ttl in [0, u64::MAX] {
        let error = format!("{:#}", filter.call(&add("192.0.2.8", ttl)).unwrap_err());
        assert!(error.contains("a ttl of"), "{error}");
    }
    let import = json!({
        "command": "import", "list": "trust", "networks": ["0.0.0.0/1", "192.0.2.9/32"],
        "ttl": null, "reason": "", "force": false, "operator": null
    });
    let answer = filter.call(&import)?;
    assert_eq!(
        (&answer["added"], &answer["refused"][0]["what"]),
        (&1.into(), &"0.0.0.0/1".into()),
        "{answer}"
    );

    // Another user who may open the socket. The test's directories belong to root, hence the one
    // capability.
    let dac = ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override", "--"];
    let member =
        [&["setpriv", "--reuid", "65533", "--regid", "65534", "--clear-groups"][..], &dac].concat();
    let as_member = |arguments: &[&str]| filter.cli_inside(&member, arguments);
    let output = as_member(&["trust", "add", "128.0.0.0/1", "--force"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    println!("a member: {}", said.trim_end());
    assert!(!output.status.success() && said.contains("wider than /8"), "{said}");
    let output = as_member(&["trust", "add", "203.0.113.0/24"])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    filter.succeed(&["trust", "add", "128.0.0.0/1", "--force"])?;
    Ok(())
}

#[test]
fn another_product_on_the_interface_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let foreign = ForeignProgram::attach(&lab.pbx, LAN)?;
    let mut filter = Filter::prepare(&lab.pbx, lab.directory(), FilterOptions::default())?;
    let (status, errors) = filter.launch_in_vain()?;
    println!("another program on {LAN}: {status}: {errors:?}");
    assert_eq!(status.code(), Some(1));
    let complaint = errors.last().context("it said nothing")?;
    assert!(complaint.contains(LAN), "the interface is not named: {complaint}");
    // All or nothing: the free interface is not attached either.
    assert!(!filter.pins().exists(), "the attempt left pins");
    assert!(!lab.pbx.ip(["link", "show", WAN])?.contains("xdp"));
    drop(foreign);
    wait_until("the interface is free", Duration::from_secs(2), || {
        Ok(!lab.pbx.ip(["link", "show", LAN])?.contains("xdp"))
    })?;
    filter.launch()
}

#[test]
fn a_second_instance_on_the_interface_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let mut second = Filter::prepare(&lab.pbx, lab.directory(), FilterOptions::default())?;
    let (status, errors) = second.launch_in_vain()?;
    println!("a second filter on the same interfaces: {status}: {errors:?}");
    assert_eq!(status.code(), Some(1));
    let complaint = errors.last().context("it said nothing")?;
    assert!(complaint.contains(WAN), "the interface is not named: {complaint}");
    assert!(!second.pins().exists(), "the attempt left pins");
    // The first instance is not affected.
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
    sleep(Duration::from_secs(1));
    let sent = stream.stop()?;
    sleep(Duration::from_millis(200));
    assert_eq!(filter.packets(WAN, "drop.blocked")?, sent);
    Ok(())
}

/// A failure at one interface does not affect those that an earlier daemon has attached.
#[test]
fn a_failed_reload_or_start_keeps_what_filters() -> Result<()> {
    let lab = Lab::new()?;
    let none = || FilterOptions { interfaces: Vec::new(), ..FilterOptions::default() };
    let mut filter = Filter::prepare(&lab.pbx, lab.directory(), none())?;
    filter.configure(&format!("interfaces = [\"{WAN}\"]\n"))?;
    filter.launch()?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    let on_lan = FilterOptions { interfaces: vec![LAN.to_owned()], ..FilterOptions::default() };
    let mut other = Filter::start_with(&lab.pbx, lab.directory(), on_lan)?;

    let seen = Capture::start(&lab.pbx, WAN, "udp and dst port 5060", lab.directory())?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    for interfaces in [[WAN, LAN], [LAN, WAN]] {
        filter.configure(&format!("interfaces = {interfaces:?}\n"))?;
        is_refused(&filter, &["reload"])?;
        filter.succeed(&["status", "--check"])?;
    }
    filter.stop()?;
    let (status, errors) = filter.launch_in_vain()?;
    println!("a start with an interface that is taken: {status}: {errors:?}");
    assert_eq!(status.code(), Some(1));
    filter.succeed(&["status", "--check"])?;

    // Once it is free, the next start attaches it as well.
    other.unload()?;
    filter.launch()?;
    filter.succeed(&["status", "--check"])?;
    let sent = stream.stop()?;
    sleep(Duration::from_millis(200));
    let passed = seen.stop()?.len();
    println!("{sent} packets of a blocked source meanwhile, {passed} passed");
    assert_eq!(passed, 0);
    Ok(())
}

#[test]
fn two_instances_run_side_by_side() -> Result<()> {
    let lab = Lab::new()?;
    let on = |interface: &str| FilterOptions {
        interfaces: vec![interface.to_owned()],
        ..FilterOptions::default()
    };
    let mut wan = Filter::start_with(&lab.pbx, lab.directory(), on(WAN))?;
    let lan = Filter::start_with(&lab.pbx, lab.directory(), on(LAN))?;
    lan.succeed(&["block", "add", &ATTACKER.to_string()])?;
    assert!(
        wan.entries(&ATTACKER.to_string())?.is_empty(),
        "one instance's block is in the other's list"
    );

    let seen = Capture::start(&lab.pbx, WAN, "udp and dst port 5060", lab.directory())?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 20)?;
    sleep(Duration::from_secs(1));
    let sent = stream.stop()?;
    let seen = seen.stop()?.len() as u64;
    println!("two instances: {sent} sent to the one that does not block, {seen} passed");
    assert_eq!(seen, sent);

    wan.unload()?;
    assert!(!wan.pins().exists() && lan.pins().exists());
    assert!(!lab.pbx.ip(["link", "show", WAN])?.contains("xdp"));
    assert!(lab.pbx.ip(["link", "show", LAN])?.contains("xdp"));
    lan.json(&["status"])?;
    Ok(())
}

#[test]
fn unload_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    assert!(lab.pbx.ip(["link", "show"])?.contains("xdp"));
    assert!(filter.pins().exists());
    filter.unload()?;
    assert!(!lab.pbx.ip(["link", "show"])?.contains("xdp"));
    assert!(!filter.pins().exists());
    // A second time is harmless, and a new start begins fresh.
    let again = filter.cli(&["unload"])?;
    println!(
        "unload with nothing loaded: {} {}",
        again.status,
        String::from_utf8_lossy(&again.stderr).trim_end()
    );
    filter.launch()?;
    // Without a daemon as well.
    filter.kill9()?;
    filter.succeed(&["unload"])?;
    assert!(!filter.pins().exists());
    Ok(())
}

#[test]
fn stopping_the_daemon_leaves_the_filter_enforcing() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    filter.stop()?;
    let seen = Capture::start(&lab.pbx, WAN, "udp and dst port 5060", lab.directory())?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 200)?;
    sleep(Duration::from_secs(1));
    let sent = stream.stop()?;
    let seen = seen.stop()?.len();
    println!("daemon stopped: {sent} sent, {seen} passed");
    assert_eq!((seen, filter.packets(WAN, "drop.blocked")?), (0, sent));
    Ok(())
}
