//! What becomes of a packet of one address right now, and why: read from the pinned maps, with or
//! without a daemon.

mod verdict;

use std::net::IpAddr;

use anyhow::{Context, Result};
use aya::maps::{Array, MapData};
use jiff::Timestamp;
use serde::Serialize;
use sip_xdp_common::abi::layout::{InterfaceRecord, List, MAX_INTERFACES, NEVER, Owner};
use sip_xdp_common::abi::names;
use sip_xdp_common::ip_key::MAPPED_BITS;
use sip_xdp_common::limits::gcra::{Meter, Pace, ticks};
use sip_xdp_common::limits::meters::{KNOWN, RECORDED, Records};
use sip_xdp_common::lookup::networks::{IPV6_LENGTHS, Kind, LABEL, SUSPECT, TableHeader};

use crate::config::{Config, SourceRules};
use crate::dataplane::counters;
use crate::dataplane::pins::Pins;
use crate::dataplane::tables::flows::Flows;
use crate::dataplane::tables::header;
use crate::dataplane::tables::ledger::{Entry, Ledger, Tier};
use crate::dataplane::tables::meters::Sources;
use crate::dataplane::tables::networks::{Table, TableEntry};
use crate::net::network::{Network, source_of};
use crate::sys::clock;

pub use verdict::{Decision, Facts, Outcome, decide};

/// A source was over a limit "lately" if that was within so many ticks: two seconds.
const LATELY: u32 = ticks(2_000_000_000);

/// An entry that covers the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Match {
    /// `block`, `trust` or `admit`.
    pub list: &'static str,
    /// The network.
    pub network: Network,
    /// The port of a flow; none for all of it.
    pub port: Option<u16>,
    /// Whose entry it is.
    pub owner: &'static str,
    /// The name of the feed (`feed:NAME`), tool (`tool:NAME`) or host name (`dns:NAME`) whose claim
    /// it is; none for others, and where the kernel's table alone knows of a feed.
    pub claimant: Option<String>,
    /// Why.
    pub reason: String,
    /// How sure the evidence is.
    pub tier: Option<Tier>,
    /// Since when; not known of what feeds list.
    pub added: Option<Timestamp>,
    /// Until when; none for good.
    pub expires: Option<Timestamp>,
    /// Packets dropped for it.
    pub hits: u64,
    /// Made in a dry run.
    pub dry_run: bool,
}

/// How close the address is to one of its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Level {
    /// `register`, `requests`, `other`, `good`, or `suspect`.
    pub limit: &'static str,
    /// How many packets it may send at once now.
    pub left: u32,
    /// How many it may send at once when it was silent for long.
    pub of: u32,
}

/// What the kernel has of an address.
#[derive(Debug, Clone, Serialize)]
pub struct Kernel {
    /// Nothing is dropped on any interface.
    pub dry_run: bool,
    /// Entries that cover it.
    pub matches: Vec<Match>,
    /// Its limits.
    pub limits: Vec<Level>,
    /// Whether it has a meter.
    pub tracked: bool,
    /// When it last went over a limit from within it, and how many packets were dropped since then.
    pub limited: Option<Limited>,
    /// Until when it is known good.
    pub good_until: Option<Timestamp>,
    /// Until when it is a peer.
    pub peer_until: Option<Timestamp>,
    /// Until when it is under suspicion.
    pub suspect_until: Option<Timestamp>,
    /// Ports of it where somebody is registered, who pass although a ban or a feed lists the
    /// address.
    pub good_ports: Vec<u16>,
    /// There is a storm.
    pub storm: bool,
}

/// That a source is over a limit, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limited {
    /// Since when.
    pub since: Timestamp,
    /// Packets that were over a limit since then.
    pub packets: u32,
    /// Whether it was within the last two seconds.
    pub now: bool,
}

