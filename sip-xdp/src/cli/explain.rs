//! `explain`: what happens to packets of an address now, and why.

use std::net::IpAddr;

use anyhow::Result;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp::api::answers::Known;
use sip_xdp::api::control::{self, NoDaemon, Request};
use sip_xdp::config::{Config, SourceRules};
use sip_xdp::dataplane::counters::{self, FilteredInterface, SCHEMA};
use sip_xdp::dataplane::netlink::Netlink;
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::detect::View;
use sip_xdp::feeds;
use sip_xdp::net::network::Network;
use sip_xdp::observe::explain::{self, Decision, Facts, Kernel, Level, Match, Outcome, Suspect};
use sip_xdp::sip::transport::Transport;
use sip_xdp::store::Store;
use sip_xdp::store::state_dump::PastBan;
use sip_xdp::sys::paths::Paths;
use sip_xdp::text;

use super::Output;
use super::output::table;

/// Maximum number of past bans shown to people.
const SHOWN: usize = 5;

/// Show what happens to packets of an address now, which entry or limit decides, and the evidence
///
/// Works without a daemon, but then without the evidence, which the daemon keeps.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The address
    ip: IpAddr,
}

#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Report {
    schema: u32,
    time: jiff::Timestamp,
    address: IpAddr,
    /// Whether packets are dropped on any interface now: not in a dry run, nor after a trial that
    /// nobody confirmed.
    enforcing: bool,
    #[serde(flatten)]
    decision: Decision,
    #[serde(flatten)]
    kernel: Kernel,
    #[serde(flatten)]
    settings: SettingsShown,
    daemon: bool,
    #[serde(flatten)]
    known: View,
    history: Vec<PastBan>,
    notes: Vec<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct SettingsShown {
    policy: sip_xdp::config::Policy,
}

impl Explain {
    pub(crate) async fn execute(
        self,
        paths: &Paths,
        config_required: bool,
        output: Output,
    ) -> Result<()> {
        let report = self.collect(paths, config_required).await?;
        output.print(&report, |report| text(report, output))
    }

    async fn collect(self, paths: &Paths, config_required: bool) -> Result<Report> {
        let mut notes = Vec::new();
        let answer =
            match control::call(&paths.socket(), &Request::Explain { address: self.ip }).await {
                Ok(known) => Some::<Known>(known),
                Err(error) if error.is::<NoDaemon>() => {
                    notes.push(
                        "no daemon: its evidence is not shown, and limits are those of the \
                         configuration file"
                            .into(),
                    );
                    None
                }
                Err(error) => {
                    notes.push(format!("without the daemon's evidence: {error:#}"));
                    None
                }
            };
        let daemon = answer.is_some();
        let (settings, known) = match answer {
            Some(answer) => {
                let never = answer.never_banned.map(|why| format!("it is never banned: it {why}"));
                notes.extend(never);
                notes.extend(
                    answer.learning.then(|| "learning: volume bans nobody for now".to_owned()),
                );
                let failing = "the registrar rejects its own users: rejections ban nobody for now";
                notes.extend(answer.registrar_failing.then(|| failing.to_owned()));
                (answer.settings, answer.known)
            }
            None => {
                let config = Config::read(&paths.config, config_required).unwrap_or_else(|error| {
                    notes.push(format!("limits are the defaults: {error:#}"));
                    Config::default()
                });
                (SourceRules::from(&config), View::default())
            }
        };
        let pins = Pins::new(&paths.pin_dir);
        let mut kernel = explain::read(&pins, self.ip, &settings)?;
        if let Err(error) = name_feeds(&pins, paths, &mut kernel.matches) {
            notes.push(format!("without the names of feeds: {error:#}"));
        }
        let decision = explain::decide(&Facts { kernel: &kernel, policy: settings.policy });
        if kernel.dry_run {
            notes.push("it is a dry run: everything passes all the same".to_owned());
        }
        let present = Netlink::connect()?.interfaces().await?;
        let interfaces = counters::interfaces(&pins, &present)?;
        let enforcing = interfaces.iter().any(FilteredInterface::drops);
        if interfaces.is_empty() {
            notes.push("no interface is filtered".to_owned());
        }
        notes.extend(interfaces.iter().filter(|one| !one.dry_run).filter_map(|one| one.trouble()));
        let history = match history(paths, self.ip) {
            Ok(history) => history,
            Err(error) => {
                notes.push(format!("without its history: {error:#}"));
                Vec::new()
            }
        };
        Ok(Report {
            schema: SCHEMA,
            time: counters::now(),
            address: self.ip.to_canonical(),
            enforcing,
            decision,
            kernel,
            settings: SettingsShown { policy: settings.policy },
            daemon,
            known,
            history,
            notes,
        })
    }
}

