//! `confirm`: ends a trial (`run --confirm`), so that the filter keeps enforcing.

use anyhow::Result;
use sip_xdp::api::answers::Confirmed;
use sip_xdp::api::control::{self, Request};
use sip_xdp::sys::paths::Paths;

use super::Output;

/// Sends the request, and prints the resulting state.
pub(crate) async fn execute(paths: &Paths, output: Output) -> Result<()> {
    let confirmed: Confirmed = control::call(&paths.socket(), &Request::Confirm).await?;
    output.print(&confirmed, |confirmed| {
        let late = if confirmed.late { "late, it had been detached; now " } else { "" };
        format!("confirmed: {late}{}", confirmed.applied)
    })
}
