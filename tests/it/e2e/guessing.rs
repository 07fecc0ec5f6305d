//! Guessers, scanners and toll fraud are banned for the registrar's responses, not for their rate:
//! at any speed and in every disguise. Needs root and Linux 6.6 or later.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use sip_xdp_tests::bans::Ban;
use sip_xdp_tests::process::Process;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN};
use sip_xdp_tests::{
    Attacker, Disguise, Filter, Lab, Party, Phone, Registrar, RegistrarOptions,
    wait_for_a_nonce_of_its_own, wait_until,
};

/// Time from the first request to the ban, for attacks that are not slow on purpose.
const PROMPT: Duration = Duration::from_secs(15);
/// The kernel's limit of an unknown source within ten seconds, with a margin.
const LIMIT: usize = 60;

/// The expected result of an attack.
struct Expected {
    /// Maximum number of requests that reach Kamailio.
    requests: usize,
    /// Acceptable kinds of evidence.
    kinds: &'static [&'static str],
    /// Whether the evidence must be proven.
    is_proven: bool,
}

/// A lab with a filter, a registrar and a known phone.
struct Fixture<'a> {
    lab: &'a Lab,
    registrar: Registrar,
    filter: Filter<'a>,
    complaints: Vec<String>,
}

impl<'a> Fixture<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let options = RegistrarOptions { phones: true, ..RegistrarOptions::default() };
        let registrar = Registrar::start_with(&lab.pbx, lab.directory(), &options)?;
        let filter = Filter::start(&lab.pbx, lab.directory())?;
        let fixture = Self { lab, registrar, filter, complaints: Vec::new() };
        fixture.phone_registers("before the attack")?;
        Ok(fixture)
    }

    fn phone_registers(&self, when: &str) -> Result<()> {
        let phone = Phone::new(&self.lab.phone, self.lab.directory());
        let registration = phone.register().with_context(|| format!("the phone {when}"))?;
        assert_eq!(
            registration.status, 200,
            "{when} the phone was to register, but got {registration:?}"
        );
        Ok(())
    }

    /// Prints the result of an attacker, and collects faults for the end.
    fn judge(
        &mut self,
        what: &str,
        from: impl Into<IpAddr>,
        ban: Result<Ban>,
        expected: &Expected,
    ) -> Result<()> {
        let from = from.into();
        // Packets that passed before the ban are on their way to the log.
        sleep(Duration::from_millis(300));
        let (received, failures) =
            (self.registrar.received_from(from), self.registrar.failures_of(from).len());
        let seen = format!(
            "Kamailio saw {received:4} requests, {failures:3} of them with wrong credentials"
        );
        let ban = match ban {
            Ok(ban) => ban,
            Err(error) => {
                println!("{what:24} NOT BANNED  {seen}");
                self.complaints.push(format!("{what}: {error:#}"));
                return Ok(());
            }
        };
        let kind = self.filter.ban_kind(&from.to_string()).unwrap_or_default();
        println!("{what:24} {kind:12} {:9} {seen}; \"{}\"", ban.tier, ban.reason);
        let mut complain = |wrong: bool, why: String| {
            if wrong {
                self.complaints.push(format!("{what}: {why}"));
            }
        };
        let most = expected.requests;
        complain(
            received > most,
            format!("at most {most} requests were to get to Kamailio, not {received}"),
        );
        complain(ban.reason.is_empty(), "the ban has no reason".to_owned());
        let kinds = expected.kinds;
        complain(
            !kinds.contains(&kind.as_str()),
            format!("the log was to name one of {kinds:?}, not {kind:?}"),
        );
        let tier = ban.tier.as_str();
        // Rejected credentials are proven by their nonce; a signature may be seen before there is
        // any.
        let is_proven = expected.is_proven && kind != "signature";
        complain(
            is_proven && tier != "proven",
            format!("the evidence was to be proven, not {tier}"),
        );
        complain(ban.lasts.is_none(), "the ban does not end".to_owned());
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.phone_registers("after the attack")?;
        assert!(self.complaints.is_empty(), "{}", self.complaints.join("\n\n"));
        Ok(())
    }
}

