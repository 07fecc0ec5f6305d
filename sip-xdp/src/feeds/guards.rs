//! Guards for every list: networks that are too wide, special-purpose addresses, protected
//! addresses; and lists whose size changed implausibly.

use std::net::IpAddr;

use crate::config::Guards;
use crate::dataplane::tables::feed_lists::NetworkSet;
use crate::feeds::coverage::Size;
use crate::feeds::formats::{Tally, reason};
use crate::net::network::Network;

/// Entries that would be split into more pieces are left out.
const MOST_PIECES: usize = 64;

/// Special-purpose ranges that are never public sources (RFC 6890). Documentation and benchmark
/// ranges are not among them.
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

/// Whether an address is in a special-purpose range, also as IPv4 in IPv6.
pub(super) fn is_special(address: IpAddr) -> bool {
    special().any(|net| net.contains(&address))
}

/// Networks that no list may touch.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ProtectedSet {
    special: NetworkSet,
    protected: NetworkSet,
}

impl ProtectedSet {
    /// The special-purpose ranges, and `protected`.
    pub fn new(protected: Vec<Network>) -> Self {
        // `::/8` contains the mapped range and is rejected by the parser, so that it is built here.
        Self {
            special: NetworkSet::new(special().map(Network::from).collect()),
            protected: NetworkSet::new(protected),
        }
    }

    /// Whether a network overlaps none of it.
    fn is_disjoint(&self, network: &Network) -> bool {
        [&self.special, &self.protected]
            .into_iter()
            .all(|set| !covers(set, network) && within(set, network).is_none())
    }
}

/// Whether a member of `set` contains `network`, within one family.
fn covers(set: &NetworkSet, network: &Network) -> bool {
    set.covers(network)
}

/// A member of `set` inside `network`, within one family.
fn within<'a>(set: &'a NetworkSet, network: &Network) -> Option<&'a Network> {
    set.within(network).find(|inside| inside.is_v4() == network.is_v4())
}

/// Removes networks that are too wide, special-purpose or protected. An entry that contains such a
/// part loses only that part.
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
        } else if protected_set.is_disjoint(&network) {
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

/// The unprotected parts of a network; more than [`MOST_PIECES`] if it has too many.
fn split(network: Network, protected_set: &ProtectedSet, pieces: &mut Vec<Network>) {
    let is_gone =
        covers(&protected_set.special, &network) || covers(&protected_set.protected, &network);
    if is_gone || pieces.len() > MOST_PIECES {
        return;
    }
    if protected_set.is_disjoint(&network) {
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

/// Why a change of size is implausible, if it is. Addresses are compared, not entries, since the
/// same list may be written with other networks.
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
        // Each removed or added entry is at least one address.
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

/// A number in readable form: exact up to a million.
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
    fn wide_networks_are_left_out() {
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
        // A special-purpose range inside is cut out as well.
        let (kept, _) = trimmed(&["192.0.0.0/8"], &[]);
        assert!(
            !kept.is_empty()
                && kept.iter().all(|kept| !network(kept).contains(&network("192.168.0.0/16")))
        );
        // One address in an IPv6 /32 would take 96 pieces.
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

    /// The size of a list of adjacent networks of one length.
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
        let reason = |before: &Size, now: &Size| implausible(before, now, &guards);
        let wide = size("24.0.0.0", 12, 150);
        assert_eq!(
            reason(&hosts(150), &wide).unwrap(),
            "it covers 157 million addresses, before 150"
        );
        assert_eq!(
            reason(&wide, &hosts(150)).unwrap(),
            "it covers 150 addresses, before 157 million"
        );
        let reason_24 = reason(&hosts(150), &size("24.0.0.0", 24, 150)).unwrap();
        assert_eq!(reason_24, "it covers 38400 addresses, before 150");
        let reason_v6 =
            reason(&size("2001:db8::", 128, 150), &size("2001:db8::", 48, 150)).unwrap();
        assert_eq!(reason_v6, "it covers 9.8 million IPv6 networks of /64 and hosts, before 150");
        // The same addresses in fewer networks, and in more.
        let (hosts_of_24, one) = (size("192.0.2.0", 32, 256), size("192.0.2.0", 24, 1));
        assert_eq!((reason(&hosts_of_24, &one), reason(&one, &hosts_of_24)), (None, None));
        // Removed hosts are noticed beside a much larger network.
        let with = |count| {
            let mut size = hosts(count);
            (size.ipv4, size.entries) = (size.ipv4 + (1 << 24), size.entries + 1);
            size
        };
        assert_eq!(reason(&with(1_000), &with(0)).unwrap(), "it shrank from 1001 to 1 entries");
        assert_eq!(reason(&with(100), &with(1_000)).unwrap(), "it grew from 101 to 1001 entries");
        assert_eq!(reason(&with(1_000), &with(1_200)), None);
    }

    proptest! {
        #[test]
        fn splitting_loses_nothing_else(
            low in any::<u8>(),
            bits in 120_u8..=127,
            hole in any::<u8>(),
            probe in any::<u8>(),
        ) {
            let host = |last: u8| Network::host(std::net::Ipv4Addr::new(192, 0, 2, last).into());
            let entry = Network::around(host(low).first(), bits);
            let protected_set = ProtectedSet::new(vec![host(hole)]);
            let kept = trim(vec![entry], &Guards::default(), &protected_set, &mut Tally::default());
            let expected = entry.contains(&host(probe)) && probe != hole;
            prop_assert_eq!(kept.covers(&host(probe)), expected);
        }
    }
}
