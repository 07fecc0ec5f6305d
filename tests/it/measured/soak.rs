//! A soak: two hours of random strategies together, with a fixed seed, in capture time through the
//! kernel's own programs, the detector and the bans. Tables, memory, log and state stay within
//! their bounds throughout; afterwards a phone registers, an operator blocks, and a plain guesser
//! is banned after ten answers. Needs root.
//!
//! `SIP_XDP_LONG=1` takes twelve hours, `SIP_XDP_SEED` draws something else.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use anyhow::Result;
use nix::unistd::Pid;
use sip_xdp::config::Config;
use sip_xdp::store::Store;
use sip_xdp_tests::Draw;
use sip_xdp_tests::attackers::{
    Account, Agent, Filler, Guesser, HOUR, MILLISECOND, MINUTE, NonceSource, Outcome, Owner, Pace,
    Peer, Places, Poisoner, Relay, SECOND, Shape, Trick, Users, World,
};
use sip_xdp_tests::usage::memory;

use crate::e2e::evidence::is_banned_after_ten;

/// What is drawn unless something else is asked for.
const SEED: u64 = 16;

/// Users with phones, from this number on.
const USER: u32 = 101;
const PHONES: u32 = 40;

/// Attackers of all kinds.
const ATTACKERS: u32 = 160;

/// What the process may grow by after the first tenth, in MiB: the record of a replay, which keeps
/// every decision, included.
const GROWTH: f64 = 128.0;

/// Lines of the log in an hour: each source is told about once a minute and kind, and bans double.
const LINES_PER_HOUR: u64 = 60_000;

/// Bytes of the state file: what a full table takes.
const STATE_BYTES: u64 = 64 << 20;

fn place(draw: &mut Draw, number: u32) -> SocketAddr {
    let address = Ipv4Addr::from_bits(0xc0a8_0000 + number);
    (address, [5060, 5060, 40_000 + draw.below(1_000) as u16][draw.below(3) as usize]).into()
}

fn guesser(draw: &mut Draw, number: u32) -> Guesser {
    let place = place(draw, number);
    let places = match draw.below(8) {
        0 => Places::Ports(place.ip(), 2 + draw.below(200) as u16),
        1 | 2 => Places::Hopper {
            network: number as u16,
            subnets: 1 << draw.below(17),
            hosts: 1 << draw.below(20),
        },
        _ => Places::One(place),
    };
    let users = match draw.below(3) {
        0 => Users::Many(USER, 2 + draw.below(u64::from(PHONES)) as u32),
        1 => Users::Many(5_000, 1 + draw.below(1_000) as u32),
        _ => Users::One(USER + draw.below(4) as u32),
    };
    let every = [200, 1_000, 3_000, 21_000, 70_000, 300_000][draw.below(6) as usize] * MILLISECOND;
    let pace = match draw.below(3) {
        0 => Pace::bursts(2 + draw.below(30), 200 * MILLISECOND, every * 10),
        _ => Pace::steady(every),
    };
    let pace = pace.back_off([MINUTE, 10 * MINUTE][draw.below(2) as usize]);
    let nonces = [NonceSource::Own, NonceSource::Own, NonceSource::Borrowed, NonceSource::Hidden];
    let shapes = [Shape::Plain, Shape::Plain, Shape::Padded, Shape::TinyFragment];
    let methods = ["REGISTER", "REGISTER", "INVITE", "MESSAGE", "SUBSCRIBE"];
    let mut one = Guesser::new(places, users, pace)
        .nonces(nonces[draw.below(4) as usize])
        .shape(shapes[draw.below(4) as usize])
        .method(methods[draw.below(5) as usize]);
    if draw.below(4) == 0 {
        one = one.account(Account { user: 900 + number, port: 5060 });
    }
    if draw.below(6) == 0 && matches!(places, Places::One(_)) {
        one = one.answered_at(self::place(draw, number + 1));
    }
    one
}

fn attacker(draw: &mut Draw, number: u32, homes: &[SocketAddr]) -> Vec<Box<dyn Agent>> {
    match draw.below(12) {
        0 => {
            let trick = Trick::ALL[draw.below(Trick::ALL.len() as u64) as usize];
            let mut victims = homes.to_vec();
            victims.extend(homes.iter().map(|home| SocketAddr::new(home.ip(), 6_000)));
            let every = [500, 2_000, 20_000][draw.below(3) as usize] * MILLISECOND;
            vec![Box::new(Poisoner::new(victims, (USER, PHONES), trick, every))]
        }
        1 => {
            let places = 100 << draw.below(7);
            let every = (1 + draw.below(4)) * SECOND;
            let filler = match draw.below(2) {
                0 => Filler::registrations(900 + number, places, 1 + draw.below(50) as u16, every),
                _ => Filler::names(places, every),
            };
            vec![Box::new(filler)]
        }
        2 => vec![Box::new(Relay::acceptances(place(draw, number), USER))],
        3 => {
            let place = place(draw, number);
            let pace = Pace::steady(2 * SECOND);
            let guesser = Guesser::new(Places::One(place), Users::One(USER), pace);
            vec![Box::new(Peer(place)), Box::new(guesser)]
        }
        _ => vec![Box::new(guesser(draw, number))],
    }
}

