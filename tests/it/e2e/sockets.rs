//! Whoever is banned loses the connections that it has, so that the SIP server's workers come free.
//! Everybody else keeps theirs. Needs root.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use sip_xdp_tests::exchange::{HepServer, register};
use sip_xdp_tests::namespace::Namespace;
use sip_xdp_tests::topology::{ATTACKER, ATTACKER6, PBX_LAN, PBX_WAN, PBX_WAN6};
use sip_xdp_tests::{Filter, FilterOptions, Lab, Phone, Registrar, stream, wait_until};

const SOON: Duration = Duration::from_secs(10);

/// How long a server may have to keep a worker for a banned source.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How long nothing may happen to a connection that stays.
const A_WHILE: Duration = Duration::from_millis(300);

/// The network of [`ATTACKER6`].
const NETWORK6: &str = "2001:db8:66::/64";

/// What Kamailio writes for TLS.
const AS_TLS: u8 = 22;

/// Both ends of a connection to a server of the PBX.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(from: &Namespace, server: &TcpListener, to: impl Into<SocketAddr>) -> Result<Self> {
        let to = to.into();
        let client = from.enter(|| Ok(TcpStream::connect_timeout(&to, AT_ONCE)?))?;
        Ok(Self { client, server: server.accept()?.0 })
    }

    /// Why the server's next read fails, if its socket is gone within this time.
    fn end_within(&mut self, time: Duration) -> Result<Option<ErrorKind>> {
        self.server.set_read_timeout(Some(time))?;
        let error = self.server.read(&mut [0]).err().map(|error| error.kind());
        Ok(error.filter(|kind| !matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)))
    }

    /// Fails unless the socket goes at once.
    fn must_end(&mut self, what: &str) -> Result<()> {
        let since = Instant::now();
        let ended = self.end_within(AT_ONCE)?;
        println!("{what} ended after {:?}: {ended:?}", since.elapsed());
        assert_eq!(ended, Some(ErrorKind::ConnectionAborted), "{what}");
        Ok(())
    }

    /// Fails unless a byte goes through in both directions.
    fn must_live(&mut self, what: &str) -> Result<()> {
        assert_eq!(self.end_within(A_WHILE)?, None, "{what}");
        let mut byte = [0];
        self.client.set_read_timeout(Some(AT_ONCE))?;
        self.client.write_all(b"x")?;
        self.server.set_read_timeout(Some(AT_ONCE))?;
        self.server.read_exact(&mut byte).with_context(|| format!("{what}: there"))?;
        self.server.write_all(b"x")?;
        self.client.read_exact(&mut byte).with_context(|| format!("{what}: and back"))
    }
}

fn server(lab: &Lab, address: &str) -> Result<TcpListener> {
    lab.pbx.enter(|| Ok(TcpListener::bind(address)?))
}

fn options(configuration: &str) -> FilterOptions {
    FilterOptions { configuration: configuration.to_owned(), ..FilterOptions::default() }
}

fn destroyed(filter: &Filter<'_>) -> Result<u64> {
    let status = filter.json(&["status"])?;
    status["daemon"]["sockets"]["destroyed"].as_u64().context("no such counter")
}

#[test]
fn who_is_blocked_by_command_loses_its_connections_to_the_sip_server() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options("block_scope = \"all\"\n"))?;
    // The first takes IPv4 as well, in IPv4-mapped sockets.
    let (both, four) = (server(&lab, "[::]:5060")?, server(&lab, "0.0.0.0:5061")?);
    let other = server(&lab, "[::]:2222")?;
    let attacker = &lab.attacker;
    let mut mapped = Connection::open(attacker, &both, (PBX_WAN, 5_060))?;
    let mut plain = Connection::open(attacker, &four, (PBX_WAN, 5_061))?;
    let mut six = Connection::open(attacker, &both, (PBX_WAN6, 5_060))?;
    let mut shell = Connection::open(attacker, &other, (PBX_WAN, 2_222))?;
    let mut neighbour = Connection::open(&lab.phone, &both, (PBX_LAN, 5_060))?;
    // Not accepted by the server yet.
    let _waiting = attacker.enter(|| Ok(TcpStream::connect((PBX_WAN, 5_061))?))?;

    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    mapped.must_end("an IPv4-mapped connection")?;
    plain.must_end("an IPv4 connection")?;
    six.must_live("the IPv6 connection of an address that is not blocked")?;
    neighbour.must_live("the neighbour's connection")?;
    wait_until("all three are counted", SOON, || Ok(destroyed(&filter)? == 3))?;

    filter.succeed(&["block", "add", NETWORK6, "--force"])?;
    six.must_end("an IPv6 connection")?;
    neighbour.must_live("the neighbour's connection, again")?;
    // What is no SIP port goes silent under this scope, but is not torn down.
    assert_eq!(shell.end_within(A_WHILE)?, None);
    filter.succeed(&["block", "del", &ATTACKER.to_string()])?;
    shell.must_live("a connection to another service")?;
    assert_eq!(destroyed(&filter)?, 4);
    let lines = filter.log();
    let said = format!("disconnect {ATTACKER} connections=3");
    assert!(lines.iter().any(|line| line.text.ends_with(&said)), "{lines:#?}");
    Ok(())
}

