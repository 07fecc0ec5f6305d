//! A day of a registrar's traffic, made up: 500 phones in 40 offices with the faults that phones
//! have, three carriers, users on the road, and twelve attackers. Nothing is sent; nobody waits.

mod bad;
mod good;
pub mod tape;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::pcap::Timed;
use tape::Tape;

use crate::draw::Draw;

/// The registrar.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The registrar, for those who come by IPv6.
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

/// 2026-01-06 00:00:00 UTC, a Tuesday, in nanoseconds since 1970.
pub const START: u64 = 1_767_657_600_000_000_000;

/// In nanoseconds, as all times here.
pub const SECOND: u64 = 1_000_000_000;
/// A minute.
pub const MINUTE: u64 = 60 * SECOND;
/// An hour.
pub const HOUR: u64 = 60 * MINUTE;

/// Offices, and the phones in all of them.
pub const OFFICES: u32 = 40;
/// See [`OFFICES`].
pub const PHONES: u32 = 500;

/// Addresses of the botnet.
pub const BOTS: u32 = 300;

/// The day, and what is right.
#[derive(Debug)]
pub struct Day {
    /// The packets in the order of time.
    pub packets: Vec<Timed>,
    /// Everybody who must not lose a packet: each address with each port that was used.
    pub good: BTreeSet<SocketAddr>,
    /// Phones whose password is wrong: they may be banned, port by port.
    pub stale: BTreeSet<SocketAddr>,
    /// Who must be banned: an address, or for one that hops, an address of its network.
    pub attackers: BTreeMap<&'static str, IpAddr>,
    /// Those of whom some may be.
    pub bots: Vec<IpAddr>,
    /// The users whose passwords the botnet tries.
    pub sprayed: Vec<String>,
    /// Addresses whose calls the registrar takes without credentials.
    pub served: Vec<IpAddr>,
}

impl Day {
    /// Makes it; always the same.
    pub fn new() -> Self {
        let mut tape =
            Tape::new(SocketAddr::from((SERVER, 5060)), SocketAddr::from((SERVER6, 5060)));
        let mut random = Draw::new(17);
        let good = good::play(&mut tape, &mut random);
        let bad = bad::play(&mut tape, &mut random);
        Self {
            packets: tape.finish(),
            good: good.places,
            stale: good.stale,
            served: good.served,
            attackers: bad.attackers,
            bots: bad.bots,
            sprayed: bad.sprayed,
        }
    }
}

impl Default for Day {
    fn default() -> Self {
        Self::new()
    }
}
