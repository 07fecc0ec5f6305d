//! The task that resolves all names, each again when its TTL ends.
//!
//! It never writes lists: results go to the daemon as [`HostsUpdate`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::resolver::{Dns, Found, Kinds, Origin, resolve};
use crate::config::HostName;

/// Minimum interval between queries of a name, whatever the TTL.
const SHORTEST: Duration = Duration::from_secs(30);

/// Maximum interval between queries of a name.
const LONGEST: Duration = Duration::from_secs(3_600);

/// Maximum of the interval that doubles after failures.
const LONGEST_AFTER_FAILURES: Duration = Duration::from_secs(600);

/// Maximum number of names queried at the same time.
const AT_ONCE: usize = 8;

/// The DNS result of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostsUpdate {
    /// The name.
    pub name: HostName,
    /// Its addresses, with the record kinds that led to each.
    pub addresses: BTreeMap<IpAddr, Origin>,
    /// Record kinds without a response. Their last result is kept for a while.
    pub unanswered: Kinds,
    /// Why the result may be incomplete or empty.
    pub error: Option<String>,
}

/// The names to be followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// All of them.
    pub names: BTreeSet<HostName>,
    /// A change triggers queries of all names at once.
    pub round: u64,
}

/// Query schedule of a name.
#[derive(Debug)]
struct Turn {
    due: Instant,
    is_asked: bool,
    failures: u32,
    /// Messages already logged about it.
    logged: BTreeSet<String>,
}

/// Follows names until the other side is dropped. `dns` is called for each query, so that it uses
/// the current system configuration.
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
                    let logged = BTreeSet::new();
                    let new = || Turn { due: now, is_asked: false, failures: 0, logged };
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
                turn.failures = match found.error {
                    Some(_) => turn.failures.saturating_add(1),
                    None => 0,
                };
                turn.due = Instant::now() + pause(&found, turn.failures);
                for what in &found.left_out {
                    if turn.logged.insert(what.clone()) {
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
        Ok(dns) => resolve(&dns, &name).await,
        Err(error) => Found { error: Some(error), unanswered: Kinds::ALL, ..Found::default() },
    };
    (name, found)
}

/// The interval until the next query of a name.
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
