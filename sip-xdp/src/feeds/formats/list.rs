//! Addresses, networks and ranges: one per line, with an optional name or comment, or many,
//! separated by blanks or commas. `#` and `;` start comments.

use super::word::Range;
use super::{Format, Line, Lines, Reading, Word};

pub(super) struct List;

/// A line of at least this many words is a list by itself: an invalid word says nothing about the
/// others.
const ROW: usize = 8;

impl Format for List {
    fn name(&self) -> &'static str {
        "list"
    }

    fn words(&self) -> &'static str {
        "addresses, networks and ranges (`a-b`), one a line or many, names and comments behind them"
    }

    fn read(&self, lines: &mut Lines<'_>, reading: &mut Reading) -> Result<(), String> {
        let mut is_first = true;
        // The line of which a part was a comment, or the name of an entry.
        let mut rest_of = None;
        while let Some((number, line)) = lines.next()? {
            let (text, is_part) = match &line {
                Line::Whole(text) => (text.trim_ascii(), false),
                Line::Part(text) => (text.trim_ascii(), true),
                Line::TooLong => {
                    reading.malformed("", number);
                    continue;
                }
            };
            if text.is_empty() || rest_of == Some(number) {
                continue;
            }
            let entry = text.split(['#', ';']).next().unwrap_or_default();
            if is_part && entry.len() < text.len() {
                rest_of = Some(number);
            }
            if entry.trim_ascii().is_empty() {
                reading.comment(text);
                continue;
            }
            if std::mem::take(&mut is_first) {
                refuse_other_formats(entry.trim_ascii())?;
            }
            if take_row(reading, entry, number, is_part)? && is_part {
                rest_of = Some(number);
            }
        }
        Ok(())
    }
}

/// Takes the entries of a row. Returns whether it is one entry followed by a name.
fn take_row(reading: &mut Reading, row: &str, number: u64, is_part: bool) -> Result<bool, String> {
    let words = words(row);
    let count = words.iter().filter(|word| word.is_entry()).count();
    let is_first = words.first().is_some_and(Word::is_entry);
    if count == words.len()
        || count > 0 && (is_part && count > 1 || words.len() >= ROW && count * 2 > words.len())
    {
        for word in words {
            match word {
                Word::Malformed => reading.malformed("", number),
                word => reading.take_word(word)?,
            }
        }
        return Ok(false);
    }
    if is_first && count == 1 {
        reading.take_word(words[0])?;
        return Ok(true);
    }
    // `Name of a network:192.0.2.0-192.0.2.255`
    let behind = row.rsplit_once(':').map(|(_, range)| Word::read(range.trim_ascii()));
    match behind {
        Some(word @ Word::Range(_)) => reading.take_word(word)?,
        _ => reading.malformed(row, number),
    }
    Ok(false)
}

/// The words of a row. A range may have blanks around its dash.
fn words(row: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let is_between = |c: char| c.is_ascii_whitespace() || c == ',';
    let mut rest = row
        .split(is_between)
        .filter(|word| !word.is_empty())
        .map(|word| word.trim_matches('"'))
        .peekable();
    while let Some(word) = rest.next() {
        if rest.next_if_eq(&"-").is_some() {
            let range = rest.next().and_then(|last| Range::read(word, last));
            words.push(range.map_or(Word::Malformed, Word::Range));
        } else {
            words.push(Word::read(word));
        }
    }
    words
}

/// Recognises by the first line what is no list at all.
pub(super) fn refuse_other_formats(first: &str) -> Result<(), String> {
    match first.as_bytes() {
        [b'<', ..] => Err("it is HTML or XML, not a list".to_owned()),
        [b'{' | b'[', rest @ ..] if !first.starts_with('[') || !is_bracketed_address(rest) => {
            Err("it is JSON, not a list of lines".to_owned())
        }
        _ => Ok(()),
    }
}

/// `[2001:db8::1]` is no JSON.
fn is_bracketed_address(rest: &[u8]) -> bool {
    rest.iter()
        .take_while(|byte| **byte != b']')
        .all(|byte| byte.is_ascii_hexdigit() || *byte == b':')
        && rest.contains(&b':')
}

