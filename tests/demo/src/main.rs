//! The demonstration: a password guesser is banned in the driver while a phone keeps registering.
//!
//! Everything happens in network namespaces that this program creates. It exits with 0 only if
//! every check passed.
//!
//! No check depends on the machine's speed: packets are identified by their bytes, not by two
//! clocks, and each step waits for the observed event.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use sip_xdp_tests::capture::Packet;
use sip_xdp_tests::supervise::{Aftermath, is_worker, supervise};
use sip_xdp_tests::topology::{ATTACKER, OUTSIDE, PBX_LAN, PBX_WAN, PHONE, WAN};
use sip_xdp_tests::{Attacker, Capture, Filter, Lab, Phone, Registrar, require_root, wait_until};

/// The promise: a flood's source is banned within this time.
const PROMPT: Duration = Duration::from_secs(2);
/// Number of packets sent against the ban, half of them before the phone registers.
const AGAINST_BAN: usize = 1_000;
/// Timeout of a step, generous for busy machines.
const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let result = require_root().and_then(|()| if is_worker() { show() } else { watch() });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints each check, and remembers whether all passed.
struct Observations {
    all_held: bool,
}

impl Observations {
    fn check(&mut self, held: bool, what: impl AsRef<str>) {
        let mark = if held { "  ok    " } else { "  FAILED" };
        println!("{mark} {}", what.as_ref());
        self.all_held &= held;
    }

    fn registration(&mut self, phone: &Phone<'_>, when: &str) {
        match phone.register() {
            Ok(result) => self.check(
                result.status == 200,
                format!(
                    "the phone registers {when}: {} in {} ms",
                    result.status,
                    result.took.as_millis()
                ),
            ),
            Err(error) => self.check(false, format!("the phone registers {when}: {error:#}")),
        }
    }
}

/// Runs the demonstration in a child, and cleans up even if that is killed.
fn watch() -> Result<bool> {
    let Aftermath { status, remains } = supervise()?;
    let mut observations = Observations { all_held: status.success() };
    if remains.is_empty() {
        observations.check(true, "nothing is left: no namespace, no pin, no process");
    } else {
        observations.check(false, format!("left behind, and removed now: {}", remains.join(", ")));
    }
    println!();
    println!(
        "{}",
        if observations.all_held {
            "Every observation held."
        } else {
            "Not every observation held."
        }
    );
    Ok(observations.all_held)
}

