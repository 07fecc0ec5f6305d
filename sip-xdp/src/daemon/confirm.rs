//! `run --confirm`: enforce, but only for a while unless somebody says that they can still work.
//!
//! Who tries the filter over the network wants it to step back by itself if it shut them out. So whatever goes wrong, a
//! filter that nobody confirmed drops nothing in the end: the daemon tries until that is so, and also on its way out.

use std::time::Duration;

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Daemon;
use crate::config::Span;
use crate::sys::clock;

/// Whether somebody has to confirm, and has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// Nobody has to, or somebody has.
    #[default]
    Given,
    /// It enforces until a time on the filter's clock.
    Awaited {
        /// That time.
        until: u64,
        /// How long it had.
        within: Duration,
    },
    /// Nobody did: it is in a dry run.
    Missed {
        /// When the time was over, on the filter's clock.
        since: u64,
    },
}

impl Confirmation {
    /// One that is awaited from now on, if `within` says so.
    pub(super) fn new(within: Option<Duration>) -> Self {
        within.map_or(Self::Given, |within| Self::Awaited { until: clock::after(Some(within)), within })
    }

    /// Whether nothing may be dropped, whatever the configuration says.
    pub(super) fn is_missed(self) -> bool {
        matches!(self, Self::Missed { .. })
    }

    /// Whether its time has come at `now`.
    fn is_due(self, now: u64) -> bool {
        matches!(self, Self::Awaited { until, .. } if until <= now)
    }

    /// What to add to the `ready` line.
    pub(super) fn note(self) -> String {
        match self {
            Self::Given => String::new(),
            Self::Awaited { until, .. } => {
                format!("; goes back to a dry run at {} unless `sip-xdp confirm` comes", text(until))
            }
            Self::Missed { .. } => "; nobody confirmed in time, `sip-xdp confirm` enforces again".to_owned(),
        }
    }

    /// What `status` shows.
    pub(super) fn status(self) -> Value {
        match self {
            Self::Given => Value::Null,
            Self::Awaited { until, .. } => json!({ "pending": true, "until": clock::to_wall(until) }),
            Self::Missed { since } => json!({ "pending": false, "until": clock::to_wall(since) }),
        }
    }

    /// What `status` warns of.
    pub(super) fn warning(self) -> Option<String> {
        match self {
            Self::Given => None,
            Self::Awaited { until, .. } => {
                Some(format!("it goes back to a dry run at {}; run `sip-xdp confirm` if all is well", text(until)))
            }
            Self::Missed { since } => Some(format!(
                "it went back to a dry run at {}, since nobody confirmed; `sip-xdp confirm` enforces again",
                text(since)
            )),
        }
    }
}

/// A time for people.
fn text(time: u64) -> String {
    clock::to_wall(time).unwrap_or(Timestamp::MAX).strftime("%F %T UTC").to_string()
}

impl Daemon {
    /// Somebody can still work. After the time was over, the configuration is read and applied again, now without a dry
    /// run that it does not ask for.
    pub(super) async fn confirm(&mut self) -> Result<Value> {
        let before = self.confirmation;
        if before == Confirmation::Given {
            bail!("nothing waits to be confirmed; `sip-xdp run --confirm 60s` starts like that");
        }
        self.confirmation = Confirmation::Given;
        if before.is_missed()
            && let Err(error) = self.reload().await
        {
            self.confirmation = before;
            return Err(error.context("it stays in a dry run"));
        }
        let late = before.is_missed();
        log::warn!("confirmed late={late} dry_run={}", self.config.dry_run);
        Ok(json!({ "confirmed": true, "late": late, "applied": self.summary() }))
    }

    /// Goes back to a dry run if the time is over.
    pub(super) async fn check_confirmation(&mut self, now: u64) {
        if self.confirmation.is_due(now) {
            self.step_back().await;
        }
    }

    /// Goes back to a dry run, on the interfaces that are filtered now: what the configuration says of others may not be
    /// possible at the moment, and does not matter. A failure is said once; the next tick tries again.
    pub(super) async fn step_back(&mut self) {
        let Confirmation::Awaited { within, .. } = self.confirmation else {
            return;
        };
        let before = (self.config.dry_run, self.config.interfaces.clone());
        self.config.dry_run = true;
        let applied = self.apply_where_served().await;
        self.config.interfaces = before.1;
        match applied {
            Ok(()) => {
                self.confirmation = Confirmation::Missed { since: clock::now() };
                self.step_back_failed = false;
                log::warn!("unconfirmed after={} dry_run=true", Span(within));
            }
            Err(error) => {
                self.config.dry_run = before.0;
                if !std::mem::replace(&mut self.step_back_failed, true) {
                    log::error!(
                        "nobody confirmed, but the filter cannot go back to a dry run, and tries again: {error:#}"
                    );
                }
            }
        }
    }

    /// Applies the configuration to the interfaces that are filtered; those that are gone come back with it.
    async fn apply_where_served(&mut self) -> Result<()> {
        self.config.interfaces.clone_from(&self.wanted);
        if self.config.interfaces.is_empty() {
            return Ok(());
        }
        self.apply().await
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
    fn status_tells_the_three_apart() {
        assert_eq!(Confirmation::Given.status(), Value::Null);
        assert_eq!(Confirmation::Given.note(), "");
        let awaited = Confirmation::new(Some(Duration::from_secs(60)));
        assert_eq!(awaited.status()["pending"], true);
        assert!(awaited.note().contains("`sip-xdp confirm`"));
        let missed = Confirmation::Missed { since: 1 };
        assert_eq!(missed.status()["pending"], false);
        assert!(missed.warning().is_some_and(|warning| warning.contains("dry run")));
    }
}
