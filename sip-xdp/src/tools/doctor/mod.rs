//! `doctor`: checks of a host, each with a status and a remedy.
//!
//! Read-only: the programs are loaded to test the verifier, but not attached; nothing is sent
//! except connections to the feeds' servers, and nothing written except the verifier log of a
//! refusal. Checks without sufficient rights say so. Works with or without a daemon.

mod device;
mod feeds;
mod hep;
mod host;
mod interfaces;
mod links;
mod nat;
mod sip;
mod sockets;

use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp_common::abi::layout::List;
use sip_xdp_common::packet::headers::Link;

use crate::api::answers::DaemonStatus;
use crate::api::control::{self, Request};
use crate::config::{Config, HepListen};
use crate::dataplane::counters::{self, FilteredInterface, SCHEMA};
use crate::dataplane::loader::{self, Trial};
use crate::dataplane::netlink::{Interface, Netlink, Surroundings};
use crate::dataplane::pins::Pins;
use crate::dataplane::probe::Platform;
use crate::dataplane::refusal;
use crate::sys::paths::Paths;

/// The status of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Passed.
    Ok,
    /// It works with a caveat, or could not be checked.
    Warn,
    /// It does not work, or leaves a gap.
    Fail,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Check {
    /// Name of the check.
    pub check: &'static str,
    /// The interface, if it concerns one.
    pub interface: Option<String>,
    /// Status.
    pub status: Status,
    /// Observation.
    pub detail: String,
    /// Remedy.
    pub remedy: Option<String>,
}

impl Check {
    /// A passed check.
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, interface: None, status: Status::Ok, detail: detail.into(), remedy: None }
    }

    /// A warning.
    fn warn(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Status::Warn, remedy: Some(remedy.into()), ..Self::ok(check, detail) }
    }

    /// A failure.
    fn fail(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::warn(check, detail, remedy) }
    }

    /// Sets the interface.
    fn on(self, interface: &str) -> Self {
        Self { interface: Some(interface.to_owned()), ..self }
    }
}

/// All results.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Diagnosis {
    /// Version of this object.
    pub schema: u32,
    /// Checks, in the order in which they should be fixed.
    pub checks: Vec<Check>,
    /// Verifier figures of the programs, if they could be loaded.
    pub programs: Option<Trial>,
}

impl Diagnosis {
    /// Whether nothing failed.
    pub fn is_well(&self) -> bool {
        self.checks.iter().all(|check| check.status != Status::Fail)
    }
}

/// Facts that several checks share.
struct HostFacts {
    config: Config,
    /// All interfaces of this network namespace.
    present: Vec<Interface>,
    /// Addresses of this host, with their interface index.
    addresses: Vec<(u32, std::net::IpAddr)>,
    around: Surroundings,
    /// The daemon's status, if accessible.
    daemon: Option<DaemonStatus>,
    /// Filtered interfaces, as far as readable.
    filtered: Vec<FilteredInterface>,
    /// Known sources, as far as readable.
    known: Option<Known>,
    /// Whether this process is root in its user namespace.
    is_root: bool,
}

/// Numbers of known sources.
struct Known {
    good: usize,
    peers: usize,
    /// Trusted or admitted, by any owner.
    trusted: usize,
}

impl Known {
    fn read(pins: &Pins) -> anyhow::Result<Self> {
        let sources = counters::stats(pins)?.sources;
        let trusted =
            counters::rows(pins, List::Trust)?.len() + counters::rows(pins, List::Admit)?.len();
        Ok(Self { good: sources.good, peers: sources.peers, trusted })
    }
}

impl HostFacts {
    /// Whether our program is attached to an interface.
    fn is_filtered(&self, index: u32) -> bool {
        self.filtered.iter().any(|filtered| filtered.index == index && filtered.attached)
    }

    /// Names of the interfaces that are, or would be, filtered.
    fn wanted(&self, asked: &[String]) -> Vec<String> {
        if !asked.is_empty() {
            return asked.to_vec();
        }
        if !self.filtered.is_empty() {
            return self.filtered.iter().map(|filtered| filtered.interface.clone()).collect();
        }
        if !self.config.interfaces.is_empty() {
            return self.config.interfaces.clone();
        }
        let defaults =
            self.present.iter().filter(|one| self.around.default_interfaces.contains(&one.index));
        defaults.map(|interface| interface.name.clone()).collect()
    }
}

/// What a running daemon cannot read: SIP over TLS and WebSocket to a server of this host that does
/// not tell. In the words of the check.
pub fn unread(daemon: &DaemonStatus) -> Option<String> {
    let places = daemon.hep.iter();
    let listen = places.filter_map(|place| HepListen::try_from(place.listen.clone()).ok());
    let taken = daemon.hep.iter().map(|place| place.taken).sum();
    let found = hep::unread(&sockets::listeners(), &listen.collect::<Vec<_>>(), taken);
    match (found, daemon.tcp.unread().filter(|_| taken == 0)) {
        (Some(found), Some(unread)) => Some(format!("{unread}; {found}")),
        // On a gateway no listener is found.
        (None, Some(unread)) => {
            Some(format!("{unread}; have the SIP server send HEP to a `[[hep]]` table"))
        }
        (found, None) => found,
    }
}

