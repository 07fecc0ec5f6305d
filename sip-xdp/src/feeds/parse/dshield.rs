//! DShield's block list: the first address, the last, the prefix, and more, between tabs; `#` starts comments.

use std::io::BufRead;
use std::net::Ipv4Addr;

use super::list::refuse_other_formats;
use super::{Lines, Reading, text};

pub(super) fn read(lines: &mut Lines<impl BufRead>, reading: &mut Reading) -> Result<(), String> {
    let mut is_first = true;
    while let Some((number, line)) = lines.next()? {
        let Some(line) = text(&line) else {
            reading.parsed.tally.malformed(number);
            continue;
        };
        // The heads of the columns.
        if line.is_empty() || line.starts_with('#') || line.starts_with("Start") {
            continue;
        }
        if std::mem::take(&mut is_first) {
            refuse_other_formats(line)?;
        }
        match network(line) {
            Some(network) => reading.take(&network, number)?,
            None => reading.parsed.tally.malformed(number),
        }
    }
    Ok(())
}

/// The network of a line whose three first columns agree.
fn network(line: &str) -> Option<String> {
    let mut columns = line.split('\t').map(str::trim_ascii);
    let first: Ipv4Addr = columns.next()?.parse().ok()?;
    let last: Ipv4Addr = columns.next()?.parse().ok()?;
    let prefix: u8 = columns.next()?.parse().ok()?;
    let rest = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    (prefix <= 32 && u32::from(first) | rest == u32::from(last)).then(|| format!("{first}/{prefix}"))
}
