//! Section e: time to load lists, and resource usage of the daemon.

mod daemon;
mod load;
mod peers;

use anyhow::Result;

use crate::report::{Budget, Plan, Row, Section};

const MILLION: u32 = 1_000_000;

/// The section.
pub(crate) fn run(plan: &Plan) -> Result<Section> {
    let mut rows = load::rows(plan)?;
    rows.extend(peers::rows(plan));
    rows.extend(daemon::rows(plan)?);
    let mut remarks = load::remarks();
    remarks.push(
        "The other filters read the same hosts once, each from a file in its own format; the LPM \
         trie of the kernel is \
         filled from memory, one by one."
            .to_owned(),
    );
    remarks.push(
        "The daemon is the binary that users run. Its CPU is its share of one core, by the \
         kernel's account; floods come \
         as fast as one core makes them."
            .to_owned(),
    );
    Ok(Section {
        letter: 'e',
        title: "Lists: loading them, and what the daemon uses",
        rows,
        remarks,
    })
}

/// A row that is compared with nothing.
fn row(
    name: String,
    unit: &'static str,
    samples: Vec<f64>,
    budget: Option<Budget>,
    note: String,
) -> Row {
    Row { name, populated: String::new(), unit, samples, baseline: None, budget, note }
}
