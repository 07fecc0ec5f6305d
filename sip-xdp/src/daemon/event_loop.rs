//! The event loop: kernel events, commands, link changes, DNS and feed results, timers, and every
//! exit path.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{Daemon, Overrides};
use crate::api::control::{self, Call};
use crate::dataplane::attach::trial::DetachOnPanic;
use crate::dataplane::netlink::LinkChanges;
use crate::dataplane::pins::Pins;
use crate::observe::metrics::Metrics;
use crate::sys::clock;
use crate::sys::paths::Paths;
use crate::sys::privileges;

/// Interval of expiry and of updates to the store.
const TICK: Duration = Duration::from_secs(1);

/// Pause after all events were read, so that more accumulate. The kernel wakes an idle reader by an
/// interrupt amid its packets (12 us on a virtual machine); the pause limits that to 300 per
/// second, and delays a limit event or sample by at most 3 ms. The kernel never waits for the
/// daemon.
const PAUSE: Duration = Duration::from_millis(3);

/// Runs the daemon until a signal or `unload` ends it. `ready` is called once when it enforces.
pub async fn run(paths: Paths, overrides: Overrides, ready: impl FnOnce(&str)) -> Result<()> {
    // Subscribed before the interfaces are read, so that no change is missed.
    let links = LinkChanges::listen()?;
    // Before anything is attached: from then on every exit path must go through `leave`.
    let signals = Signals::listen()?;
    // Before other threads exist, which inherit it.
    privileges::end_gaining();
    let _guard = DetachOnPanic(Pins::new(&paths.pin_dir));
    let (mut daemon, events, listener) = Daemon::start(paths, overrides).await?;
    let outcome = watch_over(&mut daemon, events, &listener, links, signals, ready).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    daemon.leave(outcome.is_ok()).await;
    outcome
}

/// Signals of interest.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// The event loop.
async fn watch_over(
    daemon: &mut Daemon,
    events: RingBuf<MapData>,
    listener: &UnixListener,
    mut links: LinkChanges,
    mut signals: Signals,
    ready: impl FnOnce(&str),
) -> Result<()> {
    // SAFETY: the ring owns its map's descriptor for its whole lifetime, and always returns the
    // same one.
    let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
    let mut events = events.context("the event ring cannot be watched")?;
    let (calls, mut called) = mpsc::channel::<Call>(16);
    daemon.metrics = Metrics::new(&daemon.paths, &calls, &daemon.hub);
    daemon.metrics.configure(&daemon.config.metrics);
    // Everything is attached.
    privileges::keep(privileges::FILTER);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks = 0_u64;
    let mut pause = pin!(sleep(Duration::ZERO));
    let mut answers = daemon.hosts.start();
    let mut feeds = daemon.feeds.updates();
    let mut hep = daemon.hep.input.messages();

    ready(&daemon.summary());
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    while !daemon.ended {
        tokio::select! {
            readable = events.readable_mut(), if pause.is_elapsed() => {
                let mut guard = readable?;
                if daemon.drain(guard.get_inner_mut()) {
                    guard.clear_ready();
                    // Over TCP the kernel does not count requests: until the ban, each
                    // millisecond is worth several guesses.
                    if !std::mem::take(&mut daemon.is_urgent) {
                        pause.as_mut().reset(Instant::now() + PAUSE);
                    }
                }
            }
            () = &mut pause, if !pause.is_elapsed() => {}
            Some(call) = called.recv() => {
                let is_lasting = call.request.is_lasting();
                let answer = daemon.command(call.request, call.is_root).await;
                daemon.answer(call.answer, answer, is_lasting);
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(control::serve(stream, calls.clone(), daemon.hub.clone()));
                }
                Err(error) => {
                    log::warn!("control socket: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            changed = links.changed() => {
                changed?;
                daemon.follow_interfaces().await;
                daemon.watch_links().await;
            }
            Some(update) = answers.recv() => daemon.host_answered(update),
            Some(update) = feeds.recv() => daemon.on_feed_update(update),
            Some(received) = hep.recv() => daemon.take_hep(received, &mut hep),
            () = confirmation_due(daemon.confirmation.remaining()) => {
                daemon.check_confirmation(clock::now());
            }
            _ = tick.tick() => {
                ticks += 1;
                daemon.tick(ticks).await;
            }
            _ = signals.hangup.recv() => match daemon.reload().await {
                Ok(_) => log::info!("configuration reloaded"),
                Err(error) => log::error!("the configuration was not reloaded, the running one \
                                           stays in force: {error:#}"),
            },
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
        }
    }
    Ok(())
}

/// Waits for the deadline of a trial; forever without one.
async fn confirmation_due(remaining: Option<Duration>) {
    match remaining {
        // A failed detachment is retried at the next tick.
        Some(remaining) => sleep(remaining.max(Duration::from_millis(1))).await,
        None => std::future::pending().await,
    }
}
