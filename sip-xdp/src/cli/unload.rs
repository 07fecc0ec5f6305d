//! `unload`: detaches the filter.

use anyhow::{Context, Result, bail};
use clap::Args;
use sip_xdp::api::answers::Unloaded;
use sip_xdp::api::control::{self, NoDaemon, Request};
use sip_xdp::dataplane::attach::offloads::Offload;
use sip_xdp::dataplane::counters;
use sip_xdp::dataplane::netlink::Netlink;
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::sys::paths::Paths;

use super::Output;

/// Detach the filter and remove its tables
///
/// Detaches the filter and removes everything that is pinned; a running daemon ends. The lists stay
/// on disk for the next start.
#[derive(Debug, Args)]
pub(crate) struct Unload {
    /// Only from this interface; may be repeated
    #[arg(long = "iface", value_name = "IF")]
    interfaces: Vec<String>,
}

/// The result for an offload that had been switched off for the filter.
fn offload(offload: &Offload) -> String {
    let Offload { interface, offload: name, error } = offload;
    match error {
        None => format!("{interface}: {name} is on again"),
        Some(error) => format!(
            "{interface}: {name} was switched off for the filter and cannot be switched on again \
             ({error}); try `ethtool -K {interface} {name} on`"
        ),
    }
}

impl Unload {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<()> {
        let request = Request::Unload { interfaces: self.interfaces.clone() };
        let unloaded: Unloaded = match control::call(&paths.socket(), &request).await {
            Ok(unloaded) => unloaded,
            Err(error) if error.is::<NoDaemon>() => self.by_hand(paths).await?,
            Err(error) => return Err(error),
        };
        output.print(&unloaded, |Unloaded { unloaded, offloads }| {
            if unloaded.is_empty() {
                return "nothing was loaded".to_owned();
            }
            let first = format!("unloaded from {}", unloaded.join(", "));
            std::iter::once(first)
                .chain(offloads.iter().map(offload))
                .collect::<Vec<_>>()
                .join("\n")
        })
    }

    /// Without a daemon.
    async fn by_hand(&self, paths: &Paths) -> Result<Unloaded> {
        let pins = Pins::new(&paths.pin_dir);
        if !paths.pin_dir.exists() {
            return Ok(Unloaded::default());
        }
        let _lock = pins.lock().context("a daemon holds the filter, but does not answer")?;
        // Everything pinned must be removed, even with unreadable tables.
        let known = match Netlink::connect() {
            Ok(netlink) => {
                netlink.interfaces().await.and_then(|present| counters::interfaces(&pins, &present))
            }
            Err(error) => Err(error),
        }
        .unwrap_or_default();
        let names = |interfaces: &[counters::FilteredInterface]| -> Vec<String> {
            interfaces.iter().map(|interface| interface.interface.clone()).collect()
        };
        let chosen: Vec<_> = known
            .iter()
            .filter(|interface| self.interfaces.contains(&interface.interface))
            .cloned()
            .collect();
        if let Some(unknown) = self.interfaces.iter().find(|name| !names(&chosen).contains(name)) {
            bail!("{unknown} is not filtered; see `sip-xdp status`");
        }
        if chosen.is_empty() || chosen.len() == known.len() {
            let offloads = pins.remove_all()?;
            return Ok(Unloaded { unloaded: names(&known), offloads });
        }
        let mut offloads = Vec::new();
        for interface in &chosen {
            offloads.extend(counters::forget_interface(&pins, &interface.interface)?);
        }
        Ok(Unloaded { unloaded: names(&chosen), offloads })
    }
}
