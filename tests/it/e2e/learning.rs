//! `learn`: after a first start volume is limited but bans nothing, for exactly the configured
//! time. Needs root and Linux 6.6 or later.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use sip_xdp_tests::topology::{PBX_WAN, WAN};
use sip_xdp_tests::{
    Filter, FilterOptions, Guess, Guesser, Lab, Registrar, stream, wait_for_a_nonce_of_its_own,
    wait_until,
};

const PROMPT: Duration = Duration::from_secs(10);

fn start<'a>(lab: &'a Lab, learn: &str) -> Result<Filter<'a>> {
    let configuration = format!("learn = {learn:?}\n");
    Filter::start_with(
        &lab.pbx,
        lab.directory(),
        FilterOptions { configuration, ..FilterOptions::default() },
    )
}

fn is_learning(filter: &Filter<'_>) -> Result<bool> {
    Ok(filter.json(&["status"])?["daemon"]["learning"] == true)
}

/// Whether a flood from a new address is banned.
fn flood_is_banned(lab: &Lab, filter: &Filter<'_>, number: u8) -> Result<bool> {
    let source = lab.further_attacker(number)?;
    let limited = filter.packets(WAN, "drop.limited")?;
    let flood = stream::registers(&lab.attacker, source, PBX_WAN, 200)?;
    let banned =
        wait_until("", Duration::from_secs(4), || filter.is_banned(&source.to_string())).is_ok();
    let sent = flood.stop()?;
    let limited = filter.packets(WAN, "drop.limited")? - limited;
    println!("{source} sent {sent}, {limited} over the limit; banned: {banned}");
    assert!(limited > 0, "a limit holds whether or not it learns");
    Ok(banned)
}

fn guesser_is_banned(lab: &Lab, filter: &Filter<'_>, number: u8) -> Result<()> {
    let source = lab.further_attacker(number)?;
    wait_for_a_nonce_of_its_own();
    let guess =
        Guess::new(SocketAddr::from((source, 5060)), SocketAddr::from((PBX_WAN, 5060)), "101");
    let _guesser = Guesser::start(&lab.attacker, guess)?;
    filter.wait_for_ban(&source.to_string(), PROMPT)?;
    let is_logged = || Ok(filter.ban_kind(&source.to_string()).as_deref() == Some("rejected"));
    wait_until("the log tells the ban", PROMPT, is_logged)?;
    Ok(())
}

#[test]
fn volume_bans_nobody_but_wrong_passwords_do() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut filter = start(&lab, "1h")?;
    assert!(is_learning(&filter)?);
    assert!(!flood_is_banned(&lab, &filter, 0)?);
    assert!(
        filter.log().iter().any(|line| line.text.contains("while learning")),
        "{}",
        filter.decisions()
    );
    guesser_is_banned(&lab, &filter, 1)?;
    // A new daemon continues it.
    filter.restart()?;
    assert!(is_learning(&filter)?, "after a restart");
    assert!(!flood_is_banned(&lab, &filter, 2)?);
    filter.kill9()?;
    filter.launch()?;
    assert!(is_learning(&filter)?, "after a crash");
    filter.unload()?;
    filter.launch()?;
    assert!(is_learning(&filter)?, "after a reboot");
    // It can be ended by configuration.
    filter.configure("learn = \"0s\"\n")?;
    filter.restart()?;
    assert!(!is_learning(&filter)?);
    assert!(flood_is_banned(&lab, &filter, 3)?);
    Ok(())
}

#[test]
fn it_ends_when_it_should_and_does_not_begin_anew() -> Result<()> {
    const LEARN: Duration = Duration::from_secs(10);
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let begun = Instant::now();
    let mut filter = start(&lab, "10s")?;
    let ready = Instant::now();
    sleep(LEARN / 2);
    filter.restart()?;
    assert!(is_learning(&filter)? || begun.elapsed() > LEARN);
    sleep((LEARN + Duration::from_millis(200)).saturating_sub(ready.elapsed()));
    assert!(!is_learning(&filter)?, "the restart has begun it anew");
    filter.unload()?;
    filter.launch()?;
    assert!(!is_learning(&filter)?, "the reboot has begun it anew");
    assert!(flood_is_banned(&lab, &filter, 0)?);
    Ok(())
}

/// With stored state a start is not the first one.
#[test]
fn a_state_without_it_is_no_first_start() -> Result<()> {
    let lab = Lab::new()?;
    let mut filter = start(&lab, "0s")?;
    assert!(!is_learning(&filter)?);
    filter.unload()?;
    filter.configure("learn = \"1h\"\n")?;
    filter.launch()?;
    assert!(!is_learning(&filter)?);
    Ok(())
}
