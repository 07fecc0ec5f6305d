//! sip-xdp: the daemon as users run it, with its tables filled through its own commands.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use sip_xdp_tests::generator::spread;
use sip_xdp_tests::topology::WAN;
use sip_xdp_tests::{Filter, FilterOptions, Wire};

use super::Contender;
use crate::table::thousands;

/// How long bans last: longer than any run.
const BAN: Duration = Duration::from_secs(3600);

/// What is in the tables beside the sources that attack.
#[derive(Debug, Clone, Copy)]
struct Population {
    /// Entries of public blocklists.
    feed: u32,
    /// Trusted networks, each a /24.
    trusted: u32,
    /// Hosts that are blocked for a while.
    bans: u32,
}

/// The sources and nothing else.
const ALONE: Population = Population { feed: 0, trusted: 0, bans: 0 };
/// As in the field.
const FULL: Population = Population { feed: FEED, trusted: 100, bans: 1_000 };
/// How many entries of a feed can be entered one by one in reasonable time.
const FEED: u32 = 20_000;

/// The list alone.
pub(super) fn list_alone<'w>(wire: &'w Wire, sources: &[Ipv4Addr]) -> Result<Box<dyn Contender + 'w>> {
    place(wire, sources, ALONE)
}

/// With all that is in the tables in the field.
pub(super) fn full<'w>(wire: &'w Wire, sources: &[Ipv4Addr]) -> Result<Box<dyn Contender + 'w>> {
    place(wire, sources, FULL)
}

fn place<'w>(wire: &'w Wire, sources: &[Ipv4Addr], population: Population) -> Result<Box<dyn Contender + 'w>> {
    let options = FilterOptions { interfaces: vec![WAN.to_owned()], ..FilterOptions::default() };
    let filter = Filter::start_with(&wire.receiver, wire.directory(), options)?;
    let populated = populate(&filter, sources, population)?;
    Ok(Box::new(Ours { filter, populated }))
}

struct Ours<'w> {
    filter: Filter<'w>,
    populated: String,
}

impl Contender for Ours<'_> {
    fn stopped(&self) -> Result<u64> {
        self.filter.packets(WAN, "drop.blocked")
    }

    fn populated(&self) -> String {
        self.populated.clone()
    }

    fn counter(&self) -> &'static str {
        "drop.blocked in `sip-xdp stats`"
    }
}

/// Blocks the sources and fills the tables; says what is in them now beside the sources.
fn populate(filter: &Filter<'_>, sources: &[Ipv4Addr], population: Population) -> Result<String> {
    let hosts: Vec<_> = sources.iter().map(ToString::to_string).collect();
    filter.put("block", &hosts, None)?;
    // Numbers from a range of its own for each kind: no address is used twice.
    let others = |first: u32, count: u32| (first..first + count).map(spread);
    let bans: Vec<_> = others(1 << 20, population.bans).map(|host| host.to_string()).collect();
    filter.put("block", &bans, Some(BAN))?;
    let networks = others(2 << 20, population.trusted).map(network_of);
    let trusted: Vec<_> =
        networks.filter(|network| sources.iter().all(|source| network_of(*source) != *network)).collect();
    filter.put("trust", &trusted, None)?;
    let feed = feed(filter, population.feed)?;
    let parts = [
        (feed, "feed entries"),
        (u32::try_from(trusted.len())?, "trusted networks"),
        (u32::try_from(bans.len())?, "bans"),
    ];
    let parts: Vec<_> =
        parts.iter().filter(|part| part.0 > 0).map(|(count, what)| format!("{} {what}", thousands(*count))).collect();
    Ok(parts.join(", "))
}

/// Enters so many hosts that are blocked for good, and says how many there are.
fn feed(filter: &Filter<'_>, count: u32) -> Result<u32> {
    let hosts: Vec<_> = (0..count).map(|number| spread((4 << 20) + number).to_string()).collect();
    filter.put("block", &hosts, None)?;
    Ok(count)
}

/// The /24 of an address.
fn network_of(address: Ipv4Addr) -> String {
    let [a, b, c, _] = address.octets();
    format!("{a}.{b}.{c}.0/24")
}