/// Names the feeds that list a network, which the kernel's table does not know.
fn name_feeds(pins: &Pins, paths: &Paths, matches: &mut [Match]) -> Result<()> {
    if matches.iter().all(|one| one.owner != "feed" || one.claimant.is_some()) {
        return Ok(());
    }
    let rows = feeds::report::rows(pins, &paths.feeds_dir())?;
    for one in matches.iter_mut().filter(|one| one.owner == "feed" && one.claimant.is_none()) {
        let mut by = rows.iter().filter(|row| row.network == one.network);
        let first = by.next().filter(|row| row.claimant.is_some());
        one.claimant = first.and_then(|row| row.claimant.clone());
        one.added = first.map(|row| row.added);
        let others: Vec<&str> = by.filter_map(|row| row.claimant.as_deref()).collect();
        if !others.is_empty() {
            one.reason = format!("also {}", others.join(", "));
        }
    }
    Ok(())
}

/// The bans of an address, of its ports and of the networks around it, latest first.
fn history(paths: &Paths, address: IpAddr) -> Result<Vec<PastBan>> {
    let file = paths.store_file();
    if !file.exists() {
        return Ok(Vec::new());
    }
    let rows = Store::read_only(&file)?.history(&Network::host(address))?;
    Ok(rows.into_iter().map(PastBan::from).collect())
}

