//! `[detect]`: detection rules. A table in the file may set some keys; the others keep their
//! defaults.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{Span, check_rate};

/// A rule with a count per time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Whether it can ban.
    pub enabled: bool,
    /// Count.
    pub count: u32,
    /// Time.
    pub per: Span,
}

/// A rule with a leaky bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Leak {
    /// Whether it can ban.
    pub enabled: bool,
    /// Capacity of the bucket.
    pub count: u32,
    /// Time in which one leaks out.
    pub per: Span,
}

/// Requests with a tool's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Signature {
    /// Whether it can ban.
    pub enabled: bool,
    /// Prefixes of tools' User-Agents, case-insensitive.
    pub agents: Vec<String>,
    /// Prefixes of User-Agents that attackers share with legitimate products, case-insensitive: no
    /// verdict by themselves, but they halve the thresholds.
    pub products: Vec<String>,
    /// Whether From-tags in the form of a known tool count.
    pub tags: bool,
    /// User names that only tools try.
    pub users: Vec<String>,
}

/// Decoys: users that do not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decoy {
    /// Whether it can ban.
    pub enabled: bool,
    /// Configured decoys.
    pub users: Vec<String>,
    /// Number of sources that must try a never-accepted user to make it a decoy.
    pub count: u32,
    /// Time in which they must do so.
    pub per: Span,
}

/// Detection rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, from = "Parts")]
pub struct Detect {
    /// REGISTER floods by one sender.
    pub register: Rule,
    /// Floods of requests of any method by one sender.
    pub requests: Rule,
    /// Rejected credentials.
    pub rejected: Rule,
    /// Rejected credentials at a slow rate.
    pub slow: Leak,
    /// Enumeration of users.
    pub enumeration: Rule,
    /// Requests with a tool's signature.
    pub signature: Signature,
    /// Refused calls.
    pub invites: Leak,
    /// Tries of decoys.
    pub decoy: Decoy,
    /// Tries of an accepted user's password from unknown sources.
    pub sprayed: Rule,
}

/// `[detect]` as written: all parts are optional.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Parts {
    register: Part,
    requests: Part,
    rejected: Part,
    slow: Part,
    enumeration: Part,
    signature: Option<Signature>,
    invites: Part,
    decoy: Option<Decoy>,
    sprayed: Part,
}

/// A rule as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    enabled: Option<bool>,
    count: Option<u32>,
    per: Option<Span>,
}

impl Part {
    fn rule(self, default: Rule) -> Rule {
        Rule {
            enabled: self.enabled.unwrap_or(default.enabled),
            count: self.count.unwrap_or(default.count),
            per: self.per.unwrap_or(default.per),
        }
    }

    fn leak(self, default: Leak) -> Leak {
        let Leak { enabled, count, per } = default;
        let Rule { enabled, count, per } = self.rule(Rule { enabled, count, per });
        Leak { enabled, count, per }
    }
}

impl From<Parts> for Detect {
    fn from(parts: Parts) -> Self {
        let default = Self::default();
        Self {
            register: parts.register.rule(default.register),
            requests: parts.requests.rule(default.requests),
            rejected: parts.rejected.rule(default.rejected),
            slow: parts.slow.leak(default.slow),
            enumeration: parts.enumeration.rule(default.enumeration),
            signature: parts.signature.unwrap_or(default.signature),
            invites: parts.invites.leak(default.invites),
            decoy: parts.decoy.unwrap_or(default.decoy),
            sprayed: parts.sprayed.rule(default.sprayed),
        }
    }
}

impl Default for Detect {
    fn default() -> Self {
        let rule = |count, seconds| Rule { enabled: true, count, per: Span::seconds(seconds) };
        let leak = |count, seconds| Leak { enabled: true, count, per: Span::seconds(seconds) };
        Self {
            register: rule(100, 60),
            requests: rule(50, 10),
            rejected: rule(10, 600),
            slow: leak(20, 1_800),
            enumeration: rule(10, 600),
            signature: Signature::default(),
            invites: leak(5, 6 * 3600),
            decoy: Decoy::default(),
            sprayed: rule(10, 3600),
        }
    }
}

