//! `trust`: the trust list.

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use sip_xdp::api::answers::{DaemonStatus, HostRemoved, HostRow, HostTrusted, Listed, Removed};
use sip_xdp::api::control::{self, ListName, Request};
use sip_xdp::config::{HostName, Span};
use sip_xdp::dataplane::counters;
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::net::network::Network;
use sip_xdp::sys::paths::Paths;
use sip_xdp_common::abi::layout::List;

use super::Output;
use super::block;
use super::import::Import;
use super::output::table;
use super::suggest::Suggest;

/// The trust list: never dropped, never banned, checked before the block list.
#[derive(Debug, Subcommand)]
pub(crate) enum Trust {
    Add(Add),
    Del(Delete),
    /// List trusted networks and hosts; works without a daemon
    List,
    Import(Import),
    Suggest(Suggest),
}

/// Trust an address, a network, or a host
///
/// Permanently, or for a time. Survives restarts and reboots. A host is followed through DNS (SRV,
/// A and AAAA), and trusting it is as safe as DNS is: whoever can forge its answers is trusted too.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// An address, a network or a host: 203.0.113.5, 203.0.113.0/24, 2001:db8::/32,
    /// sip.carrier.example
    #[arg(value_name = "NETWORK|HOST")]
    who: String,
    /// Duration: 90s, 10m, 24h, 7d [default: permanent]
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Reason, shown in lists
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Trust it although it is wider than /8 (IPv4) or /19 (IPv6); for root only
    #[arg(long)]
    force: bool,
}

/// End the trust in a network or host
///
/// Removes an entry that was added by command.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The network or the host, as `trust list` shows it
    #[arg(value_name = "NETWORK|HOST")]
    who: String,
}

/// The subject of trust.
enum Subject {
    Network(Network),
    Host(HostName),
}

/// Parses an address, a network, or a host name.
fn read(text: &str) -> Result<Subject> {
    match text.parse::<Network>() {
        Ok(network) => Ok(Subject::Network(network)),
        // Without letters, or with characters that no name has, it is a mistyped address or
        // network.
        Err(error)
            if text.contains(['/', ':']) || !text.contains(|c: char| c.is_ascii_alphabetic()) =>
        {
            Err(error.into())
        }
        Err(_) => text.parse().map(Subject::Host).map_err(|error: String| anyhow!(error)),
    }
}

impl Trust {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        match self {
            Self::Add(add) => add.execute(paths, output).await,
            Self::Del(delete) => delete.execute(paths, output).await,
            Self::List => list(paths, output).await,
            Self::Suggest(suggest) => suggest.execute(paths, output).await,
            Self::Import(import) => import.execute(ListName::Trust, paths, output).await,
        }
    }
}

impl Add {
    async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let (ttl, reason) = (block::seconds(self.ttl)?, self.reason);
        match read(&self.who)? {
            Subject::Network(network) => {
                let (list, force, operator) = (ListName::Trust, self.force, None);
                let request =
                    Request::Add { list, network, ttl, reason, force, operator, by: None };
                let listed: Listed = control::call(&paths.socket(), &request).await?;
                output.print(&listed, |listed| {
                    let note = if listed.was_blocked == Some(true) {
                        "; it is on the block list too, where trust wins"
                    } else {
                        ""
                    };
                    format!("trusted {network}{}{note}", block::until(listed.expires))
                })
            }
            Subject::Host(name) => {
                let request = Request::TrustHost { name: name.clone(), ttl, reason };
                let trusted: HostTrusted = control::call(&paths.socket(), &request).await?;
                output.print(&trusted, |trusted| {
                    let until = block::until(trusted.expires);
                    format!(
                        "trusted {name}{until}; `sip-xdp trust list` shows its addresses when DNS \
                         has answered"
                    )
                })
            }
        }
    }
}

impl Delete {
    async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let verb = "no longer trusted:";
        match read(&self.who)? {
            Subject::Network(network) => {
                let request = Request::Delete { list: ListName::Trust, network, by: None };
                let gone: Removed = control::call(&paths.socket(), &request).await?;
                output.print(&gone, |gone| {
                    let removed = block::removed(verb, &gone.removed);
                    match gone.still.as_ref().and_then(|s| s.still_trusted_by_host.as_deref()) {
                        Some(host) => {
                            format!(
                                "{removed}but {network} is trusted all the same, as an address of \
                                 {host}"
                            )
                        }
                        None => removed,
                    }
                })
            }
            Subject::Host(name) => {
                let gone: HostRemoved =
                    control::call(&paths.socket(), &Request::DistrustHost { name: name.clone() })
                        .await?;
                output.print(&gone, |gone| {
                    format!("{verb} {name}\n{}", block::removed(verb, &gone.removed))
                })
            }
        }
    }
}

/// The entries, and for people the hosts behind them, if a daemon follows them.
async fn list(paths: &Paths, output: Output) -> Result<()> {
    let rows = counters::rows(&Pins::new(&paths.pin_dir), List::Trust)?;
    let hosts = if output.json {
        None
    } else {
        control::call::<DaemonStatus>(&paths.socket(), &Request::Status).await.ok()
    };
    output.print(&rows, |rows| {
        let hosts = hosts.iter().flat_map(|status| &status.hosts);
        let of_trust = hosts.filter(|host| host.purpose == "trust");
        let hosts: Vec<Vec<String>> = of_trust.map(host_cells).collect();
        let entries = block::list(rows, false);
        if hosts.is_empty() {
            return entries;
        }
        format!(
            "{entries}\n{}",
            table(&["HOST", "OWNER", "ADDRESSES", "ANSWERED", "REASON"], &hosts)
        )
    })
}

/// A host's row.
fn host_cells(host: &HostRow) -> Vec<String> {
    let HostRow { name, owner, reason, .. } = host;
    let addresses: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
    let mut answered = match host.age {
        Some(age) => format!("{} ago", Span::seconds(age)),
        None => "never".to_owned(),
    };
    if let Some(error) = &host.error {
        answered = format!("{answered}, then: {error}");
    }
    vec![name.to_string(), owner.clone(), addresses.join(" "), answered, reason.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_from_hosts() {
        for (text, is_host) in [
            ("192.0.2.1", false),
            ("2001:db8::/32", false),
            ("abcd::1", false),
            ("sip.carrier.example", true),
            ("1and1.example", true),
        ] {
            assert_eq!(matches!(read(text).unwrap(), Subject::Host(_)), is_host, "{text}");
        }
        for text in [
            "",
            "192.0.2.256",
            "192.0.2.0/33",
            "host.example/24",
            "2001:db8:::1",
            "-a.example",
            "a..example",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
