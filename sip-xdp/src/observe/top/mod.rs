//! The full-screen view. [`app`] knows what is shown and what keys do, [`draw`] how it looks; both
//! are pure. Here is what they need of the world: the terminal, the clock, the pinned maps and the
//! daemon.

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

/// How long a source is blocked that is blocked from here, in seconds.
const BLOCK_TTL: u64 = 3_600;

/// Why an entry was made from here.
const REASON: &str = "from sip-xdp top";

/// How many keys may wait.
const KEYS: usize = 64;

/// What `top` is told when it is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often everything is read anew.
    pub interval: Duration,
    /// Without colours.
    pub plain: bool,
    /// The address from which the operator is logged in.
    pub operator: Option<IpAddr>,
}

/// Reads everything once: maps, and the daemon if there is one.
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
        // Without a daemon, or the right to talk to it, there are the maps.
        Err(error) => {
            let trouble = (!error.is::<control::NoDaemon>()).then(|| format!("{error:#}"));
            return FromDaemon { trouble, ..FromDaemon::default() };
        }
    };
    let latest = control::call(&socket, &Request::Recent).await.ok();
    FromDaemon { status: Some(status), trouble: None, latest: latest.unwrap_or_default() }
}

/// Shows it until somebody quits, or a signal ends it. The terminal is as it was afterwards, after
/// a panic too; from then on a panic of any thread or task ends the process.
pub async fn run(paths: Paths, options: Options) -> Result<()> {
    if !stdin().is_terminal() || !stdout().is_terminal() {
        bail!(
            "top needs a terminal for its input and its output; `sip-xdp top --json` prints once \
             what it would show, and \
             `sip-xdp stats --interval 1s` goes on"
        );
    }
    // Asked before the screen is taken: its errors are for the prompt.
    let first = read(&paths).await?;
    let mut signals = Signals::new()?;
    // Its hook for panics gives the terminal back before anything is said.
    let terminal = ratatui::try_init().context("the terminal cannot be used")?;
    end_after_a_panic();
    let shown = show(terminal, &paths, options, first, &mut signals).await;
    ratatui::restore();
    shown
}

/// Ends the process after a panic, in whatever thread or task: the hook that is there has given the
/// terminal back, and nobody must draw on it any more.
fn end_after_a_panic() {
    /// What a program ends with whose main thread panics.
    const PANICKED: i32 = 101;
    let restore = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // Otherwise the terminal does this when it is dropped, for which there is no time.
        let _ = execute!(stdout(), cursor::Show);
        restore(info);
        process::exit(PANICKED);
    }));
}

/// What ends it from outside.
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
                // Whatever is no key, a new size for one, is reason enough to draw again.
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => match app.key(key) {
                    Some(Effect::Quit) => return Ok(()),
                    Some(Effect::Order(order)) => {
                        let (request, answers) = (request(&order, options.operator), answers.clone());
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
            Some(answer) = answered.recv() => app.answered(answer.map_err(|error| format!("{error:#}"))),
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

/// Waits for what is being read; for ever, if nothing is.
async fn finished(reading: &mut Option<JoinHandle<Result<Overview>>>) -> Result<Overview> {
    match reading {
        Some(reading) => reading.await?,
        None => std::future::pending().await,
    }
}

/// What happens at the terminal. The thread ends with the process.
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

/// What the daemon is asked for.
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
