//! One address or network per line with its number of reports, separated by a tab or blanks.

use super::list::refuse_other_formats;
use super::{Format, Line, Lines, Reading, Word, reason};

pub(super) struct Counts;

impl Format for Counts {
    fn name(&self) -> &'static str {
        "counts"
    }

    fn words(&self) -> &'static str {
        "an address, a tab, and how many have reported it; `min_count` leaves out what fewer have"
    }

    fn has_counts(&self) -> bool {
        true
    }

    fn detects(&self, start: &super::Start) -> bool {
        start.is_mostly(|line| row(line).is_some_and(|(entry, _)| Word::read(entry).is_entry()))
    }

    fn read(&self, lines: &mut Lines<'_>, reading: &mut Reading) -> Result<(), String> {
        let mut is_first = true;
        while let Some((number, line)) = lines.next()? {
            let Line::Whole(text) = &line else {
                reading.malformed("", number);
                continue;
            };
            let text = text.trim_ascii();
            if text.starts_with(['#', ';']) {
                reading.comment(text);
                continue;
            }
            if text.is_empty() {
                continue;
            }
            if std::mem::take(&mut is_first) {
                refuse_other_formats(text)?;
            }
            match row(text) {
                Some((_, count)) if count < reading.limits.min_count => {
                    reading.parsed.tally.skip(reason::BELOW_MIN_COUNT);
                }
                Some((entry, _)) => reading.take(entry, number)?,
                None => reading.malformed(text, number),
            }
        }
        Ok(())
    }
}

/// The entry of a line, and its count.
fn row(line: &str) -> Option<(&str, u32)> {
    let bare = line.split(['#', ';']).next().unwrap_or_default();
    let mut columns =
        bare.split(|c: char| c.is_ascii_whitespace() || c == ',').filter(|word| !word.is_empty());
    let (entry, count) = (columns.next()?, columns.next()?);
    let count =
        count.bytes().all(|byte| byte.is_ascii_digit()).then(|| count.parse().ok()).flatten()?;
    columns.next().is_none().then_some((entry, count))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{limits, networks, read, read_with};
    use super::*;
    use crate::config::FeedFormat as Name;

    const TEXT: &[u8] = b"# counts\n192.0.2.1\t11\n192.0.2.2\t3\n192.0.2.3\t2\n192.0.2.4\n";

    #[test]
    fn entries_with_few_reports_are_left_out() {
        let limits = super::super::Limits { min_count: 3, ..limits() };
        for format in [Name::Counts, Name::Auto] {
            let parsed = read_with(format, TEXT, &limits).unwrap();
            assert_eq!(networks(&parsed), ["192.0.2.1", "192.0.2.2"]);
            assert_eq!(parsed.format, "counts");
            let tally = &parsed.tally;
            assert_eq!((tally.count(reason::BELOW_MIN_COUNT), tally.first_malformed), (1, Some(5)));
        }
        assert_eq!(
            read(Name::Auto, TEXT).unwrap().networks.len(),
            3,
            "without min_count all of them"
        );
        let error = read_with(Name::Auto, b"192.0.2.1\n", &limits).unwrap_err();
        assert!(error.contains("has no counts") && error.contains("list"), "{error}");
    }
}