/// Reads what the kernel has of an address.
pub fn read(pins: &Pins, address: IpAddr, rules: &SourceRules) -> Result<Kernel> {
    let (source, now) = (source_of(address), clock::now());
    let host = Network::host(address);
    let table_header = header::read(pins.open(names::TABLE_HEADER)?)?;
    let table = Table::open(|name| pins.open(name), &table_header)?;
    let covering = covering(&table_header, &table, &host, now)?;
    let flows = Flows::open(|name| pins.open(name))?.all()?;
    let flows: Vec<_> = flows.into_iter().filter(|(key, _)| key.source == source).collect();

    let known = covering.iter().find(|entry| entry.kind == Kind::Known);
    let reputation = known.and_then(|entry| entry.slot_state.reputation).unwrap_or_default();
    let (good, peer) = reputation.ends(now);
    let is_suspect = reputation.scale() == SUSPECT && good == 0 && peer == 0;
    let suspect = if is_suspect { known.map_or(0, |entry| entry.slot_state.expires) } else { 0 };

    let is_per_host = source.is_v4() || covering.iter().any(|entry| entry.kind == Kind::PerHost);
    let metered_as =
        if is_per_host { source } else { Network::around(source, rules.ipv6_prefix).first() };
    let sources = Sources::open(|name| pins.open(name))?;
    let found = sources.meter(&metered_as)?;
    let limited = match found {
        Some((meter, set, way)) if meter.mark & RECORDED != 0 => {
            limited(pins, &meter, set, way, now)?
        }
        _ => None,
    };
    let config = Config { limits: rules.limits.clone(), ..Config::default() };
    let is_known = good != 0 || peer != 0;
    let meter =
        found.map(|(meter, ..)| meter).filter(|meter| (meter.mark & KNOWN != 0) == is_known);
    let scale = if is_known { reputation.scale() } else { 0 };
    let end = |until: u64| if until == 0 { None } else { clock::to_wall(until) };
    let mut good_ports: Vec<u16> =
        flows.iter().filter(|(_, flow)| flow.good_until > now).map(|(key, _)| key.port).collect();
    good_ports.sort_unstable();
    let banned = flows
        .iter()
        .filter(|(_, flow)| flow.banned_until > now)
        .map(|(key, flow)| (key.port, flow.hits));
    Ok(Kernel {
        dry_run: is_dry_run(pins)?,
        matches: matches(pins, &host, &covering, &banned.collect::<Vec<_>>(), now)?,
        limits: levels(&config, meter, is_known, is_suspect, scale, now),
        tracked: found.is_some(),
        limited,
        good_until: end(good),
        peer_until: end(peer),
        suspect_until: end(suspect),
        good_ports,
        storm: counters::is_storm(pins)?,
    })
}

/// The live entries of the kernel's table around a host, of every length that occurs.
fn covering(
    table_header: &TableHeader,
    table: &Table,
    host: &Network,
    now: u64,
) -> Result<Vec<TableEntry>> {
    let version = (table_header.version & 1) as usize;
    let (family, base) = if host.is_v4() { (0, 0) } else { (1, IPV6_LENGTHS) };
    let count = table_header.counts[version][family] as usize;
    let mut found = Vec::new();
    for length in table_header.lengths[version].iter().skip(base).take(count) {
        let bits = (length.label & 0xff) as u8;
        let kind = Kind::ALL.into_iter().find(|kind| kind.label(bits) == length.label & LABEL);
        let Some(kind) = kind else {
            continue;
        };
        found.extend(table.get(kind, &Network::around(host.first(), bits))?);
    }
    found.retain(|entry| entry.slot_state.expires == NEVER || entry.slot_state.expires > now);
    Ok(found)
}

/// What the ledger and the feeds say of a host: whoever lists it, or a network around it, or one of
/// its ports.
fn matches(
    pins: &Pins,
    host: &Network,
    covering: &[TableEntry],
    banned: &[(u16, u64)],
    now: u64,
) -> Result<Vec<Match>> {
    let ledger = Ledger::new(pins.open(names::LEDGER)?)?;
    let owners = || (0..u8::MAX).map_while(Owner::from_number);
    let shortest = if host.is_v4() { MAPPED_BITS } else { 0 };
    let mut all = Vec::new();
    for list in [List::Trust, List::Block, List::Admit] {
        for bits in (shortest..=host.bits()).rev() {
            let network = Network::around(host.first(), bits);
            let in_table =
                |entry: &&TableEntry| entry.kind == Kind::of(list) && entry.network == network;
            let slot = covering.iter().find(in_table);
            let hits = slot.filter(|_| list == List::Block).map_or(0, |slot| slot.hits);
            let entries = owners().filter_map(|owner| ledger.get(list, &network, None, owner));
            all.extend(
                entries.filter(|entry| !entry.is_over(now)).map(|entry| matched(list, entry, hits)),
            );
            if let Some(slot) = slot.filter(|slot| slot.slot_state.feed) {
                all.push(feed_match(slot));
            }
        }
    }
    for (port, hits) in banned {
        let entries =
            owners().filter_map(|owner| ledger.get(List::Block, host, Some(*port), owner));
        all.extend(entries.map(|entry| matched(List::Block, entry, *hits)));
    }
    Ok(all)
}

