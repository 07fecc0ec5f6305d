//! `[[hep]]`: where SIP servers send copies of what they receive and answer.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::net::network::Network;

/// How many there may be.
pub const MAX_HEP: usize = 8;

/// One place where HEP is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct HepConfig {
    /// Address to listen on.
    pub listen: HepListen,
    /// The file with the authentication key that packets must carry; empty for none.
    pub key_file: PathBuf,
    /// Who may send; nobody else may if there are any.
    pub senders: Vec<Network>,
}

/// A transport with an address and a port: `udp:127.0.0.1:9060`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct HepListen {
    /// TCP, else UDP.
    pub is_tcp: bool,
    /// Its address.
    pub address: SocketAddr,
}

impl Default for HepListen {
    fn default() -> Self {
        Self { is_tcp: false, address: SocketAddr::from(([127, 0, 0, 1], 9_060)) }
    }
}

impl TryFrom<String> for HepListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let found = match text.split_once(':') {
            Some(("udp", rest)) => Some((false, rest)),
            Some(("tcp", rest)) => Some((true, rest)),
            _ => None,
        };
        let found = found.and_then(|(is_tcp, rest)| Some((is_tcp, rest.parse().ok()?)));
        let Some((is_tcp, address)) = found else {
            return Err(format!(
                "hep.listen = {text:?} is no transport with an address and a port; write \
                 \"udp:127.0.0.1:9060\" or \"tcp:127.0.0.1:9060\""
            ));
        };
        Ok(Self { is_tcp, address })
    }
}

impl From<HepListen> for String {
    fn from(listen: HepListen) -> Self {
        listen.to_string()
    }
}

impl fmt::Display for HepListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", if self.is_tcp { "tcp" } else { "udp" }, self.address)
    }
}

impl HepConfig {
    /// One with all keys, against which those of a file are held.
    pub(super) fn template() -> Option<Value> {
        Value::try_from(Self::default()).ok()
    }
}

/// Checks values beyond their types.
pub(super) fn check(all: &[HepConfig]) -> Result<()> {
    if all.len() > MAX_HEP {
        bail!("there are {} [[hep]] tables; at most {MAX_HEP} are listened on", all.len());
    }
    for (number, one) in all.iter().enumerate() {
        let HepConfig { listen, key_file, senders } = one;
        if all[..number].iter().any(|other| other.listen == *listen) {
            bail!("hep.listen = \"{listen}\" is there twice");
        }
        if listen.address.port() == 0 {
            bail!("hep.listen = \"{listen}\" has no port; servers send to 9060 usually");
        }
        let is_open = key_file.as_os_str().is_empty() || senders.is_empty();
        if !listen.address.ip().is_loopback() && is_open {
            bail!(
                "hep.listen = \"{listen}\" is no loopback address, so it needs key_file and \
                 senders: whoever sends HEP decides who is banned"
            );
        }
        if let Some(all) = senders.iter().find(|network| network.prefix() == 0) {
            bail!("hep.senders contains {all}, which is everybody; name the SIP servers");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn loopback_needs_nothing_more_and_the_rest_a_key_and_senders() {
        let config = Config::parse(
            "[[hep]]\n[[hep]]\nlisten = \"tcp:[::1]:9060\"\n[[hep]]\n\
             listen = \"udp:192.0.2.1:9060\"\nkey_file = \"/etc/sip-xdp/hep.key\"\n\
             senders = [\"192.0.2.0/24\"]\n",
        )
        .unwrap();
        let listen: Vec<String> = config.hep.iter().map(|one| one.listen.to_string()).collect();
        assert_eq!(listen, ["udp:127.0.0.1:9060", "tcp:[::1]:9060", "udp:192.0.2.1:9060"]);
        assert_eq!(Config::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        for (text, expected) in [
            ("listen = \"udp:0.0.0.0:9060\"", "needs key_file and senders"),
            ("listen = \"tcp:192.0.2.1:9060\"\nkey_file = \"/k\"", "needs key_file and senders"),
            ("listen = \"udp:127.0.0.1:0\"", "has no port"),
            ("listen = \"127.0.0.1:9060\"", "write \"udp:127.0.0.1:9060\""),
            ("listen = \"udp:localhost:9060\"", "write \"udp:127.0.0.1:9060\""),
            ("senders = [\"0.0.0.0/0\"]", "which is everybody"),
            ("key = \"x\"", "did you mean hep.key_file?"),
            ("[[hep]]", "is there twice"),
        ] {
            let error = Config::parse(&format!("[[hep]]\n{text}\n")).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
