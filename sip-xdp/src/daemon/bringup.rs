//! Bringing the filter up, adopting what is there, and changing it while it runs.
//!
//! The order matters: the tables are complete before the first program that reads them is on an interface, and the new
//! program is on an interface before anything of the old one goes.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues, RingBuf};
use aya::util::nr_cpus;
use aya_log::EbpfLogger;
use bytemuck::Zeroable;
use log::{Level, Log};
use serde_json::{Value, json};
use sip_xdp_common::layout::{Counters, InterfaceRecord, List, MAX_INTERFACES, Owner};
use sip_xdp_common::names;
use sip_xdp_common::packet::{Inspects, Link};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;

use super::confirm::Confirmation;
use super::events::Event as Said;
use super::{Daemon, Overrides, Served};
use crate::attach::{Mode, attach};
use crate::config::{BlockScope, Config, Policy};
use crate::control;
use crate::detect::Detector;
use crate::egress::{EgressWay, attach_egress};
use crate::exempt::{Exempt, near};
use crate::feeds::engine::Engine;
use crate::hosts::Hosts;
use crate::ledger::Entry;
use crate::ledger::Ledger;
use crate::lists::Lists;
use crate::netlink::{Interface, Netlink, Surroundings};
use crate::object::{self, Settings};
use crate::paths::Paths;
use crate::pins::{Lock, Pins};
use crate::sources::Sources;
use crate::store::{Found, Opened, State, Store};
use crate::{clock, pins};

/// Where the resolvers are listed.
const RESOLV_CONF: &str = "/etc/resolv.conf";

impl Daemon {
    /// Starts: adopts what is pinned, or begins anew with what is on disk. A start that fails leaves what was there.
    pub(super) async fn start(paths: Paths, overrides: Overrides) -> Result<(Self, RingBuf<MapData>, UnixListener)> {
        let config = overrides.read(&paths)?;
        if overrides.confirm.is_some() && config.dry_run {
            bail!(
                "--confirm has nothing to confirm in a dry run, which {} asks for; take dry_run out of it",
                paths.config.display()
            );
        }
        object::check_capabilities()?;
        let pins = Pins::new(&paths.pin_dir);
        let lock = pins.prepare()?;
        let started = Self::bring_up(paths, overrides, config, pins.clone(), lock).await;
        if started.is_err()
            && let Err(error) = pins.clean_up_start()
        {
            log::error!("{error:#}");
        }
        started
    }

