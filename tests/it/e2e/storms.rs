//! Legitimate storms: three hundred phones behind one address after an outage, a registrar that is
//! silent or refuses everybody, stale nonces, keepalives. None may lead to a ban. `SIP_XDP_LONG=1`
//! uses realistic outages. Needs root and Linux 6.6 or later.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use sip_xdp_tests::phones::FIRST_PORT;
use sip_xdp_tests::topology::{LAN, OUTSIDE, PBX_LAN, PHONE, address};
use sip_xdp_tests::{
    Attacker, Filter, Lab, Mood, Phones, PhonesOptions, Registrar, RegistrarOptions, Stream,
    short_or_long, stream, wait_until,
};

const PHONES: u16 = 300;
const SUBSCRIPTIONS: u16 = 20;
/// Time within which all are registered after a storm.
const PROMPT: Duration = Duration::from_secs(30);
/// A phone pauses for half a minute after a failure.
const PATIENT: Duration = Duration::from_secs(90);

fn registrar(lab: &Lab) -> Result<Registrar> {
    let options = RegistrarOptions { phones: true, ..RegistrarOptions::default() };
    Registrar::start_with(&lab.pbx, lab.directory(), &options)
}

/// Prints the result, with rates.
fn report(what: &str, took: Duration, phones: &Phones, filter: &Filter<'_>) -> Result<()> {
    let tally = phones.tally();
    let (limited, blocked) =
        (filter.packets(LAN, "drop.limited")?, filter.packets(LAN, "drop.blocked")?);
    println!(
        "{what}: {} phones registered in {took:.2?}, {:.0} registrations and {:.0} requests a \
         second; {limited} limited, \
         {blocked} blocked; {tally:?}",
        tally.registered,
        tally.registered as f64 / took.as_secs_f64(),
        tally.sent as f64 / took.as_secs_f64(),
    );
    Ok(())
}

/// Waits until all phones are registered, then subscribed; nobody may be banned meanwhile.
fn all_come_back(
    what: &str,
    phones: &Phones,
    filter: &Filter<'_>,
    timeout: Duration,
) -> Result<()> {
    let start = Instant::now();
    let registered = phones.wait_registered(PHONES.into(), timeout);
    report(what, start.elapsed(), phones, filter)?;
    filter.nobody_is_banned(what)?;
    registered?;
    let all = usize::from(PHONES * SUBSCRIPTIONS);
    let subscribed =
        wait_until("all phones have subscribed", PATIENT, || Ok(phones.tally().subscribed >= all));
    report(
        &format!("{what}, with {} subscriptions", phones.tally().subscribed),
        start.elapsed(),
        phones,
        filter,
    )?;
    filter.nobody_is_banned(what)?;
    subscribed.map(drop)
}

/// Responses on an unfiltered interface: nobody becomes known good, and phones are limited. Not
/// even a flood of one sender leads to a ban then.
#[test]
fn unseen_responses() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = registrar(&lab)?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    // The links live as long as their pins.
    let links: Vec<_> =
        fs::read_dir(filter.pins().join("egress"))?.collect::<std::io::Result<_>>()?;
    anyhow::ensure!(links.len() == 2, "{} links of egress programs", links.len());
    links.iter().try_for_each(|link| fs::remove_file(link.path()))?;
    let options = PhonesOptions { count: PHONES, ..PhonesOptions::default() };
    let phones = Phones::start(&lab.phone, &options)?;
    sleep(Duration::from_secs(20));
    report("nobody sees the responses", Duration::from_secs(20), &phones, &filter)?;
    filter.nobody_is_banned("nobody sees the responses")?;
    let status = filter.json(&["status"])?;
    anyhow::ensure!(
        status["daemon"]["sees_responses"] == false,
        "status does not say so: {status}"
    );
    let flood = Attacker::new(&lab.attacker, lab.directory()).enumerate("OPTIONS")?;
    sleep(Duration::from_secs(5));
    drop(flood);
    let bans = filter.json(&["block", "list"])?;
    println!("nobody sees the responses: svwar at full speed: {bans}");
    anyhow::ensure!(!bans.to_string().contains("flood"), "volume has banned: {bans}");
    Ok(())
}

