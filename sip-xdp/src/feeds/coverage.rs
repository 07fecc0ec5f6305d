//! The size of a list, in entries and in covered addresses.

use crate::dataplane::tables::feed_lists::NetworkSet;

/// The size of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Number of entries, before splits.
    pub entries: usize,
    /// Number of covered IPv4 addresses, each once.
    pub ipv4: u64,
    /// Number of covered IPv6 /64s, each once, plus narrower networks and hosts outside of those.
    pub ipv6: u64,
}

impl Size {
    /// The size of a list with this number of entries.
    pub fn of(listed: &NetworkSet, entries: usize) -> Self {
        let mut size = Self { entries, ..Self::default() };
        // Ordered by first address, wider networks first: covered networks follow the covering one.
        let mut covered: [Option<u128>; 2] = [None; 2];
        for network in listed.networks() {
            let [first, last] = [network.first(), network.last()]
                .map(|source| u128::from_be_bytes(source.octets()));
            let covered = &mut covered[usize::from(network.is_v4())];
            if covered.is_some_and(|covered| last <= covered) {
                continue;
            }
            *covered = Some(last);
            if network.is_v4() {
                size.ipv4 += (last - first) as u64 + 1;
            } else {
                let blocks = ((last >> 64) - (first >> 64)) as u64;
                size.ipv6 = size.ipv6.saturating_add(blocks.saturating_add(1));
            }
        }
        size
    }

    /// A lower bound of the number of addresses that `before` covers and this does not, from the
    /// difference of both sizes.
    pub(super) fn lost_since(&self, before: &Self) -> u64 {
        before.ipv4.saturating_sub(self.ipv4).saturating_add(before.ipv6.saturating_sub(self.ipv6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::network::Network;

    fn size(networks: &[&str]) -> (u64, u64) {
        let networks =
            networks.iter().map(|text| Network::from(text.parse::<ipnet::IpNet>().unwrap()));
        let size = Size::of(&NetworkSet::new(networks.collect()), 0);
        (size.ipv4, size.ipv6)
    }

    #[test]
    fn each_address_counts_once() {
        assert_eq!(size(&[]), (0, 0));
        assert_eq!(
            size(&["192.0.2.0/24", "192.0.2.34/32", "192.0.0.0/16", "192.1.0.0/32"]),
            (65_537, 0)
        );
        assert_eq!(size(&["0.0.0.0/0"]), (1 << 32, 0));
        assert_eq!(size(&["2001:db8::1/128", "2001:db8::2/128", "2001:db8:0:1::/65"]), (0, 3));
        assert_eq!(
            size(&["2001:db8::/32", "2001:db8:7::/48", "2001:db9::/64"]),
            (0, (1 << 32) + 1)
        );
        assert_eq!(size(&["2000::/3", "192.0.2.1/32"]), (1, 1 << 61));
    }
}
