//! Persistence of the daemon's knowledge: over a restart, a crash, and a reboot without kernel
//! state. Needs root and Linux 6.6 or later.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::bans::Ban;
use sip_xdp_tests::phones::FIRST_PORT;
use sip_xdp_tests::topology::{ATTACKER, LAN, OUTSIDE, PBX_LAN, PBX_WAN, PHONE, address};
use sip_xdp_tests::{
    Filter, FilterOptions, Guess, Guesser, Lab, Phones, PhonesOptions, Registrar, RegistrarOptions,
    Stream, stream, wait_for_a_nonce_of_its_own, wait_until,
};

const PROMPT: Duration = Duration::from_secs(15);
/// The port of the misconfigured phone.
const BAD_PORT: u16 = 5071;

fn registrar(lab: &Lab) -> Result<Registrar> {
    let options = RegistrarOptions { phones: true, ..RegistrarOptions::default() };
    Registrar::start_with(&lab.pbx, lab.directory(), &options)
}

fn start<'a>(lab: &'a Lab, configuration: &str) -> Result<Filter<'a>> {
    let configuration = configuration.to_owned();
    Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )
}

/// A guesser at the attacker's usual place.
fn guess(lab: &Lab, every: Duration) -> Result<Guesser> {
    wait_for_a_nonce_of_its_own();
    let (from, to) = (SocketAddr::from((ATTACKER, 5060)), SocketAddr::from((PBX_WAN, 5060)));
    Guesser::start(&lab.attacker, Guess { every, ..Guess::new(from, to, "101") })
}

/// The output of `block list` without changing values; ends agree to a second.
fn listed(filter: &Filter<'_>) -> Result<Vec<(Value, i64)>> {
    let list = filter.json(&["block", "list"])?;
    let rows = list.as_array().context("`block list` is no array")?;
    let row = |row: &Value| {
        let expires: jiff::Timestamp =
            row["expires"].as_str().context("a ban that does not end")?.parse()?;
        let mut row = row.clone();
        let fields = row.as_object_mut().context("no object")?;
        fields.remove("hits");
        fields.remove("expires");
        Ok((row, expires.as_second()))
    };
    rows.iter().map(row).collect()
}

#[test]
fn bans_and_phones_are_known_again() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = registrar(&lab)?;
    let mut filter = start(&lab, "")?;
    // Three offices with known phones, the first with a misconfigured phone.
    let addresses = [10, 11, 12].map(|host| Ipv4Addr::new(203, 0, 113, host));
    for further in &addresses[1..] {
        address(&lab.phone, OUTSIDE, &[&format!("{further}/24")])?;
    }
    let options =
        PhonesOptions { count: 30, addresses: addresses.to_vec(), ..PhonesOptions::default() };
    let phones = Phones::start(&lab.phone, &options)?;
    phones.wait_registered(30, PROMPT)?;
    drop(phones);
    wait_until("three offices are known", PROMPT, || Ok(filter.sources("good")? == 3))?;
    wait_for_a_nonce_of_its_own();
    let to = SocketAddr::from((PBX_LAN, 5060));
    let bad =
        Guesser::start(&lab.phone, Guess::new(SocketAddr::from((PHONE, BAD_PORT)), to, "bob"))?;
    let is_flow =
        |ban: &Ban| ban.port == Some(BAD_PORT) && ban.network.starts_with(&PHONE.to_string());
    wait_until("the flow is banned", PROMPT, || Ok(filter.bans()?.iter().any(is_flow)))
        .with_context(|| filter.decisions())?;
    drop(bad);
    let guesser = guess(&lab, Duration::from_millis(50))?;
    filter.wait_for_ban(&ATTACKER.to_string(), PROMPT)?;
    drop(guesser);
    let before = listed(&filter)?;
    println!("{before:?}");
    assert_eq!(before.len(), 2, "{}", filter.decisions());

    for end in ["a restart", "a crash", "a reboot"] {
        match end {
            "a restart" => filter.stop()?,
            "a crash" => filter.kill9()?,
            _ => filter.unload()?,
        }
        filter.launch()?;
        // Immediately, not after a while.
        assert_eq!(filter.sources("good")?, 3, "after {end}");
        let after = listed(&filter)?;
        assert_eq!(after.len(), before.len(), "after {end}: {after:?}");
        for ((row, expires), (row_before, expires_before)) in after.iter().zip(&before) {
            assert_eq!(row, row_before, "after {end}");
            assert!(
                expires.abs_diff(*expires_before) <= 1,
                "after {end}: {row} until {expires}, not {expires_before}"
            );
        }
        // Registered phones pass at ten times the rate of unknown sources, and the bad one is
        // dropped.
        let limited = filter.packets(LAN, "drop.limited")?;
        let blocked = filter.packets(LAN, "drop.blocked")?;
        let good = flood(&lab, PHONE, FIRST_PORT)?;
        let bad = flood(&lab, PHONE, BAD_PORT)?;
        sleep(Duration::from_secs(2));
        let (good, bad) = (good.stop()?, bad.stop()?);
        sleep(Duration::from_millis(200));
        let limited = filter.packets(LAN, "drop.limited")? - limited;
        let blocked = filter.packets(LAN, "drop.blocked")? - blocked;
        println!(
            "after {end}: {good} of a known phone, {limited} limited; {bad} of a banned flow, \
             {blocked} blocked"
        );
        assert_eq!((limited, blocked), (0, bad), "after {end}");
    }
    Ok(())
}

