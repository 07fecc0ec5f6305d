//! Passwords a day that the best strategy gets answered, by attacker: the table of
//! docs/how-it-decides.md, measured. Attackers react to what is dropped; two days of capture time
//! go through the kernel's own programs, the detector and the bans. Needs root.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use sip_xdp::config::Config;
use sip_xdp_tests::attackers::{
    Account, Agent, DAY, Guesser, HOUR, MILLISECOND, MINUTE, NonceSource, Owner, Pace, Peer,
    Places, SECOND, Shape, Users, World,
};

/// The user whose phone is registered.
const VICTIM: u32 = 101;

/// Users that are guessed where it need not be the same: those of a small company, all registered.
const STAFF: u32 = 8;

/// One way to attack.
struct Strategy {
    name: String,
    /// Everybody gets the same nonce within a second.
    shares_nonces: bool,
    agents: Vec<Box<dyn Agent>>,
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0xc0a8_0000 + number).into()
}

fn place(number: u32) -> SocketAddr {
    (address(number), 5060).into()
}

fn strategy(name: impl Into<String>, agents: Vec<Box<dyn Agent>>) -> Strategy {
    Strategy { name: name.into(), shares_nonces: false, agents }
}

/// A strategy of one guesser.
fn alone(name: impl Into<String>, guesser: Guesser) -> Strategy {
    strategy(name, vec![Box::new(guesser)])
}

/// So many guessers alike, each with an address.
fn many(name: impl Into<String>, count: u32, guesser: impl Fn(u32) -> Guesser) -> Strategy {
    strategy(name, (0..count).map(|number| Box::new(guesser(number)) as Box<dyn Agent>).collect())
}

/// What the best strategy came to.
struct Best {
    guesses: u64,
    by: String,
}

/// Runs strategies, prints what each came to, and the row of the table. Returns what is over its
/// limit.
fn measure(row: &str, limits: [u64; 2], strategies: Vec<Strategy>) -> Result<Vec<String>> {
    sip_xdp_tests::require_root()?;
    let config = Config::default();
    let mut best = [const { Best { guesses: 0, by: String::new() } }; 2];
    for Strategy { name, shares_nonces, agents } in strategies {
        let mut world = World::new(&config)?;
        if shares_nonces {
            world.share_nonces();
        }
        // Those whose passwords are guessed have phones.
        let owner = |n: u32| {
            Owner::new(VICTIM + n, (Ipv4Addr::new(203, 0, 113, 10 + n as u8), 5060).into())
        };
        let mut all: Vec<Box<dyn Agent>> =
            (0..STAFF).map(|n| Box::new(owner(n)) as Box<dyn Agent>).collect();
        all.extend(agents);
        world.run(&mut all, 2 * DAY)?;
        let guesses: [u64; 2] =
            std::array::from_fn(|day| world.guesses().get(day).copied().unwrap_or(0));
        let bans = world.bans();
        let proven = bans.iter().filter(|ban| ban.is_proven).count();
        println!(
            "    {name}: {} and {}; {} bans, {proven} of them proven",
            guesses[0],
            guesses[1],
            bans.len()
        );
        if std::env::var_os("SIP_XDP_TRACE").is_some() {
            for ban in bans.iter().take(40) {
                let begun = (ban.at - 1_800_000_000_000) / 1_000;
                println!(
                    "        {begun} s {} {:?} {} {} s: {}",
                    ban.network, ban.port, ban.kind, ban.length, ban.reason
                );
            }
            for (event, network, reason) in
                world.session().events().filter(|one| one.0 != "limit").take(60)
            {
                println!("        {event} {network:?} {reason}");
            }
        }
        for (day, guesses) in guesses.into_iter().enumerate() {
            if guesses >= best[day].guesses {
                best[day] = Best { guesses, by: name.clone() };
            }
        }
    }
    let [first, later] = &best;
    println!(
        "| {row} | {} of {} ({}) | {} of {} ({}) |",
        first.guesses, limits[0], first.by, later.guesses, limits[1], later.by
    );
    let over = |(best, limit): (&Best, u64)| {
        (best.guesses > limit).then(|| {
            format!("{row}: {} guesses, not at most {limit}, by {}", best.guesses, best.by)
        })
    };
    Ok(best.iter().zip(limits).filter_map(over).collect())
}

