//! The daemon: reads events from the kernel, bans, expires, answers commands. It can die at any moment; the filter
//! goes on without it, and the next one adopts it.

mod bringup;
mod commands;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use serde_json::{Value, json};
use sip_xdp_common::layout::{LimitEvent, List, Owner};
use sip_xdp_common::meter::Bucket;
use sip_xdp_common::source::Source;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::attach::{Mode, ModeChoice};
use crate::clock;
use crate::config::Config;
use crate::control::{self, Call};
use crate::detect::{Detector, Finding};
use crate::exempt::Exempt;
use crate::ledger::{Entry, Tier};
use crate::lists::Lists;
use crate::netlink::Netlink;
use crate::network::{Network, address_of};
use crate::paths::Paths;
use crate::pins::{Lock, Pins};
use crate::sources::Sources;
use crate::store::Store;

/// How often expired entries are taken out and the store is told of changes.
const TICK: Duration = Duration::from_secs(1);

/// How many ticks lie between two looks at the host's addresses and routes.
const SURROUNDINGS_TICKS: u64 = 30;

/// Limit events older than this were meant for a daemon that has died, in nanoseconds.
const STALE: u64 = 5_000_000_000;

/// The same note about the same source is written once in this time, in nanoseconds.
const NOTE_INTERVAL: u64 = 60_000_000_000;

/// How many sources the notes remember.
const MAX_NOTES: usize = 4_096;

/// What the command line asks of the daemon, over the configuration file.
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

