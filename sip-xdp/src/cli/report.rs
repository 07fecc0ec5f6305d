//! `report`: what the filter did in the last days.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use sip_xdp::config::{Config, Span};
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::net::network::Network;
use sip_xdp::observe::report::{self, Doubtful, Kind, Offender, SprayedUser, Suggestion, Tally};
use sip_xdp::sys::paths::Paths;

use super::Output;
use super::output::table;

/// Maximum number of shown rows of a table, and of characters of a reason.
const SHOWN: usize = 12;
const REASON: usize = 72;

/// What was banned in the last days, what of it looks wrong, and what to change
///
/// Bans by kind and level: how many an operator lifted, hit a place where somebody was accepted
/// later, or were never hit again. Rules that never fired, phones with a wrong password, users that
/// strangers try passwords for, and what to loosen or to trust. Works with the daemon dead.
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// How far back
    #[arg(
        long,
        value_name = "TIME",
        default_value = "7d",
        value_parser = super::at_least("1s")
    )]
    since: Span,
}

impl Report {
    pub(crate) fn execute(
        self,
        paths: &Paths,
        config_required: bool,
        output: Output,
    ) -> Result<()> {
        let config = Config::read(&paths.config, config_required)?;
        let pins = Pins::new(&paths.pin_dir);
        let facts = report::gather(&pins, &paths.store_file(), &config, self.since.0)?;
        output.print(&report::judge(facts), |report| text(report, output))
    }
}

/// The report as text.
pub(super) fn text(report: &report::Report, output: Output) -> String {
    let mut text = head(report, output);
    section(&mut text, "BANS", &KIND_HEADS, report.kinds.iter().map(kind).collect());
    text.push_str(&rules(report));
    let doubtful = report.doubtful.iter().map(doubtful).collect();
    section(&mut text, "LOOK AT THESE: bans that may have been wrong", &DOUBTFUL_HEADS, doubtful);
    let phones: Vec<_> = report.phones.iter().map(phone).collect();
    section(&mut text, "RESET THESE: phones with a wrong password", &PHONE_HEADS, phones);
    let sprayed = report.sprayed.iter().map(sprayed).collect();
    section(&mut text, "STRANGERS TRY THESE USERS", &SPRAYED_HEADS, sprayed);
    let repeaters = report.repeaters.iter().map(repeater).collect();
    section(
        &mut text,
        "WHO ELSE WAS BANNED, those with most bans first",
        &REPEATER_HEADS,
        repeaters,
    );
    if !report.suggestions.is_empty() {
        text.push_str("\nSUGGESTIONS\n");
        report.suggestions.iter().take(SHOWN).for_each(|one| text.push_str(&suggestion(one)));
        more(&mut text, report.suggestions.len());
    }
    report.notes.iter().for_each(|note| text.push_str(&format!("\nnote: {note}\n")));
    text
}

/// The summary.
fn head(report: &report::Report, output: Output) -> String {
    let span = report.to.duration_since(report.from).as_secs().max(0) as u64;
    let span = humantime::format_duration(Duration::from_secs(
        span - span % if span > 86_400 { 60 } else { 1 },
    ));
    let of = report.capture.as_ref().map(|capture| format!("{capture}: ")).unwrap_or_default();
    let mut text = format!("{of}{} to {} ({span})\n\n", time(report.from), time(report.to));
    let Tally { bans, addresses, lifted, good_later, quiet, in_force, hits } = report.bans;
    if bans == 0 {
        text.push_str(&format!("{}\n", output.good("nobody was banned")));
    } else {
        text.push_str(&format!(
            "{}, {in_force} of them in force; {hits} packets dropped\n",
            count(bans, "ban", addresses, "address", "addresses"),
        ));
        let doubts = format!(
            "{lifted} lifted by an operator, {good_later} where somebody was accepted later"
        );
        let doubts =
            if !report.doubtful.is_empty() { output.bad(&doubts) } else { output.good(&doubts) };
        text.push_str(&format!("{doubts}, {quiet} never hit again\n"));
    }
    let good = &report.good;
    let lost = match good.lost {
        Some(0) => format!("; {}", output.good("they lost no packet")),
        Some(lost) => format!("; {}", output.bad(&format!("they lost {lost} packets"))),
        None => String::new(),
    };
    let served = match good.served.len() {
        0 => String::new(),
        count => format!(", {count} served without credentials"),
    };
    text.push_str(&format!(
        "known good: {} users at {} addresses{served}{lost}\n",
        good.users, good.addresses
    ));
    text
}

