//! The configuration file. Everything in it is optional; a key that nobody knows is an error that
//! names the nearest one that exists, so that a typing error never leaves a protection off.

mod feeds;
mod hep;
mod integrations;
mod metrics;
mod program;
mod rules;
#[cfg(test)]
mod tests;
mod values;

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use sip_xdp_common::abi::layout::{DEFAULT_NETWORKS, DEFAULT_SOURCES};
use toml::{Table, Value};

use crate::dataplane::attach::xdp::ModeChoice;
use crate::net::network::Network;

pub use feeds::{Factor, FeedAction, FeedConfig, FeedFormat, Guards};
pub use hep::{HepConfig, HepListen, MAX_HEP};
pub use integrations::{CrowdsecConfig, NotifyConfig, Occasion};
pub use metrics::{Listen, MetricsConfig};
pub use program::SourceRules;
pub use rules::{Decoy, Detect, Leak, Rule, Signature};
pub use values::{HostName, PortRange, Span};

/// How many host names are followed through DNS, whatever they are for.
pub const MAX_NAMES: usize = 256;

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The interfaces to filter on; none means those with a default route.
    pub interfaces: Vec<String>,
    /// The SIP ports.
    pub ports: Vec<PortRange>,
    /// How to attach.
    pub mode: ModeChoice,
    /// Who may talk at all.
    pub policy: Policy,
    /// Count what would be dropped, and drop nothing.
    pub dry_run: bool,
    /// How long after a first start without state volume limits but never bans.
    pub learn: Span,
    /// What blocked sources lose.
    pub block_scope: BlockScope,
    /// The length under which IPv6 sources are judged together.
    pub ipv6_prefix: u8,
    /// Who is never dropped and never banned.
    pub trust: Trust,
    /// Who may talk under the policy `closed`.
    pub admit: Admit,
    /// What sources may send.
    pub limits: LimitsConfig,
    /// What leads to a ban.
    pub detect: Detect,
    /// How long bans last.
    pub bans: Bans,
    /// Which headers are looked behind.
    pub inspect: Inspect,
    /// How large the tables are.
    pub capacity: CapacityConfig,
    /// Where metrics and the web page are offered.
    pub metrics: MetricsConfig,
    /// Who is told what happens.
    pub notify: NotifyConfig,
    /// Who shares our bans.
    pub crowdsec: CrowdsecConfig,
    /// Where SIP servers send copies of messages that are encrypted on the wire.
    pub hep: Vec<HepConfig>,
    /// Lists that others keep.
    pub feeds: Vec<FeedConfig>,
}

/// Who may talk at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Everybody who is not blocked.
    #[default]
    Open,
    /// Only who is trusted, admitted, known good, or a peer.
    Closed,
}

/// What blocked sources lose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockScope {
    /// The SIP ports.
    #[default]
    Sip,
    /// Everything but ARP, neighbour discovery and ICMP.
    All,
}

/// Who is never dropped and never banned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trust {
    /// Networks.
    pub networks: Vec<Network>,
    /// Hosts and SIP domains, followed through SRV, A and AAAA.
    pub hosts: Vec<HostName>,
}

/// Who may talk under the policy `closed`, and is limited and judged like everybody else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Admit {
    /// Networks.
    pub networks: Vec<Network>,
    /// Hosts and SIP domains, followed through SRV, A and AAAA.
    pub hosts: Vec<HostName>,
}

/// A number of packets in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In which time.
    pub per: Span,
}

/// What sources may send.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsConfig {
    /// Sources of which nothing is known.
    pub unknown: UnknownLimits,
    /// Sources that are known good, and peers.
    pub good: GoodLimits,
    /// What a storm is, and what strangers may send in one.
    pub storm: StormConfig,
}

/// What a storm is: more distinct new sources than can be real.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StormConfig {
    /// More than so many distinct new sources are a storm.
    pub new_sources: Rate,
    /// What sources without a meter may send together while it lasts.
    pub budget: Rate,
}

/// What a source may send of which nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnknownLimits {
    /// REGISTER requests.
    pub register: Rate,
    /// All requests, REGISTER among them.
    pub requests: Rate,
    /// Responses, keepalives and what cannot be parsed, together.
    pub other: Rate,
    /// Messages in fragments, and longer ones than the detector is shown (1,472 bytes), together.
    pub fragments: Rate,
}