/// The registrar is silent, the phones retransmit, and then it recovers.
fn silence(what: &str, are_known: bool) -> Result<()> {
    let lab = Lab::new()?;
    let registrar = registrar(&lab)?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let options = PhonesOptions { count: PHONES, ..PhonesOptions::default() };
    if !are_known {
        registrar.treat_everybody(Mood::Quiet)?;
    }
    let phones = Phones::start(&lab.phone, &options)?;
    if are_known {
        phones.wait_registered(PHONES.into(), PATIENT)?;
        registrar.treat_everybody(Mood::Quiet)?;
        phones.register_again();
    }
    let outage = short_or_long(Duration::from_secs(20), Duration::from_secs(120));
    let start = Instant::now();
    while start.elapsed() < outage {
        filter.nobody_is_banned("while the registrar is silent")?;
        sleep(Duration::from_secs(1));
    }
    report(what, outage, &phones, &filter)?;
    assert!(
        phones.tally().repeated > 1000,
        "the phones were to repeat themselves, but {:?}",
        phones.tally()
    );
    registrar.treat_everybody(Mood::Fair)?;
    let start = Instant::now();
    let registered = phones.wait_registered(PHONES.into(), PATIENT);
    report(&format!("{what}, when it speaks again"), start.elapsed(), &phones, &filter)?;
    filter.nobody_is_banned("when the registrar speaks again")?;
    registered.map(drop)
}

#[test]
fn a_silent_registrar_and_phones_that_are_known() -> Result<()> {
    silence("silence, phones known before", true)
}

#[test]
fn a_silent_registrar_and_unknown_phones() -> Result<()> {
    silence("silence, nothing known before", false)
}

/// The registrar refuses previously accepted users, as after the loss of its database, and phones
/// react as usual.
fn refusal(what: &str, mood: Mood, offices: u8) -> Result<()> {
    let lab = Lab::new()?;
    let registrar = registrar(&lab)?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let addresses: Vec<_> =
        (0..offices).map(|number| Ipv4Addr::new(203, 0, 113, 10 + number)).collect();
    for further in addresses.iter().filter(|further| **further != PHONE) {
        address(&lab.phone, OUTSIDE, &[&format!("{further}/24")])?;
    }
    let phones = Phones::start(
        &lab.phone,
        &PhonesOptions { count: PHONES, addresses, ..PhonesOptions::default() },
    )?;
    phones.wait_registered(PHONES.into(), PATIENT)?;
    registrar.treat_everybody(mood)?;
    phones.register_again();
    let outage = short_or_long(Duration::from_secs(30), Duration::from_secs(600));
    let start = Instant::now();
    while start.elapsed() < outage {
        filter.nobody_is_banned("while the registrar refuses everybody")?;
        sleep(Duration::from_secs(1));
    }
    report(what, outage, &phones, &filter)?;
    let tally = phones.tally();
    let refused = tally.rejected.max(tally.refused);
    assert!(
        refused >= PHONES.into(),
        "all phones were to be refused, but only {refused} times: {tally:?}"
    );
    registrar.treat_everybody(Mood::Fair)?;
    let registered = phones.wait_registered(PHONES.into(), PATIENT);
    filter.nobody_is_banned("when the registrar is well again")?;
    registered.map(drop)
}

#[test]
fn a_registrar_that_challenges_everybody_again() -> Result<()> {
    refusal("401 to everybody, one office", Mood::Challenging, 1)
}

#[test]
fn a_registrar_that_challenges_ten_offices_again() -> Result<()> {
    refusal("401 to everybody, ten offices", Mood::Challenging, 10)
}

#[test]
fn a_registrar_that_refuses_everybody() -> Result<()> {
    refusal("403 to everybody, one office", Mood::Refusing, 1)
}

