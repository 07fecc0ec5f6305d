//! Kinds of conversations that people reported, at other paces, with other users and ports, and
//! over IPv6 as well, come out as the reported ones do. Needs root.
//!
//! Above 400 lines: independent tests.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use sip_xdp::config::Config;
use sip_xdp::dataplane::tables::ledger::Tier;
use sip_xdp::net::network::Network;
use sip_xdp::tools::replay::{Ban, Input, Options, Replayed, replay};
use sip_xdp_tests::day::tape::{Answer, Delivery, Party, Tape, Verdict};
use sip_xdp_tests::day::{HOUR, MINUTE, SECOND, SERVER, SERVER6, START};
use sip_xdp_tests::draw::Draw;
use sip_xdp_tests::pcap::{Cover, pcap};

/// Where one variant of somebody is: each has an address of its own.
fn place(number: u16, port: u16) -> SocketAddr {
    let last = number / 2 + 1;
    if number.is_multiple_of(2) {
        SocketAddr::from((Ipv4Addr::new(192, 0, (last >> 8) as u8, last as u8), port))
    } else {
        SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0x100 + last, 0, 0, 0, 0, 7), port))
    }
}

/// The paces, ports and users that are combined: seconds between two tries, then ports, then users.
fn variants() -> impl Iterator<Item = (u16, u64, u16, &'static str)> {
    let combined = [3_u64, 30, 240].into_iter().flat_map(|pace| {
        [(5060, "1000"), (41_234, "anna.lind"), (5080, "+493012345")]
            .map(|(port, user)| (pace, port, user))
    });
    // Each by IPv4 and by IPv6.
    let both = combined.flat_map(|one| [one, one]);
    (0..).zip(both).map(|(number, (pace, port, user))| (number, pace, port, user))
}

fn played(tape: Tape) -> Result<Replayed> {
    sip_xdp_tests::require_root()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("variants.pcap");
    fs::write(&file, pcap(Cover::Ethernet, &tape.finish()))?;
    let registrar = vec![Network::host(SERVER.into()), Network::host(SERVER6.into())];
    replay(&Input::open(&file)?, &Config::default(), &Options { registrar }, &mut |_| {})
}

fn tape() -> Tape {
    Tape::new(SocketAddr::from((SERVER, 5060)), SocketAddr::from((SERVER6, 5060)))
}

fn bans_of(replayed: &Replayed, address: IpAddr) -> Vec<&Ban> {
    replayed.banned.iter().filter(|ban| ban.address.contains(&Network::host(address))).collect()
}

/// Nobody of these lost a packet, or was banned.
fn kept(replayed: &Replayed, places: &[SocketAddr]) {
    for place in places {
        let bans = bans_of(replayed, place.ip());
        assert_eq!(replayed.lost(place.ip(), Some(place.port())), 0, "{place}: {bans:#?}");
        assert!(bans.is_empty(), "{place}: {bans:#?}");
    }
    assert!(places.len() >= 18, "{} variants", places.len());
}

/// Each of these was banned.
fn banned(replayed: &Replayed, places: &[SocketAddr]) {
    for place in places {
        assert!(!bans_of(replayed, place.ip()).is_empty(), "{place} was never banned");
    }
    assert!(places.len() >= 18, "{} variants", places.len());
}

#[test]
fn trunks_that_authenticate_each_call_are_kept() -> Result<()> {
    let (mut tape, mut places) = (tape(), Vec::new());
    for (number, pace, port, user) in variants() {
        let mut trunk = Party::new(place(number, port), user).with("SBC");
        for turn in 0..60_u64 {
            let answer = match turn % 5 {
                0 => Answer::Fails("486 Busy Here"),
                1 => Answer::Fails("480 Temporarily Unavailable"),
                2 => Answer::Fails("487 Request Terminated"),
                3 => Answer::Refused("404 Not Found"),
                _ => Answer::Talk(60),
            };
            tape.call(
                START + turn * pace * SECOND,
                &mut trunk,
                &format!("0301{turn:06}"),
                true,
                answer,
            );
        }
        places.push(trunk.at);
    }
    kept(&played(tape)?, &places);
    Ok(())
}