/// Tools whose User-Agents were seen on the wire. Products for people, such as softphones whose
/// library attackers use as well, are excluded.
const TOOLS: [&str; 14] = [
    "friendly-scanner",
    "friendly-request",
    "sipvicious",
    "sipcli",
    "sundayddr",
    "iWar",
    "sip-scan",
    "sipscan",
    "SIVuS",
    "Gulp",
    "smap",
    "pplsip",
    "Nmap NSE",
    "Nsauditor",
];

/// Products that attackers use as well.
const PRODUCTS: [&str; 2] = ["VaxSIPUserAgent", "VaxIPUserAgent"];

impl Default for Signature {
    fn default() -> Self {
        Self {
            enabled: true,
            agents: TOOLS.map(str::to_owned).to_vec(),
            products: PRODUCTS.map(str::to_owned).to_vec(),
            tags: true,
            users: ["sipvicious", "nm"].map(str::to_owned).to_vec(),
        }
    }
}

impl Default for Decoy {
    fn default() -> Self {
        Self { enabled: true, users: Vec::new(), count: 5, per: Span::seconds(24 * 3600) }
    }
}

impl Detect {
    /// The rules by name, and whether each may ban.
    pub fn names(&self) -> [(&'static str, bool); 9] {
        [
            ("register", self.register.enabled),
            ("requests", self.requests.enabled),
            ("rejected", self.rejected.enabled),
            ("slow", self.slow.enabled),
            ("enumeration", self.enumeration.enabled),
            ("signature", self.signature.enabled),
            ("invites", self.invites.enabled),
            ("decoy", self.decoy.enabled),
            ("sprayed", self.sprayed.enabled),
        ]
    }

    /// Twice the count of a rule, in the same time; none for one that counts nothing.
    pub fn looser(&self, name: &str) -> Option<(u32, Span)> {
        let (count, per) = match name {
            "register" => (self.register.count, self.register.per),
            "requests" => (self.requests.count, self.requests.per),
            "rejected" => (self.rejected.count, self.rejected.per),
            "slow" => (self.slow.count, self.slow.per),
            "enumeration" => (self.enumeration.count, self.enumeration.per),
            "invites" => (self.invites.count, self.invites.per),
            "decoy" => (self.decoy.count, self.decoy.per),
            "sprayed" => (self.sprayed.count, self.sprayed.per),
            _ => return None,
        };
        Some((count.saturating_mul(2), per))
    }

    /// Checks values beyond their types.
    pub(super) fn check(&self) -> Result<()> {
        let leak = |leak: Leak| (leak.count, leak.per);
        let rule = |rule: Rule| (rule.count, rule.per);
        for (name, (count, per)) in [
            ("register", rule(self.register)),
            ("requests", rule(self.requests)),
            ("rejected", rule(self.rejected)),
            ("slow", leak(self.slow)),
            ("enumeration", rule(self.enumeration)),
            ("invites", leak(self.invites)),
            ("decoy", (self.decoy.count, self.decoy.per)),
            ("sprayed", rule(self.sprayed)),
        ] {
            check_rate(&format!("detect.{name}"), count, per)?;
        }
        for (name, count) in [
            ("rejected", self.rejected.count),
            ("enumeration", self.enumeration.count),
            ("sprayed", self.sprayed.count),
        ] {
            if count > 1_000 {
                bail!("detect.{name}.count = {count} is out of range; use 1 to 1000");
            }
        }
        if self
            .signature
            .agents
            .iter()
            .chain(&self.signature.products)
            .any(|agent| agent.trim().len() < 3)
        {
            bail!(
                "detect.signature.agents or .products contains a name of less than three \
                 characters, which would match anything"
            );
        }
        Ok(())
    }
}
