//! The thread of a feed: fetches on schedule or on demand, and passes lists to the daemon.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::engine::{FeedState, NewList, Update};
use super::fetch::Fetcher;
use super::formats;
use super::guards::ProtectedSet;
use super::saved::{self, Saved};
use super::sync::{Candidate, Last, Trouble, sync};
use crate::config::{FeedConfig, FeedFormat};
use crate::sys::clock::{self, WallWatch};
use crate::sys::privileges;
use crate::text::Quoted;

/// Pause after the first failure, unless the fetch interval is shorter.
const FIRST_PAUSE: Duration = Duration::from_secs(30);

/// Maximum pause after repeated failures, unless the fetch interval or the server's `Retry-After`
/// is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);

/// A request to fetch now.
#[derive(Debug)]
pub(super) struct Order {
    /// The round that will be reported.
    pub(super) round: u64,
    /// Skip the size guards.
    pub(super) accept: bool,
}

/// The state of the thread.
pub(super) struct Follower {
    pub(super) config: FeedConfig,
    pub(super) generation: u64,
    pub(super) directory: PathBuf,
    pub(super) updates: mpsc::Sender<Update>,
    pub(super) protected_set: watch::Receiver<Arc<ProtectedSet>>,
    pub(super) last: Last,
    pub(super) state: FeedState,
    /// Last logged failure.
    pub(super) last_logged: Option<String>,
    /// Detector of wall-clock changes, since ages and ends are wall-clock times.
    pub(super) wall: WallWatch,
}

/// The feed was removed.
pub(super) struct Gone;

