//! `replay`: the filter's decisions on a capture.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use sip_xdp::config::Config;
use sip_xdp::dataplane::counters::Named;
use sip_xdp::dataplane::probe::Platform;
use sip_xdp::dataplane::refusal;
use sip_xdp::net::network::Network;
use sip_xdp::observe::report;
use sip_xdp::sys::paths::Paths;
use sip_xdp::tools::replay::{
    self, Ban, Comparison, Difference, Input, Limited, Options, Outcome, Replayed,
};

use super::Output;
use super::output::table;

/// Delay before progress is shown, and its interval.
const TIMEOUT: Duration = Duration::from_secs(1);
const OFTEN: Duration = Duration::from_millis(200);

/// Maximum number of table rows shown to people.
const SHOWN: usize = 40;

/// Run a capture through the kernel's program and the detector: sources that would be limited or
/// banned, when and why
///
/// Reads pcap and pcapng, concatenated or single, compressed with gzip, zstd, xz or bzip2 or not:
/// Ethernet, Linux cooked, raw IP, PPP, NFLOG and more, and the contents of mirror tunnels (VXLAN,
/// GRE, ERSPAN, IP in IP, MPLS, Geneve, TZSP) and HEP. Unsupported packets are named and counted,
/// and duplicates count once. Nothing is attached, and the running filter is not affected. The
/// clock is that of the capture. The configuration is that of --config; a dry run is replayed as if
/// it enforced.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// The capture; `-` is standard input
    file: PathBuf,
    /// Address or network of the SIP server, whose responses the detector needs; guessed by
    /// default. May be repeated
    #[arg(long, value_name = "NET")]
    registrar: Vec<Network>,
    /// A second configuration: shows the sources that it would treat differently
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Print what `sip-xdp report` would have said at the end of the capture
    #[arg(long, conflicts_with = "compare")]
    report: bool,
}

impl Replay {
    pub(crate) fn execute(
        self,
        paths: &Paths,
        config_required: bool,
        output: Output,
    ) -> Result<()> {
        let config = Config::read(&paths.config, config_required)?;
        let other = self.compare.as_ref().map(|file| Config::read(file, true)).transpose()?;
        let input = Input::open(&self.file)?;
        Platform::ask().check()?;
        let options = Options { registrar: self.registrar };
        let mut progress = Progress::new();
        let mut report = |done| progress.show(done);
        let Some((other, file)) = other.zip(self.compare) else {
            let replayed = replay::replay(&input, &config, &options, &mut report);
            progress.end();
            let replayed = replayed.map_err(|error| refusal::keep_log(error, &paths.state_dir));
            let replayed = replayed?;
            if self.report {
                let report = report::judge(replayed.facts);
                return output.print(&report, |report| super::report::text(report, output));
            }
            return output.print(&replayed, |replayed| text(replayed, output));
        };
        let names = [paths.config.display().to_string(), file.display().to_string()];
        let both = [(names[0].as_str(), &config), (names[1].as_str(), &other)];
        let comparison = replay::compare(&input, both, &options, &mut report);
        progress.end();
        let comparison = comparison.map_err(|error| refusal::keep_log(error, &paths.state_dir));
        output.print(&comparison?, |comparison| differences(comparison, output))
    }
}

