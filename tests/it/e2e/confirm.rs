//! `run --confirm`: a filter that nobody confirms drops nothing in the end.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, stream, wait_until};

fn start<'a>(lab: &'a Lab, within: &str) -> Result<Filter<'a>> {
    let arguments = vec!["--confirm".to_owned(), within.to_owned()];
    let filter =
        Filter::start_with(&lab.pbx, lab.directory(), FilterOptions { arguments, ..FilterOptions::default() })?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    Ok(filter)
}

fn is_enforcing(filter: &Filter<'_>) -> Result<bool> {
    Ok(filter.cli(&["status", "--check"])?.status.success())
}

/// Whether packets of the blocked source are dropped, as the interface sees it.
fn drops(lab: &Lab, filter: &Filter<'_>) -> Result<bool> {
    let before = (filter.packets(WAN, "drop.blocked")?, filter.packets(WAN, "would_drop.blocked")?);
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
    sleep(Duration::from_millis(300));
    let sent = stream.stop()?;
    sleep(Duration::from_millis(200));
    let dropped = filter.packets(WAN, "drop.blocked")? - before.0;
    assert_eq!(dropped + filter.packets(WAN, "would_drop.blocked")? - before.1, sent);
    assert!(dropped == 0 || dropped == sent, "{dropped} of {sent}");
    Ok(dropped > 0)
}

#[test]
fn nobody_confirms() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = start(&lab, "12s")?;
    let ready = filter.log().into_iter().find(|line| line.text.starts_with("ready")).context("no ready line")?;
    println!("{}", ready.text);
    assert!(ready.text.contains("enforcing") && ready.text.contains("`sip-xdp confirm`"));
    assert_eq!(filter.json(&["status"])?["daemon"]["confirm"]["pending"], true);
    assert!(drops(&lab, &filter)?);
    // A reload in between neither confirms nor starts the time again.
    let until = filter.json(&["status"])?["daemon"]["confirm"]["until"].clone();
    filter.configure("[limits.unknown]\nrequests = { count = 40, per = \"10s\" }\n")?;
    filter.succeed(&["reload"])?;
    // The time is told by two clocks, which a busy machine does not read together; started again, it
    // would be later by all that happened above, half a second at least.
    let close = |a: &serde_json::Value, b: &serde_json::Value| -> Result<bool> {
        let time =
            |value: &serde_json::Value| -> Result<jiff::Timestamp> { Ok(value.as_str().context("no time")?.parse()?) };
        Ok(time(a)?.duration_since(time(b)?).abs() < jiff::SignedDuration::from_millis(300))
    };
    assert!(close(&filter.json(&["status"])?["daemon"]["confirm"]["until"], &until)?);

    // A broken file is no reason to go on enforcing.
    filter.configure("nonsense = 1\n")?;
    wait_until("it goes back to a dry run", Duration::from_secs(30), || Ok(!is_enforcing(&filter)?))?;
    assert!(filter.log().iter().any(|line| line.text.contains("unconfirmed after=12s dry_run=true")));
    let status = filter.json(&["status"])?;
    println!("{} {}", status["daemon"]["confirm"], status["warnings"]);
    assert_eq!(status["daemon"]["confirm"]["pending"], false);
    assert!(!drops(&lab, &filter)?);
    assert!(!filter.cli(&["confirm"])?.status.success(), "the file is broken");
    assert!(!is_enforcing(&filter)?);

    // It stays so over a reload, and until somebody confirms after all.
    filter.configure("")?;
    filter.succeed(&["reload"])?;
    assert!(!is_enforcing(&filter)?);
    let confirmed = filter.json(&["confirm"])?;
    println!("{confirmed}");
    assert_eq!((&confirmed["confirmed"], &confirmed["late"]), (&true.into(), &true.into()));
    assert!(is_enforcing(&filter)? && drops(&lab, &filter)?);
    assert!(filter.json(&["status"])?["daemon"]["confirm"].is_null());
    filter.unload()
}

/// What shut the operator out may have taken the default route with it, by which the interfaces were found.
#[test]
fn it_steps_back_without_a_default_route() -> Result<()> {
    let lab = Lab::new()?;
    lab.pbx.ip(["route", "add", "default", "via", "198.51.100.254"])?;
    let arguments = vec!["--confirm".to_owned(), "3s".to_owned()];
    let options = FilterOptions { arguments, interfaces: Vec::new(), ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    lab.pbx.ip(["route", "del", "default"])?;
    assert!(is_enforcing(&filter)?);
    wait_until("it goes back to a dry run", Duration::from_secs(6), || Ok(!is_enforcing(&filter)?))?;
    assert!(!drops(&lab, &filter)?);
    Ok(())
}

#[test]
fn somebody_confirms() -> Result<()> {
    let lab = Lab::new()?;
    let filter = start(&lab, "3s")?;
    println!("{}", filter.succeed(&["confirm"])?.trim_end());
    let again = filter.cli(&["confirm"])?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(1) && said.contains("nothing waits to be confirmed"), "{said}");
    sleep(Duration::from_secs(5));
    assert!(is_enforcing(&filter)? && drops(&lab, &filter)?);
    Ok(())
}

#[test]
fn a_daemon_that_is_stopped_before_leaves_a_dry_run() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = start(&lab, "60s")?;
    filter.stop()?;
    assert!(!is_enforcing(&filter)?);
    assert!(!drops(&lab, &filter)?);
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused() -> Result<()> {
    let lab = Lab::new()?;
    let arguments = vec!["--confirm".to_owned(), "60s".to_owned()];
    let configuration = "dry_run = true\n".to_owned();
    let options = FilterOptions { arguments, configuration, ..FilterOptions::default() };
    let mut filter = Filter::prepare(&lab.pbx, lab.directory(), options)?;
    let (status, errors) = filter.launch_in_vain()?;
    println!("{errors:?}");
    assert_eq!(status.code(), Some(1));
    for arguments in [["run", "--confirm", "soon"], ["run", "--confirm", "0s"], ["run", "--confirm", "2d"]] {
        assert_eq!(filter.cli(&arguments)?.status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(filter.cli(&["run", "--dry-run", "--confirm", "1m"])?.status.code(), Some(2));
    Ok(())
}
