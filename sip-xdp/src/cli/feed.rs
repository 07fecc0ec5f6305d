//! `feed`: lists kept by others.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use sip_xdp::api::answers::Rounds;
use sip_xdp::api::control::{self, NoDaemon, Request};
use sip_xdp::feeds::engine::FeedRow;
use sip_xdp::sys::paths::Paths;

use super::Output;
use super::output::table;

/// Poll interval for the end of a synchronisation.
const POLL: Duration = Duration::from_millis(100);

/// Timeout of a synchronisation.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Lists kept by others.
#[derive(Debug, Subcommand)]
pub(crate) enum Feed {
    /// Show the state of each feed: entries, age, errors, and what was left out
    List,
    Sync(Sync),
}

/// Fetch a feed, or all feeds, now
///
/// Waits for the result; exits with 1 and the reason if a list cannot be fetched or is refused.
#[derive(Debug, Args)]
pub(crate) struct Sync {
    /// Name of the feed [default: all]
    name: Option<String>,
    /// Accept a list that is empty, or that shrank or grew too much
    #[arg(long, requires = "name")]
    accept: bool,
}

impl Feed {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        match self {
            Self::List => {
                let rows: Vec<FeedRow> = ask(paths, &Request::FeedList).await?;
                output.print(&rows, |rows| text(rows))
            }
            Self::Sync(sync) => sync.execute(paths, output).await,
        }
    }
}

impl Sync {
    async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let request = Request::FeedSync { name: self.name, accept: self.accept };
        let Rounds { rounds } = ask(paths, &request).await?;
        let start = Instant::now();
        let mut rows = loop {
            let rows: Vec<FeedRow> = ask(paths, &Request::FeedList).await?;
            let is_done = |name: &String, round: u64| {
                rows.iter().find(|row| row.name == *name).is_none_or(|row| row.round >= round)
            };
            if rounds.iter().all(|(name, round)| is_done(name, *round)) {
                break rows;
            }
            if start.elapsed() > TIMEOUT {
                bail!(
                    "it is not over after {} s; see `sip-xdp feed list` and the daemon's log",
                    TIMEOUT.as_secs()
                );
            }
            tokio::time::sleep(POLL).await;
        };
        rows.retain(|row| rounds.contains_key(&row.name));
        let failed: Vec<_> = rows
            .iter()
            .filter_map(|row| Some(format!("{}: {}", row.name, row.error.as_ref()?)))
            .collect();
        if rows.is_empty() {
            output.print(&rows, |_| "there are no feeds".to_owned())?;
        } else {
            let done: String = rows.iter().filter(|row| row.error.is_none()).map(synced).collect();
            output.print(&rows, |_| done)?;
        }
        if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
    }
}

async fn ask<T: DeserializeOwned>(paths: &Paths, request: &Request) -> Result<T> {
    control::call(&paths.socket(), request).await.map_err(|error| {
        match error.downcast::<NoDaemon>() {
            Ok(error) => {
                anyhow!("{error}; what feeds listed stays in force meanwhile, but is not refreshed")
            }
            Err(error) => error,
        }
    })
}

fn synced(row: &FeedRow) -> String {
    let FeedRow { name, added, removed, .. } = row;
    let changes = match (added, removed) {
        (Some(added), Some(removed)) => {
            format!(" (the last change: {added} added, {removed} removed)")
        }
        _ => String::new(),
    };
    format!("{name}: {} IPv4 and {} IPv6 networks{changes}\n", row.ipv4, row.ipv6)
}

/// The feeds as text: a table, then notable states.
fn text(rows: &[FeedRow]) -> String {
    if rows.is_empty() {
        return "there are no feeds; [[feeds]] in the configuration adds one\n".to_owned();
    }
    let cells = |row: &FeedRow| {
        let skipped: u64 = row.skipped.values().sum();
        vec![
            row.name.clone(),
            row.format.clone(),
            row.action.clone(),
            row.ipv4.to_string(),
            row.ipv6.to_string(),
            row.age.map_or_else(|| "never".to_owned(), span),
            span(row.next),
            skipped.to_string(),
            if row.error.is_some() { "failing" } else { "well" }.to_owned(),
        ]
    };
    let heads = ["FEED", "FORMAT", "ACTION", "IPV4", "IPV6", "AGE", "NEXT", "SKIPPED", "STATE"];
    let mut text = table(&heads, &rows.iter().map(cells).collect::<Vec<_>>());
    for row in rows {
        for note in notes(row) {
            text.push_str(&format!("{}: {note}\n", row.name));
        }
    }
    text
}

fn notes(row: &FeedRow) -> Vec<String> {
    let mut notes: Vec<String> = row.error.iter().cloned().collect();
    if row.detected {
        notes.push(format!("read as the format {}, which was detected", row.format));
    }
    if row.empty {
        notes.push("its list is empty, and taken as that".to_owned());
    }
    if !row.skipped.is_empty() {
        let reasons: Vec<_> =
            row.skipped.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let first = row
            .first_malformed
            .map(|line| format!(", the first malformed one in line {line}"))
            .unwrap_or_default();
        notes.push(format!("skipped {}{first}", reasons.join(", ").replace('_', " ")));
    }
    if row.host_bits > 0 {
        notes.push(format!(
            "{} networks with bits set behind their prefix, taken as networks",
            row.host_bits
        ));
    }
    if row.split > 0 {
        notes.push(format!("{} networks split around what must stay reachable", row.split));
    }
    if !row.guards.is_empty() {
        notes.push(format!("guards that fired: {}", row.guards.join(", ").replace('_', " ")));
    }
    notes
}

/// Seconds in the largest unit that fits.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}
