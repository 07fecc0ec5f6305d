//! Those who must not lose a packet: phones in offices, users on the road, carriers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::tape::{Answer, Party, Tape, Verdict};
use super::{HOUR, MINUTE, OFFICES, PHONES, SECOND, START};
use crate::draw::Draw;

/// One phone in so many has a password that was changed: two percent.
const STALE_ONE_IN: u32 = 50;

const DAY: u64 = 24 * HOUR;

/// Who was there.
#[derive(Debug, Default)]
pub(super) struct Good {
    pub(super) places: BTreeSet<SocketAddr>,
    pub(super) stale: BTreeSet<SocketAddr>,
    pub(super) served: Vec<IpAddr>,
}

pub(super) fn play(tape: &mut Tape, random: &mut Draw) -> Good {
    let mut good = Good::default();
    for number in 0..PHONES {
        if number % STALE_ONE_IN == 7 {
            stale(tape, random, &mut good, number);
        } else {
            phone(tape, random, &mut good, number);
        }
    }
    (0..5).for_each(|number| on_the_road(tape, random, &mut good, number));
    carriers(tape, random, &mut good);
    good
}

/// The public address of an office, behind which its phones have ports.
fn office(number: u32) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 10 + (number % OFFICES) as u8)
}

/// The user of a phone.
pub(super) fn user(number: u32) -> String {
    format!("{}", 1_000 + number)
}

fn place(number: u32, boot: u32) -> SocketAddr {
    SocketAddr::from((office(number), (10_000 + (number / OFFICES) * 100 + boot) as u16))
}

/// A time of the working day.
fn at_work(random: &mut Draw) -> u64 {
    START + 8 * HOUR + random.below(10 * HOUR)
}

/// A phone that works: it registers twice an hour, is asked whether it is there, watches others,
/// makes calls, some to wrong numbers; and it may be restarted.
fn phone(tape: &mut Tape, random: &mut Draw, good: &mut Good, number: u32) {
    let mut boot = 0;
    let mut party = Party::new(place(number, boot), &user(number));
    // Two offices lose their power at noon, and come back in the same seconds.
    let is_cut = number % OFFICES < 2;
    let cut = START + 13 * HOUR;
    let mut restart =
        if is_cut { cut + random.below(8 * SECOND) } else { START + random.below(2 * DAY) };
    let mut moved = u64::MAX;
    // All of them in the first minute: what a filter knows from the day before.
    let mut at = START + random.below(MINUTE);
    let (mut qualified, mut kept_open, mut watched) = (at, at, at);
    while at < START + DAY {
        good.places.insert(party.at);
        match number % 4 {
            1 => tape.register_again(at, &mut party, true),
            2 => tape.register_again(at, &mut party, false),
            _ => tape.register(at, &mut party, Verdict::Right),
        }
        let mut next = at + 28 * MINUTE + random.below(3 * MINUTE);
        if restart < next {
            next = restart;
        }
        let end = next.min(START + DAY);
        while qualified < end {
            tape.qualify(qualified + SECOND, &party, "OPTIONS");
            qualified += 10 * MINUTE;
        }
        while kept_open < end {
            tape.keepalive(kept_open + 2 * SECOND, &party);
            kept_open += 2 * MINUTE;
        }
        while watched < end {
            watch(tape, &mut party, watched + 3 * SECOND, number);
            watched += HOUR;
        }
        if next == restart {
            // It has forgotten its nonce, and may have another port; it registers until it is
            // answered.
            boot += 1;
            party = Party::new(place(number, boot), &user(number));
            good.places.insert(party.at);
            (qualified, kept_open, watched) =
                (restart + MINUTE, restart + MINUTE, restart + 5 * SECOND);
            tape.register(restart, &mut party, Verdict::Right);
            tape.register(restart + 2 * SECOND, &mut party, Verdict::Right);
            next = restart + 28 * MINUTE;
            (moved, restart) = (restart, u64::MAX);
        }
        at = next;
    }
    // Calls from where it was at first, unless it was restarted by then.
    let mut party = Party::new(place(number, 0), &user(number));
    for _ in 0..random.below(14) {
        let at = at_work(random);
        if at + 10 * MINUTE < moved {
            call(tape, random, &mut party, at);
        }
    }
}

