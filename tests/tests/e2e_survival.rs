//! The filter outlives its daemon: it goes on dropping when that is killed, a new one adopts it without a gap, and a ban
//! ends when it should with nobody there to end it.

use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sip_xdp_tests::topology::{ATTACKER, OUTSIDE, PBX_WAN, WAN};
use sip_xdp_tests::{Attacker, Capture, Filter, Lab, Phone, Registrar, stream, wait_until};

#[test]
fn the_filter_goes_on_when_the_daemon_is_killed() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let phone = Phone::new(&lab.phone, lab.directory());
    let source = ATTACKER.to_string();
    let mut svcrack = Attacker::new(&lab.attacker, lab.directory()).crack("101")?;
    wait_until("the source is banned", Duration::from_secs(10), || filter.is_banned(&source))?;

    filter.kill9()?;
    sleep(Duration::from_millis(300));
    let (expression, received) = (format!("udp and src host {source}"), registrar.received_from(ATTACKER));
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
    // A reboot: what was loaded is gone, the state directory is not.
    filter.unload()?;
    filter.launch()?;
    let after = (filter.json(&["block", "list"])?, filter.json(&["trust", "list"])?);
    println!("blocks and trust after an adoption and after a reboot: {} {}", after.0, after.1);
    assert_eq!(after, before);
    Ok(())
}
