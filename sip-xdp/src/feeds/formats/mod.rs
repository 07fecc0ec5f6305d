//! Feed formats. Each is one file with name, description, detection, parser and tests, and one line
//! in the registry. Lists are parsed line by line in bounded memory. Words are strict:
//! whatever is not entirely an address, network or range is skipped and counted, never repaired.
//!
//! More than 400 lines: the registry with what it makes, and what all formats share.

mod apiban;
mod counts;
mod crowdsec;
mod dshield;
mod lines;
mod list;
mod spamhaus;
#[cfg(test)]
mod tests;
mod word;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::body;
use super::fetch::{Failure, Fetched, Fetcher, Validators};
use super::sync::{Candidate, Last, Trouble};
use crate::config::FeedConfig;
use crate::net::network::Network;

use lines::{Line, Lines};
use word::Word;

/// Makes of all formats the values of `format` in the configuration, and the way to each format.
macro_rules! registry {
    ($($module:ident::$format:ident,)+) => {
        /// The format of a list, in the configuration.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub enum FeedFormat {
            /// Detected among the formats of lists.
            #[default]
            Auto,
            $(
                #[doc = concat!("[`", stringify!($module), "::", stringify!($format), "`].")]
                $format,
            )+
        }

        impl FeedFormat {
            /// All of them.
            pub const ALL: &[Self] = &[Self::Auto, $(Self::$format),+];

            /// How it is read; `None` if it is to be detected.
            fn format(self) -> Option<&'static dyn Format> {
                match self {
                    Self::Auto => None,
                    $(Self::$format => Some(&$module::$format),)+
                }
            }
        }
    };
}

// Without a configured `format` the first that detects its list is used, and `list` if none does.
registry! {
    spamhaus::Spamhaus,
    dshield::Dshield,
    counts::Counts,
    apiban::Apiban,
    crowdsec::Crowdsec,
    list::List,
}

/// The name of [`FeedFormat::Auto`].
const AUTO: &str = "auto";

impl FeedFormat {
    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        self.format().map_or(AUTO, Format::name)
    }

    /// What a list looks like, for the manual.
    pub fn words(self) -> &'static str {
        self.format().map_or("detected from the list", Format::words)
    }

    /// Whether it is a protocol, whose servers want a key.
    pub fn needs_key(self) -> bool {
        self.format().is_some_and(Format::is_protocol)
    }

    /// Whether its entries have, or may have, numbers of reports.
    pub fn has_counts(self) -> bool {
        self.format().is_none_or(Format::has_counts)
    }

    /// Whether its server has several sets of addresses.
    pub fn has_sets(self) -> bool {
        self.format().is_some_and(Format::has_sets)
    }
}

impl Serialize for FeedFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for FeedFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = Self::ALL.iter().copied().find(|format| format.name() == name);
        found.ok_or_else(|| {
            let names: Vec<String> =
                Self::ALL.iter().map(|format| format!("`{}`", format.name())).collect();
            let names = names.join(", ");
            de::Error::custom(format!("unknown variant `{name}`, expected one of {names}"))
        })
    }
}

impl JsonSchema for FeedFormat {
    fn schema_name() -> Cow<'static, str> {
        "FeedFormat".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<_> = Self::ALL.iter().map(|format| format.name()).collect();
        json_schema!({ "description": "The format of a feed's list.", "enum": names })
    }
}

/// A feed format: how the server is queried, and its response parsed.
pub(super) trait Format: Sync {
    /// Name in the configuration, in `feed list` and in the log.
    fn name(&self) -> &'static str;

    /// Description, for the documentation and the log.
    fn words(&self) -> &'static str;

    /// Whether its entries have numbers of reports.
    fn has_counts(&self) -> bool {
        false
    }

    /// Whether its server has several sets of addresses.
    fn has_sets(&self) -> bool {
        false
    }

    /// Whether a list with this start has this format.
    fn detects(&self, _start: &Start) -> bool {
        false
    }

