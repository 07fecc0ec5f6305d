//! All that a screen shows at once: read from the pinned maps, with or without a daemon, and with
//! what a daemon adds if there is one. The terminal view, the web page and the metrics show the
//! same.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use jiff::Timestamp;
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
use crate::dataplane::tables::ledger::{Entry, Ledger, Tier};
use crate::dataplane::tables::meters::Sources;
use crate::dataplane::tables::networks::Table;
use crate::net::network::Network;
use crate::observe::explain;
use crate::observe::health::Health;
use crate::sys::clock;

/// How many blocked sources are shown at most, those with most packets first.
const WORST: usize = 200;

/// What a daemon says.
#[derive(Debug, Clone, Default)]
pub struct FromDaemon {
    /// Its status, as `status` shows it; none if none answered.
    pub status: Option<DaemonStatus>,
    /// Why none answered, if there is one.
    pub trouble: Option<String>,
    /// What happened lately.
    pub latest: Latest,
}

/// The number of entries that one owner has in one list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListCount {
    /// `block`, `trust` or `admit`.
    pub list: &'static str,
    /// Whose entries they are; `feed` for all feeds together.
    pub owner: &'static str,
    /// How many.
    pub entries: usize,
}

/// Bans that are in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Bans {
    /// On proven evidence.
    pub proven: usize,
    /// On evidence that could be forged.
    pub unproven: usize,
    /// Of these two, made in a dry run: not enforced.
    pub dry_run: usize,
}

/// Whether there is a storm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Storm {
    /// Right now.
    pub is_storm: bool,
    /// Distinct new sources in the window of about a second that was counted last.
    pub new_sources: u64,
}

/// A source that is kept out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Worst {
    /// The network.
    pub network: Network,
    /// The port of a flow; none for all of it.
    pub port: Option<u16>,
    /// `blocked` or `limited`.
    pub state: &'static str,
    /// Whose entry it is, or which limit.
    pub owner: String,
    /// Why: the evidence in words.
    pub reason: String,
    /// How sure the evidence is.
    pub tier: Option<Tier>,
    /// Since when; not known of what feeds list.
    pub since: Option<Timestamp>,
    /// Until when; none for good.
    pub expires: Option<Timestamp>,
    /// Packets dropped for it.
    pub packets: u64,
    /// Not enforced.
    pub dry_run: bool,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When this was read.
    pub time: Timestamp,
    /// Whether there is a filter.
    pub loaded: bool,
    /// Whether it drops on all of its interfaces.
    pub enforcing: bool,
    /// What the daemon says; none if none answered.
    pub daemon: Option<DaemonStatus>,
    /// Why none answered; it is among the warnings.
    #[serde(skip)]
    pub trouble: Option<String>,
    /// Where the filter is.
    pub interfaces: Vec<FilteredInterface>,
    /// Counters; none if nothing is loaded.
    pub stats: Option<Stats>,
    /// The weather.
    pub storm: Storm,
    /// Entries of the lists.
    pub lists: Vec<ListCount>,
    /// Bans that are in force.
    pub bans: Bans,
    /// Kernel memory that the tables take, in bytes.
    pub memory: u64,
    /// The sources that are kept out, by packets.
    pub worst: Vec<Worst>,
    /// What happened lately; empty without a daemon.
    pub latest: Latest,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

impl Overview {
    /// Of a filter that there is not.
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

    /// The counters of packets, summed over the interfaces: by verdict and reason.
    pub fn packets(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.stats.as_ref().map(|stats| packets(&stats.interfaces)).unwrap_or_default()
    }

    /// Whether all is well with it, as `status` says it too.
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

/// Counters of packets, summed over interfaces: by verdict and reason.
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
    /// Each verdict by its name, with its reasons.
    pub fn each(&self) -> [(&'static str, &Named); 3] {
        [("pass", &self.pass), ("drop", &self.drop), ("would_drop", &self.would_drop)]
    }
}

/// What the tables have counted.
struct Hits {
    networks: HashMap<Network, u64>,
    flows: HashMap<(Network, u16), u64>,
    /// Networks with hits that only feeds list.
    of_feeds: Vec<(Network, u64)>,
    /// How many networks feeds list.
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

/// The blocked sources with most packets; bans are among them before they have any.
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

/// The sources that went over a limit lately and are not blocked.
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
