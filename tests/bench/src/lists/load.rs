//! Loading a feed into empty tables, reloading it with small changes, and single bans beside a
//! large feed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sip_xdp::config::Config;
use sip_xdp::dataplane::loader::{Capacity, Settings};
use sip_xdp::dataplane::tables::ledger::Entry;
use sip_xdp::net::network::Network;
use sip_xdp::sys::clock;
use sip_xdp_common::abi::layout::{List, Owner};
use sip_xdp_common::packet::headers::{Inspects, Link};
use sip_xdp_tests::private::Private;

use super::{MILLION, row};
use crate::networks::{host, mixed};
use crate::report::{Budget, Plan, Row};
use crate::table::thousands;

/// What the tables have room for.
const CAPACITY: u32 = 1 << 20;
const SIZES: [u32; 5] = [1_000, 32_000, 100_000, 500_000, MILLION];
const QUICK_SIZES: [u32; 2] = [100_000, MILLION];
/// A kind of networks: its name, and another network for each number.
type Kind = (&'static str, fn(u32) -> Network);
const KINDS: [Kind; 2] = [("hosts", host), ("mixed networks", mixed)];

/// Bans that are put and removed in each round.
const BANS: u32 = 300;
const BAN: Duration = Duration::from_secs(3600);
/// Sources that the program is asked about, to see that the list is in force.
const QUERIED: u32 = 1_000;

/// `XDP_DROP` and `XDP_PASS` (`include/uapi/linux/bpf.h`).
const DROP: u32 = 1;
const PASS: u32 = 2;

/// One list and how long it took, round by round, in seconds.
struct Load {
    kind: usize,
    size: u32,
    first: Vec<f64>,
    refresh: Vec<f64>,
}

/// How long single bans took, round by round, in milliseconds: the median and the 99th percentile.
#[derive(Default)]
struct Bans {
    put: [Vec<f64>; 2],
    removed: [Vec<f64>; 2],
}

/// The name of the row for the first load of so many hosts.
pub(super) fn first_load(size: u32) -> String {
    format!("first load, {} {}", thousands(size), KINDS[0].0)
}

/// How it was measured.
pub(super) fn remarks() -> Vec<String> {
    vec![
        format!(
            "Lists are networks in memory, in random order; they go into tables with room for {}. \
             Mixed networks are \
             90 % IPv4 hosts, 5 % IPv4 networks from /20 to /24, and 5 % IPv6: /32, /48, /64 and \
             /128.",
            thousands(CAPACITY)
        ),
        format!(
            "After each load the kernel program is asked about up to {} listed hosts: all are \
             blocked. Bans are {BANS} a \
             round, beside {} hosts of a feed; each is seen to be in force, and to be gone.",
            thousands(QUERIED),
            thousands(MILLION)
        ),
    ]
}

/// All rows.
pub(super) fn rows(plan: &Plan) -> Result<Vec<Row>> {
    let (rounds, sizes) = if plan.quick { (1, &QUICK_SIZES[..]) } else { (3, &SIZES[..]) };
    let lists = (0..KINDS.len()).flat_map(|kind| sizes.iter().map(move |size| (kind, *size)));
    let mut loads: Vec<_> = lists
        .map(|(kind, size)| Load { kind, size, first: Vec::new(), refresh: Vec::new() })
        .collect();
    let mut bans = Bans::default();
    for _ in 0..rounds {
        for load in &mut loads {
            let mut filter = load.round()?;
            if load.size == MILLION && load.kind == 0 {
                bans.round(&mut filter)?;
            }
        }
    }
    let mut rows = Vec::new();
    for Load { kind, size, first, refresh } in loads {
        let (name, largest) = (KINDS[kind].0, size == MILLION);
        let budget = |seconds| largest.then_some(Budget::AtMost(seconds));
        let list = format!("{} {name}", thousands(size));
        rows.push(row(format!("first load, {list}"), "s", first, budget(1.0), String::new()));
        rows.push(row(format!("1 % changed, {list}"), "s", refresh, budget(0.5), String::new()));
    }
    for (what, percentiles) in [("put", bans.put), ("removed", bans.removed)] {
        for (percentile, samples) in ["median", "99th percentile"].into_iter().zip(percentiles) {
            rows.push(row(
                format!("one ban {what}, {percentile}"),
                "ms",
                samples,
                None,
                String::new(),
            ));
        }
    }
    Ok(rows)
}

impl Load {
    /// Loads it twice into fresh tables, which are returned.
    fn round(&mut self) -> Result<Private> {
        let network = KINDS[self.kind].1;
        let changed = self.size / 100;
        let list = |from: u32| -> Vec<Network> { (from..from + self.size).map(network).collect() };
        let mut filter = Private::load(&settings())?;

        let (networks, start) = (list(0), Instant::now());
        let loaded = filter.lists.replace_feed("bench", networks)?;
        self.first.push(start.elapsed().as_secs_f64());
        ensure!(
            loaded.total == self.size as usize,
            "{} of {} networks were loaded",
            loaded.total,
            self.size
        );

        let (networks, start) = (list(changed), Instant::now());
        let loaded = filter.lists.replace_feed("bench", networks)?;
        self.refresh.push(start.elapsed().as_secs_f64());
        let expected = (changed as usize, changed as usize);
        ensure!(
            (loaded.added, loaded.removed) == expected,
            "{loaded:?} instead of {changed} changes"
        );

        let (first, step) = (changed, (self.size / QUERIED).max(1));
        for network in
            (first..first + self.size).step_by(step as usize).map(network).filter(Network::is_v4)
        {
            ensure!(
                filter.action(&frame(&network))? == DROP,
                "{network} is listed, but not blocked"
            );
        }
        // Other kinds have networks around some of these.
        for network in (0..changed.min(QUERIED)).map(network).filter(|_| self.kind == 0) {
            ensure!(
                filter.action(&frame(&network))? == PASS,
                "{network} is no longer listed, but blocked"
            );
        }
        Ok(filter)
    }
}

impl Bans {
    /// Puts and removes bans of hosts that the feed does not list.
    fn round(&mut self, filter: &mut Private) -> Result<()> {
        let hosts = (0..BANS).map(|number| host(8 * MILLION + number));
        let (mut put, mut removed) = (Vec::new(), Vec::new());
        for network in hosts {
            let entry = Entry {
                owner: Owner::Auto,
                ..Entry::manual(network, clock::after(Some(BAN)), "bench")
            };
            let start = Instant::now();
            filter.lists.put(List::Block, entry)?;
            put.push(start.elapsed());
            ensure!(
                filter.action(&frame(&network))? == DROP,
                "{network} is banned, but not blocked"
            );
            let start = Instant::now();
            filter.lists.remove(List::Block, &network, Owner::Auto)?;
            removed.push(start.elapsed());
            ensure!(
                filter.action(&frame(&network))? == PASS,
                "{network} is no longer banned, but blocked"
            );
        }
        for (times, rows) in [(put, &mut self.put), (removed, &mut self.removed)] {
            for (row, share) in rows.iter_mut().zip([0.5, 0.99]) {
                row.push(percentile(times.clone(), share));
            }
        }
        Ok(())
    }
}

/// The time that so large a share of all times does not exceed, in milliseconds.
fn percentile(mut times: Vec<Duration>, share: f64) -> f64 {
    times.sort_unstable();
    let at = (times.len() as f64 * share).ceil() as usize;
    times.get(at.saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// As by default, with room for a million networks.
fn settings() -> Settings {
    let config = Config::default();
    Settings {
        ports: config.port_set(),
        limits: config.meter_limits(),
        good: config.good_pace(),
        storm: config.storm_limits(),
        ipv6_prefix: config.ipv6_prefix,
        scope_all: false,
        closed: false,
        dry_run: false,
        trial: false,
        inspects: Inspects::ALL,
        link: Link::Ethernet,
        slot: 0,
        clock_from_map: false,
        capacity: Capacity { networks: CAPACITY, sources: 65_536 },
    }
}

/// The beginning of a TCP connection from the first address of an IPv4 network to the SIP port: of
/// such a frame only the lists are asked.
fn frame(network: &Network) -> Vec<u8> {
    let mut bytes = [2; 12].to_vec();
    bytes.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    bytes.extend(&network.first().octets()[12..]);
    bytes.extend([198, 51, 100, 1]);
    bytes.extend([40_000_u16, 5060].map(u16::to_be_bytes).concat());
    bytes.extend([0; 16]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times: Vec<_> = (1..=300).rev().map(Duration::from_millis).collect();
        assert_eq!(
            [0.5, 0.99, 1.0].map(|share| percentile(times.clone(), share)),
            [150.0, 297.0, 300.0]
        );
        assert_eq!(percentile(Vec::new(), 0.5), 0.0);
    }
}
