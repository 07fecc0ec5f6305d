//! Dynamic interfaces: PPP lines are redialled, VLANs recreated, adapters unplugged, names changed.
//! The daemon continues in every case, and filters configured interfaces as soon as they exist.
//!
//! [`resolve`] maps configured names to interfaces. The programs of a vanished interface stay
//! loaded, so that its successor need not wait for the verifier.
//!
//! More than 400 lines: attachment and detachment share the state of all interfaces.

mod links;
mod resolve;

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use aya_log::EbpfLogger;
use bytemuck::Zeroable;
use log::Log;
use sip_xdp_common::abi::layout::{Counters, InterfaceRecord, MAX_INTERFACES};
use sip_xdp_common::abi::names;
use sip_xdp_common::packet::headers::Link;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::Daemon;
use crate::dataplane::attach::offloads::Offload;
use crate::dataplane::attach::tcx::{EgressWay, attach_egress};
use crate::dataplane::attach::xdp::{Mode, ModeChoice, attach};
use crate::dataplane::counters::{forget_interface, name_of};
use crate::dataplane::loader::{self, Settings};
use crate::dataplane::netlink::{Interface, Surroundings};
use crate::dataplane::refusal;
use crate::sys::clock;
use crate::text::Quoted;

pub(super) use links::Blindness;
use links::Watched;
pub(super) use resolve::Resolved;
use resolve::{Wanted, resolve, with_default_route};

/// A filtered interface.
pub(super) struct Served {
    /// Configured name.
    pub(super) name: String,
    /// Attach mode.
    pub(super) mode: Mode,
    index: u32,
    /// Current name.
    current_name: String,
    /// Id of the ingress program.
    program: u32,
    loaded: Loaded,
    watched: Watched,
}

impl Served {
    /// Slot in the tables.
    pub(super) fn slot(&self) -> u32 {
        self.loaded.slot
    }

    /// Interface index.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Link type.
    pub(super) fn link(&self) -> Link {
        self.loaded.link
    }
}

/// The programs of an interface.
pub(super) struct Loaded {
    slot: u32,
    link: Link,
    object: Ebpf,
    _trace: Option<Trace>,
}

/// Forwards a kernel program's trace to the log, until dropped; only for programs compiled with it.
struct Trace(JoinHandle<()>);

impl Drop for Trace {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The maps of interface records and counters.
struct InterfaceMaps {
    records: Array<MapData, InterfaceRecord>,
    counters: PerCpuArray<MapData, Counters>,
}

impl InterfaceMaps {
    fn open(maps: &std::path::Path) -> Result<Self> {
        let open = |name: &str| -> Result<_> {
            Ok(aya::maps::Map::from_map_data(MapData::from_pin(maps.join(name))?)?)
        };
        Ok(Self {
            records: open(names::INTERFACES)?.try_into()?,
            counters: open(names::COUNTERS)?.try_into()?,
        })
    }

    fn read(&self) -> Result<Vec<InterfaceRecord>> {
        Ok((0..MAX_INTERFACES as u32)
            .map(|slot| self.records.get(&slot, 0))
            .collect::<Result<_, _>>()?)
    }