#[test]
fn carriers_that_only_deliver_are_kept() -> Result<()> {
    let (mut tape, mut places) = (tape(), Vec::new());
    for (number, pace, port, _) in variants() {
        let mut carrier = Party::new(place(number, port), "anonymous").with("SBC");
        // One after the other: together they are more than one CPU hands to the detector.
        let start = START + u64::from(number) * 3 * MINUTE;
        for turn in 0..120_u64 {
            // One in ten goes to a number that nobody has.
            let answer = match turn % 10 {
                7 => Answer::Refused("404 Not Found"),
                3 => Answer::Fails("486 Busy Here"),
                _ => Answer::Talk(40),
            };
            // The fastest ones deliver two calls a second, which ring for as long as 22 s.
            let every = if pace == 3 { SECOND / 2 } else { pace * SECOND };
            tape.call(
                start + turn * every,
                &mut carrier,
                &format!("{}", 2_000 + turn % 90),
                false,
                answer,
            );
        }
        places.push(carrier.at);
    }
    kept(&played(tape)?, &places);
    Ok(())
}

#[test]
fn nonces_that_are_used_again_are_kept() -> Result<()> {
    let (mut tape, mut places) = (tape(), Vec::new());
    for (number, pace, port, user) in variants() {
        let mut phone = Party::new(place(number, port), &format!("{user}-{number}"));
        tape.register(START, &mut phone, Verdict::Right);
        for turn in 1..100_u64 {
            tape.register_again(START + turn * pace * SECOND, &mut phone, number % 4 < 2);
        }
        places.push(phone.at);
    }
    kept(&played(tape)?, &places);
    Ok(())
}

/// Twelve phones of an office whose passwords were changed beside one that works: no more than
/// their ports are banned, and the one that works loses nothing.
#[test]
fn offices_that_nobody_reset_are_kept() -> Result<()> {
    let (mut tape, mut working) = (tape(), Vec::new());
    for (number, pace, port, user) in variants() {
        // Faster ones than that are no phones.
        let pace = pace.max(20);
        let at = place(number, port);
        let mut good = Party::new(at, &format!("{user}-{number}"));
        for turn in 0..8_u64 {
            tape.register(START + turn * 25 * MINUTE, &mut good, Verdict::Right);
        }
        for forgotten in 0..12_u16 {
            let here = SocketAddr::new(at.ip(), 20_000 + forgotten);
            let mut phone = Party::new(here, &format!("old-{number}-{forgotten}"));
            let verdict = if forgotten % 2 == 0 { Verdict::Wrong } else { Verdict::Forbidden };
            for turn in 0..(3 * HOUR / (pace * SECOND)) {
                let at = START + u64::from(forgotten) * SECOND + turn * pace * SECOND;
                tape.register(at, &mut phone, verdict);
            }
        }
        working.push(at);
    }
    let replayed = played(tape)?;
    for at in &working {
        assert_eq!(
            replayed.lost(at.ip(), Some(at.port())),
            0,
            "{at}: {:#?}",
            bans_of(&replayed, at.ip())
        );
        for ban in bans_of(&replayed, at.ip()) {
            let is_one_phone =
                ban.port.is_some_and(|port| port >= 20_000) && ban.kind == "misconfigured";
            assert!(is_one_phone, "{ban:#?}");
        }
    }
    assert!(working.len() >= 18);
    Ok(())
}

/// The ports of forgotten phones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ports {
    /// Each has its own.
    Own,
    /// All are seen from one.
    One,
    /// Each try comes from another one.
    New,
}

/// Forgotten phones of an office whose good phones come before, after, or not at all.
#[derive(Debug)]
struct ColdOffice {
    number: u16,
    /// Forgotten phones.
    phones: u16,
    /// Seconds between two tries of one.
    pace: u64,
    verdict: Verdict,
    ports: Ports,
    /// When the good phones come, in nanoseconds from the begin.
    good_from: Option<u64>,
}

impl ColdOffice {
    fn host(&self, phone: u16, port: u16) -> SocketAddr {
        let office = place(self.number, port);
        match office {
            SocketAddr::V4(_) => office,
            // Each phone has an address of its own in the office's /64, or a /64 of its own.
            SocketAddr::V6(v6) => {
                let shift = if self.phones == 5 { 64 } else { 8 };
                let host = v6.ip().to_bits() + (u128::from(phone) << shift);
                SocketAddr::from((Ipv6Addr::from_bits(host), port))
            }
        }
    }

