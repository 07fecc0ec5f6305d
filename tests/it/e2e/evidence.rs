//! What must hold against whoever forges, relays and fills: no innocent is banned by what could be
//! forged for more than five minutes a day, registered phones lose nothing, and tables keep room.
//! In capture time, through the kernel's own programs, the detector and the bans. Needs root.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use anyhow::Result;
use sip_xdp::config::Config;
use sip_xdp::net::network::Network;
use sip_xdp_tests::attackers::{
    Agent, DAY, Filler, Guesser, HOUR, MILLISECOND, MINUTE, NonceSource, Outcome, Owner, Pace,
    Places, Poisoner, SECOND, Trick, Users, World,
};

/// The longest ban by what could be forged (`bans.unproven`), in seconds.
const LONGEST_UNPROVEN: u64 = 300;

/// The first user with a phone.
const USER: u32 = 101;

/// Places of registered phones: alone, two in an office, and by IPv6.
fn homes() -> [SocketAddr; 4] {
    let office = Ipv4Addr::new(203, 0, 113, 20);
    [
        (Ipv4Addr::new(203, 0, 113, 10), 5060).into(),
        (office, 40_001).into(),
        (office, 40_002).into(),
        (Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 7), 5060).into(),
    ]
}

/// Owners at their homes, and what becomes of them.
fn owners() -> (Vec<Box<dyn Agent>>, Vec<Rc<Cell<Outcome>>>) {
    let owners = homes().into_iter().zip(USER..).map(|(home, user)| Owner::new(user, home));
    let (mut agents, mut outcomes) = (Vec::new(), Vec::new());
    for owner in owners {
        outcomes.push(owner.outcome());
        agents.push(Box::new(owner) as Box<dyn Agent>);
    }
    (agents, outcomes)
}

fn is_at(network: &Network, address: IpAddr) -> bool {
    network.contains(&Network::host(address))
}

/// Nobody at these addresses is banned by evidence that proves who sent it, nor for longer, nor
/// more often, than evidence without proof allows.
fn nobody_is_convicted(world: &World<'_>, innocents: &[IpAddr], what: &str) {
    let bans = world.bans();
    for address in innocents {
        let of_it: Vec<_> = bans.iter().filter(|ban| is_at(&ban.network, *address)).collect();
        assert!(
            of_it.iter().all(|ban| !ban.is_proven && ban.length <= LONGEST_UNPROVEN),
            "{what}: {of_it:#?}"
        );
        for pair in of_it.windows(2) {
            let apart = (pair[1].at - pair[0].at) as u64 * MILLISECOND;
            assert!(apart >= DAY, "{what}: banned twice in a day: {of_it:#?}");
        }
    }
}

fn nobody_lost_anything(outcomes: &[Rc<Cell<Outcome>>], what: &str) {
    for (number, outcome) in outcomes.iter().enumerate() {
        let Outcome { accepted, failed } = outcome.get();
        assert!(accepted > 1 && failed == 0, "{what}: owner {number}: {:?}", outcome.get());
    }
}

/// In the name of registered phones, of other ports at their addresses, and of a place where
/// somebody arrives during the attack.
#[test]
fn forged_packets_harm_nobody() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let config = Config::default();
    let hotel: SocketAddr = (Ipv4Addr::new(198, 18, 5, 5), 5060).into();
    for trick in Trick::ALL {
        for every in [100 * MILLISECOND, 3 * SECOND] {
            let what = format!("{trick:?}, one in {} ms", every / MILLISECOND);
            let mut world = World::new(&config)?;
            let (mut agents, outcomes) = owners();
            world.run(&mut agents, 10 * MINUTE)?;
            let mut victims = homes().to_vec();
            victims.extend(homes().map(|home| SocketAddr::new(home.ip(), 6_000)));
            victims.extend([hotel, SocketAddr::new(hotel.ip(), 6_000)]);
            let innocents: Vec<IpAddr> = victims.iter().map(SocketAddr::ip).collect();
            agents.push(Box::new(Poisoner::new(victims, (USER, 4), trick, every)));
            // Who retransmits as RFC 3261 says gets through what a stranger is left.
            let guest = Owner::new(USER, hotel).arriving(20 * MINUTE, 517 * MILLISECOND);
            let arrival = guest.outcome();
            agents.push(Box::new(guest));
            world.run(&mut agents, HOUR)?;
            let lost = arrival.get().failed;
            println!("{what}: {} bans, the guest repeated {lost} packets", world.bans().len());
            nobody_lost_anything(&outcomes, &what);
            nobody_is_convicted(&world, &innocents, &what);
            assert!(arrival.get().accepted > 0, "{what}: the guest never got in");
        }
    }
    Ok(())
}

