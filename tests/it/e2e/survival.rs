//! The filter without its daemon: it keeps dropping, a new daemon adopts it without a gap, and bans
//! expire on time by themselves.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sip_xdp_tests::topology::{ATTACKER, OUTSIDE, PBX_WAN, WAN};
use sip_xdp_tests::{
    Attacker, Capture, Filter, FilterOptions, Lab, Phone, Registrar, stream, wait_until,
};

#[test]
fn the_filter_goes_on_when_the_daemon_is_killed() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let phone = Phone::new(&lab.phone, lab.directory());
    let source = ATTACKER.to_string();
    let mut svcrack = Attacker::new(&lab.attacker, lab.directory()).crack("101")?;
    wait_until("the source is banned", Duration::from_secs(10), || filter.is_banned(&source))?;
    // The ledger has it a moment before the tables: the first entry of a prefix length waits for a
    // grace period.
    let is_enforced = || Ok(filter.packets(WAN, "drop.blocked")? > 0);
    wait_until("the ban is in force", Duration::from_secs(10), is_enforced)?;

    filter.kill9()?;
    sleep(Duration::from_millis(300));
    let (expression, received) =
        (format!("udp and src host {source}"), registrar.received_from(ATTACKER));
    let sent = Capture::start(&lab.attacker, OUTSIDE, &expression, lab.directory())?;
    let seen = Capture::start(&lab.pbx, WAN, &expression, lab.directory())?;
    sleep(Duration::from_secs(3));
    assert_eq!(phone.register()?.status, 200, "with the daemon dead");
    assert!(filter.is_banned(&source)?, "reads must work with the daemon dead");
    let dropped = filter.packets(WAN, "drop.blocked")?;

    filter.launch()?;
    sleep(Duration::from_secs(2));
    assert!(filter.is_banned(&source)?, "the new daemon does not know the ban");
    assert!(filter.packets(WAN, "drop.blocked")? > dropped, "the counters did not go on");
    assert_eq!(phone.register()?.status, 200, "with the new daemon");
    svcrack.stop(nix::sys::signal::Signal::SIGTERM)?;
    let (sent, seen) = (sent.stop()?.len(), seen.stop()?.len());
    println!("daemon killed and replaced during an attack: {sent} sent, {seen} passed");
    assert!(sent > 300, "only {sent} were sent");
    assert_eq!((seen, registrar.received_from(ATTACKER)), (0, received));
    Ok(())
}

#[test]
fn restarts_let_nothing_through() -> Result<()> {
    const RESTARTS: u32 = 20;
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    let before = filter.packets(WAN, "drop.blocked")?;
    let seen = Capture::start(&lab.pbx, WAN, "udp", lab.directory())?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 1000)?;
    let start = SystemTime::now();
    for restart in 0..RESTARTS {
        // Half of them are crashes.
        if restart % 2 == 0 {
            filter.stop()?
        } else {
            filter.kill9()?
        }
        filter.launch().with_context(|| format!("restart {restart}"))?;
    }
    let took = start.elapsed()?;
    let sent = stream.stop()?;
    let seen = seen.stop()?.len();
    let dropped = filter.packets(WAN, "drop.blocked")? - before;
    println!("{RESTARTS} restarts in {took:.1?}: {sent} sent, {dropped} dropped, {seen} passed");
    assert!(sent > 1000, "only {sent} were sent");
    assert_eq!((seen, dropped), (0, sent));
    Ok(())
}

#[test]
fn a_ban_ends_in_time_without_the_daemon() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let seen = Capture::start(&lab.pbx, WAN, "udp and dst port 5060", lab.directory())?;
    let source = ATTACKER.to_string();
    let added = SystemTime::now();
    filter.succeed(&["block", "add", &source, "--ttl", "3s"])?;
    let stream = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 100)?;
    assert!(!filter.entries(&source)?.is_empty());
    filter.kill9()?;
    wait_until("packets pass again", Duration::from_secs(8), || Ok(!seen.packets()?.is_empty()))?;
    let sent = stream.stop()?;
    let seen = seen.stop()?;
    let took = seen[0].at.duration_since(added)?;
    println!("a ban of 3 s with the daemon dead: packets pass after {took:.2?} ({sent} sent)");
    assert!((Duration::from_secs(3)..Duration::from_secs(4)).contains(&took), "after {took:?}");
    assert!(filter.entries(&source)?.is_empty(), "an expired ban is still listed");
    Ok(())
}

#[test]
fn manual_blocks_survive_a_restart() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    for network in ["192.0.2.0/24", "2001:db8:bad::/48", "198.51.100.77"] {
        filter.succeed(&["block", "add", network, "--reason", "seen before"])?;
    }
    filter.succeed(&["trust", "add", "192.0.2.7"])?;
    let before = (filter.json(&["block", "list"])?, filter.json(&["trust", "list"])?);
    filter.restart()?;
    assert_eq!((filter.json(&["block", "list"])?, filter.json(&["trust", "list"])?), before);
    // A reboot: kernel state is lost, the state directory is not.
    filter.unload()?;
    filter.launch()?;
    let after = (filter.json(&["block", "list"])?, filter.json(&["trust", "list"])?);
    println!("blocks and trust after an adoption and after a reboot: {} {}", after.0, after.1);
    assert_eq!(after, before);
    Ok(())
}

