//! The filter's own decisions, as tests query them.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use jiff::Timestamp;
use serde_json::Value;

use crate::filter::Filter;
use crate::wait_until;

/// A row of the block list owned by the detector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// The banned network, as the list writes it.
    pub network: String,
    /// The port, where only one flow is banned.
    pub port: Option<u16>,
    /// The evidence in words.
    pub reason: String,
    /// `proven` or `unproven`.
    pub tier: String,
    /// Lifetime; `None` for permanent.
    pub lasts: Option<Duration>,
    /// Number of packets dropped.
    pub hits: u64,
}

impl Ban {
    fn read(row: &Value) -> Result<Self> {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let time = |name: &str| row[name].as_str().map(str::parse::<Timestamp>).transpose();
        let lasts = match (time("added")?, time("expires")?) {
            (Some(added), Some(expires)) => Some(expires.duration_since(added).unsigned_abs()),
            _ => None,
        };
        Ok(Self {
            network: text("network"),
            port: row["port"].as_u64().and_then(|port| u16::try_from(port).ok()),
            reason: text("reason"),
            tier: text("tier"),
            lasts,
            hits: row["hits"].as_u64().unwrap_or(0),
        })
    }

    /// Whether it covers the whole address, or this network as the list writes it.
    fn is_of(&self, network: &str) -> bool {
        let whole = [network.to_owned(), format!("{network}/32"), format!("{network}/128")];
        self.port.is_none() && whole.contains(&self.network)
    }
}

impl Filter<'_> {
    /// All bans, of addresses, networks and flows.
    pub fn bans(&self) -> Result<Vec<Ban>> {
        let list = self.json(&["block", "list"])?;
        let rows = list.as_array().context("`block list --json` is no array")?;
        rows.iter().filter(|row| row["owner"] == "auto").map(Ban::read).collect()
    }

    /// The ban of a whole address or network.
    pub fn ban_of(&self, network: &str) -> Result<Option<Ban>> {
        Ok(self.bans()?.into_iter().find(|ban| ban.is_of(network)))
    }

    /// Waits for the ban of a whole address or network.
    pub fn wait_for_ban(&self, network: &str, timeout: Duration) -> Result<Ban> {
        let mut found = None;
        let waited = wait_until(&format!("{network} is banned"), timeout, || {
            found = self.ban_of(network)?;
            Ok(found.is_some())
        });
        waited.map_err(|error| anyhow!("{error:#}; instead: {}", self.decisions()))?;
        found.context("it was just found")
    }

    /// The kind of evidence in the last log line about a ban of a network.
    pub fn ban_kind(&self, network: &str) -> Option<String> {
        let is_of = |line: &str| {
            let banned = line.split_once("ban ").and_then(|(_, rest)| rest.split(' ').next());
            banned.is_some_and(|banned| banned.split('/').next() == network.split('/').next())
        };
        let lines = self.log().into_iter().rev().map(|line| line.text);
        let kind = |line: String| Some(line.split_once(" kind=")?.1.split(' ').next()?.to_owned());
        lines.filter(|line| is_of(line)).find_map(kind)
    }

    /// Number of sources that are `good`, `peers` or `tracked`.
    pub fn sources(&self, kind: &str) -> Result<u64> {
        let stats = self.json(&["stats"])?;
        stats["sources"][kind]
            .as_u64()
            .with_context(|| format!("`stats` does not count {kind} sources: {stats}"))
    }

    /// Number of counted requests of a method, passed or dropped; `method` as in `stats`.
    pub fn requests(&self, method: &str) -> Result<u64> {
        let stats = self.json(&["stats"])?;
        let interfaces = stats["interfaces"].as_array().context("`stats` has no interfaces")?;
        let counts = interfaces.iter().map(|interface| interface["methods"][method].as_u64());
        counts
            .sum::<Option<u64>>()
            .with_context(|| format!("`stats` does not count {method}: {stats}"))
    }

    /// Fails with all decisions if there is any ban.
    pub fn nobody_is_banned(&self, when: &str) -> Result<()> {
        match self.bans()?.as_slice() {
            [] => Ok(()),
            _ => Err(anyhow!("nobody was to be banned {when}, but: {}", self.decisions())),
        }
    }

    /// All bans and the end of the log, for messages.
    pub fn decisions(&self) -> String {
        let log = self.log();
        let last: Vec<_> =
            log[log.len().saturating_sub(10)..].iter().map(|line| line.text.as_str()).collect();
        match self.bans() {
            Ok(bans) => format!("the bans are {bans:#?}; the log ends with {last:#?}"),
            Err(error) => {
                format!("the bans cannot be read ({error:#}); the log ends with {last:#?}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_row() {
        let row = serde_json::json!({
            "network": "192.0.2.7/32", "port": null, "owner": "auto", "reason": "x",
            "tier": "proven", "added": "2026-01-01T00:00:00Z",

            "expires": "2026-01-01T00:10:00Z", "hits": 3,
        });
        let ban = Ban::read(&row).unwrap();
        assert_eq!((ban.lasts, ban.port, ban.hits), (Some(Duration::from_secs(600)), None, 3));
        assert!(ban.is_of("192.0.2.7") && ban.is_of("192.0.2.7/32") && !ban.is_of("192.0.2.70"));
        assert!(!Ban { port: Some(5060), ..ban }.is_of("192.0.2.7"));
    }
}
