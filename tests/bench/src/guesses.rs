//! Section h: passwords that the best strategy gets answered, by attacker, against their budgets;
//! and what an event costs the detector when few hosts are known, and when very many are.

use std::time::Instant;

use anyhow::{Result, ensure};
use sip_xdp::config::Config;
use sip_xdp::detect::{Acceptance, Action, Detector, Observation};
use sip_xdp::sip::transport::Transport;
use sip_xdp_common::abi::layout::EventKind;
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_tests::attackers::budgets::{self, Effort};

use crate::report::{Budget, Plan, Row, Section};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3_600 * SECOND;

/// Known hosts, few and many.
const KNOWN: [u32; 2] = [100, 100_000];

/// Registrations of a round, of four events each.
const REGISTRATIONS: u32 = 25_000;

/// The budget: events a second.
const ENOUGH: f64 = 200_000.0;

/// What many known hosts may cost, as a ratio.
const AS_FAST: f64 = 0.5;

/// The section.
pub(crate) fn run(plan: &Plan) -> Result<Section> {
    let mut rows = detector(if plan.quick { 1 } else { 5 })?;
    let effort = if plan.quick { Effort::Short } else { Effort::of_environment() };
    for row in budgets::all(effort) {
        let (name, limits) = (row.name, row.limits);
        let best = row.measure(&mut |line| eprintln!("{line}"))?;
        for ((best, limit), day) in best.into_iter().zip(limits).zip(["first", "second"]) {
            rows.push(Row {
                name: format!("{name}, {day} day"),
                populated: "8 registered users".to_owned(),
                unit: "guesses",
                samples: vec![best.guesses as f64],
                baseline: None,
                budget: Some(Budget::AtMost(limit as f64)),
                note: format!("by {}", best.by),
            });
        }
    }
    Ok(Section {
        letter: 'h',
        title: "Passwords that are answered, and what an event costs the detector",
        rows,
        remarks: vec![
            "Attackers react to what is dropped; two days of capture time go through the kernel's \
             own programs, the detector and the bans. The best strategy counts, of those that come \
             closest to the limits (SIP_XDP_LONG=1: of all)."
                .to_owned(),
            "Events are those of registrations: a challenge, a password, an acceptance. The \
             detector remembers at most 32,768 addresses of those that are known."
                .to_owned(),
        ],
    })
}

fn detector(rounds: usize) -> Result<Vec<Row>> {
    let name = |known: u32| format!("detector, {known} known hosts");
    let mut rows = Vec::new();
    for known in KNOWN {
        let samples = (0..rounds).map(|_| events_per_second(known)).collect::<Result<_>>()?;
        let is_first = known == KNOWN[0];
        rows.push(Row {
            name: name(known),
            populated: format!("{known} hosts were accepted"),
            unit: "events/s",
            samples,
            baseline: (!is_first).then(|| name(KNOWN[0])),
            budget: Some(if is_first {
                Budget::AtLeast(ENOUGH)
            } else {
                Budget::RatioAtLeast(AS_FAST)
            }),
            note: format!("{REGISTRATIONS} registrations of four events"),
        });
    }
    Ok(rows)
}

/// The messages of a registration: request and challenge, password and acceptance.
fn registration(number: u32) -> [(EventKind, String); 4] {
    let message = |first: &str, turn: u32, tag: &str, headers: &str| {
        format!(
            "{first}\r\nVia: SIP/2.0/UDP 192.0.2.7:5060;branch=z9hG4bK{number}-{turn}\r\n\
             From: <sip:{number}@lab.example>;tag=f{number}\r\nTo: <sip:{number}@lab.example>{tag}\
             \r\nCall-ID: c{number}\r\nCSeq: {turn} REGISTER\r\n{headers}Content-Length: 0\r\n\r\n"
        )
    };
    let request = "REGISTER sip:lab.example SIP/2.0";
    let challenge =
        format!("WWW-Authenticate: Digest realm=\"lab.example\", nonce=\"n{number:032x}\"\r\n");
    let credentials = format!(
        "Authorization: Digest username=\"{number}\", realm=\"lab.example\", \
         nonce=\"n{number:032x}\", uri=\"sip:lab.example\", response=\"{number:032x}\"\r\n"
    );
    [
        (EventKind::Request, message(request, 1, "", "")),
        (EventKind::Answer, message("SIP/2.0 401 Unauthorized", 1, ";tag=a", &challenge)),
        (EventKind::Request, message(request, 2, "", &credentials)),
        (EventKind::Answer, message("SIP/2.0 200 OK", 2, ";tag=b", "Expires: 3600\r\n")),
    ]
}

/// Events a second with so many known hosts.
fn events_per_second(known: u32) -> Result<f64> {
    let mut detector = Detector::new(&Config::default());
    let mut now = 1_000 * SECOND;
    let acceptances = (0..known).map(|number| Acceptance {
        source: IpKey::v4(0x0b00_0000 + number),
        user: format!("known{number}"),
        port: 5060,
        transport: Transport::Udp,
        at: now,
        until: now + HOUR,
    });
    detector.restore(acceptances, []);
    let messages: Vec<_> = (0..REGISTRATIONS).map(registration).collect();
    let (mut events, mut accepted) = (0_u32, 0_u32);
    let start = Instant::now();
    for (number, registration) in (0..).zip(&messages) {
        for (kind, text) in registration {
            // Ten registrations a second, so that all periodic work is part of it.
            now += SECOND / 40;
            let actions = detector.observe_message(&Observation {
                time: now,
                source: IpKey::v4(0x0a00_0000 + number),
                port: 5060,
                local_port: 5060,
                transport: Transport::Udp,
                kind: *kind,
                is_proven: false,
                is_certain: true,
                may_hide: false,
                flags: 0,
                bytes: text.as_bytes(),
                is_cut: false,
                bucket: 0,
                seen: 0,
                registers: 0,
                checksum: None,
            });
            events += 1;
            accepted +=
                actions.iter().filter(|action| matches!(action, Action::Accepted(_))).count()
                    as u32;
        }
    }
    let took = start.elapsed();
    ensure!(accepted == REGISTRATIONS, "{accepted} of {REGISTRATIONS} were accepted");
    Ok(f64::from(events) / took.as_secs_f64())
}