fn holds(row: &str, limits: [u64; 2], strategies: Vec<Strategy>) -> Result<()> {
    let over = measure(row, limits, strategies)?;
    assert!(over.is_empty(), "{}", over.join("\n"));
    Ok(())
}

/// Whether every strategy is tried, which takes half an hour (`SIP_XDP_LONG=1`), or those alone
/// that came closest to their limits.
fn is_long() -> bool {
    std::env::var_os("SIP_XDP_LONG").is_some()
}

/// Paces, from as fast as it goes to what leaks out of every bucket.
fn paces() -> Vec<(&'static str, Pace)> {
    if !is_long() {
        return vec![
            ("10 a second", Pace::steady(100 * MILLISECOND)),
            ("9 in 10 min", Pace::bursts(9, SECOND, 602 * SECOND)),
            ("one in 15 min", Pace::steady(15 * MINUTE)),
        ];
    }
    vec![
        ("10 a second", Pace::steady(100 * MILLISECOND)),
        (
            "10 a second, an hour's rest when dropped",
            Pace::steady(100 * MILLISECOND).back_off(HOUR),
        ),
        ("one in 3 s", Pace::steady(3 * SECOND)),
        ("one in 21 s", Pace::steady(21 * SECOND)),
        ("9 in 10 min", Pace::bursts(9, SECOND, 602 * SECOND)),
        ("one in 70 s", Pace::steady(70 * SECOND)),
        ("one in 5 min", Pace::steady(5 * MINUTE)),
        ("one in 15 min", Pace::steady(15 * MINUTE)),
        ("one in 30 min", Pace::steady(30 * MINUTE)),
    ]
}

/// One address with each pace.
fn by_pace(name: &str, make: impl Fn(Pace) -> Guesser) -> Vec<Strategy> {
    paces().into_iter().map(|(pace, how)| alone(format!("{name}, {pace}"), make(how))).collect()
}

const ONE: u32 = 7;

fn plain(pace: Pace) -> Guesser {
    Guesser::new(Places::One(place(ONE)), Users::One(VICTIM), pace)
}

#[test]
fn one_address_with_its_own_nonces() -> Result<()> {
    let mut all = by_pace("REGISTER", plain);
    all.extend(by_pace("REGISTER, all staff", |pace| {
        Guesser::new(Places::One(place(ONE)), Users::Many(VICTIM, STAFF), pace)
    }));
    all.extend(by_pace("INVITE", |pace| plain(pace).method("INVITE")));
    all.extend(by_pace("MESSAGE", |pace| plain(pace).method("MESSAGE")));
    all.extend(by_pace("REGISTER, 40 ports", |pace| {
        Guesser::new(Places::Ports(address(ONE), 40), Users::One(VICTIM), pace)
    }));
    holds("one address, its own nonces", [200, 100], all)
}

#[test]
fn one_address_with_borrowed_nonces() -> Result<()> {
    let mut all = by_pace("borrowed, REGISTER", |pace| plain(pace).nonces(NonceSource::Borrowed));
    all.extend(by_pace("borrowed, INVITE", |pace| {
        plain(pace).nonces(NonceSource::Borrowed).method("INVITE")
    }));
    all.extend(by_pace("borrowed, all staff", |pace| {
        Guesser::new(Places::One(place(ONE)), Users::Many(VICTIM, STAFF), pace)
            .nonces(NonceSource::Borrowed)
    }));
    holds("one address, borrowed nonces", [200, 100], all)
}

#[test]
fn one_address_that_hides_what_it_sends() -> Result<()> {
    let mut all = by_pace("hidden nonces", |pace| plain(pace).nonces(NonceSource::Hidden));
    all.extend(by_pace("padded", |pace| plain(pace).shape(Shape::Padded)));
    all.extend(by_pace("tiny first fragment", |pace| plain(pace).shape(Shape::TinyFragment)));
    all.extend(by_pace("padded, borrowed", |pace| {
        plain(pace).shape(Shape::Padded).nonces(NonceSource::Borrowed)
    }));
    all.extend(by_pace("padded INVITE", |pace| plain(pace).shape(Shape::Padded).method("INVITE")));
    holds("one address, padded or fragmented, hidden nonces", [200, 100], all)
}

