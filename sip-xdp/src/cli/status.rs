//! `status`: loaded programs, and health.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp::api::answers::DaemonStatus;
use sip_xdp::api::control::{self, Request};
use sip_xdp::dataplane::counters::{self, FilteredInterface, SCHEMA};
use sip_xdp::dataplane::netlink::Netlink;
use sip_xdp::dataplane::pins::Pins;
use sip_xdp::observe::health::Health;
use sip_xdp::sys::paths::Paths;
use sip_xdp::text;
use sip_xdp::tools::doctor;

use super::Output;
use super::output::table;

/// Show interfaces, the daemon's state, and warnings
///
/// Works without a daemon.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Exit with 0 only if packets are judged and dropped on every interface; print only problems
    #[arg(long)]
    check: bool,
}

/// Memory in bytes.
#[derive(Debug, JsonSchema, Serialize)]
struct Memory {
    /// The tables, in the kernel.
    tables: u64,
}

#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Report {
    schema: u32,
    time: jiff::Timestamp,
    enforcing: bool,
    loaded: bool,
    daemon: Option<DaemonStatus>,
    interfaces: Vec<FilteredInterface>,
    blocklist: Option<counters::Occupancy>,
    memory: Option<Memory>,
    /// Losses on the way to the daemon.
    lost: Option<counters::Losses>,
    warnings: Vec<String>,
}

impl Status {
    pub(crate) async fn execute(self, paths: &Paths, output: Output) -> Result<ExitCode> {
        let mut report = collect(paths).await?;
        report.warnings.extend(report.daemon.as_ref().and_then(doctor::unread));
        let healthy = report.enforcing;
        if self.check && !output.json {
            if healthy {
                for warning in &report.warnings {
                    eprintln!("sip-xdp: warning: {}", text::line(warning));
                }
            } else {
                eprintln!("sip-xdp: not enforcing: {}", text::line(&report.warnings.join("; ")));
            }
        } else {
            output.print(&report, |report| text(report, output))?;
        }
        Ok(if self.check && !healthy { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

async fn collect(paths: &Paths) -> Result<Report> {
    let pins = Pins::new(&paths.pin_dir);
    pins.check_access()?;
    let (daemon, trouble) = match control::call(&paths.socket(), &Request::Status).await {
        Ok(daemon) => (Some(daemon), None),
        Err(error) if error.is::<control::NoDaemon>() => (None, None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let loaded = pins.is_loaded();
    let (mut interfaces, mut blocklist, mut memory, mut lost) = (Vec::new(), None, None, None);
    let mut is_storm = false;
    if loaded {
        let present = Netlink::connect()?.interfaces().await?;
        interfaces = counters::interfaces(&pins, &present)?;
        blocklist = Some(counters::occupancy(&pins)?);
        memory = Some(Memory { tables: counters::memory(&pins)? });
        lost = Some(counters::losses(&pins)?);
        is_storm = counters::is_storm(&pins)?;
    }
    let health = Health {
        interfaces: &interfaces,
        blocklist: blocklist.as_ref(),
        is_storm,
        daemon: daemon.as_ref(),
        trouble: trouble.as_deref(),
    };
    let (enforcing, warnings) = (health.is_enforcing(), health.warnings());
    Ok(Report {
        schema: SCHEMA,
        time: counters::now(),
        enforcing,
        loaded,
        daemon,
        interfaces,
        blocklist,
        memory,
        lost,
        warnings,
    })
}

fn text(report: &Report, output: Output) -> String {
    let mut text = String::new();
    let state = match (report.enforcing, report.loaded) {
        (true, _) => output.good("enforcing"),
        (false, true) => output.bad("not enforcing"),
        (false, false) => output.bad("not loaded"),
    };
    text.push_str(&format!("filter    {state}\n"));
    let daemon = match &report.daemon {
        Some(daemon) => format!("running, pid {}", daemon.pid),
        None => output.bad("not running"),
    };
    text.push_str(&format!("daemon    {daemon}\n"));
    if let Some(daemon) = &report.daemon {
        let ports: Vec<String> = daemon.ports.iter().map(ToString::to_string).collect();
        text.push_str(&format!("policy    {}, ports {}\n", daemon.policy, ports.join(" ")));
    }
    if let Some(list) = &report.blocklist {
        text.push_str(&format!(
            "blocked   {} IPv4 and {} IPv6 networks of {}\n",
            list.ipv4, list.ipv6, list.capacity
        ));
    }
    if let Some(memory) = &report.memory {
        let mebibytes = memory.tables as f64 / f64::from(1 << 20);
        text.push_str(&format!("tables    {mebibytes:.1} MiB of kernel memory\n"));
    }
    if let Some(lost) = report.lost.filter(|lost| lost.events + lost.samples > 0) {
        text.push_str(&format!(
            "lost      {} events and {} samples, which were too many\n",
            lost.events, lost.samples
        ));
    }
    if !report.interfaces.is_empty() {
        let rows: Vec<Vec<String>> = report
            .interfaces
            .iter()
            .map(|i| {
                let mode = i.mode.map(|mode| mode.to_string()).unwrap_or_default();
                let mut blind = report.daemon.iter().flat_map(|daemon| &daemon.blind);
                let is_blind =
                    blind.any(|one| one.interface == i.interface && one.action.is_none());
                let state = match (i.attached, i.dry_run) {
                    (false, _) if i.current_name.is_none() => "gone",
                    (false, _) => "detached",
                    (true, _) if is_blind => "blind",
                    (true, _) if i.trial_over => "trial over",
                    (true, true) => "dry run",
                    (true, false) => "enforcing",
                };
                vec![
                    i.interface.clone(),
                    mode,
                    state.to_owned(),
                    i.since.strftime("%F %T UTC").to_string(),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&table(&["INTERFACE", "MODE", "STATE", "SINCE"], &rows));
    }
    for warning in &report.warnings {
        text.push_str(&format!("\n{} {warning}", output.bad("warning:")));
    }
    text
}
