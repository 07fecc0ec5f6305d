//! Passwords a day that the best strategy gets answered, by attacker: the rows of the table in
//! docs/how-it-decides.md, with the strategies that are tried for each.
//!
//! More than 400 lines: one table, each row with its strategies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use sip_xdp::config::Config;

use super::{
    Account, Agent, DAY, Guesser, HOUR, MILLISECOND, MINUTE, NonceSource, Owner, Pace, Peer,
    Places, Relay, SECOND, Shape, Users, World,
};

/// The user whose phone is registered.
pub const VICTIM: u32 = 101;

/// Users that are guessed where it need not be the same: those of a small company, all registered.
const STAFF: u32 = 8;

/// An attacker, and what it may get.
pub struct Row {
    /// Who attacks.
    pub name: &'static str,
    /// Guesses that may be answered on the first day, and on the second.
    pub limits: [u64; 2],
    /// How it may go about it.
    pub strategies: Vec<Strategy>,
}

/// One way to attack.
pub struct Strategy {
    /// In words.
    pub name: String,
    agents: Vec<Box<dyn Agent>>,
}

/// What the best strategy came to on a day.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Best {
    /// Guesses that were answered.
    pub guesses: u64,
    /// By which strategy.
    pub by: String,
}

impl Row {
    /// Runs all strategies, each in a world of its own, and says what each came to. Returns the
    /// best of each day.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the programs, or does not run them.
    pub fn measure(self, say: &mut dyn FnMut(&str)) -> Result<[Best; 2]> {
        let config = Config::default();
        let mut best = [const { Best { guesses: 0, by: String::new() } }; 2];
        // `SIP_XDP_STRATEGY`: only those whose names contain this text.
        let only = std::env::var("SIP_XDP_STRATEGY").unwrap_or_default();
        let chosen = self.strategies.into_iter().filter(|one| one.name.contains(&only));
        for Strategy { name, agents } in chosen {
            let mut world = World::new(&config)?;
            // Those whose passwords are guessed have phones.
            let mut all: Vec<Box<dyn Agent>> =
                (0..STAFF).map(|n| Box::new(owner(n)) as Box<dyn Agent>).collect();
            all.extend(agents);
            world.run(&mut all, 2 * DAY)?;
            let guesses: [u64; 2] =
                std::array::from_fn(|day| world.guesses().get(day).copied().unwrap_or(0));
            let bans = world.bans();
            let proven = bans.iter().filter(|ban| ban.is_proven).count();
            say(&format!(
                "    {name}: {} and {}; {} bans, {proven} of them proven",
                guesses[0],
                guesses[1],
                bans.len()
            ));
            if std::env::var_os("SIP_XDP_TRACE").is_some() {
                trace(&world, say);
            }
            for (day, guesses) in guesses.into_iter().enumerate() {
                if guesses >= best[day].guesses {
                    best[day] = Best { guesses, by: name.clone() };
                }
            }
        }
        Ok(best)
    }
}

/// What was decided, for whoever looks for the reason of a figure.
fn trace(world: &World<'_>, say: &mut dyn FnMut(&str)) {
    for ban in world.bans().iter().take(40) {
        let begun = (ban.at - 1_800_000_000_000) / 1_000;
        say(&format!(
            "        {begun} s {} {:?} {} {} s: {}",
            ban.network, ban.port, ban.kind, ban.length, ban.reason
        ));
    }
    let events = world.session().events().filter(|one| one.0 != "limit").take(60);
    for (event, network, reason) in events {
        say(&format!("        {event} {network:?} {reason}"));
    }
}

/// The phone of one of the staff.
fn owner(n: u32) -> Owner {
    Owner::new(VICTIM + n, (Ipv4Addr::new(203, 0, 113, 10 + n as u8), 5060).into())
}

/// The address of an attacker with this number.
pub fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0xc0a8_0000 + number).into()
}

fn place(number: u32) -> SocketAddr {
    (address(number), 5060).into()
}

fn strategy(name: impl Into<String>, agents: Vec<Box<dyn Agent>>) -> Strategy {
    Strategy { name: name.into(), agents }
}

/// A strategy of one guesser.
fn alone(name: impl Into<String>, guesser: Guesser) -> Strategy {
    strategy(name, vec![Box::new(guesser)])
}

