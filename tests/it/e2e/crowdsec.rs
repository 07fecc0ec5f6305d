//! Bans shared through a real CrowdSec local API, in both directions. Needs root and Linux 6.6 or
//! later.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::crowdsec::LOGIN;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, WAN};
use sip_xdp_tests::{
    Attacker, Crowdsec, Filter, FilterOptions, Lab, Registrar, stream, wait_until,
};

/// One poll per second, pauses after failures, and a started program per query, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn feed(crowdsec: &Crowdsec<'_>) -> String {
    format!(
        "[[feeds]]\nname = \"crowdsec\"\nformat = \"crowdsec\"\nurl = \"{}\"\nkey_file \
         = \"{}\"\nevery = \"1s\"\n",
        crowdsec.url(),
        crowdsec.key_file().display()
    )
}

fn publishing(crowdsec: &Crowdsec<'_>, more: &str) -> String {
    format!(
        "[crowdsec]\npublish = true\nurl = \"{}\"\nlogin = \"{LOGIN}\"\npassword_file \
         = \"{}\"\n{more}\n",
        crowdsec.url(),
        crowdsec.password_file().display()
    )
}

fn start<'a>(lab: &'a Lab, configuration: String) -> Result<Filter<'a>> {
    let options = FilterOptions { configuration, ..FilterOptions::default() };
    Filter::start_with(&lab.pbx, lab.directory(), options)
}

/// The owners of exactly this network.
fn owners(filter: &Filter<'_>, network: &str) -> Result<Vec<String>> {
    let owner = |entry: Value| entry["owner"].as_str().unwrap_or_default().to_owned();
    Ok(filter.entries(network)?.into_iter().map(owner).collect())
}

fn wait_for(filter: &Filter<'_>, network: &str, expected: &[&str]) -> Result<()> {
    wait_until(&format!("{network} is blocked by {expected:?}"), SOON, || {
        Ok(owners(filter, network)? == expected)
    })
    .map(drop)
}

/// The scenario of the decision about a network, as `cscli decisions list` shows it.
fn scenario(crowdsec: &Crowdsec<'_>, value: &str) -> Result<Option<String>> {
    let decisions = crowdsec.decisions()?.into_iter();
    Ok(decisions.filter(|(of, ..)| of == value).map(|(_, scenario, _)| scenario).next())
}

fn wait_for_decision(crowdsec: &Crowdsec<'_>, value: &str, expected: Option<&str>) -> Result<()> {
    wait_until(&format!("the decision about {value} is {expected:?}"), SOON, || {
        Ok(scenario(crowdsec, value)?.as_deref() == expected)
    })
    .map(drop)
    .map_err(|error| error.context(crowdsec.log()))
}

/// Waits for two further polls of the feed, so that earlier decisions have arrived.
fn wait_for_polls(filter: &Filter<'_>) -> Result<()> {
    let age = || -> Result<Option<u64>> { Ok(filter.json(&["feed", "list"])?[0]["age"].as_u64()) };
    for _ in 0..2 {
        filter.succeed(&["feed", "sync", "crowdsec"])?;
    }
    age()?.context("the feed has no list").map(drop)
}

