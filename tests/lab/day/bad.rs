//! The twelve attackers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::good::user;
use super::tape::{Answer, Party, Tape, Verdict};
use super::{BOTS, HOUR, MINUTE, SECOND, START};
use crate::draw::Draw;

/// Who attacked.
#[derive(Debug, Default)]
pub(super) struct Bad {
    pub(super) attackers: BTreeMap<&'static str, IpAddr>,
    pub(super) bots: Vec<IpAddr>,
    pub(super) sprayed: Vec<String>,
}

pub(super) fn play(tape: &mut Tape, random: &mut Draw) -> Bad {
    let mut bad = Bad::default();
    let mut attacker = |name: &'static str, last: u8, user: &str| {
        let party = Party::new((Ipv4Addr::new(198, 18, 7, last), 5062), user);
        bad.attackers.insert(name, party.at.ip());
        party
    };
    scanner(tape, &attacker("a scanner with a tool's name", 1, "100").with("friendly-scanner"));
    guesser(
        tape,
        &mut attacker("a fast guesser", 2, &user(1)),
        60 * SECOND / 20,
        20 * MINUTE,
        9 * HOUR,
    );
    guesser(tape, &mut attacker("a patient guesser", 3, &user(2)), 50 * SECOND, 6 * HOUR, 2 * HOUR);
    guesser(
        tape,
        &mut attacker("a very patient guesser", 4, &user(3)),
        10 * MINUTE,
        23 * HOUR,
        MINUTE,
    );
    flood(tape, &attacker("a flood of registrations", 5, "200"), "REGISTER");
    flood(tape, &attacker("a flood of requests", 6, "200"), "OPTIONS");
    fraud(
        tape,
        &mut attacker("a caller at others' cost", 7, "100"),
        Answer::Refused("403 Forbidden"),
        4 * HOUR,
    );
    let announced = Answer::Talk(8);
    fraud(tape, &mut attacker("a caller that hears announcements", 8, "100"), announced, 15 * HOUR);
    enumerator(tape, &attacker("one that looks for users", 9, "100"));
    insider(tape, &mut attacker("one with an account", 10, &user(44)));
    hopper(tape, &mut bad);
    botnet(tape, random, &mut bad);
    bad
}

/// Looks for users, with the name that the tool has.
fn scanner(tape: &mut Tape, party: &Party) {
    for turn in 0..400_u64 {
        let target = format!("{}", 100 + turn);
        tape.plain(START + HOUR + turn * SECOND / 30, party, "REGISTER", &target, "404 Not Found");
    }
}

fn guesser(tape: &mut Tape, party: &mut Party, every: u64, length: u64, from: u64) {
    let mut at = START + from;
    while at < START + from + length {
        tape.register(at, party, Verdict::Wrong);
        at += every;
    }
}

fn flood(tape: &mut Tape, party: &Party, method: &'static str) {
    for turn in 0..12_000_u64 {
        let line = if method == "REGISTER" { "401 Unauthorized" } else { "200 OK" };
        tape.plain(START + 16 * HOUR + turn * SECOND / 300, party, method, "200", line);
    }
}

/// Looks for the prefix that leads out, every 35 s.
fn fraud(tape: &mut Tape, party: &mut Party, answer: Answer, from: u64) {
    let prefixes = ["00", "011", "9011", "900", "+", "000", "90011", "7011"];
    for turn in 0..120_u64 {
        let number =
            format!("{}44207183{:04}", prefixes[turn as usize % prefixes.len()], 8_750 + turn / 40);
        tape.call(START + from + turn * 35 * SECOND, party, &number, false, answer);
    }
}

fn enumerator(tape: &mut Tape, party: &Party) {
    for turn in 0..200_u64 {
        let line = if turn % 20 == 0 { "401 Unauthorized" } else { "404 Not Found" };
        let target = format!("{}", 5_000 + turn * 7);
        tape.plain(START + 11 * HOUR + turn * 8 * SECOND, party, "REGISTER", &target, line);
    }
}

/// Has an account of its own, registers with it, and guesses for others between.
fn insider(tape: &mut Tape, party: &mut Party) {
    for turn in 0..120_u64 {
        let at = START + 6 * HOUR + turn * 30 * SECOND;
        if turn % 20 == 0 {
            tape.register(at, party, Verdict::Right);
        }
        let mut other = Party { user: user(300 + (turn % 40) as u32), ..party.clone() };
        tape.register(at + 5 * SECOND, &mut other, Verdict::Wrong);
    }
}

/// Guesses from another address of its network each time.
fn hopper(tape: &mut Tape, bad: &mut Bad) {
    let network = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 1, 0, 0, 0, 0);
    bad.attackers.insert("one that hops", IpAddr::V6(network));
    for turn in 0..300_u16 {
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 1, 0, 0, 0, turn / 3 + 1);
        let mut party = Party::new(SocketAddr::from((address, 5060)), &user(5));
        tape.register(
            START + 18 * HOUR + u64::from(turn) * 10 * SECOND,
            &mut party,
            Verdict::Wrong,
        );
    }
}

/// A hundred addresses for each of three users, three guesses each, over six hours.
fn botnet(tape: &mut Tape, random: &mut Draw, bad: &mut Bad) {
    bad.sprayed = [120, 121, 122].map(user).to_vec();
    for number in 0..BOTS {
        let address = Ipv4Addr::new(
            100,
            64 + (number % 50) as u8,
            (number / 50) as u8,
            7 + (number % 200) as u8,
        );
        bad.bots.push(IpAddr::V4(address));
        let victim = bad.sprayed[(number % 3) as usize].clone();
        let mut party = Party::new((address, 5060), &victim);
        for _ in 0..3 {
            tape.register(START + 12 * HOUR + random.below(6 * HOUR), &mut party, Verdict::Wrong);
        }
    }
}
