//! `[[feeds]]`: lists kept by others.
//!
//! More than 400 lines: one TOML table with its defaults, checks and tests.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use toml::{Table, Value};

use super::Span;

// As the table of a detection rule: a format stands in the file of the format.
pub use crate::feeds::FeedFormat;

/// Maximum number of feeds.
const MAX_FEEDS: usize = 64;

/// Shortest IPv4 prefix that a feed may trust or admit.
const ALLOWED_PREFIX: u8 = 16;

/// Shortest IPv6 prefix that a feed may trust or admit: a provider's allocation.
const ALLOWED_PREFIX6: u8 = 32;

/// A feed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct FeedConfig {
    /// Name, in commands, logs and file names.
    pub name: String,
    /// Format of the list.
    #[serde(default)]
    pub format: FeedFormat,
    /// Address of the list: `https:`, `http:` or `file:`.
    pub url: String,
    /// Minimum number of reports per entry, in formats that have it.
    #[serde(default = "default_min_count")]
    pub min_count: u32,
    /// The APIBAN data set to fetch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// File with the API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Fetch interval.
    #[serde(default = "default_every")]
    pub every: Span,
    /// Time without success after which its entries are removed; 0 for never.
    #[serde(default = "default_ttl")]
    pub ttl: Span,
    /// Action for its entries.
    #[serde(default)]
    pub action: FeedAction,
    /// Guards against implausible lists.
    #[serde(default)]
    pub guards: Guards,
    /// Prefix of the scenarios that this host publishes itself, which are not imported again.
    #[serde(skip)]
    pub own: Option<String>,
}

fn default_every() -> Span {
    Span::seconds(3_600)
}

fn default_min_count() -> u32 {
    1
}

fn default_ttl() -> Span {
    Span::seconds(7 * 24 * 3_600)
}

/// Action for a feed's entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedAction {
    /// Blocked.
    #[default]
    Block,
    /// Admitted under the policy `closed`.
    Admit,
    /// Trusted.
    Trust,
}

impl FeedAction {
    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Admit => "admit",
            Self::Trust => "trust",
        }
    }
}

/// Guards against implausible lists.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct Guards {
    /// Refuse a list that covers at most this share of the addresses covered before; 0 for never.
    pub shrink: Factor,
    /// Refuse a list that covers at least this multiple of the addresses covered before; 0 for
    /// never.
    pub grow: Factor,
    /// Minimum number of entries, before or after, for these two guards.
    pub from: u32,
    /// Shortest IPv4 prefix; wider networks are left out.
    #[schemars(range(max = 32))]
    pub min_prefix: u8,
    /// Shortest IPv6 prefix; wider networks are left out.
    #[schemars(range(max = 128))]
    pub min_prefix6: u8,
    /// Maximum number of entries; larger lists are refused.
    pub max_entries: u32,
    /// Maximum size in bytes, decompressed; larger lists are refused.
    pub max_bytes: u64,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            shrink: Factor(500),
            grow: Factor(3_000),
            from: 10,
            min_prefix: 8,
            min_prefix6: 19,
            max_entries: 4_194_304,
            max_bytes: 64 << 20,
        }
    }
}

/// A factor in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Factor(pub u32);

impl Factor {
    /// `count` multiplied by the factor; `None` if the factor is 0.
    pub fn of(self, count: u64) -> Option<u64> {
        (self.0 != 0).then(|| count.saturating_mul(u64::from(self.0)).div_ceil(1_000))
    }
}

impl Serialize for Factor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 1_000.0)
    }
}

impl JsonSchema for Factor {
    fn schema_name() -> Cow<'static, str> {
        "Factor".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A factor; 0 for no guard.",
            "type": "number",
            "minimum": 0,
            "maximum": 1000,
        })
    }
}

impl<'de> Deserialize<'de> for Factor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = f64::deserialize(deserializer)?;
        if !(0.0..=1_000.0).contains(&written) {
            return Err(de::Error::custom(format!(
                "{written} is out of range; use 0 (no guard) to 1000"
            )));
        }
        Ok(Self((written * 1_000.0).round() as u32))
    }
}

impl FeedConfig {
    /// A feed with defaults, except for name and URL.
    pub fn new(name: &str, url: &str) -> Self {
        Self {
            name: name.to_owned(),
            format: FeedFormat::default(),
            url: url.to_owned(),
            min_count: default_min_count(),
            set: None,
            key_file: None,
            every: default_every(),
            ttl: default_ttl(),
            action: FeedAction::default(),
            guards: Guards::default(),
            own: None,
        }
    }

    /// A table with all keys, to check a file's keys against.
    pub(super) fn template() -> Option<Value> {
        let all =
            Self { key_file: Some(PathBuf::new()), set: Some(String::new()), ..Self::new("", "") };
        Table::try_from(all).ok().map(Value::Table)
    }