/// Checks the bounds of all tables, again and again.
struct Guard {
    /// The fullest that a table was, in per cent.
    fullest: Rc<Cell<usize>>,
}

impl Agent for Guard {
    fn act(&mut self, world: &mut World<'_>) -> Result<Option<u64>> {
        for fill in world.session().fill() {
            assert!(fill.used <= fill.limit, "{fill:?}");
            let share = fill.used * 100 / fill.limit.max(1);
            self.fullest.set(self.fullest.get().max(share));
        }
        assert!(world.session().watched() <= 32_768);
        Ok(Some(10 * SECOND))
    }
}

#[test]
fn two_hours_of_random_strategies_leave_everything_within_its_bounds() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let is_long = std::env::var_os("SIP_XDP_LONG").is_some();
    let length = if is_long { 12 * HOUR } else { 2 * HOUR };
    let seed = std::env::var("SIP_XDP_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut draw = Draw::new(seed.unwrap_or(SEED));
    let config = Config::default();
    let mut world = World::new(&config)?;

    let homes: Vec<SocketAddr> = (0..PHONES)
        .map(|n| (Ipv4Addr::from_bits(0xcb00_7100 + n / 2), 5060 + n as u16).into())
        .collect();
    let (mut agents, mut outcomes): (Vec<Box<dyn Agent>>, Vec<_>) = (Vec::new(), Vec::new());
    for (home, user) in homes.iter().zip(USER..) {
        let owner = Owner::new(user, *home);
        outcomes.push((*home, owner.outcome()));
        agents.push(Box::new(owner));
    }
    world.run(&mut agents, MINUTE)?;
    let fullest = Rc::new(Cell::new(0));
    agents.push(Box::new(Guard { fullest: Rc::clone(&fullest) }));
    for number in 0..ATTACKERS {
        agents.extend(attacker(&mut draw, 1_000 + 2 * number, &homes));
    }

    let start = Instant::now();
    world.run(&mut agents, length / 10)?;
    let before = memory(Pid::this())?;
    world.run(&mut agents, length)?;
    let grown = memory(Pid::this())? - before;
    let bans = world.bans();
    let lines = world.session().events().count() as u64;
    println!(
        "{} messages, {} bans, {lines} lines, {grown:.0} MiB more, fullest table {} %, in {:.0} s",
        world.messages(),
        bans.len(),
        fullest.get(),
        start.elapsed().as_secs_f64()
    );
    assert!(grown < GROWTH, "the process has grown by {grown:.0} MiB");
    assert!(lines < LINES_PER_HOUR * (length / HOUR), "{lines} lines of log");

    // What all of that leaves on the disk.
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("state.db");
    let store = Store::open(&file).store;
    world.session_mut().remember(&store)?;
    store.flush()?;
    let bytes = std::fs::metadata(&file)?.len();
    println!("the state has {bytes} bytes");
    assert!(bytes < STATE_BYTES, "the state has {bytes} bytes");

    // Phones lost nothing that a retransmission does not bring back, and nobody is convicted.
    for (home, outcome) in &outcomes {
        let Outcome { accepted, failed } = outcome.get();
        assert!(accepted > 2 && failed <= 1, "{home}: {:?}", outcome.get());
    }
    let is_home = |address: IpAddr| homes.iter().any(|home| home.ip() == address);
    let convicted: Vec<_> =
        bans.iter().filter(|ban| ban.is_proven && is_home(ban.network.address())).collect();
    assert!(convicted.is_empty(), "{convicted:#?}");

    // Afterwards.
    let fresh = Owner::new(USER + PHONES, (Ipv4Addr::new(192, 0, 2, 7), 5060).into());
    let arrival = fresh.outcome();
    world.run(&mut [Box::new(fresh) as Box<dyn Agent>], length + MINUTE)?;
    assert_eq!(arrival.get(), Outcome { accepted: 1, failed: 0 }, "a phone registers");
    world.session_mut().block("100.64.0.0/24".parse()?)?;
    is_banned_after_ten(&mut world, "after the soak")
}
