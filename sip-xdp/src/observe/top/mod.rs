//! The terminal view. [`app`] has state and keys, [`draw`] the layout; both are pure. This file has
//! the terminal, the clock, the pinned maps and the daemon.

mod app;
mod draw;
mod rates;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal as _, stdin, stdout};
use std::net::IpAddr;
use std::panic;
use std::process;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::crossterm::{cursor, execute};
use serde::de::IgnoredAny;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::api::control::{self, ListName, Request};
use crate::dataplane::netlink::Netlink;
use crate::dataplane::pins::Pins;
use crate::observe::snapshot::{FromDaemon, Overview};
use crate::sys::paths::Paths;

use app::{App, Effect, Order};

/// Duration of blocks made here, in seconds.
const BLOCK_TTL: u64 = 3_600;

/// Reason of entries made here.
const REASON: &str = "from sip-xdp top";

/// Capacity of the key queue.
const KEYS: usize = 64;

/// Options of `top`.
#[derive(Debug, Clone)]
pub struct Options {
    /// Interval between readings.
    pub interval: Duration,
    /// Whether colours are off.
    pub plain: bool,
    /// The operator's own address, by the login session.
    pub operator: Option<IpAddr>,
}

/// Reads maps and daemon once.
pub async fn read(paths: &Paths) -> Result<Overview> {
    let pins = Pins::new(&paths.pin_dir);
    pins.check_access()?;
    let daemon = ask(paths).await;
    let present = Netlink::connect()?.interfaces().await?;
    tokio::task::spawn_blocking(move || Overview::read(&pins, &present, daemon)).await?
}

async fn ask(paths: &Paths) -> FromDaemon {
    let socket = paths.socket();
    let status = match control::call(&socket, &Request::Status).await {
        Ok(status) => status,
        // Without a daemon, or access to it, the maps remain.
        Err(error) => {
            let trouble = (!error.is::<control::NoDaemon>()).then(|| format!("{error:#}"));
            return FromDaemon { trouble, ..FromDaemon::default() };
        }
    };
    let latest = control::call(&socket, &Request::Recent).await.ok();
    FromDaemon { status: Some(status), trouble: None, latest: latest.unwrap_or_default() }
}

/// Runs until a key or signal ends it. The terminal is restored, even after a panic; from then on a
/// panic in any thread or task ends the process.
pub async fn run(paths: Paths, options: Options) -> Result<()> {
    if !stdin().is_terminal() || !stdout().is_terminal() {
        bail!(
            "top needs a terminal for its input and its output; `sip-xdp top --json` prints once \
             what it would show, and \
             `sip-xdp stats --interval 1s` goes on"
        );
    }
    // Before the screen is taken: errors belong on the prompt.
    let first = read(&paths).await?;
    let mut signals = Signals::new()?;
    // Its panic hook restores the terminal before the message.
    let terminal = ratatui::try_init().context("the terminal cannot be used")?;
    end_after_a_panic();
    let shown = show(terminal, &paths, options, first, &mut signals).await;
    ratatui::restore();
    shown
}

/// Ends the process after a panic in any thread or task: the earlier hook has restored the
/// terminal, and nothing may draw on it again.
fn end_after_a_panic() {
    /// Exit code of a panic in the main thread.
    const PANICKED: i32 = 101;
    let restore = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // The terminal does this on drop, which a process exit skips.
        let _ = execute!(stdout(), cursor::Show);
        restore(info);
        process::exit(PANICKED);
    }));
}

/// Signals that end it.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

async fn show(
    mut terminal: ratatui::DefaultTerminal,
    paths: &Paths,
    options: Options,
    first: Overview,
    signals: &mut Signals,
) -> Result<()> {
    let mut app = App::new(options.plain);
    app.update(first);
    let mut events = events();
    let (answers, mut answered) = mpsc::channel::<Result<String>>(4);
    let mut tick = interval(options.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reading: Option<JoinHandle<Result<Overview>>> = None;
    loop {
        terminal.draw(|frame| draw::draw(frame, &app))?;
        tokio::select! {
            event = events.recv() => match event {
                // Other terminal events, such as a resize, just cause a redraw.
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => match app.key(key) {
                    Some(Effect::Quit) => return Ok(()),
                    Some(Effect::Order(order)) => {
                        let request = request(&order, options.operator);
                        let answers = answers.clone();
                        let socket = paths.socket();
                        tokio::spawn(async move {
                            let done = control::call::<IgnoredAny>(&socket, &request)
                                .await
                                .map(|_| order.done());
                            let _ = answers.send(done).await;
                        });
                    }
                    None => {}
                },
                Some(_) => {}
                None => bail!("the terminal is gone"),
            },
            Some(answer) = answered.recv() => {
                app.answered(answer.map_err(|error| format!("{error:#}")));
            }
            overview = finished(&mut reading) => {
                reading = None;
                match overview {
                    Ok(overview) => app.update(overview),
                    Err(error) => app.answered(Err(format!("{error:#}"))),
                }
            }
            _ = tick.tick() => if reading.is_none() && !app.is_paused() {
                let paths = paths.clone();
                reading = Some(tokio::spawn(async move { read(&paths).await }));
            },
            () = signals.any() => return Ok(()),
        }
    }
}

/// Waits for the current reading; forever without one.
async fn finished(reading: &mut Option<JoinHandle<Result<Overview>>>) -> Result<Overview> {
    match reading {
        Some(reading) => reading.await?,
        None => std::future::pending().await,
    }
}

/// Terminal events. The thread ends with the process.
fn events() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(KEYS);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The request of a command.
fn request(order: &Order, operator: Option<IpAddr>) -> Request {
    let add = |list, network, ttl| Request::Add {
        list,
        network,
        ttl,
        reason: REASON.to_owned(),
        force: false,
        operator,
        by: None,
    };
    match order {
        Order::Block(network) => add(ListName::Block, *network, Some(BLOCK_TTL)),
        Order::Trust(network) => add(ListName::Trust, *network, None),
        Order::Unblock(network) => {
            Request::Delete { list: ListName::Block, network: *network, by: None }
        }
    }
}
