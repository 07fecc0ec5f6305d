//! What is never believed of a list, whoever publishes it: networks that are too broad, addresses
//! that belong to nobody, addresses that must stay reachable; and lists that have changed too much
//! to be right.

use std::net::IpAddr;

use crate::config::Guards;
use crate::dataplane::tables::feed_lists::NetworkSet;
use crate::feeds::coverage::Size;
use crate::feeds::formats::{Tally, reason};
use crate::net::network::Network;

/// An entry that would fall into more pieces than this is left out.
const MOST_PIECES: usize = 64;

/// Ranges that are nobody's on the internet (RFC 6890). Those for documentation and benchmarks are
/// left to whoever uses them.
const SPECIAL: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    // The unspecified address, loopback, and all forms of IPv4 in IPv6.
    "::/8",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

fn special() -> impl Iterator<Item = ipnet::IpNet> {
    SPECIAL.iter().filter_map(|text| text.parse().ok())
}

/// Whether an address is nobody's on the internet, IPv4 in IPv6 included.
pub(super) fn is_special(address: IpAddr) -> bool {
    special().any(|net| net.contains(&address))
}

/// What no list may touch.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ProtectedSet {
    special: NetworkSet,
    protected: NetworkSet,
}

impl ProtectedSet {
    /// The special ranges, and what must stay reachable.
    pub fn new(protected: Vec<Network>) -> Self {
        // `::/8` contains the mapped range, which no one may write: as a network of the tables it
        // can be said.
        Self {
            special: NetworkSet::new(special().map(Network::from).collect()),
            protected: NetworkSet::new(protected),
        }
    }

    /// Whether a network is not touched by any of it.
    fn spares(&self, network: &Network) -> bool {
        [&self.special, &self.protected]
            .into_iter()
            .all(|set| !covers(set, network) && within(set, network).is_none())
    }
}

/// Whether one of `set` contains `network`, within one family.
fn covers(set: &NetworkSet, network: &Network) -> bool {
    set.covers(network)
}

/// One of `set` that lies in `network`, within one family.
fn within<'a>(set: &'a NetworkSet, network: &Network) -> Option<&'a Network> {
    set.within(network).find(|inside| inside.is_v4() == network.is_v4())
}

/// Takes out what is too broad, special or protected. An entry that contains such a part loses that
/// part only.
pub fn trim(
    networks: Vec<Network>,
    guards: &Guards,
    protected_set: &ProtectedSet,
    tally: &mut Tally,
) -> NetworkSet {
    let total = networks.len();
    let mut kept = Vec::with_capacity(total);
    let mut pieces = Vec::new();
    for network in networks {
        let shortest = if network.is_v4() { guards.min_prefix } else { guards.min_prefix6 };
        if network.prefix() < shortest {
            tally.skip(reason::TOO_BROAD);
        } else if protected_set.spares(&network) {
            kept.push(network);
        } else if covers(&protected_set.special, &network) {
            tally.skip(reason::SPECIAL);
        } else if covers(&protected_set.protected, &network) {
            tally.skip(reason::PROTECTED);
        } else {
            pieces.clear();
            split(network, protected_set, &mut pieces);
            if pieces.len() > MOST_PIECES {
                tally.skip(reason::PROTECTED);
            } else {
                tally.split += 1;
                tally.pieces += pieces.len().saturating_sub(1) as u64;
                kept.append(&mut pieces);
            }
        }
    }
    let before = kept.len();
    let listed = NetworkSet::new(kept);
    let duplicates = before - listed.networks().len();
    if duplicates > 0 {
        *tally.skipped.entry(reason::DUPLICATE).or_default() += duplicates as u64;
    }
    listed
}

/// The parts of a network that are not untouchable; more than [`MOST_PIECES`] if there would be too
/// many.
fn split(network: Network, protected_set: &ProtectedSet, pieces: &mut Vec<Network>) {
    let is_gone =
        covers(&protected_set.special, &network) || covers(&protected_set.protected, &network);
    if is_gone || pieces.len() > MOST_PIECES {
        return;
    }
    if protected_set.spares(&network) {
        pieces.push(network);
        return;
    }
    for half in halves(&network) {
        split(half, protected_set, pieces);
    }
}

fn halves(network: &Network) -> [Network; 2] {
    let bits = network.bits() + 1;
    [Network::around(network.first(), bits), Network::around(network.last(), bits)]
}

