//! `[detect]`: which evidence leads to a ban. A table of the file may name some of its keys; the
//! others keep their defaults.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{Span, check_rate};

/// A kind of evidence that is counted in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Whether it leads to a ban.
    pub enabled: bool,
    /// How many.
    pub count: u32,
    /// In which time.
    pub per: Span,
}

/// A kind of evidence that fills a leaky bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Leak {
    /// Whether it leads to a ban.
    pub enabled: bool,
    /// How many the bucket holds.
    pub count: u32,
    /// In which time one leaks out.
    pub per: Span,
}

/// Requests that only tools send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Signature {
    /// Whether it leads to a ban.
    pub enabled: bool,
    /// How User-Agents of tools start, in any letter case.
    pub agents: Vec<String>,
    /// How User-Agents of products start that attackers use, too, in any letter case: no verdict,
    /// but half of the usual evidence is enough.
    pub products: Vec<String>,
    /// Whether From-tags that have the shape of a known tool's count.
    pub tags: bool,
    /// Users that nobody has, and tools try.
    pub users: Vec<String>,
}

/// Users that nobody has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decoy {
    /// Whether it leads to a ban.
    pub enabled: bool,
    /// Users that are decoys from the start.
    pub users: Vec<String>,
    /// So many sources have tried a user that was never accepted: it is a decoy from then on.
    pub count: u32,
    /// In which time.
    pub per: Span,
}

/// What leads to a ban.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, from = "Parts")]
pub struct Detect {
    /// A flood of REGISTER requests by one sender.
    pub register: Rule,
    /// A flood of requests of any method by one sender.
    pub requests: Rule,
    /// Rejected credentials.
    pub rejected: Rule,
    /// The same, slowly.
    pub slow: Leak,
    /// Users that are tried out.
    pub enumeration: Rule,
    /// Requests that only tools send.
    pub signature: Signature,
    /// Calls that are refused.
    pub invites: Leak,
    /// Users that nobody has.
    pub decoy: Decoy,
    /// An accepted user that strange sources try passwords for.
    pub sprayed: Rule,
}

/// `[detect]` as it is written: everything may be left out.
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

/// A rule as it is written.
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

/// Tools whose User-Agents were seen on the wire. Products that people use, such as softphones
/// built on libraries that attackers use too, are not among them.
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

/// Products that attackers use, too.
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
    /// Checks what types cannot say.
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