#[test]
fn decisions_of_others_are_enforced() -> Result<()> {
    let lab = Lab::new()?;
    let crowdsec = Crowdsec::start(&lab.pbx, lab.directory())?;
    let filter = start(&lab, feed(&crowdsec))?;
    let source = ATTACKER.to_string();
    crowdsec.cscli(&["decisions", "add", "--ip", &source, "--duration", "1h"])?;
    wait_for(&filter, &source, &["feed:crowdsec"])?;
    let before = filter.packets(WAN, "drop.blocked")?;
    let packets = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 50)?;
    wait_until("its packets are dropped", SOON, || {
        Ok(filter.packets(WAN, "drop.blocked")? > before + 10)
    })?;
    packets.stop()?;
    crowdsec.cscli(&["decisions", "add", "--range", "192.0.2.0/28", "--duration", "1h"])?;
    crowdsec.cscli(&["decisions", "add", "--range", "2001:db8:77::/64", "--duration", "1h"])?;
    crowdsec.cscli(&["decisions", "add", "--ip", "192.0.2.99", "--type", "captcha"])?;
    wait_for(&filter, "192.0.2.0/28", &["feed:crowdsec"])?;
    wait_for(&filter, "2001:db8:77::/64", &["feed:crowdsec"])?;
    assert!(owners(&filter, "192.0.2.99")?.is_empty(), "a captcha is no ban");

    crowdsec.cscli(&["decisions", "delete", "--ip", &source])?;
    wait_for(&filter, &source, &[])?;
    assert_eq!(owners(&filter, "192.0.2.0/28")?, ["feed:crowdsec"]);

    // Two decisions about one address end independently.
    crowdsec.cscli(&[
        "decisions",
        "add",
        "--ip",
        &source,
        "--duration",
        "2h",
        "--reason",
        "long",
    ])?;
    crowdsec.cscli(&[
        "decisions",
        "add",
        "--ip",
        &source,
        "--duration",
        "1h",
        "--reason",
        "short",
    ])?;
    wait_for(&filter, &source, &["feed:crowdsec"])?;
    let alerts: Value = serde_json::from_str(&crowdsec.cscli(&["alerts", "list", "-o", "json"])?)?;
    let id = |scenario: &str| -> Result<String> {
        let mut alerts = alerts.as_array().into_iter().flatten();
        let alert = alerts.find(|alert| alert["scenario"] == scenario).context("no such alert")?;
        Ok(alert["decisions"][0]["id"].to_string())
    };
    crowdsec.cscli(&["decisions", "delete", "--id", &id("long")?])?;
    wait_for_polls(&filter)?;
    assert_eq!(owners(&filter, &source)?, ["feed:crowdsec"], "the other one is still in force");
    crowdsec.cscli(&["decisions", "delete", "--id", &id("short")?])?;
    wait_for(&filter, &source, &[])
}

#[test]
fn our_bans_are_published_until_an_unban() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let crowdsec = Crowdsec::start(&lab.pbx, lab.directory())?;
    let configuration = publishing(&crowdsec, "manual = true\nunproven = true") + &feed(&crowdsec);
    let filter = start(&lab, configuration)?;
    let source = ATTACKER.to_string();

    // A guesser is banned here and published there, and does not come back through the feed.
    let mut tool = Attacker::new(&lab.attacker, lab.directory()).crack("101")?;
    wait_until("it is banned", SOON, || filter.is_banned(&source))?;
    let own = format!("sip-xdp/{LOGIN}/");
    wait_until("the decision is there", SOON, || {
        Ok(scenario(&crowdsec, &source)?.is_some_and(|scenario| scenario.starts_with(&own)))
    })
    .map_err(|error| error.context(crowdsec.log()))?;
    tool.stop(nix::sys::signal::Signal::SIGTERM)?;
    println!("{}", crowdsec.cscli(&["decisions", "list"])?);
    wait_for_polls(&filter)?;
    assert_eq!(owners(&filter, &source)?, ["auto"], "what we told must not come back to us");

    // Another decision about the same address comes through the feed, and survives our unban.
    crowdsec.cscli(&[
        "decisions",
        "add",
        "--ip",
        &source,
        "--duration",
        "1m",
        "--reason",
        "another",
    ])?;
    wait_for(&filter, &source, &["auto", "feed:crowdsec"])?;
    let output = filter.cli(&["unban", &source])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && said.contains("still listed by the feed crowdsec"),
        "{said}"
    );
    wait_for_decision(&crowdsec, &source, Some("another"))?;
    wait_for_polls(&filter)?;
    assert_eq!(owners(&filter, &source)?, ["feed:crowdsec"]);
    crowdsec.cscli(&["decisions", "delete", "--ip", &source])?;
    wait_for(&filter, &source, &[])?;

    // Operators' entries, if configured, with their lifetime; and networks.
    filter.succeed(&["block", "add", "192.0.2.9", "--ttl", "1h", "--reason", "toll fraud"])?;
    filter.succeed(&["block", "add", "2001:db8:9::/64"])?;
    let manual = format!("{own}manual");
    wait_for_decision(&crowdsec, "192.0.2.9", Some(&manual))?;
    wait_for_decision(&crowdsec, "2001:db8:9::/64", Some(&manual))?;
    let decisions = crowdsec.decisions()?;
    let of = |value: &str| {
        decisions.iter().find(|(of, ..)| of == value).map(|(.., duration)| duration.clone())
    };
    assert!(of("192.0.2.9").is_some_and(|duration| duration.starts_with("59m")), "{decisions:?}");
    filter.succeed(&["block", "del", "192.0.2.9"])?;
    filter.succeed(&["block", "del", "2001:db8:9::/64"])?;
    wait_for_decision(&crowdsec, "192.0.2.9", None)?;
    wait_for_decision(&crowdsec, "2001:db8:9::/64", None)?;

    let status = &filter.json(&["status"])?["daemon"]["crowdsec"];
    assert!(
        status["published"].as_u64() >= Some(3) && status["withdrawn"].as_u64() >= Some(3),
        "{status}"
    );
    assert!(
        status["error"].is_null() && status["dropped"] == 0 && status["waiting"] == 0,
        "{status}"
    );
    Ok(())
}

