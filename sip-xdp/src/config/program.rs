//! From the configuration to the settings of the kernel programs.

use serde::{Deserialize, Serialize};
use sip_xdp_common::limits::gcra;
use sip_xdp_common::limits::storm::StormLimits;
use sip_xdp_common::packet::headers::{Inspects, Link};

use super::{BlockScope, Burst, Config, LimitsConfig, Policy, Rate, StormConfig};
use crate::dataplane::loader::{Capacity, Ports, Settings};

/// The configured rules for the packets of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRules {
    /// Default policy.
    pub policy: Policy,
    /// Prefix length under which IPv6 sources are metered together.
    pub ipv6_prefix: u8,
    /// Rate limits.
    pub limits: LimitsConfig,
}

impl From<&Config> for SourceRules {
    fn from(config: &Config) -> Self {
        Self {
            policy: config.policy,
            ipv6_prefix: config.ipv6_prefix,
            limits: config.limits.clone(),
        }
    }
}

impl Config {
    /// The settings of an interface with this link type, whose counters are in `slot`.
    pub fn program_settings(&self, link: Link, slot: u32) -> Settings {
        Settings {
            ports: self.port_set(),
            limits: self.meter_limits(),
            good: self.good_pace(),
            storm: self.storm_limits(),
            ipv6_prefix: self.ipv6_prefix,
            scope_all: self.block_scope == BlockScope::All,
            closed: self.policy == Policy::Closed,
            dry_run: self.dry_run,
            trial: false,
            inspects: Inspects { ipv6: self.inspect.ipv6, tags: self.inspect.tags },
            link,
            slot,
            clock_from_map: false,
            capacity: self.table_capacity(),
        }
    }

    /// The per-source limits in the kernel's units.
    pub fn meter_limits(&self) -> gcra::Limits {
        let limit = |rate: Rate| gcra::Pace::new(rate.count, rate.per.nanos());
        let limits = &self.limits.unknown;
        gcra::Limits {
            register: limit(limits.register),
            requests: limit(limits.requests),
            other: limit(limits.other),
            fragments: limit(limits.fragments),
            connections: limit(limits.connections),
            stream: gcra::STREAM,
        }
    }

    /// The limit of known sources in the kernel's units.
    pub fn good_pace(&self) -> gcra::Pace {
        let Burst { count, per, burst } = self.limits.good.requests;
        gcra::Pace::with_burst(count, per.nanos(), burst)
    }

    /// The storm thresholds in the kernel's units.
    pub fn storm_limits(&self) -> StormLimits {
        let StormConfig { new_sources, budget } = &self.limits.storm;
        let budget = gcra::Limit::new(budget.count, budget.per.nanos());
        StormLimits::new(new_sources.count, new_sources.per.nanos(), budget)
    }

    /// The bitmap of SIP ports.
    pub fn port_set(&self) -> Ports {
        Ports::new(self.ports.iter().map(|range| (range.first, range.last)))
    }

    /// The table sizes.
    pub fn table_capacity(&self) -> Capacity {
        Capacity { networks: self.capacity.networks, sources: self.capacity.sources }
    }
}
