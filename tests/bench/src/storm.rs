//! Section f: a flood in which every packet has a new source, while known phones keep registering
//! with a real registrar behind sip-xdp.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use sip_xdp_tests::generator::{Frame, Sources};
use sip_xdp_tests::programs::{Attached, DROP};
use sip_xdp_tests::topology::{ATTACKER, OUTSIDE, PBX_LAN, PBX_WAN, WAN, address};
use sip_xdp_tests::usage::memory;
use sip_xdp_tests::wire::{accept_from_anywhere, link_address, received};
use sip_xdp_tests::{Filter, Generator, Lab, Phone, Registrar, Wire};

use crate::contenders::{BASELINE, REQUEST};
use crate::report::{Budget, Plan, Row, Section, median};
use crate::table::{number, thousands};

/// The phones, which take turns.
const PHONES: u8 = 5;
/// From one registration to the next, of any phone. Each stays far below the limits of a source
/// that way.
const PACE: Duration = Duration::from_millis(400);
/// How much larger the daemon may be during the flood than before, in MiB.
const GROWTH: f64 = 1.0;

/// How long and how often.
struct Rounds {
    count: usize,
    /// Of the flood, against sip-xdp.
    flood: Duration,
    /// Of the same packets, against the program that drops everything. Shorter than a storm takes
    /// to pass.
    baseline: Duration,
}

/// What the filter, the daemon and the wire say, so far.
#[derive(Debug, Clone, Copy)]
struct Reading {
    /// Taken in by the interface.
    received: u64,
    /// By the filter's own counters.
    dropped: u64,
    passed: u64,
    /// Sources with a meter.
    tracked: u64,
    /// The daemon's resident memory, in MiB.
    memory: f64,
}

/// What the flood left.
struct Flood {
    baseline: Vec<f64>,
    rates: Vec<f64>,
    readings: Vec<Reading>,
}

/// The section.
pub(crate) fn run(plan: &Plan) -> Result<Section> {
    let rounds = if plan.quick {
        Rounds { count: 4, flood: Duration::from_secs(2), baseline: Duration::from_millis(250) }
    } else {
        Rounds { count: 12, flood: Duration::from_secs(5), baseline: Duration::from_millis(500) }
    };
    let lab = Lab::new()?;
    accept_from_anywhere(&lab.pbx, WAN, link_address(&lab.attacker, OUTSIDE)?)?;
    let _registrar = Registrar::start(&lab.pbx, lab.directory())?;
    let filter = Filter::start(&lab.pbx, lab.directory())?;
    let phones = phones(&lab)?;
    let calm = register_all(&phones)?;

    let wire = Wire::new()?;
    let _drop = Attached::new(&wire.receiver, WAN, DROP)?;
    let mut baseline = wire.generator(&Sources::EveryPacketNew, REQUEST.as_bytes())?;
    let frame = Frame::new(
        link_address(&lab.pbx, WAN)?,
        SocketAddrV4::new(PBX_WAN, 5060),
        REQUEST.as_bytes(),
    )?;
    let mut storm = Generator::load(&lab.attacker, OUTSIDE, frame, &Sources::EveryPacketNew)?;

    let before = Reading::take(&lab, &filter)?;
    let over = AtomicBool::new(false);
    let (flood, registrations) = thread::scope(|scope| {
        let registrations = scope.spawn(|| register_until(&phones, &over));
        let flood = flood(&rounds, &lab, &filter, &mut storm, &mut baseline);
        over.store(true, Ordering::Relaxed);
        let registrations =
            registrations.join().map_err(|_| anyhow!("the phones' thread panicked"))?;
        anyhow::Ok((flood?, registrations))
    })?;
    Ok(Section {
        letter: 'f',
        title: "A flood from forged sources, every packet a new one",
        rows: rows(&before, &flood, &calm, &registrations)?,
        remarks: remarks(&rounds),
    })
}

/// Phones at addresses of their own.
fn phones(lab: &Lab) -> Result<Vec<Phone<'_>>> {
    (0..PHONES)
        .map(|number| {
            let host = Ipv4Addr::new(203, 0, 113, 20 + number);
            address(&lab.phone, OUTSIDE, &[&format!("{host}/24")])?;
            Ok(Phone::new(&lab.phone, lab.directory()).addresses(host, PBX_LAN))
        })
        .collect()
}

/// Lets each phone register, so that it is known; returns how long each took.
fn register_all(phones: &[Phone<'_>]) -> Result<Vec<Duration>> {
    let register = |phone: &Phone<'_>| match phone.register()? {
        registration if registration.status == 200 => Ok(registration.took),
        registration => bail!("a phone was refused before the flood: {}", registration.status),
    };
    phones.iter().map(register).collect()
}

/// Lets them register in turn until the flood is over. `None`: it was refused, or got no answer.
fn register_until(phones: &[Phone<'_>], over: &AtomicBool) -> Vec<Option<Duration>> {
    let mut registrations = Vec::new();
    for phone in phones.iter().cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let start = Instant::now();
        let registered = phone.register().ok().filter(|registration| registration.status == 200);
        registrations.push(registered.map(|registration| registration.took));
        sleep(PACE.saturating_sub(start.elapsed()));
    }
    registrations
}