/// Each registration begins with a stale nonce; the registrar challenges again, and accepts the
/// second try.
#[test]
fn nonces_that_are_too_old() -> Result<()> {
    const FEW: u16 = 20;
    let lab = Lab::new()?;
    let options = RegistrarOptions { phones: true, nonce_expire: 1, ..RegistrarOptions::default() };
    let _registrar = Registrar::start_with(&lab.pbx, lab.directory(), &options)?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let refresh = Some(Duration::from_millis(2500));
    let phones = Phones::start(
        &lab.phone,
        &PhonesOptions { count: FEW, refresh, ..PhonesOptions::default() },
    )?;
    phones.wait_registered(FEW.into(), PROMPT)?;
    wait_until("every phone has had ten nonces that were too old", PATIENT, || {
        filter.nobody_is_banned("for nonces that are too old")?;
        let tally = phones.tally();
        Ok(tally.stale + tally.rejected >= u64::from(10 * FEW)
            && tally.accepted > u64::from(10 * FEW))
    })
    .with_context(|| format!("the phones saw {:?}; {}", phones.tally(), filter.decisions()))?;
    println!("nonces that are too old: {:?}", phones.tally());
    filter.nobody_is_banned("for nonces that are too old")
}

/// Timed tests: nothing runs beside them.
mod measured {
    use super::*;

    /// From its registered port, as through a router, but at a high rate.
    #[test]
    fn keepalives_of_a_registered_phone() -> Result<()> {
        let lab = Lab::new()?;
        let _registrar = registrar(&lab)?;
        let filter = Filter::start(&lab.pbx, lab.directory())?;
        let one = PhonesOptions { count: 1, ..PhonesOptions::default() };
        Phones::start(&lab.phone, &one)?.wait_registered(1, PROMPT)?;
        let (from, to) = (SocketAddr::from((PHONE, FIRST_PORT)), SocketAddr::from((PBX_LAN, 5060)));
        let keepalives =
            Stream::start(stream::socket(&lab.phone, from, to)?, 1000, |_| b"\r\n\r\n".to_vec())?;
        sleep(Duration::from_secs(10));
        filter.nobody_is_banned("for its keepalives")?;
        let sent = keepalives.stop()?;
        let phones = Phones::start(&lab.phone, &one)?;
        let registered = phones.wait_registered(1, PROMPT)?;
        let (passed, limited) =
            (filter.packets(LAN, "pass.keepalive")?, filter.packets(LAN, "drop.limited")?);
        println!(
            "{sent} keepalives in 10 s, {passed} passed, {limited} limited; registered again in \
             {registered:.2?}"
        );
        assert!(sent > 8000, "a thousand a second were to be sent, not {sent} in ten seconds");
        assert!(
            registered < Duration::from_secs(2),
            "the phone was to register at once, not after {registered:?}"
        );
        filter.nobody_is_banned("for its keepalives")
    }

    #[test]
    fn three_hundred_unknown_phones() -> Result<()> {
        let lab = Lab::new()?;
        let _registrar = registrar(&lab)?;
        let filter = Filter::start(&lab.pbx, lab.directory())?;
        let options = PhonesOptions {
            count: PHONES,
            subscriptions: SUBSCRIPTIONS,
            ..PhonesOptions::default()
        };
        let phones = Phones::start(&lab.phone, &options)?;
        all_come_back("nothing known before", &phones, &filter, PROMPT)
    }

    #[test]
    fn three_hundred_phones_after_an_outage() -> Result<()> {
        let lab = Lab::new()?;
        let _registrar = registrar(&lab)?;
        let mut filter = Filter::start(&lab.pbx, lab.directory())?;
        let options = PhonesOptions {
            count: PHONES,
            subscriptions: SUBSCRIPTIONS,
            ..PhonesOptions::default()
        };
        let before = Phones::start(&lab.phone, &options)?;
        before.wait_registered(PHONES.into(), PATIENT)?;
        drop(before);
        filter.restart()?;
        let phones = Phones::start(&lab.phone, &options)?;
        all_come_back("known before, after an outage", &phones, &filter, PROMPT)
    }
}