fn watch(tape: &mut Tape, party: &mut Party, at: u64, number: u32) {
    let colleague = user((number + OFFICES) % PHONES);
    tape.subscribe(at, party, &colleague, "200 OK");
    // A button that was left from somebody who has gone.
    if number % 33 == 3 {
        tape.subscribe(at + 5 * SECOND, party, "1999", "404 Not Found");
    }
}

fn call(tape: &mut Tape, random: &mut Draw, party: &mut Party, at: u64) {
    let number = format!("0301{:07}", random.below(9_999_999));
    match random.below(20) {
        0 => {
            // Wrong, and wrong again.
            tape.call(at, party, &number, true, Answer::Refused("404 Not Found"));
            tape.call(
                at + 20 * SECOND,
                party,
                &format!("0{number}"),
                true,
                Answer::Refused("484 Address Incomplete"),
            );
        }
        1 => tape.call(at, party, &number, true, Answer::Fails("486 Busy Here")),
        2 => tape.call(at, party, &number, true, Answer::Fails("480 Temporarily Unavailable")),
        _ => tape.call(at, party, &number, true, Answer::Talk(20 + random.below(200))),
    }
}

/// A phone whose password was changed, and that nobody has reset: half of them at ten o'clock, half
/// of them weeks ago.
fn stale(tape: &mut Tape, random: &mut Draw, good: &mut Good, number: u32) {
    let mut party = Party::new(place(number, 0), &user(number));
    good.stale.insert(party.at);
    let mut at = START + 2 * MINUTE + random.below(MINUTE);
    if number % 100 == 7 {
        while at < START + 10 * HOUR {
            tape.register(at, &mut party, Verdict::Right);
            at += 29 * MINUTE;
        }
    }
    let every = [60 * SECOND, 120 * SECOND, 300 * SECOND][(number / STALE_ONE_IN % 3) as usize];
    let verdict = if number % 20 == 7 { Verdict::Wrong } else { Verdict::Forbidden };
    while at < START + DAY {
        tape.register(at, &mut party, verdict);
        at += every;
    }
}

/// Somebody in a hotel, who mistypes the password twice.
fn on_the_road(tape: &mut Tape, random: &mut Draw, good: &mut Good, number: u32) {
    let at =
        SocketAddr::from((Ipv4Addr::new(192, 0, 2, 10 + number as u8), 40_000 + number as u16));
    let mut party = Party::new(at, &user(100 + number)).with("Softphone/7.1");
    good.places.insert(at);
    let mut time = at_work(random);
    for _ in 0..2 {
        tape.register(time, &mut party, Verdict::Wrong);
        time += 15 * SECOND;
    }
    for _ in 0..4 {
        tape.register(time, &mut party, Verdict::Right);
        call(tape, random, &mut party, time + MINUTE);
        time += 20 * MINUTE;
    }
}

/// One trunk that registers and delivers, one carrier that only delivers, from two addresses and
/// with unassigned numbers, and one trunk that authenticates each call.
fn carriers(tape: &mut Tape, random: &mut Draw, good: &mut Good) {
    let carrier =
        |last: u8, user: &str| Party::new((Ipv4Addr::new(192, 0, 2, last), 5060), user).with("SBC");
    let (mut registers, mut delivers, mut second) =
        (carrier(200, "trunk1"), carrier(201, "anonymous"), carrier(202, "anonymous"));
    let mut authenticates = carrier(203, "trunk3");
    for party in [&registers, &delivers, &second, &authenticates] {
        good.places.insert(party.at);
    }
    good.served.extend([delivers.at.ip(), second.at.ip()]);
    let mut at = START;
    while at < START + DAY {
        tape.register(at, &mut registers, Verdict::Right);
        at += 30 * MINUTE;
    }
    for turn in 0..2_400_u32 {
        let at = at_work(random);
        let number = user(random.below(u64::from(PHONES)) as u32);
        let answer = match random.below(20) {
            0 => Answer::Refused("404 Not Found"),
            1 | 2 => Answer::Fails("486 Busy Here"),
            3 | 4 => Answer::Fails("480 Temporarily Unavailable"),
            5 => Answer::Fails("487 Request Terminated"),
            _ => Answer::Talk(30 + random.below(100)),
        };
        match turn % 6 {
            0 => tape.call(at, &mut registers, &number, false, answer),
            1 | 2 => tape.call(at, &mut authenticates, &number, true, answer),
            3 => tape.call(at, &mut second, &number, false, answer),
            _ => tape.call(at, &mut delivers, &number, false, answer),
        }
    }
}
