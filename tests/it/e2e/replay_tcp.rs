//! `replay` reads SIP over TCP in captures: guessers are found however they cut and pipe what they
//! send, and phones are known good. Needs root.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::exchange::{Connection, Said, register};
use sip_xdp_tests::pcap::{Cover, pcap};
use sip_xdp_tests::process::succeed;

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 5_060);
const ATTACKER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
const OFFICE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const START: u64 = 1_700_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;

fn replay(mut frames: Vec<(u64, Vec<u8>)>) -> Result<Value> {
    sip_xdp_tests::require_root()?;
    frames.sort_by_key(|(at, _)| *at);
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("tcp.pcap");
    fs::write(&file, pcap(Cover::Ethernet, &frames))?;
    let mut command = Command::new(sip_xdp_tests::filter::binary()?);
    let text = succeed(command.args(["replay", "--json"]).arg(&file))?;
    serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
}

fn guesses(count: usize) -> impl Iterator<Item = Vec<Said>> {
    (0..count).map(|number| register("100", "TCP", number, false))
}

/// Sends what is said one after the other, in segments of so many bytes at most.
fn say(connection: &mut Connection, said: &[Said], most: usize) {
    said.iter().for_each(|(is_client, bytes)| connection.send(*is_client, bytes, most));
}

fn is_found(name: &str, frames: Vec<(u64, Vec<u8>)>, messages: u64) -> Result<()> {
    let report = replay(frames)?;
    let tcp = &report["capture"]["tcp"];
    assert_eq!(tcp["messages"], messages, "{name}: {tcp}");
    assert_eq!(tcp["lost"], 0, "{name}: {tcp}");
    assert_eq!(report["registrar"]["networks"][0], SERVER.ip().to_string(), "{name}");
    let banned = report["banned"].as_array().context("no bans")?;
    assert_eq!(banned.len(), 1, "{name}: {:#}", report["events"]);
    let ban = &banned[0];
    assert_eq!(
        (&ban["address"], &ban["kind"], &ban["tier"], &ban["port"]),
        (&ATTACKER.to_string().into(), &"rejected".into(), &"proven".into(), &Value::Null),
        "{name}: {ban}"
    );
    let event =
        report["events"].as_array().and_then(|all| all.iter().find(|e| e["event"] == "ban"));
    assert_eq!(event.map(|event| &event["transport"]), Some(&"tcp".into()), "{name}");
    println!("{name}: {ban}");
    Ok(())
}

#[test]
fn guesses_are_found_however_they_are_sent() -> Result<()> {
    let from = |port: u16| SocketAddrV4::new(ATTACKER, port);
    // The tenth is rejected by the fortieth message; the capture ends with the twelfth.
    let mut one = Connection::open(from(40_000), SERVER, START);
    guesses(10).for_each(|said| say(&mut one, &said, 1_400));
    one.close();
    is_found("one connection", one.frames, 40)?;

    let mut bytes = Connection::open(from(40_000), SERVER, START);
    guesses(10).for_each(|said| say(&mut bytes, &said, 1));
    is_found("single bytes", bytes.frames, 40)?;

    let each = (0_u16..).zip(guesses(10)).flat_map(|(number, said)| {
        let time = START + u64::from(number) * SECOND;
        let mut connection = Connection::open(from(40_000 + number), SERVER, time);
        say(&mut connection, &said, 1_400);
        connection.close();
        connection.frames
    });
    is_found("one connection each", each.collect(), 40)?;

    // All first requests in as few segments as possible, then all answers, and so on.
    let all: Vec<Vec<Said>> = guesses(10).collect();
    let mut piped = Connection::open(from(40_000), SERVER, START);
    for step in 0..4 {
        let bytes: Vec<u8> = all.iter().flat_map(|said| said[step].1.clone()).collect();
        piped.send(all[0][step].0, &bytes, 1_400);
    }
    is_found("pipelined", piped.frames, 40)
}

#[test]
fn a_phone_is_known_good_and_a_bad_one_takes_nobody_down() -> Result<()> {
    let mut frames = Vec::new();
    // Three phones of an office, and one that nobody has reset: a new connection for each try.
    for (phone, user) in ["100", "101", "102"].into_iter().enumerate() {
        let from = SocketAddrV4::new(OFFICE, 50_000 + phone as u16);
        let mut connection = Connection::open(from, SERVER, START + phone as u64 * SECOND);
        say(&mut connection, &register(user, "TCP", phone, true), 1_400);
        frames.extend(connection.frames);
    }
    for number in 0..40_u16 {
        let from = SocketAddrV4::new(OFFICE, 51_000 + number);
        let time = START + (10 + 3 * u64::from(number)) * SECOND;
        let mut connection = Connection::open(from, SERVER, time);
        say(&mut connection, &register("200", "TCP", 100 + usize::from(number), false), 1_400);
        connection.close();
        frames.extend(connection.frames);
    }
    // A capture that lacks some packets, and one that comes from far behind.
    frames.remove(40);
    let report = replay(frames)?;
    assert_eq!(report["good"][0]["address"], OFFICE.to_string(), "{report:#}");
    assert_eq!(report["good"][0]["users"], 3, "{report:#}");
    let banned = report["banned"].as_array().context("no bans")?;
    assert!(!banned.is_empty(), "its connections are");
    assert!(banned.iter().all(|ban| !ban["port"].is_null()), "the office: {banned:#?}");
    Ok(())
}
