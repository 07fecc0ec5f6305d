//! `block import`, `trust import` and `block export`: files with one network per line.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _, stderr, stdin};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp::api::answers::{self, Refused};
use sip_xdp::api::control::{self, ListName, Request};
use sip_xdp::dataplane::counters::{self, Row};
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::net::network::Network;
use sip_xdp::store::state_dump;
use sip_xdp::sys::paths::Paths;
use sip_xdp_common::abi::layout::List;

use super::{Output, block};

/// Maximum number of bad lines, and of refused networks, in messages.
const MAX_LISTED: usize = 10;

/// Add all networks of a file
///
/// One address or network per line; text behind # or ; is a comment. All lines are checked before
/// any is added.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file; - for the standard input
    file: PathBuf,
    /// Duration: 90s, 10m, 24h, 7d [default: permanent]
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Reason, shown in lists
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Include networks that contain addresses that should stay reachable, or (for root only) are
    /// wider than /8 (IPv4) or /19 (IPv6)
    #[arg(long)]
    force: bool,
}

/// Print the block list for other programs
///
/// Entries of operators and the detector, without feeds, single ports and dry runs. Works without a
/// daemon.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// One network per line (plain), or sets for nftables (nft), with timeouts
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Plain)]
    format: Format,
}

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One network per line.
    Plain,
    /// Sets for nftables.
    Nft,
}

/// The result of an import.
#[derive(Debug, Default, JsonSchema, Serialize)]
pub(super) struct Imported {
    /// Distinct networks in the file.
    lines: usize,
    /// Networks added.
    added: usize,
    /// Networks refused.
    refused: Vec<Refused>,
}

impl Import {
    pub(crate) async fn execute(self, list: ListName, paths: &Paths, output: Output) -> Result<()> {
        let ttl = block::seconds(self.ttl)?;
        let text = read(&self.file)?;
        let networks = networks(&text).map_err(|bad| complaint(&self.file, &bad))?;
        let mut imported = Imported { lines: networks.len(), ..Imported::default() };
        let all = networks.len();
        let mut done = 0;
        for networks in state_dump::cut(networks.into_iter().collect()) {
            done += networks.len();
            let (reason, operator) = (self.reason.clone(), block::operator());
            let request =
                Request::Import { list, networks, ttl, reason, force: self.force, operator };
            let answer = control::call::<answers::Imported>(&paths.socket(), &request).await;
            let before = imported.added;
            let answer = match answer {
                Err(error) if before > 0 => {
                    return Err(
                        error.context(format!("{before} of {all} networks were entered, and then"))
                    );
                }
                answer => answer?,
            };
            imported.added += answer.added;
            imported.refused.extend(answer.refused);
            progress(done, all);
        }
        output.print(&imported, |imported| summary(imported, list))
    }
}

/// Progress, on a terminal.
pub(super) fn progress(done: usize, all: usize) {
    if stderr().is_terminal() {
        eprint!("\r{done} of {all}{}", if done >= all { "\n" } else { "" });
    }
}

fn summary(imported: &Imported, list: ListName) -> String {
    let verb = if list == ListName::Block { "blocked" } else { "trusted" };
    let mut text = format!("{verb} {} of {} networks\n", imported.added, imported.lines);
    text.push_str(&refused(&imported.refused));
    text
}

/// Refused networks, one per line, up to the maximum.
pub(super) fn refused(refused: &[Refused]) -> String {
    let mut text = String::new();
    for one in refused.iter().take(MAX_LISTED) {
        text.push_str(&format!("refused {}: {}\n", one.what, one.why));
    }
    if refused.len() > MAX_LISTED {
        text.push_str(&format!("and {} more; --json shows them\n", refused.len() - MAX_LISTED));
    }
    text
}

