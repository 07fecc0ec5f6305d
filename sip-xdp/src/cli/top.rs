//! `top`: the terminal view.

use anyhow::Result;
use clap::Args;
use sip_xdp::config::Span;
use sip_xdp::observe::top::{self, Options};
use sip_xdp::sys::paths::Paths;

use super::Output;
use super::block::operator;

/// Live full-screen view: rates by verdict, worst sources with the evidence, latest bans, feeds,
/// warnings
///
/// Works without a daemon, and says so. Keys sort, filter, block, unblock and trust; `?` shows
/// them. With --json it prints the same data once.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Refresh interval
    #[arg(
        long,
        value_name = "INTERVAL",
        default_value = "1s",
        value_parser = super::at_least("100ms")
    )]
    interval: Span,
}

impl Top {
    pub(crate) async fn execute(self, paths: Paths, output: Output) -> Result<()> {
        if output.json {
            return output.print(&top::read(&paths).await?, |_| String::new());
        }
        let plain = std::env::var_os("NO_COLOR").is_some();
        top::run(paths, Options { interval: self.interval.0, plain, operator: operator() }).await
    }
}