/// Many guessers alike, each with an address.
fn many(name: impl Into<String>, count: u32, guesser: impl Fn(u32) -> Guesser) -> Strategy {
    strategy(name, (0..count).map(|number| Box::new(guesser(number)) as Box<dyn Agent>).collect())
}

/// How many strategies are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Those that came closest to their limits.
    Short,
    /// All of them, which takes hours without optimisation.
    Long,
}

impl Effort {
    /// As the environment says (`SIP_XDP_LONG`).
    pub fn of_environment() -> Self {
        if std::env::var_os("SIP_XDP_LONG").is_some() { Self::Long } else { Self::Short }
    }
}

/// Paces, from as fast as it goes to what leaks out of every bucket.
fn paces(effort: Effort) -> Vec<(&'static str, Pace)> {
    let fast = Pace::steady(100 * MILLISECOND);
    let (tens, slow) = (Pace::bursts(9, SECOND, 602 * SECOND), Pace::steady(15 * MINUTE));
    if effort == Effort::Short {
        return vec![("10 a second", fast), ("9 in 10 min", tens), ("one in 15 min", slow)];
    }
    vec![
        ("10 a second", fast),
        ("10 a second, an hour's rest when dropped", fast.back_off(HOUR)),
        ("one in 3 s", Pace::steady(3 * SECOND)),
        ("one in 21 s", Pace::steady(21 * SECOND)),
        ("4 in 10 min", Pace::bursts(4, SECOND, 602 * SECOND)),
        ("9 in 10 min", tens),
        ("one in 70 s", Pace::steady(70 * SECOND)),
        ("one in 5 min", Pace::steady(5 * MINUTE)),
        ("one in 15 min", slow),
        ("one in 30 min", Pace::steady(30 * MINUTE)),
    ]
}

/// One address with each pace.
fn by_pace(effort: Effort, name: &str, make: impl Fn(Pace) -> Guesser) -> Vec<Strategy> {
    let all = paces(effort).into_iter();
    all.map(|(pace, how)| alone(format!("{name}, {pace}"), make(how))).collect()
}

const ONE: u32 = 7;

fn plain(pace: Pace) -> Guesser {
    Guesser::new(Places::One(place(ONE)), Users::One(VICTIM), pace)
}

/// One address that is challenged itself.
pub fn own_nonces(effort: Effort) -> Row {
    let mut strategies = by_pace(effort, "REGISTER", plain);
    strategies.extend(by_pace(effort, "REGISTER, all staff", |pace| {
        Guesser::new(Places::One(place(ONE)), Users::Many(VICTIM, STAFF), pace)
    }));
    strategies.extend(by_pace(effort, "INVITE", |pace| plain(pace).method("INVITE")));
    strategies.extend(by_pace(effort, "MESSAGE", |pace| plain(pace).method("MESSAGE")));
    strategies.extend(by_pace(effort, "REGISTER, 40 ports", |pace| {
        Guesser::new(Places::Ports(address(ONE), 40), Users::One(VICTIM), pace)
    }));
    Row { name: "one address, its own nonces", limits: [200, 100], strategies }
}

/// One address that uses the nonces of others.
pub fn borrowed_nonces(effort: Effort) -> Row {
    let borrowed = NonceSource::Borrowed;
    let mut strategies = by_pace(effort, "borrowed, REGISTER", |pace| plain(pace).nonces(borrowed));
    strategies.extend(by_pace(effort, "borrowed, INVITE", |pace| {
        plain(pace).nonces(borrowed).method("INVITE")
    }));
    strategies.extend(by_pace(effort, "borrowed, all staff", |pace| {
        Guesser::new(Places::One(place(ONE)), Users::Many(VICTIM, STAFF), pace).nonces(borrowed)
    }));
    Row { name: "one address, borrowed nonces", limits: [200, 100], strategies }
}

/// One address that hides its requests or the answers to them.
pub fn hidden(effort: Effort) -> Row {
    let mut strategies =
        by_pace(effort, "hidden nonces", |pace| plain(pace).nonces(NonceSource::Hidden));
    for (name, shape) in [
        ("padded", Shape::Padded),
        ("padded at the end", Shape::PaddedBehind),
        ("tiny first fragment", Shape::TinyFragment),
    ] {
        strategies.extend(by_pace(effort, name, |pace| plain(pace).shape(shape)));
    }
    strategies.extend(shapes_of_many(effort));
    strategies.extend(by_pace(effort, "padded, borrowed", |pace| {
        plain(pace).shape(Shape::Padded).nonces(NonceSource::Borrowed)
    }));
    strategies.extend(by_pace(effort, "padded INVITE", |pace| {
        plain(pace).shape(Shape::Padded).method("INVITE")
    }));
    Row { name: "one address, padded, fragmented, hidden nonces", limits: [200, 100], strategies }
}

