//! What cannot be read on the wire, told by the SIP server itself over HEP: guessers are banned,
//! phones are known good, and nobody is believed who does not know the key. And the other way
//! round: what a capture server is told. Needs root.
//!
//! More than 400 lines: both directions of one protocol.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use sip_xdp::sip::hep;
use sip_xdp_tests::digest::Challenge;
use sip_xdp_tests::exchange::{HepServer, hep3, register};
use sip_xdp_tests::message::Message;
use sip_xdp_tests::registrar::USERS;
use sip_xdp_tests::topology::{ATTACKER, PBX_LAN, PBX_WAN, PHONE};
use sip_xdp_tests::{
    Carrier, Encrypted, Filter, FilterOptions, Lab, Registrar, RegistrarOptions, wait_until,
};

const SOON: Duration = Duration::from_secs(10);

/// The IP protocol numbers of TCP and UDP, and what Kamailio writes for TLS.
const TCP: u8 = 6;
const UDP: u8 = 17;
const AS_TLS: u8 = 22;

fn options(configuration: &str) -> FilterOptions {
    FilterOptions { configuration: configuration.to_owned(), ..FilterOptions::default() }
}

fn ends(port: u16, local_port: u16) -> (SocketAddr, SocketAddr) {
    (SocketAddr::from((ATTACKER, port)), SocketAddr::from((PBX_WAN, local_port)))
}

fn places(filter: &Filter<'_>) -> Result<Value> {
    Ok(filter.json(&["status"])?["daemon"]["hep"].clone())
}

fn wait_for_count(filter: &Filter<'_>, what: &str, expected: u64) -> Result<()> {
    wait_until(&format!("{expected} packets are {what}"), SOON, || {
        Ok(places(filter)?[0][what] == expected)
    })
    .map(drop)
}

/// Whether the attacker reaches a TCP port of the PBX.
fn reaches(lab: &Lab, port: u16) -> Result<bool> {
    lab.attacker.enter(|| {
        let to = SocketAddr::from((PBX_WAN, port));
        Ok(TcpStream::connect_timeout(&to, Duration::from_millis(700)).is_ok())
    })
}

#[test]
fn guesses_over_tls_are_banned() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options("[[hep]]\n"))?;
    let _server = lab.pbx.enter(|| Ok(TcpListener::bind(SocketAddr::from((PBX_WAN, 5_061)))?))?;
    assert!(reaches(&lab, 5_061)?, "before");
    let hep = HepServer::new(&lab.pbx, "127.0.0.1:9060", "")?;
    // Each guess by a connection of its own, as fast as they come.
    let mut said = 0;
    for guess in 0..12_u16 {
        for message in register("100", "TLS", usize::from(guess), false) {
            hep.tell(AS_TLS, ends(40_000 + guess, 5_061), &message)?;
            said += 1;
        }
    }
    let ban = filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    println!("{ban:?}");
    assert_eq!(filter.ban_kind(&ATTACKER.to_string()).as_deref(), Some("rejected"));
    wait_for_count(&filter, "taken", said)?;
    let entry = &filter.entries(&ATTACKER.to_string())?[0];
    assert_eq!(entry["tier"], "proven", "a handshake proves an address: {entry}");
    assert_eq!(entry["port"], Value::Null);
    let line = filter.log().into_iter().find(|line| line.text.contains("kind=rejected"));
    assert!(line.is_some_and(|line| line.text.contains("by tls")), "{:#?}", filter.log());
    let known = filter.json(&["explain", &ATTACKER.to_string()])?;
    assert_eq!(known["last"]["transport"], "tls", "{known:#}");
    assert!(!reaches(&lab, 5_061)?, "afterwards");
    Ok(())
}