    fn play(&self, tape: &mut Tape) -> Vec<SocketAddr> {
        const LENGTH: u64 = 2 * HOUR;
        // In the same instant, all offices are more than one CPU hands to the detector.
        let begin = START + u64::from(self.number) * 130 * SECOND / 1_000;
        for phone in 0..self.phones {
            for turn in 0..LENGTH / (self.pace * SECOND) {
                let port = match self.ports {
                    Ports::Own => 20_000 + phone,
                    Ports::One => 5060,
                    Ports::New => 20_000 + turn as u16 * self.phones + phone,
                };
                let user = format!("old-{}-{phone}", self.number);
                let mut party = Party::new(self.host(phone, port), &user);
                tape.register(
                    begin + u64::from(phone) * SECOND + turn * self.pace * SECOND,
                    &mut party,
                    self.verdict,
                );
            }
        }
        let mut good = Vec::new();
        for phone in 100..105 {
            let Some(from) = self.good_from else { continue };
            let mut party = Party::new(
                self.host(phone, 10_000 + phone),
                &format!("new-{}-{phone}", self.number),
            );
            let mut at = begin + from + u64::from(phone - 100) * 3 * SECOND;
            while at < START + LENGTH {
                tape.register(at, &mut party, Verdict::Right);
                at += 25 * MINUTE;
            }
            good.push(party.at);
        }
        good
    }
}

/// Offices of which nothing is known but that two to 16 of their phones are rejected: none is
/// banned as a whole, and the good phones lose nothing, whenever they come. Where ports change each
/// time, those without a standing share the ladder after a while.
#[test]
fn cold_offices_with_forgotten_phones_are_kept() -> Result<()> {
    let (mut tape, mut offices, mut working) = (tape(), Vec::new(), Vec::new());
    for phones in [2, 5, 16] {
        for pace in [20, 30, 60, 300] {
            for (verdict, ports) in [
                (Verdict::Wrong, Ports::Own),
                (Verdict::Forbidden, Ports::Own),
                (Verdict::Wrong, Ports::One),
                (Verdict::Wrong, Ports::New),
            ] {
                for by_ipv6 in [0, 1] {
                    let kind = offices.len();
                    let good_from = [Some(0), Some(15 * MINUTE), Some(65 * MINUTE), None][kind % 4];
                    let number = 2 * kind as u16 + by_ipv6;
                    let office = ColdOffice { number, phones, pace, verdict, ports, good_from };
                    let good = office.play(&mut tape);
                    if ports != Ports::New || good_from == Some(0) {
                        working.extend(good);
                    }
                    offices.push(office);
                }
            }
        }
    }
    let replayed = played(tape)?;
    for at in &working {
        let bans = bans_of(&replayed, at.ip());
        assert_eq!(replayed.lost(at.ip(), Some(at.port())), 0, "{at}: {bans:#?}");
    }
    for office in &offices {
        let ColdOffice { phones, pace, ports, .. } = office;
        let mut count = 0;
        for ban in &replayed.banned {
            let phone = (0..*phones).find(|phone| {
                let host = office.host(*phone, 5060).ip();
                ban.address.contains(&Network::host(host))
            });
            if phone.is_none() {
                continue;
            }
            count += 1;
            let is_one_port = ban.port.is_some_and(|port| port >= 20_000 || port == 5060)
                && ban.kind == "misconfigured";
            // By IPv6 the address is the phone's. In a tape it is answered while it is banned,
            // which looks like requests that are hidden.
            let is_unproven = ban.tier == Some(Tier::Unproven);
            let is_one_host = !ban.address.first().is_v4()
                && ban.address.is_host()
                && (ban.kind == "misconfigured" || is_unproven);
            assert!(is_one_port || is_one_host, "{office:?}: {ban:#?}");
        }
        // 300 s are so slow that two of them may go on, and who comes from other ports is limited.
        let may_go_on = *pace == 300 && *phones == 2 || *ports == Ports::New;
        assert!(count > 0 || may_go_on, "{office:?}: no ban");
    }
    Ok(())
}