/// Progress on a terminal, if a replay takes a while.
struct Progress {
    is_terminal: bool,
    start: Instant,
    next: Duration,
    shown: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            is_terminal: stderr().is_terminal(),
            start: Instant::now(),
            next: TIMEOUT,
            shown: false,
        }
    }

    fn show(&mut self, done: f64) {
        let passed = self.start.elapsed();
        if self.is_terminal && passed >= self.next {
            self.next = passed + OFTEN;
            self.shown = true;
            // An invisible progress display is no error.
            let _ = write!(stderr(), "\rreplaying, {:3.0} %", done * 100.0);
        }
    }

    fn end(&self) {
        if self.shown {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn text(replayed: &Replayed, output: Output) -> String {
    let mut text = facts(replayed);
    let limited: Vec<_> = replayed.limited.iter().map(limited).collect();
    let heads = ["SINCE", "LIMITED", "BY", "OVER", "PASSED", "DROPPED", ""];
    for (heads, rows) in [
        (
            &["BANNED", "ADDRESS", "FOR", "KIND", "BEFORE", "THEN DROPPED", "REASON"][..],
            replayed.banned.iter().map(ban).collect(),
        ),
        (&heads[..], limited),
    ] {
        section(&mut text, heads, rows);
    }
    if replayed.banned.is_empty() {
        text.push_str(&format!("\n{}\n", output.good("nobody would have been banned")));
    }
    let close = replayed.closest.iter().map(|close| {
        vec![
            close.address.to_string(),
            close.kind.clone(),
            format!("{} of {}", close.count, close.limit),
            close.reason.clone(),
        ]
    });
    section(&mut text, &["CLOSEST TO A BAN", "KIND", "EVIDENCE", ""], close.collect());
    let hurt = replayed.good.iter().filter(|good| good.fate.dropped > 0);
    let hurt: Vec<_> = hurt
        .map(|good| {
            vec![
                good.address.to_string(),
                good.users.to_string(),
                good.fate.passed.to_string(),
                good.fate.dropped.to_string(),
            ]
        })
        .collect();
    section(&mut text, &["KNOWN GOOD, BUT LOST PACKETS", "USERS", "PASSED", "DROPPED"], hurt);
    let users: usize = replayed.good.iter().map(|good| good.users).sum();
    let others = replayed.others;
    text.push_str(&format!(
        "\nknown good {} addresses with {users} users, {} peers; {} others passed {} packets and \
         lost {}\n",
        replayed.good.len(),
        replayed.peers.len(),
        others.sources,
        others.fate.passed,
        others.fate.dropped
    ));
    for note in &replayed.notes {
        text.push_str(&format!("note      {note}\n"));
    }
    text
}

/// The capture, and the verdicts on its packets.
fn facts(replayed: &Replayed) -> String {
    let capture = &replayed.capture;
    let mut kind = vec![capture.format];
    let files = format!("{} files in one", capture.files);
    if capture.files > 1 {
        kind.push(&files);
    }
    kind.extend(capture.compression.as_deref());
    kind.extend(capture.links.keys().map(String::as_str));
    let mut text = format!("{} ({}): {} packets", capture.file, kind.join(", "), capture.packets);
    if let (Some(from), Some(to)) = (capture.from, capture.to) {
        let duration = humantime::format_duration(Duration::from_secs(capture.duration));
        text.push_str(&format!(" in {duration}, {} to {}", time(from), time(to)));
    }
    text.push('\n');
    let mut line = |head: &str, what: String| {
        if !what.is_empty() {
            text.push_str(&format!("{head:9} {what}\n"));
        }
    };
    let ours: Vec<String> = replayed.registrar.networks.iter().map(ToString::to_string).collect();
    line("registrar", format!("{} ({})", ours.join(", "), replayed.registrar.because));
    let skipped = capture.skipped;
    line(
        "looked at",
        format!("{} arriving at SIP ports, {} leaving them", capture.arrived, capture.left),
    );
    let tcp = capture.tcp;
    if tcp.connections > 0 {
        let (connections, messages) = (tcp.connections, tcp.messages);
        let lost =
            if tcp.lost > 0 { format!(", {} pieces missing", tcp.lost) } else { String::new() };
        line("by TCP", format!("{messages} messages in {connections} connections{lost}"));
    }
    let some = |(count, what): (u64, &str)| (count > 0).then(|| format!("{count} {what}"));
    let each = |named: Vec<(&str, u64)>| -> String {
        named
            .into_iter()
            .filter_map(|(name, count)| some((count, name)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    line("tunnels", each(capture.tunnels.iter().map(|(name, count)| (*name, *count)).collect()));
    line(
        "not read",
        each(capture.not_read.iter().map(|(name, count)| (name.as_str(), *count)).collect()),
    );
    let reasons = [
        (skipped.link_type, "of another link type"),
        (skipped.malformed, "cut off in the link header"),
        (skipped.not_ip, "not IP"),
        (skipped.elsewhere, "neither to nor from the registrar"),
        (skipped.leaving, "leaving other ports"),
        (skipped.tcp_answers, "TCP leaving SIP ports that cannot be read"),
        (skipped.unread, "in a form that is not read"),
    ];
    line("skipped", reasons.into_iter().filter_map(some).collect::<Vec<_>>().join(", "));
    let odd = [
        (capture.cut, "of which only the beginning is there"),
        (capture.out_of_order, "out of order"),
        (capture.duplicates, "copies of others"),
    ];
    line("odd", odd.into_iter().filter_map(some).collect::<Vec<_>>().join(", "));
    let named = |named: &Named| -> String {
        named.iter().filter_map(|(name, count)| some((*count, name))).collect::<Vec<_>>().join(", ")
    };
    line("passed", named(&replayed.packets.pass));
    line("dropped", named(&replayed.packets.drop));
    line("trouble", capture.trouble.clone().unwrap_or_default());
    text
}

fn section(text: &mut String, heads: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    text.push_str(&format!("\n{}", table(heads, &rows[..rows.len().min(SHOWN)])));
    if rows.len() > SHOWN {
        text.push_str(&format!("and {} more; --json shows them\n", rows.len() - SHOWN));
    }
}

fn ban(ban: &Ban) -> Vec<String> {
    let port = ban.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let tier = ban.tier.map(|tier| format!(", {}", tier.name())).unwrap_or_default();
    vec![
        time(ban.time),
        format!("{}{port}", ban.address),
        humantime::format_duration(Duration::from_secs(ban.length)).to_string(),
        format!("{}{tier}", ban.kind),
        (ban.before.passed + ban.before.dropped).to_string(),
        format!("{} of {}", ban.after.dropped, ban.after.dropped + ban.after.passed),
        ban.reason.clone(),
    ]
}

fn limited(row: &Limited) -> Vec<String> {
    vec![
        time(row.time),
        row.address.to_string(),
        row.kind.clone(),
        row.limited.to_string(),
        row.fate.passed.to_string(),
        row.fate.dropped.to_string(),
        if row.known {
            "known good, or a peer".to_owned()
        } else {
            row.reason.clone().unwrap_or_default()
        },
    ]
}

/// Both configurations, and the sources that they treat differently.
fn differences(comparison: &Comparison, output: Output) -> String {
    let [first, second] = &comparison.configurations;
    let mut text = facts(&comparison.replays[0]);
    for (name, replayed) in comparison.configurations.iter().zip(&comparison.replays) {
        let (bans, limited) = (replayed.banned.len(), replayed.limited.len());
        let dropped: u64 = replayed.packets.drop.values().sum();
        text.push_str(&format!(
            "{name}: {bans} bans, {limited} more limited, {dropped} packets dropped\n"
        ));
        for note in &replayed.notes {
            text.push_str(&format!("note      {note}\n"));
        }
    }
    if comparison.differences.is_empty() {
        text.push_str(&format!("\n{}\n", output.good("they treat everybody the same")));
        return text;
    }
    let row = |difference: &Difference| {
        vec![
            difference.address.to_string(),
            outcome(&difference.first),
            outcome(&difference.second),
        ]
    };
    section(
        &mut text,
        &["ADDRESS", first, second],
        comparison.differences.iter().map(row).collect(),
    );
    text
}

fn outcome(outcome: &Outcome) -> String {
    let kind = outcome.kind.as_ref().map(|kind| format!(" ({kind})")).unwrap_or_default();
    let since = outcome.since.map(|since| format!(" at {}", time(since))).unwrap_or_default();
    let all = outcome.fate.dropped + outcome.fate.passed;
    format!("{}{kind}{since}, {} of {all} dropped", outcome.verdict, outcome.fate.dropped)
}

fn time(time: Timestamp) -> String {
    time.strftime("%F %T UTC").to_string()
}