fn show() -> Result<bool> {
    let mut observations = Observations { all_held: true };
    let lab = Lab::new()?;
    println!("A PBX in a network namespace of its own, an attacker and a phone in others:\n");
    println!("    attacker {ATTACKER} ──── {PBX_WAN} PBX {PBX_LAN} ──── phone {PHONE}\n");

    let registrar = Registrar::start(&lab.pbx, lab.directory())?;
    println!("Kamailio serves on port 5060.");
    let mut filter = Filter::start(&lab.pbx, lab.directory())?;
    let ready = filter.log().into_iter().find(|line| line.text.starts_with("ready"));
    println!("sip-xdp run: {}\n", ready.map(|line| line.text).unwrap_or_default());

    let phone = Phone::new(&lab.phone, lab.directory());
    observations.registration(&phone, "before the attack");

    let expression = format!("udp and src host {ATTACKER} and dst port 5060");
    let sent = Capture::start(&lab.attacker, OUTSIDE, &expression, lab.directory())?;
    let seen = Capture::start(&lab.pbx, WAN, &expression, lab.directory())?;
    println!("\nsvcrack guesses the password of user 101:");
    let mut svcrack = Attacker::new(&lab.attacker, lab.directory()).crack("101")?;
    wait_until("svcrack sends", TIMEOUT, || Ok(!sent.packets()?.is_empty()))?;

    wait_until("the source is banned", TIMEOUT, || filter.is_banned(&ATTACKER.to_string()))?;
    // Listed means banned: no packet that leaves the attacker from now on may pass.
    let banned_by = SystemTime::now();
    let entries = filter.entries(&ATTACKER.to_string())?;
    let entry = entries.first().context("the ban is not listed any more")?;
    let field = |name: &str| entry[name].as_str().unwrap_or_default();
    let first =
        sent.packets()?.first().map(|packet| packet.at).context("the capture lost its packets")?;
    let after = SystemTime::from(field("added").parse::<jiff::Timestamp>()?)
        .duration_since(first)
        .unwrap_or_default();
    observations.check(
        after <= PROMPT,
        format!("{ATTACKER} is banned {:.2} s after its first packet", after.as_secs_f64()),
    );
    println!("         until {}: {}", field("expires"), field("reason"));

    let is_late = |packet: &Packet| packet.at > banned_by;
    let has_sent = |count: usize| Ok(sent.packets()?.into_iter().filter(is_late).count() >= count);
    wait_until("svcrack goes on", TIMEOUT, || has_sent(AGAINST_BAN / 2))?;
    observations.registration(&phone, "during the attack");
    wait_until("svcrack goes on", TIMEOUT, || has_sent(AGAINST_BAN))?;
    let running = svcrack.try_wait()?.is_none();
    svcrack.stop(Signal::SIGTERM)?;
    observations.check(running, "svcrack kept attacking until it was stopped");
    // Sent packets may still be in flight. A remaining difference is reported below.
    let _ = wait_until("every packet is accounted for", TIMEOUT / 6, || {
        let (dropped, seen) = (filter.dropped(WAN)?, seen.packets()?.len() as u64);
        Ok(sent.packets()?.len() as u64 == dropped + seen)
    });
    let (sent, seen) = (sent.stop()?, seen.stop()?);
    account(&mut observations, &filter, &sent, &seen, banned_by)?;
    registrar_view(&mut observations, &registrar, ATTACKER, seen.len());

    println!();
    observations.registration(&phone, "after the attack");
    println!("\nsip-xdp unload, and the namespaces go:");
    filter.unload()?;
    observations.check(!filter.pins().exists(), "nothing is pinned any more");
    let link = lab.pbx.ip(["link", "show", WAN])?;
    observations.check(!link.contains("xdp"), "no program is attached any more");
    Ok(observations.all_held)
}

/// Counters and captures must agree to the packet.
fn account(
    observations: &mut Observations,
    filter: &Filter<'_>,
    sent: &[Packet],
    seen: &[Packet],
    banned_by: SystemTime,
) -> Result<()> {
    let blocked = filter.packets(WAN, "drop.blocked")?;
    let limited = filter.packets(WAN, "drop.limited")?;
    let (sent_count, seen_count) = (sent.len() as u64, seen.len() as u64);
    println!("\nWhat became of its packets:");
    println!("         sent by the attacker             {sent_count:>6}  (capture on its side)");
    println!("         dropped in the driver, over limit{limited:>6}  (sip-xdp stats)");
    println!("         dropped in the driver, banned    {blocked:>6}  (sip-xdp stats)");
    println!(
        "         behind the filter                {seen_count:>6}  (capture on the PBX's side)"
    );
    observations.check(
        sent_count == blocked + limited + seen_count,
        format!("they add up: {sent_count} = {limited} + {blocked} + {seen_count}"),
    );
    // Each request has its own branch and Call-ID, so that its bytes identify it.
    let late: Vec<_> = sent.iter().filter(|packet| packet.at > banned_by).collect();
    let behind: HashSet<_> = seen.iter().map(request_of).collect();
    let passed = late.iter().filter(|packet| behind.contains(request_of(packet))).count();
    observations.check(
        passed == 0,
        format!("of {} packets sent after the ban, {passed} got behind the filter", late.len()),
    );
    observations.check(blocked >= late.len() as u64, "the driver's counter holds them all");
    Ok(())
}

/// The UDP payload of a packet, as far as it was recorded.
fn request_of(packet: &Packet) -> &[u8] {
    const HEADERS: usize = 14 + 20 + 8;
    packet.data.get(HEADERS..).unwrap_or_default()
}

fn registrar_view(
    observations: &mut Observations,
    registrar: &Registrar,
    attacker: Ipv4Addr,
    passed: usize,
) {
    // Its log arrives through a pipe, a moment later.
    let _ = wait_until("Kamailio's log", TIMEOUT / 6, || {
        Ok(registrar.received_from(attacker) >= passed)
    });
    let received = registrar.received_from(attacker);
    observations.check(
        received == passed,
        format!(
            "Kamailio received {received} requests of the attacker, the {passed} that passed the \
             filter"
        ),
    );
}
