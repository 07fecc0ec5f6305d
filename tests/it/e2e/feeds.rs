//! Feeds with the real daemon: their entries are dropped, whatever happens to the feed or the
//! daemon.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, PHONE, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, ListServer, Reply, stream, wait_until};

const SOON: Duration = Duration::from_secs(10);

/// The server of lists, among the phones.
fn address() -> SocketAddr {
    SocketAddr::from((PHONE, 8_000))
}

fn configuration(name: &str, path: &str) -> String {
    format!("[[feeds]]\nname = \"{name}\"\nurl = \"http://{}/{path}\"\nevery = \"1h\"\n", address())
}

fn start<'a>(lab: &'a Lab, configuration: String) -> Result<Filter<'a>> {
    let options = FilterOptions { configuration, ..FilterOptions::default() };
    Filter::start_with(&lab.pbx, lab.directory(), options)
}

fn row(filter: &Filter<'_>, name: &str) -> Result<Value> {
    let rows = filter.json(&["feed", "list"])?;
    let rows = rows.as_array().context("`feed list` is no array")?;
    rows.iter()
        .find(|row| row["name"] == name)
        .cloned()
        .with_context(|| format!("no {name} in {rows:?}"))
}

fn wait_for(filter: &Filter<'_>, name: &str, count: u64) -> Result<()> {
    wait_until(&format!("{name} lists {count}"), SOON, || Ok(row(filter, name)?["ipv4"] == count))
        .map(drop)
}

fn is_logged(filter: &Filter<'_>, start: &str) -> bool {
    filter.log().iter().any(|line| line.text.contains(start))
}

fn failure(filter: &Filter<'_>, arguments: &[&str]) -> Result<String> {
    let output = filter.cli(arguments)?;
    assert_eq!(output.status.code(), Some(1), "`{}`", arguments.join(" "));
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    println!("{}: {said}", arguments.join(" "));
    Ok(said)
}

fn list(with_attacker: bool, others: u32) -> String {
    let attacker = if with_attacker { format!("{ATTACKER}\n") } else { String::new() };
    attacker + &(0..others).map(|number| format!("192.0.2.{number}\n")).collect::<String>()
}

#[test]
fn feed_blocks_come_and_go_with_the_feed() -> Result<()> {
    let lab = Lab::new()?;
    let server = ListServer::start_in(&lab.phone, address(), Reply::list(list(true, 19)))?;
    let filter = start(&lab, configuration("public", "list.txt"))?;
    wait_for(&filter, "public", 20)?;
    assert!(is_logged(&filter, "feed public added=20 removed=0 total=20"));

    // No packet passes while the list is replaced repeatedly.
    let flood = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    for others in [15, 19, 12, 18, 19] {
        server.reply(Reply::list(list(true, others)));
        println!("{}", filter.succeed(&["feed", "sync", "public"])?);
        assert_eq!(row(&filter, "public")?["ipv4"], others + 1);
    }
    let sent = flood.stop()?;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        filter.packets(WAN, "drop.blocked")?,
        sent,
        "an entry that stays listed is never lost"
    );

    // Listings, commands that cannot remove it, and the remedy.
    let source = ATTACKER.to_string();
    assert_eq!(filter.succeed(&["block", "list"])?, "none\n");
    assert!(filter.succeed(&["block", "list", "--all"])?.contains("feed:public"));
    let entries = filter.entries(&source)?;
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (&entries[0]["owner"], &entries[0]["expires"]),
        (&"feed:public".into(), &Value::Null)
    );
    let said = failure(&filter, &["unban", &source])?;
    assert!(
        said.contains("feed public") && said.contains(&format!("sip-xdp trust add {source}")),
        "{said}"
    );
    filter.succeed(&["block", "add", &source])?;
    assert!(
        failure(&filter, &["block", "del", &source])?.contains("feed public"),
        "although an entry was removed"
    );
    filter.succeed(&["trust", "add", &source])?;
    let before = filter.packets(WAN, "drop.blocked")?;
    let flood = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
    std::thread::sleep(Duration::from_millis(500));
    flood.stop()?;
    assert_eq!(filter.packets(WAN, "drop.blocked")?, before, "trust wins");
    filter.succeed(&["trust", "del", &source])?;

    server.reply(Reply::list(list(false, 19)));
    filter.succeed(&["feed", "sync"])?;
    assert!(filter.entries(&source)?.is_empty());
    println!("{}", filter.succeed(&["feed", "list"])?);
    Ok(())
}

