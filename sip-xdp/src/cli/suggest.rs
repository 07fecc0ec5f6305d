//! `trust suggest`: proposals of trust from a PBX's configuration and from sources at their limit.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use sip_xdp::api::answers::DaemonStatus;
use sip_xdp::api::control::{self, Request};
use sip_xdp::config::Config;
use sip_xdp::config::SourceRules;
use sip_xdp::daemon::Overrides;
use sip_xdp::dataplane::counters;
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::sys::paths::Paths;
use sip_xdp::tools::suggest::{self, PBX_DIRS, Suggestions, Trusted};
use sip_xdp_common::abi::layout::List;

use super::Output;

/// Propose addresses to trust, with reasons
///
/// Reads a PBX's configuration (pjsip identifies and registrations, Kamailio's dispatcher and
/// permissions lists, FreeSWITCH's gateways and access lists, the trusted zone of FreePBX's
/// firewall), and finds known sources that are close to their limit. Changes nothing: run the lines
/// that you agree with.
#[derive(Debug, Args)]
pub(crate) struct Suggest {
    /// Look for a PBX's configuration here; may be repeated [default: the usual directories]
    #[arg(long, value_name = "DIR")]
    pbx_dir: Vec<PathBuf>,
}

impl Suggest {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        if let Some(missing) = self.pbx_dir.iter().find(|directory| !directory.is_dir()) {
            bail!(
                "{} is no directory; name the one with the PBX's configuration",
                missing.display()
            );
        }
        let directories = if self.pbx_dir.is_empty() {
            PBX_DIRS.map(PathBuf::from).to_vec()
        } else {
            self.pbx_dir
        };
        let config = Overrides::default().read(paths)?;
        let (pins, settings) = (Pins::new(&paths.pin_dir), SourceRules::from(&config));
        let trusted = trusted(paths, config).await;
        let suggestions =
            suggest::suggest(&directories, &pins, &paths.store_file(), &settings, &trusted)?;
        output.print(&suggestions, text)
    }
}

/// Existing trust, of the configuration and, as far as accessible, of the filter and its daemon.
async fn trusted(paths: &Paths, config: Config) -> Trusted {
    let mut trusted = Trusted {
        networks: config.trust.networks,
        hosts: config.trust.hosts.into_iter().collect(),
    };
    let rows = counters::rows(&Pins::new(&paths.pin_dir), List::Trust).unwrap_or_default();
    trusted.networks.extend(rows.into_iter().map(|row| row.network));
    if let Ok(status) = control::call::<DaemonStatus>(&paths.socket(), &Request::Status).await {
        let hosts = status.hosts.into_iter().filter(|host| host.purpose == "trust");
        trusted.hosts.extend(hosts.map(|host| host.name));
    }
    trusted
}

fn text(suggestions: &Suggestions) -> String {
    let mut text = String::new();
    for proposal in &suggestions.proposals {
        text.push_str(&format!("{}\n", proposal.command));
        proposal
            .reasons
            .iter()
            .skip(1)
            .for_each(|reason| text.push_str(&format!("    # also {reason}\n")));
    }
    for refused in &suggestions.refused {
        text.push_str(&format!("# not {}: {}\n", refused.who, refused.reason));
    }
    let Suggestions { proposals, trusted, files, .. } = suggestions;
    let seen =
        format!("# {} proposed, {trusted} trusted already, {files} files read", proposals.len());
    let hint = if *files == 0 {
        "; name the directory of the PBX's configuration with --pbx-dir"
    } else {
        ""
    };
    text + &seen + hint
}