#[test]
fn a_list_of_networks_ends_connections_but_those_of_trusted_hosts() -> Result<()> {
    let lab = Lab::new()?;
    let trusted = format!("[trust]\nnetworks = [\"{ATTACKER6}\"]\n");
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options(&trusted))?;
    let server = server(&lab, "[::]:5061")?;
    let mut four = Connection::open(&lab.attacker, &server, (PBX_WAN, 5_061))?;
    let mut six = Connection::open(&lab.attacker, &server, (PBX_WAN6, 5_061))?;
    let file = lab.directory().join("bad");
    std::fs::write(&file, format!("192.0.2.0/24\n{ATTACKER}\n{NETWORK6}\n"))?;
    filter.succeed(&["block", "import", &file.to_string_lossy(), "--force"])?;
    four.must_end("one of a list")?;
    six.must_live("that of a trusted host in a blocked network")
}

/// Guesses over TLS, told by the server: evidence of level 1.
fn tell_of_guesses(lab: &Lab) -> Result<()> {
    let hep = HepServer::new(&lab.pbx, "127.0.0.1:9060", "")?;
    for guess in 0..12_u16 {
        let from = SocketAddr::from((ATTACKER, 40_000 + guess));
        for message in register("100", "TLS", usize::from(guess), false) {
            hep.tell(AS_TLS, (from, SocketAddr::from((PBX_WAN, 5_061))), &message)?;
        }
    }
    Ok(())
}

#[test]
fn a_ban_by_proven_evidence_ends_connections() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options("[[hep]]\n"))?;
    let server = server(&lab, "0.0.0.0:5061")?;
    let mut connection = Connection::open(&lab.attacker, &server, (PBX_WAN, 5_061))?;
    let mut neighbour = Connection::open(&lab.phone, &server, (PBX_LAN, 5_061))?;
    tell_of_guesses(&lab)?;
    let ban = filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    connection.must_end("a connection under a ban that is proven")?;
    assert_eq!(ban.tier, "proven");
    neighbour.must_live("the neighbour's connection")
}

#[test]
fn a_ban_by_evidence_that_could_be_forged_ends_no_connection() -> Result<()> {
    let lab = Lab::new()?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let server = server(&lab, "0.0.0.0:5061")?;
    let mut connection = Connection::open(&lab.attacker, &server, (PBX_WAN, 5_061))?;
    assert_eq!(Phone::new(&lab.phone, lab.directory()).register()?.status, 200);
    let flood = stream::registers(&lab.attacker, ATTACKER, PBX_WAN, 500)?;
    let ban = filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    flood.stop()?;
    assert_eq!(ban.tier, "unproven");
    connection.must_live("a connection under a ban of UDP alone")?;
    assert_eq!(destroyed(&filter)?, 0);
    Ok(())
}

#[test]
fn a_dry_run_ends_no_connection() -> Result<()> {
    let lab = Lab::new()?;
    let filter =
        Filter::start_with(&lab.pbx, lab.directory(), options("dry_run = true\n[[hep]]\n"))?;
    let server = server(&lab, "0.0.0.0:5061")?;
    let mut connection = Connection::open(&lab.attacker, &server, (PBX_WAN, 5_061))?;
    tell_of_guesses(&lab)?;
    filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    filter.succeed(&["block", "add", &ATTACKER.to_string()])?;
    connection.must_live("a connection in a dry run")?;
    assert_eq!(destroyed(&filter)?, 0);
    Ok(())
}
