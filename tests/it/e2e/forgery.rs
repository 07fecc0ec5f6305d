//! Forged sources must not harm the owners of the addresses: a known phone, a carrier, a stranger.
//! Needs root and Linux 6.6 or later.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use sip_xdp_tests::forger::forge;
use sip_xdp_tests::phones::{FIRST_PORT, PhonesTally};
use sip_xdp_tests::topology::{OUTSIDE, PBX_WAN, PHONE, WAN, address};
use sip_xdp_tests::{Filter, Lab, Party, Phones, PhonesOptions, Registrar, RegistrarOptions};

/// Forged packets per second, and duration.
const RATE: u32 = 1000;
const TIME: Duration = Duration::from_secs(12);
const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
/// The longest ban on forgeable evidence.
const SHORT: Duration = Duration::from_secs(300);

/// A lab that accepts forged packets, and answers them to their claimed sources.
fn lab() -> Result<Lab> {
    let lab = Lab::new()?;
    lab.accept_forgeries()?;
    address(&lab.phone, OUTSIDE, &[&format!("{PEER}/24")])?;
    lab.pbx.ip(["route", "add", "192.0.2.0/24", "via", "198.51.100.66"])?;
    Ok(lab)
}

fn registrar(lab: &Lab) -> Result<Registrar> {
    let options = RegistrarOptions { phones: true, ..RegistrarOptions::default() };
    Registrar::start_with(&lab.pbx, lab.directory(), &options)
}

/// Forges for a while; returns the number of packets sent.
fn forge_from(
    lab: &Lab,
    source: Ipv4Addr,
    port: impl Fn(u64) -> u16 + Send + 'static,
) -> Result<u64> {
    let forger = forge(
        &lab.attacker,
        SocketAddrV4::new(source, 0),
        SocketAddrV4::new(PBX_WAN, 5060),
        RATE,
        port,
    )?;
    sleep(TIME);
    let sent = forger.stop()?;
    assert!(sent > 8000, "a thousand packets a second were to be forged, not {sent} in {TIME:?}");
    Ok(sent)
}

/// Any port but the phone's.
fn strange_port(number: u64) -> u16 {
    30_000 + (number.wrapping_mul(7919) % 30_000) as u16
}

/// A known phone registers twice a second while packets are forged in its name. Returns its
/// results.
fn phone_during_forgery(
    what: &str,
    port: impl Fn(u64) -> u16 + Send + 'static,
) -> Result<PhonesTally> {
    let lab = lab()?;
    let registrar = registrar(&lab)?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let refresh = Some(Duration::from_millis(500));
    let phones = Phones::start(
        &lab.phone,
        &PhonesOptions { count: 1, refresh, ..PhonesOptions::default() },
    )?;
    phones.wait_registered(1, Duration::from_secs(5))?;
    let before = phones.tally();
    let sent = forge_from(&lab, PHONE, port)?;
    let after = phones.tally();
    let (begun, accepted) = (after.begun - before.begun, after.accepted - before.accepted);
    println!(
        "{what}: {sent} packets forged, {} got to Kamailio, {} limited; the phone began {begun} \
         registrations, {accepted} \
         succeeded ({:.0} %), {} requests were repeated",
        registrar.received_of(PHONE, "REGISTER"),
        filter.packets(WAN, "drop.limited")?,
        100.0 * accepted as f64 / begun.max(1) as f64,
        after.repeated - before.repeated,
    );
    filter.nobody_is_banned(what)?;
    Ok(PhonesTally { begun, accepted, ..after })
}

#[test]
fn a_known_phone_whose_port_the_forger_does_not_know() -> Result<()> {
    let tally = phone_during_forgery("a phone's address, other ports", strange_port)?;
    // The last one may be in flight.
    assert!(
        tally.begun >= 10,
        "the phone was to register all the time, but began only {} times",
        tally.begun
    );
    assert!(
        tally.accepted + 1 >= tally.begun,
        "every registration was to succeed, but {} of {} did",
        tally.accepted,
        tally.begun
    );
    Ok(())
}

/// The result is printed, not asserted.
#[test]
fn a_known_phone_whose_port_the_forger_knows() -> Result<()> {
    phone_during_forgery("a phone's address and port", |_| FIRST_PORT).map(drop)
}

#[test]
fn a_peer() -> Result<()> {
    let lab = lab()?;
    let registrar = registrar(&lab)?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let address = SocketAddr::from((PEER, 5060));
    let peer = Party::open(&lab.phone, address)?;
    registrar.ask("OPTIONS", address)?;
    peer.wait_for("OPTIONS", Duration::from_secs(5), |received| {
        received.text.starts_with("OPTIONS")
    })?;
    let sent = forge_from(&lab, PEER, |_| 5060)?;
    let (peers, received) = (filter.sources("peers")?, registrar.received_from(PEER));
    println!("a peer's address: {sent} forged, {received} got to Kamailio; {peers} known peers");
    filter.nobody_is_banned("for what was forged in a peer's name")?;
    assert!(peers > 0, "the filter was to know the peer, which answered an OPTIONS of ours");
    Ok(())
}

#[test]
fn a_stranger() -> Result<()> {
    let lab = lab()?;
    let registrar = registrar(&lab)?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let sent = forge_from(&lab, STRANGER, strange_port)?;
    let bans = filter.bans()?;
    println!(
        "a stranger's address: {sent} forged, {} got to Kamailio; {bans:?}",
        registrar.received_from(STRANGER)
    );
    assert!(bans.len() <= 1, "at most the stranger was to be banned: {bans:#?}");
    for ban in bans {
        assert!(
            ban.tier == "unproven"
                && ban.lasts.is_some_and(|lasts| lasts <= SHORT + Duration::from_secs(1)),
            "what anybody can forge is not proven, and bans for {SHORT:?} at most: {ban:#?}"
        );
    }
    Ok(())
}