#[cfg(test)]
mod tests {
    use super::super::reason;
    use super::super::tests::{networks, read};
    use crate::config::FeedFormat;

    #[test]
    fn all_that_people_write() {
        let text = b"\xef\xbb\xbf# comment\r\n; another\r\n192.0.2.1\r\n\r\n  198.51.100.7/24 # \
                    host bits\n\
                     2001:db8::/32 ; v6\n192.0.2.1\n203.0.113.0/24\t\n2001:db8::5";
        let parsed = read(FeedFormat::List, text).unwrap();
        let expected = [
            "192.0.2.1",
            "198.51.100.0/24",
            "2001:db8::/32",
            "192.0.2.1",
            "203.0.113.0/24",
            "2001:db8::5",
        ];
        assert_eq!(networks(&parsed), expected);
        assert_eq!(
            (parsed.tally.host_bits, parsed.tally.skipped.len(), parsed.comments),
            (1, 0, 2)
        );
    }

    #[test]
    fn names_rows_and_ranges() {
        for (line, expected) in [
            ("192.0.2.0/24  Some Country", &["192.0.2.0/24"][..]),
            ("192.0.2.0/24,Some,2026-01-01", &["192.0.2.0/24"]),
            ("192.0.2.1 192.0.2.2 ", &["192.0.2.1", "192.0.2.2"]),
            ("192.0.2.1,192.0.2.2,", &["192.0.2.1", "192.0.2.2"]),
            ("192.0.2.1, 192.0.2.2;both", &["192.0.2.1", "192.0.2.2"]),
            ("192.0.2.0-192.0.2.3", &["192.0.2.0/30"]),
            ("192.000.002.000 - 192.000.002.003 , 000 , a name", &["192.0.2.0/30"]),
            ("Some, Inc: 192.0.2.0-192.0.2.3", &["192.0.2.0/30"]),
            ("\"192.0.2.1\",\"2026-01-01\"", &["192.0.2.1"]),
            // Unknown columns.
            ("192.0.2.0 192.0.2.255 24", &[]),
            ("192.0.2.1 and 192.0.2.2", &[]),
            ("host 192.0.2.1", &[]),
            ("192.0.2.7198.51.100.1", &[]),
            ("[2001:db8::1]", &[]),
            ("2001:db8::1%eth0", &[]),
            ("192.0.2.0/255.255.255.0", &[]),
            ("192.0.2.1:5060", &[]),
            ("192.0.2.1\u{a0}", &[]),
            ("3221225985", &[]),
        ] {
            let text = format!("198.51.100.1\n{line}\n");
            let parsed = read(FeedFormat::List, text.as_bytes()).unwrap();
            assert_eq!(networks(&parsed)[1..], *expected, "{line}");
            let malformed = u64::from(expected.is_empty());
            assert_eq!(parsed.tally.count(reason::MALFORMED), malformed, "{line}");
        }
    }

    #[test]
    fn one_line_of_any_length() {
        let addresses: Vec<_> =
            (0..800).map(|n| format!("198.51.{}.{}", n / 250, n % 250)).collect();
        for between in [" ", ",", ", ", "\t", "\r", "\n", "\r\n"] {
            let mut all = addresses.clone();
            all[700] = "198.51.2.1.".to_owned();
            let parsed = read(FeedFormat::List, all.join(between).as_bytes()).unwrap();
            assert_eq!(parsed.networks.len(), 799, "{between:?}");
            assert_eq!(parsed.tally.count(reason::MALFORMED), 1);
        }
        // A comment extends to the end of its line, whatever its length.
        let comment = format!("# {}\n192.0.2.1", addresses.join(" "));
        assert_eq!(networks(&read(FeedFormat::List, comment.as_bytes()).unwrap()), ["192.0.2.1"]);
        // So does the name behind an entry.
        let name = format!("192.0.2.2 {}\n192.0.2.1", "name ".repeat(2_000));
        assert_eq!(
            networks(&read(FeedFormat::List, name.as_bytes()).unwrap()),
            ["192.0.2.2", "192.0.2.1"]
        );
    }
}