fn flood(lab: &Lab, from: Ipv4Addr, port: u16) -> Result<Stream> {
    let (from, to) = (SocketAddr::from((from, port)), SocketAddr::from((PBX_LAN, 5060)));
    let payload = move |number| {
        let (sequence, call_id) =
            (u32::try_from(number).unwrap_or(u32::MAX), format!("flood-{port}-{number}"));
        sip_xdp_tests::sip::Request {
            method: "OPTIONS",
            user: "ping",
            call_id: &call_id,
            sequence,
            from,
            to,
        }
        .bytes()
    };
    Stream::start(stream::socket(&lab.phone, from, to)?, 100, payload)
}

/// Four of seven passwords before, and three after.
fn restarts_do_not_reset_slow_evidence(
    begins_anew: impl FnOnce(&mut Filter<'_>) -> Result<()>,
) -> Result<()> {
    const PAUSE: Duration = Duration::from_secs(1);
    let lab = Lab::new()?;
    let _registrar = registrar(&lab)?;
    let mut filter = start(&lab, "[detect.rejected]\ncount = 7\n")?;
    let guesser = guess(&lab, PAUSE)?;
    wait_until("four passwords are tried", PROMPT, || Ok(guesser.rejected() >= 4))?;
    let first = guesser.tried();
    drop(guesser);
    // They might have been retries.
    sleep(Duration::from_secs(6));
    filter.nobody_is_banned("for four passwords")?;
    begins_anew(&mut filter)?;
    let guesser = guess(&lab, PAUSE)?;
    let ban = filter.wait_for_ban(&ATTACKER.to_string(), PROMPT)?;
    let second = guesser.tried();
    println!("{first} passwords before, {second} after: {ban:?}");
    assert!(first + second < 7 + 3, "{first} and {second} passwords were tried");
    assert!(ban.reason.contains("7 rejected passwords"), "{ban:?}");
    Ok(())
}

#[test]
fn a_patient_guesser_gains_nothing_by_a_restart() -> Result<()> {
    restarts_do_not_reset_slow_evidence(|filter| filter.restart())
}

#[test]
fn a_patient_guesser_gains_nothing_by_a_reboot() -> Result<()> {
    restarts_do_not_reset_slow_evidence(|filter| {
        filter.unload()?;
        filter.launch()
    })
}

/// Lengths in seconds of all bans of a network so far, of earlier daemons as well.
fn lengths(filter: &Filter<'_>, network: &str) -> Result<Vec<u64>> {
    let start = format!(" ban {network} ");
    let lines = filter.log().into_iter().map(|line| line.text);
    let bans = lines.filter(|line| line.contains(&start));
    bans.map(|line| {
        assert!(line.contains(" tier=proven "), "{line}");
        let rest = line.split_once(" for=").and_then(|(_, rest)| rest.split_once(" dry_run="));
        let (length, _) = rest.with_context(|| format!("no length: {line}"))?;
        Ok(length.parse::<jiff::SignedDuration>()?.unsigned_abs().as_secs())
    })
    .collect()
}

#[test]
fn bans_grow_unless_pardoned() -> Result<()> {
    const FIRST_SECONDS: u64 = 3;
    let lab = Lab::new()?;
    let _registrar = registrar(&lab)?;
    let mut filter = start(&lab, &format!("[bans]\nfirst = \"{FIRST_SECONDS}s\"\n"))?;
    let source = ATTACKER.to_string();
    // A slow machine may get more than one before the guesser ends: these grow as well.
    let next = |filter: &Filter<'_>| -> Result<usize> {
        let before = lengths(filter, &source)?.len();
        let _guesser = guess(&lab, Duration::from_millis(50))?;
        wait_until("the next ban", 2 * PROMPT, || Ok(lengths(filter, &source)?.len() > before))
            .with_context(|| filter.decisions())?;
        Ok(lengths(filter, &source)?.len())
    };
    let first = next(&filter)?;
    filter.succeed(&["unban", &source])?;
    // What was banned before the pardon arrived belongs to what it ended.
    let pardoned = lengths(&filter, &source)?.len();
    let after_pardon = next(&filter)?;
    let after_end = next(&filter)?;
    // It reaches the disk within a fifth of a second, if that is not busy.
    sleep(Duration::from_secs(1));
    filter.kill9()?;
    filter.launch()?;
    let after_crash = next(&filter)?;
    filter.unload()?;
    filter.launch()?;
    let after_reboot = next(&filter)?;
    let all = lengths(&filter, &source)?;
    println!(
        "bans in seconds: {all:?}; {first} before a pardon, {} after it, {} after these were over, \
         {} after a crash, {} after a reboot",
        after_pardon - pardoned,
        after_end - after_pardon,
        after_crash - after_end,
        after_reboot - after_crash
    );
    let doubling: Vec<u64> = (0..all.len()).map(|n| FIRST_SECONDS << n).collect();
    for bans in [&all[..pardoned], &all[pardoned..]] {
        assert_eq!(bans, &doubling[..bans.len()]);
    }
    Ok(())
}
