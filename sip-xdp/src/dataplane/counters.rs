//! Reads the pinned maps, with or without a daemon: counters, lists, interfaces.
//!
//! More than 400 lines: the documented fields of the JSON objects, with the code that fills them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::ProgramInfo;
use bytemuck::Zeroable;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp_common::abi::layout::{
    Counters, CpuState, InterfaceRecord, List, MAX_INTERFACES, Owner, Responses, TcpCounters,
};
use sip_xdp_common::abi::names;
use sip_xdp_common::limits::storm::StormState;
use sip_xdp_common::lookup::networks::Kind;
use sip_xdp_common::pipeline::egress::Answer;
use sip_xdp_common::verdict::{Message, Reason, Verdict};

use crate::dataplane::attach::offloads::Offload;
use crate::dataplane::attach::tcx::{self, EgressWay};
use crate::dataplane::attach::trial;
use crate::dataplane::attach::xdp::Mode;
use crate::dataplane::netlink::Interface;
use crate::dataplane::pins::Pins;
use crate::dataplane::tables::flows::Flows;
use crate::dataplane::tables::header;
use crate::dataplane::tables::ledger::Ledger;
use crate::dataplane::tables::ledger::{Entry, Tier};
use crate::dataplane::tables::meters::Sources;
use crate::dataplane::tables::networks::Table;
use crate::net::network::Network;
use crate::sys::clock;
use crate::sys::schema::{counters_of, schema_of};

/// Version of the JSON objects.
pub const SCHEMA: u32 = 1;

/// Counts by name.
pub type Named = BTreeMap<&'static str, u64>;

/// The names of all reasons with this verdict.
fn reasons(verdict: Verdict) -> impl Iterator<Item = &'static str> {
    Reason::ALL.into_iter().filter(move |reason| reason.verdict() == verdict).map(Reason::name)
}

schema_of!(
    /// Counters of what passed, in schemas.
    PassCounters,
    counters_of(
        "Passed, by reason.",
        reasons(Verdict::Pass)
    )
);

schema_of!(
    /// Counters of what was dropped, in schemas.
    DropCounters,
    counters_of(
        "Dropped, by reason.",
        reasons(Verdict::Drop)
    )
);

schema_of!(
    /// Counters of messages, in schemas.
    MessageCounters,
    counters_of(
        "UDP payloads to SIP ports, by method or kind.",
        Message::ALL.map(Message::name)
    )
);

/// Packets or bytes, by verdict and reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize)]
pub struct ByVerdict {
    /// Passed.
    #[schemars(with = "PassCounters")]
    pub pass: Named,
    /// Dropped.
    #[schemars(with = "DropCounters")]
    pub drop: Named,
    /// Passed by a dry run, dropped when enforcing.
    #[schemars(with = "DropCounters")]
    pub would_drop: Named,
}

/// The counters of one interface.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct InterfaceStats {
    /// Its name.
    pub interface: String,
    /// Attach mode.
    pub mode: Option<Mode>,
    /// Packets.
    pub packets: ByVerdict,
    /// Bytes, link header included.
    pub bytes: ByVerdict,
    /// UDP payloads to SIP ports, by message kind.
    #[schemars(with = "MessageCounters")]
    pub methods: Named,
    /// TCP to SIP ports.
    pub tcp: TcpStats,
}

/// SIP over TCP at one interface, of sources that are neither trusted nor blocked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize)]
pub struct TcpStats {
    /// SYNs, passed or not.
    pub connections: u64,
    /// SYNs and segments over a limit or over a storm's budget, dropped unless in a dry run.
    pub limited: u64,
    /// Segments with payload, TLS and WebSocket among them.
    pub segments: u64,
    /// Of these, read as a whole by the detector.
    pub sampled: u64,
    /// Of these, passed without being read, or not read as a whole: for lack of room.
    pub unsampled: u64,
}

/// Fill level of the block list.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Occupancy {
    /// IPv4 networks.
    pub ipv4: usize,
    /// IPv6 networks.
    pub ipv6: usize,
    /// Capacity in networks.
    pub capacity: u32,
}

/// Numbers of sources with state in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct SourceStats {
    /// Unknown sources with a meter.
    pub tracked: usize,
    /// Known good.
    pub good: usize,
    /// Peers.
    pub peers: usize,
}

/// The server's responses on filtered interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
pub struct ResponseStats {
    /// 2xx.
    pub accepted: u64,
    /// 401 and 407.
    pub challenged: u64,
    /// 403, 404, 484, 604.
    pub refused: u64,
}

