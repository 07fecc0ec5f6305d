//! Addresses that the detector never bans, and operators only with `--force`: the host's own, its
//! default gateways, its resolvers. Trusted networks are separate.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::dataplane::netlink::Surroundings;
use crate::net::network::Network;

/// What the host's own addresses are.
const OWN: &str = "an address of this host";

/// The addresses that must stay reachable, with their role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NeverBan {
    hosts: Vec<(Network, &'static str)>,
}

impl NeverBan {
    /// From the kernel's addresses and routes, and the resolvers of `resolv.conf`.
    pub fn new(surroundings: &Surroundings, resolv_conf: &str) -> Self {
        let mut hosts = Vec::new();
        hosts.extend(surroundings.own.iter().map(|address| (Network::host(*address), OWN)));
        hosts.extend(
            surroundings
                .gateways
                .iter()
                .map(|address| (Network::host(*address), "the default gateway")),
        );
        hosts.extend(
            resolvers(resolv_conf)
                .map(|address| (Network::host(address), "a resolver of this host")),
        );
        Self { hosts }
    }

    /// These networks, all with the same role.
    pub fn of_networks(networks: &[Network], what: &'static str) -> Self {
        Self { hosts: networks.iter().map(|network| (*network, what)).collect() }
    }

    /// The first such host inside `network`, with its role.
    pub fn inside(&self, network: &Network) -> Option<(Network, &'static str)> {
        self.hosts.iter().find(|(host, _)| network.contains(host)).copied()
    }

    /// Whether an address is the host's own.
    pub fn is_own(&self, address: IpAddr) -> bool {
        let host = Network::host(address);
        self.hosts.iter().any(|(own, what)| *what == OWN && *own == host)
    }

    /// All such networks.
    pub fn networks(&self) -> impl Iterator<Item = Network> {
        self.hosts.iter().map(|(host, _)| *host)
    }

    /// The IPv6 networks of `prefix` bits that contain such hosts.
    pub fn ipv6_networks(&self, prefix: u8) -> BTreeSet<Network> {
        near(self.hosts.iter().map(|(host, _)| host), prefix)
    }
}

/// The IPv6 networks of `prefix` bits around those `networks` that are longer.
pub fn near<'a>(networks: impl Iterator<Item = &'a Network>, prefix: u8) -> BTreeSet<Network> {
    networks
        .filter(|network| !network.is_v4() && network.bits() > prefix)
        .map(|network| Network::around(network.first(), prefix))
        .filter(|network| !network.meets_ipv4())
        .collect()
}

/// The addresses of `nameserver` lines (resolv.conf(5)), without IPv6 scopes.
fn resolvers(resolv_conf: &str) -> impl Iterator<Item = IpAddr> {
    resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        words.next()?.split('%').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn knows_who_is_inside_a_network() {
        let surroundings = Surroundings {
            own: ["192.0.2.1".parse().unwrap(), "2001:db8:0:1::5".parse().unwrap()].into(),
            gateways: ["192.0.2.254".parse().unwrap()].into(),
            default_interfaces: BTreeSet::new(),
        };
        let resolv = "# nameserver 10.0.0.1\nsearch example\nnameserver 198.51.100.53\nnameserver \
                      fe80::1%eth0\n";
        let never_ban = NeverBan::new(&surroundings, resolv);
        assert_eq!(
            never_ban.inside(&network("192.0.2.1")),
            Some((network("192.0.2.1"), "an address of this host"))
        );
        assert_eq!(
            never_ban.inside(&network("192.0.2.240/28")).map(|found| found.1),
            Some("the default gateway")
        );
        assert_eq!(
            never_ban.inside(&network("198.51.100.53")).map(|found| found.1),
            Some("a resolver of this host")
        );
        assert_eq!(never_ban.inside(&network("10.0.0.1")), None, "a comment");
        assert!(never_ban.inside(&network("fe80::1")).is_some());
        assert!(never_ban.inside(&network("0.0.0.0/0")).is_some());
        assert_eq!(
            never_ban.ipv6_networks(64),
            [network("2001:db8:0:1::/64"), network("fe80::/64")].into()
        );
    }
}
