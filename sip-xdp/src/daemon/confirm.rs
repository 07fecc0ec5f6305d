//! `run --confirm`: a trial, which enforces only for a limited time unless an operator confirms.
//!
//! It protects operators who work over the network and may be locked out by the filter itself or by
//! the driver's native path. An unconfirmed filter is detached on every exit path of the daemon. If
//! the daemon is killed, the programs themselves drop nothing after the deadline
//! ([`Trial`](crate::dataplane::attach::trial::Trial)), and the next start detaches them.

use std::time::Duration;

use anyhow::{Result, bail};
use jiff::Timestamp;

use super::Daemon;
use crate::api::answers::{ConfirmStatus, Confirmed};
use crate::config::Span;
use crate::dataplane::attach::trial;
use crate::sys::clock;

/// State of the confirmation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// Not needed, or given.
    #[default]
    Given,
    /// Enforcing until a time on the filter's clock.
    Awaited {
        /// The deadline.
        until: u64,
        /// The length of the trial.
        within: Duration,
    },
    /// Not given in time: detached.
    Missed {
        /// The deadline that passed, on the filter's clock.
        since: u64,
    },
}

impl Confirmation {
    /// Starts a trial of length `within`, if given.
    pub(super) fn new(within: Option<Duration>) -> Self {
        within.map_or(Self::Given, |within| Self::Awaited {
            until: clock::after(Some(within)),
            within,
        })
    }

    /// The state of a daemon that starts at `now`. A trial of an earlier daemon, which died,
    /// continues to its deadline, and ends there: a restart is no confirmation.
    pub(super) fn at_start(earlier: Option<u64>, within: Option<Duration>, now: u64) -> Self {
        match earlier {
            Some(until) if until > now => {
                Self::Awaited { until, within: Duration::from_nanos(until - now) }
            }
            Some(since) => Self::Missed { since },
            None => Self::new(within),
        }
    }

    /// Whether attaching is forbidden, whatever the configuration.
    pub(super) fn is_missed(self) -> bool {
        matches!(self, Self::Missed { .. })
    }

    /// Whether programs are loaded for a trial.
    pub(super) fn is_awaited(self) -> bool {
        matches!(self, Self::Awaited { .. })
    }

    /// The deadline of the trial, for the programs.
    pub(super) fn deadline(self) -> Option<u64> {
        match self {
            Self::Given => None,
            Self::Awaited { until, .. } => Some(until),
            Self::Missed { since } => Some(since),
        }
    }

    /// Time left; `None` without a trial or after its deadline.
    pub(super) fn remaining(self) -> Option<Duration> {
        let Self::Awaited { until, .. } = self else { return None };
        until.checked_sub(clock::now()).map(Duration::from_nanos)
    }

    /// Whether the deadline has passed at `now`.
    fn is_due(self, now: u64) -> bool {
        matches!(self, Self::Awaited { until, .. } if until <= now)
    }

    /// An addition to the `ready` line.
    pub(super) fn note(self) -> String {
        match self {
            Self::Given => String::new(),
            Self::Awaited { until, .. } => {
                format!("; is detached at {} unless `sip-xdp confirm` comes", text(until))
            }
            Self::Missed { .. } => {
                "; nobody confirmed in time, `sip-xdp confirm` attaches again".to_owned()
            }
        }
    }

    /// Its fields in `status`.
    pub(super) fn status(self) -> Option<ConfirmStatus> {
        let shown = |at: u64, is_missed: bool| ConfirmStatus {
            pending: !is_missed,
            detached: is_missed,
            until: clock::to_wall(at),
        };
        match self {
            Self::Given => None,
            Self::Awaited { until, .. } => Some(shown(until, false)),
            Self::Missed { since } => Some(shown(since, true)),
        }
    }

    /// Its warning in `status`.
    pub(super) fn warning(self) -> Option<String> {
        match self {
            Self::Given => None,
            Self::Awaited { until, .. } => Some(format!(
                "it is detached at {}; run `sip-xdp confirm` if all is well",
                text(until)
            )),
            Self::Missed { since } => Some(format!(
                "it was detached at {}, since nobody confirmed; `sip-xdp confirm` attaches again",
                text(since)
            )),
        }
    }
}

/// A time in readable form.
fn text(time: u64) -> String {
    clock::to_wall(time).unwrap_or(Timestamp::MAX).strftime("%F %T UTC").to_string()
}

