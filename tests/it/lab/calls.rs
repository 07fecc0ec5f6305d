//! The parts of the laboratory that the tests of detection rely on do what is said of them, with no
//! filter around.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use sip_xdp_tests::forger::forge;
use sip_xdp_tests::nat::{PBX_INSIDE, PROVIDER, PUBLIC};
use sip_xdp_tests::party::Party;
use sip_xdp_tests::phones::{FIRST_PORT, PhonesOptions};
use sip_xdp_tests::registrar::{Mood, phone_password};
use sip_xdp_tests::spelling::SPELLINGS;
use sip_xdp_tests::topology::{ATTACKER, LAN, OUTSIDE, PBX_LAN, PBX_WAN, PHONE, WAN, address};
use sip_xdp_tests::{
    Attacker, Capture, Disguise, Guess, Guesser, Lab, Nat, Phones, Registrar, RegistrarOptions,
    wait_until,
};

/// For things that take milliseconds.
const SOON: Duration = Duration::from_secs(10);

fn with_phones() -> RegistrarOptions<'static> {
    RegistrarOptions { phones: true, ..RegistrarOptions::default() }
}

#[test]
fn phones_register_subscribe_and_answer_calls() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start_with(&lab.pbx, lab.directory(), &with_phones())?;
    let options = PhonesOptions { count: 50, subscriptions: 4, ..PhonesOptions::default() };
    let phones = Phones::start(&lab.phone, &options)?;
    let took = phones.wait_registered(50, SOON)?;
    wait_until("everything is subscribed", SOON, || Ok(phones.tally().subscribed == 200))?;
    println!("50 phones registered in {took:.2?}: {:?}", phones.tally());
    assert_eq!((phones.tally().rejected, phones.tally().refused), (0, 0));

    // A call from one user to another: challenged, then relayed to the phone, which answers.
    let (caller, to) = (SocketAddr::from((PHONE, 5060)), SocketAddr::from((PBX_LAN, 5060)));
    let party = Party::open(&lab.phone, caller)?;
    party.request("INVITE", "1007", to)?;
    let challenge =
        party.wait_for("a challenge", SOON, |received| received.text.starts_with("SIP/2.0 407"))?;
    let message = sip_xdp_tests::message::Message::parse(challenge.text.as_bytes());
    let challenge = message.as_ref().and_then(sip_xdp_tests::digest::Challenge::of);
    let header = challenge.map(|challenge| {
        challenge.credentials("1007", &phone_password("1007"), "INVITE", &format!("sip:1007@{to}"))
    });
    let (user, call_id) = ("1007", "a-call");
    let invite = sip_xdp_tests::sip::Request {
        method: "INVITE",
        user,
        call_id,
        sequence: 2,
        from: caller,
        to,
    };
    party.send(to, &invite.bytes_with(&header.unwrap()))?;
    party.wait_for("the phone's answer", SOON, |received| {
        received.text.starts_with("SIP/2.0 200")
    })?;
    assert_eq!(phones.tally().called, 1, "the call did not reach a phone:\n{}", registrar.log());
    Ok(())
}

/// What the storms of the tests take where no filter is in their way.
#[test]
fn three_hundred_phones_register_and_subscribe() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start_with(&lab.pbx, lab.directory(), &with_phones())?;
    let phones = Phones::start(
        &lab.phone,
        &PhonesOptions { subscriptions: 20, ..PhonesOptions::default() },
    )?;
    let registered = phones.wait_registered(300, SOON)?;
    let subscribed = wait_until("all phones have subscribed", 3 * SOON, || {
        Ok(phones.tally().subscribed == 6000)
    })?;
    println!(
        "300 phones registered in {registered:.2?}, subscribed in another {subscribed:.2?}: {:?}",
        phones.tally()
    );
    phones.register_again();
    println!("they registered again in {:.2?}", phones.wait_registered(300, SOON)?);
    Ok(())
}

#[test]
fn the_registrar_has_moods() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start_with(&lab.pbx, lab.directory(), &with_phones())?;
    let options = PhonesOptions { count: 5, ..PhonesOptions::default() };
    let phones = Phones::start(&lab.phone, &options)?;
    phones.wait_registered(5, SOON)?;

    registrar.treat_everybody(Mood::Quiet)?;
    phones.register_again();
    wait_until("phones repeat themselves", SOON, || Ok(phones.tally().repeated >= 10))?;
    assert_eq!(phones.tally().registered, 0);
    registrar.treat_everybody(Mood::Fair)?;
    phones.wait_registered(5, SOON)?;

    registrar.treat_everybody(Mood::Challenging)?;
    phones.register_again();
    wait_until("right credentials are challenged twice", SOON, || {
        Ok(phones.tally().rejected == 10)
    })?;
    registrar.treat_everybody(Mood::Refusing)?;
    phones.register_again();
    wait_until("all phones are refused", SOON, || Ok(phones.tally().refused == 5))?;
    registrar.treat_everybody(Mood::Fair)?;
    phones.register_again();
    phones.wait_registered(5, SOON)?;
    println!("{:?}", phones.tally());
    Ok(())
}