/// The output of `stats`.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Stats {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Time of reading.
    pub time: Timestamp,
    /// Start of counting.
    pub since: Option<Timestamp>,
    /// By interface.
    pub interfaces: Vec<InterfaceStats>,
    /// The server's responses.
    pub responses: ResponseStats,
    /// Events lost on their way to the daemon.
    pub lost_events: u64,
    /// Packets that were not sampled for the detector because their budget was spent.
    pub lost_samples: u64,
    /// The block list.
    pub blocklist: Occupancy,
    /// The sources.
    pub sources: SourceStats,
}

/// A row of `block list` and `trust list`.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Row {
    /// The network.
    pub network: Network,
    /// The port of a flow; `None` for a whole network.
    pub port: Option<u16>,
    /// The owner's name.
    #[schemars(regex(pattern = "^(manual|auto|config|host|tool|feed:.*)$"))]
    pub owner: String,
    /// The claimant: `feed:NAME`, `tool:NAME` or `dns:NAME`; `None` for other owners.
    pub claimant: Option<String>,
    /// Reason.
    pub reason: String,
    /// Evidence tier.
    pub tier: Option<Tier>,
    /// Creation time.
    pub added: Timestamp,
    /// Expiry; `None` for permanent.
    pub expires: Option<Timestamp>,
    /// Packets dropped by this entry.
    pub hits: u64,
    /// Made in a dry run: not enforced.
    pub dry_run: bool,
}

/// An interface with a record in the filter.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct FilteredInterface {
    /// Configured name.
    pub interface: String,
    /// Interface index.
    pub index: u32,
    /// Current name; `None` if it is gone.
    pub current_name: Option<String>,
    /// Attach mode.
    pub mode: Option<Mode>,
    /// Time of attachment.
    pub since: Timestamp,
    /// Whether it is in a dry run.
    pub dry_run: bool,
    /// Whether our program is attached now.
    pub attached: bool,
    /// Whether its trial (`run --confirm`) ended unconfirmed while the daemon was dead: the program
    /// is attached but drops nothing.
    pub trial_over: bool,
    /// End of a trial that nobody has confirmed yet.
    pub trial_until: Option<Timestamp>,
    /// Egress attachment, if any.
    pub egress: Option<EgressWay>,
}

impl FilteredInterface {
    /// Whether packets are dropped there.
    pub fn drops(&self) -> bool {
        self.attached && !self.dry_run && !self.trial_over
    }

    /// A problem that the operator should know, if any.
    pub fn trouble(&self) -> Option<String> {
        let name = &self.interface;
        match &self.current_name {
            None => {
                Some(format!("{name} is gone; the daemon filters it again as soon as it is back"))
            }
            Some(_) if !self.attached => {
                Some(format!("{name} is not filtered any more: the program was taken off"))
            }
            Some(_) if self.trial_over => Some(format!(
                "{name} drops nothing: nobody confirmed in time; should its daemon have died, \
                 `sip-xdp unload` takes it \
                 off, and so does the next start"
            )),
            Some(now) if now != name => Some(format!(
                "{name} is called {now} now; it is filtered until another interface is called \
                 {name}: write {now} into the \
                 configuration and run `sip-xdp reload`"
            )),
            Some(_) => self.dry_run.then(|| format!("{name} is in a dry run: nothing is dropped")),
        }
    }
}

/// Reads the counters.
pub fn stats(pins: &Pins) -> Result<Stats> {
    let records = records(pins)?;
    let lost = losses(pins)?;
    let tracked = Sources::open(|name| pins.open(name))?.tracked()?;
    let (good, peers) = known(pins)?;
    Ok(Stats {
        schema: SCHEMA,
        time: now(),
        since: records.iter().map(|(_, record)| clock::from_ms(record.since_ms)).min(),
        interfaces: packets(pins)?,
        responses: responses(pins)?,
        lost_events: lost.events,
        lost_samples: lost.samples,
        blocklist: occupancy(pins)?,
        sources: SourceStats { tracked, good, peers },
    })
}

/// Reads the packet counters of all interfaces: the cheap part of [`stats`].
pub fn packets(pins: &Pins) -> Result<Vec<InterfaceStats>> {
    let counters: PerCpuArray<MapData, Counters> = pins.open(names::COUNTERS)?.try_into()?;
    let mut interfaces = Vec::new();
    for (slot, record) in records(pins)? {
        let per_cpu = counters.get(&slot, 0).context("the counters cannot be read")?;
        let sum = per_cpu.iter().fold(Counters::zeroed(), add);
        interfaces.push(InterfaceStats {
            interface: name_of(&record),
            mode: Mode::from_number(record.mode),
            packets: by_verdict(&sum.packets, &sum.would_drop),
            bytes: by_verdict(&sum.bytes, &sum.would_drop_bytes),
            methods: Message::ALL
                .iter()
                .map(|message| (message.name(), sum.messages[*message as usize]))
                .collect(),
            tcp: {
                let TcpCounters { connections, limited, segments, sampled, unsampled } = sum.tcp;
                TcpStats { connections, limited, segments, sampled, unsampled }
            },
        });
    }
    Ok(interfaces)
}

