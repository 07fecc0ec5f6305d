//! Notification: a program that is started, and a server that is told, for what an operator wants
//! to know at once.
//!
//! There are only so many messages in a time. What is over that is counted, and the next message
//! says how many; if nothing more happens, one of its own does.

mod channel;
mod gate;
mod message;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Following, lock, note, start};
use crate::api::answers::NotifyStatus;
use crate::api::event_stream::Hub;
use crate::bans::event::Event;
use crate::config::NotifyConfig;
use crate::sys::clock;
use crate::sys::privileges;

use channel::Channel;
use gate::Gate;
use message::Message;

/// How many events wait for their turn.
const WAITING: usize = 256;

/// How notification is.
#[derive(Debug, Default)]
struct Report {
    sent: u64,
    failed: u64,
    suppressed: u64,
    /// What goes wrong at present, by channel.
    errors: BTreeMap<&'static str, String>,
}

/// Tells people. Ends when dropped, after the message that is on its way.
pub struct Notifier {
    config: NotifyConfig,
    report: Arc<Mutex<Report>>,
    untold: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    _following: Following,
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Notifier {
    /// Begins to tell what happens from now on, in the place of another one: what that had no time
    /// for is told as a number.
    pub fn start(config: NotifyConfig, hub: &Hub, before: Option<Self>) -> Self {
        let report = Arc::<Mutex<Report>>::default();
        let untold = before.map(|before| Arc::clone(&before.untold)).unwrap_or_default();
        let ended = Arc::<AtomicBool>::default();
        let worker = Worker {
            channels: Channel::all(&config),
            said: BTreeMap::new(),
            gate: Gate::new(config.limit),
            timeout: config.timeout.0,
            untold: Arc::clone(&untold),
            ended: Arc::clone(&ended),
            report: Arc::clone(&report),
        };
        let wanted: Vec<_> = config.events.iter().map(|occasion| occasion.name()).collect();
        let wants = move |event: &Event| {
            // That a feed has another list, or was trimmed, is nothing to wake somebody for.
            let is_routine =
                event.event == "feed" && matches!(event.kind.as_deref(), Some("synced" | "guard"));
            wanted.contains(&&*event.event) && !is_routine
        };
        let following =
            start("notify", WAITING, hub, Arc::clone(&untold), wants, |events| worker.run(events));
        Self { config, report, untold, ended, _following: following }
    }

    /// What it was started with.
    pub fn config(&self) -> &NotifyConfig {
        &self.config
    }

    /// How it is.
    pub fn status(&self) -> NotifyStatus {
        let report = lock(&self.report);
        let errors = report.errors.iter();
        NotifyStatus {
            sent: report.sent,
            failed: report.failed,
            suppressed: report.suppressed,
            errors: errors.map(|(channel, error)| ((*channel).to_owned(), error.clone())).collect(),
        }
    }

    /// What an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let report = lock(&self.report);
        report
            .errors
            .iter()
            .map(|(channel, error)| format!("notification by {channel} fails: {error}"))
            .collect()
    }
}

struct Worker {
    channels: Vec<Channel>,
    /// What was logged last of each channel.
    said: BTreeMap<&'static str, Option<String>>,
    gate: Gate,
    timeout: Duration,
    /// How many events nobody was told, because they did not fit or their time was over.
    untold: Arc<AtomicU64>,
    /// Whether somebody else tells from now on.
    ended: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
}

impl Worker {
    fn run(mut self, events: &Receiver<Arc<Event>>) {
        privileges::keep(privileges::NOTHING);
        loop {
            let event = match self.gate.until_due(clock::now()) {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => events.recv_timeout(wait),
            };
            if self.ended.load(Ordering::Relaxed) {
                let waiting = event.into_iter().chain(events.try_iter()).count() as u64;
                let suppressed = self.gate.take_suppressed().into_values().sum::<u64>();
                self.untold.fetch_add(waiting + suppressed, Ordering::Relaxed);
                return;
            }
            self.gate.suppress("others", self.untold.swap(0, Ordering::Relaxed));
            match event {
                Ok(event) if self.gate.admits(clock::now()) => {
                    let message = Message::of(&event, &self.gate.take_suppressed());
                    self.send(&message);
                }
                Ok(event) => {
                    self.gate.suppress(&event.event, 1);
                    lock(&self.report).suppressed += 1;
                }
                Err(RecvTimeoutError::Timeout) if self.gate.admits(clock::now()) => {
                    let message = Message::summary(&self.gate.take_suppressed());
                    self.send(&message);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn send(&mut self, message: &Message) {
        for channel in &self.channels {
            let name = channel.name();
            let result = channel.send(message, self.timeout);
            {
                let mut report = lock(&self.report);
                match &result {
                    Ok(()) => {
                        report.sent += 1;
                        report.errors.remove(name);
                    }
                    Err(error) => {
                        report.failed += 1;
                        report.errors.insert(name, error.clone());
                    }
                }
            }
            note(&format!("notify {name}"), self.said.entry(name).or_default(), result);
        }
    }
}
