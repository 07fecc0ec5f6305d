//! Spamhaus DROP: a JSON object a line, the last of which says how many there were; or the old text, `NETWORK ; SBL...`.

use std::io::BufRead;

use serde::Deserialize;

use super::list::refuse_other_formats;
use super::{Lines, Reading, text};

#[derive(Deserialize)]
struct Record {
    cidr: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    records: Option<u64>,
}

pub(super) fn read(lines: &mut Lines<impl BufRead>, reading: &mut Reading) -> Result<(), String> {
    let (mut is_first, mut is_json, mut records) = (true, false, 0_u64);
    let mut announced = None;
    while let Some((number, line)) = lines.next()? {
        let Some(line) = text(&line) else {
            reading.parsed.tally.malformed(number);
            continue;
        };
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        if std::mem::take(&mut is_first) {
            is_json = line.starts_with('{');
            if !is_json {
                refuse_other_formats(line)?;
            }
        }
        if !is_json {
            reading.take(line.split([';', '#']).next().unwrap_or_default().trim_ascii(), number)?;
            continue;
        }
        match serde_json::from_str::<Record>(line) {
            Ok(Record { cidr: Some(network), .. }) => {
                records += 1;
                reading.take(&network, number)?;
            }
            Ok(Record { kind: Some(kind), records, .. }) if kind == "metadata" => announced = records,
            _ => reading.parsed.tally.malformed(number),
        }
    }
    match announced {
        Some(announced) if announced != records => {
            Err(format!("it announces {announced} records and has {records}; some are missing"))
        }
        _ => Ok(()),
    }
}