fn count(bans: u64, ban: &str, addresses: u64, address: &str, plural: &str) -> String {
    let s = if bans == 1 { "" } else { "s" };
    format!("{bans} {ban}{s} of {addresses} {}", if addresses == 1 { address } else { plural })
}

/// The rules that never fired, and the disabled ones.
fn rules(report: &report::Report) -> String {
    let named = |wanted: fn(&&report::Rule) -> bool| -> Vec<&str> {
        report.rules.iter().filter(wanted).map(|rule| rule.rule).collect()
    };
    let silent = named(|rule| rule.enabled && rule.bans == 0);
    let off = named(|rule| !rule.enabled);
    let mut text = String::new();
    if !silent.is_empty() {
        text.push_str(&format!("\nrules that never fired: {}\n", silent.join(", ")));
    }
    if !off.is_empty() {
        text.push_str(&format!("\nrules that are switched off: {}\n", off.join(", ")));
    }
    text
}

const KIND_HEADS: [&str; 9] = [
    "KIND",
    "LEVEL",
    "BANS",
    "ADDRESSES",
    "DROPPED",
    "LIFTED",
    "GOOD LATER",
    "NEVER HIT",
    "IN FORCE",
];

fn kind(row: &Kind) -> Vec<String> {
    let Tally { bans, addresses, lifted, good_later, quiet, in_force, hits } = row.tally;
    let level = row.tier.map_or("", |tier| tier.name()).to_owned();
    let counts = [bans, addresses, hits, lifted, good_later, quiet, in_force];
    [row.kind.clone(), level].into_iter().chain(counts.map(|count| count.to_string())).collect()
}

const DOUBTFUL_HEADS: [&str; 5] =
    ["BANNED", "ADDRESS", "KIND", "WHY DOUBTFUL", "REASON OF THE BAN"];

fn doubtful(row: &Doubtful) -> Vec<String> {
    let mut why = Vec::new();
    if row.lifted {
        why.push("lifted by an operator".to_owned());
    }
    if !row.users.is_empty() {
        let before = if row.known_before { ", as before" } else { " for the first time" };
        why.push(format!("{} accepted later{before}", row.users.join(", ")));
    }
    vec![
        time(row.from),
        place(&row.address, row.port),
        row.kind.clone(),
        why.join("; "),
        short(&row.reason),
    ]
}

const PHONE_HEADS: [&str; 4] = ["ADDRESS", "BANS", "LAST", "WHAT IT DOES"];

fn phone(row: &Offender) -> Vec<String> {
    vec![place(&row.address, row.port), row.bans.to_string(), time(row.last), short(&row.reason)]
}

const SPRAYED_HEADS: [&str; 6] =
    ["USER", "TRIES", "ADDRESSES", "FIRST", "LAST", "NEW PLACES SINCE"];

fn sprayed(row: &SprayedUser) -> Vec<String> {
    let places: Vec<String> = row.new_places.iter().map(ToString::to_string).collect();
    vec![
        row.user.clone(),
        row.tries.to_string(),
        row.addresses.to_string(),
        time(row.first),
        time(row.last),
        if places.is_empty() { "none".to_owned() } else { places.join(", ") },
    ]
}

const REPEATER_HEADS: [&str; 6] = ["ADDRESS", "BANS", "DROPPED", "LAST", "KINDS", "REASON"];

fn repeater(row: &Offender) -> Vec<String> {
    let counts = [row.bans, row.hits].map(|count| count.to_string());
    let mut cells = vec![place(&row.address, row.port)];
    cells.extend(counts);
    cells.extend([time(row.last), row.kinds.join(", "), short(&row.reason)]);
    cells
}

fn suggestion(row: &Suggestion) -> String {
    let command =
        row.command.as_ref().map(|command| format!("      {command}\n")).unwrap_or_default();
    format!("  {} {}: {}\n{command}", row.change.name(), row.about, row.reason)
}

/// A reason, truncated to fit a line.
fn short(reason: &str) -> String {
    match reason.char_indices().nth(REASON) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.to_owned(),
    }
}

fn place(address: &Network, port: Option<u16>) -> String {
    port.map_or_else(|| address.to_string(), |port| format!("{address} port {port}"))
}

fn time(time: Timestamp) -> String {
    time.strftime("%F %H:%M UTC").to_string()
}

fn section(text: &mut String, title: &str, heads: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    text.push_str(&format!("\n{title}\n{}", table(heads, &rows[..rows.len().min(SHOWN)])));
    more(text, rows.len());
}

fn more(text: &mut String, rows: usize) {
    if rows > SHOWN {
        text.push_str(&format!("and {} more; --json shows them\n", rows - SHOWN));
    }
}