/// Why a list of one size does not follow one of another, if it does not. Addresses are compared,
/// not entries: what is only written in other networks is the same list.
pub fn implausible(before: &Size, now: &Size, guards: &Guards) -> Option<String> {
    if before.entries == 0 {
        return None;
    }
    let has_shrunk =
        |before: u64, now: u64| guards.shrink.of(before).is_some_and(|least| now <= least);
    let has_grown = |before: u64, now: u64| guards.grow.of(before).is_some_and(|most| now >= most);
    let from = u64::from(guards.from);
    let (entries, entries_now) = (before.entries as u64, now.entries as u64);
    if entries.max(entries_now) >= from {
        // Each entry that is really gone, or new, is an address at least.
        let lost = entries.saturating_sub(entries_now);
        let gained = entries_now.saturating_sub(entries);
        if has_shrunk(entries, entries_now) && now.lost_since(before) * 2 >= lost {
            return Some(format!("it shrank from {entries} to {entries_now} entries"));
        }
        if has_grown(entries, entries_now) && before.lost_since(now) * 2 >= gained {
            return Some(format!("it grew from {entries} to {entries_now} entries"));
        }
    }
    for (before, now, what) in [
        (before.ipv4, now.ipv4, "addresses"),
        (before.ipv6, now.ipv6, "IPv6 networks of /64 and hosts"),
    ] {
        // A few networks may come and go in a list of hosts.
        let may_change = before.max(now) < from.saturating_mul(256);
        if !may_change && before > 0 && (has_shrunk(before, now) || has_grown(before, now)) {
            return Some(format!("it covers {} {what}, before {}", amount(now), amount(before)));
        }
    }
    None
}