/// Runs a tool in every disguise, each from its own address, one after the other.
fn is_banned_in_every_disguise(
    expected: &Expected,
    attack: impl Fn(&Attacker<'_>) -> Result<Process>,
) -> Result<()> {
    let lab = Lab::new()?;
    let mut fixture = Fixture::new(&lab)?;
    for (number, disguise) in (0..).zip(Disguise::ALL) {
        let from = lab.further_attacker(number)?;
        let attacker =
            Attacker::new(&lab.attacker, lab.directory()).address(from).disguise(disguise);
        wait_for_a_nonce_of_its_own();
        let mut tool = attack(&attacker)?;
        let ban = fixture.filter.wait_for_ban(&from.to_string(), PROMPT);
        fixture.phone_registers("during the attack")?;
        tool.stop(Signal::SIGTERM)?;
        if fixture.registrar.received_from(from) == 0 {
            fixture
                .complaints
                .push(format!("{disguise:?}: the tool sent nothing, but said:\n{}", tool.tail()));
        }
        fixture.judge(&format!("{disguise:?}"), from, ban, expected)?;
    }
    fixture.end()
}

#[test]
fn svcrack_at_its_own_speed() -> Result<()> {
    let expected = Expected { requests: 30, kinds: &["signature", "rejected"], is_proven: true };
    is_banned_in_every_disguise(&expected, |attacker| attacker.crack("101"))
}

#[test]
fn svcrack_without_pauses() -> Result<()> {
    // It is so fast that a limit may act first.
    let kinds = &["signature", "rejected", "requests", "register"];
    let expected = Expected { requests: LIMIT, kinds, is_proven: false };
    is_banned_in_every_disguise(&expected, |attacker| attacker.crack_with_pauses("101", "0"))
}

/// A password every seven seconds. All disguises run at the same time, in different seconds, since
/// it takes two minutes.
#[test]
fn svcrack_slowly() -> Result<()> {
    const PASSWORDS: usize = 20;
    const PAUSE: Duration = Duration::from_secs(7);
    let expected = Expected {
        requests: 2 * PASSWORDS,
        kinds: &["signature", "rejected", "slow"],
        is_proven: true,
    };
    let lab = Lab::new()?;
    let mut fixture = Fixture::new(&lab)?;
    let mut running = Vec::new();
    for (number, disguise) in (0..).zip(Disguise::ALL) {
        let from = lab.further_attacker(number)?;
        let attacker =
            Attacker::new(&lab.attacker, lab.directory()).address(from).disguise(disguise);
        running.push((disguise, from, attacker.crack_with_pauses("101", "7")?));
        sleep(PAUSE / 4);
    }
    let (start, patience) = (Instant::now(), PAUSE * u32::try_from(PASSWORDS)? + PROMPT);
    let is_over = || -> Result<bool> {
        let bans = fixture.filter.bans()?;
        let is_banned =
            |from: &dyn ToString| bans.iter().any(|ban| ban.network.starts_with(&from.to_string()));
        Ok(running.iter().all(|(_, from, _)| is_banned(from)) || start.elapsed() > patience)
    };
    while !is_over()? {
        fixture.phone_registers("during the attack")?;
        sleep(Duration::from_secs(2));
    }
    println!("a password every {PAUSE:?}, for {:.0?}:", start.elapsed());
    for (disguise, from, mut tool) in running {
        let ban = fixture.filter.wait_for_ban(&from.to_string(), Duration::ZERO);
        tool.stop(Signal::SIGTERM)?;
        let tried = fixture.registrar.failures_of(from).len();
        if tried > PASSWORDS {
            fixture.complaints.push(format!(
                "{disguise:?}: at most {PASSWORDS} passwords were to be tried, not {tried}"
            ));
        }
        fixture.judge(&format!("{disguise:?}"), from, ban, &expected)?;
    }
    fixture.end()
}

const ENUMERATION: Expected =
    Expected { requests: LIMIT, kinds: &["enumeration", "signature", "invites"], is_proven: false };

#[test]
fn svwar_with_register() -> Result<()> {
    is_banned_in_every_disguise(&ENUMERATION, |attacker| attacker.enumerate("REGISTER"))
}

#[test]
fn svwar_with_options() -> Result<()> {
    is_banned_in_every_disguise(&ENUMERATION, |attacker| attacker.enumerate("OPTIONS"))
}

#[test]
fn svwar_with_invite() -> Result<()> {
    is_banned_in_every_disguise(&ENUMERATION, |attacker| attacker.enumerate("INVITE"))
}

/// Each run sends a single request; the repetition is the evidence.
#[test]
fn svmap_again_and_again() -> Result<()> {
    const RUNS: usize = 5;
    let expected = Expected { requests: RUNS, kinds: &["signature"], is_proven: false };
    let lab = Lab::new()?;
    let mut fixture = Fixture::new(&lab)?;
    for (number, disguise) in (0..).zip(Disguise::ALL) {
        let from = lab.further_attacker(number)?;
        let attacker =
            Attacker::new(&lab.attacker, lab.directory()).address(from).disguise(disguise);
        for _ in 0..RUNS {
            let before = fixture.filter.requests("options")?;
            let mut tool = attacker.map(&PBX_WAN.to_string())?;
            // A suspect's second request within a second is dropped but counted, until it is
            // banned.
            let is_seen = || {
                Ok(fixture.filter.requests("options")? > before
                    || fixture.filter.is_banned(&from.to_string())?)
            };
            let seen = wait_until("svmap asks", Duration::from_secs(3), is_seen);
            tool.stop(Signal::SIGTERM)?;
            if seen.is_err() {
                fixture
                    .complaints
                    .push(format!("{disguise:?}: svmap sent nothing, but said:\n{}", tool.tail()));
            }
        }
        let ban = fixture.filter.wait_for_ban(&from.to_string(), Duration::from_secs(3));
        if let Ok(ban) = &ban
            && (ban.tier != "unproven" || ban.lasts > Some(Duration::from_secs(301)))
        {
            // Anybody can forge that.
            fixture
                .complaints
                .push(format!("{disguise:?}: an unproven, short ban was expected, not {ban:?}"));
        }
        fixture.judge(&format!("{disguise:?}, {RUNS} runs"), from, ban, &expected)?;
    }
    fixture.end()
}

/// Common prefixes for dialling out, before one number, at five calls per second.
#[test]
fn calls_to_one_number_under_many_prefixes() -> Result<()> {
    const NUMBERS: [&str; 10] = [
        "00441234567890",
        "011441234567890",
        "9011441234567890",
        "900441234567890",
        "0044-1234-567890",
        "+441234567890",
        "0011441234567890",
        "810441234567890",
        "8011441234567890",
        "1011441234567890",
    ];
    let expected =
        Expected { requests: NUMBERS.len(), kinds: &["invites", "enumeration"], is_proven: false };
    let lab = Lab::new()?;
    let mut fixture = Fixture::new(&lab)?;
    let fraudster = Party::open(&lab.attacker, SocketAddr::from((ATTACKER, 5060)))?;
    for number in NUMBERS {
        fraudster.request("INVITE", number, SocketAddr::from((PBX_WAN, 5060)))?;
        sleep(Duration::from_millis(200));
    }
    assert!(
        fraudster.count("SIP/2.0 404") > 0,
        "Kamailio was to answer calls to strange numbers with 404"
    );
    let ban = fixture.filter.wait_for_ban(&ATTACKER.to_string(), Duration::from_secs(8));
    fixture.phone_registers("during the attack")?;
    fixture.judge("prefixes", ATTACKER, ban, &expected)?;
    fixture.end()
}
