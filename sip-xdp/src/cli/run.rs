//! `run`: the daemon.

use std::io::Write;

use anyhow::Result;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp::config::Span;
use sip_xdp::daemon::{self, Overrides};
use sip_xdp::dataplane::attach::xdp::ModeChoice;
use sip_xdp::sys::paths::Paths;
use sip_xdp::text;

use super::Output;

/// Attach the filter, or adopt a running one, and supervise it until stopped
///
/// Attaches the filter, or adopts a running one without a gap, and supervises it in the foreground.
/// Prints one line that starts with `ready` when it enforces. Stopping it (SIGTERM, Ctrl-C) leaves
/// the filter enforcing; SIGHUP reloads the configuration.
///
/// Attaching natively takes the link of some drivers (igb, igc, ixgbe, i40e, gve, vmxnet3) down and
/// up once; `sip-xdp doctor` reports it. With --confirm, an unconfirmed filter is detached at the
/// deadline, on every exit path; if the daemon is killed, nothing is dropped after the deadline,
/// and the next start detaches.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Filter on this interface; may be repeated [default: those of the configuration, else those
    /// with a default route]
    #[arg(long = "iface", value_name = "IF")]
    interfaces: Vec<String>,
    /// Attach mode: native if the driver supports it (auto), only native (native), or in the
    /// network stack (generic)
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Option<ModeChoice>,
    /// Count and report what would be dropped, but drop nothing
    #[arg(long)]
    dry_run: bool,
    /// Detach after this time without `sip-xdp confirm`: for trials over the network
    #[arg(long, value_name = "TIME", conflicts_with = "dry_run", value_parser = confirmation)]
    confirm: Option<Span>,
}

/// Parses a trial's length: long enough to notice a lockout, short enough to wait for.
fn confirmation(text: &str) -> Result<Span, String> {
    let span: Span = text.parse()?;
    if span < Span::seconds(1) || span > Span::seconds(24 * 3600) {
        return Err(format!("{span} is out of range; use 1s to 24h"));
    }
    Ok(span)
}

impl Run {
    pub(crate) async fn execute(
        self,
        paths: Paths,
        config_required: bool,
        output: Output,
    ) -> Result<()> {
        init_log();
        let Self { interfaces, mode, dry_run, confirm } = self;
        let confirm = confirm.map(|span| span.0);
        let overrides = Overrides {
            config_required,
            interfaces,
            mode,
            dry_run,
            confirm,
            blind: false,
            egress_ways: None,
        };
        daemon::run(paths, overrides, |summary| {
            let line = if output.json {
                serde_json::to_string(&Ready { event: "ready", summary }).unwrap_or_default()
            } else {
                format!("ready: {summary}")
            };
            // A closed output is no reason to stop filtering.
            let _ = writeln!(std::io::stdout(), "{line}");
        })
        .await
    }
}

/// The line that says that the filter enforces.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Ready<'a> {
    /// Always `ready`.
    #[schemars(extend("const" = "ready"))]
    event: &'static str,
    /// The filtered interfaces with their modes.
    summary: &'a str,
}

/// Log lines for journald, which adds the time, with the priority prefixes of sd-daemon(3). On a
/// terminal the time is added.
fn init_log() {
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let environment = env_logger::Env::new().filter_or("SIP_XDP_LOG", "info");
    env_logger::Builder::from_env(environment)
        .format(move |to, record| {
            // Attackers control parts of some lines, and must not forge further lines.
            let line = text::line(&record.args().to_string());
            if under_systemd {
                let priority = match record.level() {
                    log::Level::Error => 3,
                    log::Level::Warn => 4,
                    log::Level::Info => 6,
                    log::Level::Debug | log::Level::Trace => 7,
                };
                writeln!(to, "<{priority}>{line}")
            } else {
                writeln!(to, "{} {:5} {line}", to.timestamp_millis(), record.level())
            }
        })
        .init();
}
