//! `reload`: has the daemon read its configuration again.

use anyhow::Result;
use sip_xdp::api::answers::Applied;
use sip_xdp::api::control::{self, Request};
use sip_xdp::sys::paths::Paths;

use super::Output;

/// Sends the request, and prints what is in force now.
pub(crate) async fn execute(paths: &Paths, output: Output) -> Result<()> {
    let applied: Applied = control::call(&paths.socket(), &Request::Reload).await?;
    output.print(&applied, |applied| format!("reloaded: {}", applied.applied))
}
