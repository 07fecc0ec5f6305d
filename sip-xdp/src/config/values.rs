//! Value types of the configuration: durations ("10m"), ports and port ranges (5060, "5060-5090").

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration, written as a number and a unit: "500ms", "60s", "10m", "24h", "7d".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// A span of whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// In nanoseconds.
    pub fn nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|error| {
            format!(
                "\"{text}\" is not a duration ({error}); write a number and a unit: 500ms, 60s, \
                 10m, 24h, 7d"
            )
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(
            &humantime::format_duration(self.0).to_string().replace("day", "d").replace("ds", "d"),
        )
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number and a unit: 500ms, 60s, 10m, 24h, 7d; several add up.",
            "type": "string",
            "pattern": "^[0-9]+(ns|us|ms|s|m|h|days?|d|w|M|y|months?|years?)\
                ( ?[0-9]+(ns|us|ms|s|m|h|days?|d|w|months?|years?))*$",
        })
    }
}

/// An inclusive range of ports, or a single one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}

impl JsonSchema for PortRange {
    fn schema_name() -> Cow<'static, str> {
        "PortRange".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A port, or a range of ports as first-last.",
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": u16::MAX },
                { "type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}$" },
            ],
        })
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a port (5060) or a range of ports (\"5060-5090\")")]
        enum Written {
            Port(i64),
            Range(String),
        }
        let (first, last) = match Written::deserialize(deserializer)? {
            Written::Port(port) => (port.to_string(), port.to_string()),
            Written::Range(range) => match range.split_once('-') {
                Some((first, last)) => (first.trim().to_owned(), last.trim().to_owned()),
                None => (range.clone(), range),
            },
        };
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(de::Error::custom(format!("\"{text}\" is not a port; ports are 1 to 65535"))),
        };
        let (first, last) = (port(&first)?, port(&last)?);
        if first > last {
            return Err(de::Error::custom(format!(
                "the range {first}-{last} is backwards; write {last}-{first}"
            )));
        }
        Ok(Self { first, last })
    }
}
/// A host name or SIP domain, valid for DNS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema, Serialize)]
pub struct HostName(String);

impl HostName {
    /// The name in lower case, without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for HostName {
    type Err = String;

    /// Letters, digits, `-` and `_` between dots, at most 63 per label and 253 in total (RFC 1035,
    /// 2.3.4; RFC 2782 for `_`).
    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        // A numeric last label is a mistyped address.
        let is_numeric = name
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
        if name.len() > 253 || is_numeric || !name.split('.').all(is_label) {
            return Err(format!(
                "\"{text}\" is no host name; write it as DNS knows it (sip.carrier.example), and \
                 addresses under networks"
            ));
        }
        Ok(Self(name))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
