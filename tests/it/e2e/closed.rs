//! Policy "closed": unknown sources are dropped; admitted and trusted ones pass, and so does the
//! provider that the server has registered with, without being listed. Needs root and Linux 6.6 or
//! later.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sip_xdp_tests::nat::{PBX_INSIDE, PROVIDER, PUBLIC};
use sip_xdp_tests::party::{Party, Received};
use sip_xdp_tests::topology::{ATTACKER, OUTSIDE, PBX_WAN, WAN, address};
use sip_xdp_tests::{Capture, Filter, FilterOptions, Lab, Namespace, Nat, Registrar, wait_until};

const SOON: Duration = Duration::from_secs(5);
/// First retransmission of an unanswered INVITE: T1 (RFC 3261, 17.1.1.1).
const RETRANSMISSION: Duration = Duration::from_millis(500);
/// Timeout of a stranger's TCP connection.
const IN_VAIN: Duration = Duration::from_secs(3);

fn sip(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::from((address, 5060))
}

fn closed<'a>(pbx: &'a Namespace, directory: &Path, further: &str) -> Result<Filter<'a>> {
    let configuration = format!("policy = \"closed\"\n{further}");
    let options = FilterOptions {
        interfaces: vec![WAN.to_owned()],
        configuration,
        ..FilterOptions::default()
    };
    Filter::start_with(pbx, directory, options)
}

/// Sends a request of every kind, a response and noise; returns the number of datagrams.
fn send_everything(from: &Party, to: SocketAddr) -> Result<u64> {
    for method in ["REGISTER", "INVITE", "OPTIONS"] {
        from.request(method, "101", to)?;
    }
    let response = "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 198.51.100.1:5060;branch=z9hG4bK1\r\nFrom: \
                    <sip:a@x>;tag=1\r\n\
                    To: <sip:a@x>;tag=2\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\nContent-Length: \
                    0\r\n\r\n";
    from.send(to, response.as_bytes())?;
    from.send(to, b"\r\n\r\n")?;
    Ok(5)
}

#[test]
fn strangers_reach_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = closed(&lab.pbx, lab.directory(), "")?;
    let seen =
        Capture::start(&lab.pbx, WAN, &format!("host {ATTACKER} and port 5060"), lab.directory())?;
    let stranger = Party::open(&lab.attacker, sip(ATTACKER))?;
    let sent = send_everything(&stranger, sip(PBX_WAN))?;
    let closed = wait_until("what a stranger sends is dropped as `closed`", SOON, || {
        Ok(filter.packets(WAN, "drop.closed")? >= sent)
    });
    let (dropped, received) =
        (filter.packets(WAN, "drop.closed")?, registrar.received_from(ATTACKER));
    let passed = seen.stop()?.len();
    println!(
        "a stranger: sent {sent}, {dropped} dropped as closed, {passed} passed, {received} got to \
         Kamailio"
    );
    closed.with_context(|| format!("{dropped} of {sent} were; {}", filter.decisions()))?;
    assert_eq!((passed, received), (0, 0), "nothing of a stranger was to pass");
    assert!(stranger.received().is_empty(), "a stranger was answered: {:?}", stranger.received());
    Ok(())
}

#[test]
fn strangers_cannot_connect_over_tcp() -> Result<()> {
    let lab = Lab::new()?;
    address(&lab.attacker, OUTSIDE, &["198.51.100.100/24"])?;
    let _listener = lab.pbx.enter(|| Ok(TcpListener::bind(sip(Ipv4Addr::UNSPECIFIED))?))?;
    let connect =
        || lab.attacker.enter(|| Ok(TcpStream::connect_timeout(&sip(PBX_WAN), IN_VAIN).map(drop)));
    connect()?.context("without a filter anybody was to be able to connect")?;
    let filter = closed(&lab.pbx, lab.directory(), "")?;
    let seen = Capture::start(&lab.pbx, WAN, "tcp port 5060", lab.directory())?;
    let connected = connect()?;
    let (dropped, passed) = (filter.packets(WAN, "drop.closed")?, seen.stop()?.len());
    println!("a stranger's TCP: {connected:?}, {dropped} dropped as closed, {passed} passed");
    assert!(connected.is_err(), "a stranger was not to be able to connect");
    assert!(
        dropped > 0 && passed == 0,
        "its SYNs were to be dropped as closed: {dropped} were, {passed} passed"
    );
    filter.configure(&format!("policy = \"closed\"\n[admit]\nnetworks = [\"{ATTACKER}/32\"]\n"))?;
    filter.succeed(&["reload"])?;
    connect()?.context("once it is admitted it was to be able to connect")
}

