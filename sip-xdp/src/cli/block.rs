//! `block`: the block list.

use std::net::IpAddr;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};
use sip_xdp::api::answers::{Listed, Removed, RemovedEntry};
use sip_xdp::api::control::{self, ListName, Request};
use sip_xdp::config::Span;
use sip_xdp::dataplane::counters::{self, Row};
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::feeds;
use sip_xdp::net::network::Network;
use sip_xdp::sys::paths::Paths;
use sip_xdp::text;
use sip_xdp_common::abi::layout::List;

use super::Output;
use super::import::{Export, Import};
use super::output::table;

/// The block list.
#[derive(Debug, Subcommand)]
pub(crate) enum Block {
    Add(Add),
    Del(Delete),
    List(Listing),
    Import(Import),
    Export(Export),
}

/// Block an address or a network
///
/// Permanently, or for a time. Trusted addresses, this host's own, its default gateway and its
/// resolvers are refused without --force.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// An address or a network: 192.0.2.1, 192.0.2.0/24, 2001:db8::/32
    network: String,
    /// Duration: 90s, 10m, 24h, 7d [default: permanent]
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Reason, shown in lists
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Block it even if it contains addresses that should stay reachable, or (for root only) is
    /// wider than /8 (IPv4) or /19 (IPv6)
    #[arg(long)]
    force: bool,
    /// Block on behalf of this program: the network stays blocked until the last such program has
    /// deleted it
    #[arg(long, value_name = "NAME", conflicts_with = "reason")]
    by: Option<String>,
}

/// Unblock an address or a network, and forget its offences
///
/// Removes manual and automatic entries for a network, or for the networks around an address, with
/// the evidence that led to them. Ends its limits as a suspect, with those of what is in it and
/// around it; refuses no users from there, and lets accounts earn standing there again.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// An address or a network
    network: String,
    /// Delete the entry of this program, for exactly this network; no error if there is none
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// List blocked networks with owner, reason and expiry
///
/// One row per owner. Works without a daemon.
#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// Only entries of this owner: manual, auto, tool, feed, or feed:NAME
    #[arg(long, value_name = "OWNER", value_parser = owner)]
    owner: Option<String>,
    /// Include feed entries; implied for people by --match and --owner, and always included in JSON
    #[arg(long)]
    all: bool,
    /// Only entries that contain this address or lie in this network
    #[arg(long = "match", value_name = "IP")]
    matching: Option<String>,
}

impl Block {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        match self {
            Self::Add(add) => add.execute(paths, output).await,
            Self::Del(delete) => delete.execute(paths, output).await,
            Self::List(listing) => listing.execute(paths, output),
            Self::Import(import) => import.execute(ListName::Block, paths, output).await,
            Self::Export(export) => export.execute(paths, output),
        }
    }
}

impl Add {
    async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let network: Network = self.network.parse()?;
        let request = Request::Add {
            list: ListName::Block,
            network,
            ttl: seconds(self.ttl)?,
            reason: self.reason,
            force: self.force,
            operator: operator(),
            by: self.by,
        };
        let listed: Listed = control::call(&paths.socket(), &request).await?;
        output.print(&listed, |listed| format!("blocked {network}{}", until(listed.expires)))
    }
}

impl Delete {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let request =
            Request::Delete { list: ListName::Block, network: self.network.parse()?, by: self.by };
        let gone: Removed = control::call(&paths.socket(), &request).await?;
        output.print(&gone, |gone| {
            let mut lines = removed("unblocked", &gone.removed);
            for place in &gone.suspects {
                lines += &format!("{place} is no longer limited as a suspect\n");
            }
            for user in &gone.refused {
                lines += &format!("passwords of {user:?} are no longer refused from there\n");
            }
            for user in &gone.expelled {
                lines += &format!("{user:?} may earn a standing there again\n");
            }
            lines
        })
    }
}

