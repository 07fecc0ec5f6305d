//! Networks, in their written form and in that of the tables: 128 bits, IPv4 as `::ffff:0:0/96`.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sip_xdp_common::ip_key::{IpKey, MAPPED_BITS, mask};
use thiserror::Error;

/// A network: an address and the number of its leading bits that count. A host is a network of full
/// length.
///
/// ```
/// use sip_xdp::net::network::Network;
///
/// let office: Network = "192.0.2.0/24".parse()?;
/// assert!(office.contains(&"192.0.2.7".parse()?));
/// assert_eq!("2001:db8::7".parse::<Network>()?.to_string(), "2001:db8::7");
/// # Ok::<(), sip_xdp::net::network::NetworkError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    first: IpKey,
    prefix: u8,
}

/// Why a written network is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetworkError {
    /// Neither an address nor a network.
    #[error(
        "\"{0}\" is neither an address nor a network; write 192.0.2.1, 192.0.2.0/24, 2001:db8::1 \
         or 2001:db8::/32"
    )]
    Syntax(String),
    /// Host bits are set.
    #[error(
        "{given} has bits set behind its prefix; write {meant} for the network or {host} for the \
         one host"
    )]
    HostBits {
        /// As written.
        given: String,
        /// The network that contains it.
        meant: Network,
        /// The address.
        host: IpAddr,
    },
    /// An IPv6 network inside `::ffff:0:0/96`, or around it.
    #[error(
        "{0} contains IPv4-mapped addresses (::ffff:0:0/96) and would apply to IPv4; write IPv4 \
         networks as IPv4"
    )]
    Mapped(String),
}

impl Network {
    /// The first network in their order.
    pub const FIRST: Self = Self { first: IpKey::new([0; 16]), prefix: 0 };

    /// The network of a single host.
    pub fn host(address: IpAddr) -> Self {
        Self { first: source_of(address), prefix: 128 }
    }

    /// The network of `prefix` bits (out of 128, 96 more for IPv4) that contains `source`.
    pub fn around(source: IpKey, prefix: u8) -> Self {
        Self { first: source.masked(mask(prefix)), prefix: prefix.min(128) }
    }

    /// Every address, of both families.
    pub const ALL: Self = Self { first: IpKey::new([0; 16]), prefix: 0 };

    /// The network with which a source is judged: for IPv6 its `prefix` bits, for IPv4 the address
    /// alone. In `::/64`, which contains the mapped IPv4 range and no assigned addresses, also the
    /// address alone.
    pub fn neighbourhood(source: IpKey, prefix: u8) -> Self {
        let (host, around) = (Self::around(source, 128), Self::around(source, prefix));
        if around.meets_ipv4() { host } else { around }
    }

    /// The first address, as an [`IpKey`].
    pub fn first(&self) -> IpKey {
        self.first
    }

    /// Prefix length out of 128.
    pub fn bits(&self) -> u8 {
        self.prefix
    }

    /// Prefix length as written: out of 32 for IPv4.
    pub fn prefix(&self) -> u8 {
        if self.is_v4() { self.prefix - MAPPED_BITS } else { self.prefix }
    }

    /// Whether this is IPv4.
    pub fn is_v4(&self) -> bool {
        self.prefix >= MAPPED_BITS && self.first.is_v4()
    }

    /// Whether the network contains mapped IPv4 addresses: an IPv4 network, or an IPv6 network
    /// around the mapped range.
    pub fn meets_ipv4(&self) -> bool {
        let all = Self::around(IpKey::v4(0), MAPPED_BITS);
        self.contains(&all) || all.contains(self)
    }

    /// Whether it is a single host.
    pub fn is_host(&self) -> bool {
        self.prefix == 128
    }

    /// Whether `other` lies in this network.
    pub fn contains(&self, other: &Self) -> bool {
        other.prefix >= self.prefix && other.first.masked(mask(self.prefix)) == self.first
    }

    /// Whether one of them contains the other.
    pub fn meets(&self, other: &Self) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// The first address.
    pub fn address(&self) -> IpAddr {
        address_of(self.first)
    }

    /// The last address, as an [`IpKey`].
    pub fn last(&self) -> IpKey {
        let (keep_high, keep_low) = mask(self.prefix);
        let (high, low) = self.first.words();
        IpKey::from_words(high | !keep_high, low | !keep_low)
    }
}

/// An address as an [`IpKey`]. IPv4-mapped addresses become IPv4.
pub fn source_of(address: IpAddr) -> IpKey {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    IpKey::new(octets)
}

/// The address of an [`IpKey`].
pub fn address_of(source: IpKey) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(source.octets())).to_canonical()
}