/// Packets that the program in a slot has counted.
pub(crate) fn seen(pins: &Pins, slot: u32) -> Result<u64> {
    let counters: PerCpuArray<MapData, Counters> = pins.open(names::COUNTERS)?.try_into()?;
    let per_cpu = counters.get(&slot, 0).context("the counters cannot be read")?;
    let counted = per_cpu.iter().flat_map(|one| one.packets.iter().chain(&one.would_drop));
    Ok(counted.fold(0_u64, |sum, packets| sum.wrapping_add(*packets)))
}

/// Losses on the way to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Losses {
    /// Events.
    pub events: u64,
    /// Packets that were not sampled for the detector because their budget was spent.
    pub samples: u64,
}

/// Reads the losses on the way to the daemon.
pub fn losses(pins: &Pins) -> Result<Losses> {
    let states: PerCpuArray<MapData, CpuState> = pins.open(names::CPU_STATE)?.try_into()?;
    let states = states.get(&0, 0).context("the states of the CPUs cannot be read")?;
    Ok(Losses {
        events: states.iter().map(|state| state.lost_events).sum(),
        samples: states.iter().map(|state| state.lost_samples).sum(),
    })
}

/// Counts known-good hosts and peers.
fn known(pins: &Pins) -> Result<(usize, usize)> {
    let table_header = header::read(pins.open(names::TABLE_HEADER)?)?;
    let table = Table::open(|name| pins.open(name), &table_header)?;
    let now = clock::now();
    let table = table.map_all()?;
    let live = table
        .entries()
        .filter(|entry| entry.slot_state.expires > now)
        .filter_map(|entry| entry.slot_state.reputation);
    Ok(live.fold((0, 0), |(good, peers), reputation| {
        (good + usize::from(reputation.is_good(now)), peers + usize::from(reputation.is_peer(now)))
    }))
}

/// Reads the fill level of the block list.
pub fn occupancy(pins: &Pins) -> Result<Occupancy> {
    let table_header = header::read(pins.open(names::TABLE_HEADER)?)?;
    let capacity = Ledger::new(pins.open(names::LEDGER)?)?.capacity();
    Ok(Occupancy { ipv4: table_header.ipv4 as usize, ipv6: table_header.ipv6 as usize, capacity })
}