#[test]
fn a_phone_over_wss_is_known_good_and_the_bad_one_beside_it_stays_alone() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options("[[hep]]\n"))?;
    let hep = HepServer::new(&lab.pbx, "127.0.0.1:9060", "")?;
    // Asterisk says TCP of all of these; the Via tells them apart.
    for message in register("100", "WSS", 0, true) {
        hep.tell(TCP, ends(50_000, 8_089), &message)?;
    }
    let address = ATTACKER.to_string();
    wait_until("the phone is known good", SOON, || {
        Ok(filter.json(&["explain", &address])?["accepted"][0]["user"] == "100")
    })?;
    let known = filter.json(&["explain", &address])?;
    assert_eq!(known["accepted"][0]["transport"], "wss", "{known:#}");
    assert!(known["good_until"].is_string(), "{known:#}");
    // A phone that nobody has reset, with a new connection for each try.
    for number in 1..=25_u16 {
        for message in register("200", "WSS", usize::from(number), false) {
            hep.tell(TCP, ends(51_000 + number, 8_089), &message)?;
        }
    }
    wait_for_count(&filter, "taken", 26 * 4)?;
    wait_until("one of its ports is banned", SOON, || {
        Ok(filter.entries(&address)?.iter().any(|entry| !entry["port"].is_null()))
    })?;
    assert!(
        filter.entries(&address)?.iter().all(|entry| !entry["port"].is_null()),
        "the office: {:#?}",
        filter.log()
    );
    let status = filter.json(&["status"])?.to_string();
    assert!(status.contains("messages of port 8089 come by HEP"), "{status}");
    Ok(())
}

#[test]
fn who_does_not_know_the_key_is_refused_and_counted() -> Result<()> {
    let lab = Lab::new()?;
    let key = lab.directory().join("hep.key");
    std::fs::write(&key, "secret\n")?;
    let configuration = format!(
        "[[hep]]\nlisten = \"udp:127.0.0.1:9060\"\nkey_file = {key:?}\n\
         [[hep]]\nlisten = \"tcp:127.0.0.1:9061\"\n"
    );
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options(&configuration))?;
    let (wrong, right) = (
        HepServer::new(&lab.pbx, "127.0.0.1:9060", "guess")?,
        HepServer::new(&lab.pbx, "127.0.0.1:9060", "secret")?,
    );
    for guess in 0..12 {
        for message in register("100", "TLS", guess, false) {
            wrong.tell(AS_TLS, ends(40_000, 5_061), &message)?;
            // What is read on the wire counts once.
            right.tell(UDP, ends(40_000, 5_060), &message)?;
        }
    }
    wait_for_count(&filter, "refused", 48)?;
    wait_for_count(&filter, "ignored", 48)?;
    filter.nobody_is_banned("nobody was believed")?;
    let status = filter.json(&["status"])?.to_string();
    assert!(status.contains("48 HEP packets at udp:127.0.0.1:9060 were refused"), "{status}");

    // The other place takes connections, and ends one that speaks no HEP.
    lab.pbx.enter(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9061")?;
        for guess in 0..12 {
            for (arrives, message) in register("100", "TLS", guess, false) {
                let (client, server) = ends(40_000, 5_061);
                let (from, to) = if arrives { (client, server) } else { (server, client) };
                let packet = hep3(AS_TLS, from, to, b"", &message);
                // Split where it hurts.
                stream.write_all(&packet[..5])?;
                stream.write_all(&packet[5..])?;
            }
        }
        TcpStream::connect("127.0.0.1:9061")?.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        Ok(())
    })?;
    filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    wait_until("the other one is counted", SOON, || {
        let places = places(&filter)?;
        Ok(places[1]["taken"] == 48 && places[1]["malformed"] == 1)
    })?;
    let metrics = filter.json(&["status"])?["daemon"]["metrics"]["listen"].clone();
    assert!(metrics.is_string(), "{metrics}");
    Ok(())
}

#[test]
fn kamailio_tells_of_guesses_over_tcp() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options("[[hep]]\n"))?;
    let told = RegistrarOptions { hep: Some("127.0.0.1:9060"), ..RegistrarOptions::default() };
    let registrar = Registrar::start_with(&lab.pbx, lab.directory(), &told)?;
    let guesses = lab.attacker.enter(|| {
        let mut stream = TcpStream::connect(SocketAddr::from((PBX_WAN, 5_060)))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut ask = |request: &[u8]| -> Result<String> {
            stream.write_all(request)?;
            let mut answer = vec![0; 4_096];
            let length = stream.read(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
        };
        let mut challenge = None;
        for guess in 1..=2_000_u32 {
            let credentials = challenge.as_ref().map(|challenge: &Challenge| {
                challenge.credentials("alice", &format!("{guess}"), "REGISTER", "sip:pbx.example")
            });
            let request = format!(
                "REGISTER sip:pbx.example SIP/2.0\r\n\
                 Via: SIP/2.0/TCP {ATTACKER}:5060;branch=z9hG4bK-{guess}\r\n\
                 From: <sip:alice@pbx.example>;tag=1\r\nTo: <sip:alice@pbx.example>\r\n\
                 Call-ID: guesses\r\nCSeq: {guess} REGISTER\r\n\
                 Contact: <sip:alice@{ATTACKER}>\r\n{}Content-Length: 0\r\n\r\n",
                credentials.unwrap_or_default()
            );
            let Ok(answer) = ask(request.as_bytes()) else {
                return Ok(guess);
            };
            challenge = Message::parse(answer.as_bytes()).and_then(|one| Challenge::of(&one));
        }
        Ok(2_000)
    })?;
    filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    println!("{guesses} guesses were sent, {} received", registrar.received_from(ATTACKER));
    assert!(guesses < 500, "{guesses} guesses before the connection went dead");
    let known = filter.json(&["explain", &ATTACKER.to_string()])?;
    assert_eq!(known["last"]["transport"], "tcp", "{known:#}");
    Ok(())
}

