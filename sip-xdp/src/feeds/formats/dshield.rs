//! DShield's block list: first address, last address, prefix, and more, separated by tabs; `#`
//! starts comments.

use std::net::Ipv4Addr;

use super::list::refuse_other_formats;
use super::{Format, Line, Lines, Reading};

pub(super) struct Dshield;

impl Format for Dshield {
    fn name(&self) -> &'static str {
        "dshield"
    }

    fn words(&self) -> &'static str {
        "DShield: first address, last address and prefix, between tabs"
    }

    fn detects(&self, start: &super::Start) -> bool {
        start.is_mostly(|line| network(line).is_some())
    }

    fn read(&self, lines: &mut Lines<'_>, reading: &mut Reading) -> Result<(), String> {
        let mut is_first = true;
        while let Some((number, line)) = lines.next()? {
            let Line::Whole(text) = &line else {
                reading.malformed("", number);
                continue;
            };
            let line = text.trim_ascii();
            if line.starts_with('#') {
                reading.comment(line);
                continue;
            }
            // The column heads.
            if line.is_empty() || line.starts_with("Start") {
                continue;
            }
            if std::mem::take(&mut is_first) {
                refuse_other_formats(line)?;
            }
            match network(line) {
                Some(network) => reading.take(&network, number)?,
                None => reading.malformed(line, number),
            }
        }
        Ok(())
    }
}

/// The network of a line, if its first three columns agree.
fn network(line: &str) -> Option<String> {
    let mut columns = line.split_ascii_whitespace();
    let first: Ipv4Addr = columns.next()?.parse().ok()?;
    let last: Ipv4Addr = columns.next()?.parse().ok()?;
    let prefix: u8 = columns.next()?.parse().ok()?;
    let rest = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    (prefix <= 32 && u32::from(first) | rest == u32::from(last))
        .then(|| format!("{first}/{prefix}"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{networks, read};
    use crate::config::FeedFormat;

    #[test]
    fn columns_must_agree() {
        let text = "# DShield\nStart\tEnd\tNetmask\n\
                    192.0.2.0\t192.0.2.255\t24\t5000\tNAME\tZZ\tmail\n\
                    198.51.100.0\t198.51.100.255\t24\n203.0.113.0\t203.0.113.127\t24\n";
        let parsed = read(FeedFormat::Dshield, text.as_bytes()).unwrap();
        assert_eq!(networks(&parsed), ["192.0.2.0/24", "198.51.100.0/24"]);
        assert_eq!(parsed.tally.first_malformed, Some(5));
        let whole = text.replace("203.0.113.0\t203.0.113.127", "203.0.113.0\t203.0.113.255");
        let parsed = read(FeedFormat::Auto, whole.as_bytes()).unwrap();
        assert_eq!((parsed.format, parsed.networks.len()), ("dshield", 3));
    }
}
