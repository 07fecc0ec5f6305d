//! Notification by a started program and a webhook.
//!
//! The rate of messages is limited. Suppressed events are counted, and the next message has their
//! number; without one, a message of its own reports it.

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
pub use message::Notice;

/// Queue length in events.
const WAITING: usize = 256;

/// The state of notification.
#[derive(Debug, Default)]
struct Report {
    sent: u64,
    failed: u64,
    suppressed: u64,
    /// Current errors by channel.
    errors: BTreeMap<&'static str, String>,
}

/// The notifier. Ends when dropped, after the current message.
pub struct Notifier {
    config: NotifyConfig,
    report: Arc<Mutex<Report>>,
    unsent: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    _following: Following,
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Notifier {
    /// Starts notifying from now on, and replaces `before`: events in its queue are counted as
    /// suppressed.
    pub fn start(config: NotifyConfig, hub: &Hub, before: Option<Self>) -> Self {
        let report = Arc::<Mutex<Report>>::default();
        let unsent = before.map(|before| Arc::clone(&before.unsent)).unwrap_or_default();
        let ended = Arc::<AtomicBool>::default();
        let worker = Worker {
            channels: Channel::all(&config),
            last_logged: BTreeMap::new(),
            gate: Gate::new(config.limit),
            timeout: config.timeout.0,
            unsent: Arc::clone(&unsent),
            ended: Arc::clone(&ended),
            report: Arc::clone(&report),
        };
        let wanted: Vec<_> = config.events.iter().map(|occasion| occasion.name()).collect();
        let wants = move |event: &Event| {
            // Routine: an updated or trimmed feed is no news.
            let is_routine =
                event.event == "feed" && matches!(event.kind.as_deref(), Some("synced" | "guard"));
            wanted.contains(&&*event.event) && !is_routine
        };
        let following =
            start("notify", WAITING, hub, Arc::clone(&unsent), wants, |events| worker.run(events));
        Self { config, report, unsent, ended, _following: following }
    }

    /// Its configuration.
    pub fn config(&self) -> &NotifyConfig {
        &self.config
    }

    /// Its state, for `status`.
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

    /// Warnings for the operator.
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
    /// Last logged message by channel.
    last_logged: BTreeMap<&'static str, Option<String>>,
    gate: Gate,
    timeout: Duration,
    /// Number of events without a message, for lack of room or time.
    unsent: Arc<AtomicU64>,
    /// Whether a successor has taken over.
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
                self.unsent.fetch_add(waiting + suppressed, Ordering::Relaxed);
                return;
            }
            self.gate.suppress("others", self.unsent.swap(0, Ordering::Relaxed));
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
            note(&format!("notify {name}"), self.last_logged.entry(name).or_default(), result);
        }
    }
}