/// What a capture server has received.
#[derive(Debug)]
struct Captured {
    is_sip: bool,
    protocol: u8,
    from: Option<SocketAddr>,
    to: Option<SocketAddr>,
    correlation: String,
    key: Option<Vec<u8>>,
    text: String,
}

impl Captured {
    fn read(packet: &[u8]) -> Result<Self> {
        let found = hep::read(packet).context("no HEP")?;
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into();
        Ok(Self {
            is_sip: found.is_sip,
            protocol: found.protocol,
            from: found.from.map(|from| SocketAddr::new(from, found.from_port)),
            to: found.to.map(|to| SocketAddr::new(to, found.to_port)),
            correlation: text(found.correlation),
            key: found.key.map(<[u8]>::to_vec),
            text: text(found.message),
        })
    }
}

fn probe(lab: &Lab, call: &str) -> Result<()> {
    lab.attacker.enter(|| {
        let socket = UdpSocket::bind((ATTACKER, 5_070))?;
        let request = format!(
            "OPTIONS sip:{PBX_WAN} SIP/2.0\r\nVia: SIP/2.0/UDP {ATTACKER}:5070;branch=z9hG4bK-1\r\n\
             From: <sip:a@b>;tag=1\r\nTo: <sip:a@b>\r\nCall-ID: {call}\r\nCSeq: 1 OPTIONS\r\n\
             Content-Length: 0\r\n\r\n"
        );
        socket.send_to(request.as_bytes(), (PBX_WAN, 5_060))?;
        Ok(())
    })
}

