//! Section a: nanoseconds per packet, path by path, under BPF_PROG_TEST_RUN.

mod cases;
mod turns;

use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};

use crate::paths::cases::{Case, cases};
use crate::report::{Plan, Row, Section};

/// So many runs are all sampled, as long as nothing of their sources was seen for some seconds.
const AT_FIRST: u32 = 50_000;

/// The section.
pub(crate) fn run(plan: &Plan) -> Result<Section> {
    let (rounds, repeat) = if plan.quick { (3, 200_000) } else { (9, 500_000) };
    let bench = cases()?;
    let mut samples = vec![Vec::new(); bench.len()];
    for case in &bench {
        case.check()
            .with_context(|| format!("{}: this is not the path that was meant", case.name))?;
    }
    for _ in 0..rounds {
        for (case, samples) in bench.iter().zip(&mut samples) {
            if case.is_rested {
                samples.push(case.time(AT_FIRST)?);
            } else {
                case.time(repeat / 4)?;
                samples.push(case.time(repeat)?);
            }
        }
    }
    let rows = bench.iter().zip(&samples).map(|(case, own)| {
        // What the empty program costs, run in the same way in the same round, is not the filter's.
        let empty = case.empty.and_then(|name| bench.iter().position(|other| other.name == name));
        let samples = match empty {
            Some(empty) => {
                own.iter().zip(&samples[empty]).map(|(own, empty)| own - empty).collect()
            }
            None => own.clone(),
        };
        Row {
            name: case.name.to_owned(),
            populated: case.populated.clone(),
            unit: "ns",
            samples,
            baseline: case.baseline.map(str::to_owned),
            budget: case.budget,
            note: case.empty.map(|name| format!("over \"{name}\"")).unwrap_or_default(),
        }
    });
    Ok(Section {
        letter: 'a',
        title: "Nanoseconds per packet, by path",
        rows: rows.collect(),
        remarks: vec![
            format!(
                "{rounds} rounds, each of {repeat} runs for every path in turn, by the kernel's \
                 own clock, after a quarter as \
                 many that are not measured: caches are warm, and what the daemon is given to see \
                 in the first moment, 1,000 \
                 samples from each of 64 slices of all sources, is spent. \"At first\" is that \
                 moment."
            ),
            "A path's cost is that of the whole program, from entry to exit, less the row that its \
             note names: an empty \
             program that was run in the same way. Where sources vary, that row includes varying \
             them."
                .to_owned(),
            "\"Full\" is 1,000,000 feed entries, 100 trusted networks and 1,000 bans, IPv6, VLAN \
             tags and PPPoE on."
                .to_owned(),
        ],
    })
}

/// Average of so many runs, in nanoseconds.
fn average(program: &Xdp, frame: &[u8], repeat: u32) -> Result<(Duration, u32)> {
    let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
    let result = program.test_run(options).context("a test run failed")?;
    Ok((result.duration, result.return_value))
}

impl Case {
    /// Whether packets go where they should: the second one, since the first may be within a limit.
    fn check(&self) -> Result<()> {
        let (_, action) = average(self.program()?, &self.frame, 2)?;
        anyhow::ensure!(action == self.action, "the program returns {action}, not {}", self.action);
        Ok(())
    }

    fn time(&self, repeat: u32) -> Result<f64> {
        let (average, _) = average(self.program()?, &self.frame, repeat)?;
        Ok(average.as_nanos() as f64)
    }
}
