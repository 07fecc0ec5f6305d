//! Section g: packets per second of a replayed capture, from the start of the command to its
//! report.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use sip_xdp_tests::filter::binary;
use sip_xdp_tests::mix::{Mix, SERVER};
use sip_xdp_tests::pcap::{Cover, pcap};

use crate::report::{Budget, Plan, Row, Section};

/// How many packets there are, about.
const PACKETS: u64 = 1_000_000;

/// The budget: packets a second,
const ENOUGH: f64 = 500_000.0;

/// and if each of them is SIP: a million packets in ten seconds.
const ENOUGH_SIP: f64 = 100_000.0;

/// Registrations, keepalives and calls of two thousand phones, without and with what is said in the
/// calls.
const CASES: [(&str, u32, Budget); 2] = [
    ("replay, signalling alone", 0, Budget::AtLeast(ENOUGH_SIP)),
    ("replay, calls with their media", 250, Budget::AtLeast(ENOUGH)),
];

/// The section.
pub(crate) fn run(plan: &Plan) -> Result<Section> {
    let rounds = if plan.quick { 1 } else { 3 };
    let rows = CASES.iter().map(|(name, media, budget)| row(name, *media, *budget, rounds));
    Ok(Section {
        letter: 'g',
        title: "Packets of a capture replayed per second",
        rows: rows.collect::<Result<_>>()?,
        remarks: vec![
            format!(
                "{rounds} rounds of the whole command, loading its programs and guessing the \
                 registrar included; a capture \
                 of about {PACKETS} packets that is in the page cache."
            ),
            "Each packet to or from a SIP port, but for provisional answers, is one \
             BPF_PROG_TEST_RUN; all others are told \
             apart in user space by the kernel's own parser."
                .to_owned(),
        ],
    })
}

fn row(name: &str, media: u32, budget: Budget, rounds: usize) -> Result<Row> {
    let mix = |length| Mix {
        length,
        phones: 2_000,
        registers: Duration::from_secs(300),
        keepalives: Duration::from_secs(60),
        calls: Duration::from_secs(600),
        media,
        attackers: true,
    };
    // As long as it takes for that many packets.
    let minute = Duration::from_secs(600);
    let in_a_minute = mix(minute).packets().len() as u64;
    let packets = mix(minute.mul_f64(PACKETS as f64 / in_a_minute as f64)).packets();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("mix.pcap");
    fs::write(&file, pcap(Cover::Ethernet, &packets))
        .with_context(|| format!("cannot write {}", file.display()))?;
    let (mut samples, mut note) = (Vec::new(), String::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let output = Command::new(binary()?)
            .args(["replay", "--json"])
            .arg(&file)
            .stderr(Stdio::inherit())
            .output()?;
        samples.push(packets.len() as f64 / start.elapsed().as_secs_f64());
        let report: Value =
            serde_json::from_slice(&output.stdout).context("`replay --json` printed no JSON")?;
        anyhow::ensure!(
            report["capture"]["packets"] == packets.len(),
            "not all packets were replayed"
        );
        anyhow::ensure!(
            report["registrar"]["networks"][0] == SERVER.ip().to_string(),
            "another registrar was guessed"
        );
        let (arrived, left) = (&report["capture"]["arrived"], &report["capture"]["left"]);
        note = format!(
            "{} packets, of which {arrived} arrived at SIP ports and {left} left them",
            packets.len()
        );
    }
    Ok(Row {
        name: name.to_owned(),
        populated: "2,000 phones".to_owned(),
        unit: "packets/s",
        samples,
        baseline: None,
        budget: Some(budget),
        note,
    })
}