#[test]
fn a_capture_server_sees_what_is_dropped_and_why() -> Result<()> {
    let lab = Lab::new()?;
    let key = lab.directory().join("homer.key");
    std::fs::write(&key, "secret\n")?;
    let configuration = |server: &str| {
        format!(
            "[[hep]]\n[hep_export]\nserver = \"{server}\"\nkey_file = {key:?}\n\
             rate = {{ count = 5, per = \"60s\" }}\n"
        )
    };
    let homer = lab.phone.enter(|| Ok(UdpSocket::bind((PHONE, 9_060))?))?;
    homer.set_read_timeout(Some(SOON))?;
    let configured = options(&configuration(&format!("udp:{PHONE}:9060")));
    let filter = Filter::start_with(&lab.pbx, lab.directory(), configured)?;
    let receive = || {
        let mut buffer = vec![0; 65_536];
        let length = homer.recv(&mut buffer).context("the capture server gets nothing")?;
        Captured::read(&buffer[..length])
    };
    // The kernel samples from the next tick on.
    let mut told = 0;
    for message in (0..12).flat_map(|guess| register("100", "TLS", guess, false)) {
        let hep = HepServer::new(&lab.pbx, "127.0.0.1:9060", "")?;
        hep.tell(AS_TLS, ends(40_000, 5_061), &message)?;
        told += 1;
    }
    wait_for_count(&filter, "taken", told)?;
    filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    let ban = receive()?;
    println!("{ban:?}");
    assert!(!ban.is_sip, "{ban:?}");
    assert_eq!(ban.from.map(|from| from.ip()), Some(ATTACKER.into()));
    assert_eq!((ban.protocol, ban.key.as_deref()), (TCP, Some(&b"secret"[..])));
    let why: Value = serde_json::from_str(&ban.text)?;
    assert_eq!((&why["event"], &why["kind"]), (&"ban".into(), &"rejected".into()));
    let guess = register("100", "TLS", 9, false).remove(0).1;
    let guess = String::from_utf8_lossy(&guess).into_owned();
    assert!(guess.contains(&format!("Call-ID: {}\r\n", ban.correlation)), "{ban:?} {guess}");

    // Now its packets are dropped, of which a few are told.
    std::thread::sleep(Duration::from_millis(1_200));
    for number in 0..20 {
        probe(&lab, &format!("probe-{number}"))?;
    }
    let dropped = receive()?;
    println!("{dropped:?}");
    assert!(dropped.is_sip && dropped.protocol == UDP, "{dropped:?}");
    assert_eq!(dropped.from, Some(SocketAddr::from((ATTACKER, 5_070))));
    assert_eq!(dropped.to, Some(SocketAddr::from((PBX_WAN, 5_060))));
    assert_eq!(dropped.correlation, "probe-0");
    assert!(dropped.text.starts_with("OPTIONS sip:") && dropped.text.ends_with("\r\n\r\n"));
    let status =
        || Ok::<Value, anyhow::Error>(filter.json(&["status"])?["daemon"]["hep_export"].clone());
    wait_until("five are sent, and the rest counted", SOON, || {
        let status = status()?;
        Ok(status["packets"] == 5 && status["suppressed"] == 15 && status["bans"] == 1)
    })?;

    // By TCP, to a server that comes up late.
    filter.configure(&configuration(&format!("tcp:{PHONE}:9061")))?;
    filter.succeed(&["reload"])?;
    std::thread::sleep(Duration::from_millis(1_200));
    probe(&lab, "lost")?;
    wait_until("the first one is lost", SOON, || Ok(status()?["lost"] == 1))?;
    let warnings = filter.json(&["status"])?["warnings"].to_string();
    assert!(warnings.contains(&format!("no HEP is sent to tcp:{PHONE}:9061: ")), "{warnings}");
    let homer = lab.phone.enter(|| Ok(TcpListener::bind((PHONE, 9_061))?))?;
    std::thread::sleep(Duration::from_millis(1_200));
    probe(&lab, "by-tcp")?;
    let (mut stream, _) = homer.accept()?;
    stream.set_read_timeout(Some(SOON))?;
    let mut head = [0; hep::HEADER];
    stream.read_exact(&mut head)?;
    let length = hep::length(&head).context("no HEP")?;
    let mut packet = vec![0; length];
    packet[..head.len()].copy_from_slice(&head);
    stream.read_exact(&mut packet[head.len()..])?;
    let captured = Captured::read(&packet)?;
    assert_eq!(captured.correlation, "by-tcp");
    wait_until("it is well again", SOON, || Ok(status()?["error"].is_null()))?;

    filter.configure("[hep_export]\nserver = \"homer.example:9060\"\n")?;
    let refused = filter.cli(&["config", "check"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("udp:homer.example:9060"), "{said}");
    Ok(())
}

/// Guesses alice's password over one connection until it goes dead; how many were answered.
fn guess(lab: &Lab, carrier: Carrier) -> Result<u32> {
    lab.attacker.enter(|| {
        let mut connection = Encrypted::open(carrier, SocketAddr::from((PBX_WAN, carrier.port())))?;
        let mut challenge: Option<Challenge> = None;
        for guess in 0..2_000_u32 {
            let request = registration(
                carrier,
                "alice",
                "guesses",
                guess + 1,
                |challenge| {
                    challenge.credentials(
                        "alice",
                        &format!("{guess}"),
                        "REGISTER",
                        "sip:pbx.example",
                    )
                },
                challenge.as_ref(),
            );
            let Ok(answer) = connection.ask(&request) else {
                return Ok(guess);
            };
            challenge = Message::parse(&answer).and_then(|one| Challenge::of(&one));
        }
        Ok(2_000)
    })
}

/// A REGISTER, with credentials if there was a challenge.
fn registration(
    carrier: Carrier,
    user: &str,
    call: &str,
    sequence: u32,
    credentials: impl Fn(&Challenge) -> String,
    challenge: Option<&Challenge>,
) -> Vec<u8> {
    let via = carrier.name();
    let transport = via.to_lowercase();
    let credentials = challenge.map(credentials).unwrap_or_default();
    format!(
        "REGISTER sip:pbx.example SIP/2.0\r\n\
         Via: SIP/2.0/{via} phone.invalid;branch=z9hG4bK-{call}-{sequence}\r\n\
         From: <sip:{user}@pbx.example>;tag=1\r\nTo: <sip:{user}@pbx.example>\r\n\
         Call-ID: {call}\r\nCSeq: {sequence} REGISTER\r\n\
         Contact: <sip:{user}@phone.invalid;transport={transport}>;expires=600\r\n\
         {credentials}Content-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

fn told_kamailio() -> RegistrarOptions<'static> {
    RegistrarOptions {
        hep: Some("127.0.0.1:9060"),
        is_encrypted: true,
        ..RegistrarOptions::default()
    }
}

/// Guesses over what cannot be read on the wire, against a real Kamailio that tells of it: at most
/// 30 are answered at full speed, and the connection is gone with the ban.
fn guesses_are_few(carrier: Carrier) -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options("[[hep]]\n"))?;
    let registrar = Registrar::start_with(&lab.pbx, lab.directory(), &told_kamailio())?;
    let answered = guess(&lab, carrier)?;
    println!("{}: {answered} guesses were answered", carrier.name());
    let ban = filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    println!("{ban:?}");
    let known = filter.json(&["explain", &ATTACKER.to_string()])?;
    let transport = carrier.name().to_lowercase();
    assert_eq!(known["last"]["transport"], transport.as_str(), "{known:#} {}", registrar.log());
    assert_eq!(filter.entries(&ATTACKER.to_string())?[0]["tier"], "proven");
    assert!(answered <= 30, "{answered} guesses were answered");
    assert!(!reaches(&lab, carrier.port())?, "afterwards");
    Ok(())
}

