//! SIP over plain TCP, read on the wire, against a real Kamailio: guessers are banned however their
//! messages are cut, phones are known good, and floods of connections cost nobody else anything.
//! Needs root and Linux 6.6 or later.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sip_xdp_tests::forger::forge_connections;
use sip_xdp_tests::registrar::{USERS, phone_password};
use sip_xdp_tests::topology::{ATTACKER, PBX_LAN, PBX_WAN, PHONE};
use sip_xdp_tests::{
    Connection, Filter, Lab, Pieces, Registrar, RegistrarOptions, short_or_long,
    wait_for_a_nonce_of_its_own, wait_until,
};

const SOON: Duration = Duration::from_secs(10);
const TO_WAN: SocketAddrV4 = SocketAddrV4::new(PBX_WAN, 5060);
const TO_LAN: SocketAddrV4 = SocketAddrV4::new(PBX_LAN, 5060);

/// Guesses that Kamailio may answer at full speed, and at two a second.
const AT_FULL_SPEED: usize = 30;
const AT_TWO_A_SECOND: usize = 12;

struct Site<'a> {
    lab: &'a Lab,
    registrar: Registrar,
    filter: Filter<'a>,
}

impl<'a> Site<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let options = RegistrarOptions { phones: true, tcp: true, ..RegistrarOptions::default() };
        let registrar = Registrar::start_with(&lab.pbx, lab.directory(), &options)?;
        let filter = Filter::start(&lab.pbx, lab.directory())?;
        Ok(Self { lab, registrar, filter })
    }

    fn attacker(&self, from: Ipv4Addr) -> Result<Connection> {
        Connection::open(&self.lab.attacker, from.into(), TO_WAN)
    }

    fn phone(&self) -> Result<Connection> {
        Connection::open(&self.lab.phone, PHONE.into(), TO_LAN)
    }

    /// Checks a guesser's ban, and how many of its guesses Kamailio refused.
    fn is_banned(&self, what: &str, from: Ipv4Addr, most: usize) -> Result<()> {
        let address = from.to_string();
        let ban = self.filter.wait_for_ban(&address, SOON).with_context(|| what.to_owned())?;
        let refused = self.registrar.failures_of(from).len();
        println!("{what:28} {refused:3} guesses answered; {} \"{}\"", ban.tier, ban.reason);
        assert!((1..=most).contains(&refused), "{what}: {refused} guesses, at most {most}");
        assert_eq!((ban.tier.as_str(), ban.lasts.is_some()), ("proven", true), "{what}");
        // Neither what is connected nor a new connection gets through.
        assert!(self.attacker(from).is_err(), "{what}: it can still connect");
        Ok(())
    }
}

/// Guesses over one connection until it goes dead, at most `count` times.
fn guess(connection: &mut Connection, count: usize, every: Duration) {
    let mut challenge = None;
    for number in 0..count {
        let credentials = challenge
            .as_ref()
            .map(|one| connection.credentials(one, "alice", &format!("guess-{number}")));
        let headers = credentials.unwrap_or_default();
        let request = connection.request("REGISTER", "alice", "guesses", &headers);
        match connection.ask(&request) {
            Ok((_, next)) => challenge = next,
            Err(_) => return,
        }
        thread::sleep(every);
    }
}

#[test]
fn guesses_over_tcp_are_banned_however_they_are_sent() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::new(&lab)?;
    let (pause, none) = (Duration::from_millis(500), Duration::ZERO);

    let from = lab.further_attacker(0)?;
    wait_for_a_nonce_of_its_own();
    guess(&mut site.attacker(from)?, 2_000, none);
    site.is_banned("one connection", from, AT_FULL_SPEED)?;

    let from = lab.further_attacker(1)?;
    wait_for_a_nonce_of_its_own();
    guess(&mut site.attacker(from)?, 40, pause);
    site.is_banned("one connection, 2 a second", from, AT_TWO_A_SECOND)?;

    let from = lab.further_attacker(2)?;
    wait_for_a_nonce_of_its_own();
    guess(&mut site.attacker(from)?.pieces(Pieces::Bytes), 2_000, none);
    site.is_banned("single bytes", from, AT_FULL_SPEED)?;

    let from = lab.further_attacker(3)?;
    wait_for_a_nonce_of_its_own();
    for number in 0..100 {
        let Ok(mut connection) = site.attacker(from) else { break };
        let password = format!("guess-{number}");
        let call = format!("call-{number}");
        if connection.register("alice", &password, &call).is_err() {
            break;
        }
    }
    site.is_banned("a connection for each", from, AT_FULL_SPEED)?;
    Ok(())
}