    /// Parses the lines of a list.
    ///
    /// # Errors
    ///
    /// If it as a whole is no list of this format.
    fn read(&self, _lines: &mut Lines<'_>, _reading: &mut Reading) -> Result<(), String> {
        Err(format!("{} is a protocol, not a list", self.name()))
    }

    /// Fetches the list: as one document, unless the format is a protocol. `None` if the current
    /// list is up to date.
    fn ask(&self, asking: &Asking<'_>) -> Result<Option<(Parsed, Candidate)>, Trouble> {
        whole_list(Some(self.name()), asking)
    }

    /// Whether it is an API with its own protocol, which wants a key, rather than a document.
    fn is_protocol(&self) -> bool {
        false
    }

    /// Whether a response is the complete list. Otherwise its length says nothing about the
    /// server's list.
    fn is_whole(&self) -> bool {
        true
    }
}

/// The context of a fetch.
pub(super) struct Asking<'a> {
    pub(super) config: &'a FeedConfig,
    pub(super) fetcher: &'a Fetcher,
    pub(super) last: &'a Last,
    /// Cache validators of the current list.
    pub(super) known: Validators,
    /// Whether everything is wanted, not only changes.
    pub(super) from_the_start: bool,
}

/// The configured format; `None` if it is to be detected.
pub(super) fn of(format: FeedFormat) -> Option<&'static dyn Format> {
    format.format()
}

fn all() -> impl Iterator<Item = &'static dyn Format> {
    FeedFormat::ALL.iter().filter_map(|format| format.format())
}

fn by_name(name: &str) -> Option<&'static dyn Format> {
    all().find(|format| format.name() == name)
}

/// Description of a format.
pub(super) fn words(name: &str) -> &'static str {
    by_name(name).map_or("", Format::words)
}

/// Queries the server of a feed.
pub(super) fn ask(asking: &Asking<'_>) -> Result<Option<(Parsed, Candidate)>, Trouble> {
    match of(asking.config.format) {
        Some(format) => format.ask(asking),
        None => whole_list(None, asking),
    }
}

/// Fetches a list, and parses it in the configured or detected format.
fn whole_list(
    format: Option<&'static str>,
    asking: &Asking<'_>,
) -> Result<Option<(Parsed, Candidate)>, Trouble> {
    match asking.fetcher.list(asking.config, &asking.known)? {
        Fetched::Same => Ok(None),
        Fetched::List(body, validators) => {
            let parsed = parse(format.and_then(by_name), body, &Limits::of(asking.config))?;
            Ok(Some((parsed, Candidate { validators, ..Candidate::default() })))
        }
    }
}

/// The result of parsing, with what was left out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// Networks, in the order of the list.
    pub networks: Vec<Network>,
    /// What was left out.
    pub tally: Tally,
    /// Number of comment lines. A list of comments only is a valid empty list.
    pub comments: u64,
    /// Name of its format.
    pub format: &'static str,
}

/// What was left out of a list and why, and what was corrected.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Number of skipped entries by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Entries with host bits; their network was taken.
    pub host_bits: u64,
    /// Entries split because they contain protected addresses.
    pub split: u64,
    /// Additional networks due to splits.
    pub pieces: u64,
    /// The first malformed line.
    pub first_malformed: Option<u64>,
}

/// Reasons for skipped entries.
pub(super) mod reason {
    pub(in crate::feeds) const MALFORMED: &str = "malformed";
    pub(in crate::feeds) const DUPLICATE: &str = "duplicate";
    pub(in crate::feeds) const TOO_BROAD: &str = "too_broad";
    pub(in crate::feeds) const SPECIAL: &str = "special";
    pub(in crate::feeds) const PROTECTED: &str = "protected";
    pub(in crate::feeds) const BELOW_MIN_COUNT: &str = "below_min_count";
    pub(in crate::feeds) const OTHER: &str = "other";
}

impl Tally {
    /// Counts a skipped entry.
    pub fn skip(&mut self, reason: &'static str) {
        *self.skipped.entry(reason).or_default() += 1;
    }