#[test]
fn kamailio_tells_of_guesses_over_tls() -> Result<()> {
    guesses_are_few(Carrier::Tls)
}

#[test]
fn kamailio_tells_of_guesses_over_websocket() -> Result<()> {
    guesses_are_few(Carrier::Ws)
}

#[test]
fn kamailio_tells_of_guesses_over_websocket_and_tls() -> Result<()> {
    guesses_are_few(Carrier::Wss)
}

#[test]
fn phones_on_tls_and_websocket_of_kamailio_are_known_good() -> Result<()> {
    let lab = Lab::new()?;
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options("[[hep]]\n"))?;
    let _registrar = Registrar::start_with(&lab.pbx, lab.directory(), &told_kamailio())?;
    let warnings =
        || Ok::<String, anyhow::Error>(filter.json(&["status"])?["warnings"].to_string());
    let unread = "what comes by TLS or WebSocket cannot be read on the wire";
    assert!(warnings()?.contains(unread), "nothing has come yet: {}", warnings()?);
    let check = filter.cli(&["status", "--check"])?;
    assert!(check.status.success() && String::from_utf8_lossy(&check.stderr).contains(unread));
    let (user, password) = USERS[0];
    for carrier in [Carrier::Tls, Carrier::Wss, Carrier::Ws] {
        let last = lab.phone.enter(|| {
            let mut connection =
                Encrypted::open(carrier, SocketAddr::from((PBX_LAN, carrier.port())))?;
            let mut challenge = None;
            let mut status = None;
            for sequence in 1..=2 {
                let request = registration(
                    carrier,
                    user,
                    carrier.name(),
                    sequence,
                    |challenge| {
                        challenge.credentials(user, password, "REGISTER", "sip:pbx.example")
                    },
                    challenge.as_ref(),
                );
                let answer = connection.ask(&request)?;
                let answer = Message::parse(&answer).context("no SIP")?;
                (status, challenge) = (answer.status(), Challenge::of(&answer));
            }
            Ok(status)
        })?;
        assert_eq!(last, Some(200), "{carrier:?}");
        let transport = carrier.name().to_lowercase();
        wait_until(&format!("the phone on {transport} is known good"), SOON, || {
            let known = filter.json(&["explain", &PHONE.to_string()])?;
            let accepted = known["accepted"].as_array().cloned().unwrap_or_default();
            Ok(accepted.iter().any(|one| one["user"] == user && one["transport"] == *transport))
        })?;
    }
    assert!(!warnings()?.contains(unread), "{}", warnings()?);
    filter.nobody_is_banned("phones with the right password")
}
