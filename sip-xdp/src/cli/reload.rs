//! `reload`: reloads the daemon's configuration.

use anyhow::Result;
use sip_xdp::api::control::{self, Request};
use sip_xdp::sys::paths::Paths;

use super::Output;

/// Sends the request, and prints the resulting state.
pub(crate) async fn execute(paths: &Paths, output: Output) -> Result<()> {
    let answer = control::call(&paths.socket(), &Request::Reload).await?;
    output.print(&answer, |answer| {
        format!("reloaded: {}", answer["applied"].as_str().unwrap_or_default())
    })
}