impl From<IpNet> for Network {
    fn from(net: IpNet) -> Self {
        let add = if matches!(net, IpNet::V4(_)) { MAPPED_BITS } else { 0 };
        Self::around(source_of(net.addr()), net.prefix_len() + add)
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let syntax = || NetworkError::Syntax(text.to_owned());
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::host(address));
        }
        let net: IpNet = text.parse().map_err(|_| syntax())?;
        if net.trunc() != net {
            let meant = net.trunc().into();
            return Err(NetworkError::HostBits { given: text.to_owned(), meant, host: net.addr() });
        }
        let network = Self::from(net);
        // `::/0` is refused elsewhere, with a better message.
        if matches!(net, IpNet::V6(_)) && network.meets_ipv4() && network.prefix > 0 {
            return Err(NetworkError::Mapped(text.to_owned()));
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An IPv6 network around the mapped range is displayed as IPv6.
        let address =
            if self.is_v4() { self.address() } else { IpAddr::V6(self.first.octets().into()) };
        if self.is_host() {
            f.pad(&address.to_string())
        } else {
            f.pad(&format!("{address}/{}", self.prefix()))
        }
    }
}

impl JsonSchema for Network {
    fn schema_name() -> Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An address, or a network as address/prefix.",
            "type": "string",
            "pattern": "^[0-9a-f.:]+(/[0-9]{1,3})?$",
        })
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn written_and_read_back() {
        for text in [
            "192.0.2.1",
            "192.0.2.0/24",
            "0.0.0.0/0",
            "10.0.0.0/8",
            "2001:db8::1",
            "2001:db8::/32",
            "::/0",
        ] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("192.0.2.1/32").to_string(), "192.0.2.1");
        assert_eq!(network("::ffff:192.0.2.1").to_string(), "192.0.2.1");
    }

    #[test]
    fn refused_with_a_reason() {
        for text in [
            "",
            "192.0.2",
            "192.0.2.1/33",
            "2001:db8::/129",
            "300.1.1.1",
            "sip.example",
            "1.2.3.4/",
            "1.2.3.4 ",
        ] {
            assert_eq!(
                text.parse::<Network>(),
                Err(NetworkError::Syntax(text.to_owned())),
                "{text:?}"
            );
        }
        let error = "192.0.2.1/24".parse::<Network>().unwrap_err();
        assert!(
            error
                .to_string()
                .contains("write 192.0.2.0/24 for the network or 192.0.2.1 for the one host"),
            "{error}"
        );
        for text in ["::ffff:10.0.0.0/104", "::/1", "::/64", "::/80", "::ffff:0:0/96"] {
            assert_eq!(
                text.parse::<Network>(),
                Err(NetworkError::Mapped(text.to_owned())),
                "{text}"
            );
        }
    }

    #[test]
    fn a_ban_of_an_ipv6_source_never_reaches_ipv4() {
        for (source, judged) in [
            ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
            ("192.0.2.7", "192.0.2.7"),
            ("::5", "::5"),
            ("::1:2:3:4", "::1:2:3:4"),
        ] {
            let judged_as = Network::neighbourhood(source_of(source.parse().unwrap()), 64);
            assert_eq!(judged_as, network(judged), "{source}");
            let is_v4 = source.contains('.');
            assert_eq!(judged_as.meets_ipv4(), is_v4, "{source}");
        }
    }

    #[test]
    fn families_do_not_mix() {
        assert!(!network("::/0").is_v4());
        assert!(network("0.0.0.0/0").is_v4());
        assert!(network("::/0").contains(&network("2001:db8::1")));
        assert!(!network("0.0.0.0/0").contains(&network("2001:db8::1")));
        assert_eq!(network("0.0.0.0/0").prefix(), 0);
    }

    proptest! {
        #[test]
        fn containing_agrees_with_the_library(
            a in any::<u32>(),
            b in any::<u32>(),
            p in 0_u8..=32,
            q in 0_u8..=32,
        ) {
            let a = ipnet::Ipv4Net::new(a.into(), p).unwrap().trunc();
            let near = u32::from(a.addr()) ^ (b >> (b & 31));
            let b = ipnet::Ipv4Net::new(near.into(), q).unwrap().trunc();
            let [x, y] = [a, b].map(|net| Network::from(IpNet::V4(net)));
            prop_assert_eq!(x.contains(&y), a.contains(&b));
        }

        #[test]
        fn the_last_address_is_inside(octets in any::<[u8; 16]>(), prefix in 0_u8..=128) {
            let net = Network::around(IpKey::new(octets), prefix);
            let last = Network::around(net.last(), 128);
            prop_assert!(net.contains(&last));
            prop_assert!(net.first() <= last.first());
        }
    }
}
