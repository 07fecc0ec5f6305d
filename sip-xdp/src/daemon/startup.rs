//! Startup, adoption of a running filter, and reload.
//!
//! The order matters: tables are complete before the first program that reads them is attached, and
//! new programs are attached before old ones are removed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::maps::{Map, MapData, RingBuf};
use log::Level;
use sip_xdp_common::abi::layout::{List, Owner};
use sip_xdp_common::abi::names;
use sip_xdp_common::packet::headers::Link;
use tokio::net::UnixListener;

use super::confirm::Confirmation;
use super::interfaces::Resolved;
use super::sockets::SocketDestroyer;
use super::{Daemon, Overrides};
use crate::api::answers::Applied;
use crate::api::control;
use crate::bans::event::Event;
use crate::config::{Config, Policy};
use crate::dataplane::attach::trial::{self, Trial};
use crate::dataplane::loader;
use crate::dataplane::netlink::Netlink;
use crate::dataplane::pins;
use crate::dataplane::pins::{Lock, Pins};
use crate::dataplane::probe::Platform;
use crate::dataplane::tables::drop_samples::DropSampleBudget;
use crate::dataplane::tables::ledger::Entry;
use crate::dataplane::tables::ledger::Ledger;
use crate::dataplane::tables::meters::Sources;
use crate::detect::Detector;
use crate::dns::Hosts;
use crate::feeds::engine::Engine;
use crate::lists::Lists;
use crate::lists::never_ban::NeverBan;
use crate::net::network::Network;
use crate::store::{Change, Found, Opened, State, Store};
use crate::sys::clock;
use crate::sys::paths::Paths;

/// Path of the resolver configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";

impl Daemon {
    /// Starts: adopts pinned objects, or begins with the stored state. A failed start leaves
    /// everything as it was.
    pub(super) async fn start(
        paths: Paths,
        overrides: Overrides,
    ) -> Result<(Self, RingBuf<MapData>, UnixListener)> {
        let pins = Pins::new(&paths.pin_dir);
        let (version, file) = (env!("CARGO_PKG_VERSION"), paths.config.display());
        let exists = if paths.config.exists() { "" } else { ", which does not exist: defaults" };
        log::info!("sip-xdp {version}, configuration {file}{exists}");
        let config = overrides.read(&paths).inspect_err(|_| end_lapsed_trial(&pins))?;
        if overrides.confirm.is_some() && config.dry_run {
            bail!(
                "--confirm has nothing to confirm in a dry run, which {} asks for; take dry_run \
                 out of it",
                paths.config.display()
            );
        }
        let platform = Platform::ask();
        platform.check()?;
        for finding in platform.limitations() {
            log::info!("{}; {}", finding.detail, finding.remedy);
        }
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
            // Protection continues without stored state; saving will report the error.
            log::error!("{} cannot be made: {error}", paths.state_dir.display());
        }
        let netlink = Netlink::connect()?;
        let surroundings = netlink.surroundings().await?;

        // Before any other failure: a trial whose daemon died may have cut off this host.
        let earlier = trial::pinned_deadline(&pins);
        let confirmation = Confirmation::at_start(earlier, overrides.confirm, clock::now());
        if confirmation.is_missed() {
            log::warn!(
                "unconfirmed detached=true reason=\"the daemon of the trial died before its end\""
            );
            trial::detach_all(&pins);
        }

        // The tables: pinned ones, or new ones beside them.
        pins::remove_directory(&pins.new_maps())?;
        let misfit = if pins.is_loaded() {
            loader::misfit(&pins.maps(), &config.table_capacity())
        } else {
            None
        };
        let adopts = pins.is_loaded() && misfit.is_none();
        let maps = if adopts { pins.maps() } else { pins.new_maps() };
        fs::create_dir_all(&maps).with_context(|| format!("{} cannot be made", maps.display()))?;
        // Pins missing maps; the rest of this object is not needed yet.
        drop(loader::make_maps(&config.program_settings(Link::Ethernet, 0), Some(&maps))?);
        let open = |name: &str| -> Result<Map> {
            Ok(Map::from_map_data(MapData::from_pin(maps.join(name))?)?)
        };
        let mut lists = Lists::open(open)?;