/// Behind the address of a registered phone somebody tries another user's passwords, by a new
/// connection each: the kernel refuses that user, and whoever else is there goes on.
#[test]
fn the_user_of_a_bad_phone_is_refused_and_its_office_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::new(&lab)?;
    let (user, password) = USERS[0];
    let mut phone = site.phone()?;
    assert_eq!(phone.register(user, password, "good")?, 200);
    let address = PHONE.to_string();
    wait_until("the phone is known good", SOON, || {
        Ok(site.filter.json(&["explain", &address])?["good_until"].is_string())
    })?;
    let mut tried = 0;
    let refused = (0..40).any(|number| {
        tried = number;
        let guess = || site.phone()?.register("1200", "old", &format!("bad-{number}"));
        // A challenge, and then no answer to the credentials.
        thread::sleep(Duration::from_millis(300));
        guess().is_err()
    });
    println!("refused after {tried} tries; {}", site.filter.decisions());
    assert!(refused && (5..=25).contains(&tried), "{tried}");
    assert_eq!(phone.register(user, password, "good")?, 200, "by its connection");
    for number in 0..5 {
        let user = (1_000 + number).to_string();
        let mut other = site.phone()?;
        let status = other.register(&user, &phone_password(&user), &format!("other-{number}"))?;
        assert_eq!(status, 200, "{user}, by a new connection");
    }
    assert!(site.phone()?.register("1200", "old", "again").is_err(), "it is refused still");
    let ban = site.filter.ban_of(&address)?;
    assert!(ban.is_none(), "{ban:?}");
    // An operator sees which user it is, and lets it in.
    let explained = site.filter.succeed(&["explain", &address])?;
    assert!(explained.contains("refused   \"1200\" for "), "{explained}");
    let limited = format!("suspect   {address}: one a second of what may try passwords");
    assert!(explained.contains(&limited), "{explained}");
    let pardoned = site.filter.succeed(&["unban", &address])?;
    let lines = format!(
        "{address} is no longer limited as a suspect\n\
         passwords of \"1200\" are no longer refused from there\n"
    );
    assert!(pardoned.ends_with(&lines), "{pardoned}");
    assert_eq!(site.phone()?.register("1200", "old", "pardoned")?, 401);
    let nothing = site.filter.cli(&["unban", &address])?;
    assert!(!nothing.status.success(), "{nothing:?}");
    Ok(())
}

/// Many guesses at once: a nonce is good for all, and Kamailio answers whatever stands in its
/// buffer.
#[test]
fn pipelined_guesses_are_banned() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::new(&lab)?;
    for (number, size) in (0..).zip([2, 5, 20, 100, 400]) {
        pipelined_guesses(&lab, &site, number, size)?;
    }
    Ok(())
}

fn pipelined_guesses(lab: &Lab, site: &Site<'_>, number: u8, size: usize) -> Result<()> {
    let from = lab.further_attacker(number)?;
    wait_for_a_nonce_of_its_own();
    let mut connection = site.attacker(from)?;
    let first = connection.request("REGISTER", "alice", "guesses", "");
    let (_, challenge) = connection.ask(&first)?;
    let challenge = challenge.context("no challenge")?;
    let mut bursts = 0;
    'guessing: for burst in 0..20 {
        let mut all = String::new();
        for number in 0..size {
            let password = format!("guess-{burst}-{number}");
            let credentials = connection.credentials(&challenge, "alice", &password);
            all += &connection.request("REGISTER", "alice", "guesses", &credentials);
        }
        if connection.write(all.as_bytes()).is_err() {
            break;
        }
        bursts += 1;
        for _ in 0..size {
            if connection.read().is_err() {
                break 'guessing;
            }
        }
    }
    println!("{bursts} bursts of {size} guesses");
    site.is_banned(&format!("{size} at once"), from, AT_FULL_SPEED)
}

#[test]
fn enumeration_over_tcp_is_banned() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::new(&lab)?;
    let mut connection = site.attacker(ATTACKER)?;
    let mut asked = 0;
    for number in 0..200 {
        let call = format!("scan-{number}");
        let request = connection.request("REGISTER", &format!("{}", 5_000 + number), &call, "");
        if connection.ask(&request).is_err() {
            break;
        }
        asked += 1;
        thread::sleep(Duration::from_millis(50));
    }
    let ban = site.filter.wait_for_ban(&ATTACKER.to_string(), SOON)?;
    println!("{asked} users were asked for; {} \"{}\"", ban.tier, ban.reason);
    assert_eq!(site.filter.ban_kind(&ATTACKER.to_string()).as_deref(), Some("enumeration"));
    assert!(asked < 60, "{asked} users were asked for");
    Ok(())
}