fn matched(list: List, entry: Entry, hits: u64) -> Match {
    Match {
        claimant: entry.claimant(),
        list: list.name(),
        network: entry.network,
        port: entry.port,
        owner: entry.owner.name(),
        reason: entry.reason,
        tier: entry.tier,
        added: Some(clock::from_ms(entry.added_ms)),
        expires: clock::to_wall(entry.expires),
        hits,
        dry_run: entry.dry_run,
    }
}

/// What a feed lists. Which one is not said in the kernel's table.
fn feed_match(slot: &TableEntry) -> Match {
    Match {
        list: "block",
        network: slot.network,
        port: None,
        owner: "feed",
        claimant: None,
        reason: String::new(),
        tier: None,
        added: None,
        expires: None,
        hits: slot.hits,
        dry_run: false,
    }
}

/// How close a source is to its limits.
fn levels(
    config: &Config,
    meter: Option<Meter>,
    is_known: bool,
    is_suspect: bool,
    scale: u64,
    now: u64,
) -> Vec<Level> {
    let now = ticks(now);
    let meter = meter.unwrap_or(Meter::new(0, now));
    let level = |limit, pace: Pace, full_at| Level {
        limit,
        left: pace.left(full_at, now),
        of: pace.whole(),
    };
    if is_known {
        return vec![level("good", config.good_pace().scaled(scale), meter.requests)];
    }
    if is_suspect {
        return vec![level("suspect", Pace::new(1, 1_000_000_000), meter.requests)];
    }
    let limits = config.meter_limits();
    vec![
        level("register", limits.register, meter.register),
        level("requests", limits.requests, meter.requests),
        level("other", limits.other, meter.other),
    ]
}

/// That a source is over a limit, or was, and nothing else about it.
pub fn limited_lately(pins: &Pins, sources: &Sources, host: &Network) -> Result<Option<Limited>> {
    // IPv6 sources are metered by address, or with their network; one of another length has no
    // meter.
    let lengths: &[u8] = if host.is_v4() { &[128] } else { &[128, 64, 56, 48] };
    for bits in lengths {
        match sources.meter(&Network::around(host.first(), *bits).first())? {
            Some((meter, set, way)) if meter.mark & RECORDED != 0 => {
                return limited(pins, &meter, set, way, clock::now());
            }
            _ => {}
        }
    }
    Ok(None)
}

/// What is recorded of a source that went over a limit.
fn limited(pins: &Pins, meter: &Meter, set: u32, way: usize, now: u64) -> Result<Option<Limited>> {
    let records: Array<MapData, Records> = pins.open(names::RECORDS)?.try_into()?;
    let records = records.get(&set, 0).context("the records of sources cannot be read")?;
    let Some(record) = records.ways.get(way) else {
        return Ok(None);
    };
    if record.mark != meter.mark & !(RECORDED | KNOWN) || record.limited == 0 {
        return Ok(None);
    }
    let ago = ticks(now).wrapping_sub(record.reported);
    let since = clock::to_wall(record.first).unwrap_or_default();
    Ok(Some(Limited { since, packets: record.limited, now: ago < LATELY }))
}

/// Whether nothing is dropped on any interface.
fn is_dry_run(pins: &Pins) -> Result<bool> {
    let map: Array<MapData, InterfaceRecord> = pins.open(names::INTERFACES)?.try_into()?;
    let mut records = Vec::new();
    for slot in 0..MAX_INTERFACES as u32 {
        records.push(map.get(&slot, 0).context("the interface records cannot be read")?);
    }
    let mut used = records.iter().filter(|record| record.index != 0).peekable();
    Ok(used.peek().is_some() && used.all(|record| record.dry_run != 0))
}
