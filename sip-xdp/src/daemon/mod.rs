//! The daemon: reads kernel events, bans, expires entries, and executes commands. If it dies, the
//! filter continues without it, and the next daemon adopts it.
//!
//! Above 400 lines: the fields of one type and what owns them all.

mod bounds;
mod commands;
mod confirm;
mod event_loop;
mod events;
mod explain;
mod external_owners;
mod feeds;
mod hep;
mod hosts;
mod import;
mod interfaces;
mod packets;
mod restore;
mod segments;
mod sockets;
mod startup;
mod tables;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Result;
use aya::maps::{MapData, RingBuf};
use sip_xdp_common::abi::layout::{EventKind, KernelEvent};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::api::answers::DaemonStatus;
use crate::api::answers::Reply;
use crate::api::event_stream::Hub;
use crate::bans::notes::Notes;
use crate::bans::offences::{Offence, Repeats};
use crate::config::{Config, Policy};
use crate::dataplane::attach::tcx::EgressWay;
use crate::dataplane::attach::trial::Trial;
use crate::dataplane::attach::xdp::ModeChoice;
use crate::dataplane::netlink::Netlink;
use crate::dataplane::pins::{Lock, Pins};
use crate::dataplane::tables::drop_samples::DropSampleBudget;
use crate::dataplane::tables::meters::Sources;
use crate::detect::Detector;
use crate::dns::{ByName, Hosts};
use crate::feeds::engine::Engine;
use crate::integrations::Integrations;
use crate::lists::Lists;
use crate::lists::never_ban::NeverBan;
use crate::net::network::Network;
use crate::observe::metrics::Metrics;
use crate::sip::stream::Streams;
use crate::store::{Change, Store};
use crate::sys::clock::{self, WallWatch};
use crate::sys::paths::Paths;

use confirm::Confirmation;
pub use event_loop::run;
use interfaces::{Blindness, Loaded, Served};

/// How long a response waits for the disk.
const DISK_TIMEOUT: Duration = Duration::from_secs(1);

/// Ticks between two reads of the host's addresses and routes.
const SURROUNDINGS_TICKS: u64 = 30;

/// Ticks between two rounds of cleanup.
const MINUTE_TICKS: u64 = 60;

/// Ticks between two refreshes of the meters.
const HOUR_TICKS: u64 = 3_600;

/// Events read before other work gets its turn.
const EVENTS_AT_ONCE: usize = 1_024;

/// Command-line settings, which override the configuration file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config` was given: the file must exist.
    pub config_required: bool,
    /// `--iface`.
    pub interfaces: Vec<String>,
    /// `--mode`.
    pub mode: Option<ModeChoice>,
    /// `--dry-run`.
    pub dry_run: bool,
    /// `--confirm`: detach after this time without confirmation.
    pub confirm: Option<Duration>,
    /// For tests: native programs count as blind.
    pub blind: bool,
    /// Egress attachments to try; `None` for all. For tests on kernels that have all of them.
    pub egress_ways: Option<Vec<EgressWay>>,
}

impl Overrides {
    /// The effective configuration: command line over file over default.
    pub fn read(&self, paths: &Paths) -> Result<Config> {
        let mut config = Config::read(&paths.config, self.config_required)?;
        if !self.interfaces.is_empty() {
            config.interfaces.clone_from(&self.interfaces);
        }
        if let Some(mode) = self.mode {
            config.mode = mode;
        }
        config.dry_run |= self.dry_run;
        Ok(config)
    }
}

/// A running daemon.
struct Daemon {
    paths: Paths,
    overrides: Overrides,
    config: Config,
    pins: Pins,
    lock: Option<Lock>,
    netlink: Netlink,
    lists: Lists,
    sources: Sources,
    detector: Detector,
    never_ban: NeverBan,
    feeds: Engine,
    hosts: Hosts,
    trusted_hosts: ByName,
    admitted_hosts: ByName,
    hosts_error: Option<String>,
    hosts_save_error: Option<String>,
    confirmation: Confirmation,
    trial: Trial,
    step_back_failed: bool,
    /// Configured names of the interfaces to be filtered.
    wanted: Vec<String>,
    /// Filtered interfaces.
    served: Vec<Served>,
    /// Loaded programs of interfaces that do not exist now.
    cached_programs: HashMap<String, Loaded>,
    /// Existing interfaces that are not filtered, with the error.
    unserved: BTreeMap<String, String>,
    /// Interfaces whose native program sees, or saw, no packets.
    blind: BTreeMap<String, Blindness>,
    /// Warnings for `status`.
    warnings: Vec<String>,
    /// Warnings about attachments.
    attach_warnings: Vec<String>,
    store: Store,
    /// The event stream.
    hub: Hub,
    /// The budget of drop samples.
    drop_samples: DropSampleBudget,
    /// Metrics and web page.
    metrics: Metrics,
    /// Notifications and CrowdSec.
    integrations: Box<Integrations>,
    /// What SIP servers tell.
    hep: hep::Hep,
    /// Ends connections of banned sources.
    sockets: sockets::SocketDestroyer,
    /// SIP over TCP, as it is read on the wire.
    streams: Box<Streams>,
    /// A stranger's segment was among the events: the next ones do not wait.
    is_urgent: bool,
    /// End of the learning period, in which volume does not ban.
    learning_until: u64,
    repeats: Repeats,
    notes: Notes,
    /// Reported fill levels.
    nearly_full: tables::NearlyFull,
    /// Detector of wall-clock changes, since the store keeps wall-clock times.
    wall: WallWatch,
    /// Offences by network, which lengthen bans.
    offences: BTreeMap<Network, Offence>,
    /// Everything was unloaded: exit.
    ended: bool,
}