/// During an outage of the server bans are queued, and published afterwards.
#[test]
fn bans_are_published_after_an_outage() -> Result<()> {
    let lab = Lab::new()?;
    let mut crowdsec = Crowdsec::start(&lab.pbx, lab.directory())?;
    let filter = start(&lab, publishing(&crowdsec, "manual = true"))?;
    filter.succeed(&["block", "add", "192.0.2.1", "--ttl", "1h"])?;
    let manual = format!("sip-xdp/{LOGIN}/manual");
    wait_for_decision(&crowdsec, "192.0.2.1", Some(&manual))?;
    crowdsec.stop()?;
    filter.succeed(&["block", "del", "192.0.2.1"])?;
    filter.succeed(&["block", "add", "192.0.2.2", "--ttl", "1h"])?;
    filter.succeed(&["block", "add", "192.0.2.3", "--ttl", "1h"])?;
    filter.succeed(&["block", "del", "192.0.2.3"])?;
    let status =
        || -> Result<Value> { Ok(filter.json(&["status"])?["daemon"]["crowdsec"].clone()) };
    wait_until("the failure is known", SOON, || {
        Ok(status()?["error"].is_string() && status()?["waiting"] == 3)
    })?;
    let warnings = filter.json(&["status"])?["warnings"].to_string();
    assert!(
        warnings.contains("CrowdSec is not told of bans: the connection was refused"),
        "{warnings}"
    );
    // A restarted server accepts no earlier token, and the password is wrong for a while: both are
    // retried.
    let password = std::fs::read(crowdsec.password_file())?;
    std::fs::write(crowdsec.password_file(), "another")?;
    crowdsec.launch()?;
    wait_until("it is not let in", SOON, || {
        Ok(status()?["error"].as_str().is_some_and(|error| error.contains("does not let gw1 in")))
    })?;
    std::fs::write(crowdsec.password_file(), password)?;
    wait_for_decision(&crowdsec, "192.0.2.2", Some(&manual))?;
    wait_for_decision(&crowdsec, "192.0.2.1", None)?;
    assert_eq!(scenario(&crowdsec, "192.0.2.3")?, None);
    wait_until("nothing waits", SOON, || {
        Ok(status()?["waiting"] == 0 && status()?["error"].is_null())
    })?;
    // Each failure was logged once, and so was the recovery.
    let log = filter.log();
    let count = |text: &str| log.iter().filter(|line| line.text.contains(text)).count();
    assert_eq!(count("crowdsec failed reason=\"the connection was refused\""), 1);
    assert_eq!(count("crowdsec failed reason=\"HTTP 401: it does not let gw1 in"), 1);
    assert_eq!(count("crowdsec is well again"), 1);
    Ok(())
}