    async fn bring_up(
        paths: Paths,
        overrides: Overrides,
        config: Config,
        pins: Pins,
        lock: Lock,
    ) -> Result<(Self, RingBuf<MapData>, UnixListener)> {
        let mut warnings = Vec::new();
        if let Err(error) = fs::create_dir_all(&paths.state_dir) {
            // Protection goes on without a state; saving will say what is lost.
            log::error!("{} cannot be made: {error}", paths.state_dir.display());
        }
        let netlink = Netlink::connect()?;
        let surroundings = netlink.surroundings().await?;
        let interfaces = wanted_interfaces(&config, &netlink, &surroundings).await?;

        // The tables: those that are pinned, or new ones beside them.
        pins::remove_directory(&pins.new_maps())?;
        let misfit = if pins.is_loaded() { object::misfit(&pins.maps(), &config.table_capacity()) } else { None };
        let adopts = pins.is_loaded() && misfit.is_none();
        let maps = if adopts { pins.maps() } else { pins.new_maps() };
        fs::create_dir_all(&maps).with_context(|| format!("{} cannot be made", maps.display()))?;
        // Pins the maps that are missing; the rest of this object is of no use yet.
        drop(object::make_maps(&settings(&config, Link::Ethernet, 0), Some(&maps))?);
        let open = |name: &str| -> Result<Map> { Ok(Map::from_map_data(MapData::from_pin(maps.join(name))?)?) };
        let mut lists = Lists::open(open)?;

        let Opened { store, found } = Store::open(&paths.store_file());
        let first_start = !pins.is_loaded() && matches!(found, Found::Nothing);
        let mut state = match found {
            Found::Nothing => State::default(),
            Found::State(state) => state,
            Found::Corrupt(message) => {
                log::error!("{message}");
                warnings.push(message);
                State::default()
            }
        };
        if !adopts {
            let carried = carried_over(&pins, misfit.as_deref()).unwrap_or(std::mem::take(&mut state.entries));
            for list in List::ALL {
                let entries = carried.iter().filter(|(of, _)| *of == list).map(|(_, entry)| entry.clone()).collect();
                if let Err(stopped) = lists.put_all(list, entries) {
                    let text = format!("not all entries of the {} list were carried over: {stopped}", list.name());
                    log::error!("{text}");
                    warnings.push(text);
                }
            }
        }
        let (mut hosts, trouble) = Hosts::open(paths.hosts_file());
        hosts.recall(lists.entries(List::Trust));
        if let Some(trouble) = trouble {
            log::error!("{trouble}");
            warnings.push(trouble);
        }
        let events = RingBuf::try_from(open(names::EVENTS)?)?;
        let sources = Sources::open(open)?;
        let records = open(names::INTERFACES)?.try_into()?;
        let counters = open(names::COUNTERS)?.try_into()?;

        let mut daemon = Self {
            detector: Detector::new(&config),
            exempt: Exempt::default(),
            feeds: Engine::new(paths.feeds_dir()),
            hosts,
            trusted_hosts: Default::default(),
            admitted_hosts: Default::default(),
            hosts_error: None,
            hosts_save_error: None,
            confirmation: Confirmation::default(),
            step_back_failed: false,
            served: Vec::new(),
            store,
            hub: Default::default(),
            notes: HashMap::new(),
            wall: Default::default(),
            offences: BTreeMap::new(),
            ended: false,
            lock: Some(lock),
            paths,
            overrides,
            config,
            pins,
            netlink,
            lists,
            sources,
            warnings,
            attach_warnings: Vec::new(),
            learning_until: 0,
        };
        daemon.exempt = Exempt::new(&surroundings, &resolv_conf());
        daemon.recall(state);
        if !daemon.config.dry_run {
            // It may stem from a dry run, which enforces nothing.
            daemon.lists.end_suspicion(clock::now())?;
        }
        if first_start {
            daemon.begin_to_learn();
        }
        daemon.prepare_lists()?;
        // Before anything is attached: a daemon that nobody can talk to must not leave a filter behind.
        let listener = control::listen(&daemon.paths.socket())?;
        daemon.serve(&interfaces, &maps, records, counters)?;
        if adopts {
            daemon.pins.remove_other_versions()?;
        } else {
            daemon.pins.promote_new_maps()?;
        }
        // What the kernel has is the truth; from here on the store is told what changes.
        daemon.store.record(daemon.lists.all_entries());
        daemon.confirmation = Confirmation::new(daemon.overrides.confirm);
        Ok((daemon, events, listener))
    }

    /// Reads the configuration again and applies it. On an error the running one stays in force.
    pub(super) async fn reload(&mut self) -> Result<Value> {
        let mut config = self.overrides.read(&self.paths)?;
        config.dry_run |= self.confirmation.is_missed();
        if config.capacity != self.config.capacity {
            bail!("capacity cannot change while it runs; restart the daemon (the filter goes on meanwhile)");
        }
        let before = std::mem::replace(&mut self.config, config);
        if before.dry_run && !self.config.dry_run {
            self.lists.end_suspicion(clock::now())?;
        }
        if let Err(error) = self.apply().await {
            self.config = before;
            if let Err(again) = self.apply().await {
                log::error!("going back to the running configuration: {again:#}");
            }
            return Err(error);
        }
        self.detector.configure(&self.config);
        self.hosts.ask_again();
        Ok(json!({ "applied": self.summary() }))
    }

    /// Applies the configuration to what is loaded.
    pub(super) async fn apply(&mut self) -> Result<()> {
        let surroundings = self.netlink.surroundings().await?;
        let interfaces = wanted_interfaces(&self.config, &self.netlink, &surroundings).await?;
        self.exempt = Exempt::new(&surroundings, &resolv_conf());
        self.prepare_lists()?;
        let records = self.pins.open(names::INTERFACES)?.try_into()?;
        let counters = self.pins.open(names::COUNTERS)?.try_into()?;
        self.serve(&interfaces, &self.pins.maps(), records, counters)
    }

    /// Brings what the lists owe to the configuration and to the host up to date.
    fn prepare_lists(&mut self) -> Result<()> {
        if !self.config.dry_run {
            for (_, entry) in self.lists.retain(|_, entry| entry.dry_run)? {
                let (network, owner) = (entry.network, entry.owner.name());
                self.say(
                    Said::of("unban", &entry).kind("dry_run_over"),
                    Level::Info,
                    format_args!("unban {network} owner={owner} dry_run=true reason=\"the dry run is over\""),
                );
            }
        }
        // Where everybody may talk, nobody needs to be admitted, and the tables need not hold it.
        let admitted =
            if self.config.policy == Policy::Closed { self.config.admit.networks.clone() } else { Vec::new() };
        for (list, networks) in [(List::Trust, self.config.trust.networks.clone()), (List::Admit, admitted)] {
            self.lists
                .retain(|of, entry| of == list && entry.owner == Owner::Config && !networks.contains(&entry.network))?;
            for network in networks {
                let entry = Entry {
                    owner: Owner::Config,
                    ..Entry::manual(network, clock::after(None), &self.paths.config.display().to_string())
                };
                if self.lists.owners(list, &network).iter().all(|known| known.owner != Owner::Config) {
                    self.lists.put(list, entry)?;
                }
            }
        }
        self.prepare_hosts();
        self.lists.expire(clock::now())?;
        self.prepare_feeds();
        self.judge_by_address()
    }

