//! `confirm`: ends a trial (`run --confirm`), so that the filter keeps enforcing.

use anyhow::Result;
use sip_xdp::api::control::{self, Request};
use sip_xdp::sys::paths::Paths;

use super::Output;

/// Sends the request, and prints the resulting state.
pub(crate) async fn execute(paths: &Paths, output: Output) -> Result<()> {
    let answer = control::call(&paths.socket(), &Request::Confirm).await?;
    output.print(&answer, |answer| {
        let late = if answer["late"].as_bool().unwrap_or(false) {
            "late, it had been detached; now "
        } else {
            ""
        };
        format!("confirmed: {late}{}", answer["applied"].as_str().unwrap_or_default())
    })
}