/// Strangers try the passwords of everybody who has a phone, from their own addresses: the users
/// are sprayed, and whoever knows the password gets in from anywhere, also after two typos.
#[test]
fn sprayed_users_are_let_in() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let config = Config::default();
    let mut world = World::new(&config)?;
    let (mut agents, outcomes) = owners();
    world.run(&mut agents, 10 * MINUTE)?;
    for number in 0..20 {
        let place = SocketAddr::from((Ipv4Addr::new(198, 18, 9, number), 5060));
        let pace = Pace::steady(30 * SECOND).back_off(HOUR);
        let nonces = if number < 10 { NonceSource::Own } else { NonceSource::Borrowed };
        let guesser = Guesser::new(Places::One(place), Users::Many(USER, 4), pace);
        agents.push(Box::new(guesser.nonces(nonces)));
    }
    world.run(&mut agents, 2 * HOUR)?;
    let is_sprayed = world.session().events().any(|(event, ..)| event == "sprayed");
    assert!(is_sprayed, "nobody was sprayed");

    // Two typos, then the password.
    let hotel = SocketAddr::from((Ipv4Addr::new(198, 18, 5, 5), 5060));
    let pace = Pace::steady(5 * SECOND);
    let mut typos: Vec<Box<dyn Agent>> =
        vec![Box::new(Guesser::new(Places::One(hotel), Users::One(USER), pace).at_most(2))];
    world.run(&mut typos, 2 * HOUR + MINUTE)?;
    let guest = Owner::new(USER, hotel);
    let arrival = guest.outcome();
    agents.push(Box::new(guest));
    world.run(&mut agents, 4 * HOUR)?;
    nobody_lost_anything(&outcomes, "sprayed");
    nobody_is_convicted(&world, &homes().map(|home| home.ip()), "sprayed");
    assert_eq!(arrival.get().failed, 0, "{:?}", world.bans());
    Ok(())
}

/// One account at thousands of places, and thousands of names from thousands of addresses.
#[test]
fn whoever_fills_tables_leaves_room() -> Result<()> {
    sip_xdp_tests::require_root()?;
    let mut config = Config::default();
    config.capacity.networks = 2_048;
    for filler in [
        Filler::registrations(900, 6_000, 2, 40 * MILLISECOND),
        Filler::registrations(900, 8, 5_000, 40 * MILLISECOND),
        Filler::names(6_000, 40 * MILLISECOND),
    ] {
        let what = format!("{filler:?}");
        let mut world = World::new(&config)?;
        let (mut agents, outcomes) = owners();
        world.run(&mut agents, MINUTE)?;
        agents.push(Box::new(filler));
        world.run(&mut agents, 45 * MINUTE)?;
        for fill in world.session().fill() {
            assert!(fill.used <= fill.limit, "{what}: {fill:?}");
        }
        println!("{what}: {:?}", world.session().fill());
        let watched = world.session().watched();
        assert!(watched <= 32_768, "{what}: {watched} sources are watched");
        nobody_lost_anything(&outcomes, &what);
        nobody_is_convicted(&world, &homes().map(|home| home.ip()), &what);
        // Operators find room, and guessers are banned.
        world.session_mut().block("100.64.0.0/24".parse()?)?;
        is_banned_after_ten(&mut world, &what)?;
    }
    Ok(())
}

/// A plain guesser at an address of its own is banned, by proven evidence, after ten answers.
pub(crate) fn is_banned_after_ten(world: &mut World<'_>, what: &str) -> Result<()> {
    let stranger = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 99), 5060));
    let before = world.all_guesses();
    let pace = Pace::steady(SECOND);
    let mut agents: Vec<Box<dyn Agent>> =
        vec![Box::new(Guesser::new(Places::One(stranger), Users::One(USER), pace))];
    world.run(&mut agents, world.now() + 5 * MINUTE)?;
    let guesses = world.all_guesses() - before;
    let bans = world.bans();
    let ban = bans.iter().find(|ban| is_at(&ban.network, stranger.ip()));
    assert!(ban.is_some_and(|ban| ban.is_proven), "{what}: {guesses} guesses, and {ban:?}");
    assert!(guesses <= 10, "{what}: {guesses} guesses");
    Ok(())
}
