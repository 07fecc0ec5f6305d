//! Output: JSON on request, tables for people, colour only on a terminal.

use std::io::{IsTerminal, Write, stdout};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};
use sip_xdp::dataplane::counters::SCHEMA;
use sip_xdp::text;

/// The start of a terminal control sequence.
const ESCAPE: char = '\u{1b}';

/// The rest of it for green, red, and reset.
const GOOD: &str = "[32m";
const BAD: &str = "[31m";
const NONE: &str = "[0m";

/// Output settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// As JSON.
    pub(crate) json: bool,
    colour: bool,
}

impl Output {
    /// To standard output.
    pub(crate) fn new(json: bool) -> Self {
        let colour = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colour }
    }

    /// Prints `value` as JSON, or as `text` formats it. A closed pipe is no error.
    pub(crate) fn print<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        let mut printed =
            if self.json { text::json(&json(value)?) } else { shown(&text(value), self.colour) };
        if !printed.is_empty() && !printed.ends_with('\n') {
            printed.push('\n');
        }
        match stdout().lock().write_all(printed.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// `text` in green.
    pub(crate) fn good(&self, text: &str) -> String {
        self.paint(GOOD, text)
    }

    /// `text` in red.
    pub(crate) fn bad(&self, text: &str) -> String {
        self.paint(BAD, text)
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("{ESCAPE}{colour}{text}{ESCAPE}{NONE}") } else { text.to_owned() }
    }
}

/// Text without terminal control sequences, except for our own colours.
fn shown(text: &str, colour: bool) -> String {
    let mut parts = text.split(ESCAPE);
    let mut shown = text::lines(parts.next().unwrap_or_default());
    for part in parts {
        let ours = [GOOD, BAD, NONE].into_iter().find(|ours| colour && part.starts_with(ours));
        let rest = ours.and_then(|ours| part.strip_prefix(ours));
        match (ours, rest) {
            (Some(ours), Some(rest)) => {
                shown.push_str(&format!("{ESCAPE}{ours}{}", text::lines(rest)))
            }
            _ => shown.push_str(&format!("\u{fffd}{}", text::lines(part))),
        }
    }
    shown
}

/// JSON in which every object starts with the schema number.
fn json<T: Serialize>(value: &T) -> Result<String> {
    let value = match serde_json::to_value(value)? {
        Value::Object(fields) if !fields.contains_key("schema") => {
            let mut with_schema = Map::from_iter([("schema".to_owned(), SCHEMA.into())]);
            with_schema.extend(fields);
            Value::Object(with_schema)
        }
        other => other,
    };
    Ok(serde_json::to_string_pretty(&value)?)
}

/// A table; numbers are right-aligned. Cells are single lines.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| text::line(cell)).collect()).collect();
    let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let numeric: Vec<bool> = (0..heads.len())
        .map(|column| {
            !rows.is_empty()
                && rows.iter().all(|row| row[column].bytes().all(|b| b.is_ascii_digit()))
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (column, cell) in cells.enumerate() {
            let padding = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            if numeric[column] {
                line.push_str(&padding);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&padding);
            }
            line.push_str("  ");
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&mut heads.iter().copied());
    for row in &rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_carry_the_schema_and_arrays_do_not() {
        assert_eq!(
            json(&serde_json::json!({ "a": 1 })).unwrap(),
            "{\n  \"schema\": 1,\n  \"a\": 1\n}"
        );
        assert_eq!(json(&serde_json::json!([1])).unwrap(), "[\n  1\n]");
    }

    #[test]
    fn only_our_own_colours_get_to_the_terminal() {
        let output = Output { json: false, colour: true };
        let text = format!("{} a\u{1b}]0;x\u{7}\u{1b}[2Jb\u{9b}1m\n", output.good("yes"));
        let sanitised = " a\u{fffd}]0;x\u{fffd}\u{fffd}[2Jb\u{fffd}1m\n";
        assert_eq!(shown(&text, true), format!("\u{1b}[32myes\u{1b}[0m{sanitised}"));
        assert_eq!(shown("a\u{1b}[31mb", false), "a\u{fffd}[31mb");
        assert_eq!(
            table(&["A"], &[vec!["x\u{1b}[31m\n192.0.2.1".to_owned()]]),
            "A\nx\u{fffd}[31m 192.0.2.1\n"
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["192.0.2.1".to_owned(), "7".to_owned()],
            vec!["::1".to_owned(), "1234".to_owned()],
        ];
        assert_eq!(
            table(&["NETWORK", "HITS"], &rows),
            "NETWORK    HITS\n192.0.2.1     7\n::1        1234\n"
        );
        assert_eq!(table(&["NETWORK", "HITS"], &[]), "NETWORK  HITS\n");
    }
}