fn flood(
    rounds: &Rounds,
    lab: &Lab,
    filter: &Filter<'_>,
    storm: &mut Generator<'_>,
    baseline: &mut Generator<'_>,
) -> Result<Flood> {
    let mut flood = Flood { baseline: Vec::new(), rates: Vec::new(), readings: Vec::new() };
    for _ in 0..rounds.count {
        let before = received(&lab.pbx, WAN)?;
        let sent = storm.send_for(rounds.flood)?;
        let reading = Reading::take(lab, filter)?;
        flood.rates.push(sent.million_per_second(reading.received - before));
        flood.readings.push(reading);
        let sent = baseline.send_for(rounds.baseline)?;
        flood.baseline.push(sent.million_per_second(sent.packets));
    }
    Ok(flood)
}

impl Reading {
    fn take(lab: &Lab, filter: &Filter<'_>) -> Result<Self> {
        let received = received(&lab.pbx, WAN)?;
        let stats = filter.json(&["stats"])?;
        let interfaces = stats["interfaces"].as_array().context("`stats` has no interfaces")?;
        let wan = interfaces
            .iter()
            .find(|entry| entry["interface"] == WAN)
            .context("`stats` lacks an interface")?;
        Ok(Self {
            received,
            dropped: sum(&wan["packets"]["drop"]),
            passed: sum(&wan["packets"]["pass"]),
            tracked: stats["sources"]["tracked"]
                .as_u64()
                .context("`stats` has no tracked sources")?,
            memory: memory(filter.pid().context("the daemon is gone")?)?,
        })
    }
}

/// All counters of an object.
fn sum(counters: &Value) -> u64 {
    counters.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}

fn rows(
    before: &Reading,
    flood: &Flood,
    calm: &[Duration],
    registrations: &[Option<Duration>],
) -> Result<Vec<Row>> {
    let last = flood.readings.last().context("there was no round")?;
    let (received, dropped, passed) = (
        last.received - before.received,
        last.dropped - before.dropped,
        last.passed - before.passed,
    );
    let mut note = format!(
        "own counters: {} dropped and {} passed, of {}",
        thousands(dropped),
        thousands(passed),
        thousands(received)
    );
    let agree = dropped + passed == received;
    if !agree {
        note = format!("FAILED, they do not add up: {note}");
    }
    let rounds = flood.readings.len();
    let series = |value: fn(&Reading) -> f64| flood.readings.iter().map(value).collect::<Vec<_>>();
    let row = |name: &str, unit, samples, baseline: Option<&str>, budget, note: String| Row {
        name: name.to_owned(),
        populated: String::new(),
        unit,
        samples,
        baseline: baseline.map(str::to_owned),
        budget,
        note,
    };
    let ours = if agree { flood.rates.clone() } else { Vec::new() };
    let went = registrations.iter().flatten().copied().collect::<Vec<_>>();
    let share = 100.0 * went.len() as f64 / registrations.len().max(1) as f64;
    let phones = format!(
        "{} of {} registrations by phones known before, in {} ms (median; {} ms before the flood)",
        went.len(),
        registrations.len(),
        milliseconds(&went),
        milliseconds(calm),
    );
    let few = || vec![before.memory; rounds];
    Ok(vec![
        row(BASELINE, "Mpps", flood.baseline.clone(), Some(BASELINE), None, String::new()),
        row("sip-xdp", "Mpps", ours, Some(BASELINE), Some(Budget::RatioAtLeast(0.5)), note),
        row(
            "sip-xdp: phones that register",
            "%",
            vec![share],
            None,
            Some(Budget::AtLeast(100.0)),
            phones,
        ),
        row(
            "sip-xdp: memory before",
            "MiB",
            few(),
            None,
            None,
            "the daemon's resident memory".to_owned(),
        ),
        row(
            "sip-xdp: memory during the flood",
            "MiB",
            series(|reading| reading.memory),
            Some("sip-xdp: memory before"),
            Some(Budget::OverBaselineAtMost(GROWTH)),
            "the same after each round; the kernel's tables are allocated beforehand".to_owned(),
        ),
        row(
            "sip-xdp: metered before",
            "sources",
            vec![before.tracked as f64; rounds],
            None,
            None,
            String::new(),
        ),
        row(
            "sip-xdp: metered during the flood",
            "sources",
            series(|reading| reading.tracked as f64),
            None,
            None,
            format!("after {} sources", thousands(received)),
        ),
    ])
}

fn milliseconds(times: &[Duration]) -> String {
    let times = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    median(times).map_or_else(|| "-".to_owned(), number)
}

fn remarks(rounds: &Rounds) -> Vec<String> {
    let flood = rounds.flood * u32::try_from(rounds.count).unwrap_or(u32::MAX);
    vec![
        format!(
            "{} s of flood from {ATTACKER}'s side, interrupted every {} s for {} ms in which the \
             same packets go to the \
             baseline: too short for the storm to pass.",
            flood.as_secs(),
            rounds.flood.as_secs(),
            rounds.baseline.as_millis()
        ),
        "One core makes the packets, hands them over and judges them, as in section b; the \
         registrar, the daemon and the \
         phones share what is left of the machine."
            .to_owned(),
        format!(
            "{PHONES} phones register in turn, one every {} ms, through another interface that is \
             filtered by the same \
             daemon.",
            PACE.as_millis()
        ),
    ]
}
