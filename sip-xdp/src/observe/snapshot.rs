//! The contents of a screen, read from the pinned maps, with or without a daemon, plus the daemon's
//! own data. Terminal view, web page and metrics share it.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp_common::abi::layout::List;
use sip_xdp_common::abi::names;
use sip_xdp_common::lookup::networks::Kind;

use crate::api::answers::DaemonStatus;
use crate::api::event_stream::Latest;
use crate::dataplane::counters::{self, FilteredInterface, Named, SCHEMA, Stats};
use crate::dataplane::netlink::Interface;
use crate::dataplane::pins::Pins;
use crate::dataplane::tables::flows::Flows;
use crate::dataplane::tables::header;
use crate::dataplane::tables::ledger::{Entry, Ledger, ListName, OwnerName, Tier};
use crate::dataplane::tables::meters::Sources;
use crate::dataplane::tables::networks::Table;
use crate::net::network::Network;
use crate::observe::explain;
use crate::observe::health::Health;
use crate::sys::clock;

/// Maximum number of blocked sources, those with most packets first.
const WORST: usize = 200;

/// The daemon's data.
#[derive(Debug, Clone, Default)]
pub struct FromDaemon {
    /// Its status; `None` without a response.
    pub status: Option<DaemonStatus>,
    /// Why there is no response, if a daemon exists.
    pub trouble: Option<String>,
    /// Recent events.
    pub latest: Latest,
}

/// Number of entries by list and owner.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct ListCount {
    /// `block`, `trust` or `admit`.
    #[schemars(with = "ListName")]
    pub list: &'static str,
    /// Owner; `feed` for all feeds together.
    #[schemars(with = "OwnerName")]
    pub owner: &'static str,
    /// Number of entries.
    pub entries: usize,
}

/// Bans in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize)]
#[schemars(rename = "BanCounts")]
pub struct Bans {
    /// Level 1 (proven) bans.
    pub proven: usize,
    /// Level 0 (unproven) bans.
    pub unproven: usize,
    /// Those among them made in a dry run: not enforced.
    pub dry_run: usize,
}

/// Storm state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Storm {
    /// Whether there is a storm now.
    pub is_storm: bool,
    /// Distinct new sources in the last counted window of about a second.
    pub new_sources: u64,
}

/// A blocked or limited source.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Worst {
    /// The network.
    pub network: Network,
    /// The port of a flow; `None` for the whole network.
    pub port: Option<u16>,
    /// `blocked` or `limited`.
    #[schemars(extend("enum" = ["blocked", "limited"]))]
    pub state: &'static str,
    /// The owner, or the limit.
    pub owner: String,
    /// Reason: the evidence in words.
    pub reason: String,
    /// Evidence tier.
    pub tier: Option<Tier>,
    /// Start; `None` for feed entries.
    pub since: Option<Timestamp>,
    /// End; `None` for permanent.
    pub expires: Option<Timestamp>,
    /// Packets dropped by it.
    pub packets: u64,
    /// Whether it is not enforced.
    pub dry_run: bool,
}

/// The contents of a screen.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Overview {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Time of reading.
    pub time: Timestamp,
    /// Whether a filter is loaded.
    pub loaded: bool,
    /// Whether it drops on all of its interfaces.
    pub enforcing: bool,
    /// The daemon's status; `None` without a response.
    pub daemon: Option<DaemonStatus>,
    /// Why there is no response; also among the warnings.
    #[serde(skip)]
    pub trouble: Option<String>,
    /// Filtered interfaces.
    pub interfaces: Vec<FilteredInterface>,
    /// Counters; `None` if nothing is loaded.
    pub stats: Option<Stats>,
    /// Storm state.
    pub storm: Storm,
    /// Numbers of entries.
    pub lists: Vec<ListCount>,
    /// Bans in force.
    pub bans: Bans,
    /// Kernel memory of the tables, in bytes.
    pub memory: u64,
    /// Blocked and limited sources, by packets.
    pub worst: Vec<Worst>,
    /// Recent events; empty without a daemon.
    pub latest: Latest,
    /// Warnings for the operator.
    pub warnings: Vec<String>,
}

