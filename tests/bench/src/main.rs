//! The benchmark: sip-xdp beside other filters for the same packets, in one run: every figure is a
//! ratio to a baseline measured in the same round. A missed target is a result, not a failure.
//!
//! Everything happens in network namespaces that this program creates; nothing is left when it
//! ends.

mod contenders;
mod guesses;
mod host;
mod json;
mod latency;
mod lists;
mod machine;
mod networks;
mod paths;
mod plot;
mod rates;
mod replay;
mod report;
mod storm;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use sip_xdp_tests::require_root;
use sip_xdp_tests::supervise::{Aftermath, is_worker, supervise};

use crate::machine::Machine;
use crate::report::{Plan, Section};

#[derive(Parser)]
#[command(name = "bench", about = "Measures sip-xdp beside other filters")]
struct Arguments {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Only these sections, by their letters
    #[arg(long, value_delimiter = ',', value_name = "LETTERS")]
    section: Vec<char>,
    /// Where tables, figures and plots are left
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    output: PathBuf,
    /// What is measured, for the report
    #[arg(long, hide = true)]
    commit: Option<String>,
}

/// A section before it is run.
struct Measurement {
    letter: char,
    /// The name of its module, and of its files.
    name: &'static str,
    run: fn(&Plan) -> Result<Section>,
}

/// All of them, in the order in which they are run.
const MEASUREMENTS: [Measurement; 8] = [
    Measurement { letter: 'a', name: "paths", run: paths::run },
    Measurement { letter: 'b', name: "rates", run: rates::run },
    Measurement { letter: 'c', name: "host", run: host::run },
    Measurement { letter: 'd', name: "latency", run: latency::run },
    Measurement { letter: 'e', name: "lists", run: lists::run },
    Measurement { letter: 'f', name: "storm", run: storm::run },
    Measurement { letter: 'g', name: "replay", run: replay::run },
    Measurement { letter: 'h', name: "guesses", run: guesses::run },
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result =
        require_root().and_then(|()| if is_worker() { measure(&arguments) } else { watch() });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the measurements in a child, and cleans up even if that is killed.
fn watch() -> Result<bool> {
    let Aftermath { status, remains } = supervise()?;
    if !remains.is_empty() {
        eprintln!("bench: left behind, and removed now: {}", remains.join(", "));
    }
    Ok(status.success() && remains.is_empty())
}

/// Whether every section could be measured.
fn measure(arguments: &Arguments) -> Result<bool> {
    let chosen = choose(&arguments.section)?;
    let plan = Plan { quick: arguments.quick };
    let machine = Machine::find(arguments.commit.clone())?;
    let output = &arguments.output;
    fs::create_dir_all(output).with_context(|| format!("cannot make {}", output.display()))?;
    println!("{}\n", machine.describe());

    let mut sections = Vec::new();
    let mut failed = Vec::new();
    for measurement in chosen {
        eprintln!("bench: section {} ({}) is being measured", measurement.letter, measurement.name);
        let start = Instant::now();
        match (measurement.run)(&plan) {
            Ok(section) => {
                println!(
                    "{}\n  measured in {:.0} s\n",
                    table::text(&section),
                    start.elapsed().as_secs_f64()
                );
                plot::draw(
                    &section,
                    &output.join(format!("{}-{}.svg", section.letter, measurement.name)),
                )?;
                sections.push(section);
                // After each section, so that an interrupted run leaves what it has.
                write(output, plan, &machine, &sections)?;
            }
            Err(error) => {
                eprintln!(
                    "bench: section {} ({}) failed: {error:#}",
                    measurement.letter, measurement.name
                );
                failed.push(measurement.letter);
            }
        }
    }
    summarize(output, &sections);
    Ok(failed.is_empty())
}

/// The sections with these letters; all of them without any.
fn choose(letters: &[char]) -> Result<Vec<&'static Measurement>> {
    if let Some(unknown) =
        letters.iter().find(|letter| MEASUREMENTS.iter().all(|known| known.letter != **letter))
    {
        let known: Vec<_> =
            MEASUREMENTS.iter().map(|known| format!("{} ({})", known.letter, known.name)).collect();
        bail!("there is no section {unknown}; there are {}", known.join(", "));
    }
    Ok(MEASUREMENTS
        .iter()
        .filter(|known| letters.is_empty() || letters.contains(&known.letter))
        .collect())
}

fn write(output: &Path, plan: Plan, machine: &Machine, sections: &[Section]) -> Result<()> {
    let mut text = serde_json::to_string_pretty(&json::document(plan, machine, sections))?;
    text.push('\n');
    let tables: Vec<_> = sections.iter().map(table::markdown).collect();
    let tables = format!("{}\n\n{}", machine.describe(), tables.join("\n"));
    for (name, content) in [("bench.json", text), ("bench.md", tables)] {
        let file = output.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn summarize(output: &Path, sections: &[Section]) {
    let budgets = sections
        .iter()
        .flat_map(|section| &section.rows)
        .filter(|row| row.budget.is_some())
        .count();
    let missed: Vec<_> = sections.iter().flat_map(table::missed).collect();
    let failed =
        sections.iter().flat_map(|section| section.rows.iter().map(|row| (section.letter, row)));
    for (letter, row) in failed.filter(|(_, row)| row.samples.is_empty()) {
        println!("NOT MEASURED: {letter} {}: {}", row.name, row.note);
    }
    println!("{} of {budgets} budgets are met.", budgets - missed.len());
    for line in missed {
        println!("  {line}");
    }
    println!("Figures, tables and plots: {}", output.display());
}
