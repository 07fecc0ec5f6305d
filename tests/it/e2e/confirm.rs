//! `run --confirm`: an unconfirmed filter is detached on every exit path; and drops nothing after
//! the deadline although its daemon is dead.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sip_xdp_tests::topology::{ATTACKER, LAN, PBX_WAN, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, stream, wait_until};

fn start<'a>(lab: &'a Lab, within: &str) -> Result<Filter<'a>> {
    let arguments = vec!["--confirm".to_owned(), within.to_owned()];
    let filter = Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { arguments, ..FilterOptions::default() },
    )?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    Ok(filter)
}

fn is_enforcing(filter: &Filter<'_>) -> Result<bool> {
    Ok(filter.cli(&["status", "--check"])?.status.success())
}

/// Waits until the daemon reports that it has detached.
fn detached_in_time(filter: &Filter<'_>) -> Result<()> {
    let is_said = || filter.log().iter().any(|line| line.text.contains("unconfirmed after="));
    wait_until("it is detached", Duration::from_secs(60), || Ok(is_said())).map(drop)
}

/// The fate of the blocked source's packets.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Dropped,
    Spared,
    /// No program is attached.
    Unseen,
}

fn fate(lab: &Lab, filter: &Filter<'_>) -> Result<Fate> {
    let counted = || -> Result<(u64, u64)> {
        Ok((filter.packets(WAN, "drop.blocked")?, filter.packets(WAN, "would_drop.blocked")?))
    };
    let before = counted()?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
    sleep(Duration::from_millis(300));
    let sent = stream.stop()?;
    sleep(Duration::from_millis(200));
    let (dropped, spared) = counted()?;
    match (dropped - before.0, spared - before.1) {
        (0, 0) => Ok(Fate::Unseen),
        (dropped, 0) if dropped == sent => Ok(Fate::Dropped),
        (0, spared) if spared == sent => Ok(Fate::Spared),
        other => bail!("of {sent} packets {other:?} were dropped and spared"),
    }
}

/// Checks that nothing of ours is attached, while the tables exist.
fn is_detached(lab: &Lab, filter: &Filter<'_>) -> Result<()> {
    assert!(!is_enforcing(filter)?);
    let links = lab.pbx.ip(["-details", "link"])?;
    assert!(!links.contains("prog/xdp"), "{links}");
    for directory in ["links", "egress", "programs"] {
        let pinned = std::fs::read_dir(filter.pins().join(directory))?.count();
        assert_eq!(pinned, 0, "{directory}");
    }
    assert_eq!(fate(lab, filter)?, Fate::Unseen);
    Ok(())
}

#[test]
fn nobody_confirms() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = start(&lab, "15s")?;
    let ready = filter
        .log()
        .into_iter()
        .find(|line| line.text.starts_with("ready"))
        .context("no ready line")?;
    println!("{}", ready.text);
    assert!(ready.text.contains("enforcing") && ready.text.contains("`sip-xdp confirm`"));
    assert_eq!(filter.json(&["status"])?["daemon"]["confirm"]["pending"], true);
    assert_eq!(fate(&lab, &filter)?, Fate::Dropped);
    // A reload neither confirms nor restarts the time.
    let until = filter.json(&["status"])?["daemon"]["confirm"]["until"].clone();
    filter.configure("[limits.unknown]\nrequests = { count = 40, per = \"10s\" }\n")?;
    filter.succeed(&["reload"])?;
    // The time is converted by two clocks that are not read at the same instant; restarted, it
    // would be later by at least half a second.
    let close = |a: &serde_json::Value, b: &serde_json::Value| -> Result<bool> {
        let time = |value: &serde_json::Value| -> Result<jiff::Timestamp> {
            Ok(value.as_str().context("no time")?.parse()?)
        };
        Ok(time(a)?.duration_since(time(b)?).abs() < jiff::SignedDuration::from_millis(300))
    };
    assert!(close(&filter.json(&["status"])?["daemon"]["confirm"]["until"], &until)?);

    // A broken file does not keep it enforcing.
    filter.configure("nonsense = 1\n")?;
    detached_in_time(&filter)?;
    assert!(
        filter.log().iter().any(|line| line.text.contains("unconfirmed after=15s detached=true"))
    );
    let status = filter.json(&["status"])?;
    println!("{} {}", status["daemon"]["confirm"], status["warnings"]);
    let confirm = &status["daemon"]["confirm"];
    assert_eq!((&confirm["pending"], &confirm["detached"]), (&false.into(), &true.into()));
    assert_eq!(status["warnings"].as_array().map(Vec::len), Some(1), "it is said once: {status}");
    is_detached(&lab, &filter)?;
    assert!(!filter.cli(&["confirm"])?.status.success(), "the file is broken");
    is_detached(&lab, &filter)?;

    // It stays detached over a reload and link events, until a confirmation.
    filter.configure("")?;
    filter.succeed(&["reload"])?;
    lab.pbx.ip(["link", "set", LAN, "down"])?;
    lab.pbx.ip(["link", "set", LAN, "up"])?;
    is_detached(&lab, &filter)?;
    let confirmed = filter.json(&["confirm"])?;
    println!("{confirmed}");
    assert_eq!((&confirmed["confirmed"], &confirmed["late"]), (&true.into(), &true.into()));
    assert!(is_enforcing(&filter)? && fate(&lab, &filter)? == Fate::Dropped);
    assert!(filter.json(&["status"])?["daemon"]["confirm"].is_null());
    filter.unload()
}

