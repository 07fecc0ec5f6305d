//! `watch`: the event stream.

mod pcap;

use std::io::{ErrorKind, Write as _, stdout};
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use jiff::Timestamp;
use sip_xdp::api::event_stream::{Line, Stream};
use sip_xdp::bans::event::{Event, FeedFigures};
use sip_xdp::sys::paths::Paths;
use sip_xdp::text;
use tokio::signal::unix::{SignalKind, signal};

use super::Output;
use pcap::Capture;

/// Show bans, limits, storms and acceptances, one line each as they happen
///
/// With --json one object per line. Ends with Ctrl-C. A slow reader loses events, and is told how
/// many.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Only events about this address
    #[arg(long, value_name = "IP")]
    ip: Option<IpAddr>,
    /// Include samples of dropped packets, at most 200 per second: captures on this host do not see
    /// these packets
    #[arg(long)]
    packets: bool,
    /// Write these packets to FILE, or with `-` to the standard output, for tcpdump and Wireshark;
    /// implies --packets
    #[arg(short, value_name = "FILE")]
    write: Option<PathBuf>,
}

impl Watch {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut stream =
            Stream::open(&paths.socket(), self.ip, self.packets || self.write.is_some()).await?;
        let mut capture = self.write.map(Capture::create).transpose()?;
        let outcome = loop {
            let (json, line) = tokio::select! {
                next = stream.next() => match next {
                    Ok(next) => next,
                    Err(error) => break Err(error),
                },
                _ = interrupt.recv() => break Ok(()),
                _ = terminate.recv() => break Ok(()),
            };
            let written = match &mut capture {
                Some(capture) => capture.take(&line)?,
                None if output.json => print(&text::json(&json)),
                None => print(&text(&line)),
            };
            match written {
                // A closed pipe is a normal end.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break Ok(()),
                written => written.context("what was watched cannot be written")?,
            }
        };
        if let Some(capture) = capture {
            eprintln!("{}", capture.summary());
        }
        outcome
    }
}

fn print(line: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// A line for people, without control characters from others.
fn text(line: &Line) -> String {
    let time = |time: Timestamp| time.strftime("%F %T").to_string();
    let shown = |field: Option<String>| text::line(&field.unwrap_or_default());
    let (event, feed) = match line {
        Line::Lost(lost) => {
            let (time, count) = (time(lost.time), lost.count);
            return format!(
                "{time}  lost         {count} events, which came faster than they could be shown"
            );
        }
        Line::Packet(packet) => (packet.as_event(), None),
        Line::Event(event) => (Event::clone(event), event.feed.clone()),
    };
    let mut subject = match &feed {
        Some(feed) => {
            let FeedFigures { feed, added, removed, total } = feed;
            format!("{} +{added} -{removed} ={total}", text::line(feed))
        }
        None => {
            let mut parts =
                vec![shown(event.address.map(|net| net.to_string())), shown(event.interface)];
            parts.retain(|part| !part.is_empty());
            parts.join(" ")
        }
    };
    if let Some(port) = event.port {
        subject.push_str(&format!(" port {port}"));
    }
    let tier = event.tier.map(|tier| tier.name().to_owned());
    let dry_run = event.dry_run.then(|| "dry run".to_owned());
    let what: Vec<String> =
        [event.kind.map(|kind| text::line(&kind)), tier, dry_run].into_iter().flatten().collect();
    let mut parts = vec![subject, what.join(", "), shown(event.reason)];
    parts.retain(|part| !part.is_empty());
    format!("{}  {:12} {}", time(event.time), text::line(&event.event), parts.join("  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_for_people() {
        let line = r#"{"time":"2026-01-02T03:04:05.678Z","event":"ban","kind":"rejected",
            "address":"192.0.2.7","port":null,"reason":"10 passwords","tier":"proven",
            "dry_run":false}"#;
        assert_eq!(
            text(&serde_json::from_str(line).unwrap()),
            "2026-01-02 03:04:05  ban          192.0.2.7  rejected, proven  10 passwords"
        );
        let line = r#"{"time":"2026-01-02T03:04:05Z","event":"feed","kind":"synced",
            "address":null,"port":null,"reason":null,"tier":null,"dry_run":false,
            "feed":"public","added":3,"removed":2,"total":20}"#;
        assert_eq!(
            text(&serde_json::from_str(line).unwrap()),
            "2026-01-02 03:04:05  feed         public +3 -2 =20  synced"
        );
        let line = r#"{"time":"2026-01-02T03:04:05Z","event":"lost","count":7}"#;
        assert!(
            text(&serde_json::from_str(line).unwrap()).contains("lost         7 events"),
            "{}",
            text(&serde_json::from_str(line).unwrap())
        );
        let line = r#"{"time":"2026-01-02T03:04:05Z","event":"limit","kind":"requests",
            "address":"192.0.2.7","port":5060,"reason":null,"tier":null,"dry_run":true}"#;
        assert_eq!(
            text(&serde_json::from_str(line).unwrap()),
            "2026-01-02 03:04:05  limit        192.0.2.7 port 5060  requests, dry run"
        );
        let line = r#"{"time":"2026-01-02T03:04:05Z","event":"interface","kind":"gone",
            "address":null,"port":null,"reason":"index 7","tier":null,"dry_run":false,
            "interface":"ppp0"}"#;
        assert_eq!(
            text(&serde_json::from_str(line).unwrap()),
            "2026-01-02 03:04:05  interface    ppp0  gone  index 7"
        );
    }
}