        let Opened { store, found } = Store::open(&paths.store_file());
        let first_start = !pins.is_loaded() && matches!(found, Found::Nothing);
        let mut state = match found {
            Found::Nothing => State::default(),
            Found::State(state) => state,
            // The store reports this warning while it applies.
            Found::Locked(message) => {
                log::error!("{message}");
                State::default()
            }
            Found::Corrupt(message) => {
                log::error!("{message}");
                warnings.push(message);
                State::default()
            }
        };
        if !adopts {
            let carried = carried_over(&pins, misfit.as_deref())
                .unwrap_or(std::mem::take(&mut state.entries));
            for list in List::ALL {
                let entries = carried
                    .iter()
                    .filter(|(of, _)| *of == list)
                    .map(|(_, entry)| entry.clone())
                    .collect();
                if let Err(stopped) = lists.put_all(list, entries) {
                    let text = format!(
                        "not all entries of the {} list were carried over: {stopped}",
                        list.name()
                    );
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

        let mut daemon = Self {
            detector: Detector::new(&config),
            never_ban: NeverBan::default(),
            feeds: Engine::new(paths.feeds_dir()),
            hosts,
            trusted_hosts: Default::default(),
            admitted_hosts: Default::default(),
            hosts_error: None,
            hosts_save_error: None,
            confirmation,
            trial: Trial::open(&maps)?,
            step_back_failed: false,
            wanted: Vec::new(),
            served: Vec::new(),
            cached_programs: HashMap::new(),
            unserved: BTreeMap::new(),
            blind: BTreeMap::new(),
            store,
            hub: Default::default(),
            drop_samples: DropSampleBudget::open(open)?,
            metrics: Default::default(),
            integrations: Default::default(),
            hep: Default::default(),
            sockets: SocketDestroyer::start(),
            streams: Default::default(),
            is_urgent: false,
            repeats: Default::default(),
            notes: Default::default(),
            nearly_full: Default::default(),
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
        let interfaces = daemon.resolve(&surroundings).await?;
        daemon.never_ban = NeverBan::new(&surroundings, &resolv_conf());
        if !daemon.config.dry_run {
            // They may stem from a dry run.
            daemon.lists.unmeter_all()?;
        }
        daemon.recall(state);
        if first_start {
            daemon.begin_to_learn();
        }
        daemon.prepare_lists()?;
        // Before anything is attached: an unreachable daemon must not leave a filter behind.
        let listener = control::listen(&daemon.paths.socket())?;
        if let Err(error) = daemon.put_in_force(&interfaces, &maps, adopts) {
            daemon.step_back();
            return Err(error);
        }
        // The kernel's tables are authoritative; from here on the store gets the changes.
        daemon.store.record(Change::Entries(daemon.lists.all_entries()));
        daemon.integrations.configure(&daemon.config, &daemon.hub);
        daemon.hep.input.configure(&daemon.config.hep);
        Ok((daemon, events, listener))
    }

    /// Attaches the programs to complete tables, and removes earlier tables.
    fn put_in_force(&mut self, interfaces: &Resolved, maps: &Path, adopts: bool) -> Result<()> {
        // Before the programs, so that they never enforce without a deadline.
        self.trial.set(self.confirmation.deadline())?;
        self.reconcile(interfaces, maps)?;
        if adopts {
            self.pins.remove_other_versions()?;
        } else {
            self.pins.promote_new_maps()?;
        }
        // A new trial starts its full time now.
        if let Confirmation::Awaited { within, .. } = self.confirmation {
            self.confirmation = Confirmation::new(Some(within));
            self.trial.set(self.confirmation.deadline())?;
        }
        Ok(())
    }

    /// Reloads and applies the configuration. On an error the current one stays.
    pub(super) async fn reload(&mut self) -> Result<Applied> {
        let config = self.overrides.read(&self.paths)?;
        if config.capacity != self.config.capacity {
            bail!(
                "capacity cannot change while it runs; restart the daemon (the filter goes on \
                 meanwhile)"
            );
        }
        let before = std::mem::replace(&mut self.config, config);
        if before.dry_run && !self.config.dry_run {
            // Nobody has felt what the dry run decided: enforcement begins with fresh evidence.
            self.forget_evidence(&Network::ALL)?;
        }
        if let Err(error) = self.apply().await {
            self.config = before;
            if let Err(again) = self.apply().await {
                log::error!("going back to the running configuration: {again:#}");
            }
            return Err(error);
        }
        self.detector.configure(&self.config);
        self.metrics.configure(&self.config.metrics);
        self.hosts.ask_again();
        self.integrations.configure(&self.config, &self.hub);
        self.hep.input.configure(&self.config.hep);
        let applied = self.summary();
        log::info!("reloaded {}: {applied}", self.paths.config.display());
        Ok(Applied { applied })
    }

    /// Applies the configuration to the loaded filter.
    pub(super) async fn apply(&mut self) -> Result<()> {
        let surroundings = self.netlink.surroundings().await?;
        let interfaces = self.resolve(&surroundings).await?;
        self.never_ban = NeverBan::new(&surroundings, &resolv_conf());
        self.prepare_lists()?;
        self.reconcile(&interfaces, &self.pins.maps())
    }

    /// Updates the list entries that derive from configuration and host.
    fn prepare_lists(&mut self) -> Result<()> {
        if !self.config.dry_run {
            for (_, entry) in self.lists.retain(|_, entry| entry.dry_run)? {
                let (network, owner) = (entry.network, entry.owner.name());
                self.announce(
                    Event::of("unban", &entry).kind("dry_run_over"),
                    Level::Info,
                    format_args!(
                        "unban {network} owner={owner} dry_run=true reason=\"the dry run is over\""
                    ),
                );
            }
        }
        // Under the policy `open` nothing needs to be admitted, and the tables stay smaller.
        let admitted = if self.config.policy == Policy::Closed {
            self.config.admit.networks.clone()
        } else {
            Vec::new()
        };
        for (list, networks) in
            [(List::Trust, self.config.trust.networks.clone()), (List::Admit, admitted)]
        {
            self.lists.retain(|of, entry| {
                of == list && entry.owner == Owner::Config && !networks.contains(&entry.network)
            })?;
            for network in networks {
                let entry = Entry {
                    owner: Owner::Config,
                    ..Entry::manual(
                        network,
                        clock::after(None),
                        &self.paths.config.display().to_string(),
                    )
                };
                if self
                    .lists
                    .owners(list, &network)
                    .iter()
                    .all(|known| known.owner != Owner::Config)
                {
                    self.lists.put(list, entry)?;
                }
            }
        }
        self.prepare_hosts();
        self.lists.expire(clock::now())?;
        self.prepare_feeds();
        self.judge_by_address()
    }

    /// See [`BanEngine::judge_by_address`](crate::bans::engine::BanEngine::judge_by_address).
    pub(super) fn judge_by_address(&mut self) -> Result<()> {
        self.ban_engine().judge_by_address()
    }

    /// Reads the host's addresses, gateways and resolvers again.
    pub(super) async fn refresh_surroundings(&mut self) -> Result<()> {
        let surroundings = self.netlink.surroundings().await?;
        self.never_ban = NeverBan::new(&surroundings, &resolv_conf());
        self.follow_default_routes(&surroundings).await?;
        self.judge_by_address()
    }
}

/// The entries of tables to be replaced, if they exist and their ledger is readable.
fn carried_over(pins: &Pins, misfit: Option<&str>) -> Option<Vec<(List, Entry)>> {
    let misfit = misfit?;
    log::info!("the tables are replaced, their entries carried over: {misfit}");
    let entries =
        pins.open(names::LEDGER).and_then(Ledger::new).and_then(|ledger| ledger.entries());
    match entries {
        Ok(entries) => Some(entries),
        Err(error) => {
            log::warn!("the old tables cannot be read ({error:#}); the entries come from disk");
            None
        }
    }
}

/// Detaches an expired trial of a dead daemon, although this start fails.
fn end_lapsed_trial(pins: &Pins) {
    let is_over = trial::pinned_deadline(pins).is_some_and(|deadline| deadline <= clock::now());
    // If the lock is taken, a running daemon handles it.
    if is_over && let Ok(_lock) = pins.lock() {
        trial::detach_all(pins);
    }
}

fn resolv_conf() -> String {
    fs::read_to_string(RESOLV_CONF).unwrap_or_default()
}
