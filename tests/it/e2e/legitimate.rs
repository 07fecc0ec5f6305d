//! Traffic that must never be banned: monitoring, keepalives, trusted sources.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use sip_xdp_tests::topology::{ATTACKER, LAN, OUTSIDE, PBX_LAN, PHONE, WAN};
use sip_xdp_tests::{
    Attacker, Capture, Filter, FilterOptions, Lab, Phone, Registrar, Stream, stream,
};

/// sipsak's agent is on lists of attack tools; monitoring with it is legitimate.
#[test]
fn monitoring_passes() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let monitor = Attacker::new(&lab.attacker, lab.directory());
    for _ in 0..20 {
        let ping = monitor.ping()?;
        assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
    }
    println!("sipsak: 20 of 20 answered, {} received", registrar.received_from(ATTACKER));
    assert_eq!(registrar.received_from(ATTACKER), 20);
    assert_eq!(filter.dropped(WAN)?, 0);
    assert!(!filter.is_banned(&ATTACKER.to_string())?);
    Ok(())
}

/// Any number of them neither bans nor uses up the phone's limit of requests.
#[test]
fn keepalives_do_not_count() -> Result<()> {
    const KINDS: [&[u8]; 4] = [
        b"\r\n\r\n",
        &[0; 4],
        b"",
        // A STUN binding request.
        &[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    ];
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let (from, to) = (SocketAddr::from((PHONE, 5070)), SocketAddr::from((PBX_LAN, 5060)));
    let keepalives = Stream::start(stream::socket(&lab.phone, from, to)?, 1000, |number| {
        KINDS[usize::try_from(number).unwrap_or_default() % KINDS.len()].to_vec()
    })?;
    sleep(Duration::from_secs(6));
    let phone = Phone::new(&lab.phone, lab.directory());
    let during = phone.register()?;
    sleep(Duration::from_secs(3));
    let sent = keepalives.stop()?;
    let after = phone.register()?;
    let (strange, good) =
        (filter.packets(LAN, "pass.keepalive")?, filter.packets(LAN, "pass.good")?);
    let limited = filter.packets(LAN, "drop.limited")?;
    println!(
        "keepalives: sent {sent}, passed {strange} before the phone was known good and {good} \
         since, with its own requests, \
         limited {limited}; the phone: {during:?}, {after:?}"
    );
    assert!(sent > 8000, "only {sent} were sent");
    assert!((sent..=sent + 4).contains(&(strange + good + limited)), "all are counted");
    assert_eq!((during.status, during.sent), (200, 2));
    assert_eq!((after.status, after.sent), (200, 2));
    assert!(!filter.is_banned(&PHONE.to_string())?);
    Ok(())
}

/// Trust has precedence.
#[test]
fn a_trusted_source_is_never_banned() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let configuration = format!("[trust]\nnetworks = [\"{ATTACKER}/32\"]\n");
    let options = FilterOptions { configuration, ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    let expression = format!("udp and src host {ATTACKER} and dst port 5060");
    let sent = Capture::start(&lab.attacker, OUTSIDE, &expression, lab.directory())?;
    let mut audit = Attacker::new(&lab.attacker, lab.directory()).crack("101")?;
    sleep(Duration::from_secs(5));
    audit.stop(Signal::SIGTERM)?;
    let sent = sent.stop()?.len() as u64;
    let trusted = filter.packets(WAN, "pass.trusted")?;
    println!(
        "trusted: sent {sent}, passed {trusted}, Kamailio received {}",
        registrar.received_from(ATTACKER)
    );
    assert!(sent > 500, "{}", audit.tail());
    assert_eq!(trusted, sent);
    assert_eq!(filter.dropped(WAN)?, 0);
    assert!(!filter.is_banned(&ATTACKER.to_string())?);
    Ok(())
}