#[test]
fn a_ban_survives_a_crash_and_a_reboot() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let source = ATTACKER.to_string();
    let mut svcrack = Attacker::new(&lab.attacker, lab.directory()).crack("101")?;
    wait_until("the source is banned", Duration::from_secs(10), || filter.is_banned(&source))?;
    svcrack.stop(nix::sys::signal::Signal::SIGTERM)?;
    sleep(Duration::from_millis(500));
    let before = filter.entries(&source)?;
    // The daemon dies, and kernel state is lost.
    filter.kill9()?;
    let copy = lab.directory().join("state-at-the-crash");
    copy_files(&filter.state_directory(), &copy)?;
    filter.unload()?;
    fs::remove_dir_all(filter.state_directory())?;
    copy_files(&copy, &filter.state_directory())?;
    filter.launch()?;
    let after = filter.entries(&source)?;
    println!("a ban before a crash and after a reboot: {before:?} {after:?}");
    for field in ["network", "owner", "tier", "reason", "added"] {
        assert_eq!(after[0][field], before[0][field], "{field}");
    }
    assert!(filter.is_banned(&source)?);
    Ok(())
}

#[test]
fn a_broken_store_is_set_aside_and_the_filter_starts() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    let aside = |filter: &Filter| -> Result<usize> {
        let names = fs::read_dir(filter.state_directory())?
            .map(|entry| Ok(entry?.file_name().into_string()));
        let names: Vec<_> = names.collect::<Result<_>>()?;
        Ok(names.iter().flatten().filter(|name| name.starts_with("state.db.corrupt-")).count())
    };
    // While the filter is loaded, its blocks do not depend on the file.
    filter.stop()?;
    fs::write(filter.state_directory().join("state.db"), "{ this is not what it was }")?;
    filter.launch()?;
    assert_eq!(aside(&filter)?, 1);
    assert_eq!(filter.entries(&ATTACKER.to_string())?.len(), 1, "the ban in the kernel is gone");
    let warnings = filter.json(&["status"])?["daemon"]["warnings"].to_string();
    assert!(
        warnings.contains("state.db is corrupt") && warnings.contains("set aside as"),
        "{warnings}"
    );

    // The new file has it. Then a reboot with half a file.
    filter.unload()?;
    let half = fs::metadata(filter.state_directory().join("state.db"))?.len() / 2;
    fs::OpenOptions::new()
        .write(true)
        .open(filter.state_directory().join("state.db"))?
        .set_len(half)?;
    filter.launch()?;
    assert_eq!(aside(&filter)?, 2);
    assert_eq!(filter.json(&["block", "list"])?, serde_json::json!([]));
    filter.succeed(&["block", "add", "192.0.2.1"])?;
    filter.unload()?;
    filter.launch()?;
    assert_eq!(filter.entries("192.0.2.1")?.len(), 1, "the new file does not work");
    println!("two broken stores were set aside: {warnings}");
    Ok(())
}

#[test]
fn without_a_place_for_its_state_the_filter_works() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::prepare(&lab.pbx, lab.directory(), FilterOptions::default())?;
    fs::write(filter.state_directory(), "a file where the directory should be")?;
    filter.launch()?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    let warnings = |filter: &Filter| -> Result<String> {
        Ok(filter.json(&["status"])?["daemon"]["warnings"].to_string())
    };
    let said = warnings(&filter)?;
    assert!(said.contains("the lists would not survive a reboot"), "{said}");
    fs::remove_file(filter.state_directory())?;
    let over = || Ok(!warnings(&filter)?.contains("the lists would not survive"));
    wait_until("the state can be written", Duration::from_secs(5), over)?;
    filter.unload()?;
    filter.launch()?;
    assert_eq!(
        filter.entries(&ATTACKER.to_string())?.len(),
        1,
        "what was blocked meanwhile did not survive"
    );
    println!("without a state directory: {said}");
    Ok(())
}

#[test]
fn the_lists_of_an_earlier_version_are_read_once() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = Filter::prepare(&lab.pbx, lab.directory(), FilterOptions::default())?;
    let earlier = filter.state_directory().join("lists.json");
    let entry = r#"{"network":"192.0.2.0/24","auto":false,"unproven":false,
        "added":"2026-01-02T03:04:05Z","expires":null,"reason":"by hand"}"#;
    fs::create_dir_all(filter.state_directory())?;
    fs::write(&earlier, format!(r#"{{"schema":1,"block":[{entry}],"trust":[]}}"#))?;
    filter.launch()?;
    assert_eq!(filter.entries("192.0.2.0/24")?[0]["added"], "2026-01-02T03:04:05Z");
    assert!(!earlier.exists() && filter.state_directory().join("lists.json.imported").exists());
    filter.succeed(&["block", "del", "192.0.2.0/24"])?;
    filter.unload()?;
    filter.launch()?;
    assert_eq!(
        filter.json(&["block", "list"])?,
        serde_json::json!([]),
        "what was removed came back"
    );
    Ok(())
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
