//! Carriers with high call rates, wrong numbers and challenged calls: neither a peer (OPTIONS or
//! REGISTER of the server) nor a trusted one may be banned or limited. Needs root and Linux 6.6 or
//! later.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sip_xdp_tests::sip::Request;
use sip_xdp_tests::topology::{LAN, OUTSIDE, PBX_LAN, address};
use sip_xdp_tests::{
    Filter, FilterOptions, Lab, Party, Registrar, RegistrarOptions, Stream, wait_until,
};

const CARRIER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
/// INVITEs, and the ACKs that follow their refusal.
const RATE: u32 = 200;
const TIME: Duration = Duration::from_secs(20);
/// Number of calls to unassigned numbers.
const UNASSIGNED: usize = 5;

/// Lets the carrier place its calls, and checks that all of them get to the registrar.
fn is_served(what: &str, configuration: &str, method: Option<&str>, reason: &str) -> Result<()> {
    let lab = Lab::new()?;
    address(&lab.phone, OUTSIDE, &["203.0.113.20/24"])?;
    let options = RegistrarOptions { phones: true, ..RegistrarOptions::default() };
    let registrar = Registrar::start_with(&lab.pbx, lab.directory(), &options)?;
    let options =
        FilterOptions { configuration: configuration.to_owned(), ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    let (from, to) = (SocketAddr::from((CARRIER, 5060)), SocketAddr::from((PBX_LAN, 5060)));
    let carrier = Party::open(&lab.phone, from)?;
    if let Some(method) = method {
        registrar.ask(method, from)?;
        carrier.wait_for(method, Duration::from_secs(5), |received| {
            received.text.starts_with(method)
        })?;
        // It is one when a packet passes as such, a grace period after the daemon knows it.
        wait_until("the filter knows the carrier as a peer", Duration::from_secs(5), || {
            carrier.send(to, b"\r\n\r\n")?;
            Ok(filter.packets(LAN, "pass.peer")? > 0)
        })
        .with_context(|| format!("it answered our {method}; {}", filter.decisions()))?;
    }

    let calls = Stream::start(carrier.connected(to)?, RATE, move |number| {
        let call = number / 2;
        // One call in a hundred, up to the maximum.
        let is_unassigned = call % 100 == 50 && call / 100 < UNASSIGNED as u64;
        let user = if is_unassigned { format!("2{call:05}") } else { "1000".to_owned() };
        let (call_id, sequence) = (format!("carrier-{call}"), 1);
        let method = if number % 2 == 0 { "INVITE" } else { "ACK" };
        Request { method, user: &user, call_id: &call_id, sequence, from, to }.bytes()
    })?;
    sleep(TIME);
    let sent = calls.stop()?;
    wait_until("everything got to Kamailio", Duration::from_secs(2), || {
        Ok(registrar.received_from(CARRIER) as u64 >= sent)
    })
    .or_else(|_| anyhow::Ok(Duration::ZERO))?;
    let (received, limited) =
        (registrar.received_from(CARRIER) as u64, filter.packets(LAN, "drop.limited")?);
    let passed = filter.packets(LAN, &format!("pass.{reason}"))?;
    let (challenged, absent) = (carrier.count("SIP/2.0 407"), carrier.count("SIP/2.0 404"));
    println!(
        "{what}: sent {sent} in {TIME:?}, {received} got to Kamailio, {limited} limited, {passed} \
         passed as {reason}; \
         {challenged} calls challenged, {absent} to numbers that nobody has"
    );
    filter.nobody_is_banned(what)?;
    assert!(sent > 3000, "200 requests a second were to be sent, not {sent} in {TIME:?}");
    assert_eq!(
        (limited, received),
        (0, sent),
        "{what}: nothing was to be limited, everything to arrive"
    );
    assert_eq!(absent, UNASSIGNED, "so many calls were to be answered with 404");
    assert!(challenged > 1000, "every other call was to be challenged, but only {challenged} were");
    assert!(passed >= sent, "{what}: everything was to pass as {reason}, but only {passed} did");
    Ok(())
}

#[test]
fn a_carrier_that_answers_our_options() -> Result<()> {
    is_served("a peer, OPTIONS", "", Some("OPTIONS"), "peer")
}

#[test]
fn a_carrier_that_we_register_with() -> Result<()> {
    is_served("a peer, REGISTER", "", Some("REGISTER"), "peer")
}

#[test]
fn a_trusted_carrier() -> Result<()> {
    is_served("trusted", "[trust]\nnetworks = [\"203.0.113.20/32\"]\n", None, "trusted")
}