    /// Tells the kernel in which IPv6 networks hosts live that must not share their network's fate.
    pub(super) fn judge_by_address(&mut self) -> Result<()> {
        let prefix = self.config.ipv6_prefix;
        let mut networks = self.exempt.ipv6_networks(prefix);
        networks.extend(near(self.lists.entries(List::Trust).map(|entry| &entry.network), prefix));
        let now = clock::now();
        let good = self.lists.known_hosts().filter(|(_, standing)| standing.good_until > now);
        networks.extend(near(good.map(|(network, _)| network), prefix));
        Ok(self.lists.set_by_address(networks)?)
    }

    /// Looks again at the host's addresses, gateways and resolvers.
    pub(super) async fn look_around(&mut self) -> Result<()> {
        self.exempt = Exempt::new(&self.netlink.surroundings().await?, &resolv_conf());
        self.judge_by_address()
    }

    /// Puts the program on the interfaces that are wanted, and takes it off all others.
    fn serve(
        &mut self,
        interfaces: &[Interface],
        maps: &std::path::Path,
        mut records: Array<MapData, InterfaceRecord>,
        mut counters: PerCpuArray<MapData, Counters>,
    ) -> Result<()> {
        let known: Vec<InterfaceRecord> =
            (0..MAX_INTERFACES as u32).map(|slot| records.get(&slot, 0)).collect::<Result<_, _>>()?;
        let slots: Vec<Option<u32>> = interfaces
            .iter()
            .map(|interface| known.iter().position(|record| record.index == interface.index).map(|slot| slot as u32))
            .collect();
        let is_wanted = |index: u32| interfaces.iter().any(|interface| interface.index == index);
        let mut free = (0..MAX_INTERFACES as u32).filter(|slot| !is_wanted(known[*slot as usize].index));

        // All programs are loaded before the first is attached: what the verifier refuses changes nothing.
        let mut loaded = Vec::new();
        for (interface, slot) in interfaces.iter().zip(&slots) {
            let is_new = slot.is_none();
            let slot = match slot {
                Some(slot) => *slot,
                None => free.next().context("too many interfaces")?,
            };
            let link = interface.link.context("an interface without a link type")?;
            let object = object::load(&settings(&self.config, link, slot), Some(maps))?;
            loaded.push((interface, slot, is_new, object));
        }
        let mut served = Vec::new();
        let mut attached_anew = Vec::new();
        let mut warnings = Vec::new();
        for (interface, slot, is_new, mut object) in loaded {
            if is_new {
                counters.set(slot, PerCpuValues::try_from(vec![Counters::zeroed(); cpus()?])?, 0)?;
            }
            let adopts = self.pins.link(interface.index).exists();
            let program = object::ingress(&mut object)?;
            let (mode, warning) = match attach(program, interface, self.config.mode, &self.pins) {
                Ok(attached) => attached,
                Err(error) => {
                    self.detach_all(&attached_anew);
                    return Err(error);
                }
            };
            if !adopts {
                attached_anew.push(interface.index);
            }
            let ways = self.overrides.egress_ways.as_deref().unwrap_or(&EgressWay::ALL);
            let egress = attach_egress(object::egress(&mut object)?, interface, ways, &self.pins);
            let egress =
                egress.err().map(|error| format!("{}: our responses are not counted: {error:#}", interface.name));
            for warning in warning.into_iter().chain(egress) {
                log::warn!("{warning}");
                warnings.push(warning);
            }
            let since = known[slot as usize];
            let since_ms = if is_new { clock::wall_ms() } else { since.since_ms };
            records.set(slot, record(interface, mode, self.config.dry_run, since_ms), 0)?;
            let how = if adopts { ", adopting what was there" } else { "" };
            log::info!("attached to {} in {mode} mode{how}", interface.name);
            served.push(Served { index: interface.index, name: interface.name.clone(), mode, slot });
            forward_diagnostics(&mut object)?;
        }
        for index in self.pins.linked().into_iter().filter(|index| !is_wanted(*index)) {
            self.pins.detach(index)?;
            log::info!("detached from interface {index}, which is no longer configured");
        }
        for (slot, record) in known.iter().enumerate() {
            if record.index != 0 && !is_wanted(record.index) && served.iter().all(|s| s.slot as usize != slot) {
                records.set(slot as u32, InterfaceRecord::zeroed(), 0)?;
            }
        }
        self.attach_warnings = warnings;
        self.served = served;
        Ok(())
    }