#[test]
fn a_refused_list_is_reported_and_may_be_accepted() -> Result<()> {
    let lab = Lab::new()?;
    let server = ListServer::start_in(&lab.phone, address(), Reply::list(list(true, 19)))?;
    let filter = start(&lab, configuration("public", "list.txt"))?;
    wait_for(&filter, "public", 20)?;
    server.reply(Reply::list(list(true, 3)));
    let said = failure(&filter, &["feed", "sync", "public"])?;
    assert!(said.contains("shrank from 20 to 4") && said.contains("--accept"), "{said}");
    assert!(is_logged(&filter, "feed public refused reason=\"it shrank from 20 to 4 entries\""));
    let warnings = filter.json(&["status"])?["warnings"].to_string();
    assert!(warnings.contains("the feed public fails"), "{warnings}");
    println!("{}", filter.succeed(&["feed", "list"])?);
    assert_eq!(row(&filter, "public")?["ipv4"], 20);
    filter.succeed(&["feed", "sync", "public", "--accept"])?;
    assert_eq!(row(&filter, "public")?["ipv4"], 4);
    assert!(failure(&filter, &["feed", "sync", "other"])?.contains("there is no feed other"));
    // A list with the host's own addresses does not affect them.
    server.reply(Reply::list(list(true, 3) + "198.51.100.0/24\n203.0.113.0/24\n0.0.0.0/0\n"));
    filter.succeed(&["feed", "sync", "public"])?;
    let row = row(&filter, "public")?;
    assert_eq!((&row["split"], &row["skipped"]["too_broad"]), (&2.into(), &1.into()), "{row}");
    assert!(filter.entries(&PBX_WAN.to_string())?.is_empty());
    Ok(())
}

#[test]
fn restarts_reboots_and_no_network() -> Result<()> {
    let lab = Lab::new()?;
    let server = ListServer::start_in(&lab.phone, address(), Reply::list(list(true, 19)))?;
    let two =
        format!("{}\n{}", configuration("public", "one.txt"), configuration("second", "two.txt"));
    let mut filter = start(&lab, two)?;
    wait_for(&filter, "public", 20)?;
    wait_for(&filter, "second", 20)?;
    server.reply(Reply::list("198.51.100.200\n"));
    filter.succeed(&["feed", "sync", "second", "--accept"])?;
    drop(server);

    // Killed and restarted: its entries stay in force, and then its own list.
    let source = ATTACKER.to_string();
    let flood = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    std::thread::sleep(Duration::from_millis(300));
    filter.kill9()?;
    assert_eq!(
        filter.entries(&source)?[0]["owner"],
        "feed:public",
        "reads work with the daemon dead"
    );
    let said = failure(&filter, &["feed", "list"])?;
    assert!(said.contains("no daemon") && said.contains("stays in force"), "{said}");
    filter.launch()?;
    wait_for(&filter, "public", 20)?;
    let sent = flood.stop()?;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(filter.packets(WAN, "drop.blocked")?, sent);
    let warnings = filter.json(&["status"])?["warnings"].to_string();
    assert!(!warnings.contains("before this daemon started"), "{warnings}");

    // A reboot without network.
    filter.unload()?;
    filter.launch()?;
    assert_eq!(row(&filter, "public")?["ipv4"], 20);
    assert_eq!(filter.entries(&source)?.len(), 1);
    assert_eq!(filter.entries("198.51.100.200")?.len(), 1);

    // A feed that is no longer configured is removed, on reload and on restart.
    filter.configure(&configuration("public", "one.txt"))?;
    filter.succeed(&["reload"])?;
    assert!(filter.entries("198.51.100.200")?.is_empty());
    filter.stop()?;
    filter.configure("")?;
    filter.launch()?;
    assert!(filter.entries(&source)?.is_empty(), "nobody lists it any more");
    Ok(())
}

#[test]
fn earlier_entries_stay_until_every_feed_has_a_list() -> Result<()> {
    let lab = Lab::new()?;
    let server = ListServer::start_in(&lab.phone, address(), Reply::list(list(true, 19)))?;
    let mut filter = start(&lab, configuration("public", "list.txt"))?;
    wait_for(&filter, "public", 20)?;
    // Neither the file nor the server is available.
    server.reply(Reply::new("500 Oh", &[], ""));
    filter.stop()?;
    std::fs::remove_dir_all(filter.state_directory().join("feeds"))?;
    filter.launch()?;
    let source = ATTACKER.to_string();
    assert_eq!(filter.entries(&source)?.len(), 1);
    let warnings = filter.json(&["status"])?["warnings"].to_string();
    assert!(warnings.contains("20 networks that feeds listed before"), "{warnings}");
    assert!(failure(&filter, &["unban", &source])?.contains("of an earlier run"));
    server.reply(Reply::list(list(false, 19)));
    filter.succeed(&["feed", "sync"])?;
    wait_until("the earlier list goes", SOON, || Ok(filter.entries(&source)?.is_empty()))?;
    assert_eq!(row(&filter, "public")?["ipv4"], 19);
    Ok(())
}
