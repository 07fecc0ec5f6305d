//! An attacker with an IPv6 network and a new address per password: the network is banned, unless
//! the host itself is in it. Needs root and Linux 6.6 or later.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use sip_xdp_tests::digest::Challenge;
use sip_xdp_tests::message::Message;
use sip_xdp_tests::registrar::USERS;
use sip_xdp_tests::sip::Request;
use sip_xdp_tests::topology::{OUTSIDE, PBX_WAN6, WAN, address};
use sip_xdp_tests::{
    Capture, Filter, Guess, Guesser, Lab, Party, Phone, Registrar, wait_for_a_nonce_of_its_own,
    wait_until,
};

const PROMPT: Duration = Duration::from_secs(10);
/// The PBX and the phone at the phones' side.
const PBX_LAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 1);
const PHONE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 0x10);

fn pbx() -> SocketAddr {
    SocketAddr::from((PBX_WAN6, 5060))
}

#[test]
fn addresses_of_a_routed_network_are_banned_together() -> Result<()> {
    let lab = Lab::new()?;
    lab.route_to_attacker()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let phone = Phone::new(&lab.phone, lab.directory());
    assert_eq!(phone.register()?.status, 200, "the phone before the attack");
    let from: Vec<_> =
        (1..=200_u16).map(|host| SocketAddr::from((lab.routed(host), 5060))).collect();
    let guess = Guess { from, ..Guess::new(SocketAddr::from((lab.routed(1), 5060)), pbx(), "101") };
    wait_for_a_nonce_of_its_own();
    let _guesser = Guesser::start(&lab.attacker, guess)?;
    let ban = filter.wait_for_ban("2001:db8:77::/64", PROMPT);
    let sources =
        registrar.sources().into_keys().filter(|source| source.starts_with("2001:db8:77:")).count();
    println!("rotating addresses: {sources} of them got to Kamailio; {ban:?}");
    let ban = ban?;
    assert_eq!(
        ban.tier, "proven",
        "every password came with a nonce that only this network had: {ban:?}"
    );
    let others: Vec<_> =
        filter.bans()?.into_iter().filter(|other| other.network != ban.network).collect();
    assert!(others.is_empty(), "only the network was to be banned, not {others:?}");
    let seen = Capture::start(&lab.pbx, WAN, "udp and src net 2001:db8:77::/64", lab.directory())?;
    let blocked = filter.packets(WAN, "drop.blocked")?;
    wait_until("new addresses of the network are dropped", PROMPT, || {
        Ok(filter.packets(WAN, "drop.blocked")? > blocked + 5)
    })?;
    assert_eq!(seen.stop()?.len(), 0, "packets of the banned network passed");
    assert_eq!(phone.register()?.status, 200, "the phone after the attack");
    Ok(())
}

#[test]
fn neighbours_of_ours_are_banned_one_by_one() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let neighbour = |host: u16| Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, host);
    let guessing = [0x101_u16, 0x102, 0x103];
    for host in guessing.into_iter().chain([0x199]) {
        address(&lab.attacker, OUTSIDE, &[&format!("{}/64", neighbour(host))])?;
    }
    let mut outcomes = Vec::new();
    for host in guessing {
        wait_for_a_nonce_of_its_own();
        let guess = Guess::new(SocketAddr::from((neighbour(host), 5060)), pbx(), "101");
        let _guesser = Guesser::start(&lab.attacker, guess)?;
        let ban = filter.wait_for_ban(&neighbour(host).to_string(), PROMPT);
        println!("{}: {ban:?}", neighbour(host));
        outcomes.push(ban);
    }
    // A neighbouring network is not affected.
    let guess = Guess::new(SocketAddr::from((neighbour(0x199), 5060)), pbx(), "101");
    let honest = Guesser::start(&lab.attacker, guess)?;
    wait_until("an innocent neighbour is answered", PROMPT, || Ok(honest.rejected() >= 2))?;
    drop(honest);
    for outcome in outcomes {
        let ban = outcome?;
        assert_eq!(
            ban.tier, "proven",
            "every password came with a nonce that only this address had: {ban:?}"
        );
    }
    let wide: Vec<_> =
        filter.bans()?.into_iter().filter(|ban| ban.network.ends_with("/64")).collect();
    assert!(wide.is_empty(), "our own network was banned: {wide:?}");
    Ok(())
}

/// Its registration is seen on the way out.
#[test]
fn a_phone_becomes_known_good() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let (from, to) = (SocketAddr::from((PHONE6, 5070)), SocketAddr::from((PBX_LAN6, 5060)));
    let (user, password) = USERS[0];
    let phone = Party::open(&lab.phone, from)?;
    let call_id = phone.request("REGISTER", user, to)?;
    let challenged = phone
        .wait_for("a challenge", PROMPT, |received| received.text.starts_with("SIP/2.0 401"))?;
    let challenge = Message::parse(challenged.text.as_bytes()).as_ref().and_then(Challenge::of);
    let challenge = challenge.context("no challenge")?;
    let credentials =
        challenge.credentials(user, password, "REGISTER", &format!("sip:{user}@{to}"));
    let request = Request { method: "REGISTER", user, call_id: &call_id, sequence: 2, from, to };
    phone.send(to, &request.bytes_with(&credentials))?;
    phone
        .wait_for("its acceptance", PROMPT, |received| received.text.starts_with("SIP/2.0 200"))?;
    wait_until("the phone is known good", PROMPT, || Ok(filter.sources("good")? == 1))
        .with_context(|| filter.decisions())?;
    let line = format!("good {PHONE6} port=5070");
    assert!(filter.log().iter().any(|said| said.text.ends_with(&line)), "{}", filter.decisions());
    // A reboot keeps it.
    filter.unload()?;
    filter.launch()?;
    assert_eq!(filter.sources("good")?, 1);
    Ok(())
}