    /// Takes programs off again that were attached in vain.
    fn detach_all(&self, indices: &[u32]) {
        for index in indices {
            if let Err(error) = self.pins.detach(*index) {
                log::error!("interface {index}: {error:#}");
            }
        }
    }
}

/// The interfaces that are to be filtered: those configured, or those with a default route.
async fn wanted_interfaces(config: &Config, netlink: &Netlink, around: &Surroundings) -> Result<Vec<Interface>> {
    let all = netlink.interfaces().await?;
    let names = || all.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>().join(", ");
    let mut wanted: Vec<Interface> = Vec::new();
    if config.interfaces.is_empty() {
        wanted.extend(all.iter().filter(|interface| around.default_interfaces.contains(&interface.index)).cloned());
        if wanted.is_empty() {
            bail!("no interface has a default route; name those to filter on with --iface (there are: {})", names());
        }
    }
    for name in &config.interfaces {
        let found = all.iter().find(|interface| interface.name == *name);
        let interface = found.ok_or_else(|| anyhow!("there is no interface {name}; there are: {}", names()))?;
        if !wanted.contains(interface) {
            wanted.push(interface.clone());
        }
    }
    if wanted.len() > MAX_INTERFACES {
        bail!("{} interfaces are too many; one filter serves {MAX_INTERFACES}", wanted.len());
    }
    if let Some(odd) = wanted.iter().find(|interface| interface.link.is_none()) {
        bail!(
            "{} has link type {}, which this filter cannot read; it reads Ethernet, loopback, PPP, tun and WireGuard",
            odd.name,
            odd.link_type
        );
    }
    Ok(wanted)
}

fn settings(config: &Config, link: Link, slot: u32) -> Settings {
    Settings {
        ports: config.port_set(),
        limits: config.meter_limits(),
        good: config.good_pace(),
        storm: config.storm_limits(),
        ipv6_prefix: config.ipv6_prefix,
        scope_all: config.block_scope == BlockScope::All,
        closed: config.policy == Policy::Closed,
        dry_run: config.dry_run,
        inspects: Inspects { ipv6: config.inspect.ipv6, tags: config.inspect.tags },
        link,
        slot,
        clock_from_map: false,
        capacity: config.table_capacity(),
    }
}

fn record(interface: &Interface, mode: Mode, dry_run: bool, since_ms: u64) -> InterfaceRecord {
    let mut name = [0; 16];
    let length = interface.name.len().min(name.len());
    name[..length].copy_from_slice(&interface.name.as_bytes()[..length]);
    InterfaceRecord {
        index: interface.index,
        mode: mode.number(),
        link: interface.link.unwrap_or(Link::Ethernet) as u8,
        dry_run: dry_run.into(),
        name_length: length as u8,
        name,
        since_ms,
    }
}

/// The entries of tables that are about to be replaced, if there are such tables and their ledger can be read.
fn carried_over(pins: &Pins, misfit: Option<&str>) -> Option<Vec<(List, Entry)>> {
    let misfit = misfit?;
    log::info!("the tables are replaced, their entries carried over: {misfit}");
    let entries = pins.open(names::LEDGER).and_then(Ledger::new).and_then(|ledger| ledger.entries());
    match entries {
        Ok(entries) => Some(entries),
        Err(error) => {
            log::warn!("the old tables cannot be read ({error:#}); the entries come from disk");
            None
        }
    }
}

/// Forwards what the kernel program has to say of itself to the log.
fn forward_diagnostics(object: &mut aya::Ebpf) -> Result<()> {
    let logger: EbpfLogger<&'static dyn Log> = EbpfLogger::init(object).context("the kernel's diagnostics")?;
    // SAFETY: the logger owns its map's descriptor for as long as it lives, and always returns that one.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(())
}

fn resolv_conf() -> String {
    fs::read_to_string(RESOLV_CONF).unwrap_or_default()
}

fn cpus() -> Result<usize> {
    nr_cpus().map_err(|(file, error)| anyhow!("{file}: {error}"))
}
