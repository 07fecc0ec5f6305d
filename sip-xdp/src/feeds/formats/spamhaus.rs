//! Spamhaus DROP: one JSON object per line, the last with the number of entries; or the older text,
//! `NETWORK ; SBL...`.

use serde::Deserialize;

use super::list::refuse_other_formats;
use super::{Format, Line, Lines, Reading};

#[derive(Deserialize)]
struct Record {
    cidr: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    records: Option<u64>,
}

pub(super) struct Spamhaus;

impl Format for Spamhaus {
    fn name(&self) -> &'static str {
        "spamhaus"
    }

    fn words(&self) -> &'static str {
        "Spamhaus DROP: a JSON object a line, or the text that came before"
    }

    fn detects(&self, start: &super::Start) -> bool {
        start.is_mostly(|line| {
            serde_json::from_str::<Record>(line).is_ok_and(|record| record.cidr.is_some())
        })
    }

    fn read(&self, lines: &mut Lines<'_>, reading: &mut Reading) -> Result<(), String> {
        let (mut is_first, mut is_json, mut records) = (true, false, 0_u64);
        let mut announced = None;
        while let Some((number, line)) = lines.next()? {
            let Line::Whole(text) = &line else {
                reading.malformed("", number);
                continue;
            };
            let line = text.trim_ascii();
            if line.starts_with([';', '#']) {
                reading.comment(line);
                continue;
            }
            if line.is_empty() {
                continue;
            }
            if std::mem::take(&mut is_first) {
                is_json = line.starts_with('{');
                if !is_json {
                    refuse_other_formats(line)?;
                }
            }
            if !is_json {
                reading
                    .take(line.split([';', '#']).next().unwrap_or_default().trim_ascii(), number)?;
                continue;
            }
            match serde_json::from_str::<Record>(line) {
                Ok(Record { cidr: Some(network), .. }) => {
                    records += 1;
                    reading.take(&network, number)?;
                }
                Ok(Record { kind: Some(kind), records, .. }) if kind == "metadata" => {
                    announced = records
                }
                _ => reading.malformed("", number),
            }
        }
        match announced {
            Some(announced) if announced != records => {
                Err(format!("it announces {announced} records and has {records}; some are missing"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{networks, read};
    use crate::config::FeedFormat;

    #[test]
    fn both_shapes() {
        let json = "{\"cidr\":\"192.0.2.0/24\",\"sblid\":\"SBL1\",\"rir\":\"ripe\"}\n\
                    {\"cidr\":\"2001:db8::/32\"}\n{\"cidr\":\"198.51.100.0/24\"}\n\
                    {\"type\":\"metadata\",\"timestamp\":1,\"records\":3}\n";
        for format in [FeedFormat::Spamhaus, FeedFormat::Auto] {
            let parsed = read(format, json.as_bytes()).unwrap();
            assert_eq!(networks(&parsed), ["192.0.2.0/24", "2001:db8::/32", "198.51.100.0/24"]);
            assert_eq!(parsed.format, "spamhaus");
        }
        let cut = json.replace("{\"cidr\":\"2001:db8::/32\"}\n", "");
        let error = read(FeedFormat::Spamhaus, cut.as_bytes()).unwrap_err();
        assert!(error.contains("announces 3 records and has 2"), "{error}");
        let text = "; Spamhaus DROP List\n192.0.2.0/24 ; SBL256894\n198.51.100.0/24 ; \
                    SBL2\nnonsense ; SBL3\n";
        let parsed = read(FeedFormat::Spamhaus, text.as_bytes()).unwrap();
        assert_eq!(networks(&parsed), ["192.0.2.0/24", "198.51.100.0/24"]);
        assert_eq!(parsed.tally.first_malformed, Some(4));
    }
}
