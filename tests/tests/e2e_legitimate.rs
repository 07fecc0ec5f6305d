//! What must never be banned: monitoring, keepalives, many phones behind one address, trusted sources.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use sip_xdp_tests::sip::Request;
use sip_xdp_tests::topology::{ATTACKER, LAN, OUTSIDE, PBX_LAN, PHONE, WAN};
use sip_xdp_tests::{Attacker, Capture, Filter, FilterOptions, Lab, Phone, Registrar, Stream, stream};

/// sipsak's agent is on lists of attack tools; who uses it to look after a server is not an attacker.
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

/// However many come, they neither lead to a ban nor use up what the phone's requests may use.
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
    let (passed, limited) = (filter.packets(LAN, "pass.keepalive")?, filter.packets(LAN, "drop.limited")?);
    println!("keepalives: sent {sent}, passed {passed}, limited {limited}; the phone: {during:?}, {after:?}");
    assert!(sent > 8000, "only {sent} were sent");
    assert_eq!(passed + limited, sent);
    assert_eq!((during.status, during.sent), (200, 2));
    assert_eq!((after.status, after.sent), (200, 2));
    assert!(!filter.is_banned(&PHONE.to_string())?);
    Ok(())
}

/// An office comes back after an outage: the limit slows it down, nothing bans it.
#[test]
fn many_phones_behind_one_address_are_limited_but_not_banned() -> Result<()> {
    const PHONES: u16 = 300;
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let to = SocketAddr::from((PBX_LAN, 5060));
    let addresses = (0..PHONES).map(|number| SocketAddr::from((PHONE, 20_000 + number)));
    let sockets: Vec<(SocketAddr, UdpSocket)> =
        addresses.map(|from| Ok((from, stream::socket(&lab.phone, from, to)?))).collect::<Result<_>>()?;
    for sequence in 1..=2 {
        for (number, (from, socket)) in sockets.iter().enumerate() {
            let (user, call_id) = (format!("2{number:03}"), format!("call-{number}"));
            let (user, call_id) = (user.as_str(), call_id.as_str());
            socket.send(&Request { method: "REGISTER", user, call_id, sequence, from: *from, to }.bytes())?;
            sleep(Duration::from_millis(10));
        }
    }
    sleep(Duration::from_secs(4));
    let (received, limited) = (registrar.received_from(PHONE), filter.packets(LAN, "drop.limited")?);
    println!("{PHONES} phones behind one address: sent {}, received {received}, limited {limited}", 2 * PHONES);
    assert_eq!(received as u64 + limited, 2 * u64::from(PHONES));
    assert!(limited > 0, "the limit did not act");
    assert!(!filter.is_banned(&PHONE.to_string())?, "{:#?}", filter.log());
    assert_eq!(filter.packets(LAN, "drop.blocked")?, 0);
    Ok(())
}

/// Trust is checked before anything else.
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
    println!("trusted: sent {sent}, passed {trusted}, Kamailio received {}", registrar.received_from(ATTACKER));
    assert!(sent > 500, "{}", audit.tail());
    assert_eq!(trusted, sent);
    assert_eq!(filter.dropped(WAN)?, 0);
    assert!(!filter.is_banned(&ATTACKER.to_string())?);
    Ok(())
}
