//! Feeds that trust or admit: their entries come and go with them, within stricter guards, and
//! watchers see the events. Needs root and Linux 6.6 or later.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, stream, wait_until};

const SOON: Duration = Duration::from_secs(15);

fn configuration(list: &Path, action: &str, policy: &str) -> String {
    format!(
        "policy = \"{policy}\"\n\n[[feeds]]\nname = \"offices\"\nurl = \"file://{}\"\nevery \
         = \"1h\"\naction = \"{action}\"\n",
        list.display()
    )
}

fn start<'a>(lab: &'a Lab, configuration: String) -> Result<Filter<'a>> {
    let options = FilterOptions {
        configuration,
        interfaces: vec![WAN.to_owned()],
        ..FilterOptions::default()
    };
    Filter::start_with(&lab.pbx, lab.directory(), options)
}

/// What the feed trusts, as `trust list` shows it.
fn trusted(filter: &Filter<'_>) -> Result<BTreeSet<String>> {
    let rows = filter.json(&["trust", "list"])?;
    let rows = rows.as_array().or_else(|| rows["networks"].as_array()).context("no list")?.clone();
    let ours = rows.iter().filter(|row| row["owner"] == "feed:offices");
    Ok(ours.filter_map(|row| row["network"].as_str().map(str::to_owned)).collect())
}

fn set(networks: &[&str]) -> BTreeSet<String> {
    networks.iter().map(|network| (*network).to_owned()).collect()
}

#[test]
fn feed_trust_comes_and_goes_with_the_feed() -> Result<()> {
    let lab = Lab::new()?;
    let list = lab.directory().join("offices.list");
    fs::write(
        &list,
        format!("{ATTACKER}\n0.0.0.0/1\n64.0.0.0/15\n10.0.0.0/8\n2001:db8::/31\n192.0.2.0/24\n"),
    )?;
    let mut filter = start(&lab, configuration(&list, "block", "open"))?;
    // Feeds do not trust networks that an operator blocks.
    filter.succeed(&["block", "add", "192.0.2.128/25"])?;
    let attacker = ATTACKER.to_string();
    let verdict =
        |filter: &Filter<'_>| anyhow::Ok(filter.json(&["explain", &attacker])?["verdict"].clone());
    wait_until("it blocks", SOON, || Ok(verdict(&filter)? == "drop"))?;
    let mut watch = filter.start_command(&["watch", "--json"])?;
    // Earlier events are not seen.
    wait_until("it watches", SOON, || {
        filter.succeed(&["block", "add", "192.0.2.128/25"])?;
        Ok(!watch.lines().is_empty())
    })?;
    filter.configure(&configuration(&list, "trust", "open"))?;
    filter.succeed(&["reload"])?;
    let expected = set(&[&attacker, "192.0.2.0/25"]);
    wait_until("it trusts", SOON, || Ok(trusted(&filter)? == expected))?;
    let event = watch.wait_line(SOON, |line| line.text.contains("\"guard\""))?;
    let event: Value = serde_json::from_str(&event.text)?;
    assert_eq!((&event["event"], &event["feed"]), (&"feed".into(), &"offices".into()));
    assert_eq!(event["reason"], "offices: 4 too broad, 1 split", "{event}");
    let row = filter.json(&["feed", "list"])?[0].clone();
    assert_eq!(
        (&row["action"], &row["skipped"]["too_broad"]),
        (&"trust".into(), &4.into()),
        "{row}"
    );
    assert_eq!(verdict(&filter)?, "pass");
    let why = filter.json(&["explain", &attacker])?.to_string();
    assert!(why.contains("offices"), "{why}");
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 300)?;
    wait_until("packets pass as trusted", SOON, || Ok(filter.packets(WAN, "pass.trusted")? > 200))?;
    stream.stop()?;
    let refused = filter.cli(&["trust", "del", &attacker])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("the feed offices"), "{said}");

    // After a crash and a reboot without the list's server it is trusted before the first packet is
    // judged.
    filter.kill9()?;
    filter.launch()?;
    assert_eq!(trusted(&filter)?, expected);
    let kept = fs::read(&list)?;
    fs::remove_file(&list)?;
    filter.unload()?;
    filter.launch()?;
    assert_eq!(trusted(&filter)?, expected);

    // One address is removed from the list.
    fs::write(&list, String::from_utf8(kept)?.replace(&attacker, ""))?;
    println!("{}", filter.succeed(&["feed", "sync", "offices"])?);
    assert_eq!(trusted(&filter)?, set(&["192.0.2.0/25"]));
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 300)?;
    wait_until("the attacker is limited again", SOON, || {
        Ok(filter.packets(WAN, "drop.limited")? > 20)
    })?;
    stream.stop()?;
    // The whole list is removed while the daemon is stopped.
    filter.stop()?;
    filter.configure("")?;
    filter.launch()?;
    assert!(trusted(&filter)?.is_empty());
    Ok(())
}

#[test]
fn sources_admitted_by_a_feed_pass_the_policy_closed() -> Result<()> {
    let lab = Lab::new()?;
    let list = lab.directory().join("country.list");
    fs::write(&list, "198.51.0.0/16\n192.0.2.0/24\n")?;
    let filter = start(&lab, configuration(&list, "admit", "closed"))?;
    let verdict =
        || anyhow::Ok(filter.json(&["explain", &ATTACKER.to_string()])?["verdict"].clone());
    wait_until("it admits", SOON, || Ok(verdict()? == "pass"))?;
    // As many addresses as before, so that no size guard applies.
    fs::write(&list, "203.0.0.0/16\n192.0.2.0/24\n")?;
    filter.succeed(&["feed", "sync", "offices"])?;
    assert_eq!(verdict()?, "drop");
    fs::write(&list, "198.51.0.0/16\n192.0.2.0/24\n")?;
    filter.succeed(&["feed", "sync", "offices"])?;
    assert_eq!(verdict()?, "pass");
    // Admitted is not trusted: a block still applies.
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    assert_eq!(verdict()?, "drop");
    Ok(())
}