/// What a source may send that is known good, or a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GoodLimits {
    /// Requests of an address, whatever they are. An address with many accepted users may send
    /// more.
    pub requests: Burst,
}

/// A number of packets in a time, and how many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burst {
    /// How many.
    pub count: u32,
    /// In which time.
    pub per: Span,
    /// How many at once.
    pub burst: u32,
}

/// How long bans last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bans {
    /// The first ban on evidence that is proven.
    pub first: Span,
    /// How much longer each further one is.
    pub factor: u32,
    /// The longest.
    pub max: Span,
    /// Bans on evidence that could be forged. They do not grow.
    pub unproven: Span,
    /// After so long without an offence, the next ban is a first one again.
    pub forget: Span,
    /// Whether five banned hosts of an IPv4 /24 within an hour ban all of it, if nobody good lives
    /// there. It is always said.
    pub ipv4_networks: bool,
}

/// Which headers are looked behind. SIP behind what is switched off passes unseen; the kernel
/// program is made without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// How large the tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CapacityConfig {
    /// Networks in each of the lists.
    pub networks: u32,
    /// Unknown sources that are metered at the same time.
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
    /// Reads a file. One that does not exist is empty, unless it was asked for by name
    /// (`required`).
    pub fn read(path: &Path, required: bool) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|error| anyhow!("{}{error}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => {
                Ok(Self::default())
            }
            Err(error) => bail!(
                "{} cannot be read: {error}; check the path and its permissions",
                path.display()
            ),
        }
    }

    /// Parses the text of a file. Errors start with `:LINE: `, or with `: ` where no line is to
    /// blame.
    pub fn parse(text: &str) -> Result<Self> {
        let at = |span: Option<std::ops::Range<usize>>| match span {
            Some(span) => {
                format!(":{}: ", 1 + text[..span.start.min(text.len())].matches('\n').count())
            }
            None => ": ".to_owned(),
        };
        let fault = |error: toml::de::Error| {
            anyhow!("{}{}", at(error.span()), error.message().replace('\n', " "))
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
                .map_err(|(key, error)| anyhow!("{}{error}", at(find_key(text, &key))))?;
        }
        let mut config: Self = toml::from_str(text).map_err(fault)?;
        config.check().map_err(|error| anyhow!(": {error}"))?;
        let own = config.crowdsec.own_scenarios();
        for feed in config.feeds.iter_mut().filter(|feed| feed.format == FeedFormat::Crowdsec) {
            feed.own.clone_from(&own);
        }
        Ok(config)
    }

    /// Checks what types cannot say.
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

/// The highest limit of one source: its meter counts in ticks of 66 us, see [`gcra::Pace`].
const MAX_PER_SECOND: u64 = 10_000;

fn check_rate(name: &str, count: u32, per: Span) -> Result<()> {
    if !(1..=1_000_000).contains(&count) {
        bail!("{name}.count = {count} is out of range; use 1 to 1000000");
    }
    if per < Span::seconds(1) || per > Span::seconds(24 * 3600) {
        bail!("{name}.per = \"{per}\" is out of range; use 1s to 24h");
    }
    Ok(())
}

/// Holds the keys of `table` against those of `known`. The error carries the bad key's last part.
fn check_keys(table: &Table, known: &Table, prefix: &str) -> Result<(), (String, String)> {
    for (key, value) in table {
        let Some(expected) = known.get(key) else {
            let nearest = known.keys().max_by(|a, b| {
                strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key))
            });
            let hint = nearest
                .map(|nearest| format!("; did you mean {prefix}{nearest}?"))
                .unwrap_or_default();
            return Err((key.clone(), format!("unknown key {prefix}{key}{hint}")));
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

/// Where a key is written, for the line number: as a key, or as the last part of a table's name.
fn find_key(text: &str, key: &str) -> Option<std::ops::Range<usize>> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_start();
        let is_key =
            bare.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', '.']));
        let is_table =
            bare.starts_with('[') && bare.trim_matches(['[', ']', '\n', '\r', ' ']).ends_with(key);
        if is_key || is_table || bare.contains(&format!("{key} =")) {
            return Some(start..start + line.len());
        }
        start += line.len();
    }
    None
}
