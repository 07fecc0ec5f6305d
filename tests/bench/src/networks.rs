//! Networks to fill lists with, a distinct one for each number.

use std::net::{Ipv4Addr, Ipv6Addr};

use sip_xdp::net::network::Network;
use sip_xdp_common::ip_key::MAPPED_BITS;
use sip_xdp_tests::generator::spread;

/// Numbers beyond this do not all have networks of their own.
const NUMBERS: u32 = 1 << 23;
/// The lengths of IPv4 networks that are no hosts, and those of IPv6 networks, in turn.
const LENGTHS4: [u8; 8] = [24, 24, 24, 24, 24, 23, 22, 20];
const LENGTHS6: [u8; 4] = [32, 48, 64, 128];

/// An IPv4 host.
pub(crate) fn host(number: u32) -> Network {
    Network::host(spread(number).into())
}

/// As feeds have them: of twenty, eighteen are IPv4 hosts, one is a /24 or wider, and one is IPv6,
/// of any usual length.
pub(crate) fn mixed(number: u32) -> Network {
    debug_assert!(number < NUMBERS);
    match number % 20 {
        0 => wide(number / 20),
        1 => network6(number / 20),
        _ => host(number),
    }
}

/// An IPv4 network that is no host, in the range that [`spread`] covers.
fn wide(number: u32) -> Network {
    let bits = LENGTHS4[number as usize % LENGTHS4.len()];
    // Half of all networks of that length lie in the range.
    let count = 1 << (bits - 1);
    let address = (64 << 24) + ((number.wrapping_mul(0x9e37_79b1) & (count - 1)) << (32 - bits));
    let address = if address >> 24 == 127 { address - (65 << 24) } else { address };
    let network = Network::host(Ipv4Addr::from(address).into());
    Network::around(network.first(), MAPPED_BITS + bits)
}

/// An IPv6 network.
fn network6(number: u32) -> Network {
    let bits = LENGTHS6[number as usize % LENGTHS6.len()];
    // In 2000::/3, and another one in its first 32 bits already.
    let first = 1 << 29 | number.wrapping_mul(0x9e37_79b1) & ((1 << 29) - 1);
    let rest = u64::from(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let address = u128::from(first) << 96 | u128::from(rest) << 32 | u128::from(first);
    Network::around(Network::host(Ipv6Addr::from(address).into()).first(), bits)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_number_has_a_network_of_its_own() {
        let networks: HashSet<_> = (0..400_000).map(mixed).collect();
        assert_eq!(networks.len(), 400_000);
        let share =
            |of: fn(&Network) -> bool| networks.iter().filter(|network| of(network)).count();
        assert_eq!(share(|network| network.is_v4() && network.is_host()), 360_000);
        assert_eq!(share(|network| network.is_v4() && network.prefix() <= 24), 20_000);
        assert_eq!(share(|network| !network.is_v4()), 20_000);
        let of = |address: &str| Network::host(address.parse().unwrap());
        for loopback in [of("127.0.0.1"), of("::1")] {
            assert!(networks.iter().all(|network| !network.contains(&loopback)));
        }
    }
}