impl Overview {
    /// Without a loaded filter.
    pub fn empty(daemon: FromDaemon) -> Self {
        let mut overview = Self {
            schema: SCHEMA,
            time: counters::now(),
            loaded: false,
            enforcing: false,
            daemon: daemon.status,
            trouble: daemon.trouble,
            interfaces: Vec::new(),
            stats: None,
            storm: Storm::default(),
            lists: Vec::new(),
            bans: Bans::default(),
            memory: 0,
            worst: Vec::new(),
            latest: daemon.latest,
            warnings: Vec::new(),
        };
        overview.warnings = overview.health().warnings();
        overview
    }

    /// Reads it. `present` are the machine's interfaces.
    pub fn read(pins: &Pins, present: &[Interface], daemon: FromDaemon) -> Result<Self> {
        if !pins.is_loaded() {
            return Ok(Self::empty(daemon));
        }
        let interfaces = counters::interfaces(pins, present)?;
        let storm_state = counters::storm_state(pins)?;
        let entries = Ledger::new(pins.open(names::LEDGER)?)?.entries()?;
        let now = clock::now();
        let entries: Vec<_> =
            entries.into_iter().filter(|(_, entry)| !entry.is_over(now)).collect();
        let hits = Hits::read(pins)?;
        let stats = counters::stats(pins)?;
        let mut overview = Self {
            time: stats.time,
            loaded: true,
            stats: Some(stats),
            storm: Storm {
                is_storm: storm_state.is_storm(now),
                new_sources: storm_state.new_sources,
            },
            lists: count(&entries, hits.feed_entries),
            bans: count_bans(&entries),
            memory: counters::memory(pins)?,
            interfaces,
            ..Self::empty(daemon)
        };
        overview.worst = worst(&entries, &hits);
        let limited = limited(pins, &overview.latest, &overview.worst)?;
        overview.worst.extend(limited);
        overview.worst.sort_by(|one, other| {
            other.packets.cmp(&one.packets).then(one.network.cmp(&other.network))
        });
        (overview.enforcing, overview.warnings) =
            (overview.health().is_enforcing(), overview.health().warnings());
        Ok(overview)
    }

    /// Packet counters summed over the interfaces, by verdict and reason.
    pub fn packets(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.stats.as_ref().map(|stats| packets(&stats.interfaces)).unwrap_or_default()
    }

    /// The inputs of the health check.
    fn health(&self) -> Health<'_> {
        Health {
            interfaces: &self.interfaces,
            blocklist: self.stats.as_ref().map(|stats| &stats.blocklist),
            is_storm: self.storm.is_storm,
            daemon: self.daemon.as_ref(),
            trouble: self.trouble.as_deref(),
        }
    }
}

/// Packet counters summed over interfaces, by verdict and reason.
pub fn packets(
    interfaces: &[counters::InterfaceStats],
) -> BTreeMap<(&'static str, &'static str), u64> {
    let mut sums = BTreeMap::new();
    for interface in interfaces {
        for (verdict, by_reason) in interface.packets.each() {
            for (reason, count) in by_reason {
                *sums.entry((verdict, *reason)).or_default() += count;
            }
        }
    }
    sums
}

impl counters::ByVerdict {
    /// Each verdict by name, with its reasons.
    pub fn each(&self) -> [(&'static str, &Named); 3] {
        [("pass", &self.pass), ("drop", &self.drop), ("would_drop", &self.would_drop)]
    }
}

/// Counts read from the tables.
struct Hits {
    networks: HashMap<Network, u64>,
    flows: HashMap<(Network, u16), u64>,
    /// Feed entries with hits, without other owners.
    of_feeds: Vec<(Network, u64)>,
    /// Number of networks that feeds list.
    feed_entries: usize,
}

impl Hits {
    fn read(pins: &Pins) -> Result<Self> {
        let table_header = header::read(pins.open(names::TABLE_HEADER)?)?;
        let table = Table::open(|name| pins.open(name), &table_header)?;
        let flows = Flows::open(|name| pins.open(name))?.all()?;
        let flows = flows.into_iter().filter(|(_, flow)| flow.hits > 0);
        let flows = flows
            .map(|(key, flow)| ((Network::around(key.source, 128), key.port), flow.hits))
            .collect();
        let mut hits =
            Self { networks: HashMap::new(), flows, of_feeds: Vec::new(), feed_entries: 0 };
        let whole = table.map_all()?;
        for entry in whole.entries().filter(|entry| entry.kind == Kind::Blocked) {
            hits.feed_entries += usize::from(entry.slot_state.feed);
            if entry.hits > 0 && entry.slot_state.claimed {
                hits.networks.insert(entry.network, entry.hits);
            } else if entry.hits > 0 {
                hits.of_feeds.push((entry.network, entry.hits));
            }
        }
        Ok(hits)
    }