fn text(report: &Report, output: Output) -> String {
    let Report { kernel, known, decision, .. } = report;
    let is_off = !report.enforcing && !kernel.dry_run;
    let verdict = match decision.verdict {
        Outcome::Pass => output.good("passes"),
        Outcome::Limit if is_off => output.bad("would be limited, but nothing is dropped now"),
        Outcome::Drop if is_off => output.bad("would be dropped, but nothing is dropped now"),
        Outcome::Limit => output.bad("is limited"),
        Outcome::Drop => output.bad("is dropped"),
    };
    let dry_run = if kernel.dry_run { " (dry run)" } else { "" };
    let because = text::line(&decision.because);
    let mut text = format!("{} {verdict}{dry_run}: {because}\n", report.address);
    let mut line = |head: &str, what: String| {
        if !what.is_empty() {
            text.push_str(&format!("{head:9} {}\n", text::line(&what)));
        }
    };
    line("limits", kernel.limits.iter().map(level).collect::<Vec<_>>().join(", "));
    if let Some(limited) = &kernel.limited {
        line("limited", format!("{} packets since {}", limited.packets, time(limited.since)));
    }
    for place in &kernel.suspects {
        line("suspect", suspect(place));
    }
    if let Some(last) = &known.last {
        let user = last.user.as_ref().map(|user| format!(", user {user:?}")).unwrap_or_default();
        let by = by_stream(last.transport);
        line("last", format!("{} s ago{by}: {}{user}", last.age, last.start_line));
    }
    let users = known.accepted.iter().take(SHOWN).map(|accepted| {
        let state = if accepted.left > 0 {
            format!("for {} s more", accepted.left)
        } else {
            "no longer".to_owned()
        };
        let by = by_stream(accepted.transport);
        format!("{:?} at port {}{by} {state}", accepted.user, accepted.port)
    });
    line("users", users.collect::<Vec<_>>().join(", "));
    let refused = known.refused.iter().take(SHOWN);
    let refused = refused.map(|one| format!("{:?} for {} s more", one.user, one.left));
    line("refused", refused.collect::<Vec<_>>().join(", "));
    let expelled = known.expelled.iter().take(SHOWN);
    let expelled =
        expelled.map(|one| format!("{:?} earns no standing for {} s more", one.user, one.left));
    line("expelled", expelled.collect::<Vec<_>>().join(", "));
    let proven = if known.proven {
        "yes: it has repeated a nonce or a tag that only it was sent"
    } else {
        ""
    };
    line("proven", proven.to_owned());
    if known.served > 0 {
        line(
            "served",
            "yes: the server processes its calls without asking for credentials".to_owned(),
        );
    }
    for evidence in &known.evidence {
        let enough = match (evidence.limit, evidence.per) {
            (Some(limit), Some(_)) => format!(" ({} of {limit})", evidence.count),
            _ => String::new(),
        };
        line("evidence", format!("{}{enough}: {}", evidence.kind, evidence.text));
    }
    for note in &report.notes {
        line("note", note.clone());
    }
    if !kernel.matches.is_empty() {
        let heads = ["LIST", "NETWORK", "PORT", "OWNER", "EXPIRES", "HITS", "REASON"];
        text.push_str(&format!(
            "\n{}",
            table(&heads, &kernel.matches.iter().map(entry).collect::<Vec<_>>())
        ));
    }
    if !report.history.is_empty() {
        let rows: Vec<_> = report.history.iter().take(SHOWN).map(past).collect();
        text.push_str(&format!(
            "\n{}",
            table(&["BANNED", "NETWORK", "ENDED", "KIND", "REASON"], &rows)
        ));
        let more = report.history.len().saturating_sub(SHOWN);
        if more > 0 {
            text.push_str(&format!("and {more} earlier ones; --json shows them\n"));
        }
    }
    text
}

/// A place on the ladder.
fn suspect(place: &Suspect) -> String {
    let shared = match (place.network.is_host(), place.strangers_only) {
        (true, _) => "",
        (false, true) => ", shared by its hosts that are not known good",
        (false, false) => ", shared by all its hosts",
    };
    let until = place.until.map_or_else(String::new, |until| format!(", until {}", time(until)));
    format!(
        "{}: {} of what may try passwords{shared}{until}; {} packets dropped so far",
        place.network, place.pace, place.dropped
    )
}

fn level(level: &Level) -> String {
    format!("{} {} of {} left", level.limit, level.left, level.of)
}

fn entry(one: &Match) -> Vec<String> {
    vec![
        one.list.to_owned(),
        one.network.to_string(),
        one.port.map(|port| port.to_string()).unwrap_or_default(),
        if one.dry_run { format!("{} (dry run)", one.owner) } else { one.owner.to_owned() },
        one.expires.map_or_else(|| "never".to_owned(), time),
        one.hits.to_string(),
        one.reason.clone(),
    ]
}

fn past(ban: &PastBan) -> Vec<String> {
    let network = match ban.port {
        Some(port) => format!("{} port {port}", ban.network),
        None => ban.network.to_string(),
    };
    let by = ban.ended_by.as_ref().map(|by| format!(" ({by})")).unwrap_or_default();
    let ended = ban.ended.map_or_else(|| "not yet".to_owned(), |at| format!("{}{by}", time(at)));
    vec![time(ban.from), network, ended, ban.kind.clone(), ban.reason.clone()]
}

fn time(time: jiff::Timestamp) -> String {
    time.strftime("%F %T UTC").to_string()
}
/// Names a transport other than UDP.
fn by_stream(transport: Transport) -> String {
    if transport.is_stream() { format!(" by {transport}") } else { String::new() }
}