    /// The URL without parts that may be secret.
    pub fn shown_url(&self) -> String {
        let bare = self.url.split(['?', '#']).next().unwrap_or_default();
        bare.to_owned()
    }

    fn check(&self) -> Result<()> {
        let Self { name, url, every, guards, .. } = self;
        let is_plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if name.len() > 32 || !starts_well || !name.bytes().all(is_plain) {
            bail!(
                "\"{name}\" is no name for a feed; use up to 32 of a-z, 0-9, \"-\", \"_\" and \".\""
            );
        }
        let scheme = url.split_once(':').map(|(scheme, _)| scheme).unwrap_or_default();
        let host =
            url.split_once("://").map(|(_, rest)| rest.split('/').next().unwrap_or_default());
        match scheme {
            "file" if self.file().is_some_and(|path| path.starts_with("/")) => {}
            "http" | "https" if host.is_some_and(|host| !host.is_empty()) => {}
            _ => bail!(
                "the url of the feed {name} is neither https://HOST/PATH, http://HOST/PATH nor \
                 file:///PATH"
            ),
        }
        if host.is_some_and(|host| host.contains('@')) {
            bail!(
                "the url of the feed {name} contains a password, which logs would show; use \
                 key_file"
            );
        }
        if url.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            bail!("the url of the feed {name} contains blanks");
        }
        if self.format.needs_key() && self.key_file.is_none() && scheme != "file" {
            bail!("the feed {name} needs a key_file: servers of {} want a key", self.format.name());
        }
        if self.format.needs_key() && scheme == "file" {
            bail!(
                "the feed {name} cannot come from a file: {} is a protocol; use https:// or \
                 http://",
                self.format.name()
            );
        }
        if !self.format.needs_key() && self.key_file.is_some() {
            bail!(
                "the feed {name} has a key_file, which lists of the format {} do not need",
                self.format.name()
            );
        }
        if self.min_count == 0 {
            bail!("min_count of the feed {name} must not be 0; 1 takes all entries");
        }
        if self.min_count > 1 && !self.format.has_counts() {
            bail!(
                "min_count of the feed {name} needs the format counts; {} has no counts",
                self.format.name()
            );
        }
        if let Some(set) = &self.set {
            if !self.format.has_sets() {
                bail!("set of the feed {name} is for the format apiban");
            }
            if set.is_empty()
                || set.len() > 32
                || !set.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            {
                bail!(
                    "set of the feed {name} is no name of a set; use up to 32 letters and digits, \
                     as in \"sip\""
                );
            }
        }
        if *every < Span::seconds(1) || *every > Span::seconds(30 * 24 * 3_600) {
            bail!("every = \"{every}\" of the feed {name} is out of range; use 1s to 30d");
        }
        if self.ttl != Span::seconds(0) && self.ttl < *every {
            bail!(
                "ttl = \"{}\" of the feed {name} is shorter than every; make it longer, or 0s for \
                 never",
                self.ttl
            );
        }
        if guards.shrink >= Factor(1_000) {
            bail!(
                "guards.shrink of the feed {name} would refuse a list that stays the same; use \
                 less than 1, or 0"
            );
        }
        if guards.grow != Factor(0) && guards.grow <= Factor(1_000) {
            bail!(
                "guards.grow of the feed {name} would refuse a list that stays the same; use more \
                 than 1, or 0"
            );
        }
        if !(1..=32).contains(&guards.min_prefix) || !(8..=128).contains(&guards.min_prefix6) {
            bail!(
                "guards.min_prefix of the feed {name} is 1 to 32, guards.min_prefix6 is 8 to 128"
            );
        }
        if guards.max_entries == 0 || guards.max_bytes == 0 {
            bail!("guards.max_entries and guards.max_bytes of the feed {name} must not be 0");
        }
        Ok(())
    }

    /// The guards in effect: stricter ones for trust and admit than for block, whatever the
    /// configuration says.
    pub fn effective_guards(&self) -> Guards {
        let mut guards = self.guards.clone();
        if self.action != FeedAction::Block {
            guards.min_prefix = guards.min_prefix.max(ALLOWED_PREFIX);
            guards.min_prefix6 = guards.min_prefix6.max(ALLOWED_PREFIX6);
        }
        guards
    }

    /// The path of a `file:` URL.
    pub fn file(&self) -> Option<PathBuf> {
        let path = self.url.strip_prefix("file:")?;
        Some(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
    }
}