impl Listing {
    fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let pins = Pins::new(&paths.pin_dir);
        let mut rows = counters::rows(&pins, List::Block)?;
        let wants_feeds = self.owner.as_ref().is_some_and(|owner| owner.starts_with("feed"));
        if self.all || output.json || self.matching.is_some() || wants_feeds {
            rows.extend(feeds::report::rows(&pins, &paths.feeds_dir())?);
        }
        let is_owned = |row: &Row, owner: &str| {
            row.owner == owner || (owner == "feed" && row.owner.starts_with("feed:"))
        };
        rows.retain(|row| self.owner.as_ref().is_none_or(|owner| is_owned(row, owner)));
        let matching: Option<Network> = self.matching.map(|text| text.parse()).transpose()?;
        rows.retain(|row| {
            matching.is_none_or(|m| row.network.contains(&m) || m.contains(&row.network))
        });
        output.print(&rows, |rows| list(rows, true))
    }
}

/// An owner of the block list.
fn owner(text: &str) -> Result<String, String> {
    match text {
        "manual" | "auto" | "tool" | "feed" => Ok(text.to_owned()),
        _ if text.starts_with("feed:") => Ok(text.to_owned()),
        _ => Err("use manual, auto, tool, feed, or feed:NAME".to_owned()),
    }
}

/// The rows of a list as a table.
pub(super) fn list(rows: &[Row], hits: bool) -> String {
    if rows.is_empty() {
        return "none\n".to_owned();
    }
    let mut heads = vec!["NETWORK", "OWNER", "ADDED", "EXPIRES", "REASON"];
    if hits {
        heads.insert(4, "HITS");
    }
    let time = |time: jiff::Timestamp| time.strftime("%F %T UTC").to_string();
    let cells = |row: &Row| {
        let owner =
            if row.dry_run { format!("{} (dry run)", row.owner) } else { row.owner.clone() };
        let expires = row.expires.map_or_else(|| "never".to_owned(), time);
        let mut cells = vec![
            place(&row.network, row.port),
            owner,
            time(row.added),
            expires,
            row.reason.clone(),
        ];
        if hits {
            cells.insert(4, row.hits.to_string());
        }
        cells
    };
    table(&heads, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// A network, or one flow of an address.
fn place(network: &impl std::fmt::Display, port: Option<u16>) -> String {
    port.map_or_else(|| network.to_string(), |port| format!("{network} port={port}"))
}

/// " until ..." for what ends, " for good" for what does not.
pub(super) fn until(expires: Option<jiff::Timestamp>) -> String {
    expires.map_or_else(
        || " for good".to_owned(),
        |expires| format!(" until {}", expires.strftime("%F %T UTC")),
    )
}

/// Entries that were removed, a line each.
pub(super) fn removed(verb: &str, entries: &[RemovedEntry]) -> String {
    let line = |entry: &RemovedEntry| {
        let RemovedEntry { network, port, owner, reason, .. } = entry;
        let reason =
            if reason.is_empty() { String::new() } else { format!(": {}", text::line(reason)) };
        format!("{verb} {} ({owner}{reason})\n", place(network, *port))
    };
    entries.iter().map(line).collect()
}

/// A ttl in whole seconds, at least one.
pub(super) fn seconds(ttl: Option<String>) -> Result<Option<u64>> {
    let ttl: Option<Span> =
        ttl.map(|text| text.parse().map_err(|error| anyhow!("--ttl: {error}"))).transpose()?;
    match ttl {
        Some(ttl) if ttl < Span::seconds(1) => {
            bail!("--ttl: {ttl} is over at once; give at least 1s")
        }
        ttl => Ok(ttl.map(|ttl| ttl.0.as_secs())),
    }
}

/// The operator's own address, if logged in by ssh.
pub(super) fn operator() -> Option<IpAddr> {
    std::env::var("SSH_CONNECTION").ok()?.split(' ').next()?.parse().ok()
}
