//! The report for people: an aligned table for the terminal, and the same in Markdown.

use std::fmt::Write as _;

use crate::report::{Budget, Judgement, Row, Section};

const HEADER: [&str; 8] =
    ["candidate", "populated", "min", "median", "max", "unit", "ratio", "budget"];
/// The columns of numbers.
const RIGHT: [usize; 4] = [2, 3, 4, 6];

/// A section for the terminal.
pub(crate) fn text(section: &Section) -> String {
    let mut cells = vec![HEADER.map(str::to_owned)];
    cells.extend(section.rows.iter().map(|row| cells_of(section, row)));
    let width =
        |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; HEADER.len()] = std::array::from_fn(width);
    let mut text = format!("{}  {}\n\n", section.letter, section.title);
    for row in &cells {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // A column without content takes no room.
            if widths[column] == 0 {
                continue;
            }
            let _ = if RIGHT.contains(&column) {
                write!(line, "  {cell:>width$}")
            } else {
                write!(line, "  {cell:<width$}")
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push('\n');
    for row in section.rows.iter().filter(|row| !row.note.is_empty()) {
        let _ = writeln!(text, "  {}: {}", row.name, row.note);
    }
    for remark in &section.remarks {
        let _ = writeln!(text, "  - {remark}");
    }
    text
}

/// A section as a Markdown table.
pub(crate) fn markdown(section: &Section) -> String {
    let mut text = format!("### {}\n\n| {} |\n|", section.title, HEADER.join(" | "));
    for column in 0..HEADER.len() {
        text.push_str(if RIGHT.contains(&column) { "---:|" } else { "---|" });
    }
    text.push('\n');
    for row in &section.rows {
        let cells = cells_of(section, row).map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    for remark in &section.remarks {
        let _ = write!(text, "\n- {remark}");
    }
    if !section.remarks.is_empty() {
        text.push('\n');
    }
    text
}

/// Targets not met, one line each.
pub(crate) fn missed(section: &Section) -> Vec<String> {
    let judged = section.rows.iter().filter_map(|row| Some((row, section.judge(row)?)));
    judged
        .filter(|(_, judgement)| !judgement.is_met())
        .map(|(row, judgement)| {
            format!("{} {}: {}", section.letter, row.name, verdict(&judgement, row.unit))
        })
        .collect()
}

/// A number with three significant digits, and commas between thousands.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 999.5 => thousands(value.round() as i64),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A whole number with commas between thousands.
pub(crate) fn thousands(value: impl Into<i128>) -> String {
    let value = value.into();
    let digits = value.unsigned_abs().to_string();
    let mut text = String::from(if value < 0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn cells_of(section: &Section, row: &Row) -> [String; HEADER.len()] {
    let [min, median, max] = match row.summary() {
        Some(summary) => [summary.min, summary.median, summary.max].map(number),
        None => ["-".to_owned(), "FAILED".to_owned(), "-".to_owned()],
    };
    let ratio = section.ratio(row).map_or_else(String::new, |ratio| format!("{ratio:.3}"));
    let budget =
        section.judge(row).map_or_else(String::new, |judgement| verdict(&judgement, row.unit));
    [row.name.clone(), row.populated.clone(), min, median, max, row.unit.to_owned(), ratio, budget]
}

/// "met: at least 0.88 of the baseline", or "MISSED by 0.12: ...".
fn verdict(judgement: &Judgement, unit: &str) -> String {
    let demand = match judgement.budget {
        Budget::RatioAtLeast(limit) => format!("at least {limit} of the baseline"),
        Budget::RatioAtMost(limit) => format!("at most {limit} of the baseline"),
        Budget::AtMost(limit) => format!("at most {} {unit}", number(limit)),
        Budget::AtLeast(limit) => format!("at least {} {unit}", number(limit)),
        Budget::OverBaselineAtMost(limit) => {
            format!("at most {} {unit} over the baseline", number(limit))
        }
    };
    match judgement.reached {
        _ if judgement.is_met() => format!("met: {demand}"),
        Some(reached) => {
            format!("MISSED by {}: {demand}", number((reached - judgement.budget.limit()).abs()))
        }
        None => format!("MISSED, not measured: {demand}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let cases = [
            (0.0, "0.000"),
            (0.9994, "0.999"),
            (1.0, "1.00"),
            (9.994, "9.99"),
            (10.0, "10.0"),
            (99.96, "100"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(1_234_567.8), "1,234,568");
        assert_eq!(number(-12.34), "-12.3");
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(-1000), "-1,000");
        assert_eq!(thousands(999_u64), "999");
    }

    #[test]
    fn says_by_how_much_a_budget_is_missed() {
        let row = |name: &str, sample: f64, budget| Row {
            name: name.to_owned(),
            populated: "a|b".to_owned(),
            unit: "Mpps",
            samples: vec![sample],
            baseline: Some("base".to_owned()),
            budget,
            note: "noted".to_owned(),
        };
        let section = Section {
            letter: 'x',
            title: "test",
            rows: vec![row("base", 10.0, None), row("ours", 8.0, Some(Budget::RatioAtLeast(0.88)))],
            remarks: vec!["a remark".to_owned()],
        };
        assert_eq!(missed(&section), ["x ours: MISSED by 0.080: at least 0.88 of the baseline"]);
        let text = text(&section);
        assert!(
            text.contains("ours: noted") && text.contains("- a remark") && text.contains("0.800"),
            "{text}"
        );
        assert!(
            markdown(&section)
                .contains("| ours | a\\|b | 8.00 | 8.00 | 8.00 | Mpps | 0.800 | MISSED")
        );
    }
}
