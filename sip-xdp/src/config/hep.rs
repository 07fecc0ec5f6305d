//! `[[hep]]`: where SIP servers send copies of what they receive and answer. `[hep_export]`: the
//! capture server to which copies of dropped messages go.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Value;

use super::{Rate, Span, check_rate};
use crate::net::network::Network;

/// How many there may be.
pub const MAX_HEP: usize = 8;

/// Maximum length of the name of this host, in bytes.
const MAX_NODE_NAME: usize = 64;

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

/// A capture server, such as Homer, that gets bans and copies of dropped messages.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)]
pub struct HepExportConfig {
    /// Its transport, host and port; empty for none.
    pub server: String,
    /// The number by which it knows this host.
    pub node_id: u32,
    /// The name by which it knows this host; empty for none.
    pub node_name: String,
    /// The file with the authentication key; empty for none.
    pub key_file: PathBuf,
    /// Send bans, with their evidence.
    pub bans: bool,
    /// Send dropped messages.
    pub packets: bool,
    /// Maximum rate of dropped messages.
    pub rate: Rate,
}

/// Where HEP is sent: `udp:homer.example:9060`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HepServer {
    /// TCP, else UDP.
    pub is_tcp: bool,
    /// A name, or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Default for HepExportConfig {
    fn default() -> Self {
        Self {
            server: String::new(),
            node_id: 2_001,
            node_name: "sip-xdp".to_owned(),
            key_file: PathBuf::new(),
            bans: true,
            packets: true,
            rate: Rate { count: 50, per: Span::seconds(1) },
        }
    }
}

impl HepServer {
    /// Parses one.
    fn parse(text: &str) -> Option<Self> {
        let (transport, rest) = text.split_once(':')?;
        let is_tcp = match transport {
            "udp" => false,
            "tcp" => true,
            _ => return None,
        };
        if let Ok(address) = rest.parse::<SocketAddr>() {
            let host = address.ip().to_string();
            return Some(Self { is_tcp, host, port: address.port() }).filter(|one| one.port != 0);
        }
        let (host, port) = rest.rsplit_once(':')?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_host = host.bytes().all(is_name) && host.contains(|c: char| c.is_ascii_alphabetic());
        let port = port.parse().ok().filter(|port| *port != 0)?;
        is_host.then(|| Self { is_tcp, host: host.to_owned(), port })
    }
}

impl HepExportConfig {
    /// Where packets go; none if nothing is to be sent.
    pub fn destination(&self) -> Option<HepServer> {
        HepServer::parse(&self.server).filter(|_| self.bans || self.packets)
    }

    pub(super) fn check(&self, hep: &[HepConfig]) -> Result<()> {
        check_rate("hep_export.rate", self.rate.count, self.rate.per)?;
        if self.server.is_empty() {
            return Ok(());
        }
        let Some(server) = HepServer::parse(&self.server) else {
            bail!(
                "hep_export.server = {:?} is no transport with a host and a port; write \
                 \"udp:homer.example:9060\" or \"tcp:192.0.2.9:9060\"",
                self.server
            );
        };
        let is_own = |one: &&HepConfig| {
            let HepListen { is_tcp, address } = one.listen;
            let is_there = server.host == "localhost" && address.ip().is_loopback()
                || server.host == address.ip().to_string();
            is_tcp == server.is_tcp && address.port() == server.port && is_there
        };
        if let Some(own) = hep.iter().find(is_own) {
            bail!(
                "hep_export.server = {:?} is where [[hep]] listens (\"{}\"); name the capture \
                 server",
                self.server,
                own.listen
            );
        }
        if self.node_name.len() > MAX_NODE_NAME {
            bail!("hep_export.node_name is longer than {MAX_NODE_NAME} bytes; shorten it");
        }
        Ok(())
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
    fn a_capture_server_has_a_transport_a_host_and_a_port() {
        for (server, host) in [
            ("udp:homer.example:9060", "homer.example"),
            ("tcp:192.0.2.9:9060", "192.0.2.9"),
            ("udp:[2001:db8::9]:9060", "2001:db8::9"),
        ] {
            let config = Config::parse(&format!("[hep_export]\nserver = {server:?}\n")).unwrap();
            let found = config.hep_export.destination().unwrap();
            assert_eq!((found.host.as_str(), found.port), (host, 9_060));
            assert_eq!(found.is_tcp, server.starts_with("tcp"));
            assert_eq!(Config::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
        let silent = "server = \"udp:homer.example:9060\"\nbans = false\npackets = false";
        for text in ["", silent] {
            let config = Config::parse(&format!("[hep_export]\n{text}\n")).unwrap();
            assert_eq!(config.hep_export.destination(), None);
        }
        for (text, expected) in [
            ("server = \"homer.example:9060\"", "write \"udp:homer.example:9060\""),
            ("server = \"udp:homer.example\"", "no transport with a host and a port"),
            ("server = \"udp:homer.example:0\"", "no transport with a host and a port"),
            ("server = \"udp:homer.example:99999\"", "no transport with a host and a port"),
            ("server = \"udp:192.0.2.999:9060\"", "no transport with a host and a port"),
            ("server = \"udp:ho mer:9060\"", "no transport with a host and a port"),
            ("server = \"tls:homer.example:9060\"", "no transport with a host and a port"),
            ("server = \"udp:127.0.0.1:9060\"\n[[hep]]", "is where [[hep]] listens"),
            ("server = \"udp:localhost:9060\"\n[[hep]]", "is where [[hep]] listens"),
            ("rate = { count = 0, per = \"1s\" }", "hep_export.rate.count = 0 is out of range"),
            ("key = \"x\"", "did you mean hep_export.key_file?"),
        ] {
            let error = Config::parse(&format!("[hep_export]\n{text}\n")).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

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