impl Follower {
    /// Follows the feed until it is removed.
    pub(super) fn run(mut self, orders: Receiver<Order>) {
        privileges::keep(privileges::NOTHING);
        let fetcher = Fetcher::new(&self.config);
        let mut due = Instant::now() + self.first_pause();
        loop {
            let pause = self.record_next(due);
            if self.send_update(None).is_err() {
                return;
            }
            let order = match orders.recv_timeout(pause) {
                Ok(order) => Some(order),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.follow_the_wall_clock();
            let accept = order.as_ref().is_some_and(|order| order.accept);
            let Ok(pause) = self.ask(&fetcher, accept) else {
                return;
            };
            if let Some(order) = order {
                self.state.round = order.round;
            }
            due = Instant::now() + jitter(pause);
            if self.expire().is_err() {
                return;
            }
        }
    }

    /// Corrects ages and ends after a change of the wall clock.
    fn follow_the_wall_clock(&mut self) {
        let Some(jump) = self.wall.jump() else {
            return;
        };
        for end in self.last.ends.values_mut() {
            *end = end.saturating_add_signed(jump / 1_000);
        }
        if let Some(at) = &mut self.state.confirmed_ms {
            *at = clock::moved(*at, jump);
            // The file's modification time is the time of confirmation. An error is reported at the
            // next write.
            let _ = saved::touch(&self.directory, &self.config.name, *at);
        }
    }

    /// The pause at the start: a list that was fetched recently is not fetched again.
    fn first_pause(&self) -> Duration {
        let is_elsewhere =
            self.config.file().is_none() && self.config.format != FeedFormat::Crowdsec;
        match self.state.confirmed_ms {
            Some(at) if is_elsewhere => self.config.every.0.saturating_sub(age(at)),
            _ => Duration::ZERO,
        }
    }

    /// Records the time of the next fetch. The returned pause may be shorter: until the list
    /// expires.
    fn record_next(&mut self, due: Instant) -> Duration {
        let pause = due.saturating_duration_since(Instant::now());
        self.state.next_ms = clock::wall_ms().saturating_add(pause.as_millis() as u64);
        pause
    }

    /// Synchronises once, and returns the pause until the next time.
    fn ask(&mut self, fetcher: &Fetcher, accept: bool) -> Result<Duration, Gone> {
        let protected_set = Arc::clone(&self.protected_set.borrow_and_update());
        let every = self.config.every.0;
        let trouble = match sync(&self.config, fetcher, &self.last, &protected_set, accept) {
            Ok(None) => {
                if let Err(error) =
                    saved::touch(&self.directory, &self.config.name, clock::wall_ms())
                {
                    log::debug!("feed {}: {error}", self.config.name);
                }
                self.confirm();
                return Ok(every);
            }
            Ok(Some(candidate)) => {
                let come_back = candidate.come_back;
                match self.put_into_force(candidate, protected_set)? {
                    Ok(()) => return Ok(come_back.map_or(every, |pause| pause.min(every))),
                    Err(reason) => Trouble::from(reason),
                }
            }
            Err(trouble) => trouble,
        };
        self.fail(&trouble);
        Ok(pause_after(self.state.failures, every).max(trouble.retry_after.unwrap_or_default()))
    }

    /// Has the daemon apply a list, and saves it. The inner error is the daemon's.
    fn put_into_force(
        &mut self,
        candidate: Candidate,
        protected_set: Arc<ProtectedSet>,
    ) -> Result<Result<(), String>, Gone> {
        let Candidate { listed, size, format, tally, validators, cursor, ends, decided, .. } =
            candidate;
        let counts = listed.counts();
        let detected = (self.config.format == FeedFormat::Auto).then(|| format.to_owned());
        let entries = size.entries;
        let saved =
            Saved { listed, validators, cursor, ends, entries, format: detected, confirmed_ms: 0 };
        // Written before the application, and renamed after it.
        let prepared = saved::prepare(&self.directory, &self.config, &saved);
        let Saved { listed, validators, cursor, ends, .. } = saved;
        let refresh = match self.hand_over(listed.into_networks(), false)? {
            Ok(refresh) => refresh,
            Err(reason) => return Ok(Err(reason)),
        };
        let kept = prepared.and_then(saved::Prepared::commit);
        self.state.disk_error = kept.err().map(|error| format!("{error:#}"));
        self.log_format(format, counts);
        self.last = Last { size, is_known: true, validators, cursor, ends, decided, protected_set };
        [self.state.ipv4, self.state.ipv6] = counts;
        self.state.tally = tally;
        self.state.last = Some(refresh);
        self.confirm();
        Ok(Ok(()))
    }

    /// Logs a newly detected format, and a newly empty list.
    fn log_format(&mut self, format: &str, counts: [usize; 2]) {
        let name = &self.config.name;
        if self.config.format == FeedFormat::Auto && self.state.format.as_deref() != Some(format) {
            let words = formats::words(format);
            log::info!("feed {name} is read as format={format} ({words})");
        }
        self.state.format = Some(format.to_owned());
        let is_empty = counts == [0, 0];
        if is_empty && !self.state.is_empty {
            log::warn!(
                "feed {name} is empty: its list has no entry that may be taken; it is asked on"
            );
        }
        self.state.is_empty = is_empty;
    }

    fn hand_over(
        &self,
        networks: Vec<crate::net::network::Network>,
        is_expired: bool,
    ) -> Result<Result<crate::lists::Refresh, String>, Gone> {
        let (applied, answer) = sync_channel(1);
        self.send_update(Some(NewList { networks, is_expired, applied }))?;
        answer.recv().map_err(|_| Gone)
    }

    fn send_update(&self, list: Option<NewList>) -> Result<(), Gone> {
        let (name, generation, state) =
            (self.config.name.clone(), self.generation, self.state.clone());
        self.updates.blocking_send(Update { name, generation, state, list }).map_err(|_| Gone)
    }

    /// Records success.
    fn confirm(&mut self) {
        if self.last_logged.take().is_some() {
            log::info!("feed {} is well again", self.config.name);
        }
        self.state.confirmed_ms = Some(clock::wall_ms());
        (self.state.error, self.state.is_refused, self.state.failures) = (None, false, 0);
        self.state.is_settled = true;
    }

    fn fail(&mut self, trouble: &Trouble) {
        let reason = match trouble.is_refused {
            true => format!(
                "{}; `sip-xdp feed sync {} --accept` takes it",
                trouble.reason, self.config.name
            ),
            false => trouble.reason.clone(),
        };
        if self.last_logged.as_ref() != Some(&reason) {
            let verb = if trouble.is_refused { "refused" } else { "failed" };
            log::warn!("feed {} {verb} reason={}", self.config.name, Quoted(&trouble.reason));
        }
        self.last_logged = Some(reason.clone());
        // Changes of the meantime are lost: fetch everything again.
        if self.config.format == FeedFormat::Crowdsec {
            self.last.cursor = None;
        }
        self.state.failures = self.state.failures.saturating_add(1);
        (self.state.error, self.state.is_refused) = (Some(reason), trouble.is_refused);
    }

    /// Removes a list without confirmation for too long.
    fn expire(&mut self) -> Result<(), Gone> {
        let ttl = self.config.ttl.0;
        let is_over = self.state.confirmed_ms.is_some_and(|at| age(at) >= ttl);
        if ttl.is_zero() || !is_over || self.last.size.entries == 0 {
            return Ok(());
        }
        if self.hand_over(Vec::new(), true)?.is_ok() {
            self.last = Last::default();
            (self.state.ipv4, self.state.ipv6) = (0, 0);
        }
        Ok(())
    }
}

/// The time since a time in milliseconds since 1970.
pub(super) fn age(at_ms: u64) -> Duration {
    Duration::from_millis(clock::wall_ms().saturating_sub(at_ms))
}

/// The pause after this number of consecutive failures.
fn pause_after(failures: u32, every: Duration) -> Duration {
    let first = FIRST_PAUSE.min(every);
    first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE.max(every))
}

/// Varies a pause by ten per cent, so that hosts do not fetch in the same moment.
fn jitter(pause: Duration) -> Duration {
    // The hasher's seed is random.
    let random = RandomState::new().build_hasher().finish() % 2_001;
    pause.mul_f64(0.9 + random as f64 / 10_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_failures() {
        let seconds = |failures, every| pause_after(failures, Duration::from_secs(every)).as_secs();
        assert_eq!(
            [1, 2, 3, 7, 8, 40].map(|failures| seconds(failures, 240)),
            [30, 60, 120, 1_920, 3_600, 3_600]
        );
        assert_eq!([1, 2, 3].map(|failures| seconds(failures, 5)), [5, 10, 20]);
        assert_eq!(seconds(40, 86_400), 86_400);
    }

    #[test]
    fn jitter_stays_within_ten_per_cent() {
        let pauses: Vec<_> = (0..200).map(|_| jitter(Duration::from_secs(100))).collect();
        assert!(
            pauses.iter().all(|pause| (90.0..=110.0).contains(&pause.as_secs_f64())),
            "{pauses:?}"
        );
        assert!(pauses.iter().collect::<std::collections::HashSet<_>>().len() > 10);
    }
}
