//! `explain`: what happens to packets of one address now, and why, from the pinned maps, with or
//! without a daemon.

mod verdict;

use std::net::IpAddr;

use anyhow::{Context, Result};
use aya::maps::{Array, MapData};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp_common::abi::layout::{InterfaceRecord, List, MAX_INTERFACES, NEVER, Owner};
use sip_xdp_common::abi::names;
use sip_xdp_common::ip_key::MAPPED_BITS;
use sip_xdp_common::limits::gcra::{Meter, Pace, ticks};
use sip_xdp_common::limits::ladder::{BURST, LOWEST, Ladder, PACES, STRANGERS_SHARE};
use sip_xdp_common::limits::meters::{KNOWN, RECORDED, Records};
use sip_xdp_common::lookup::networks::{IPV6_LENGTHS, Kind, LABEL, TableHeader};

use crate::config::{Config, SourceRules};
use crate::dataplane::counters;
use crate::dataplane::pins::Pins;
use crate::dataplane::tables::flows::Flows;
use crate::dataplane::tables::header;
use crate::dataplane::tables::ladders::Ladders;
use crate::dataplane::tables::ledger::{Entry, Ledger, ListName, OwnerName, Tier};
use crate::dataplane::tables::meters::Sources;
use crate::dataplane::tables::networks::{Table, TableEntry};
use crate::net::network::{Network, source_of};
use crate::sys::clock;

pub use verdict::{Decision, Facts, Outcome, decide};

/// Ticks within which an excess counts as current: two seconds.
const LATELY: u32 = ticks(2_000_000_000);

/// An entry that covers the address.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Match {
    /// `block`, `trust` or `admit`.
    #[schemars(with = "ListName")]
    pub list: &'static str,
    /// The network.
    pub network: Network,
    /// The port of a flow; `None` for the whole network.
    pub port: Option<u16>,
    /// Owner.
    #[schemars(with = "OwnerName")]
    pub owner: &'static str,
    /// The claimant: `feed:NAME`, `tool:NAME` or `dns:NAME`; `None` for other owners, and for feed
    /// entries known only from the kernel's table.
    pub claimant: Option<String>,
    /// Reason.
    pub reason: String,
    /// Evidence tier.
    pub tier: Option<Tier>,
    /// Creation time; `None` for feed entries.
    pub added: Option<Timestamp>,
    /// Expiry; `None` for permanent.
    pub expires: Option<Timestamp>,
    /// Packets dropped by it.
    pub hits: u64,
    /// Made in a dry run.
    pub dry_run: bool,
}

/// The fill level of one of its limits.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Level {
    /// `register`, `requests`, `other`, `good`, or `suspect`.
    #[schemars(extend("enum" = ["register", "requests", "other", "good", "suspect"]))]
    pub limit: &'static str,
    /// Packets that it may send at once now.
    pub left: u32,
    /// Packets that it may send at once with a full bucket.
    pub of: u32,
}

/// The kernel's state of an address.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Kernel {
    /// Whether all interfaces are in a dry run.
    pub dry_run: bool,
    /// Entries that cover it.
    pub matches: Vec<Match>,
    /// Its limits.
    pub limits: Vec<Level>,
    /// Whether it has a meter.
    pub tracked: bool,
    /// The current or last period over a limit.
    pub limited: Option<Limited>,
    /// End of known good.
    pub good_until: Option<Timestamp>,
    /// End of peer.
    pub peer_until: Option<Timestamp>,
    /// End of suspect.
    pub suspect_until: Option<Timestamp>,
    /// Packets of it that the ladder has dropped since it is suspect.
    pub suspect_dropped: Option<u64>,
    /// What is on the ladder of it: the host, and IPv6 networks around it.
    pub suspects: Vec<Suspect>,
    /// Known-good ports, which pass although a ban or a feed lists the address.
    pub good_ports: Vec<u16>,
    /// Storm state.
    pub storm: bool,
}

/// A host or network that is limited as a suspect.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Suspect {
    /// The host, or the network that shares the limit.
    pub network: Network,
    /// How many requests pass that may try a password, after a burst of four.
    #[schemars(extend("enum" = PACES))]
    pub pace: &'static str,
    /// Whether known-good hosts and peers of the network are not limited by it.
    pub strangers_only: bool,
    /// End.
    pub until: Option<Timestamp>,
    /// Packets dropped by it.
    pub dropped: u64,
}

