//! The configuration file. All keys are optional; an unknown key is an error that names the most
//! similar valid key, so that a typing error never disables a protection.
//!
//! More than 400 lines: the whole file format in one place; larger tables are files of their own.

mod feeds;
mod hep;
mod integrations;
mod metrics;
mod program;
mod spans;
#[cfg(test)]
mod tests;
mod values;

use std::cell::LazyCell;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sip_xdp_common::abi::layout::{DEFAULT_NETWORKS, DEFAULT_SOURCES};
use toml::{Table, Value};

use crate::dataplane::attach::xdp::ModeChoice;
use crate::net::network::Network;

use spans::Keys;

pub use feeds::{Factor, FeedAction, FeedConfig, FeedFormat, Guards};
pub use hep::{HepConfig, HepExportConfig, HepListen, HepServer, MAX_HEP};
pub use integrations::{CrowdsecConfig, NotifyConfig, Occasion};
pub use metrics::{Listen, MetricsConfig};
pub use program::SourceRules;
pub use values::{HostName, PortRange, Span};

// From a room above, as is `FeedFormat`: a rule's settings stand in the file of the rule.
pub use crate::detect::rules::Detect;

/// Maximum number of host names followed through DNS, in all lists together.
pub const MAX_NAMES: usize = 256;

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Interfaces to filter on; empty for those with a default route.
    pub interfaces: Vec<String>,
    /// SIP ports only.
    pub ports: Vec<PortRange>,
    /// Attach mode.
    pub mode: ModeChoice,
    /// Default policy.
    pub policy: Policy,
    /// Count without dropping.
    pub dry_run: bool,
    /// Learning period after a first start without state, in which volume is limited but never
    /// bans.
    pub learn: Span,
    /// Scope of blocks.
    pub block_scope: BlockScope,
    /// Prefix length under which IPv6 sources are judged together.
    #[schemars(range(max = 128))]
    pub ipv6_prefix: u8,
    /// Sources that are never dropped and never banned.
    pub trust: Trust,
    /// Sources that may send under the policy `closed`.
    pub admit: Admit,
    /// Rate limits.
    pub limits: LimitsConfig,
    /// Detection rules.
    pub detect: Detect,
    /// Ban durations.
    pub bans: Bans,
    /// Optional headers to inspect.
    pub inspect: Inspect,
    /// Table sizes.
    pub capacity: CapacityConfig,
    /// Listener of metrics and web page.
    pub metrics: MetricsConfig,
    /// Notifications.
    pub notify: NotifyConfig,
    /// Publication to CrowdSec.
    pub crowdsec: CrowdsecConfig,
    /// Where SIP servers send copies of messages that are encrypted on the wire.
    pub hep: Vec<HepConfig>,
    /// The capture server that gets bans and copies of dropped messages.
    pub hep_export: HepExportConfig,
    /// Feeds.
    pub feeds: Vec<FeedConfig>,
}

/// Default policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// All sources that are not blocked may send.
    #[default]
    Open,
    /// Only trusted, admitted, known-good and peer sources may send.
    Closed,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Closed => "closed",
        })
    }
}

/// Scope of blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockScope {
    /// SIP ports only.
    #[default]
    Sip,
    /// Everything but ARP, neighbour discovery and ICMP.
    All,
}

/// Sources that are never dropped and never banned.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct Trust {
    /// Networks.
    pub networks: Vec<Network>,
    /// Hosts and SIP domains, followed through SRV, A and AAAA records.
    pub hosts: Vec<HostName>,
}

/// Sources that may send under the policy `closed`, with the limits and rules of all others.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct Admit {
    /// Networks.
    pub networks: Vec<Network>,
    /// Hosts and SIP domains, followed through SRV, A and AAAA records.
    pub hosts: Vec<HostName>,
}

/// A rate: packets per time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Rate {
    /// Number.
    pub count: u32,
    /// Time.
    pub per: Span,
}

/// Rate limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsConfig {
    /// Unknown sources.
    pub unknown: UnknownLimits,
    /// Known-good sources and peers.
    pub good: GoodLimits,
    /// Storms.
    pub storm: StormConfig,
}

/// Storms: more distinct new sources than are plausible.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct StormConfig {
    /// Rate of distinct new sources above which a storm begins.
    pub new_sources: Rate,
    /// Budget that sources without a meter share during a storm.
    pub budget: Rate,
}