/// A thousand users in turn, hidden in fragments: what is held against none of them for once.
fn shapes_of_many(effort: Effort) -> Vec<Strategy> {
    let fast = Pace::steady(SECOND);
    let shapes = [("padded", Shape::Padded), ("tiny first fragment", Shape::TinyFragment)];
    let count = if effort == Effort::Short { 1 } else { shapes.len() };
    let all = shapes.into_iter().take(count).map(|(name, shape)| {
        let users = Users::Many(2_000, 1_000);
        let guesser = Guesser::new(Places::One(place(ONE)), users, fast).shape(shape);
        alone(format!("{name}, 1,000 users, one a second"), guesser)
    });
    all.collect()
}

/// A botnet's paces: when a guess is dropped, its bots come back after this long.
const BOT_REST: u64 = 2 * HOUR;

/// Few paces for many addresses.
fn few_paces(effort: Effort) -> Vec<(&'static str, Pace)> {
    let (tens, slow) = (Pace::bursts(9, SECOND, 602 * SECOND), Pace::steady(15 * MINUTE));
    if effort == Effort::Short {
        return vec![("9 in 10 min", tens), ("one in 15 min", slow)];
    }
    vec![
        ("one in 3 s", Pace::steady(3 * SECOND)),
        ("9 in 10 min", tens),
        ("one in 15 min", slow),
        ("one in 30 min", Pace::steady(30 * MINUTE)),
        ("2 in 5 h", Pace::bursts(2, SECOND, 5 * HOUR)),
    ]
}

