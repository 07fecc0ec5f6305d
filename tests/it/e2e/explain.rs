//! `explain`: the fate of an address with reasons, with and without a daemon. Needs root and Linux
//! 6.6 or later.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, PHONE};
use sip_xdp_tests::{
    Filter, FilterOptions, Guess, Guesser, Lab, Phone, Registrar, stream,
    wait_for_a_nonce_of_its_own, wait_until,
};

const SOON: Duration = Duration::from_secs(10);

/// Asks about an address, and shows what people see.
fn explain(filter: &Filter<'_>, address: &str) -> Result<Value> {
    println!("{}", filter.succeed(&["explain", address])?);
    let report = filter.json(&["explain", address])?;
    for field in
        ["schema", "address", "verdict", "dry_run", "because", "matches", "evidence", "history"]
    {
        assert!(report.get(field).is_some(), "no {field} in {report}");
    }
    Ok(report)
}

/// Verdict and reason.
fn decided(report: &Value) -> (&str, &str) {
    (report["verdict"].as_str().unwrap_or_default(), report["because"].as_str().unwrap_or_default())
}

fn decides(report: &Value, verdict: &str, because: &str) {
    let (found, why) = decided(report);
    assert!(
        found == verdict && why.contains(because),
        "{verdict} because of \"{because}\" was expected: {report:#}"
    );
}

#[test]
fn listed_and_known_sources_are_explained() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let registered = Phone::new(&lab.phone, lab.directory()).register()?;
    assert_eq!(registered.status, 200);
    filter.succeed(&["trust", "add", "192.0.2.0/28", "--reason", "the office"])?;
    filter.succeed(&["block", "add", "192.0.2.0/24", "--reason", "a neighbour", "--force"])?;

    wait_for_a_nonce_of_its_own();
    let (from, to) = (SocketAddr::from((ATTACKER, 5060)), SocketAddr::from((PBX_WAN, 5060)));
    let mut guess = Guess::new(from, to, "101");
    guess.every = Duration::from_millis(500);
    let guesser = Guesser::start(&lab.attacker, guess)?;
    let attacker = ATTACKER.to_string();
    wait_until("evidence is shown before there is a ban", SOON, || {
        let report = filter.json(&["explain", &attacker])?;
        let evidence = report["evidence"].as_array().context("no evidence")?.clone();
        Ok(evidence.iter().any(|one| one["kind"] == "rejected" && one["limit"] == 10))
    })?;
    let report = explain(&filter, &attacker)?;
    if report["verdict"] == "pass" {
        assert_eq!(
            (&report["last"]["user"], &report["daemon"]),
            (&"101".into(), &true.into()),
            "{report:#}"
        );
        let line = report["last"]["start_line"].as_str().context("no start line")?;
        assert!(line.starts_with("REGISTER sip:") && line.ends_with(" SIP/2.0"), "{line}");
    }
    filter.wait_for_ban(&attacker, SOON)?;
    drop(guesser);
    assert!(registrar.received_from(ATTACKER) > 0);
    let is_in_history = |filter: &Filter<'_>| -> Result<bool> {
        let report = filter.json(&["explain", &attacker])?;
        Ok(report["history"]
            .as_array()
            .is_some_and(|bans| bans.iter().any(|ban| ban["kind"] == "rejected")))
    };
    wait_until("the ban is in the history", SOON, || is_in_history(&filter))?;

    for is_alive in [true, false] {
        if !is_alive {
            filter.kill9()?;
        }
        println!("the daemon is {}", if is_alive { "alive" } else { "dead" });
        let report = explain(&filter, &attacker)?;
        decides(&report, "drop", "it is banned: 198.51.100.66 (auto, proven");
        let entry = &report["matches"][0];
        assert_eq!(
            (&entry["owner"], &entry["tier"], &entry["list"]),
            (&"auto".into(), &"proven".into(), &"block".into())
        );
        assert!(entry["expires"].is_string() && is_in_history(&filter)?, "{report:#}");
        assert_eq!(report["daemon"], is_alive);
        let notes = report["notes"].to_string();
        assert_eq!(notes.contains("no daemon"), !is_alive, "{notes}");

        let report = explain(&filter, &PHONE.to_string())?;
        decides(&report, "pass", "it is known good until");
        assert_eq!(
            (&report["limits"][0]["limit"], &report["limits"][0]["of"]),
            (&"good".into(), &4_000.into())
        );
        assert_eq!(
            report["accepted"].as_array().is_some_and(|users| !users.is_empty()),
            is_alive,
            "{report:#}"
        );

        let report = explain(&filter, "192.0.2.5")?;
        decides(&report, "pass", "it is trusted: 192.0.2.0/28 (manual, the office)");
        assert_eq!(
            report["matches"].as_array().map(Vec::len),
            Some(2),
            "the block list has it too: {report:#}"
        );
        decides(
            &explain(&filter, "192.0.2.77")?,
            "drop",
            "it is blocked: 192.0.2.0/24 (manual, a neighbour)",
        );

        let report = explain(&filter, "2001:db8:99::1")?;
        decides(&report, "pass", "nothing is known of it");
        let full = report["limits"]
            .as_array()
            .is_some_and(|all| all.iter().all(|one| one["left"] == one["of"]));
        assert!(full, "{report:#}");
    }
    Ok(())
}

#[test]
fn floods_are_limited() -> Result<()> {
    let lab = Lab::new()?;
    let configuration =
        "[detect]\nregister = { enabled = false }\nrequests = { enabled = false }\n".to_owned();
    let options = FilterOptions { configuration, ..FilterOptions::default() };
    let mut filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 200)?;
    let attacker = ATTACKER.to_string();
    for is_alive in [true, false] {
        if !is_alive {
            filter.kill9()?;
        }
        wait_until("the flood is limited", SOON, || {
            Ok(filter.json(&["explain", &attacker])?["verdict"] == "limit")
        })?;
        let report = explain(&filter, &attacker)?;
        assert!(
            report["limited"]["packets"].as_u64().is_some_and(|packets| packets > 0),
            "{report:#}"
        );
    }
    stream.stop()?;
    // The bucket of requests is full again after ten seconds; the other one is not, and shows it.
    wait_until("it may send again", SOON, || {
        Ok(filter.json(&["explain", &attacker])?["verdict"] == "pass")
    })?;
    let report = explain(&filter, &attacker)?;
    let left = |limit: &str| -> Option<u64> {
        report["limits"].as_array()?.iter().find(|one| one["limit"] == limit)?["left"].as_u64()
    };
    assert!(left("register") < Some(100) && left("other") == Some(300), "{report:#}");
    Ok(())
}

#[test]
fn a_closed_policy_and_a_dry_run_are_reported() -> Result<()> {
    let lab = Lab::new()?;
    let configuration = "policy = \"closed\"\n[admit]\nnetworks = [\"192.0.2.0/24\"]\n".to_owned();
    let arguments = vec!["--dry-run".to_owned()];
    let options = FilterOptions { configuration, arguments, ..FilterOptions::default() };
    let mut filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    for is_alive in [true, false] {
        if !is_alive {
            filter.stop()?;
        }
        let report = explain(&filter, "203.0.113.77")?;
        decides(&report, "drop", "the policy is closed");
        assert_eq!(report["dry_run"], true);
        let report = explain(&filter, "192.0.2.1")?;
        decides(&report, "pass", "it is admitted: 192.0.2.0/24 (config");
    }
    let output = filter.cli(&["explain", "sip.example"])?;
    assert_eq!(output.status.code(), Some(2), "a name is no address");
    Ok(())
}