// Futures and results hold it by value, in several copies in debug builds: large members are on the
// heap.
const _: () = assert!(size_of::<Daemon>() <= 8 * 1024);

/// Passes changes of the lists to the store.
fn save(store: &Store, lists: &mut Lists) {
    if store.wants_entries() {
        store.record(Change::Entries(lists.all_entries()));
    }
    for change in lists.take_changes() {
        store.record(change.into());
    }
}

impl Daemon {
    /// The `ready` line: interfaces, modes, ports.
    fn summary(&self) -> String {
        let mut interfaces: Vec<_> =
            self.served.iter().map(|s| format!("{} ({})", s.name, s.mode)).collect();
        interfaces.extend(
            self.missing().into_iter().map(|name| format!("{name} (as soon as it is there)")),
        );
        let ports: Vec<_> = self.config.ports.iter().map(ToString::to_string).collect();
        if self.confirmation.is_missed() {
            return format!(
                "detached, nothing is filtered on {}{}",
                self.wanted.join(", "),
                self.confirmation.note()
            );
        }
        let verb = if self.config.dry_run { "dry run, nothing is dropped," } else { "enforcing" };
        let closed = if self.config.policy == Policy::Closed { ", policy closed" } else { "" };
        format!(
            "{verb} on {}, ports {}{closed}{}",
            interfaces.join(", "),
            ports.join(" "),
            self.confirmation.note()
        )
    }

    /// Reads pending events, up to a limit that keeps commands responsive. Returns whether none is
    /// left.
    fn drain(&mut self, events: &mut RingBuf<MapData>) -> bool {
        for _ in 0..EVENTS_AT_ONCE {
            let Some(item) = events.next() else {
                return true;
            };
            let Ok(event) = bytemuck::try_pod_read_unaligned::<KernelEvent>(&item) else {
                continue;
            };
            drop(item);
            match EventKind::from_number(event.kind) {
                Some(EventKind::Dropped) => self.show_packet(&event),
                Some(EventKind::Segment | EventKind::SegmentLeaving) => self.follow(&event),
                _ => self.ban_engine().observe(&event),
            }
        }
        false
    }

    async fn tick(&mut self, ticks: u64) {
        self.drop_samples.fill(self.hub.wants_packets());
        let now = clock::now();
        self.follow_the_wall_clock();
        self.check_confirmation(now);
        // The kernel sends no notification when somebody else detaches a program.
        if self.served.len() < self.wanted.len() || ticks.is_multiple_of(SURROUNDINGS_TICKS) {
            self.follow_interfaces().await;
        }
        self.watch_links().await;
        self.recall_late();
        self.expire_hosts(now);
        self.ban_engine().tick();
        if let Err(error) = self.lists.tidy(now) {
            log::error!(
                "known hosts that are over stay in the tables, where they no longer count: {error}"
            );
        }
        // At the first tick as well, after any time without a daemon.
        if ticks % HOUR_TICKS == 1
            && let Err(error) = self.sources.refresh(now)
        {
            log::error!(
                "meters of sources that are silent for more than a day may be taken for full: \
                 {error:#}"
            );
        }
        if ticks.is_multiple_of(MINUTE_TICKS) {
            self.detector.tidy(now);
            self.streams.tidy(now);
            self.ban_engine().forgive();
            self.remember_evidence();
        }
        if ticks.is_multiple_of(SURROUNDINGS_TICKS)
            && let Err(error) = self.refresh_surroundings().await
        {
            log::warn!("the host's addresses and routes: {error:#}");
        }
        if ticks.is_multiple_of(SURROUNDINGS_TICKS) {
            self.protect_from_feeds();
        }
        self.watch_tables();
        self.save();
        self.save_hosts(false);
    }

