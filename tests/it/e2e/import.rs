//! Files of networks, and state dumps. Needs root and Linux 6.6 or later.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::process::succeed;
use sip_xdp_tests::topology::{ATTACKER, LAN, PBX_WAN, PHONE, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, Phone, Registrar, stream, wait_until};

const SOON: Duration = Duration::from_secs(10);

fn file(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let path = lab.directory().join(name);
    fs::write(&path, text)?;
    Ok(path)
}

fn networks(filter: &Filter<'_>, list: &str) -> Result<BTreeSet<String>> {
    let rows = filter.json(&[list, "list"])?;
    let rows = rows.as_array().context("a list is no array")?;
    Ok(rows.iter().filter_map(|row| row["network"].as_str().map(str::to_owned)).collect())
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap_or_default()
}

#[test]
fn a_bad_line_keeps_all_out() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let mut lines: Vec<String> = (1..=20).map(|n| format!("192.0.2.{n}/24")).collect();
    lines.insert(0, "198.51.100.77 # this one is well".to_owned());
    let list = file(&lab, "bad", &lines.join("\n"))?;
    for command in ["block", "trust"] {
        let output = filter.cli(&[command, "import", text(&list)])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{said}");
        assert_eq!((output.status.code(), said.trim_end().lines().count()), (Some(1), 1), "{said}");
        for part in ["20 lines are wrong", "line 2:", "line 11:", "192.0.2.0/24", "and 10 more"] {
            assert!(said.contains(part), "{part} is not said: {said}");
        }
        assert!(!said.contains("line 12:"), "{said}");
        assert!(networks(&filter, command)?.is_empty());
    }
    let output = filter.cli(&["block", "import", "/nonexistent"])?;
    assert_eq!(output.status.code(), Some(1));
    Ok(())
}

#[test]
fn protected_networks_are_refused_and_the_rest_added() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["trust", "add", "192.0.2.5"])?;
    let list = file(
        &lab,
        "list",
        "; comment\n192.0.2.0/24\n192.0.2.128/25\n198.51.100.1\n2001:db8::/32\r\n\n10.1.2.3\n",
    )?;
    println!("{}", filter.succeed(&["block", "import", text(&list), "--ttl", "1h"])?);
    // 2001:db8::/32 is around this host's own addresses.
    let expected: BTreeSet<String> = ["10.1.2.3", "192.0.2.128/25"].map(str::to_owned).into();
    assert_eq!(networks(&filter, "block")?, expected);
    let answer = filter.json(&["block", "import", text(&list), "--force"])?;
    assert_eq!((&answer["added"], &answer["refused"]), (&5.into(), &Value::Array(Vec::new())));
    filter.succeed(&["trust", "import", text(&list), "--reason", "all of them"])?;
    assert_eq!(networks(&filter, "trust")?.len(), 6);
    Ok(())
}

#[test]
fn entries_without_room_are_reported() -> Result<()> {
    let lab = Lab::new()?;
    let configuration = "[capacity]\nnetworks = 16\n".to_owned();
    let options = FilterOptions { configuration, ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    let lines: Vec<String> = (1..=40).map(|n| format!("192.0.2.{n}")).collect();
    let list = file(&lab, "much", &lines.join("\n"))?;
    let output = filter.cli(&["block", "import", text(&list)])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}");
    assert!(
        output.status.code() == Some(1)
            && said.contains("capacity.networks")
            && said.contains("16 of these 40")
    );
    assert_eq!(networks(&filter, "block")?.len(), 16);
    Ok(())
}

#[test]
fn an_export_comes_back_and_nftables_takes_it() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let check = |filter: &Filter<'_>, name: &str| -> Result<()> {
        let nft = file(&lab, name, &filter.succeed(&["block", "export", "--format", "nft"])?)?;
        let mut command: Command = lab.pbx.command("nft");
        succeed(command.args(["-c", "-f"]).arg(&nft)).map(drop)
    };
    check(&filter, "empty.nft")?;
    let list =
        "192.0.2.0/24\n192.0.2.7\n198.18.0.0/15\n10.9.8.7\n2001:db8:99::/48\n2001:db8:99::1\n";
    let list = file(&lab, "list", list)?;
    filter.succeed(&["block", "import", text(&list), "--reason", "quotes \" and # signs"])?;
    filter.succeed(&["block", "add", "172.16.0.0/12", "--ttl", "1h"])?;
    let before = networks(&filter, "block")?;
    check(&filter, "list.nft")?;
    // Without a daemon as well.
    filter.kill9()?;
    check(&filter, "dead.nft")?;
    let plain = file(&lab, "plain", &filter.succeed(&["block", "export"])?)?;
    filter.launch()?;
    for network in &before {
        filter.succeed(&["block", "del", network])?;
    }
    assert!(networks(&filter, "block")?.is_empty());
    filter.succeed(&["block", "import", text(&plain)])?;
    assert_eq!(networks(&filter, "block")?, before);
    Ok(())
}