    fn of(&self, entry: &Entry) -> u64 {
        match entry.port {
            None => self.networks.get(&entry.network).copied().unwrap_or(0),
            Some(port) => self.flows.get(&(entry.network, port)).copied().unwrap_or(0),
        }
    }
}

fn count(entries: &[(List, Entry)], feed_entries: usize) -> Vec<ListCount> {
    let mut counts = BTreeMap::new();
    for (list, entry) in entries {
        *counts.entry((*list, entry.owner)).or_insert(0) += 1;
    }
    let mut counts: Vec<_> = counts
        .into_iter()
        .map(|((list, owner), entries)| ListCount {
            list: list.name(),
            owner: owner.name(),
            entries,
        })
        .collect();
    counts.push(ListCount { list: List::Block.name(), owner: "feed", entries: feed_entries });
    counts
}

fn count_bans(entries: &[(List, Entry)]) -> Bans {
    let mut bans = Bans::default();
    for (_, entry) in entries.iter().filter(|(list, _)| *list == List::Block) {
        match entry.tier {
            Some(Tier::Proven) => bans.proven += 1,
            Some(Tier::Unproven) => bans.unproven += 1,
            None => continue,
        }
        bans.dry_run += usize::from(entry.dry_run);
    }
    bans
}

/// Blocked sources with most packets; bans are included even without hits.
fn worst(entries: &[(List, Entry)], hits: &Hits) -> Vec<Worst> {
    let blocked = entries.iter().filter(|(list, _)| *list == List::Block).map(|(_, entry)| Worst {
        network: entry.network,
        port: entry.port,
        state: "blocked",
        owner: entry.owner.name().to_owned(),
        reason: entry.reason.clone(),
        tier: entry.tier,
        since: Some(clock::from_ms(entry.added_ms)),
        expires: clock::to_wall(entry.expires),
        packets: hits.of(entry),
        dry_run: entry.dry_run,
    });
    let feed_entries = hits.of_feeds.iter().map(|(network, packets)| Worst {
        network: *network,
        port: None,
        state: "blocked",
        owner: "feed".to_owned(),
        reason: "listed by a feed".to_owned(),
        tier: None,
        since: None,
        expires: None,
        packets: *packets,
        dry_run: false,
    });
    let mut all: Vec<_> = blocked.chain(feed_entries).collect();
    all.sort_by_key(|one| (std::cmp::Reverse(one.packets), std::cmp::Reverse(one.since)));
    all.truncate(WORST);
    all
}

/// Sources that went over a limit recently and are not blocked.
fn limited(pins: &Pins, latest: &Latest, blocked: &[Worst]) -> Result<Vec<Worst>> {
    let sources = Sources::open(|name| pins.open(name))?;
    let mut found = Vec::new();
    for event in &latest.limited {
        let Some(network) = event.address else {
            continue;
        };
        if blocked.iter().any(|one| one.port.is_none() && one.network.contains(&network)) {
            continue;
        }
        let Some(limited) = explain::limited_lately(pins, &sources, &network)? else {
            continue;
        };
        let kind = event.kind.as_deref().unwrap_or_default();
        let what = if kind == "other" { "other packets" } else { kind };
        let when = if limited.now { "" } else { ", lately" };
        found.push(Worst {
            network,
            port: None,
            state: "limited",
            owner: kind.to_owned(),
            reason: format!("{what} over the limit{when}"),
            tier: None,
            since: Some(limited.since),
            expires: None,
            packets: limited.packets.into(),
            dry_run: event.dry_run,
        });
    }
    Ok(found)
}