    /// Number of entries skipped for a reason.
    pub fn count(&self, reason: &str) -> u64 {
        self.skipped.get(reason).copied().unwrap_or_default()
    }

    /// Guards that took effect, with counts.
    pub fn guards(&self) -> Vec<(&'static str, u64)> {
        let skipped = [reason::TOO_BROAD, reason::SPECIAL, reason::PROTECTED]
            .map(|name| (name, self.count(name)));
        skipped.into_iter().chain([("split", self.split)]).filter(|(_, count)| *count > 0).collect()
    }

    /// Whether nothing was left out or changed.
    pub(super) fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    fn malformed(&mut self, line: u64) {
        self.first_malformed.get_or_insert(line);
        self.skip(reason::MALFORMED);
    }

    fn add(&mut self, other: Self) {
        for (reason, count) in other.skipped {
            *self.skipped.entry(reason).or_default() += count;
        }
        self.host_bits += other.host_bits;
        self.first_malformed = self.first_malformed.or(other.first_malformed);
    }
}

/// Limits of parsing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limits {
    /// Maximum number of entries.
    pub(super) entries: usize,
    /// Maximum size in bytes, decompressed.
    pub(super) bytes: u64,
    /// Minimum number of reports per entry, in formats that have it.
    pub(super) min_count: u32,
    /// Shortest prefixes: larger ranges are left out as a whole.
    pub(super) min_prefix: u8,
    pub(super) min_prefix6: u8,
}

impl Limits {
    pub(super) fn of(config: &FeedConfig) -> Self {
        let guards = config.effective_guards();
        Self {
            entries: guards.max_entries as usize,
            bytes: guards.max_bytes,
            min_count: config.min_count,
            min_prefix: guards.min_prefix,
            min_prefix6: guards.min_prefix6,
        }
    }
}

/// The start of a list: its first lines that are neither empty nor comments.
pub(super) struct Start {
    lines: Vec<String>,
}

impl Start {
    /// Maximum number of lines.
    const LINES: usize = 200;

    fn of(head: &[u8]) -> Self {
        let text = String::from_utf8_lossy(head);
        // The last line may be truncated.
        let whole = text.rfind(['\n', '\r']).map_or(&text[..], |end| &text[..end]);
        let lines = whole.split(['\n', '\r']).map(str::trim_ascii);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(['#', ';']));
        Self { lines: lines.take(Self::LINES).map(str::to_owned).collect() }
    }

    /// Whether at least three of four of its lines match, and there is one.
    fn is_mostly(&self, like: impl Fn(&str) -> bool) -> bool {
        let count = self.lines.iter().filter(|line| like(line)).count();
        count > 0 && count * 4 >= self.lines.len() * 3
    }
}

/// Parses a list in the given or the detected format.
pub(super) fn parse(
    format: Option<&'static dyn Format>,
    reader: Box<dyn Read + Send + '_>,
    limits: &Limits,
) -> Result<Parsed, Failure> {
    let (head, body) = body::open(reader, limits.bytes)?;
    let detected = || {
        let start = Start::of(&head);
        all().find(|format| format.detects(&start)).unwrap_or(&list::List)
    };
    let format = format.unwrap_or_else(detected);
    if limits.min_count > 1 && !format.has_counts() {
        return Err(format!(
            "min_count is set, but the list has no counts; it looks like the format {}",
            format.name()
        )
        .into());
    }
    let mut reading = Reading::new(limits.clone());
    let mut body = BufReader::with_capacity(1 << 16, body);
    format.read(&mut Lines::new(&mut body), &mut reading)?;
    reading.parsed.format = format.name();
    reading.finish()
}

/// A list during parsing.
pub(super) struct Reading {
    parsed: Parsed,
    limits: Limits,
    /// The start of malformed text, to recognise error pages.
    prose: String,
}

/// Maximum length of that text, in bytes.
const PROSE: usize = 512;

