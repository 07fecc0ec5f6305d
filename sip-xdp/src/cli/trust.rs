//! `trust`: the trust list.

use anyhow::Result;
use clap::{Args, Subcommand};
use sip_xdp::control::{self, ListName, Request};
use sip_xdp::network::Network;
use sip_xdp::paths::Paths;
use sip_xdp::pins::Pins;
use sip_xdp::report;
use sip_xdp_common::layout::List;

use super::Output;
use super::block;

/// The trust list: never dropped, never banned, checked before the block list.
#[derive(Debug, Subcommand)]
pub(crate) enum Trust {
    Add(Add),
    Del(Delete),
    /// Who is trusted; works with the daemon dead
    List,
}

/// Trust an address or a network
///
/// For good, or for a time. Kept over restarts and reboots.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// An address or a network: 203.0.113.5, 203.0.113.0/24, 2001:db8::/32
    network: String,
    /// For how long: 90s, 10m, 24h, 7d [default: for good]
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Why, for whoever looks at the list later
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// Trust it no longer
///
/// Removes an entry that was added by command.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The network, as `trust list` shows it
    network: String,
}

impl Trust {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        match self {
            Self::Add(add) => {
                let network: Network = add.network.parse()?;
                let request = Request::Add {
                    list: ListName::Trust,
                    network,
                    ttl: block::seconds(add.ttl)?,
                    reason: add.reason,
                    force: false,
                    operator: None,
                };
                let answer = control::call(&paths.socket(), &request).await?;
                output.print(&answer, |answer| {
                    let blocked = answer["was_blocked"].as_bool().unwrap_or(false);
                    let note = if blocked { "; it is on the block list too, where trust wins" } else { "" };
                    format!("trusted {network}{}{note}", block::until(answer))
                })
            }
            Self::Del(delete) => {
                let request = Request::Delete { list: ListName::Trust, network: delete.network.parse()? };
                let answer = control::call(&paths.socket(), &request).await?;
                output.print(&answer, |answer| block::removed("no longer trusted:", answer))
            }
            Self::List => {
                let rows = report::rows(&Pins::new(&paths.pin_dir), List::Trust)?;
                output.print(&rows, |rows| block::list(rows, false))
            }
        }
    }
}