/// Runs all checks. `asked` are the interfaces to check, if not those that are or would be
/// filtered.
pub async fn examine(paths: &Paths, config: anyhow::Result<Config>, asked: &[String]) -> Diagnosis {
    let mut checks = Vec::new();
    let config = match config {
        Ok(config) => {
            checks.push(configuration(paths));
            config
        }
        Err(error) => {
            let remedy = "correct the file; what follows supposes the defaults. `sip-xdp config \
                          check` reads it again";
            checks.push(Check::fail("configuration", format!("{error:#}"), remedy));
            Config::default()
        }
    };
    let platform = Platform::ask();
    checks.extend(host::platform(&platform));
    // With a missing feature the load would only fail for the same reason.
    let trial = platform.check().is_ok().then(|| {
        let loaded = loader::trial(&config.program_settings(Link::Ethernet, 0));
        loaded.map_err(|error| refusal::keep_log(error, &paths.state_dir))
    });
    checks.extend(trial.as_ref().map(host::programs));
    checks.extend([host::container(&platform), host::bpffs(&paths.pin_dir)]);
    checks.extend([host::clock(), host::state(&paths.state_dir)]);
    checks.extend(feeds::reachable(&config.feeds));
    match collect_facts(paths, config).await {
        Ok(facts) => {
            checks.push(filter(&facts, paths));
            let wanted = facts.wanted(asked);
            checks.extend(interfaces::all(&facts, &wanted));
            checks.extend(sip::all(&facts, &wanted));
        }
        Err(error) => checks.push(Check::fail(
            "interfaces",
            format!("{error:#}"),
            "allow this process netlink sockets (AF_NETLINK); without them no interface can be \
             found",
        )),
    }
    Diagnosis { schema: SCHEMA, checks, programs: trial.and_then(Result::ok) }
}

async fn collect_facts(paths: &Paths, config: Config) -> anyhow::Result<HostFacts> {
    let netlink = Netlink::connect()?;
    let present = netlink.interfaces().await?;
    // Unreadable pins count as missing; the check of the filter reports it.
    let pins = Pins::new(&paths.pin_dir);
    let filtered = counters::interfaces(&pins, &present).unwrap_or_default();
    Ok(HostFacts {
        config,
        addresses: netlink.addresses().await?,
        around: netlink.surroundings().await?,
        daemon: control::call(&paths.socket(), &Request::Status).await.ok(),
        known: Known::read(&pins).ok(),
        filtered,
        present,
        is_root: nix::unistd::geteuid().is_root(),
    })
}

fn configuration(paths: &Paths) -> Check {
    let file = paths.config.display();
    let detail = if paths.config.exists() {
        format!("{file} is valid")
    } else {
        format!("no {file}: the defaults apply")
    };
    Check::ok("configuration", detail)
}

/// Whether a filter is loaded, and supervised by a daemon.
fn filter(facts: &HostFacts, paths: &Paths) -> Check {
    const CHECK: &str = "filter";
    let attached: Vec<_> = facts.filtered.iter().filter(|filtered| filtered.attached).collect();
    let names = |all: &[&FilteredInterface]| {
        all.iter().map(|one| one.interface.clone()).collect::<Vec<_>>().join(", ")
    };
    if !facts.is_root && facts.filtered.is_empty() {
        return Check::warn(
            CHECK,
            format!(
                "whether a filter is loaded cannot be seen: {} may only be read by root",
                paths.pin_dir.display()
            ),
            "run it as root to see everything",
        );
    }
    let confirm = facts.daemon.as_ref().and_then(|daemon| daemon.confirm.as_ref());
    if attached.is_empty() && confirm.is_some_and(|confirm| confirm.detached) {
        return Check::warn(
            CHECK,
            "detached, since nobody confirmed in time: nothing is dropped",
            "`sip-xdp confirm` attaches it again",
        );
    }
    if attached.is_empty() {
        return Check::warn(
            CHECK,
            "no filter is loaded: nothing is dropped",
            "start it: `sip-xdp run --dry-run` to look on, then `sip-xdp run`, or its service",
        );
    }
    if attached.iter().any(|one| one.trial_over) {
        return Check::warn(
            CHECK,
            format!("nothing is dropped on {}: nobody confirmed in time", names(&attached)),
            "`sip-xdp run` attaches it anew",
        );
    }
    if attached.iter().any(|one| one.dry_run) {
        let detail = format!("a dry run on {}: nothing is dropped", names(&attached));
        return Check::warn(
            CHECK,
            detail,
            "when its figures look right, take dry_run out and run `sip-xdp reload`",
        );
    }
    match &facts.daemon {
        Some(daemon) => {
            Check::ok(CHECK, format!("enforcing on {}, daemon {}", names(&attached), daemon.pid))
        }
        None => Check::warn(
            CHECK,
            format!(
                "enforcing on {}, but no daemon answers: nobody new is banned",
                names(&attached)
            ),
            "start `sip-xdp run`; it adopts the filter",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_is_a_failure() {
        let checks = vec![Check::ok("a", "b"), Check::warn("c", "d", "e")];
        let mut diagnosis = Diagnosis { schema: 1, checks, programs: None };
        assert!(diagnosis.is_well());
        diagnosis.checks.push(Check::fail("f", "g", "h").on("eth0"));
        assert!(!diagnosis.is_well());
        let json = serde_json::to_value(&diagnosis).unwrap();
        assert_eq!(json["checks"][0]["remedy"], serde_json::Value::Null);
        assert_eq!(
            (&json["checks"][2]["status"], &json["checks"][2]["interface"]),
            (&"fail".into(), &"eth0".into())
        );
    }
}