/// Carriers that begin to deliver right after the start, with more calls than a stranger may make,
/// before any of them ends: limited as strangers are, and never banned.
#[test]
fn cold_carriers_are_never_banned() -> Result<()> {
    let (mut tape, mut places, mut random) = (tape(), Vec::new(), Draw::new(7));
    let provisional = ["100 Trying", "180 Ringing", "183 Session Progress"];
    for (number, rate, rings) in (0..).zip([5, 10, 20]).flat_map(|(n, rate)| {
        (0..).zip([5, 30, 60, 90]).flat_map(move |(m, rings)| {
            (0..4).map(move |kind| (n * 16 + m * 4 + kind, rate, rings))
        })
    }) {
        let carrier = Party::new(place(number, 5060), "anonymous").with("SBC");
        // One after the other.
        let start = START + u64::from(number) * 4 * MINUTE;
        for turn in 0..150 * rate {
            // By chance, as people call. A beat would have the limit drop calls of one kind alone.
            let at = start + random.below(150 * SECOND);
            let answer = match (number % 4, random.below(12)) {
                (1, 0..3) | (2, 0..4) => Answer::Refused("404 Not Found"),
                (1, 3..6) => Answer::Fails("486 Busy Here"),
                (3, 0..3) => Answer::Fails("480 Temporarily Unavailable"),
                _ => Answer::Talk(40),
            };
            // All to one number of a call center, or each to another.
            let target = if number % 4 == 3 { 5_000 } else { 20_000 + turn };
            let provisional = provisional[usize::from(number / 2) % 3];
            let delivery = Delivery { provisional, rings: rings * SECOND, answer };
            tape.deliver(at, &carrier, &target.to_string(), delivery);
        }
        places.push(carrier.at);
    }
    let replayed = played(tape)?;
    for place in &places {
        let bans = bans_of(&replayed, place.ip());
        assert!(bans.is_empty(), "{place}: {bans:#?}");
    }
    assert!(places.len() >= 48);
    Ok(())
}

/// What looks like them and is none: the server works on each call and takes none, or refuses them.
#[test]
fn scanners_that_look_like_carriers_are_banned() -> Result<()> {
    let (mut tape, mut places) = (tape(), Vec::new());
    for (number, rate) in (0..24).zip([5, 10, 20].into_iter().cycle()) {
        let scanner = Party::new(place(number, 5060), "100");
        let start = START + u64::from(number) * 20 * MINUTE;
        for turn in 0..400 * rate {
            let at = start + turn * SECOND / rate;
            let target = (1_000 + turn).to_string();
            match number / 2 % 3 {
                // Nothing but 100, at a rate that is over the limit.
                0 if rate > 5 => {
                    let request = tape.request("INVITE", &target);
                    tape.asks(at, &scanner, &request);
                    tape.answers(at + 1_000_000, &scanner, &request, "100 Trying", None, "");
                }
                1 => {
                    let answer = Answer::Refused("404 Not Found");
                    let delivery = Delivery { provisional: "100 Trying", rings: 0, answer };
                    tape.deliver(at, &scanner, &target, delivery);
                }
                _ => tape.plain(at, &scanner, "INVITE", &target, "403 Forbidden"),
            }
        }
        places.push(scanner.at);
    }
    banned(&played(tape)?, &places);
    Ok(())
}

#[test]
fn callers_that_look_for_a_prefix_are_banned() -> Result<()> {
    let (mut tape, mut places) = (tape(), Vec::new());
    let prefixes = ["00", "011", "9011", "900", "+", "000", "90011"];
    let answers = [
        Answer::Talk(6),
        Answer::Refused("603 Decline"),
        Answer::Refused("503 Service Unavailable"),
        Answer::Refused("404 Not Found"),
        Answer::Fails("480 Temporarily Unavailable"),
        Answer::Refused("488 Not Acceptable Here"),
    ];
    for (number, pace, port, user) in variants() {
        let mut caller = Party::new(place(number, port), user);
        let answer = answers[usize::from(number) % answers.len()];
        for turn in 0..21_u64 {
            let prefix = prefixes[turn as usize % prefixes.len()];
            let target = format!("{prefix}4420718{:05}", 30_000 + u64::from(number));
            tape.call(START + turn * pace * SECOND, &mut caller, &target, false, answer);
        }
        places.push(caller.at);
    }
    banned(&played(tape)?, &places);
    Ok(())
}

#[test]
fn guessers_are_banned() -> Result<()> {
    let (mut tape, mut places) = (tape(), Vec::new());
    for (number, pace, port, user) in variants() {
        let mut guesser = Party::new(place(number, port), user);
        for turn in 0..60_u64 {
            let verdict = if turn % 3 == 0 { Verdict::Forbidden } else { Verdict::Wrong };
            guesser.user = format!("{user}{}", turn % 7);
            tape.register(START + turn * pace * SECOND, &mut guesser, verdict);
        }
        places.push(guesser.at);
    }
    banned(&played(tape)?, &places);
    Ok(())
}