/// Limits of an unknown source.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct UnknownLimits {
    /// REGISTER requests.
    pub register: Rate,
    /// All requests, REGISTER among them.
    pub requests: Rate,
    /// Responses, keepalives and unparsed payloads, together.
    pub other: Rate,
    /// Fragmented messages, and messages longer than a sample (1,472 bytes), together.
    pub fragments: Rate,
    /// TCP connections. Known-good and admitted sources and peers have the limit of good ones.
    pub connections: Rate,
}

/// Limits of a known-good source or a peer.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct GoodLimits {
    /// Requests of any method per address. More accepted users raise the limit.
    pub requests: Burst,
}

/// A rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Burst {
    /// Number.
    pub count: u32,
    /// Time.
    pub per: Span,
    /// Packets at once.
    pub burst: u32,
}

/// Ban durations.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct Bans {
    /// The first level 1 ban.
    pub first: Span,
    /// Factor for each further one.
    pub factor: u32,
    /// Maximum.
    pub max: Span,
    /// Level 0 bans, which do not grow.
    pub unproven: Span,
    /// Time without an offence after which the next ban counts as the first.
    pub forget: Span,
    /// Whether five banned hosts of an IPv4 /24 within an hour ban the whole /24, if it has no
    /// known-good host. The event is sent in any case.
    pub ipv4_networks: bool,
}

/// Optional headers to inspect. Without them SIP behind such headers passes unseen, and the kernel
/// program has no code for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct Inspect {
    /// IPv6.
    pub ipv6: bool,
    /// VLAN tags and PPPoE sessions.
    pub tags: bool,
}

impl Default for Inspect {
    fn default() -> Self {
        Self { ipv6: true, tags: true }
    }
}

/// Table sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct CapacityConfig {
    /// Networks in all lists together.
    pub networks: u32,
    /// Unknown sources with a meter.
    pub sources: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            ports: vec![
                PortRange { first: 5060, last: 5060 },
                PortRange { first: 5061, last: 5061 },
            ],
            mode: ModeChoice::Auto,
            policy: Policy::Open,
            dry_run: false,
            learn: Span::seconds(0),
            block_scope: BlockScope::Sip,
            ipv6_prefix: 64,
            trust: Trust::default(),
            admit: Admit::default(),
            limits: LimitsConfig::default(),
            detect: Detect::default(),
            bans: Bans::default(),
            inspect: Inspect::default(),
            capacity: CapacityConfig::default(),
            metrics: MetricsConfig::default(),
            notify: NotifyConfig::default(),
            crowdsec: CrowdsecConfig::default(),
            hep: Vec::new(),
            hep_export: HepExportConfig::default(),
            feeds: Vec::new(),
        }
    }
}

impl Default for UnknownLimits {
    fn default() -> Self {
        Self {
            register: Rate { count: 100, per: Span::seconds(60) },
            requests: Rate { count: 50, per: Span::seconds(10) },
            other: Rate { count: 300, per: Span::seconds(10) },
            fragments: Rate { count: 10, per: Span::seconds(10) },
            connections: Rate { count: 60, per: Span::seconds(10) },
        }
    }
}

impl Default for StormConfig {
    fn default() -> Self {
        Self {
            new_sources: Rate { count: 2_000, per: Span::seconds(1) },
            budget: Rate { count: 500, per: Span::seconds(1) },
        }
    }
}

impl Default for GoodLimits {
    fn default() -> Self {
        Self { requests: Burst { count: 400, per: Span::seconds(1), burst: 4_000 } }
    }
}

impl Default for Bans {
    fn default() -> Self {
        Self {
            first: Span::seconds(600),
            factor: 2,
            max: Span::seconds(24 * 3600),
            unproven: Span::seconds(300),
            forget: Span::seconds(7 * 24 * 3600),
            ipv4_networks: false,
        }
    }
}

impl Default for CapacityConfig {
    fn default() -> Self {
        Self { networks: DEFAULT_NETWORKS, sources: DEFAULT_SOURCES }
    }
}