/// A botnet of so many addresses, with its own nonces and with borrowed ones.
fn botnet(
    paces: &[(&'static str, Pace)],
    count: u32,
    users: impl Fn(u32) -> Users + Copy,
) -> Vec<Strategy> {
    let mut all = Vec::new();
    for (pace, how) in paces {
        for (nonces, source) in [("own", NonceSource::Own), ("borrowed", NonceSource::Borrowed)] {
            let guesser = |n| Guesser::new(Places::One(place(n)), users(n), *how).nonces(source);
            all.push(many(format!("{nonces} nonces, {pace} each"), count, guesser));
        }
    }
    all
}

/// Ten addresses that try several users.
pub fn ten_on_several_users(effort: Effort) -> Row {
    let users = |n| Users::Many(VICTIM + n % STAFF, 1);
    let strategies = botnet(&few_paces(effort), 10, users);
    Row { name: "ten addresses, several users", limits: [2_000, 1_000], strategies }
}

/// Ten addresses that try one user.
pub fn ten_on_one_user(effort: Effort) -> Row {
    let strategies = botnet(&few_paces(effort), 10, |_| Users::One(VICTIM));
    Row { name: "ten addresses, one user", limits: [600, 70], strategies }
}

/// How many addresses a large botnet has.
pub const MANY: u32 = 1_000;

/// The paces of a large botnet: what a sprayed user leaves to each address is two tries a day, and
/// one in six hours where they could be forged.
fn patient_paces(effort: Effort) -> Vec<(&'static str, Pace)> {
    let (twice, slow) =
        (Pace::bursts(2, SECOND, 24 * HOUR + MINUTE), Pace::steady(6 * HOUR + MINUTE));
    let all = match effort {
        Effort::Short => vec![("2 a day", twice), ("one in 6 h", slow)],
        Effort::Long => vec![
            ("2 a day", twice),
            ("one in 6 h", slow),
            ("one in 10 h", Pace::steady(10 * HOUR)),
            ("one an hour", Pace::steady(HOUR)),
            ("9 at once", Pace::bursts(9, 100 * MILLISECOND, 24 * HOUR)),
            ("9 in 10 min", Pace::bursts(9, SECOND, 602 * SECOND)),
        ],
    };
    all.into_iter().map(|(name, pace)| (name, pace.back_off(BOT_REST))).collect()
}

/// A thousand addresses that are challenged themselves, on one user.
pub fn thousand_on_one_user(effort: Effort) -> Row {
    let all = botnet(&patient_paces(effort), MANY, |_| Users::One(VICTIM));
    let strategies = all.into_iter().filter(|one| one.name.starts_with("own")).collect();
    Row { name: "1,000 addresses, one user, own nonces", limits: [15_000, 2_000], strategies }
}

/// A thousand addresses that use the nonces of others, on one user.
pub fn thousand_on_one_user_unproven(effort: Effort) -> Row {
    let all = botnet(&patient_paces(effort), MANY, |_| Users::One(VICTIM));
    let strategies = all.into_iter().filter(|one| !one.name.starts_with("own")).collect();
    Row { name: "1,000 addresses, one user, borrowed nonces", limits: [15_000, 7_000], strategies }
}

/// Somebody with an IPv6 /48, on one user.
pub fn ipv6_hopper(effort: Effort) -> Row {
    let spreads: &[(&str, u64, u64)] = match effort {
        Effort::Short => &[("/64 after /64", 65_536, 4)],
        Effort::Long => &[
            ("/64 after /64", 65_536, 4),
            ("hosts of one /64", 1, 1 << 40),
            ("256 /64s, 2 hosts each", 256, 2),
            ("4 /64s", 4, 1 << 20),
        ],
    };
    let mut paces = vec![
        ("one a second", Pace::steady(SECOND)),
        ("one in 30 min", Pace::steady(30 * MINUTE)),
        ("one in 6 min", Pace::steady(6 * MINUTE)),
    ];
    if effort == Effort::Long {
        paces.extend([
            ("9 in 10 min", Pace::bursts(9, SECOND, 602 * SECOND)),
            ("39 in 10 min", Pace::bursts(39, SECOND, 602 * SECOND)),
            ("one in 15 min", Pace::steady(15 * MINUTE)),
        ]);
    }
    let mut strategies = Vec::new();
    for (spread, subnets, hosts) in spreads.iter().copied() {
        for (pace, how) in paces.clone() {
            for (nonces, source) in [("own", NonceSource::Own), ("borrowed", NonceSource::Borrowed)]
            {
                let places = Places::Hopper { network: 0x48, subnets, hosts };
                let guesser = Guesser::new(places, Users::One(VICTIM), how).nonces(source);
                strategies.push(alone(format!("{nonces} nonces, {pace}, {spread}"), guesser));
            }
        }
    }
    Row { name: "one IPv6 /48, one user", limits: [1_000, 300], strategies }
}

/// Somebody with an account.
pub fn own_account(effort: Effort) -> Row {
    let mut strategies = Vec::new();
    for (where_from, port, places) in [
        ("the same port", 5060, Places::One(place(ONE))),
        ("another port", 5070, Places::One(place(ONE))),
        ("40 ports", 5060, Places::Ports(address(ONE), 40)),
    ] {
        for (nonces, source) in [("own", NonceSource::Own), ("borrowed", NonceSource::Borrowed)] {
            for (who, users) in
                [("one user", Users::One(VICTIM)), ("all staff", Users::Many(VICTIM, STAFF))]
            {
                let make = |pace| {
                    Guesser::new(places, users, pace)
                        .nonces(source)
                        .account(Account { user: 900, port: Some(port) })
                };
                let name = format!("{where_from}, {who}, {nonces} nonces");
                strategies.extend(by_pace(effort, &name, make));
            }
        }
    }
    let account = Account { user: 900, port: Some(5060) };
    strategies.extend(by_pace(effort, "the same port, hidden nonces", |pace| {
        plain(pace).nonces(NonceSource::Hidden).account(account)
    }));
    strategies.extend(by_pace(effort, "the same port, MESSAGE", |pace| {
        plain(pace).method("MESSAGE").account(account)
    }));
    strategies.extend(
        covered_by_accounts(effort, 997)
            .into_iter()
            .chain(hoppers_with_account(effort, 5060))
            .map(|(name, guesser)| alone(name, guesser)),
    );
    Row { name: "own account", limits: [300, 100], strategies }
}

/// As fast as strangers may, and so slowly that no window fills.
const FAST_AND_SLOW: [(&str, u64); 2] = [("one a second", SECOND), ("one in 70 s", 70 * SECOND)];

/// Guesses from ever new hosts of an IPv6 /48, where an account is registered at a port of the
/// first one, or at the place of each guess.
fn hoppers_with_account(effort: Effort, port: u16) -> Vec<(String, Guesser)> {
    let users = [("one user", Users::One(VICTIM)), ("1,000 users", Users::Many(2_000, 1_000))];
    let spreads = [("hosts of one /64", 1, 1 << 40), ("/64 after /64", 65_536, 4)];
    let mut all = Vec::new();
    for (who, users) in users {
        for (name, subnets, hosts) in spreads {
            for (pace, every) in FAST_AND_SLOW {
                let places = Places::Hopper { network: 0x4a, subnets, hosts };
                let how = Pace::steady(every).back_off(every);
                for (port, where_to) in [(Some(port), "one host"), (None, "each host")] {
                    let account = Account { user: 900, port };
                    let name = format!("account at {where_to}, {name}, {who}, {pace}");
                    all.push((name, Guesser::new(places, users, how).account(account)));
                }
            }
        }
    }
    if effort == Effort::Short {
        // One user from one /64, slowly.
        all = all.into_iter().skip(2).take(2).collect();
    }
    all
}

/// Guesses that accounts cover: one or two are registered at the place of each guess, which is
/// another one each time, and two at the port of all guesses.
fn covered_by_accounts(effort: Effort, ports: u16) -> Vec<(String, Guesser)> {
    let moving = Places::Ports(address(ONE), ports);
    let few = [("one user", Users::One(VICTIM)), ("1,000 users", Users::Many(2_000, 1_000))];
    let slow = [("20 s", 20), ("70 s", 70), ("5 min", 300)];
    let slow = if effort == Effort::Short { &slow[1..2] } else { &slow[..] };
    let mut all = Vec::new();
    for (who, users) in few {
        for (pace, seconds) in slow {
            let pace_of = Pace::steady(seconds * SECOND);
            let make = |places| Guesser::new(places, users, pace_of.back_off(pace_of.every));
            let [first, second] = [900, 901].map(|user| Account { user, port: None });
            let one = make(moving).account(first);
            let two = make(moving).account(first).account(second);
            all.push((format!("an account at each new place, {who}, one in {pace}"), one));
            all.push((format!("two accounts at each new place, {who}, one in {pace}"), two));
        }
        let [first, second] = [900, 901].map(|user| Account { user, port: Some(5060) });
        let fast = Pace::steady(SECOND);
        let two = Guesser::new(Places::One(place(ONE)), users, fast).account(first).account(second);
        all.push((format!("two accounts at one port, {who}, one a second"), two));
    }
    all
}

/// The ways to use connections: one for everything, 16 in turn, one for each guess.
const CONNECTIONS: [(u16, &str); 3] =
    [(1, "one connection"), (16, "16 connections"), (40_000, "one connection each")];

/// Guesses over TCP from one address: at all paces, and of as many users as slowly as phones whose
/// passwords were changed.
fn over_tcp(effort: Effort, account: Option<Account>) -> Vec<Strategy> {
    let mut strategies = Vec::new();
    let with = |guesser: Guesser| account.into_iter().fold(guesser.by_tcp(), Guesser::account);
    let short = if account.is_some() { &CONNECTIONS[1..] } else { &CONNECTIONS[..2] };
    let ways = if effort == Effort::Short { short } else { &CONNECTIONS[..] };
    for (ports, how) in ways.iter().copied() {
        let places = Places::Ports(address(ONE), ports);
        for (who, users) in
            [("one user", Users::One(VICTIM)), ("all staff", Users::Many(VICTIM, STAFF))]
        {
            let make = |pace| with(Guesser::new(places, users, pace));
            match effort {
                Effort::Long => {
                    strategies.extend(by_pace(effort, &format!("{how}, {who}"), make));
                }
                Effort::Short => {
                    let pace = Pace::bursts(9, SECOND, 602 * SECOND);
                    let name = format!("{how}, {who}, 9 in 10 min");
                    strategies.push(alone(name, make(pace)));
                }
            }
        }
        for (users, seconds) in [(1, 20)].into_iter().chain(patient_paces_of_users(effort)) {
            let name = format!("{how}, {users} unknown users, each {seconds} s");
            strategies.push(alone(name, with(patient_users(places, users, seconds))));
        }
    }
    strategies
}

/// One address, over TCP.
pub fn tcp(effort: Effort) -> Row {
    let mut strategies = over_tcp(effort, None);
    strategies.extend(fragments_over_tcp(effort, None));
    Row { name: "one address, TCP", limits: [200, 100], strategies }
}

/// Guesses over TCP whose credentials are in a later fragment.
fn fragments_over_tcp(effort: Effort, account: Option<Account>) -> Vec<Strategy> {
    let users = [
        ("one user", Users::One(VICTIM)),
        ("all staff", Users::Many(VICTIM, STAFF)),
        ("1,000 users", Users::Many(2_000, 1_000)),
    ];
    let shapes = [("padded", Shape::PaddedBehind), ("tiny first fragment", Shape::TinyFragment)];
    let mut all = Vec::new();
    for (shape, how) in shapes {
        for (who, users) in users {
            for (ports, connections) in &CONNECTIONS[..2] {
                for (pace, every) in FAST_AND_SLOW {
                    let places = Places::Ports(address(ONE), *ports);
                    let pause = Pace::steady(every).back_off(MINUTE);
                    let guesser = Guesser::new(places, users, pause).shape(how).by_tcp();
                    let guesser = account.into_iter().fold(guesser, Guesser::account);
                    let name = format!("TCP, {shape}, {connections}, {who}, {pace}");
                    all.push(alone(name, guesser));
                }
            }
        }
    }
    if effort == Effort::Short {
        // By one connection, fast.
        all = all.into_iter().step_by(4).take(3).collect();
    }
    all
}

/// Somebody with an account, over TCP.
pub fn own_account_by_tcp(effort: Effort) -> Row {
    let account = Account { user: 900, port: Some(5070) };
    let mut strategies = over_tcp(effort, Some(account));
    strategies.push(alone(MANY_NAMES, many_names(40_000).by_tcp().account(account)));
    strategies.extend(fragments_over_tcp(effort, Some(account)));
    strategies.extend(
        covered_by_accounts(effort, 40_000)
            .into_iter()
            .chain(hoppers_with_account(effort, 5070))
            .map(|(name, guesser)| alone(name, guesser.by_tcp())),
    );
    Row { name: "own account, TCP", limits: [300, 100], strategies }
}

/// A host that answers our OPTIONS.
pub fn peer(effort: Effort) -> Row {
    let mut strategies = Vec::new();
    for (nonces, source) in [("own", NonceSource::Own), ("borrowed", NonceSource::Borrowed)] {
        for method in ["REGISTER", "INVITE"] {
            for (pace, how) in paces(effort) {
                let guesser = plain(how).nonces(source).method(method);
                let agents: Vec<Box<dyn Agent>> =
                    vec![Box::new(Peer(place(ONE))), Box::new(guesser)];
                strategies.push(strategy(format!("{method}, {nonces} nonces, {pace}"), agents));
            }
        }
    }
    Row { name: "a peer", limits: [300, 100], strategies }
}

/// Guesses for users of whom nothing is known, each at the pace of a phone whose password was
/// changed, from these places.
fn patient_users(places: Places, users: u32, seconds: u64) -> Guesser {
    let pace = Pace::steady(seconds * SECOND / u64::from(users));
    Guesser::new(places, Users::Many(500, users), pace.back_off(pace.every))
}

/// A thousand users in turn, so slowly that within the windows of no rule there are more than an
/// office has phones, each from a new port.
fn many_names(ports: u16) -> Guesser {
    let pace = Pace::steady(40 * SECOND);
    let places = Places::Ports(address(ONE), ports);
    Guesser::new(places, Users::Many(2_000, 1_000), pace.back_off(pace.every))
}

const MANY_NAMES: &str = "1,000 users, one in 40 s, new ports";

/// How many users, and seconds between two tries of one.
fn patient_paces_of_users(effort: Effort) -> Vec<(u32, u64)> {
    match effort {
        Effort::Short => vec![(16, 20)],
        Effort::Long => {
            [2, 5, 16].into_iter().flat_map(|n| [20, 60, 300].map(|s| (n, s))).collect()
        }
    }
}

/// Such users at one address: each from a port of its own, all from one port, and from ever new
/// ones.
fn slow_users_of_one_address(effort: Effort, account: Option<Account>) -> Vec<Strategy> {
    let mut all = Vec::new();
    for (users, seconds) in patient_paces_of_users(effort) {
        let all_ports = [
            (users as u16, "their ports"),
            (997, "new ports"),
            (1, "one port"),
            (2 * users as u16, "two ports each"),
            (4 * users as u16, "four ports each"),
        ];
        let count = if effort == Effort::Short { 2 } else { all_ports.len() };
        for (ports, name) in all_ports.into_iter().take(count) {
            let guesser = patient_users(Places::Ports(address(ONE), ports), users, seconds);
            let guesser = account.into_iter().fold(guesser, Guesser::account);
            all.push(alone(format!("{users} users, each {seconds} s, {name}"), guesser));
        }
    }
    all
}

/// One address, many users, each as slow as a phone with an old password; also beside guesses with
/// nonces of others.
pub fn slow_users(effort: Effort) -> Row {
    let mut strategies = slow_users_of_one_address(effort, None);
    let count = if effort == Effort::Short { 1 } else { usize::MAX };
    let beside = paces(effort).into_iter().take(count).map(|(pace, how)| {
        let slow = patient_users(Places::Ports(address(ONE), 16), 16, 20);
        let places = Places::One((address(ONE), 7_000).into());
        let borrowed = Guesser::new(places, Users::One(VICTIM), how).nonces(NonceSource::Borrowed);
        let name = format!("16 users, each 20 s, their ports, and borrowed nonces, {pace}");
        strategy(name, vec![Box::new(slow) as Box<dyn Agent>, Box::new(borrowed)])
    });
    strategies.extend(beside);
    Row { name: "one address, many slow users", limits: [200, 100], strategies }
}

/// The same beside an account of its own.
pub fn slow_users_with_account(effort: Effort) -> Row {
    let account = Account { user: 900, port: Some(5060) };
    let mut strategies = slow_users_of_one_address(effort, Some(account));
    strategies.push(alone(MANY_NAMES, many_names(997).account(account)));
    // Each user by two ways, as slowly as phones: from a port of its own, and from the account's.
    let both: &[(u32, u64)] = match effort {
        Effort::Short => &[(16, 60)],
        Effort::Long => &[(16, 60), (16, 300), (4, 60), (4, 300), (2, 300)],
    };
    for (users, seconds) in both.iter().copied() {
        let own = patient_users(Places::Ports(address(ONE), users as u16), users, seconds);
        let covered = patient_users(Places::One(place(ONE)), users, seconds).account(account);
        let covered = covered.from_time(seconds / 2 * SECOND);
        let name = format!("{users} users, each {seconds} s, their ports and the account's");
        strategies.push(strategy(name, vec![Box::new(own) as Box<dyn Agent>, Box::new(covered)]));
    }
    Row { name: "own account, many slow users", limits: [300, 100], strategies }
}

/// Somebody with an IPv6 /48 and as slow users: one at each address, two, or one that changes it.
pub fn slow_users_by_ipv6(effort: Effort) -> Row {
    let mut strategies = Vec::new();
    for (users, seconds) in patient_paces_of_users(effort) {
        for (subnets, hosts, name) in [
            (1, u64::from(users), "hosts of one /64"),
            (u64::from(users), 1, "a /64 each"),
            (1, u64::from(users).div_ceil(2), "two at each host"),
            (65_536, 4, "/64 after /64"),
        ] {
            let places = Places::Hopper { network: 0x49, subnets, hosts };
            let name = format!("{users} users, each {seconds} s, {name}");
            strategies.push(alone(name, patient_users(places, users, seconds)));
        }
    }
    Row { name: "one IPv6 /48, many slow users", limits: [1_000, 300], strategies }
}

/// An address that lets a proxy forward answers which it has made up, or that has the registrar
/// answer to somebody else (`maddr`).
pub fn relay(effort: Effort) -> Row {
    let mut strategies = Vec::new();
    for (pace, how) in paces(effort) {
        let agents: Vec<Box<dyn Agent>> =
            vec![Box::new(Relay::acceptances(place(ONE), VICTIM)), Box::new(plain(how))];
        strategies.push(strategy(format!("forwarded acceptances, {pace}"), agents));
    }
    strategies.extend(by_pace(effort, "answers to another address", |pace| {
        plain(pace).answered_at(place(ONE + 1))
    }));
    Row { name: "a relay: forwarded answers, maddr", limits: [200, 100], strategies }
}

/// All rows.
pub fn all(effort: Effort) -> Vec<Row> {
    [
        own_nonces,
        borrowed_nonces,
        hidden,
        slow_users,
        tcp,
        relay,
        ten_on_several_users,
        ten_on_one_user,
        thousand_on_one_user,
        thousand_on_one_user_unproven,
        ipv6_hopper,
        slow_users_by_ipv6,
        own_account,
        slow_users_with_account,
        own_account_by_tcp,
        peer,
    ]
    .map(|row| row(effort))
    .into()
}
