//! Publication of bans as decisions of a CrowdSec local API, and their deletion on an early unban.
//!
//! Only bans by the detector, and entries of operators if configured. Not published: entries of
//! feeds and other programs, dry runs, and bans of single ports.

mod api;
mod queue;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Following, lock, note, start};
use crate::api::answers::CrowdsecStatus;
use crate::api::event_stream::Hub;
use crate::bans::event::Event;
use crate::config::CrowdsecConfig;
use crate::dataplane::counters;
use crate::dataplane::tables::ledger::Tier;
use crate::sys::privileges;

use api::{Client, Trouble};
use queue::{Next, Queue};

/// Queue length in events.
const WAITING: usize = 1_024;

/// Pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Maximum pause after repeated failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The state of publication.
#[derive(Debug, Default)]
struct Report {
    published: u64,
    withdrawn: u64,
    dropped: u64,
    waiting: usize,
    error: Option<String>,
}

/// The publisher. Ends when dropped, after the current request.
pub struct Publisher {
    config: CrowdsecConfig,
    report: Arc<Mutex<Report>>,
    _following: Following,
}

impl Publisher {
    /// Starts publishing events from now on.
    pub fn start(config: CrowdsecConfig, hub: &Hub) -> Self {
        let (report, lost) = (Arc::<Mutex<Report>>::default(), Arc::<AtomicU64>::default());
        let worker = Worker {
            client: Client::new(&config),
            queue: Queue::default(),
            last_logged: None,
            failures: 0,
            not_before: Instant::now(),
            lost: Arc::clone(&lost),
            report: Arc::clone(&report),
        };
        let (unproven, manual) = (config.unproven, config.manual);
        let wants = move |event: &Event| is_ours(event, unproven, manual);
        let following = start("crowdsec", WAITING, hub, lost, wants, |events| worker.run(events));
        Self { config, report, _following: following }
    }

    /// Its configuration.
    pub fn config(&self) -> &CrowdsecConfig {
        &self.config
    }

    /// Its state, for `status`.
    pub fn status(&self) -> CrowdsecStatus {
        let report = lock(&self.report);
        CrowdsecStatus {
            url: self.config.url.clone(),
            login: self.config.login.clone(),
            published: report.published,
            withdrawn: report.withdrawn,
            dropped: report.dropped,
            waiting: report.waiting,
            error: report.error.clone(),
        }
    }

    /// A warning for the operator.
    pub fn warning(&self) -> Option<String> {
        let report = lock(&self.report);
        let error = report.error.as_ref()?;
        Some(format!("CrowdSec is not told of bans: {error}; {} wait", report.waiting))
    }
}

/// Whether an event is the start or end of a published ban.
fn is_ours(event: &Event, unproven: bool, manual: bool) -> bool {
    let is_published = match &*event.event {
        "ban" => unproven || event.tier != Some(Tier::Unproven),
        "block" => manual && event.owner.as_deref() == Some("manual"),
        // A ban that expires also expires there.
        "unban" => {
            event.kind.as_deref() == Some("command")
                && matches!(event.owner.as_deref(), Some("auto" | "manual"))
        }
        _ => false,
    };
    is_published && event.address.is_some() && event.port.is_none() && !event.dry_run
}

struct Worker {
    client: Client,
    queue: Queue,
    /// Last logged message.
    last_logged: Option<String>,
    failures: u32,
    not_before: Instant,
    lost: Arc<AtomicU64>,
    report: Arc<Mutex<Report>>,
}

impl Worker {
    fn run(mut self, events: &Receiver<Arc<Event>>) {
        privileges::keep(privileges::NOTHING);
        loop {
            let event = match self.queue.is_empty() {
                true => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => {
                    events.recv_timeout(self.not_before.saturating_duration_since(Instant::now()))
                }
            };
            match event {
                Ok(event) => self.queue.take(&event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            events.try_iter().for_each(|event| self.queue.take(&event));
            if Instant::now() >= self.not_before {
                self.work();
            }
            self.update_report();
        }
    }

    /// Processes the queue until it is empty or a request fails.
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
                // A retry would be refused as well.
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
            note("crowdsec", &mut self.last_logged, result);
            self.update_report();
            if is_over {
                return;
            }
        }
    }

    /// Updates the numbers of waiting and dropped changes.
    fn update_report(&mut self) {
        let mut report = lock(&self.report);
        report.waiting = self.queue.len();
        report.dropped += self.lost.swap(0, Ordering::Relaxed) + self.queue.take_dropped();
    }
}

/// The pause after this number of consecutive failures.
fn pause_after(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integrations::tests::event;

    #[test]
    fn only_what_is_ours_is_published() {
        let of = |name| event(name, "192.0.2.7");
        let by = |name, owner: &'static str| Event { owner: Some(owner.into()), ..of(name) };
        for (event, expected, with_all) in [
            (of("ban"), true, true),
            (Event { tier: Some(Tier::Unproven), ..of("ban") }, false, true),
            (of("ban").dry_run(true), false, false),
            (of("ban").port(5062), false, false),
            (by("block", "manual"), false, true),
            (by("block", "tool"), false, false),
            (Event { owner: None, address: None, ..of("block") }, false, false),
            (of("unban").kind("command"), true, true),
            (by("unban", "tool").kind("command"), false, false),
            (of("unban").kind("expired"), false, false),
            (of("limit"), false, false),
            (Event { address: None, ..of("feed") }, false, false),
        ] {
            assert_eq!(is_ours(&event, false, false), expected, "{event:?}");
            assert_eq!(is_ours(&event, true, true), with_all, "{event:?}");
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
