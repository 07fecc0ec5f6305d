//! Wall-clock changes by a day while bans last: none vanishes, none becomes permanent, over
//! restarts, crashes and reboots. Needs root, Linux 6.6 or later, and libfaketime, which sets the
//! clock of the daemon alone.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::dataplane::tables::ledger::Ledger;
use sip_xdp::sys::clock;
use sip_xdp_common::abi::layout::NEVER;
use sip_xdp_common::abi::names;
use sip_xdp_tests::topology::WAN;
use sip_xdp_tests::{FakeTime, Filter, FilterOptions, Lab, wait_until};

const SOON: Duration = Duration::from_secs(15);
const DAY: i64 = 24 * 3_600;
const HOUR: f64 = 3_600.0;

const FOR_GOOD: &str = "192.0.2.1";
const LONG: &str = "192.0.2.2";
const SHORT: &str = "192.0.2.3";

/// Remaining seconds of each block, by the kernel's clock; infinity for permanent.
fn remaining(filter: &Filter<'_>) -> Result<BTreeMap<String, f64>> {
    let entries = Ledger::new(Pins::new(filter.pins()).open(names::LEDGER)?)?.entries()?;
    let now = clock::now();
    let left = |expires: u64| {
        if expires == NEVER { f64::INFINITY } else { (expires as f64 - now as f64) / 1e9 }
    };
    let live = entries.into_iter().filter(|(_, entry)| !entry.is_over(now));
    Ok(live.map(|(_, entry)| (entry.network.to_string(), left(entry.expires))).collect())
}

/// The long ban keeps its end, and the permanent one stays.
fn nothing_has_changed(filter: &Filter<'_>, since: u64, what: &str) -> Result<()> {
    let left = remaining(filter)?;
    let passed = (clock::now() - since) as f64 / 1e9;
    println!("{what}, {passed:.0} s later: {left:?}");
    ensure!(left.get(FOR_GOOD) == Some(&f64::INFINITY), "{what}: {left:?}");
    let long = left.get(LONG).copied().unwrap_or_default();
    ensure!(
        (long - (HOUR - passed)).abs() < 5.0,
        "{what}: after {passed} s it lasts for {long} s more"
    );
    Ok(())
}

fn start<'a>(lab: &'a Lab, clock: &FakeTime) -> Result<Filter<'a>> {
    let interfaces = vec![WAN.to_owned()];
    let options =
        FilterOptions { interfaces, environment: clock.environment(), ..FilterOptions::default() };
    Filter::start_with(&lab.pbx, lab.directory(), options)
}

/// The clock is set by this number of seconds while the daemon runs.
fn set_while_it_runs(by: i64) -> Result<()> {
    let lab = Lab::new()?;
    let wall = FakeTime::new(lab.directory())?;
    let mut filter = start(&lab, &wall)?;
    filter.succeed(&["block", "add", FOR_GOOD])?;
    let since = clock::now();
    filter.succeed(&["block", "add", LONG, "--ttl", "1h"])?;
    filter.succeed(&["block", "add", SHORT, "--ttl", "5s"])?;
    nothing_has_changed(&filter, since, "before")?;

    wall.set(by)?;
    wait_until("it is noticed", SOON, || {
        Ok(filter.log().iter().any(|line| line.text.contains("the wall clock was set")))
    })?;
    nothing_has_changed(&filter, since, "set")?;
    if (clock::now() - since) < 3_000_000_000 {
        ensure!(remaining(&filter)?.contains_key(SHORT), "the short ban has ended with the clock");
    }
    // Displayed times follow the new wall clock.
    let rows = filter.json(&["block", "list"])?;
    let row = rows
        .as_array()
        .into_iter()
        .flatten()
        .find(|row| row["network"] == LONG)
        .cloned()
        .unwrap_or_default();
    let end: jiff::Timestamp = row["expires"].as_str().unwrap_or_default().parse()?;
    let ahead = end.duration_since(jiff::Timestamp::now()).as_secs_f64() - by as f64;
    ensure!((0.0..=HOUR).contains(&ahead), "{row} ends {ahead} s from now");
    wait_until(
        "the short ban ends in time",
        SOON,
        || Ok(!remaining(&filter)?.contains_key(SHORT)),
    )?;
    nothing_has_changed(&filter, since, "the short one over")?;

    filter.restart()?;
    nothing_has_changed(&filter, since, "after a restart")?;
    filter.kill9()?;
    filter.launch()?;
    nothing_has_changed(&filter, since, "after a crash")?;
    // Once more while it runs, then a power failure, so that only the disk remains. Acknowledged
    // changes are there.
    wall.set(2 * by)?;
    wait_until("it is noticed again", SOON, || {
        Ok(filter.log().iter().filter(|line| line.text.contains("the wall clock was set")).count()
            == 2)
    })?;
    filter.succeed(&["block", "add", "192.0.2.4"])?;
    filter.kill9()?;
    filter.unload()?;
    filter.launch()?;
    nothing_has_changed(&filter, since, "after a power cut")
}

#[test]
fn set_forward_by_a_day() -> Result<()> {
    set_while_it_runs(DAY)
}

#[test]
fn set_back_by_a_day() -> Result<()> {
    set_while_it_runs(-DAY)
}

/// A machine without a real-time clock battery starts in the past: no ban lasts longer than its
/// lifetime.
#[test]
fn a_start_in_the_past_makes_nothing_eternal() -> Result<()> {
    let lab = Lab::new()?;
    let wall = FakeTime::new(lab.directory())?;
    let mut filter = start(&lab, &wall)?;
    filter.succeed(&["block", "add", FOR_GOOD])?;
    filter.succeed(&["block", "add", LONG, "--ttl", "1h"])?;
    filter.succeed(&["block", "add", SHORT, "--ttl", "6s"])?;
    filter.kill9()?;
    filter.unload()?;
    wall.set(-400 * DAY)?;
    filter.launch()?;
    let left = remaining(&filter)?;
    println!("started 400 days ago: {left:?}");
    ensure!(left.get(FOR_GOOD) == Some(&f64::INFINITY), "{left:?}");
    ensure!(left.get(LONG).is_some_and(|left| (HOUR - 60.0..=HOUR).contains(left)), "{left:?}");
    ensure!(left.get(SHORT).is_none_or(|left| *left <= 6.0), "{left:?}");
    // The network provides the right time; expired bans stay expired.
    wait_until("the short ban ends", SOON, || Ok(!remaining(&filter)?.contains_key(SHORT)))?;
    wall.set(0)?;
    wait_until("it is noticed", SOON, || {
        Ok(filter.log().iter().any(|line| line.text.contains("the wall clock was set forward")))
    })?;
    filter.succeed(&["block", "add", "192.0.2.4"])?;
    filter.kill9()?;
    filter.unload()?;
    filter.launch()?;
    let left = remaining(&filter)?;
    println!("with the right time again: {left:?}");
    ensure!(left.get(LONG).is_some_and(|left| (HOUR - 120.0..=HOUR).contains(left)), "{left:?}");
    ensure!(!left.contains_key(SHORT), "{left:?}");
    Ok(())
}
