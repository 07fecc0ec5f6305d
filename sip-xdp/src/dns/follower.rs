//! The one task that asks DNS about all names, each again when its answer ends.
//!
//! It never writes a list: what it finds goes to the daemon, as [`HostsUpdate`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::resolver::{Dns, Found, Kinds, Origin, look_up};
use crate::config::HostName;

/// An answer is asked for again after this time at the earliest, whatever its time to live,
const SHORTEST: Duration = Duration::from_secs(30);

/// and after this time at the latest.
const LONGEST: Duration = Duration::from_secs(3_600);

/// After failures the pause doubles, up to this.
const LONGEST_AFTER_FAILURES: Duration = Duration::from_secs(600);

/// How many names are asked about at the same time.
const AT_ONCE: usize = 8;

/// What DNS says of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostsUpdate {
    /// The name.
    pub name: HostName,
    /// Its addresses, and which kinds of records each is from.
    pub addresses: BTreeMap<IpAddr, Origin>,
    /// The kinds of records that were not answered. What they said last holds for a while.
    pub unanswered: Kinds,
    /// Why these may not be all, or why there are none.
    pub error: Option<String>,
}

/// The names that are to be followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// All of them.
    pub names: BTreeSet<HostName>,
    /// When this changes, all are asked about at once.
    pub round: u64,
}

/// When a name's turn is.
#[derive(Debug)]
struct Turn {
    due: Instant,
    is_asked: bool,
    failures: u32,
    /// What was said of it already.
    said: BTreeSet<String>,
}

/// Follows names until nobody wants any or hears of them. `dns` is called for each question, so
/// that it can look at the system's configuration as it is then.
pub(super) async fn follow<D: Dns + Send + Sync + 'static>(
    dns: impl Fn() -> Result<D, String> + Send,
    mut wanted: watch::Receiver<Wanted>,
    updates: mpsc::Sender<HostsUpdate>,
) {
    let mut turns: BTreeMap<HostName, Turn> = BTreeMap::new();
    let mut round = 0;
    let mut asked: FuturesUnordered<BoxFuture<'static, (HostName, Found)>> =
        FuturesUnordered::new();
    wanted.mark_changed();
    loop {
        let now = Instant::now();
        for (name, turn) in turns.iter_mut().filter(|(_, turn)| !turn.is_asked && turn.due <= now) {
            if asked.len() == AT_ONCE {
                break;
            }
            turn.is_asked = true;
            asked.push(Box::pin(ask(dns(), name.clone())));
        }
        let next = turns.values().filter(|turn| !turn.is_asked).map(|turn| turn.due).min();
        let may_ask = asked.len() < AT_ONCE;
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = wanted.borrow_and_update();
                turns.retain(|name, _| wanted.names.contains(name));
                let all_again = round != wanted.round;
                round = wanted.round;
                for name in &wanted.names {
                    let new = || Turn { due: now, is_asked: false, failures: 0, said: BTreeSet::new() };
                    let turn = turns.entry(name.clone()).or_insert_with(new);
                    if all_again {
                        turn.due = now;
                    }
                }
            }
            Some((name, found)) = asked.next() => {
                let Some(turn) = turns.get_mut(&name) else {
                    continue;
                };
                turn.is_asked = false;
                turn.failures = if found.error.is_some() { turn.failures.saturating_add(1) } else { 0 };
                turn.due = Instant::now() + pause(&found, turn.failures);
                for what in &found.left_out {
                    if turn.said.insert(what.clone()) {
                        log::warn!("host {name}: {what}; that is left out");
                    }
                }
                let Found { addresses, unanswered, error, .. } = found;
                if updates.send(HostsUpdate { name, addresses, unanswered, error }).await.is_err() {
                    return;
                }
            }
            () = sleep_until(next.unwrap_or(now)), if next.is_some() && may_ask => {}
        }
    }
}

async fn ask<D: Dns + Send + Sync + 'static>(
    dns: Result<D, String>,
    name: HostName,
) -> (HostName, Found) {
    let found = match dns {
        Ok(dns) => look_up(&dns, &name).await,
        Err(error) => Found { error: Some(error), unanswered: Kinds::ALL, ..Found::default() },
    };
    (name, found)
}

/// How long to wait until a name is asked about again.
fn pause(found: &Found, failures: u32) -> Duration {
    if failures > 0 {
        let doubled = SHORTEST.saturating_mul(1 << (failures - 1).min(10));
        return doubled.min(LONGEST_AFTER_FAILURES);
    }
    found.ttl.unwrap_or(LONGEST).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_respect_the_time_to_live_and_grow_with_failures() {
        let found = |seconds| Found { ttl: Some(Duration::from_secs(seconds)), ..Found::default() };
        for (ttl, expected) in [(0, 30), (30, 30), (300, 300), (86_400, 3_600)] {
            assert_eq!(pause(&found(ttl), 0).as_secs(), expected, "ttl {ttl}");
        }
        for (failures, expected) in
            [(1, 30), (2, 60), (3, 120), (5, 480), (6, 600), (40, 600), (u32::MAX, 600)]
        {
            assert_eq!(pause(&found(5), failures).as_secs(), expected, "{failures} failures");
        }
    }
}
