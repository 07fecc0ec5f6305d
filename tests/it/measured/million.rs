//! A feed of a million networks: it is loaded, refreshed and taken over by the next daemon while a
//! listed source and an unlisted phone keep sending. Not one packet of the one passes, not one of
//! the other is dropped, and commands are answered all the while. Needs root and Linux 6.6 or
//! later.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sip_xdp_tests::topology::{ATTACKER, LAN, PBX_LAN, PBX_WAN, PHONE, WAN};
use sip_xdp_tests::usage::memory;
use sip_xdp_tests::{Filter, FilterOptions, Lab, Stream, stream};

const COUNT: u32 = 1_000_000;
/// A debug build on a busy machine; what it takes is printed.
const PATIENT: Duration = Duration::from_secs(180);

/// A million lines, the attacker's among them; the first hundredth of the others depends on the
/// version.
fn write_list(path: &Path, version: u32) -> Result<()> {
    let mut text = format!("# version {version}\n{ATTACKER}\n");
    for number in 0..COUNT - 1 {
        let shift = if number < COUNT / 100 { 0x1000_0000 + version } else { 0 };
        writeln!(text, "{}", Ipv4Addr::from(0x1400_0000 + 31 * number + shift))?;
    }
    let new = path.with_extension("new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).context("cannot write the list")
}

/// Waits for the feed to have had a round of this number, and for a million networks to be in
/// force. Returns how long that took and the longest that any command waited for its answer.
fn wait_loaded(filter: &Filter<'_>, round: u64) -> Result<(Duration, Duration)> {
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        let asked = Instant::now();
        let rows = filter.call(&json!({ "command": "feed_list" }))?;
        longest = longest.max(asked.elapsed());
        let row = &rows[0];
        ensure!(row["error"].is_null(), "{row}");
        if row["ipv4"].as_u64() == Some(COUNT.into()) && row["round"].as_u64() >= Some(round) {
            return Ok((start.elapsed(), longest));
        }
        ensure!(start.elapsed() < PATIENT, "not loaded within {PATIENT:?}: {row}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_million_networks_under_traffic() -> Result<()> {
    let lab = Lab::new()?;
    let list = lab.directory().join("million.list");
    write_list(&list, 0)?;
    let configuration = format!(
        "[capacity]\nnetworks = 1200000\n\n[[feeds]]\nname = \"million\"\nurl \
         = \"file://{}\"\nevery = \"1h\"\n",
        list.display()
    );
    let options = FilterOptions { configuration, ..FilterOptions::default() };
    let mut filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    let start = Instant::now();
    // A phone that nobody knows, within what strangers may send.
    let (from, to) = (SocketAddr::from((PHONE, 5070)), SocketAddr::from((PBX_LAN, 5060)));
    let phone = Stream::start(stream::socket(&lab.phone, from, to)?, 20, |_| b"\r\n\r\n".to_vec())?;
    let (_, waited) = wait_loaded(&filter, 0)?;
    let pid = filter.pid().context("no daemon")?;
    println!(
        "first load: {:.2?}, longest answer {waited:.2?}, {:.0} MiB",
        start.elapsed(),
        memory(pid)?
    );

    let passed_before = passed(&filter)?;
    let blocked_before = filter.packets(WAN, "drop.blocked")?;
    let attack = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    write_list(&list, 1)?;
    let answer =
        filter.call(&json!({ "command": "feed_sync", "name": "million", "accept": false }))?;
    let round = answer["rounds"]["million"].as_u64().context("no round")?;
    let (took, waited) = wait_loaded(&filter, round)?;
    let rows = filter.call(&json!({ "command": "feed_list" }))?;
    let memory = memory(pid)?;
    println!(
        "refresh: {took:.2?}, longest answer {waited:.2?}, {memory:.0} MiB, {} added and {} \
         removed",
        rows[0]["added"], rows[0]["removed"]
    );
    assert_eq!(
        (&rows[0]["added"], &rows[0]["removed"]),
        (&(COUNT / 100).into(), &(COUNT / 100).into())
    );
    // The next daemon takes it over, from the kernel and from disk.
    filter.kill9()?;
    let start = Instant::now();
    filter.launch()?;
    let ready = start.elapsed();
    wait_loaded(&filter, 0)?;
    println!("a crash, and ready again after {ready:.2?}, all known after {:.2?}", start.elapsed());
    let (sent, phoned) = (attack.stop()?, phone.stop()?);
    sleep(Duration::from_millis(300));
    let blocked = filter.packets(WAN, "drop.blocked")? - blocked_before;
    let (leaked, dropped) = (passed(&filter)? - passed_before, filter.dropped(LAN)?);
    println!(
        "{sent} packets of a listed source, {leaked} passed; {phoned} of an unlisted phone, \
         {dropped} dropped"
    );
    assert_eq!((leaked, blocked), (0, sent));
    assert_eq!(dropped, 0);
    ensure!(sent > 500 && phoned > 20, "too few to tell");
    Ok(())
}

/// What passed of those in front of the interface to the world.
fn passed(filter: &Filter<'_>) -> Result<u64> {
    ["unknown", "response", "keepalive", "unparsed", "good", "peer", "trusted"]
        .iter()
        .map(|reason| filter.packets(WAN, &format!("pass.{reason}")))
        .sum()
}