/// Checks all feeds.
pub(super) fn check(feeds: &[FeedConfig]) -> Result<()> {
    if feeds.len() > MAX_FEEDS {
        bail!(
            "there are {} feeds, of which {MAX_FEEDS} can be followed; take some out",
            feeds.len()
        );
    }
    let mut names = BTreeSet::new();
    for feed in feeds {
        feed.check()?;
        if !names.insert(&feed.name) {
            bail!("two feeds have the name {}; give each its own", feed.name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn reads_what_people_write() {
        let config = Config::parse(
            "[[feeds]]\nname = \"apiban\"\nformat = \"apiban\"\nurl = \"https://apiban.org/api\"\n\
             key_file = \"/etc/sip-xdp/apiban.key\"\nevery = \"4m\"\nttl = \"7d\"\naction \
             = \"block\"\n\n\
             [[feeds]]\nname = \"own\"\nurl \
             = \"file:///etc/sip-xdp/own.list\"\n[feeds.guards]\nshrink = 0.25\ngrow = 0\n",
        );
        let config = config.unwrap();
        assert_eq!(config.feeds[0].every, Span::seconds(240));
        assert_eq!(config.feeds[0].guards, Guards::default());
        assert_eq!(config.feeds[1].guards.shrink, Factor(250));
        assert_eq!(config.feeds[1].file(), Some("/etc/sip-xdp/own.list".into()));
        assert_eq!(Config::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn trusting_feeds_have_stricter_guards() {
        let feed = |action| FeedConfig { action, ..FeedConfig::new("a", "file:/a") };
        let prefixes = |feed: FeedConfig| {
            (feed.effective_guards().min_prefix, feed.effective_guards().min_prefix6)
        };
        assert_eq!(prefixes(feed(FeedAction::Block)), (8, 19));
        assert_eq!(prefixes(feed(FeedAction::Admit)), (16, 32));
        assert_eq!(prefixes(feed(FeedAction::Trust)), (16, 32));
        let mut strict = feed(FeedAction::Trust);
        (strict.guards.min_prefix, strict.guards.min_prefix6) = (24, 10);
        assert_eq!(prefixes(strict), (24, 32), "stricter yes, laxer no");
    }

    #[test]
    fn names_an_unknown_key_and_the_nearest_one() {
        let text = "[[feeds]]\nname = \"a\"\nurl = \"file:/a\"\nevry = \"4m\"\n";
        assert_eq!(error(text), ":4: unknown key feeds.evry; did you mean feeds.every?");
        let text = "[[feeds]]\nname = \"a\"\nurl = \"file:/a\"\n[feeds.guards]\nshrnk = 0.5\n";
        assert_eq!(
            error(text),
            ":5: unknown key feeds.guards.shrnk; did you mean feeds.guards.shrink?"
        );
    }

    #[test]
    fn refuses_what_cannot_be_meant() {
        for (keys, expected) in [
            ("name = \"a\"", "missing field `url`"),
            ("name = \"A b\"\nurl = \"file:/a\"", "is no name for a feed"),
            ("name = \"..\"\nurl = \"file:/a\"", "is no name for a feed"),
            ("name = \"a\"\nurl = \"ftp://host/a\"", "is neither https"),
            ("name = \"a\"\nurl = \"file:a\"", "is neither https"),
            ("name = \"a\"\nurl = \"https://me:secret@host/a\"", "contains a password"),
            ("name = \"a\"\nurl = \"https://host/a\"\nformat = \"apiban\"", "needs a key_file"),
            ("name = \"a\"\nurl = \"https://host/a\"\nformat = \"csv\"", "unknown variant `csv`"),
            ("name = \"a\"\nurl = \"https://host/a\"\nmin_count = 0", "must not be 0"),
            (
                "name = \"a\"\nurl = \"https://host/a\"\nformat = \"list\"\nmin_count = 3",
                "needs the format counts",
            ),
            ("name = \"a\"\nurl = \"https://host/a\"\nset = \"sip\"", "is for the format apiban"),
            (
                "name = \"a\"\nurl = \"https://host/a\"\nformat = \"apiban\"\nkey_file \
                 = \"/k\"\nset = \"a b\"",
                "no name of a set",
            ),
            ("name = \"a\"\nurl = \"https://host/a\"\naction = \"ban\"", "unknown variant `ban`"),
            ("name = \"a\"\nurl = \"https://host/a\"\nevery = \"0s\"", "out of range"),
            ("name = \"a\"\nurl = \"https://host/a\"\nttl = \"1m\"", "shorter than every"),
            ("name = \"a\"\nurl = \"https://host/a\"\nguards = { shrink = 1 }", "stays the same"),
            ("name = \"a\"\nurl = \"https://host/a\"\nguards = { min_prefix = 0 }", "1 to 32"),
        ] {
            let error = error(&format!("[[feeds]]\n{keys}\n"));
            assert!(error.contains(expected), "{keys}: {error}");
            assert!(!error.contains('\n') && !error.contains("secret"), "{error}");
        }
        let twice = "[[feeds]]\nname = \"a\"\nurl = \"file:/a\"\n".repeat(2);
        assert!(error(&twice).contains("two feeds have the name a"));
    }
}