#[test]
fn admitted_and_trusted_sources_pass() -> Result<()> {
    let lab = Lab::new()?;
    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let (admitted, trusted) = (lab.further_attacker(0)?, lab.further_attacker(1)?);
    let lists = format!(
        "[admit]\nnetworks = [\"{admitted}/32\"]\n[trust]\nnetworks = [\"{trusted}/32\"]\n"
    );
    let filter = closed(&lab.pbx, lab.directory(), &lists)?;
    let answered = |received: &Received| received.text.starts_with("SIP/2.0 200");
    for (address, reason) in [(admitted, "unknown"), (trusted, "trusted")] {
        let party = Party::open(&lab.attacker, sip(address))?;
        party.request("OPTIONS", "ping", sip(PBX_WAN))?;
        let answer = party.wait_for("the answer", SOON, answered);
        let passed = filter.packets(WAN, &format!("pass.{reason}"))?;
        println!(
            "{address}: {} got to Kamailio, {passed} passed as {reason}",
            registrar.received_from(address)
        );
        answer.with_context(|| {
            format!("{address} was to pass as {reason}; {}", filter.decisions())
        })?;
        assert!(passed > 0, "what {address} sent was to pass as {reason}");
    }
    let stranger = Party::open(&lab.attacker, sip(ATTACKER))?;
    let sent = send_everything(&stranger, sip(PBX_WAN))?;
    let closed = wait_until("what a stranger sends is still dropped", SOON, || {
        Ok(filter.packets(WAN, "drop.closed")? >= sent)
    });
    closed
        .with_context(|| format!("{sent} were to be dropped as closed; {}", filter.decisions()))?;
    assert_eq!(registrar.received_from(ATTACKER), 0, "a stranger's requests got to Kamailio");
    Ok(())
}

/// The server registers with the provider; then the provider's call passes, and a stranger's does
/// not.
fn provider_calls(
    what: &str,
    filter: &Filter<'_>,
    [pbx, provider, stranger]: [&Party; 3],
    us: SocketAddr,
) -> Result<()> {
    provider.request("INVITE", "early", us)?;
    pbx.request("REGISTER", "trunk", sip(PROVIDER))?;
    let registered = |received: &Received| received.text.starts_with("REGISTER");
    let from = provider.wait_for("our registration", SOON, registered)?.from;
    let accepted = pbx.wait_for("the provider's answer", SOON, |received| {
        received.text.starts_with("SIP/2.0 200")
    });
    accepted.with_context(|| {
        format!("{what}: the answer to our own REGISTER was to pass; {}", filter.decisions())
    })?;
    // The daemon processes the answer a moment later, so that an immediate call may need its
    // retransmission.
    let called = |received: &Received| received.text.starts_with("INVITE sip:called@");
    let call_within = |time| {
        provider.request("INVITE", "called", from)?;
        pbx.wait_for("the provider's call", time, called)
    };
    let call = call_within(RETRANSMISSION).or_else(|_| call_within(SOON));
    stranger.request("INVITE", "stranger", us)?;
    let dropped =
        wait_until("a stranger's call and the provider's early one are dropped", SOON, || {
            Ok(filter.packets(WAN, "drop.closed")? >= 2)
        });
    let (passed, closed) = (filter.packets(WAN, "pass.peer")?, filter.packets(WAN, "drop.closed")?);
    println!(
        "{what}: {passed} passed as peer, {closed} dropped as closed; our registration came from \
         {from}"
    );
    call.with_context(|| {
        format!("{what}: the provider was to be known as a peer; {}", filter.decisions())
    })?;
    dropped.with_context(|| format!("{what}: only {closed} were; {}", filter.decisions()))?;
    assert!(passed > 0, "{what}: the provider's call was to pass as peer");
    for user in ["early", "stranger"] {
        let calls = pbx.count(&format!("INVITE sip:{user}@"));
        assert_eq!(calls, 0, "{what}: a call was to be dropped, but came through: {user}");
    }
    Ok(())
}

#[test]
fn a_provider_that_we_register_with_can_call_us() -> Result<()> {
    let lab = Lab::new()?;
    address(&lab.attacker, OUTSIDE, &[&format!("{PROVIDER}/24")])?;
    let filter = closed(&lab.pbx, lab.directory(), "")?;
    let pbx = Party::open(&lab.pbx, sip(PBX_WAN))?;
    let provider = Party::open(&lab.attacker, sip(PROVIDER))?;
    let stranger = Party::open(&lab.attacker, sip(ATTACKER))?;
    provider_calls("direct", &filter, [&pbx, &provider, &stranger], sip(PBX_WAN))
}

#[test]
fn a_provider_can_call_us_through_a_router() -> Result<()> {
    let nat = Nat::new()?;
    let filter = closed(&nat.pbx, nat.directory(), "")?;
    let pbx = Party::open(&nat.pbx, sip(PBX_INSIDE))?;
    let provider = Party::open(&nat.world, sip(PROVIDER))?;
    let stranger = Party::open(&nat.world, sip(ATTACKER))?;
    provider_calls("behind a router", &filter, [&pbx, &provider, &stranger], sip(PUBLIC))
}
