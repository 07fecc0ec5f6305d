//! `reload`: reloads the daemon's configuration.

use anyhow::Result;
use sip_xdp::api::answers::Applied;
use sip_xdp::api::control::{self, Request};
use sip_xdp::sys::paths::Paths;

use super::Output;

/// Sends the request, and prints the resulting state.
pub(crate) async fn execute(paths: &Paths, output: Output) -> Result<()> {
    let applied: Applied = control::call(&paths.socket(), &Request::Reload).await?;
    output.print(&applied, |applied| format!("reloaded: {}", applied.applied))
}
