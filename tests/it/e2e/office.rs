//! An office with one misconfigured phone: that phone is banned, and the others are not affected.
//! Needs root and Linux 6.6 or later.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use sip_xdp_tests::topology::{LAN, PBX_LAN, PHONE};
use sip_xdp_tests::{
    Filter, FilterOptions, Guess, Guesser, Lab, Party, Phones, PhonesOptions, Registrar,
    RegistrarOptions, wait_until,
};

const PORT: u16 = 5071;
const TRIES: u32 = 3;
/// Retry interval of a refused phone.
const PAUSE: Duration = Duration::from_millis(20_500);

#[test]
fn a_phone_with_a_wrong_password_is_banned_alone() -> Result<()> {
    let lab = Lab::new()?;
    let options = RegistrarOptions { phones: true, ..RegistrarOptions::default() };
    let _registrar = Registrar::start_with(&lab.pbx, lab.directory(), &options)?;
    let configuration = format!("[detect.rejected]\ncount = {TRIES}\n");
    let filter = Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )?;
    let refresh = Some(Duration::from_secs(2));
    let phones = Phones::start(
        &lab.phone,
        &PhonesOptions { count: 1, refresh, ..PhonesOptions::default() },
    )?;
    phones.wait_registered(1, Duration::from_secs(10))?;

    let (from, to) = (SocketAddr::from((PHONE, PORT)), SocketAddr::from((PBX_LAN, 5060)));
    let bad = Guesser::start(&lab.phone, Guess { every: PAUSE, ..Guess::new(from, to, "bob") })?;
    let patience = PAUSE * TRIES + Duration::from_secs(10);
    wait_until("somebody is banned", patience, || Ok(!filter.bans()?.is_empty())).with_context(
        || format!("{} tries, {} rejected; {}", bad.tried(), bad.rejected(), filter.decisions()),
    )?;
    let tried = bad.tried();
    drop(bad);
    let bans = filter.bans()?;
    println!("after {tried} tries: {bans:?}");
    assert_eq!(
        (bans.len(), bans[0].port, bans[0].tier.as_str()),
        (1, Some(PORT), "proven"),
        "{bans:?}"
    );
    assert!(bans[0].network.starts_with(&PHONE.to_string()), "{bans:?}");
    let lasts = bans[0].lasts.context("it does not end")?.as_secs_f64().round();
    assert_eq!(lasts, 600.0, "it is a first one, whenever it comes");
    assert!(
        filter.log().iter().any(|line| line.text.contains("kind=misconfigured")),
        "{}",
        filter.decisions()
    );
    let shown = filter.succeed(&["block", "list"])?;
    println!("{shown}");
    assert!(shown.contains(&format!("{PHONE} port={PORT} ")), "{shown}");

    // The bad phone is dropped, the other one is not.
    let party = Party::open(&lab.phone, from)?;
    let (accepted, blocked) = (phones.tally().accepted, filter.packets(LAN, "drop.blocked")?);
    party.request("OPTIONS", "ping", to)?;
    wait_until("it is dropped", Duration::from_secs(5), || {
        Ok(filter.packets(LAN, "drop.blocked")? == blocked + 1)
    })?;
    assert_eq!(party.received().len(), 0);
    wait_until("the other phone registers again", Duration::from_secs(10), || {
        Ok(phones.tally().accepted >= accepted + 2)
    })?;
    let tally = phones.tally();
    assert_eq!((tally.repeated, tally.rejected, tally.refused), (0, 0, 0), "{tally:?}");

    let removed = filter.succeed(&["unban", &PHONE.to_string()])?;
    println!("{removed}");
    assert!(removed.starts_with(&format!("unblocked {PHONE} port={PORT} ")), "{removed}");
    assert_eq!(filter.bans()?, []);
    party.request("OPTIONS", "ping", to)?;
    party.wait_for("an answer", Duration::from_secs(5), |received| {
        received.text.starts_with("SIP/2.0 200")
    })?;
    Ok(())
}
