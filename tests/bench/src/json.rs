//! The report for programs: `"schema": 1`, fields are added, never renamed.

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::report::{Budget, Judgement, Plan, Row, Section};

/// The whole run.
pub(crate) fn document(plan: Plan, machine: &Machine, sections: &[Section]) -> Value {
    json!({
        "schema": 1,
        "time": machine.time,
        "commit": machine.commit,
        "machine": { "cpu": machine.cpu, "cores": machine.cores, "kernel": machine.kernel },
        "quick": plan.quick,
        "sections": sections.iter().map(section).collect::<Vec<_>>(),
    })
}

fn section(section: &Section) -> Value {
    json!({
        "letter": section.letter.to_string(),
        "title": section.title,
        "rows": section.rows.iter().map(|row| one_row(section, row)).collect::<Vec<_>>(),
        "remarks": section.remarks,
    })
}

fn one_row(section: &Section, row: &Row) -> Value {
    let summary = row.summary();
    json!({
        "name": row.name,
        "populated": row.populated,
        "unit": row.unit,
        "samples": row.samples,
        "min": summary.map(|summary| summary.min),
        "median": summary.map(|summary| summary.median),
        "max": summary.map(|summary| summary.max),
        "baseline": row.baseline,
        "ratio": section.ratio(row),
        "budget": section.judge(row).as_ref().map(budget),
        "note": row.note,
    })
}

fn budget(judgement: &Judgement) -> Value {
    let kind = match judgement.budget {
        Budget::RatioAtLeast(_) => "ratio_at_least",
        Budget::RatioAtMost(_) => "ratio_at_most",
        Budget::AtMost(_) => "at_most",
        Budget::AtLeast(_) => "at_least",
        Budget::OverBaselineAtMost(_) => "over_baseline_at_most",
    };
    json!({
        "kind": kind,
        "limit": judgement.budget.limit(),
        "reached": judgement.reached,
        "met": judgement.is_met(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_samples_ratios_and_verdicts() {
        let row = |name: &str, samples: &[f64], budget| Row {
            name: name.to_owned(),
            populated: "nothing".to_owned(),
            unit: "Mpps",
            samples: samples.to_vec(),
            baseline: Some("base".to_owned()),
            budget,
            note: String::new(),
        };
        let rows = vec![
            row("base", &[4.0, 6.0], None),
            row("ours", &[2.0, 3.0], Some(Budget::RatioAtLeast(0.75))),
        ];
        let section = Section { letter: 'x', title: "test", rows, remarks: Vec::new() };
        let machine = Machine {
            cpu: "a CPU".to_owned(),
            cores: 2,
            kernel: "6.18".to_owned(),
            time: "2026-01-01T00:00:00Z".to_owned(),
            commit: None,
        };
        let document = document(Plan { quick: true }, &machine, &[section]);
        assert_eq!(document["schema"], 1);
        assert_eq!(document["machine"]["cores"], 2);
        let ours = &document["sections"][0]["rows"][1];
        assert_eq!(ours["samples"], json!([2.0, 3.0]));
        assert_eq!((&ours["median"], &ours["ratio"]), (&json!(2.5), &json!(0.5)));
        let expected =
            json!({ "kind": "ratio_at_least", "limit": 0.75, "reached": 0.5, "met": false });
        assert_eq!(ours["budget"], expected);
    }
}
