//! `[metrics]`: the listener of metrics and web page.

use std::fmt;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The listener of metrics and web page.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsConfig {
    /// Address to listen on.
    pub listen: Listen,
}

/// An address with a port, or none: `""`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen(pub Option<SocketAddr>);

impl Default for Listen {
    fn default() -> Self {
        Self(Some(SocketAddr::from(([127, 0, 0, 1], 9598))))
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let address = text.parse();
        address.map(|address| Self(Some(address))).map_err(|_| {
            format!(
                "metrics.listen = {text:?} is no address with a port; write \"127.0.0.1:9598\", \
                 or \"\" for nowhere"
            )
        })
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |address| write!(f, "{address}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_an_address_or_nothing() {
        for text in ["127.0.0.1:9598", "[::1]:80", ""] {
            assert_eq!(Listen::try_from(text.to_owned()).unwrap().to_string(), text);
        }
        for text in ["localhost:9598", "127.0.0.1", "9598", "::1:80:x"] {
            assert!(
                Listen::try_from(text.to_owned()).unwrap_err().contains("127.0.0.1:9598"),
                "{text}"
            );
        }
    }
}
