//! Publishing: our bans as decisions of a CrowdSec local API, and their end when somebody unbans
//! before the time.
//!
//! Only what the detector bans itself, and what operators block if that is wanted. What feeds list,
//! what other programs block, what a dry run decides, and bans of a single port stay here.

mod api;
mod queue;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Following, IntegrationEvent, lock, note, start};
use crate::api::event_stream::Hub;
use crate::config::CrowdsecConfig;
use crate::dataplane::counters;
use crate::dataplane::tables::ledger::Tier;
use crate::sys::privileges;

use api::{Client, Trouble};
use queue::{Next, Queue};

/// How many events wait until the thread has time for them.
const WAITING: usize = 1_024;

/// The pause after a first failure,
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// and the longest after many.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How publishing is.
#[derive(Debug, Default)]
struct Report {
    published: u64,
    withdrawn: u64,
    dropped: u64,
    waiting: usize,
    error: Option<String>,
}

/// Publishes. Ends when dropped, after the request that is on its way.
pub struct Publisher {
    config: CrowdsecConfig,
    report: Arc<Mutex<Report>>,
    _following: Following,
}

impl Publisher {
    /// Begins to publish what happens from now on.
    pub fn start(config: CrowdsecConfig, hub: &Hub) -> Self {
        let (report, lost) = (Arc::<Mutex<Report>>::default(), Arc::<AtomicU64>::default());
        let worker = Worker {
            client: Client::new(&config),
            queue: Queue::default(),
            said: None,
            failures: 0,
            not_before: Instant::now(),
            lost: Arc::clone(&lost),
            report: Arc::clone(&report),
        };
        let (unproven, manual) = (config.unproven, config.manual);
        let wants = move |integration_event: &IntegrationEvent| {
            is_ours(integration_event, unproven, manual)
        };
        let following = start("crowdsec", WAITING, hub, lost, wants, |events| worker.run(events));
        Self { config, report, _following: following }
    }

    /// What it was started with.
    pub fn config(&self) -> &CrowdsecConfig {
        &self.config
    }

    /// How it is.
    pub fn status(&self) -> Value {
        let report = lock(&self.report);
        let Report { published, withdrawn, dropped, waiting, error } = &*report;
        let CrowdsecConfig { url, login, .. } = &self.config;
        json!({
            "url": url, "login": login, "published": published, "withdrawn": withdrawn, "dropped": dropped,
            "waiting": waiting, "error": error,
        })
    }

    /// What an operator should know.
    pub fn warning(&self) -> Option<String> {
        let report = lock(&self.report);
        let error = report.error.as_ref()?;
        Some(format!("CrowdSec is not told of bans: {error}; {} wait", report.waiting))
    }
}

/// Whether an event is about a ban that is published, or about the end of one.
fn is_ours(integration_event: &IntegrationEvent, unproven: bool, manual: bool) -> bool {
    let is_published = match integration_event.event.as_str() {
        "ban" => unproven || integration_event.tier != Some(Tier::Unproven),
        "block" => manual && integration_event.owner.as_deref() == Some("manual"),
        // What ends at its time ends there at the same time.
        "unban" => {
            integration_event.kind.as_deref() == Some("command")
                && matches!(integration_event.owner.as_deref(), Some("auto" | "manual"))
        }
        _ => false,
    };
    is_published
        && integration_event.address.is_some()
        && integration_event.port.is_none()
        && !integration_event.dry_run
}

struct Worker {
    client: Client,
    queue: Queue,
    /// What was logged last.
    said: Option<String>,
    failures: u32,
    not_before: Instant,
    lost: Arc<AtomicU64>,
    report: Arc<Mutex<Report>>,
}

impl Worker {
    fn run(mut self, events: &Receiver<IntegrationEvent>) {
        privileges::keep(privileges::NOTHING);
        loop {
            let integration_event = match self.queue.is_empty() {
                true => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => {
                    events.recv_timeout(self.not_before.saturating_duration_since(Instant::now()))
                }
            };
            match integration_event {
                Ok(integration_event) => self.queue.take(integration_event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            events.try_iter().for_each(|integration_event| self.queue.take(integration_event));
            if Instant::now() >= self.not_before {
                self.work();
            }
            self.tell();
        }
    }

    /// Does what can be done now, until nothing is left or something fails.
    fn work(&mut self) {
        while let Some(next) = self.queue.next(counters::now()) {
            let result = match &next {
                Next::Publish(bans) => self.client.publish(bans).map(|()| (bans.len() as u64, 0)),
                Next::Withdraw(network) => self.client.withdraw(network).map(|count| (0, count)),
            };
            let result = match result {
                Ok((published, withdrawn)) => {
                    self.queue.done(&next);
                    self.failures = 0;
                    let mut report = lock(&self.report);
                    report.published += published;
                    report.withdrawn += withdrawn;
                    Ok(())
                }
                // It would be refused again.
                Err(Trouble::Refused(reason)) => {
                    self.queue.done(&next);
                    lock(&self.report).dropped += next.count();
                    Err(reason)
                }
                Err(Trouble::Later(reason)) => {
                    self.failures = self.failures.saturating_add(1);
                    self.not_before = Instant::now() + pause_after(self.failures);
                    Err(reason)
                }
            };
            lock(&self.report).error = result.as_ref().err().cloned();
            let is_over = Instant::now() < self.not_before;
            note("crowdsec", &mut self.said, result);
            self.tell();
            if is_over {
                return;
            }
        }
    }

    /// Says what waits and what was lost.
    fn tell(&mut self) {
        let mut report = lock(&self.report);
        report.waiting = self.queue.len();
        report.dropped += self.lost.swap(0, Ordering::Relaxed) + self.queue.take_dropped();
    }
}

/// How long to wait after so many failures in turn.
fn pause_after(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integration_event(event: &str, changes: &[(&str, Value)]) -> IntegrationEvent {
        let mut object = json!({
            "time": "2026-01-02T03:04:05Z", "event": event, "kind": "rejected", "address": "192.0.2.7", "port": null,
            "reason": "", "tier": "proven", "dry_run": false, "owner": "auto", "expires": null,
        });
        for (field, value) in changes {
            object[*field] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn only_what_is_ours_is_published() {
        for (event, changes, expected, with_all) in [
            ("ban", vec![], true, true),
            ("ban", vec![("tier", "unproven".into())], false, true),
            ("ban", vec![("dry_run", true.into())], false, false),
            ("ban", vec![("port", 5062.into())], false, false),
            ("block", vec![("owner", "manual".into())], false, true),
            ("block", vec![("owner", "tool".into())], false, false),
            ("block", vec![("owner", Value::Null), ("address", Value::Null)], false, false),
            ("unban", vec![("kind", "command".into())], true, true),
            ("unban", vec![("kind", "command".into()), ("owner", "tool".into())], false, false),
            ("unban", vec![("kind", "expired".into())], false, false),
            ("limit", vec![], false, false),
            ("feed", vec![("address", Value::Null)], false, false),
        ] {
            let integration_event = integration_event(event, &changes);
            assert_eq!(
                is_ours(&integration_event, false, false),
                expected,
                "{integration_event:?}"
            );
            assert_eq!(is_ours(&integration_event, true, true), with_all, "{integration_event:?}");
        }
    }

    #[test]
    fn pauses_grow() {
        assert_eq!(
            [1, 2, 3, 9, 10, 99].map(|failures| pause_after(failures).as_secs()),
            [1, 2, 4, 256, 300, 300]
        );
    }
}
