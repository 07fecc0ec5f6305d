//! sip-xdp with its daemon.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use sip_xdp::net::network::Network;
use sip_xdp_common::ip_key::MAPPED_BITS;
use sip_xdp_tests::generator::spread;
use sip_xdp_tests::topology::WAN;
use sip_xdp_tests::{Filter, FilterOptions, Wire};

use super::Contender;
use crate::networks::{host, mixed};
use crate::table::thousands;

/// Duration of bans: longer than any run.
const BAN: Duration = Duration::from_secs(3600);

/// Contents of the tables.
#[derive(Debug, Clone, Copy)]
struct Population {
    /// Entries of feeds, half of the attacking sources among them.
    feed: u32,
    /// Trusted networks, each a /24.
    trusted: u32,
    /// Temporarily blocked hosts, the other half of the attacking sources among them.
    bans: u32,
}

/// A realistic population.
const FULL: Population = Population { feed: 1_000_000, trusted: 100, bans: 1_000 };
/// The same with half as long a feed.
const HALF: Population = Population { feed: FULL.feed / 2, ..FULL };
/// Capacity in networks, for every population.
const CAPACITY: u32 = 1 << 20;

/// The attacking sources only, permanently blocked.
pub(super) fn list_alone<'w>(
    wire: &'w Wire,
    sources: &[Ipv4Addr],
) -> Result<Box<dyn Contender + 'w>> {
    let filter = start(wire, String::new())?;
    filter.put("block", &texts(sources), None)?;
    Ok(Box::new(Ours { filter, populated: String::new() }))
}

/// With the realistic population.
pub(super) fn full<'w>(wire: &'w Wire, sources: &[Ipv4Addr]) -> Result<Box<dyn Contender + 'w>> {
    populated(wire, sources, FULL)
}

/// With half of that.
pub(super) fn half<'w>(wire: &'w Wire, sources: &[Ipv4Addr]) -> Result<Box<dyn Contender + 'w>> {
    populated(wire, sources, HALF)
}

fn populated<'w>(
    wire: &'w Wire,
    sources: &[Ipv4Addr],
    population: Population,
) -> Result<Box<dyn Contender + 'w>> {
    let mut filter = start(wire, format!("capacity.networks = {CAPACITY}\n"))?;
    let populated = populate(&mut filter, sources, population)?;
    Ok(Box::new(Ours { filter, populated }))
}

fn start(wire: &Wire, configuration: String) -> Result<Filter<'_>> {
    let options = FilterOptions {
        interfaces: vec![WAN.to_owned()],
        configuration,
        ..FilterOptions::default()
    };
    Filter::start_with(&wire.receiver, wire.directory(), options)
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

/// Fills the tables, and describes their contents.
fn populate(
    filter: &mut Filter<'_>,
    sources: &[Ipv4Addr],
    population: Population,
) -> Result<String> {
    let (fed, banned) = sources.split_at(sources.len() / 2);
    // Numbers from a separate range for each kind, so that no address is used twice.
    let others = |first: u32, count: u32, sources: usize| {
        let count = count.saturating_sub(u32::try_from(sources).unwrap_or(count));
        first..first + count
    };
    let hot = fed.iter().map(|source| Network::host((*source).into()));
    let feed =
        filter.feed(hot.chain(others(4 << 20, population.feed, fed.len()).map(mixed)).collect())?;

    let mut bans = texts(banned);
    bans.extend(
        others(1 << 20, population.bans, banned.len()).map(|number| spread(number).to_string()),
    );
    filter.put("block", &bans, Some(BAN))?;

    let trusted: Vec<_> = others(2 << 20, population.trusted, 0)
        .map(|number| Network::around(host(number).first(), MAPPED_BITS + 24))
        .filter(|network| {
            sources.iter().all(|source| !network.contains(&Network::host((*source).into())))
        })
        .map(|network| network.to_string())
        .collect();
    filter.put("trust", &trusted, None)?;
    let [feed, trusted, bans] =
        [feed.total, trusted.len(), bans.len()].map(|count| thousands(count as i64));
    Ok(format!("{feed} feed entries, {trusted} trusted networks, {bans} bans"))
}

fn texts(sources: &[Ipv4Addr]) -> Vec<String> {
    sources.iter().map(ToString::to_string).collect()
}
