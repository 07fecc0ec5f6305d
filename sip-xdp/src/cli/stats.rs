//! `stats`: the counters.

use std::thread::sleep;

use anyhow::Result;
use clap::Args;
use sip_xdp::config::Span;
use sip_xdp::dataplane::counters::{self, ByVerdict, Named, TcpStats};
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::sys::paths::Paths;

use super::Output;
use super::output::table;

/// Packets and bytes by verdict and reason, requests by method
///
/// Works without a daemon.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Print again every INTERVAL, with packets per second, until interrupted
    #[arg(long, value_name = "INTERVAL", value_parser = super::at_least("100ms"))]
    interval: Option<Span>,
}

impl Stats {
    pub(crate) fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let pins = Pins::new(&paths.pin_dir);
        let mut before: Option<counters::Stats> = None;
        loop {
            let stats = counters::stats(&pins)?;
            output.print(&stats, |stats| text(stats, before.as_ref()))?;
            let Some(interval) = self.interval else {
                return Ok(());
            };
            before = Some(stats);
            sleep(interval.0);
        }
    }
}

fn text(stats: &counters::Stats, before: Option<&counters::Stats>) -> String {
    let mut text = String::new();
    for interface in &stats.interfaces {
        let earlier = before.and_then(|before| {
            let same = before
                .interfaces
                .iter()
                .find(|earlier| earlier.interface == interface.interface)?;
            let seconds = stats.time.duration_since(before.time).as_secs_f64();
            (seconds > 0.0).then_some((same, seconds))
        });
        let mode = interface.mode.map(|mode| mode.to_string()).unwrap_or_default();
        text.push_str(&format!("{} ({mode})\n", interface.interface));
        let mut rows = Vec::new();
        for (verdict, select) in VERDICTS {
            let (packets, bytes) = (select(&interface.packets), select(&interface.bytes));
            for (reason, count) in packets.iter().filter(|(_, count)| **count > 0) {
                let rate = earlier.map(|(earlier, seconds)| {
                    let before = select(&earlier.packets).get(reason).copied().unwrap_or(0);
                    format!("{:.0}", count.saturating_sub(before) as f64 / seconds)
                });
                rows.push(vec![
                    verdict.to_owned(),
                    (*reason).to_owned(),
                    count.to_string(),
                    bytes.get(reason).copied().unwrap_or(0).to_string(),
                    rate.unwrap_or_default(),
                ]);
            }
        }
        let heads = [
            "VERDICT",
            "REASON",
            "PACKETS",
            "BYTES",
            if earlier.is_some() { "PER SECOND" } else { "" },
        ];
        text.push_str(&table(&heads, &rows));
        let methods: Vec<String> = interface
            .methods
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(method, count)| format!("{method} {count}"))
            .collect();
        if !methods.is_empty() {
            text.push_str(&format!("messages: {}\n", methods.join(", ")));
        }
        let TcpStats { connections, limited, segments, sampled, unsampled } = interface.tcp;
        if connections + segments > 0 {
            text.push_str(&format!(
                "TCP: {connections} SYNs, {segments} segments with payload: {limited} over a \
                 limit, {sampled} read, {unsampled} passed unread\n"
            ));
        }
        text.push('\n');
    }
    text.push_str(&format!(
        "blocked networks: {} IPv4, {} IPv6, of {}; sources tracked: {}; lost events: {}, samples: \
         {}\n",
        stats.blocklist.ipv4,
        stats.blocklist.ipv6,
        stats.blocklist.capacity,
        stats.sources.tracked,
        stats.lost_events,
        stats.lost_samples
    ));
    text
}

type Select = fn(&ByVerdict) -> &Named;

const VERDICTS: [(&str, Select); 3] =
    [("pass", |by| &by.pass), ("drop", |by| &by.drop), ("would drop", |by| &by.would_drop)];