/// The cause of a lockout may have removed the default route as well, by which the interfaces were
/// found.
#[test]
fn it_steps_back_without_a_default_route() -> Result<()> {
    let lab = Lab::new()?;
    lab.pbx.ip(["route", "add", "default", "via", "198.51.100.254"])?;
    let arguments = vec!["--confirm".to_owned(), "10s".to_owned()];
    let options = FilterOptions { arguments, interfaces: Vec::new(), ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    lab.pbx.ip(["route", "del", "default"])?;
    assert!(is_enforcing(&filter)?);
    detached_in_time(&filter)?;
    is_detached(&lab, &filter)
}

#[test]
fn somebody_confirms() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = start(&lab, "8s")?;
    println!("{}", filter.succeed(&["confirm"])?.trim_end());
    let again = filter.cli(&["confirm"])?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        again.status.code() == Some(1) && said.contains("nothing waits to be confirmed"),
        "{said}"
    );
    sleep(Duration::from_secs(9));
    assert!(is_enforcing(&filter)? && fate(&lab, &filter)? == Fate::Dropped);
    // After a confirmation it stays, whatever happens to the daemon.
    filter.kill9()?;
    assert_eq!(fate(&lab, &filter)?, Fate::Dropped);
    Ok(())
}

#[test]
fn a_daemon_that_is_stopped_before_leaves_nothing_attached() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = start(&lab, "60s")?;
    filter.stop()?;
    is_detached(&lab, &filter)?;
    // That trial is over: the next start begins a new one.
    filter.launch()?;
    assert_eq!(filter.json(&["status"])?["daemon"]["confirm"]["pending"], true);
    assert_eq!(fate(&lab, &filter)?, Fate::Dropped);
    filter.unload()
}

/// Without a daemon to detach, the programs themselves drop nothing, which `status` reports; the
/// next start detaches and waits.
#[test]
fn a_daemon_that_is_killed_drops_nothing_past_its_time() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = start(&lab, "15s")?;
    assert_eq!(fate(&lab, &filter)?, Fate::Dropped);
    filter.kill9()?;
    wait_until("the time is over", Duration::from_secs(30), || Ok(!is_enforcing(&filter)?))?;
    assert_eq!(fate(&lab, &filter)?, Fate::Spared);
    let status = filter.json(&["status"])?;
    println!("{}", status["warnings"]);
    assert_eq!(status["interfaces"][0]["trial_over"], true);
    assert!(status["warnings"].to_string().contains("nobody confirmed"), "{status}");

    // Neither a start with --confirm, as by a service, nor a failed start attaches again.
    filter.configure("nonsense = 1\n")?;
    filter.launch_in_vain()?;
    is_detached(&lab, &filter)?;
    filter.configure("")?;
    filter.launch()?;
    let ready = filter
        .log()
        .into_iter()
        .rfind(|line| line.text.starts_with("ready"))
        .context("no ready line")?;
    println!("{}", ready.text);
    assert!(
        ready.text.contains("detached") && ready.text.contains("`sip-xdp confirm`"),
        "{}",
        ready.text
    );
    is_detached(&lab, &filter)?;
    assert_eq!(filter.json(&["confirm"])?["late"], true);
    assert!(is_enforcing(&filter)? && fate(&lab, &filter)? == Fate::Dropped);
    filter.unload()
}

/// A restart within the time continues to the same deadline.
#[test]
fn a_restart_in_time_is_no_confirmation() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = start(&lab, "25s")?;
    filter.kill9()?;
    filter.launch()?;
    assert_eq!(filter.json(&["status"])?["daemon"]["confirm"]["pending"], true);
    assert_eq!(fate(&lab, &filter)?, Fate::Dropped);
    detached_in_time(&filter)?;
    is_detached(&lab, &filter)?;
    // Unloading ends the trial.
    filter.unload()?;
    filter.launch()?;
    assert_eq!(filter.json(&["status"])?["daemon"]["confirm"]["pending"], true);
    filter.unload()
}

#[test]
fn nonsensical_options_are_refused() -> Result<()> {
    let lab = Lab::new()?;
    let arguments = vec!["--confirm".to_owned(), "60s".to_owned()];
    let configuration = "dry_run = true\n".to_owned();
    let options = FilterOptions { arguments, configuration, ..FilterOptions::default() };
    let mut filter = Filter::prepare(&lab.pbx, lab.directory(), options)?;
    let (status, errors) = filter.launch_in_vain()?;
    println!("{errors:?}");
    assert_eq!(status.code(), Some(1));
    for arguments in
        [["run", "--confirm", "soon"], ["run", "--confirm", "0s"], ["run", "--confirm", "2d"]]
    {
        assert_eq!(filter.cli(&arguments)?.status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(filter.cli(&["run", "--dry-run", "--confirm", "1m"])?.status.code(), Some(2));
    Ok(())
}