/// A period over a limit.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
#[schemars(rename = "LimitedPeriod")]
pub struct Limited {
    /// Start.
    pub since: Timestamp,
    /// Packets over a limit since then.
    pub packets: u32,
    /// Whether the last excess was within two seconds.
    pub now: bool,
}

/// Reads the kernel's state of an address.
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
    let ladders = Ladders::open(|name| pins.open(name), table_header.hashing.seed)?;
    let metered = covering.iter().filter(|entry| entry.kind == Kind::Metered);
    let on_ladder: Vec<(Network, Ladder)> = metered
        .filter_map(|entry| Some((entry.network, ladders.get(&entry.network)?)))
        .filter(|(_, ladder)| ladder.until > now)
        .collect();
    let ladder = on_ladder.iter().map(|(_, ladder)| *ladder).max_by_key(|ladder| ladder.step);
    let suspects: Vec<Suspect> = on_ladder.iter().map(suspect).collect();

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
        limits: levels(&config, meter, is_known, ladder, scale, now),
        tracked: found.is_some(),
        limited,
        good_until: end(good),
        peer_until: end(peer),
        suspect_until: ladder.and_then(|ladder| clock::to_wall(ladder.until)),
        suspect_dropped: ladder.map(|_| suspects.iter().map(|place| place.dropped).sum()),
        suspects,
        good_ports,
        storm: counters::is_storm(pins)?,
    })
}

/// The live table entries around a host, of every prefix length in use.
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

/// The entries of the ledger and the feeds for a host, the networks around it, and its ports.
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

/// A feed's entry. The kernel's table does not say which feed.
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

fn suspect((network, ladder): &(Network, Ladder)) -> Suspect {
    Suspect {
        network: *network,
        pace: PACES[ladder.step.min(LOWEST) as usize],
        strangers_only: ladder.modes & STRANGERS_SHARE != 0,
        until: clock::to_wall(ladder.until),
        dropped: ladder.dropped,
    }
}

/// The fill levels of a source's limits.
fn levels(
    config: &Config,
    meter: Option<Meter>,
    is_known: bool,
    ladder: Option<Ladder>,
    scale: u64,
    time: u64,
) -> Vec<Level> {
    let now = ticks(time);
    let meter = meter.unwrap_or(Meter::new(0, now));
    let level = |limit, pace: Pace, full_at| Level {
        limit,
        left: pace.left(full_at, now),
        of: pace.whole(),
    };
    if is_known {
        return vec![level("good", config.good_pace().scaled(scale), meter.requests)];
    }
    let limits = config.meter_limits();
    let tries =
        ladder.map(|ladder| Level { limit: "suspect", left: ladder.left(time), of: BURST as u32 });
    let mut levels = vec![
        level("register", limits.register, meter.register),
        level("requests", limits.requests, meter.requests),
        level("other", limits.other, meter.other),
    ];
    levels.extend(tries);
    levels
}

/// The current or last period of a source over a limit, and nothing else.
pub fn limited_lately(pins: &Pins, sources: &Sources, host: &Network) -> Result<Option<Limited>> {
    // IPv6 sources are metered by address or with their network; other lengths have no meter.
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

/// The record of a source that went over a limit.
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
    let since = clock::to_wall(record.since(now)).unwrap_or_default();
    Ok(Some(Limited { since, packets: record.limited, now: ago < LATELY }))
}

/// Whether all interfaces are in a dry run.
fn is_dry_run(pins: &Pins) -> Result<bool> {
    let map: Array<MapData, InterfaceRecord> = pins.open(names::INTERFACES)?.try_into()?;
    let mut records = Vec::new();
    for slot in 0..MAX_INTERFACES as u32 {
        records.push(map.get(&slot, 0).context("the interface records cannot be read")?);
    }
    let mut used = records.iter().filter(|record| record.index != 0).peekable();
    Ok(used.peek().is_some() && used.all(|record| record.dry_run != 0))
}
