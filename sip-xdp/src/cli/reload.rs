//! `reload`: has the daemon read its configuration again.

use anyhow::Result;
use sip_xdp::api::control::{self, Request};
use sip_xdp::sys::paths::Paths;

use super::Output;

/// Sends the request, and prints what is in force now.
pub(crate) async fn execute(paths: &Paths, output: Output) -> Result<()> {
    let answer = control::call(&paths.socket(), &Request::Reload).await?;
    output.print(&answer, |answer| {
        format!("reloaded: {}", answer["applied"].as_str().unwrap_or_default())
    })
}