#[test]
fn a_nonce_can_be_too_old() -> Result<()> {
    let lab = Lab::new()?;
    let options = RegistrarOptions { nonce_expire: 1, ..with_phones() };
    let _registrar = Registrar::start_with(&lab.pbx, lab.directory(), &options)?;
    let refresh = Some(Duration::from_millis(2500));
    let phones = Phones::start(
        &lab.phone,
        &PhonesOptions { count: 5, refresh, ..PhonesOptions::default() },
    )?;
    wait_until("phones registered three times", SOON, || Ok(phones.tally().accepted >= 15))?;
    let tally = phones.tally();
    println!("{tally:?}");
    // Whether it says why it asks again is up to the registrar; this one does not.
    assert!(tally.stale + tally.rejected >= 5, "no stale nonce: {tally:?}");
    Ok(())
}

#[test]
fn the_registrar_asks_others() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let carrier = Party::open(&lab.phone, SocketAddr::from((PHONE, 5060)))?;
    for method in ["OPTIONS", "REGISTER"] {
        registrar.ask(method, SocketAddr::from((PHONE, 5060)))?;
        let asked = carrier.wait_for(method, SOON, |received| received.text.starts_with(method))?;
        assert_eq!(asked.from, SocketAddr::from((PBX_LAN, 5060)));
        println!("{}", asked.text);
    }
    Ok(())
}

/// Kamailio takes every one of them for a REGISTER with credentials, and says that they are wrong.
#[test]
fn every_spelling_is_understood() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut misunderstood = Vec::new();
    for (spelling, port) in SPELLINGS.into_iter().zip(5070..) {
        let (from, to) = (SocketAddr::from((ATTACKER, port)), SocketAddr::from((PBX_WAN, 5060)));
        let before = registrar.failures_of(ATTACKER).len();
        let guesser =
            Guesser::start(&lab.attacker, Guess { spelling, ..Guess::new(from, to, "101") })?;
        let understood = wait_until("passwords are rejected", Duration::from_secs(3), || {
            Ok(guesser.rejected() >= 5)
        });
        let failures = registrar.failures_of(ATTACKER).len() - before;
        println!(
            "{:32} {} passwords, {} rejected, {failures} logged",
            spelling.name,
            guesser.tried(),
            guesser.rejected()
        );
        if understood.is_err() || failures == 0 {
            misunderstood.push(spelling.name);
        }
    }
    assert!(
        misunderstood.is_empty(),
        "Kamailio does not understand {misunderstood:?}:\n{}",
        registrar.log()
    );
    Ok(())
}

/// In every disguise the tools work, and look as the disguise says.
#[test]
fn disguises_work() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    for (number, disguise) in (0..).zip(Disguise::ALL) {
        let further = lab.further_attacker(number)?;
        for tool in ["svcrack", "svcrack, a password every 0.5 s", "svwar", "svmap"] {
            let expression = format!("udp and src host {further} and dst port 5060");
            let seen = Capture::start(&lab.pbx, WAN, &expression, lab.directory())?;
            let attacker =
                Attacker::new(&lab.attacker, lab.directory()).address(further).disguise(disguise);
            let mut running = match tool {
                "svcrack" => attacker.crack("101")?,
                "svwar" => attacker.enumerate("REGISTER")?,
                "svmap" => attacker.map(&PBX_WAN.to_string())?,
                _ => attacker.crack_with_pauses("101", "0.5")?,
            };
            let enough = if tool == "svmap" { 1 } else { 5 };
            wait_until("the tool sends", SOON, || Ok(seen.packets()?.len() >= enough)).map_err(
                |error| error.context(format!("{tool}, {disguise:?}: {}", running.tail())),
            )?;
            running.stop(Signal::SIGTERM)?;
            let seen = seen.stop()?;
            let text = String::from_utf8_lossy(&seen[0].data[42..]).into_owned();
            let port = u16::from_be_bytes([seen[0].data[34], seen[0].data[35]]);
            println!("{tool:31} {disguise:?}: {} packets from port {port}", seen.len());
            let is_friendly = text.contains("User-Agent: friendly-scanner");
            assert_eq!(is_friendly, matches!(disguise, Disguise::None | Disguise::Port), "{text}");
            assert_eq!(text.contains("\r\nv: "), disguise == Disguise::Compact, "{text}");
            assert_eq!(port == 5060, disguise != Disguise::Port, "{port}");
        }
        let failures = registrar.failures_of(further).len();
        assert!(
            failures >= 4,
            "{disguise:?}: only {failures} passwords were tried:\n{}",
            registrar.log()
        );
    }
    assert_eq!(
        registrar.received_from(ATTACKER),
        0,
        "tools did not use the addresses that they were given"
    );
    Ok(())
}