/// Kernel memory of the pinned maps, in bytes. Fixed at creation, except for the ledger, which
/// grows with its entries.
pub fn memory(pins: &Pins) -> Result<u64> {
    let mut bytes = 0;
    for name in names::PINNED_MAPS {
        let map = MapData::from_pin(pins.maps().join(name))?;
        let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let info =
            std::fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
        // `bpf_map_show_fdinfo` in kernel/bpf/syscall.c.
        let memory = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        bytes += memory.and_then(|bytes| bytes.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(bytes)
}

/// Whether there is a storm now.
pub fn is_storm(pins: &Pins) -> Result<bool> {
    Ok(storm_state(pins)?.is_storm(clock::now()))
}

/// Reads the storm state.
pub fn storm_state(pins: &Pins) -> Result<StormState> {
    let storm_state: Array<MapData, StormState> = pins.open(names::STORM_STATE)?.try_into()?;
    Ok(storm_state.get(&0, 0)?)
}

/// Reads a list without expired entries.
pub fn rows(pins: &Pins, list: List) -> Result<Vec<Row>> {
    let ledger = Ledger::new(pins.open(names::LEDGER)?)?;
    let table_header = header::read(pins.open(names::TABLE_HEADER)?)?;
    let table = Table::open(|name| pins.open(name), &table_header)?;
    let flows = Flows::open(|name| pins.open(name))?;
    let hits = |network: &Network| {
        table.get(Kind::Blocked, network).ok().flatten().map_or(0, |entry| entry.hits)
    };
    let now = clock::now();
    let entries =
        ledger.entries()?.into_iter().filter(|(of, entry)| *of == list && !entry.is_over(now));
    let row = |entry: Entry| Row {
        claimant: entry.claimant(),
        hits: match (list, entry.port) {
            (List::Block, None) => hits(&entry.network),
            (List::Block, Some(port)) => {
                flows.get(entry.network.first(), port).map_or(0, |flow| flow.hits)
            }
            _ => 0,
        },
        network: entry.network,
        port: entry.port,
        owner: match entry.owner {
            Owner::Feed => format!("feed:{}", entry.reason),
            owner => owner.name().to_owned(),
        },
        reason: entry.reason,
        tier: entry.tier,
        added: clock::from_ms(entry.added_ms),
        expires: clock::to_wall(entry.expires),
        dry_run: entry.dry_run,
    };
    Ok(entries.map(|(_, entry)| row(entry)).collect())
}

/// Interfaces with a record, compared with the present ones.
pub fn interfaces(pins: &Pins, present: &[Interface]) -> Result<Vec<FilteredInterface>> {
    let deadline = trial::pinned_deadline(pins);
    let trial_over = deadline.is_some_and(|deadline| deadline <= clock::now());
    let trial_until = deadline.filter(|_| !trial_over).and_then(clock::to_wall);
    let filtered = |record: &InterfaceRecord| {
        let ours =
            ProgramInfo::from_pin(pins.program(record.index)).ok().map(|program| program.id());
        let present = present.iter().find(|interface| interface.index == record.index);
        let on = present.and_then(|interface| interface.xdp);
        FilteredInterface {
            interface: name_of(record),
            index: record.index,
            current_name: present.map(|interface| interface.name.clone()),
            mode: Mode::from_number(record.mode),
            since: clock::from_ms(record.since_ms),
            dry_run: record.dry_run != 0,
            attached: ours.is_some() && on.map(|xdp| xdp.id) == ours,
            trial_over,
            trial_until,
            egress: present.and_then(|interface| tcx::way(interface, pins)),
        }
    };
    Ok(records(pins)?.iter().map(|(_, record)| filtered(record)).collect())
}

/// Detaches from one interface and removes its record. Returns the offloads that were restored, or
/// could not be.
pub fn forget_interface(pins: &Pins, name: &str) -> Result<Vec<Offload>> {
    let ours = records(pins)?.into_iter().filter(|(_, record)| name_of(record) == name);
    let (mut slots, mut offloads) = (Vec::new(), Vec::new());
    for (slot, record) in ours {
        offloads.extend(pins.detach(record.index)?);
        slots.push(slot);
    }
    let mut map: Array<MapData, InterfaceRecord> = pins.open(names::INTERFACES)?.try_into()?;
    for slot in slots {
        map.set(slot, InterfaceRecord::zeroed(), 0)?;
    }
    Ok(offloads)
}

/// The server's responses, summed over CPUs.
fn responses(pins: &Pins) -> Result<ResponseStats> {
    let map: PerCpuArray<MapData, Responses> = pins.open(names::RESPONSES)?.try_into()?;
    let per_cpu = map.get(&0, 0).context("the responses cannot be read")?;
    let sum = |answer: Answer| per_cpu.iter().map(|one| one.packets[answer as usize]).sum();
    Ok(ResponseStats {
        accepted: sum(Answer::Accepted),
        challenged: sum(Answer::Challenged),
        refused: sum(Answer::Refused),
    })
}

/// Slots in use.
fn records(pins: &Pins) -> Result<Vec<(u32, InterfaceRecord)>> {
    let map: Array<MapData, InterfaceRecord> = pins.open(names::INTERFACES)?.try_into()?;
    let mut found = Vec::new();
    for slot in 0..MAX_INTERFACES as u32 {
        let record = map.get(&slot, 0).context("the interface records cannot be read")?;
        if record.index != 0 {
            found.push((slot, record));
        }
    }
    Ok(found)
}

/// The configured name in a record.
pub fn name_of(record: &InterfaceRecord) -> String {
    String::from_utf8_lossy(&record.name[..usize::from(record.name_length).min(record.name.len())])
        .into_owned()
}

/// The current time in milliseconds.
pub fn now() -> Timestamp {
    clock::from_ms(clock::wall_ms())
}

fn add(mut sum: Counters, one: &Counters) -> Counters {
    let pairs = [
        (&mut sum.packets[..], &one.packets[..]),
        (&mut sum.bytes, &one.bytes),
        (&mut sum.would_drop, &one.would_drop),
        (&mut sum.would_drop_bytes, &one.would_drop_bytes),
        (&mut sum.messages, &one.messages),
    ];
    for (sum, one) in pairs {
        sum.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
    }
    sum.tcp += one.tcp;
    sum
}

pub(crate) fn by_verdict(
    counted: &[u64; Reason::COUNT],
    would_drop: &[u64; Reason::COUNT],
) -> ByVerdict {
    let named = |verdict: Verdict, from: &[u64; Reason::COUNT]| {
        let reasons = Reason::ALL.into_iter().filter(|reason| reason.verdict() == verdict);
        reasons.map(|reason| (reason.name(), from[reason as usize])).collect()
    };
    ByVerdict {
        pass: named(Verdict::Pass, counted),
        drop: named(Verdict::Drop, counted),
        would_drop: named(Verdict::Drop, would_drop),
    }
}
