//! `watch`: what the daemon decides, as it happens.

use std::io::{ErrorKind, Write as _, stdout};
use std::net::IpAddr;

use anyhow::Result;
use clap::Args;
use serde_json::Value;
use sip_xdp::paths::Paths;
use sip_xdp::watch::Stream;
use tokio::signal::unix::{SignalKind, signal};

use super::Output;

/// Bans, limits, storms and who turns out to be real, one line each as it happens
///
/// With --json one object a line. Ends with Ctrl-C. Who reads too slowly loses events, and is told how many.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Only what concerns this address
    #[arg(long, value_name = "IP")]
    ip: Option<IpAddr>,
}

impl Watch {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut stream = Stream::open(&paths.socket(), self.ip).await?;
        loop {
            let line = tokio::select! {
                line = stream.next() => line?,
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
            };
            let line = if output.json { line } else { text(&line) };
            let mut out = stdout().lock();
            match writeln!(out, "{line}").and_then(|()| out.flush()) {
                // Whoever read this has seen enough.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
        }
    }
}

/// An event for people.
fn text(line: &str) -> String {
    let Ok(event) = serde_json::from_str::<Value>(line) else {
        return line.to_owned();
    };
    let field = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let time = field("time").get(..19).map(|time| time.replace('T', " ")).unwrap_or_default();
    if let Some(count) = event["count"].as_u64() {
        return format!("{time}  lost         {count} events, which came faster than they could be shown");
    }
    let mut whom = if event["feed"].is_null() { field("address") } else { field("feed") };
    if let [Some(added), Some(removed), Some(total)] = ["added", "removed", "total"].map(|name| event[name].as_u64()) {
        whom.push_str(&format!(" +{added} -{removed} ={total}"));
    }
    if let Some(port) = event["port"].as_u64() {
        whom.push_str(&format!(" port {port}"));
    }
    let dry_run = if event["dry_run"] == true { "dry run".to_owned() } else { String::new() };
    let what: Vec<String> =
        [field("kind"), field("tier"), dry_run].into_iter().filter(|part| !part.is_empty()).collect();
    let mut parts = vec![whom, what.join(", "), field("reason")];
    parts.retain(|part| !part.is_empty());
    format!("{time}  {:12} {}", field("event"), parts.join("  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_for_people() {
        let line = r#"{"time":"2026-01-02T03:04:05.678Z","event":"ban","kind":"rejected","address":"192.0.2.7","port":null,
            "reason":"10 passwords","tier":"proven","dry_run":false}"#;
        assert_eq!(text(line), "2026-01-02 03:04:05  ban          192.0.2.7  rejected, proven  10 passwords");
        let line = r#"{"time":"2026-01-02T03:04:05Z","event":"feed","kind":"synced","address":null,"port":null,"reason":null,
            "tier":null,"dry_run":false,"feed":"public","added":3,"removed":2,"total":20}"#;
        assert_eq!(text(line), "2026-01-02 03:04:05  feed         public +3 -2 =20  synced");
        let line = r#"{"time":"2026-01-02T03:04:05Z","event":"lost","count":7}"#;
        assert!(text(line).contains("lost         7 events"), "{}", text(line));
        let line = r#"{"time":"2026-01-02T03:04:05Z","event":"limit","kind":"requests","address":"192.0.2.7","port":5060,
            "reason":null,"tier":null,"dry_run":true}"#;
        assert_eq!(text(line), "2026-01-02 03:04:05  limit        192.0.2.7 port 5060  requests, dry run");
    }
}
