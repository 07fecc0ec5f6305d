//! Parsing of one word of a list.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::{Limits, reason};
use crate::net::network::Network;

/// The meaning of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// A network, possibly with host bits.
    Network { network: Network, host_bits: bool },
    /// An address range.
    Range(Range),
    /// An IPv6 network that covers the IPv4-mapped range.
    Everybody,
    /// An IPv4-mapped IPv6 address.
    Mapped,
    /// Anything else.
    Malformed,
}

impl Word {
    /// Parses an address, a network, or a range `a-b`.
    pub(super) fn read(text: &str) -> Self {
        let net = match address(text) {
            Some(address) => IpNet::from(address),
            None => match network(text) {
                Some(net) => net,
                None => {
                    let range =
                        text.split_once('-').and_then(|(first, last)| Range::read(first, last));
                    return range.map_or(Self::Malformed, Self::Range);
                }
            },
        };
        let network = Network::from(net);
        if matches!(net, IpNet::V6(_)) && network.meets_ipv4() {
            return if network.bits() < 19 { Self::Everybody } else { Self::Mapped };
        }
        Self::Network { network, host_bits: net.trunc() != net }
    }

    /// Whether it is an entry.
    pub(super) fn is_entry(&self) -> bool {
        *self != Self::Malformed
    }
}

/// Parses an address. Leading zeros mean octal to some programs only, so that such an address is
/// invalid, unless all four numbers have three digits, as in fixed-width lists.
fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| unpadded(text)?.parse().ok())
}

fn network(text: &str) -> Option<IpNet> {
    let (first, prefix) = text.split_once('/')?;
    let is_number = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
    IpNet::new(address(first)?, prefix.parse().ok().filter(|_| is_number)?).ok()
}

/// An IPv4 address of four three-digit numbers, in normal form.
fn unpadded(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_padded = bytes.len() == 15
        && bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| if at % 4 == 3 { *byte == b'.' } else { byte.is_ascii_digit() });
    let numbers: Option<Vec<_>> = text.split('.').map(|number| number.parse::<u8>().ok()).collect();
    let numbers = numbers.filter(|_| is_padded)?;
    Some(numbers.iter().map(u8::to_string).collect::<Vec<_>>().join("."))
}

/// An address range, ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    first: IpAddr,
    last: IpAddr,
}

impl Range {
    /// Parses its ends.
    pub(super) fn read(first: &str, last: &str) -> Option<Self> {
        let (first, last) = (address(first)?, address(last)?);
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The minimal set of networks that covers it; or why it is left out as a whole, rather than in
    /// part.
    pub(super) fn networks(&self, limits: &Limits) -> Result<Vec<Network>, &'static str> {
        let nets: Vec<IpNet> = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                let count = u64::from(u32::from(last)) - u64::from(u32::from(first)) + 1;
                if count > 1 << (32 - limits.min_prefix.min(32)) {
                    return Err(reason::TOO_BROAD);
                }
                Ipv4Subnets::new(first, last, 0).map(IpNet::from).collect()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                let more = u128::from(last) - u128::from(first);
                if more
                    .checked_shr(u32::from(128 - limits.min_prefix6.min(128)))
                    .is_some_and(|rest| rest > 0)
                {
                    return Err(reason::TOO_BROAD);
                }
                Ipv6Subnets::new(first, last, 0).map(IpNet::from).collect()
            }
            _ => return Err(reason::MALFORMED),
        };
        let networks: Vec<Network> = nets.into_iter().map(Network::from).collect();
        match self.first.is_ipv6() && networks.iter().any(Network::meets_ipv4) {
            true => Err(reason::SPECIAL),
            false => Ok(networks),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> Limits {
        Limits { entries: 1_000, bytes: 1 << 20, min_count: 1, min_prefix: 8, min_prefix6: 19 }
    }

    fn networks(text: &str) -> Result<Vec<String>, &'static str> {
        match Word::read(text) {
            Word::Range(range) => {
                Ok(range.networks(&limits())?.iter().map(ToString::to_string).collect())
            }
            Word::Network { network, .. } => Ok(vec![network.to_string()]),
            other => panic!("{text} is {other:?}"),
        }
    }

    #[test]
    fn ranges_become_the_fewest_networks() {
        assert_eq!(networks("192.0.2.0-192.0.2.255").unwrap(), ["192.0.2.0/24"]);
        assert_eq!(networks("192.0.2.7-192.0.2.7").unwrap(), ["192.0.2.7"]);
        assert_eq!(
            networks("192.0.2.1-192.0.2.4").unwrap(),
            ["192.0.2.1", "192.0.2.2/31", "192.0.2.4"]
        );
        assert_eq!(networks("2001:db8::-2001:db8::ffff").unwrap(), ["2001:db8::/112"]);
        assert_eq!(networks("001.002.004.000-001.002.004.255").unwrap(), ["1.2.4.0/24"]);
        assert_eq!(networks("64.0.0.0-65.0.0.0"), Err(reason::TOO_BROAD), "one more than a /8");
        assert_eq!(networks("64.0.0.0-64.255.255.255").unwrap(), ["64.0.0.0/8"]);
        assert_eq!(networks("0.0.0.0-255.255.255.255"), Err(reason::TOO_BROAD));
        assert_eq!(networks("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Err(reason::TOO_BROAD));
        assert_eq!(networks("::fffe:0:0-::ffff:c000:201"), Err(reason::SPECIAL));
        for text in [
            "192.0.2.9-192.0.2.1",
            "192.0.2.1-2001:db8::",
            "192.0.2.1-9",
            "-",
            "192.0.2.1-",
            "-192.0.2.1",
        ] {
            assert_eq!(Word::read(text), Word::Malformed, "{text}");
        }
    }

    #[test]
    fn a_leading_zero_is_never_octal() {
        for (text, expected) in [
            ("010.020.030.040", Some("10.20.30.40")),
            ("045.080.000.009", Some("45.80.0.9")),
            ("045.080.000.000/24", Some("45.80.0.0/24")),
            ("010.20.30.40", None),
            ("95.32.221.040", None),
            ("45.080.000.009", None),
            ("0045.80.0.0.9", None),
            ("300.001.001.001", None),
            ("001.001.001.001.", None),
            ("001.001.001.01/8", None),
            ("010.0.0.0/8", None),
            ("45.80.0.0/+24", None),
            ("45.80.0.0/", None),
        ] {
            let read = match Word::read(text) {
                Word::Network { network, .. } => Some(network.to_string()),
                _ => None,
            };
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_range_covers_exactly_its_addresses(
            first in any::<u32>(),
            length in 0_u32..70_000,
            probe in any::<u32>(),
        ) {
            let last = first.saturating_add(length);
            let [from, to] = [first, last].map(std::net::Ipv4Addr::from);
            let Word::Range(range) = Word::read(&format!("{from}-{to}")) else {
                panic!("no range")
            };
            let networks = range.networks(&limits()).unwrap();
            for probe in [probe, first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                let host = Network::host(std::net::Ipv4Addr::from(probe).into());
                let is_covered = networks.iter().any(|network| network.contains(&host));
                prop_assert_eq!(is_covered, (first..=last).contains(&probe));
            }
        }
    }
}