impl Config {
    /// Reads a file. A missing one counts as empty, unless it was named explicitly (`required`).
    pub fn read(path: &Path, required: bool) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|error| anyhow!("{}{error}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => {
                Ok(Self::default())
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                bail!("{} is not text: a configuration is TOML in UTF-8", path.display())
            }
            Err(error) => bail!(
                "{} cannot be read: {error}; check the path and its permissions",
                path.display()
            ),
        }
    }

    /// Parses a configuration. Errors begin with `:LINE: `, or `: ` without a line.
    pub fn parse(text: &str) -> Result<Self> {
        let keys = LazyCell::new(|| Keys::of(text));
        let at = |span: Option<Range<usize>>| match span {
            Some(span) => {
                format!(":{}: ", 1 + text[..span.start.min(text.len())].matches('\n').count())
            }
            None => ": ".to_owned(),
        };
        let fault = |error: toml::de::Error| {
            let key = error.span().and_then(|span| keys.at(span.start));
            let key = key.map_or_else(String::new, |key| format!("{key}: "));
            anyhow!("{}{key}{}", at(error.span()), in_words(error.message()))
        };
        let table: Table = toml::from_str(text).map_err(fault)?;
        if let Ok(mut known) = Table::try_from(Self::default()) {
            known.insert(
                "feeds".to_owned(),
                Value::Array(FeedConfig::template().into_iter().collect()),
            );
            known.insert(
                "hep".to_owned(),
                Value::Array(HepConfig::template().into_iter().collect()),
            );
            check_keys(&table, &known, "")
                .map_err(|(key, error)| anyhow!("{}{error}", at(keys.find(&key))))?;
        }
        let mut config: Self = toml::from_str(text).map_err(fault)?;
        config.check().map_err(|error| {
            // Messages begin with the key that they are about.
            let error = error.to_string();
            let about = error.split(' ').next().and_then(|key| keys.find(key));
            anyhow!("{}{error}", at(about))
        })?;
        let own = config.crowdsec.own_scenarios();
        for feed in config.feeds.iter_mut().filter(|feed| feed.format == FeedFormat::Crowdsec) {
            feed.own.clone_from(&own);
        }
        Ok(config)
    }

    /// What is valid and probably not meant.
    pub fn warnings(&self) -> Vec<String> {
        let is_listed =
            |port: u16| self.ports.iter().any(|range| (range.first..=range.last).contains(&port));
        let others = OTHER_SERVICES.iter().filter(|(port, _)| is_listed(*port));
        let others: Vec<String> =
            others.map(|(port, service)| format!("{port} ({service})")).collect();
        let mut warnings = Vec::new();
        if !others.is_empty() {
            warnings.push(format!(
                "ports contains {}: whatever unknown sources send there is limited like SIP, \
                 downloads and uploads too; list the ports of the SIP server alone",
                others.join(", ")
            ));
        }
        warnings
    }

    /// Checks values beyond their types.
    pub fn check(&self) -> Result<()> {
        if self.ports.is_empty() {
            bail!("ports is empty, so nothing would be filtered; leave it out for 5060 and 5061");
        }
        if !(32..=128).contains(&self.ipv6_prefix) {
            bail!(
                "ipv6_prefix = {} is out of range; use 32 to 128 (64 is what providers give a \
                 customer)",
                self.ipv6_prefix
            );
        }
        let limits = &self.limits.unknown;
        for (name, rate) in [
            ("register", limits.register),
            ("requests", limits.requests),
            ("other", limits.other),
            ("fragments", limits.fragments),
            ("connections", limits.connections),
        ] {
            check_rate(&format!("limits.unknown.{name}"), rate.count, rate.per)?;
            if u64::from(rate.count) * 1_000_000_000 > MAX_PER_SECOND * rate.per.nanos() {
                bail!(
                    "limits.unknown.{name} allows one source more than {MAX_PER_SECOND} packets a \
                     second, which is finer \
                     than its meter counts; lower count or lengthen per"
                );
            }
        }
        let storm = &self.limits.storm;
        for (name, rate) in [("new_sources", storm.new_sources), ("budget", storm.budget)] {
            check_rate(&format!("limits.storm.{name}"), rate.count, rate.per)?;
        }
        let Burst { count, per, burst } = self.limits.good.requests;
        check_rate("limits.good.requests", count, per)?;
        if burst < count || burst > 1_000_000 {
            bail!(
                "limits.good.requests.burst = {burst} is out of range; use {count} (its count) to \
                 1000000"
            );
        }
        self.detect.check()?;
        feeds::check(&self.feeds)?;
        hep::check(&self.hep)?;
        self.hep_export.check(&self.hep)?;
        self.notify.check()?;
        self.crowdsec.check()?;
        let Bans { first, factor, max, unproven, forget, ipv4_networks: _ } = self.bans;
        let (day, month) = (Span::seconds(24 * 3600), Span::seconds(30 * 24 * 3600));
        for (name, span, most) in [
            ("first", first, month),
            ("max", max, month),
            ("unproven", unproven, day),
            ("forget", forget, month),
        ] {
            if span < Span::seconds(1) || span > most {
                bail!("bans.{name} = \"{span}\" is out of range; use 1s to {most}");
            }
        }
        if !(1..=100).contains(&factor) {
            bail!("bans.factor = {factor} is out of range; use 1 (bans do not grow) to 100");
        }
        if max < first {
            bail!("bans.max = \"{max}\" is shorter than bans.first = \"{first}\"; make it longer");
        }
        for (name, count) in
            [("networks", self.capacity.networks), ("sources", self.capacity.sources)]
        {
            if !(16..=4_194_304).contains(&count) {
                bail!("capacity.{name} = {count} is out of range; use 16 to 4194304");
            }
        }
        if let Some(network) = self.trust.networks.iter().find(|network| network.prefix() == 0) {
            bail!(
                "trust.networks contains {network}, which would switch the filter off; name the \
                 networks you know"
            );
        }
        if let Some(network) = self.admit.networks.iter().find(|network| network.prefix() == 0) {
            bail!(
                "admit.networks contains {network}, which is policy = \"open\"; write that instead"
            );
        }
        let hosts = self.trust.hosts.len() + self.admit.hosts.len();
        if hosts > MAX_NAMES {
            bail!(
                "trust.hosts and admit.hosts have {hosts} names, of which {MAX_NAMES} can be \
                 followed; list networks"
            );
        }
        Ok(())
    }
}