/// Reads a file, or the standard input.
pub(super) fn read(file: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        stdin().lock().read_to_end(&mut bytes).context("the standard input cannot be read")?;
    } else {
        bytes =
            std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The networks of a file without duplicates, or all malformed lines with their numbers.
fn networks(text: &str) -> Result<BTreeSet<Network>, Vec<(usize, String)>> {
    let (mut good, mut bad) = (BTreeSet::new(), Vec::new());
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (number, line) in (1..).zip(text.lines()) {
        let entry = line.split(['#', ';']).next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        match entry.parse::<Network>() {
            Ok(network) if network.prefix() == 0 => {
                bad.push((number, format!("{network} is everybody")))
            }
            Ok(network) => drop(good.insert(network)),
            Err(error) => bad.push((number, error.to_string())),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}

/// The first malformed lines in one line.
fn complaint(file: &Path, bad: &[(usize, String)]) -> anyhow::Error {
    let mut text = format!("{}: nothing was entered, ", file.display());
    let _ = match bad.len() {
        1 => write!(text, "one line is wrong: "),
        count => write!(text, "{count} lines are wrong: "),
    };
    let first: Vec<String> =
        bad.iter().take(MAX_LISTED).map(|(number, why)| format!("line {number}: {why}")).collect();
    text.push_str(&first.join("; "));
    if bad.len() > MAX_LISTED {
        let _ = write!(text, "; and {} more", bad.len() - MAX_LISTED);
    }
    anyhow::Error::msg(text)
}

impl Export {
    pub(crate) fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let mut rows = counters::rows(&Pins::new(&paths.pin_dir), List::Block)?;
        rows.retain(|row| !row.dry_run && row.port.is_none());
        if output.json && self.format != Format::Plain {
            bail!("--json and --format are two formats; give one of them");
        }
        output.print(&rows, |rows| match self.format {
            Format::Plain => as_text(rows),
            Format::Nft => nft(rows, counters::now()),
        })
    }
}

/// One network per line, with owner, expiry and reason as a comment.
fn as_text(rows: &[Row]) -> String {
    let mut text = String::from(
        "# sip-xdp block list; `sip-xdp block import` reads it, but not when entries end\n",
    );
    for row in rows {
        let end = row
            .expires
            .map_or_else(String::new, |end| format!(" until {}", end.strftime("%FT%TZ")));
        let reason: String = row
            .reason
            .chars()
            .map(|letter| if letter.is_control() { ' ' } else { letter })
            .collect();
        let line = format!("{} # {}{end} {reason}", row.network, row.owner);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Two sets in a table of their own. Elements must not overlap, so that contained networks are left
/// out. A contained one that lasts longer than the network around it is lost.
fn nft(rows: &[Row], now: jiff::Timestamp) -> String {
    // Widest first; of equal networks the one that lasts longest.
    let mut networks: Vec<(&Network, Option<jiff::Timestamp>)> =
        rows.iter().map(|row| (&row.network, row.expires)).collect();
    let end = |end: Option<jiff::Timestamp>| end.unwrap_or(jiff::Timestamp::MAX);
    networks.sort_by_key(|(network, expires)| {
        (network.first(), network.bits(), std::cmp::Reverse(end(*expires)))
    });
    let mut kept: Vec<(&Network, Option<jiff::Timestamp>)> = Vec::new();
    for (network, expires) in networks {
        // Sorted by first address: a covering network directly precedes the contained one.
        if kept.last().is_none_or(|(around, _)| !around.contains(network)) {
            kept.push((network, expires));
        }
    }
    let mut text = String::from(
        "# sip-xdp block list for nftables: `ip saddr @blocked4 drop` and `ip6 saddr @blocked6 \
         drop` use it\n\
         table inet sip_xdp {\n",
    );
    for (name, kind, is_v4) in [("blocked4", "ipv4_addr", true), ("blocked6", "ipv6_addr", false)] {
        let _ = write!(
            text,
            "    set {name} {{\n        type {kind}\n        flags interval, timeout\n"
        );
        let family = kept.iter().filter(|(network, _)| network.is_v4() == is_v4);
        let elements: Vec<String> = family
            .map(|(network, expires)| match expires {
                Some(end) => {
                    format!("{network} timeout {}s", end.duration_since(now).as_secs().max(1))
                }
                None => network.to_string(),
            })
            .collect();
        if !elements.is_empty() {
            let _ = writeln!(
                text,
                "        elements = {{\n            {}\n        }}",
                elements.join(",\n            ")
            );
        }
        text.push_str("    }\n");
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_comments_blanks_and_line_ends_of_all_kinds() {
        let text = "\u{feff}# a list\r\n192.0.2.1\r\n\n  192.0.2.0/24 ; SBL1\n2001:db8::/32# \
                    x\n192.0.2.1\n;\n";
        let found: Vec<String> = networks(text).unwrap().iter().map(Network::to_string).collect();
        assert_eq!(found, ["192.0.2.0/24", "192.0.2.1", "2001:db8::/32"]);
        assert!(networks("").unwrap().is_empty());
    }

    #[test]
    fn bad_lines_are_told_with_their_numbers() {
        let bad = networks("192.0.2.1\n192.0.2.1/24\nnonsense\n0.0.0.0/0\n").unwrap_err();
        assert_eq!(bad.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [2, 3, 4]);
        let text = complaint(Path::new("list"), &bad).to_string();
        assert!(text.contains("list: nothing was entered, 3 lines are wrong: line 2: "), "{text}");
        assert!(text.contains("write 192.0.2.0/24 for the network"), "{text}");
        let many = networks(&"x\n".repeat(500)).unwrap_err();
        let text = complaint(Path::new("list"), &many).to_string();
        assert!(
            text.contains("line 10: ")
                && !text.contains("line 11: ")
                && text.ends_with("and 490 more"),
            "{text}"
        );
    }

    #[test]
    fn sets_for_nftables_do_not_overlap() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let row = |network: &str, seconds: Option<i64>| Row {
            network: network.parse().unwrap(),
            port: None,
            owner: "manual".to_owned(),
            claimant: None,
            reason: "a\nb".to_owned(),
            tier: None,
            added: now,
            expires: seconds.map(|seconds| jiff::Timestamp::from_second(seconds).unwrap()),
            hits: 0,
            dry_run: false,
        };
        let rows = [
            row("192.0.2.0/24", Some(60)),
            row("192.0.2.0/24", None),
            row("192.0.2.7", Some(90)),
            row("198.51.100.0/25", Some(60)),
            row("198.51.100.128", None),
            row("2001:db8::/32", None),
        ];
        let text = nft(&rows, now);
        let elements: Vec<&str> =
            text.lines().map(|line| line.trim().trim_end_matches(',')).collect();
        for expected in
            ["192.0.2.0/24", "198.51.100.0/25 timeout 60s", "198.51.100.128", "2001:db8::/32"]
        {
            assert!(elements.contains(&expected), "{expected} in {text}");
        }
        assert!(!text.contains("192.0.2.7"), "{text}");
        assert!(!nft(&[], now).contains("elements"));
        assert_eq!(networks(&as_text(&rows)).unwrap().len(), 5);
    }
}
