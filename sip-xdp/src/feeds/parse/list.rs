//! One address or network a line; `#` and `;` start comments.

use std::io::BufRead;

use super::{Lines, Reading, text};

pub(super) fn read(lines: &mut Lines<impl BufRead>, reading: &mut Reading) -> Result<(), String> {
    let mut is_first = true;
    while let Some((number, line)) = lines.next()? {
        let Some(line) = text(&line) else {
            reading.parsed.tally.malformed(number);
            continue;
        };
        let entry = line.split(['#', ';']).next().unwrap_or_default().trim_ascii();
        if entry.is_empty() {
            continue;
        }
        if std::mem::take(&mut is_first) {
            refuse_other_formats(entry)?;
        }
        reading.take(entry, number)?;
    }
    Ok(())
}

/// Tells by its first line what is no list at all.
pub(super) fn refuse_other_formats(first: &str) -> Result<(), String> {
    match first.as_bytes() {
        [b'<', ..] => Err("it is HTML or XML, not a list".to_owned()),
        [b'{' | b'[', ..] => Err("it is JSON, not a list of lines".to_owned()),
        _ => Ok(()),
    }
}