/// Pause after a rate-limit response without `Retry-After`.
const RATE_PAUSE: Duration = Duration::from_secs(3_600);

impl Reading {
    fn new(limits: Limits) -> Self {
        Self { parsed: Parsed::default(), limits, prose: String::new() }
    }

    fn note_prose(&mut self, text: &str) {
        let room = PROSE.saturating_sub(self.prose.len());
        self.prose.extend(text.chars().chain([' ']).take(room));
    }

    fn comment(&mut self, text: &str) {
        self.parsed.comments += 1;
        self.note_prose(text);
    }

    fn malformed(&mut self, text: &str, line: u64) {
        self.note_prose(text);
        self.parsed.tally.malformed(line);
    }

    /// Takes a word that should be an address or a network.
    fn take(&mut self, text: &str, line: u64) -> Result<(), String> {
        match Word::read(text) {
            Word::Malformed => self.malformed(text, line),
            word => self.take_word(word)?,
        }
        Ok(())
    }

    fn take_word(&mut self, word: Word) -> Result<(), String> {
        take_word(&mut self.parsed, word, &self.limits);
        match self.parsed.networks.len() > self.limits.entries {
            true => Err(format!("it has more than {} entries", self.limits.entries)),
            false => Ok(()),
        }
    }

    fn finish(self) -> Result<Parsed, Failure> {
        let parsed = self.parsed;
        let malformed = parsed.tally.count(reason::MALFORMED);
        let lines = malformed + parsed.networks.len() as u64;
        let is_prose = malformed > parsed.networks.len() as u64;
        if (is_prose || parsed.networks.is_empty())
            && let Some(failure) = error_page(&self.prose)
        {
            return Err(failure);
        }
        if is_prose {
            let first = parsed.tally.first_malformed.unwrap_or_default();
            return Err(format!(
                "{malformed} of {lines} lines are no entries of the format {}, the first of them \
                 line {first}",
                parsed.format
            )
            .into());
        }
        Ok(parsed)
    }
}

/// The meaning of a text in place of a list, for known messages of servers. It is never quoted,
/// since it may contain the key of the request.
fn error_page(prose: &str) -> Option<Failure> {
    const RATE: [&str; 8] = [
        "rate limit",
        "rate-limit",
        "ratelimit",
        "too many requests",
        "exceeded",
        "try again later",
        "quota",
        "throttl",
    ];
    const REFUSED: [&str; 7] = [
        "unauthorized",
        "forbidden",
        "access denied",
        "not authorized",
        "invalid key",
        "api key",
        "permission denied",
    ];
    const BROKEN: [&str; 5] = [
        "maintenance",
        "temporarily unavailable",
        "service unavailable",
        "bad gateway",
        "internal server error",
    ];
    let text = prose.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&RATE) {
        let reason =
            "in place of a list the server says that it was asked too often (its rate limit)"
                .to_owned();
        return Some(Failure { reason, retry_after: Some(RATE_PAUSE) });
    }
    let reason = match () {
        () if has(&REFUSED) => {
            "in place of a list the server says that access is refused; check the url"
        }
        () if has(&BROKEN) => "in place of a list the server says that it is out of order",
        () => return None,
    };
    Some(Failure::from(reason.to_owned()))
}

/// Takes a word, without the limit on the number of entries.
fn take_word(parsed: &mut Parsed, word: Word, limits: &Limits) {
    match word {
        Word::Network { network, host_bits } => {
            parsed.tally.host_bits += u64::from(host_bits);
            parsed.networks.push(network);
        }
        Word::Range(range) => match range.networks(limits) {
            Ok(networks) => parsed.networks.extend(networks),
            Err(reason) => parsed.tally.skip(reason),
        },
        Word::Everybody => parsed.tally.skip(reason::TOO_BROAD),
        Word::Mapped => parsed.tally.skip(reason::SPECIAL),
        Word::Malformed => parsed.tally.skip(reason::MALFORMED),
    }
}