#[test]
fn forged_packets_arrive_and_are_answered_to_the_victim() -> Result<()> {
    let lab = Lab::new()?;
    lab.accept_forgeries()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let victim = Party::open(&lab.phone, SocketAddr::from((PHONE, FIRST_PORT)))?;
    let (source, to) = (SocketAddrV4::new(PHONE, FIRST_PORT), SocketAddrV4::new(PBX_WAN, 5060));
    let forger = forge(&lab.attacker, source, to, 500, |_| FIRST_PORT)?;
    wait_until("Kamailio received forged requests", SOON, || {
        Ok(registrar.received_from(PHONE) > 100)
    })?;
    victim.wait_for("an answer to a forged request", SOON, |received| {
        received.text.starts_with("SIP/2.0 401")
    })?;
    println!("forged {}, Kamailio received {}", forger.stop()?, registrar.received_from(PHONE));
    Ok(())
}

#[test]
fn the_router_translates_both_ways() -> Result<()> {
    let nat = Nat::new()?;
    let provider = Party::open(&nat.world, SocketAddr::from((PROVIDER, 5060)))?;
    let stranger = Party::open(&nat.world, SocketAddr::from((ATTACKER, 5060)))?;
    let pbx = Party::open(&nat.pbx, SocketAddr::from((PBX_INSIDE, 5060)))?;
    pbx.request("REGISTER", "trunk", provider_address())?;
    let registered =
        provider.wait_for("REGISTER", SOON, |received| received.text.starts_with("REGISTER"))?;
    assert_eq!(registered.from.ip(), PUBLIC, "the router does not translate");
    pbx.wait_for("200", SOON, |received| received.text.starts_with("SIP/2.0 200"))?;
    provider.request("INVITE", "trunk", registered.from)?;
    pbx.wait_for("a call", SOON, |received| received.text.starts_with("INVITE"))?;
    stranger.request("OPTIONS", "100", SocketAddr::from((PUBLIC, 5060)))?;
    let asked = pbx.wait_for("OPTIONS", SOON, |received| received.text.starts_with("OPTIONS"))?;
    assert_eq!(asked.from.ip(), ATTACKER, "the router hides who asks");
    let answered =
        |received: &sip_xdp_tests::party::Received| received.text.starts_with("SIP/2.0 200");
    stranger.wait_for("the answer", SOON, answered)?;
    println!("provider saw {}, the PBX saw {}", registered.from, asked.from);
    Ok(())
}

fn provider_address() -> SocketAddr {
    SocketAddr::from((PROVIDER, 5060))
}

/// Addresses of a network that is routed to the attacker, without giving it each of them.
#[test]
fn an_attacker_may_have_a_whole_ipv6_network() -> Result<()> {
    let lab = Lab::new()?;
    lab.route_to_attacker()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let from: Vec<_> =
        (1..=20_u16).map(|host| SocketAddr::from((lab.routed(host), 5060))).collect();
    let to = SocketAddr::from((sip_xdp_tests::topology::PBX_WAN6, 5060));
    let guess = Guess { from, ..Guess::new(SocketAddr::from((lab.routed(1), 5060)), to, "101") };
    let guesser = Guesser::start(&lab.attacker, guess)?;
    wait_until("passwords are rejected", SOON, || Ok(guesser.rejected() >= 20))?;
    let sources: BTreeSet<_> = registrar.sources().into_keys().collect();
    println!("{sources:?}");
    assert!(sources.len() >= 20, "Kamailio saw only {sources:?}");
    Ok(())
}

#[test]
fn phones_may_have_several_addresses() -> Result<()> {
    let lab = Lab::new()?;
    address(&lab.phone, OUTSIDE, &["203.0.113.11/24"])?;
    let registrar = Registrar::start_with(&lab.pbx, lab.directory(), &with_phones())?;
    let seen = Capture::start(&lab.pbx, LAN, "udp and dst port 5060", lab.directory())?;
    let addresses = vec![PHONE, Ipv4Addr::new(203, 0, 113, 11)];
    let phones = Phones::start(
        &lab.phone,
        &PhonesOptions { count: 10, addresses, ..PhonesOptions::default() },
    )?;
    phones.wait_registered(10, SOON)?;
    assert_eq!(registrar.sources().len(), 2);
    println!("{} packets, {:?}", seen.stop()?.len(), phones.tally());
    Ok(())
}
