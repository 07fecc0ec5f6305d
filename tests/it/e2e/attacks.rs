//! Real attack tools: each is banned within seconds, its later packets are dropped in the driver,
//! and a phone keeps registering. Needs root, Linux 6.6 or later, and the tools that `cargo xtask
//! test` installs.

use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use nix::sys::signal::Signal;
use sip_xdp_tests::process::Process;
use sip_xdp_tests::topology::{ATTACKER, ATTACKER6, OUTSIDE, PBX_WAN6, WAN};
use sip_xdp_tests::{Attacker, Capture, Filter, Lab, Phone, Registrar, stream, wait_until};

/// From the first packet to the ban.
const PROMPT: Duration = Duration::from_secs(2);

/// Runs one attack against the filter and checks everything that is promised about it.
fn is_stopped(
    what: &str,
    prepare: &[&[&str]],
    attack: impl FnOnce(&Attacker<'_>) -> Result<Process>,
) -> Result<()> {
    let lab = Lab::new()?;
    for arguments in prepare {
        lab.pbx.ip(*arguments)?;
    }
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let phone = Phone::new(&lab.phone, lab.directory());
    assert_eq!(phone.register()?.status, 200, "before the attack");

    let expression = format!("udp and src host {ATTACKER} and dst port 5060");
    let sent = Capture::start(&lab.attacker, OUTSIDE, &expression, lab.directory())?;
    let seen = Capture::start(&lab.pbx, WAN, &expression, lab.directory())?;
    let mut tool = attack(&Attacker::new(&lab.attacker, lab.directory()))?;
    wait_until("the tool sends", Duration::from_secs(15), || Ok(!sent.packets()?.is_empty()))?;
    let ban = wait_until("the source is banned", Duration::from_secs(8), || {
        filter.is_banned(&ATTACKER.to_string())
    });
    let banned_by = SystemTime::now();
    if let Err(error) = ban {
        panic!(
            "{what}: {error:#}; the tool said:\n{}\nthe daemon: {:#?}",
            tool.tail(),
            filter.log()
        );
    }

    sleep(Duration::from_millis(500));
    let received = registrar.received_from(ATTACKER);
    sleep(Duration::from_secs(1));
    assert_eq!(phone.register()?.status, 200, "during the attack");
    sleep(Duration::from_secs(1));
    tool.stop(Signal::SIGTERM)?;
    assert_eq!(phone.register()?.status, 200, "after the attack");

    let (sent, seen) = (sent.stop()?, seen.stop()?);
    let took = banned_by.duration_since(sent[0].at)?;
    let later = sent.iter().filter(|packet| packet.at > banned_by).count();
    let passed = seen.iter().filter(|packet| packet.at > banned_by).count();
    let (blocked, limited) =
        (filter.packets(WAN, "drop.blocked")?, filter.packets(WAN, "drop.limited")?);
    println!(
        "{what}: banned after {took:.2?}; sent {} = {} behind the filter + {limited} limited + \
         {blocked} blocked; \
         {later} after the ban, {passed} of them passed; Kamailio received {received}",
        sent.len(),
        seen.len(),
    );
    println!("{:?}", filter.ban_logged(&ATTACKER.to_string()));
    assert!(took <= PROMPT, "{what}: banned after {took:?}");
    assert!(
        filter.ban_logged(&ATTACKER.to_string()).is_some(),
        "the log does not tell the ban: {:#?}",
        filter.log()
    );
    assert!(
        later > 50,
        "{what} sent only {later} packets after the ban; it said:\n{}",
        tool.tail()
    );
    assert_eq!(passed, 0);
    assert_eq!(sent.len() as u64, seen.len() as u64 + limited + blocked);
    assert_eq!(
        registrar.received_from(ATTACKER),
        received,
        "Kamailio still received requests after the ban"
    );
    Ok(())
}

#[test]
fn svcrack_is_stopped() -> Result<()> {
    is_stopped("svcrack", &[], |attacker| attacker.crack("101"))
}

#[test]
fn svwar_with_register_is_stopped() -> Result<()> {
    is_stopped("svwar -m REGISTER", &[], |attacker| attacker.enumerate("REGISTER"))
}

#[test]
fn svwar_with_options_is_stopped() -> Result<()> {
    is_stopped("svwar -m OPTIONS", &[], |attacker| attacker.enumerate("OPTIONS"))
}

#[test]
fn svwar_with_invite_is_stopped() -> Result<()> {
    is_stopped("svwar -m INVITE", &[], |attacker| attacker.enumerate("INVITE"))
}

/// One request per address, so the PBX has many addresses.
#[test]
fn svmap_is_stopped() -> Result<()> {
    let network = "198.18.0.0/21";
    let many_addresses = ["route", "add", "local", network, "dev", "lo"];
    is_stopped("svmap", &[&many_addresses], |attacker| attacker.map(network))
}

/// A network that contains an own address is judged per host.
#[test]
fn a_flood_over_ipv6_is_stopped() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let expression = format!("udp and src host {ATTACKER6}");
    let seen = Capture::start(&lab.pbx, WAN, &expression, lab.directory())?;
    let flood = stream::registers(&lab.attacker, ATTACKER6, PBX_WAN6, 200)?;
    let took = wait_until("the source is banned", Duration::from_secs(4), || {
        filter.is_banned("2001:db8:66::66")
    })?;
    let received = registrar.received_from(ATTACKER6);
    sleep(Duration::from_secs(2));
    let sent = flood.stop()?;
    let seen = seen.stop()?.len() as u64;
    let dropped = filter.dropped(WAN)?;
    println!(
        "flood over IPv6: banned after {took:.2?}; sent {sent} = {seen} passed + {dropped} dropped"
    );
    assert!(took <= PROMPT, "banned after {took:?}");
    assert_eq!(sent, seen + dropped);
    assert!(received > 0 && registrar.received_from(ATTACKER6) as u64 == seen);
    Ok(())
}
