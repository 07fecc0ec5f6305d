//! A dry run: the same evidence and decisions, but nothing is dropped, and its decisions do not
//! outlast it. Needs root and Linux 6.6 or later.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use sip_xdp_tests::topology::{ATTACKER, LAN, OUTSIDE, PBX_WAN, WAN};
use sip_xdp_tests::{
    Attacker, Capture, Filter, FilterOptions, Guess, Guesser, Lab, Party, Phone, Registrar,
    wait_for_a_nonce_of_its_own, wait_until,
};

const PROMPT: Duration = Duration::from_secs(15);
/// Four prefixes of one number, and one more.
const NUMBERS: [&str; 5] =
    ["00441234567890", "011441234567890", "9011441234567890", "810441234567890", "+441234567890"];

fn pbx() -> SocketAddr {
    SocketAddr::from((PBX_WAN, 5060))
}

fn start<'a>(lab: &'a Lab, configuration: &str) -> Result<Filter<'a>> {
    let configuration = configuration.to_owned();
    Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )
}

/// The attackers' addresses, with the kind of each ban.
struct Attacks {
    addresses: [Ipv4Addr; 3],
    evidence: Vec<String>,
}

/// svcrack, a slow guesser and a fraudster, one after the other, each until its ban and a little
/// longer.
fn attack(lab: &Lab, filter: &Filter<'_>, first: u8) -> Result<Attacks> {
    let addresses = [
        lab.further_attacker(first)?,
        lab.further_attacker(first + 1)?,
        lab.further_attacker(first + 2)?,
    ];
    let [cracker, guesser, fraudster] = addresses;
    wait_for_a_nonce_of_its_own();
    let mut svcrack =
        Attacker::new(&lab.attacker, lab.directory()).address(cracker).crack("101")?;
    let mut evidence = vec![banned_for(filter, cracker)?];
    sleep(Duration::from_secs(1));
    svcrack.stop(Signal::SIGTERM)?;

    wait_for_a_nonce_of_its_own();
    let guessing =
        Guesser::start(&lab.attacker, Guess::new(SocketAddr::from((guesser, 5060)), pbx(), "101"))?;
    evidence.push(banned_for(filter, guesser)?);
    sleep(Duration::from_secs(1));
    drop(guessing);

    let party = Party::open(&lab.attacker, SocketAddr::from((fraudster, 5060)))?;
    for number in NUMBERS {
        party.request("INVITE", number, pbx())?;
        sleep(Duration::from_millis(200));
    }
    evidence.push(banned_for(filter, fraudster)?);
    party.request("INVITE", NUMBERS[0], pbx())?;
    sleep(Duration::from_millis(300));
    Ok(Attacks { addresses, evidence })
}

/// Waits for a ban and returns its kind. Tiers differ: a limited source echoes no nonce.
fn banned_for(filter: &Filter<'_>, source: Ipv4Addr) -> Result<String> {
    filter.wait_for_ban(&source.to_string(), PROMPT)?;
    // The log line follows a moment later.
    let kind = || filter.ban_kind(&source.to_string());
    wait_until("the log tells the ban", PROMPT, || Ok(kind().is_some()))?;
    kind().context("it was just there")
}

#[test]
fn the_same_is_decided_but_nothing_is_dropped() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let enforced = {
        let mut filter = start(&lab, "")?;
        let enforced = attack(&lab, &filter, 0)?;
        assert!(filter.dropped(WAN)? > 0, "enforcing drops");
        filter.unload()?;
        enforced
    };

    let filter = start(&lab, "dry_run = true\n")?;
    let expression = format!("udp and dst host {PBX_WAN} and dst port 5060");
    let sent = Capture::start(&lab.attacker, OUTSIDE, &expression, lab.directory())?;
    let seen = Capture::start(&lab.pbx, WAN, &expression, lab.directory())?;
    let dry = attack(&lab, &filter, 10)?;
    sleep(Duration::from_millis(500));
    let (sent, seen) = (sent.stop()?.len(), seen.stop()?.len());
    println!(
        "enforcing {:?}, in a dry run {:?}; {sent} sent, {seen} passed",
        enforced.evidence, dry.evidence
    );
    assert_eq!(dry.evidence, enforced.evidence, "the evidence differs");
    assert_eq!(sent, seen);
    assert_eq!((filter.dropped(WAN)?, filter.dropped(LAN)?), (0, 0));
    let would =
        (filter.packets(WAN, "would_drop.blocked")?, filter.packets(WAN, "would_drop.limited")?);
    assert!(would.0 > 50, "what a ban would have dropped is counted: {would:?}");
    for address in dry.addresses {
        let rows = filter.entries(&address.to_string())?;
        assert!(!rows.is_empty() && rows.iter().all(|row| row["dry_run"] == true), "{rows:?}");
        let starts = format!("ban {address} ");
        let said = filter
            .log()
            .into_iter()
            .find(|line| line.text.contains(&starts))
            .context("no line")?
            .text;
        assert!(said.contains(" dry_run=true "), "{said}");
    }
    // Everything that passed was received.
    let received: usize =
        dry.addresses.iter().map(|address| registrar.received_from(IpAddr::V4(*address))).sum();
    println!("Kamailio received {received}; would have dropped {would:?}");
    assert_eq!(received, seen);
    Ok(())
}

/// Neither its bans nor its offences remain.
#[test]
fn when_it_is_over_nothing_of_it_is_left() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut filter = start(&lab, "dry_run = true\n")?;
    let source = ATTACKER.to_string();
    let guess = || {
        wait_for_a_nonce_of_its_own();
        Guesser::start(&lab.attacker, Guess::new(SocketAddr::from((ATTACKER, 5060)), pbx(), "101"))
    };
    let guesser = guess()?;
    let dry = filter.wait_for_ban(&source, PROMPT)?;
    drop(guesser);
    // A restart in a dry run keeps it, a reboot does not.
    filter.restart()?;
    assert_eq!(filter.entries(&source)?.len(), 1);

    filter.configure("dry_run = false\n")?;
    filter.succeed(&["reload"])?;
    filter.succeed(&["status", "--check"])?;
    assert_eq!(filter.json(&["block", "list"])?, serde_json::json!([]));
    let party = Party::open(&lab.attacker, SocketAddr::from((ATTACKER, 5070)))?;
    party.request("OPTIONS", "ping", pbx())?;
    party.wait_for("an answer", PROMPT, |received| received.text.starts_with("SIP/2.0 200"))?;
    assert_eq!(filter.packets(WAN, "drop.blocked")?, 0);
    assert_eq!(Phone::new(&lab.phone, lab.directory()).register()?.status, 200);

    // The first ban has the first length.
    let _guesser = guess()?;
    let real = filter.wait_for_ban(&source, PROMPT)?;
    println!("in a dry run {dry:?}, then {real:?}");
    let lasts = real.lasts.context("it does not end")?.as_secs_f64().round();
    assert_eq!((real.tier.as_str(), lasts), ("proven", 600.0));
    wait_until("it is dropped", PROMPT, || Ok(filter.packets(WAN, "drop.blocked")? > 0))?;
    Ok(())
}
