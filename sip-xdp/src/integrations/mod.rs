//! Recipients of events besides the log and watchers: people ([`notify`]) and a CrowdSec local API
//! ([`crowdsec`]).
//!
//! Both subscribe to the daemon's event stream and return nothing to it. A task filters events into
//! a bounded queue; a separate thread does the slow work. Nothing here blocks the event loop.

pub mod crowdsec;
pub(crate) mod hep;
pub(crate) mod hep_export;
pub mod notify;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use crate::api::answers::{CrowdsecStatus, HepExportStatus, NotifyStatus};
use crate::api::event_stream::Hub;
use crate::bans::event::Event;
use crate::config::Config;
use crate::text::Quoted;

use crowdsec::Publisher;
use hep_export::Exporter;
use notify::Notifier;

/// All integrations.
#[derive(Default)]
pub struct Integrations {
    notifier: Option<Notifier>,
    publisher: Option<Publisher>,
    exporter: Option<Exporter>,
}

impl Integrations {
    /// Applies the configuration. Must be called inside the runtime.
    pub fn configure(&mut self, config: &Config, hub: &Hub) {
        if self.notifier.as_ref().map(Notifier::config) != Some(&config.notify) {
            let before = self.notifier.take();
            self.notifier =
                config.notify.is_on().then(|| Notifier::start(config.notify.clone(), hub, before));
        }
        if self.publisher.as_ref().map(Publisher::config) != Some(&config.crowdsec) {
            self.publisher =
                config.crowdsec.publish.then(|| Publisher::start(config.crowdsec.clone(), hub));
        }
        if self.exporter.as_ref().map(Exporter::config) != Some(&config.hep_export) {
            let server = config.hep_export.destination();
            self.exporter =
                server.map(|server| Exporter::start(config.hep_export.clone(), server, hub));
        }
    }

    /// The state of notification; null without it.
    pub fn notify_status(&self) -> Option<NotifyStatus> {
        self.notifier.as_ref().map(Notifier::status)
    }

    /// How publishing is; none without it.
    pub fn crowdsec_status(&self) -> Option<CrowdsecStatus> {
        self.publisher.as_ref().map(Publisher::status)
    }

    /// How sending HEP is; none without it.
    pub fn hep_export_status(&self) -> Option<HepExportStatus> {
        self.exporter.as_ref().map(Exporter::status)
    }

    /// Warnings for the operator.
    pub fn warnings(&self) -> Vec<String> {
        let notifier = self.notifier.iter().flat_map(Notifier::warnings);
        let publisher = self.publisher.as_ref().and_then(Publisher::warning);
        let exporter = self.exporter.as_ref().and_then(Exporter::warning);
        notifier.chain(publisher).chain(exporter).collect()
    }
}

/// Starts a thread for the wanted events, with a queue of `waiting`. Events without room are
/// counted. The thread ends some time after the returned handle is dropped.
fn start(
    name: &str,
    waiting: usize,
    hub: &Hub,
    lost: Arc<AtomicU64>,
    wants: impl Fn(&Event) -> bool + Send + 'static,
    work: impl FnOnce(&mpsc::Receiver<Arc<Event>>) + Send + 'static,
) -> Following {
    let (queue, events) = sync_channel(waiting);
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(move || work(&events)) {
        log::error!("{name}: nobody is told anything, for want of a thread: {error}");
    }
    follow(hub.subscribe(), queue, lost, wants)
}

/// Locks the report; its contents are valid even after a panic of another holder.
fn lock<T>(report: &Mutex<T>) -> MutexGuard<'_, T> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A task that filters events; it ends when this is dropped.
struct Following(JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Queues wanted events. Events without room are counted.
fn follow(
    mut events: Receiver<Arc<Event>>,
    queue: SyncSender<Arc<Event>>,
    lost: Arc<AtomicU64>,
    wants: impl Fn(&Event) -> bool + Send + 'static,
) -> Following {
    Following(tokio::spawn(async move {
        loop {
            let event = match events.recv().await {
                Ok(event) => event,
                Err(RecvError::Lagged(count)) => {
                    lost.fetch_add(count, Ordering::Relaxed);
                    continue;
                }
                Err(RecvError::Closed) => return,
            };
            if !wants(&event) {
                continue;
            }
            match queue.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
                Err(TrySendError::Disconnected(_)) => return,
            }
        }
    }))
}

/// Logs a failure when it is new or has changed, and a recovery; never the same message twice in a
/// row.
fn note(name: &str, last: &mut Option<String>, result: Result<(), String>) {
    match result {
        Ok(()) => {
            if last.take().is_some() {
                log::info!("{name} is well again");
            }
        }
        Err(reason) => {
            if last.as_ref() != Some(&reason) {
                log::warn!("{name} failed reason={}", Quoted(&reason));
            }
            *last = Some(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dataplane::tables::ledger::Tier;

    /// A ban, or another event with the same fields.
    pub(super) fn event(event: &'static str, address: &str) -> Event {
        Event {
            time: "2026-01-02T03:04:05Z".parse().unwrap(),
            tier: Some(Tier::Proven),
            owner: Some("auto".into()),
            ..Event::new(event)
        }
        .about(address.parse().unwrap())
        .kind("rejected")
        .reason("10 passwords")
    }

    #[tokio::test]
    async fn wanted_events_are_queued_and_those_without_room_counted() {
        let hub = Hub::default();
        let (queue, picked) = sync_channel(3);
        let lost = Arc::new(AtomicU64::new(0));
        let following =
            follow(hub.subscribe(), queue, Arc::clone(&lost), |event| event.event == "ban");
        for number in 0..5 {
            hub.publish(event("ban", &format!("192.0.2.{number}")));
            hub.publish(event("limit", "192.0.2.9"));
        }
        hub.publish(Event::new("other"));
        while lost.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let got: Vec<_> =
            picked.try_iter().filter_map(|event| Some(event.address?.to_string())).collect();
        assert_eq!(got, ["192.0.2.0", "192.0.2.1", "192.0.2.2"]);
        drop(following);
        while hub.is_watched() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(picked.recv().is_err(), "its thread ends");
    }

    #[test]
    fn a_failure_is_remembered_until_it_is_over() {
        let mut last = None;
        note("it", &mut last, Err("one".to_owned()));
        note("it", &mut last, Err("two".to_owned()));
        assert_eq!(last.as_deref(), Some("two"));
        note("it", &mut last, Ok(()));
        assert_eq!(last, None);
    }
}