/// A phone is known good by its registration, stays connected through a restart of the daemon, and
/// is known again at its next one.
#[test]
fn a_phone_over_tcp_is_known_good_and_survives_a_restart() -> Result<()> {
    let lab = Lab::new()?;
    let mut site = Site::new(&lab)?;
    let (user, password) = USERS[0];
    let mut phone = site.phone()?;
    assert_eq!(phone.register(user, password, "phone")?, 200);
    let address = PHONE.to_string();
    wait_until("the phone is known good", SOON, || {
        Ok(site.filter.json(&["explain", &address])?["accepted"][0]["user"] == user)
    })?;
    let known = site.filter.json(&["explain", &address])?;
    assert_eq!(known["accepted"][0]["transport"], "tcp", "{known:#}");
    assert!(known["good_until"].is_string(), "{known:#}");

    let from = lab.further_attacker(0)?;
    wait_for_a_nonce_of_its_own();
    guess(&mut site.attacker(from)?, 2_000, Duration::ZERO);
    site.is_banned("before", from, AT_FULL_SPEED)?;
    site.filter.kill9()?;
    assert!(site.attacker(from).is_err(), "the ban does not hold without a daemon");
    assert_eq!(phone.register(user, password, "phone")?, 200, "without a daemon");
    site.filter.launch()?;
    assert!(site.attacker(from).is_err(), "the ban does not hold after a restart");
    assert_eq!(phone.register(user, password, "phone")?, 200, "the connection goes on");
    let from = lab.further_attacker(1)?;
    wait_for_a_nonce_of_its_own();
    guess(&mut site.attacker(from)?, 2_000, Duration::ZERO);
    site.is_banned("after a restart", from, AT_FULL_SPEED)
}

/// Two hundred phones behind one address register one after the other, where nobody was known yet;
/// then all of them lose their connections and come back at the same moment, twice.
#[test]
fn many_phones_on_tcp_behind_one_address_come_back() -> Result<()> {
    const PHONES: usize = 200;
    let lab = Lab::new()?;
    let site = Site::new(&lab)?;
    let register = |number: usize, round: usize| {
        let user = (1_000 + number).to_string();
        let mut phone = site.phone()?;
        let call = format!("phone-{number}-{round}");
        let status = phone.register(&user, &phone_password(&user), &call)?;
        ensure!(status == 200, "{user}: {status}");
        Ok(phone)
    };
    let start = Instant::now();
    let connected: Result<Vec<Connection>> =
        (0..PHONES).map(|number| register(number, 0)).collect();
    drop(connected?);
    println!("{PHONES} phones of an unknown address in {:?}", start.elapsed());
    for round in 1..3 {
        let start = Instant::now();
        let connected: Vec<Result<Connection>> = thread::scope(|scope| {
            let phones: Vec<_> =
                (0..PHONES).map(|number| scope.spawn(move || register(number, round))).collect();
            phones.into_iter().map(|phone| phone.join().expect("a phone panicked")).collect()
        });
        let failed: Vec<_> = connected.iter().filter_map(|one| one.as_ref().err()).collect();
        println!("round {round}: {PHONES} phones at once in {:?}", start.elapsed());
        assert!(failed.is_empty(), "{} in round {round}, first {:#}", failed.len(), failed[0]);
    }
    site.filter.nobody_is_banned("phones came back")
}

/// Resident memory in KiB (proc(5)).
fn memory(filter: &Filter<'_>) -> Result<u64> {
    let pid = filter.pid().context("no daemon")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?.parse()?)
}

#[test]
fn a_flood_of_forged_connections_harms_nobody() -> Result<()> {
    let lab = Lab::new()?;
    lab.accept_forgeries()?;
    let site = Site::new(&lab)?;
    let (user, password) = USERS[0];
    assert_eq!(site.phone()?.register(user, password, "before")?, 200);
    let address: IpAddr = PHONE.into();
    wait_until("the phone is known good", SOON, || {
        Ok(site.filter.json(&["explain", &address.to_string()])?["good_until"].is_string())
    })?;
    let before = memory(&site.filter)?;
    let flood = forge_connections(&lab.attacker, TO_WAN, 20_000)?;
    let lasts = short_or_long(Duration::from_secs(10), Duration::from_secs(60));
    let (start, mut tries, mut registered) = (Instant::now(), 0, 0);
    while start.elapsed() < lasts {
        tries += 1;
        let register = || site.phone()?.register(user, password, &format!("during-{tries}"));
        registered += u32::from(register().is_ok_and(|status| status == 200));
        thread::sleep(Duration::from_millis(100));
    }
    let sent = flood.stop()?;
    let after = memory(&site.filter)?;
    let dropped = site.filter.packets("wan", "drop.storm")?;
    println!(
        "{sent} SYNs, {dropped} dropped; the phone registered {registered} times of {tries}; \
         memory {before} KiB, then {after} KiB"
    );
    assert!(20 * registered >= 19 * tries, "{registered} of {tries}");
    assert!(after < before + 8 * 1_024, "{before} KiB, then {after} KiB");
    assert!(dropped > sent / 2, "{dropped} of {sent}");
    site.filter.nobody_is_banned("a SYN proves nothing")
}