/// An interface that is being filtered.
#[derive(Debug, Clone)]
struct Served {
    index: u32,
    name: String,
    mode: Mode,
    slot: u32,
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
    exempt: Exempt,
    served: Vec<Served>,
    /// What an operator should know, said in `status`.
    warnings: Vec<String>,
    /// The same about how the programs are attached.
    attach_warnings: Vec<String>,
    store: Store,
    /// Volume does not ban before this time.
    learning_until: u64,
    notes: std::collections::HashMap<(Source, &'static str), u64>,
    /// Everything was unloaded: end.
    ended: bool,
}

/// Runs the daemon until it is told to stop, by signal or by `unload`. `ready` is called once when it enforces.
pub async fn run(paths: Paths, overrides: Overrides, ready: impl FnOnce(&str)) -> Result<()> {
    let (mut daemon, events, listener) = Daemon::start(paths, overrides).await?;
    // SAFETY: the ring owns its map's descriptor for as long as it lives, and always returns that one.
    let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
    let mut events = events.context("the event ring cannot be watched")?;
    let (calls, mut called) = mpsc::channel::<Call>(16);
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks = 0_u64;

    ready(&daemon.summary());
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    while !daemon.ended {
        tokio::select! {
            readable = events.readable_mut() => {
                let mut guard = readable?;
                daemon.drain(guard.get_inner_mut());
                guard.clear_ready();
            }
            Some(call) = called.recv() => {
                let answer = daemon.command(call.request).await;
                let _ = call.answer.send(answer);
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(control::serve(stream, calls.clone()));
                }
                Err(error) => {
                    log::warn!("control socket: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            _ = tick.tick() => {
                ticks += 1;
                daemon.tick(ticks).await;
            }
            _ = hangup.recv() => match daemon.reload().await {
                Ok(_) => log::info!("configuration reloaded"),
                Err(error) => log::error!("the configuration was not reloaded, the running one stays in force: {error:#}"),
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let ended = daemon.ended;
    daemon.stop();
    // Answers that are still on their way.
    tokio::time::sleep(Duration::from_millis(50)).await;
    if !ended {
        log::info!("stopped; the filter goes on enforcing, `sip-xdp unload` takes it off");
    }
    Ok(())
}

impl Daemon {
    /// The `ready` line: where, how, and for which ports.
    fn summary(&self) -> String {
        let interfaces: Vec<_> = self.served.iter().map(|s| format!("{} ({})", s.name, s.mode)).collect();
        let ports: Vec<_> = self.config.ports.iter().map(ToString::to_string).collect();
        let verb = if self.config.dry_run { "dry run, nothing is dropped," } else { "enforcing" };
        format!("{verb} on {}, ports {}", interfaces.join(", "), ports.join(" "))
    }

    /// Reads all events that are there.
    fn drain(&mut self, events: &mut RingBuf<MapData>) {
        while let Some(item) = events.next() {
            let Ok(event) = bytemuck::try_pod_read_unaligned::<LimitEvent>(&item) else {
                continue;
            };
            drop(item);
            self.observe(&event);
        }
    }

    fn observe(&mut self, event: &LimitEvent) {
        let now = clock::now();
        if now.saturating_sub(event.time) > STALE {
            return;
        }
        if event.bucket == Bucket::Storm as u8 {
            // Who sent this very packet does not matter: its address is as likely as not forged.
            if self.note_due(Source::v4(0), "storm", now) {
                log::warn!("storm new_sources={} dry_run={}", event.seen, self.config.dry_run);
            }
            return;
        }
        if self.note_due(event.source, "limit", now) {
            let kind = Bucket::from_number(event.bucket).map_or("?", |bucket| bucket.name());
            log::info!("limit {} kind={kind} dry_run={}", address_of(event.source), self.config.dry_run);
        }
        if let Some(finding) = self.detector.observe(event) {
            self.ban(&finding, now);
        }
    }

    /// Bans the source of a finding, unless a rule that no evidence overrides speaks against it.
    fn ban(&mut self, finding: &Finding, now: u64) {
        let host = Network::around(finding.source, 128);
        let around = Network::neighbourhood(finding.source, self.config.ipv6_prefix);
        // A network with somebody in it who must stay reachable is judged host by host.
        let by_host = finding.by_address || self.must_stay(&around, now).is_some();
        let network = if by_host { host } else { around };
        if let Some(what) = self.must_stay(&network, now) {
            if self.note_due(finding.source, "exempt", now) {
                log::warn!("not banned {network} although limited: it {what}; {}", finding.reason);
            }
            return;
        }
        if now < self.learning_until {
            if self.note_due(finding.source, "learn", now) {
                log::info!("not banned {network} while learning; {}", finding.reason);
            }
            return;
        }
        let entry = Entry {
            owner: Owner::Auto,
            tier: Some(Tier::Unproven),
            dry_run: self.config.dry_run,
            ..Entry::manual(network, clock::after(Some(self.config.bans.unproven.0)), &finding.reason)
        };
        match self.lists.put(List::Block, entry.clone()) {
            Ok(()) => {
                self.store.record_ban(finding.kind.name(), &entry);
                self.save();
                log::warn!(
                    "ban {network} kind={} tier=unproven for={} dry_run={} reason=\"{}\"",
                    finding.kind.name(),
                    self.config.bans.unproven,
                    self.config.dry_run,
                    finding.reason
                );
            }
            Err(error) => {
                if self.note_due(finding.source, "full", now) {
                    log::error!("not banned {network}, its excess is dropped all the same: {error}");
                }
            }
        }
    }

    /// Why nothing in `network` may be banned by evidence, if so.
    fn must_stay(&self, network: &Network, now: u64) -> Option<String> {
        if let Some((host, what)) = self.exempt.inside(network) {
            return Some(if network.is_host() { format!("is {what}") } else { format!("contains {what} ({host})") });
        }
        if self.lists.trusts(network, now) {
            return Some("is trusted".to_owned());
        }
        self.lists.trusted_within(network, now).first().map(|inside| format!("contains {inside}, which is trusted"))
    }

    /// Whether a note of this kind about this source may be written again.
    fn note_due(&mut self, source: Source, kind: &'static str, now: u64) -> bool {
        if self.notes.len() >= MAX_NOTES {
            self.notes.retain(|_, at| now.saturating_sub(*at) < NOTE_INTERVAL);
        }
        if self.notes.len() >= MAX_NOTES {
            return false;
        }
        let at = self.notes.entry((source, kind)).or_default();
        let due = *at == 0 || now.saturating_sub(*at) >= NOTE_INTERVAL;
        if due {
            *at = now;
        }
        due
    }

    async fn tick(&mut self, ticks: u64) {
        let now = clock::now();
        match self.lists.expire(now) {
            Ok(expired) => {
                for (list, entry) in expired {
                    self.store.record_end(list, &entry, "expired");
                    let what = if list == List::Block { "unban" } else { "untrust" };
                    log::info!(
                        "{what} {} owner={} dry_run={} reason=\"expired\"",
                        entry.network,
                        entry.owner.name(),
                        entry.dry_run
                    );
                }
            }
            Err(error) => log::error!("expired entries stay in the tables, where they no longer match: {error}"),
        }
        self.detector.tidy(now);
        if ticks.is_multiple_of(SURROUNDINGS_TICKS)
            && let Err(error) = self.look_around().await
        {
            log::warn!("the host's addresses and routes: {error:#}");
        }
        self.save();
    }

    /// Has the store write what has changed in the lists.
    fn save(&mut self) {
        if self.store.wants_entries() {
            self.store.record(self.lists.all_entries());
        }
        for change in self.lists.take_changes() {
            self.store.record(change);
        }
    }

    /// The same, and waits until it is on disk.
    fn save_now(&mut self) {
        self.save();
        if let Err(error) = self.store.flush() {
            log::error!("{error:#}");
        }
    }

    /// Leaves the filter as it is and lets go of the instance.
    fn stop(mut self) {
        self.save_now();
        let _ = std::fs::remove_file(self.paths.socket());
        drop(self.lock.take());
    }

    /// What `status` shows of the daemon.
    fn status(&self) -> Value {
        let mut warnings = self.warnings.clone();
        warnings.extend(self.attach_warnings.iter().cloned());
        warnings.extend(self.store.trouble());
        json!({
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "config": PathBuf::from(&self.paths.config),
            "watched_sources": self.detector.watched(),
            "learning": clock::now() < self.learning_until,
            "warnings": warnings,
        })
    }
}