impl Daemon {
    /// Confirms. After the deadline this reloads the configuration and attaches again.
    pub(super) async fn confirm(&mut self) -> Result<Confirmed> {
        let before = self.confirmation;
        if before == Confirmation::Given {
            bail!("nothing waits to be confirmed; `sip-xdp run --confirm 60s` starts like that");
        }
        self.trial.set(None)?;
        self.confirmation = Confirmation::Given;
        if before.is_missed()
            && let Err(error) = self.reload().await
        {
            self.confirmation = before;
            self.detach_everything();
            self.trial.set(before.deadline())?;
            return Err(error.context("it stays detached"));
        }
        let late = before.is_missed();
        log::warn!("confirmed late={late} dry_run={}", self.config.dry_run);
        Ok(Confirmed { confirmed: true, late, applied: self.summary() })
    }

    /// Detaches after the deadline.
    pub(super) fn check_confirmation(&mut self, now: u64) {
        if self.confirmation.is_due(now) {
            self.step_back();
        }
    }

    /// Detaches an unconfirmed filter. A failure is logged once and retried at the next tick; after
    /// the deadline the programs drop nothing in any case.
    pub(super) fn step_back(&mut self) {
        let Confirmation::Awaited { within, .. } = self.confirmation else {
            return;
        };
        let is_done = self.detach_everything();
        // If this fails, the later deadline in the map still applies.
        let now = clock::now();
        let marked = self.trial.set(Some(now));
        if let Err(error) = marked.as_ref() {
            log::error!("{error:#}");
        }
        if is_done {
            self.confirmation = Confirmation::Missed { since: now };
            self.step_back_failed = false;
            log::warn!("unconfirmed after={} detached=true", Span(within));
        } else if !std::mem::replace(&mut self.step_back_failed, true) {
            log::error!(
                "nobody confirmed, but not all could be detached; it drops nothing, and tries again"
            );
        }
    }

    /// Detaches all interfaces. Returns whether all are detached.
    fn detach_everything(&mut self) -> bool {
        let is_done = trial::detach_all(&self.pins).is_empty();
        let linked = self.pins.linked();
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.served)
            .into_iter()
            .partition(|served| linked.contains(&served.index()));
        self.served = kept;
        for served in gone {
            let reason = format!("index={} reason=\"nobody confirmed\"", served.index());
            self.announce_interface(&served.name, "detached", &reason);
        }
        self.cached_programs.clear();
        self.unserved.clear();
        self.blind.clear();
        self.attach_warnings.clear();
        is_done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_is_due_when_its_time_is_over() {
        let awaited = Confirmation::new(Some(Duration::from_secs(60)));
        let Confirmation::Awaited { until, .. } = awaited else { panic!("{awaited:?}") };
        assert!(!awaited.is_due(until - 1) && awaited.is_due(until) && !awaited.is_missed());
        assert!(!Confirmation::new(None).is_due(u64::MAX));
        let missed = Confirmation::Missed { since: until };
        assert!(missed.is_missed() && !missed.is_due(u64::MAX));
    }

    #[test]
    fn starting_again_is_no_confirmation() {
        let minute = Some(Duration::from_secs(60));
        for within in [None, minute] {
            let goes_on = Confirmation::at_start(Some(101), within, 100);
            assert_eq!(
                goes_on,
                Confirmation::Awaited { until: 101, within: Duration::from_nanos(1) }
            );
            assert_eq!(
                Confirmation::at_start(Some(100), within, 100),
                Confirmation::Missed { since: 100 }
            );
        }
        assert_eq!(Confirmation::at_start(None, None, 100), Confirmation::Given);
        assert!(Confirmation::at_start(None, minute, 100).is_awaited());
    }

    #[test]
    fn status_tells_the_three_apart() {
        assert_eq!(Confirmation::Given.status(), None);
        assert_eq!(
            (Confirmation::Given.note(), Confirmation::Given.deadline()),
            (String::new(), None)
        );
        let awaited = Confirmation::new(Some(Duration::from_secs(60)));
        let shown = awaited.status().unwrap();
        assert_eq!((shown.pending, shown.detached), (true, false));
        assert!(awaited.note().contains("`sip-xdp confirm`"));
        let missed = Confirmation::Missed { since: 1 };
        let shown = missed.status().unwrap();
        assert_eq!((shown.pending, shown.detached), (false, true));
        assert!(missed.warning().is_some_and(|warning| warning.contains("detached")));
    }
}