/// A number as people say it: exact up to a million.
fn amount(count: u64) -> String {
    match count {
        0..1_000_000 => count.to_string(),
        1_000_000..10_000_000 => format!("{:.1} million", count as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{} million", (count + 500_000) / 1_000_000),
        _ => format!("{:.1} thousand million", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sip_xdp_common::ip_key::IpKey;

    use super::*;

    fn network(text: &str) -> Network {
        text.parse::<ipnet::IpNet>().map(Network::from).unwrap_or_else(|_| text.parse().unwrap())
    }

    fn trimmed(entries: &[&str], protected: &[&str]) -> (Vec<String>, Tally) {
        let protected_set = ProtectedSet::new(protected.iter().map(|text| network(text)).collect());
        let mut tally = Tally::default();
        let entries = entries.iter().map(|text| network(text)).collect();
        let kept = trim(entries, &Guards::default(), &protected_set, &mut tally);
        (kept.networks().iter().map(ToString::to_string).collect(), tally)
    }

    #[test]
    fn what_is_too_broad_is_left_out() {
        let (kept, tally) =
            trimmed(&["0.0.0.0/0", "64.0.0.0/7", "64.0.0.0/8", "2000::/18", "2001:db8::/32"], &[]);
        assert_eq!(kept, ["64.0.0.0/8", "2001:db8::/32"]);
        assert_eq!(tally.count(reason::TOO_BROAD), 3);
    }

    #[test]
    fn bogons_are_left_out() {
        let bogons = [
            "0.1.0.1",
            "10.0.0.0/8",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.0/24",
            "172.31.0.0/16",
            "192.168.0.0/16",
            "224.0.0.1",
            "240.0.0.0/8",
            "255.255.255.255",
            "::1",
            "fc00::/19",
            "fd00::1",
            "fe80::1",
            "ff02::1",
        ];
        let (kept, tally) = trimmed(&bogons, &[]);
        assert!(kept.is_empty(), "{kept:?}");
        assert_eq!(tally.count(reason::SPECIAL), bogons.len() as u64);
        let fine = [
            "9.255.255.255",
            "11.0.0.1",
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
            "2001:db8::1",
        ];
        assert_eq!(trimmed(&fine, &[]).0, fine);
    }

    #[test]
    fn only_the_protected_part_goes() {
        let (kept, tally) =
            trimmed(&["198.51.100.0/29", "198.51.100.1", "203.0.113.0/24"], &["198.51.100.1"]);
        assert_eq!(kept, ["198.51.100.0", "198.51.100.2/31", "198.51.100.4/30", "203.0.113.0/24"]);
        assert_eq!((tally.split, tally.count(reason::PROTECTED)), (1, 1));
        // A special range inside is cut out as well.
        let (kept, _) = trimmed(&["192.0.0.0/8"], &[]);
        assert!(
            !kept.is_empty()
                && kept.iter().all(|kept| !network(kept).contains(&network("192.168.0.0/16")))
        );
        // One address in a /32 of IPv6 would take 96 pieces.
        let (kept, tally) = trimmed(&["2001:db8::/32", "2001:db8:1::/64"], &["2001:db8:66::1"]);
        assert_eq!((kept, tally.count(reason::PROTECTED)), (vec!["2001:db8:1::/64".to_owned()], 1));
        let (kept, _) = trimmed(&["2001:db8:66::/64"], &["2001:db8:66::1"]);
        assert_eq!(kept.len(), 64);
    }

    #[test]
    fn duplicates_are_counted() {
        let (kept, tally) = trimmed(&["192.0.2.1", "192.0.2.1", "192.0.2.1"], &[]);
        assert_eq!((kept.len(), tally.count(reason::DUPLICATE)), (1, 2));
    }

    /// The size of a list of hosts.
    fn hosts(count: usize) -> Size {
        let host = |number: usize| {
            Network::host(std::net::Ipv4Addr::from(0x2d50_0000 + number as u32 * 2).into())
        };
        Size::of(&NetworkSet::new((0..count).map(host).collect()), count)
    }

    /// The size of a list of networks, so many of each length, one after the other from an address
    /// on.
    fn size(from: &str, prefix: u8, count: u128) -> Size {
        let net: ipnet::IpNet = format!("{from}/{prefix}").parse().unwrap();
        let networks = (0..count).map(|number| match net {
            ipnet::IpNet::V4(net) => {
                let first = u32::from(net.network()) + ((number as u32) << (32 - prefix));
                Network::from(
                    ipnet::IpNet::new(std::net::Ipv4Addr::from(first).into(), prefix).unwrap(),
                )
            }
            ipnet::IpNet::V6(net) => {
                let first = u128::from(net.network()) + (number << (128 - prefix));
                Network::from(
                    ipnet::IpNet::new(std::net::Ipv6Addr::from(first).into(), prefix).unwrap(),
                )
            }
        });
        Size::of(&NetworkSet::new(networks.collect()), count as usize)
    }

    #[test]
    fn sizes_must_be_plausible() {
        let guards = Guards::default();
        for (before, now, is_plausible) in [
            (0, 1_000_000, true),
            (100, 51, true),
            (100, 50, false),
            (100, 0, false),
            (100, 299, true),
            (100, 300, false),
            (3, 1, true),
            (3, 9, true),
            (3, 10, false),
            (10, 5, false),
        ] {
            assert_eq!(
                implausible(&hosts(before), &hosts(now), &guards).is_none(),
                is_plausible,
                "{before} {now}"
            );
        }
        let off =
            Guards { shrink: crate::config::Factor(0), grow: crate::config::Factor(0), ..guards };
        assert!(implausible(&hosts(100), &hosts(1), &off).is_none());
        assert!(implausible(&hosts(100), &hosts(10_000), &off).is_none());
    }

    #[test]
    fn addresses_count_not_entries() {
        let guards = Guards::default();
        let says = |before: &Size, now: &Size| implausible(before, now, &guards);
        let wide = size("24.0.0.0", 12, 150);
        assert_eq!(
            says(&hosts(150), &wide).unwrap(),
            "it covers 157 million addresses, before 150"
        );
        assert_eq!(
            says(&wide, &hosts(150)).unwrap(),
            "it covers 150 addresses, before 157 million"
        );
        let says_of_24 = says(&hosts(150), &size("24.0.0.0", 24, 150)).unwrap();
        assert_eq!(says_of_24, "it covers 38400 addresses, before 150");
        let says_of_v6 = says(&size("2001:db8::", 128, 150), &size("2001:db8::", 48, 150)).unwrap();
        assert_eq!(says_of_v6, "it covers 9.8 million IPv6 networks of /64 and hosts, before 150");
        // The same addresses in fewer networks, and in more.
        let (hosts_of_24, one) = (size("192.0.2.0", 32, 256), size("192.0.2.0", 24, 1));
        assert_eq!((says(&hosts_of_24, &one), says(&one, &hosts_of_24)), (None, None));
        // Hosts that are gone are missed beside a network that dwarfs them.
        let with = |count| {
            let mut size = hosts(count);
            (size.ipv4, size.entries) = (size.ipv4 + (1 << 24), size.entries + 1);
            size
        };
        assert_eq!(says(&with(1_000), &with(0)).unwrap(), "it shrank from 1001 to 1 entries");
        assert_eq!(says(&with(100), &with(1_000)).unwrap(), "it grew from 101 to 1001 entries");
        assert_eq!(says(&with(1_000), &with(1_200)), None);
    }

    proptest! {
        #[test]
        fn splitting_loses_nothing_else(low in any::<u8>(), bits in 120_u8..=127, hole in any::<u8>(), probe in any::<u8>()) {
            let host = |last: u8| Network::around(IpKey::new([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, last]), 128);
            let entry = Network::around(host(low).first(), bits);
            let protected_set = ProtectedSet::new(vec![host(hole)]);
            let kept = trim(vec![entry], &Guards::default(), &protected_set, &mut Tally::default());
            let expected = entry.contains(&host(probe)) && probe != hole;
            prop_assert_eq!(kept.covers(&host(probe)), expected);
        }
    }
}