/// One instance learns, another one imports: known-good sources, bans with offences, trust.
#[test]
fn a_standby_takes_up_what_was_learnt() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut first = Filter::start(&lab.pbx, lab.directory())?;
    assert_eq!(Phone::new(&lab.phone, lab.directory()).register()?.status, 200);
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    let attacker = ATTACKER.to_string();
    first.wait_for_ban(&attacker, SOON)?;
    stream.stop()?;
    first.succeed(&["trust", "add", "192.0.2.0/28", "--reason", "the office"])?;
    first.succeed(&["trust", "add", "sip.carrier.example"])?;
    first.succeed(&[
        "block",
        "add",
        "198.18.0.0/15",
        "--ttl",
        "1h",
        "--reason",
        "a test network",
    ])?;
    let has = |field: &str| -> Result<usize> {
        let export = first.json(&["state", "export"])?;
        Ok(export[field].as_array().map_or(0, Vec::len))
    };
    wait_until("all of it is on disk", SOON, || Ok(has("accepted")? > 0 && has("history")? > 0))?;
    first.stop()?;
    let export = first.succeed(&["state", "export"])?;
    let state = file(&lab, "state.json", &export)?;
    let (wan, lan) = (WAN.to_owned(), LAN.to_owned());
    first.unload()?;
    // After `unload` the store has it.
    let again: Value = serde_json::from_str(&first.succeed(&["state", "export"])?)?;
    assert_eq!(again["block"].as_array().map(Vec::len), Some(2), "{again:#}");

    let options = FilterOptions { interfaces: vec![wan, lan], ..FilterOptions::default() };
    let second = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    assert!(networks(&second, "block")?.is_empty());
    println!("{}", second.succeed(&["state", "import", text(&state)])?);
    let blocked: BTreeSet<String> = [attacker.clone(), "198.18.0.0/15".to_owned()].into();
    assert_eq!(networks(&second, "block")?, blocked);
    assert!(networks(&second, "trust")?.contains("192.0.2.0/28"));
    let hosts = second.json(&["status"])?["daemon"]["hosts"].to_string();
    assert!(hosts.contains("sip.carrier.example"), "{hosts}");
    let phone = second.json(&["explain", &PHONE.to_string()])?;
    assert!(
        phone["because"].as_str().is_some_and(|why| why.contains("known good until")),
        "{phone:#}"
    );
    wait_until("the history is there", SOON, || {
        let report = second.json(&["explain", &attacker])?;
        Ok(report["verdict"] == "drop" && report["history"].as_array().map(Vec::len) == Some(1))
    })?;
    // A second import is harmless.
    let counts = second.json(&["state", "import", text(&state)])?;
    for kind in ["block", "trust", "accepted", "hosts"] {
        assert_eq!(counts[kind]["added"], 0, "{kind}: {counts:#}");
    }
    let output = second.cli(&["state", "import", "/etc/hostname"])?;
    assert_eq!(output.status.code(), Some(1));
    wait_until("the history has not doubled", SOON, || {
        let export: Value = second.json(&["state", "export"])?;
        Ok(export["history"].as_array().map(Vec::len) == Some(1))
    })
    .map(drop)
}

/// Implausible counts: the daemon continues at once, and the next ban has the maximum length.
#[test]
fn any_offence_count_can_be_imported() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let attacker = ATTACKER.to_string();
    let mut state = filter.json(&["state", "export"])?;
    let now = state["time"].clone();
    state["offences"] =
        serde_json::json!([{ "network": attacker, "count": u32::MAX, "last": now }]);
    let state = file(&lab, "state.json", &state.to_string())?;
    filter.succeed(&["state", "import", text(&state)])?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    wait_until("the attacker is banned", SOON, || filter.is_banned(&attacker))?;
    stream.stop()?;
    let begun = Instant::now();
    filter.json(&["status"])?;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    Ok(())
}

/// Timed tests: nothing runs beside them.
mod measured {
    use super::*;

    #[test]
    fn a_hundred_thousand_lines() -> Result<()> {
        let lab = Lab::new()?;
        let mut filter = Filter::start(&lab.pbx, lab.directory())?;
        let hosts = (0..100_000_u32).map(|n| Ipv4Addr::from(0x0a00_0000 + 7 * n).to_string());
        let lines: Vec<String> = hosts.collect();
        let list = file(&lab, "many", &lines.join("\n"))?;
        let start = Instant::now();
        let answer =
            filter.json(&["block", "import", text(&list), "--reason", "a feed by hand"])?;
        println!("100,000 lines in {:?}: {answer}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(30));
        assert_eq!((&answer["added"], &answer["lines"]), (&100_000.into(), &100_000.into()));
        assert_eq!(networks(&filter, "block")?, lines.iter().cloned().collect());
        // They are in the kernel and on disk.
        filter.restart()?;
        assert_eq!(networks(&filter, "block")?.len(), 100_000);
        assert_eq!(filter.json(&["explain", &lines[99_999]])?["verdict"], "drop");
        Ok(())
    }
}