    /// Resets the counters of a slot.
    fn clear(&mut self, slot: u32) -> Result<()> {
        let cpus = nr_cpus().map_err(|(file, error)| anyhow!("{file}: {error}"))?;
        Ok(self.counters.set(slot, PerCpuValues::try_from(vec![Counters::zeroed(); cpus])?, 0)?)
    }
}

impl Daemon {
    /// Attaches to the wanted interfaces, and detaches from all others.
    pub(super) fn reconcile(&mut self, resolved: &Resolved, maps: &std::path::Path) -> Result<()> {
        if self.confirmation.is_missed() {
            let there = resolved.wanted.iter().map(|wanted| wanted.name.clone());
            self.wanted = there.chain(resolved.missing.clone()).collect();
            return Ok(());
        }
        let mut interface_maps = InterfaceMaps::open(maps)?;
        let known = interface_maps.read()?;
        let slots = slots(&known, resolved)?;
        // All programs are loaded before the first is attached, so that a verifier refusal changes
        // nothing.
        let mut loaded = Vec::new();
        for (wanted, (slot, is_new)) in resolved.wanted.iter().zip(slots) {
            loaded.push((wanted, is_new, self.load(&wanted.interface, slot, maps)?));
        }
        let (mut served, mut attached_anew, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
        for (wanted, is_new, loaded) in loaded {
            let adopts = self.pins.link(wanted.interface.index).exists();
            let (one, new_warnings) =
                match self.put_on(wanted, loaded, is_new, self.config.mode, &mut interface_maps) {
                    Ok(put) => put,
                    Err(error) => {
                        self.detach_all(&attached_anew);
                        return Err(error);
                    }
                };
            if !adopts {
                attached_anew.push(wanted.interface.index);
            }
            let how = if adopts { ", adopting what was there" } else { "" };
            log::info!("attached to {} in {} mode{how}", one.name, one.mode);
            warnings.extend(new_warnings);
            served.push(self.with_reserve(one, &wanted.interface, maps));
        }
        let is_wanted =
            |index: u32| resolved.wanted.iter().any(|wanted| wanted.interface.index == index);
        for index in self.pins.linked().into_iter().filter(|index| !is_wanted(*index)) {
            self.pins.detach(index)?;
            log::info!("detached from interface {index}, which is no longer configured, or gone");
        }
        for (slot, record) in known.iter().enumerate().filter(|(_, record)| record.index != 0) {
            let in_use = served.iter().any(|served| served.loaded.slot as usize == slot);
            if !in_use && !resolved.missing.contains(&name_of(record)) {
                interface_maps.records.set(slot as u32, InterfaceRecord::zeroed(), 0)?;
            }
        }
        for name in &resolved.missing {
            log::warn!("interface {name} kind=missing reason=\"there is none of this name yet\"");
        }
        self.attach_warnings = warnings;
        self.wanted = served
            .iter()
            .map(|served| served.name.clone())
            .chain(resolved.missing.clone())
            .collect();
        self.served = served;
        self.recall_blind();
        self.cached_programs.clear();
        self.unserved.clear();
        Ok(())
    }

    /// Loads the programs of an interface. The verifier log of a refusal is kept in the state
    /// directory.
    fn load(&self, interface: &Interface, slot: u32, maps: &std::path::Path) -> Result<Loaded> {
        let link = interface.link.with_context(|| unreadable(interface))?;
        let settings = self.config.program_settings(link, slot);
        let settings = Settings { trial: self.confirmation.is_awaited(), ..settings };
        let loaded = loader::load(&settings, Some(maps));
        let mut object = loaded.map_err(|error| refusal::keep_log(error, &self.paths.state_dir))?;
        let trace = forward_trace(&mut object)?;
        Ok(Loaded { slot, link, object, _trace: trace })
    }

    /// Attaches programs to an interface. Also returns warnings.
    fn put_on(
        &self,
        wanted: &Wanted,
        mut loaded: Loaded,
        is_new: bool,
        choice: ModeChoice,
        interface_maps: &mut InterfaceMaps,
    ) -> Result<(Served, Vec<String>)> {
        let Wanted { name, interface } = wanted;
        let since = if is_new { 0 } else { interface_maps.records.get(&loaded.slot, 0)?.since_ms };
        if is_new {
            interface_maps.clear(loaded.slot)?;
        }
        let program = loader::ingress(&mut loaded.object)?;
        let (mode, warning) = attach(program, interface, choice, &self.pins)?;
        let program = program.info()?.id();
        let ways = self.overrides.egress_ways.as_deref().unwrap_or(&EgressWay::ALL);
        let egress =
            attach_egress(loader::egress(&mut loaded.object)?, interface, ways, &self.pins);
        let egress =
            egress.err().map(|error| format!("{name}: our responses are not counted: {error:#}"));
        let warnings: Vec<String> = warning.into_iter().chain(egress).collect();
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        let since_ms = if since == 0 { clock::wall_ms() } else { since };
        interface_maps.records.set(
            loaded.slot,
            record(wanted, mode, self.config.dry_run, since_ms),
            0,
        )?;
        let (index, current_name) = (interface.index, interface.name.clone());
        let watched = Watched::new(false);
        Ok((
            Served { name: name.clone(), mode, index, current_name, program, loaded, watched },
            warnings,
        ))
    }

    /// Detaches programs after a failed change.
    fn detach_all(&self, indices: &[u32]) {
        for index in indices {
            if let Err(error) = self.pins.detach(*index) {
                log::error!("interface {index}: {error:#}");
            }
        }
    }

    /// Updates the filtered interfaces to the present ones.
    pub(super) async fn follow_interfaces(&mut self) {
        if self.confirmation.is_missed() {
            return;
        }
        let present = match self.netlink.interfaces().await {
            Ok(present) => present,
            Err(error) => return log::warn!("{error:#}"),
        };
        let attached: Vec<_> =
            self.served.iter().map(|served| (served.name.clone(), served.index)).collect();
        let resolved = resolve(&self.wanted, &present, &attached);
        let (kept, lost): (Vec<_>, Vec<_>) = std::mem::take(&mut self.served)
            .into_iter()
            .partition(|served| is_still_served(served, &resolved));
        self.served = kept;
        for served in lost {
            let is_there = present.iter().any(|interface| interface.index == served.index);
            self.detach_interface(served, is_there);
        }
        self.note_names(&resolved);
        self.unserved.retain(|name, _| resolved.wanted.iter().any(|wanted| wanted.name == *name));
        let mut attached_some = false;
        for wanted in &resolved.wanted {
            if self.served.iter().all(|served| served.name != wanted.name) {
                attached_some |= self.attach_wanted(wanted);
            }
        }
        // A new interface brings local addresses and routes.
        if attached_some && let Err(error) = self.refresh_surroundings().await {
            log::warn!("the host's addresses and routes: {error:#}");
        }
    }

    /// Filters interfaces that have gained a default route, if so configured.
    pub(super) async fn follow_default_routes(&mut self, around: &Surroundings) -> Result<()> {
        if !self.config.interfaces.is_empty() {
            return Ok(());
        }
        let found = with_default_route(&self.netlink.interfaces().await?, around);
        let new: Vec<_> = found.into_iter().filter(|name| !self.wanted.contains(name)).collect();
        self.wanted.extend(new);
        Ok(())
    }

    /// Attaches to an interface that has appeared or reappeared. Returns whether it succeeded.
    fn attach_wanted(&mut self, wanted: &Wanted) -> bool {
        let name = &wanted.name;
        match self.try_to_take_on(wanted) {
            Ok((served, warnings)) => {
                self.unserved.remove(name);
                self.attach_warnings.retain(|warning| !warning.starts_with(&format!("{name}: ")));
                self.attach_warnings.extend(warnings);
                let (mode, index) = (served.mode, served.index);
                self.announce_interface(name, "attached", &format!("mode={mode} index={index}"));
                let served = self.with_reserve(served, &wanted.interface, &self.pins.maps());
                self.served.push(served);
                true
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.unserved.get(name) != Some(&error) {
                    self.announce_interface(name, "failed", &format!("reason={}", Quoted(&error)));
                    self.unserved.insert(name.clone(), error);
                }
                false
            }
        }
    }

    fn try_to_take_on(&mut self, wanted: &Wanted) -> Result<(Served, Vec<String>)> {
        let maps = self.pins.maps();
        let mut interface_maps = InterfaceMaps::open(&maps)?;
        let link = wanted.interface.link.with_context(|| unreadable(&wanted.interface))?;
        // The interface may have another link type now, which needs another program.
        let cached_programs =
            self.cached_programs.remove(&wanted.name).filter(|loaded| loaded.link == link);
        let (loaded, is_new) = match cached_programs {
            Some(loaded) => (loaded, false),
            None => {
                let (slot, is_new) = self.slot_for(&wanted.name, &interface_maps.read()?)?;
                (self.load(&wanted.interface, slot, &maps)?, is_new)
            }
        };
        self.put_on(wanted, loaded, is_new, self.config.mode, &mut interface_maps)
    }

    /// The slot of a newly attached interface: its earlier one, or a free one.
    fn slot_for(&self, name: &str, known: &[InterfaceRecord]) -> Result<(u32, bool)> {
        if let Some(slot) =
            known.iter().position(|record| record.index != 0 && name_of(record) == name)
        {
            return Ok((slot as u32, false));
        }
        let free = known.iter().position(|record| record.index == 0);
        Ok((free.context("too many interfaces")? as u32, true))
    }

    /// Stops filtering an interface: it is gone, another one has its name, or the program was
    /// removed by somebody else.
    fn detach_interface(&mut self, served: Served, is_there: bool) {
        let Served { name, index, loaded, .. } = served;
        if let Err(error) = self.pins.detach(index) {
            log::error!("interface {index}: {error:#}");
        }
        self.blind.remove(&name);
        let kind = if is_there { "detached" } else { "gone" };
        self.announce_interface(&name, kind, &format!("index={index}"));
        self.cached_programs.insert(name, loaded);
    }

    /// Logs changed interface names.
    fn note_names(&mut self, resolved: &Resolved) {
        let mut renamed = Vec::new();
        for served in &mut self.served {
            let now = resolved.wanted.iter().find(|wanted| wanted.name == served.name);
            if let Some(now) = now
                && now.interface.name != served.current_name
            {
                served.current_name.clone_from(&now.interface.name);
                renamed.push((served.name.clone(), served.current_name.clone(), served.index));
            }
        }
        for (name, now, index) in renamed {
            self.announce_interface(&name, "renamed", &format!("name={now} index={index}"));
        }
    }

    /// Detaches an interface by command.
    pub(super) fn disable(&mut self, name: &str) -> Result<Vec<Offload>> {
        let offloads = forget_interface(&self.pins, name)?;
        self.wanted.retain(|wanted| wanted != name);
        self.served.retain(|served| served.name != name);
        self.cached_programs.remove(name);
        self.unserved.remove(name);
        self.blind.remove(name);
        Ok(offloads)
    }

    /// Configured interfaces that do not exist.
    pub(super) fn missing(&self) -> Vec<&str> {
        if self.confirmation.is_missed() {
            return Vec::new();
        }
        let is_served = |name: &str| self.served.iter().any(|served| served.name == name);
        let names = self.wanted.iter().map(String::as_str);
        names.filter(|name| !is_served(name) && !self.unserved.contains_key(*name)).collect()
    }

    /// Warnings in `status`.
    pub(super) fn interface_warnings(&self) -> Vec<String> {
        // Interfaces that were filtered before have a record, which `status` reports itself.
        let was_there = |name: &str| self.cached_programs.contains_key(name);
        let missing = self.missing().into_iter().filter(|name| !was_there(name));
        let missing = missing.map(|name| {
            format!("there is no interface {name}; it is filtered as soon as there is one")
        });
        let failed =
            self.unserved.iter().map(|(name, error)| format!("{name} is not filtered: {error}"));
        missing.chain(failed).collect()
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("name", &self.name)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// Whether an interface is still the filtered one, with our program attached.
fn is_still_served(served: &Served, resolved: &Resolved) -> bool {
    resolved.wanted.iter().any(|wanted| {
        wanted.name == served.name
            && wanted.interface.index == served.index
            && wanted.interface.link == Some(served.loaded.link)
            && wanted.interface.xdp.is_some_and(|xdp| xdp.id == served.program)
    })
}

/// The slot of each wanted interface, and whether it is new: by name, by index, or free.
fn slots(known: &[InterfaceRecord], resolved: &Resolved) -> Result<Vec<(u32, bool)>> {
    let used = |slot: &usize| known[*slot].index != 0;
    let mut free: BTreeSet<usize> = (0..known.len()).collect();
    let mut chosen: Vec<Option<usize>> = vec![None; resolved.wanted.len()];
    let by_name = |wanted: &Wanted, slot: &usize| name_of(&known[*slot]) == wanted.name;
    let by_index = |wanted: &Wanted, slot: &usize| known[*slot].index == wanted.interface.index;
    // A missing interface keeps its counters.
    free.retain(|slot| !used(slot) || !resolved.missing.contains(&name_of(&known[*slot])));
    for fits in [&by_name as &dyn Fn(&Wanted, &usize) -> bool, &by_index] {
        for (wanted, chosen) in
            resolved.wanted.iter().zip(&mut chosen).filter(|(_, chosen)| chosen.is_none())
        {
            *chosen = free.iter().copied().find(|slot| used(slot) && fits(wanted, slot));
            if let Some(slot) = chosen {
                free.remove(slot);
            }
        }
    }
    let known_slots = chosen.into_iter();
    known_slots
        .map(|slot| match slot {
            Some(slot) => Ok((slot as u32, false)),
            None => Ok((free.pop_first().context("too many interfaces")? as u32, true)),
        })
        .collect()
}

fn unreadable(interface: &Interface) -> String {
    format!(
        "{} has link type {}, which this filter cannot read; it reads Ethernet, loopback, PPP, tun \
         and WireGuard",
        interface.name, interface.link_type
    )
}

fn record(wanted: &Wanted, mode: Mode, dry_run: bool, since_ms: u64) -> InterfaceRecord {
    let mut name = [0; 16];
    let length = wanted.name.len().min(name.len());
    name[..length].copy_from_slice(&wanted.name.as_bytes()[..length]);
    InterfaceRecord {
        index: wanted.interface.index,
        mode: mode.number(),
        link: wanted.interface.link.unwrap_or(Link::Ethernet) as u8,
        dry_run: dry_run.into(),
        name_length: length as u8,
        name,
        since_ms,
    }
}

/// Forwards a program's trace to the log; none if it was compiled without one, as releases are.
fn forward_trace(object: &mut Ebpf) -> Result<Option<Trace>> {
    if object.map("AYA_LOGS").is_none() {
        return Ok(None);
    }
    let logger: EbpfLogger<&'static dyn Log> =
        EbpfLogger::init(object).context("the trace of the kernel program")?;
    // SAFETY: the logger owns its map's descriptor for its whole lifetime, and always returns the
    // same one.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
    Ok(Some(Trace(tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::netlink::AttachedXdp;

    pub(super) fn interface(name: &str, index: u32, is_attached: bool) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            link: Some(Link::Ethernet),
            link_type: 1,
            kind: None,
            up: true,
            mtu: 1500,
            rx_queues: 1,
            xdp: is_attached.then_some(AttachedXdp { id: 9, native: true }),
            controller: None,
            beneath: None,
            carrier_changes: 0,
            rx_packets: 0,
        }
    }

    #[test]
    fn counters_follow_the_name() {
        let wanted = |name: &str, index| Wanted {
            name: name.to_owned(),
            interface: interface(name, index, false),
        };
        let of = |name, index| record(&wanted(name, index), Mode::Native, false, 1);
        let mut known = vec![InterfaceRecord::zeroed(); 4];
        (known[0], known[2]) = (of("wan", 5), of("lan", 6));
        let slots = |all: &[Wanted], missing: &[&str]| {
            let missing = missing.iter().map(|name| (*name).to_owned()).collect();
            slots(&known, &Resolved { wanted: all.to_vec(), missing }).unwrap()
        };
        assert_eq!(slots(&[wanted("lan", 6), wanted("wan", 9)], &[]), [(2, false), (0, false)]);
        // Renamed in the configuration as well.
        assert_eq!(slots(&[wanted("wan0", 5)], &["lan"]), [(0, false)]);
        // The old interface under a new name, and a new one under the old name.
        assert_eq!(slots(&[wanted("old", 5), wanted("wan", 9)], &["lan"]), [(1, true), (0, false)]);
        // A missing interface keeps its slot.
        assert_eq!(
            slots(&[wanted("ppp0", 7), wanted("ppp1", 8)], &["wan", "lan"]),
            [(1, true), (3, true)]
        );
        let many: Vec<_> =
            (0..5).map(|number| wanted(&format!("x{number}"), 10 + number)).collect();
        assert!(super::slots(&known, &Resolved { wanted: many, missing: vec![] }).is_err());
    }
}