/// Ports that a SIP server does not have, and whose they are.
const OTHER_SERVICES: [(u16, &str); 7] = [
    (22, "SSH"),
    (25, "mail"),
    (53, "DNS"),
    (80, "HTTP"),
    (443, "HTTPS"),
    (3306, "MySQL"),
    (5432, "PostgreSQL"),
];

/// Likeness (Jaro-Winkler) from which on an unknown key is taken for a misspelling of a known one.
const SIMILAR: f64 = 0.75;

/// Highest configurable limit per source, since meters count in ticks of 66 us; see
/// [`Pace`](sip_xdp_common::limits::gcra::Pace).
const MAX_PER_SECOND: u64 = 10_000;

pub(crate) fn check_rate(name: &str, count: u32, per: Span) -> Result<()> {
    if !(1..=1_000_000).contains(&count) {
        bail!("{name}.count = {count} is out of range; use 1 to 1000000");
    }
    if per < Span::seconds(1) || per > Span::seconds(24 * 3600) {
        bail!("{name}.per = \"{per}\" is out of range; use 1s to 24h");
    }
    Ok(())
}

/// Checks the keys of `table` against those of `known`. The error has the path of the bad key.
fn check_keys(table: &Table, known: &Table, prefix: &str) -> Result<(), (String, String)> {
    for (key, value) in table {
        let Some(expected) = known.get(key) else {
            let likeness = |known: &String| strsim::jaro_winkler(known, key);
            let nearest = known.keys().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
            let hint = match nearest {
                Some(nearest) if likeness(nearest) >= SIMILAR => {
                    format!("; did you mean {prefix}{nearest}?")
                }
                _ => "; `sip-xdp config show` lists all keys".to_owned(),
            };
            let path = format!("{prefix}{key}");
            return Err((path.clone(), format!("unknown key {path}{hint}")));
        };
        if let (Value::Table(table), Value::Table(expected)) = (value, expected) {
            check_keys(table, expected, &format!("{prefix}{key}."))?;
        }
        if let (Value::Array(rows), Value::Array(expected)) = (value, expected)
            && let Some(Value::Table(expected)) = expected.first()
        {
            rows.iter()
                .filter_map(Value::as_table)
                .try_for_each(|row| check_keys(row, expected, &format!("{prefix}{key}.")))?;
        }
    }
    Ok(())
}

/// A message of the parser, with TOML's words for what Rust has other names for.
fn in_words(message: &str) -> String {
    let mut words = message.replace('\n', " ");
    for (rust, toml) in [
        ("expected a sequence", "expected an array"),
        ("expected a map", "expected a table"),
        ("expected a boolean", "expected true or false"),
        ("invalid boolean, expected false", "expected true or false"),
        ("expected u8", "expected a number from 0 to 255"),
        ("expected u16", "expected a number from 0 to 65535"),
        ("expected u32", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("invalid type: sequence", "invalid type: array"),
        ("invalid type: map", "invalid type: table"),
    ] {
        words = words.replace(rust, toml);
    }
    match words.split_once("expected struct ") {
        Some((before, _)) => format!("{before}expected a table"),
        None => words,
    }
}