    /// Entries expire by the filter's clock, but the store keeps wall-clock times. When the wall
    /// clock was set, the store gets all entries again, so that bans neither vanish with a reboot
    /// nor last longer.
    fn follow_the_wall_clock(&mut self) {
        let Some(jump) = self.wall.jump() else {
            return;
        };
        let (way, by) = if jump > 0 { ("forward", jump) } else { ("back", -jump) };
        let by = humantime::format_duration(Duration::from_millis(by.unsigned_abs()));
        log::warn!("the wall clock was set {way} by {by}; bans end when they would have ended");
        self.store.record(Change::Entries(self.lists.all_entries()));
        self.remember_evidence();
    }

    /// Passes changes of the lists to the store.
    fn save(&mut self) {
        save(&self.store, &mut self.lists);
    }

    /// Sends a response; for lasting changes, only once they would survive a power cut. A slow disk
    /// does not block the daemon, and delays the response only briefly; `status` reports disk
    /// errors.
    fn answer(
        &mut self,
        to: oneshot::Sender<Result<Reply>>,
        answer: Result<Reply>,
        is_lasting: bool,
    ) {
        if !is_lasting {
            // The client may have disconnected.
            let _ = to.send(answer);
            return;
        }
        self.save();
        let written = self.store.hurry();
        tokio::task::spawn_blocking(move || {
            written.wait(DISK_TIMEOUT);
            let _ = to.send(answer);
        });
    }

    /// Passes changes of the lists to the store, and waits until they are on disk.
    fn save_now(&mut self) {
        self.save();
        if let Err(error) = self.store.flush() {
            log::error!("{error:#}");
        }
    }

    /// Exits: leaves the filter attached, unless it is an unconfirmed trial, and releases the
    /// instance. An orderly exit ends a trial; after an error the next daemon stays detached until
    /// confirmation.
    async fn leave(mut self, is_orderly: bool) {
        let (ended, dry_run) = (self.ended, self.config.dry_run);
        if !ended {
            self.step_back();
        }
        let is_detached = self.confirmation.is_missed();
        if !ended
            && is_detached
            && is_orderly
            && let Err(error) = self.trial.set(None)
        {
            log::error!("{error:#}");
        }
        self.remember_evidence();
        self.save_now();
        self.save_hosts(true);
        let _ = std::fs::remove_file(self.paths.socket());
        drop(self.lock.take());
        // Time for pending responses.
        sleep(Duration::from_millis(50)).await;
        match (ended, is_detached) {
            (true, _) => {}
            (false, true) => log::info!("stopped; nothing is filtered, since nobody confirmed"),
            (false, false) => {
                let on = if dry_run { "in a dry run" } else { "enforcing" };
                log::info!("stopped; the filter goes on {on}, `sip-xdp unload` takes it off");
            }
        }
    }

    /// The daemon's part of `status`.
    fn status(&self) -> DaemonStatus {
        let mut warnings = self.warnings.clone();
        warnings.extend(self.config.warnings());
        warnings.extend(self.attach_warnings.iter().cloned());
        warnings.extend(self.interface_warnings());
        warnings.extend(self.blind_warnings());
        warnings.extend(self.store.trouble());
        if self.detector.registrar_is_failing(clock::now()) {
            warnings.push(
                "the registrar rejects sources that it accepted within a day; rejections ban nobody"
                    .to_owned(),
            );
        }
        if !self.detector.sees_responses() {
            warnings.push(
                "hardly any of our responses is seen, so that volume limits but bans nobody and \
                 nobody is known good; filter \
                 on the interface by which they leave, too"
                    .to_owned(),
            );
        }
        warnings.extend(self.hosts_warnings());
        warnings.extend(self.tables_warnings());
        warnings.extend(self.feeds_warnings());
        warnings.extend(self.integrations.warnings());
        warnings.extend(self.hep_warnings());
        warnings.extend(self.sockets.warning());
        warnings.extend(self.confirmation.warning());
        warnings.extend(self.metrics.warnings());
        DaemonStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: self.paths.config.clone(),
            policy: self.config.policy,
            ports: self.config.ports.clone(),
            watched_sources: self.detector.watched(),
            served_sources: self.detector.served(clock::now()),
            learning: clock::now() < self.learning_until,
            registrar_failing: self.detector.registrar_is_failing(clock::now()),
            sees_responses: self.detector.sees_responses(),
            shared_nonces: self.detector.nonces_are_shared(clock::now()),
            tables: self.tables_status(),
            hosts: self.hosts_status(),
            feeds: self.feed_list(),
            notify: self.integrations.notify_status(),
            crowdsec: self.integrations.crowdsec_status(),
            hep: self.hep.input.status(),
            tcp: self.tcp_status(),
            hep_export: self.integrations.hep_export_status(),
            sockets: self.sockets.status(),
            confirm: self.confirmation.status(),
            missing: self.missing().into_iter().map(str::to_owned).collect(),
            blind: self.blind_status(),
            metrics: self.metrics.status(),
            warnings,
        }
    }
}