/// Users of whom nothing is known, each at the pace of a phone whose password was changed: from a
/// port of its own, from one port, and from ever new ones.
fn many_slow_users(account: Option<Account>) -> Vec<Strategy> {
    let mut all = Vec::new();
    for users in [2, 5, 16_u32] {
        for seconds in [20, 60, 300_u64] {
            let pace = Pace::steady(seconds * SECOND / u64::from(users));
            let pace = pace.back_off(pace.every);
            for (ports, name) in
                [(users as u16, "their ports"), (1, "one port"), (997, "new ports")]
            {
                let places = Places::Ports(address(ONE), ports);
                let guesser = Guesser::new(places, Users::Many(500, users), pace);
                let guesser = account.into_iter().fold(guesser, Guesser::account);
                all.push(alone(format!("{users} users, each {seconds} s, {name}"), guesser));
            }
        }
    }
    // The others are not far from these.
    if !is_long() {
        all.retain(|one| one.name.starts_with("16 users, each 20"));
    }
    all
}

#[test]
fn many_slow_users_of_one_address() -> Result<()> {
    holds("one address, many slow users", [200, 100], many_slow_users(None))
}

#[test]
fn many_slow_users_beside_an_account() -> Result<()> {
    let all = many_slow_users(Some(Account { user: 900, port: 5060 }));
    holds("own account, many slow users", [300, 100], all)
}

/// Few paces for many addresses.
fn few_paces() -> Vec<(&'static str, Pace)> {
    if !is_long() {
        return vec![
            ("9 in 10 min", Pace::bursts(9, SECOND, 602 * SECOND)),
            ("one in 15 min", Pace::steady(15 * MINUTE)),
        ];
    }
    vec![
        ("one in 3 s", Pace::steady(3 * SECOND)),
        ("9 in 10 min", Pace::bursts(9, SECOND, 602 * SECOND)),
        ("one in 15 min", Pace::steady(15 * MINUTE)),
        ("one in 30 min", Pace::steady(30 * MINUTE)),
        ("2 in 5 h", Pace::bursts(2, SECOND, 5 * HOUR)),
    ]
}

fn botnet(count: u32, users: impl Fn(u32) -> Users + Copy) -> Vec<Strategy> {
    let mut all = Vec::new();
    for (pace, how) in few_paces() {
        for (nonces, source) in [("own", NonceSource::Own), ("borrowed", NonceSource::Borrowed)] {
            let guesser = |n| Guesser::new(Places::One(place(n)), users(n), how).nonces(source);
            all.push(many(format!("{nonces} nonces, {pace} each"), count, guesser));
        }
    }
    all
}

#[test]
fn ten_addresses_on_several_users() -> Result<()> {
    holds("ten addresses", [2_000, 1_000], botnet(10, |n| Users::Many(VICTIM + n % STAFF, 1)))
}

#[test]
fn ten_addresses_on_one_user() -> Result<()> {
    holds("ten addresses on one user", [600, 70], botnet(10, |_| Users::One(VICTIM)))
}

#[test]
fn somebody_with_an_account() -> Result<()> {
    let mut all = Vec::new();
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
                        .account(Account { user: 900, port })
                };
                all.extend(by_pace(&format!("{where_from}, {who}, {nonces} nonces"), make));
            }
        }
    }
    let hidden = |pace| {
        Guesser::new(Places::One(place(ONE)), Users::One(VICTIM), pace)
            .nonces(NonceSource::Hidden)
            .account(Account { user: 900, port: 5060 })
    };
    all.extend(by_pace("the same port, hidden nonces", hidden));
    let message = |pace| {
        Guesser::new(Places::One(place(ONE)), Users::One(VICTIM), pace)
            .method("MESSAGE")
            .account(Account { user: 900, port: 5060 })
    };
    all.extend(by_pace("the same port, MESSAGE", message));
    holds("own account", [300, 100], all)
}

#[test]
fn a_peer() -> Result<()> {
    let mut all = Vec::new();
    for (nonces, source) in [("own", NonceSource::Own), ("borrowed", NonceSource::Borrowed)] {
        for (method, name) in [("REGISTER", "REGISTER"), ("INVITE", "INVITE")] {
            for (pace, how) in paces() {
                let guesser = plain(how).nonces(source).method(method);
                let agents: Vec<Box<dyn Agent>> =
                    vec![Box::new(Peer(place(ONE))), Box::new(guesser)];
                all.push(strategy(format!("{name}, {nonces} nonces, {pace}"), agents));
            }
        }
    }
    holds("a peer", [300, 100], all)
}
