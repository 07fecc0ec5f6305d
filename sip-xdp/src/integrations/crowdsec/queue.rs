//! The queue of bans and unbans to publish, in order.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use crate::bans::event::Event;
use crate::net::network::Network;

/// Capacity; beyond it the oldest are dropped.
const MOST: usize = 1_024;

/// Bans per request.
const BATCH: usize = 50;

/// The duration of permanent bans there, where every decision expires.
const FOR_GOOD: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// A ban.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ban {
    /// The banned network.
    pub(super) network: Network,
    /// The kind of evidence.
    pub(super) kind: String,
    /// Reason.
    pub(super) reason: String,
    /// Start.
    pub(super) since: Timestamp,
    /// End; `None` for permanent.
    pub(super) until: Option<Timestamp>,
}

impl Ban {
    /// Time left; `None` below one second.
    pub(super) fn left(&self, now: Timestamp) -> Option<Duration> {
        let Some(until) = self.until else {
            return Some(FOR_GOOD);
        };
        let left = Duration::try_from(until.duration_since(now)).ok()?;
        (left.as_secs() > 0).then_some(left)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Order {
    Publish(Ban),
    Withdraw { network: Network, until: Option<Timestamp> },
}

impl Order {
    /// Whether the change is pointless because the ban has ended.
    fn is_over(&self, now: Timestamp) -> bool {
        match self {
            Self::Publish(ban) => ban.left(now).is_none(),
            Self::Withdraw { until, .. } => until.is_some_and(|until| until <= now),
        }
    }
}

/// The next request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Publish these bans.
    Publish(Vec<Ban>),
    /// Delete the decisions about a network.
    Withdraw(Network),
}

impl Next {
    /// Number of queued changes that it covers.
    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Publish(bans) => bans.len() as u64,
            Self::Withdraw(_) => 1,
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    orders: VecDeque<Order>,
    dropped: u64,
}

impl Queue {
    /// Queues the change of an event: a ban, or its end.
    pub(super) fn take(&mut self, event: &Event) {
        let Some(network) = event.address else {
            return;
        };
        // Earlier changes of this network are superseded.
        self.orders.retain(|order| !matches!(order, Order::Publish(ban) if ban.network == network));
        self.orders.push_back(match &*event.event {
            "unban" => Order::Withdraw { network, until: event.expires },
            _ => Order::Publish(Ban {
                network,
                kind: if event.event == "block" {
                    "manual".to_owned()
                } else {
                    event.kind.clone().unwrap_or_default()
                },
                reason: event.reason.clone().unwrap_or_default(),
                since: event.time,
                until: event.expires,
            }),
        });
        if self.orders.len() > MOST {
            self.orders.pop_front();
            self.dropped += 1;
        }
    }

    /// The next request. Changes of ended bans are dropped.
    pub(super) fn next(&mut self, now: Timestamp) -> Option<Next> {
        self.orders.retain(|order| !order.is_over(now));
        if let Order::Withdraw { network, .. } = self.orders.front()? {
            return Some(Next::Withdraw(*network));
        }
        let bans = self.orders.iter().take(BATCH).map_while(|order| match order {
            Order::Publish(ban) => Some(ban.clone()),
            Order::Withdraw { .. } => None,
        });
        Some(Next::Publish(bans.collect()))
    }

    /// Removes a request that has succeeded, or never will.
    pub(super) fn done(&mut self, next: &Next) {
        self.orders.drain(..self.orders.len().min(next.count() as usize));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.orders.len()
    }

    /// Number of dropped changes since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &'static str, address: &str, expires: Option<&str>) -> Event {
        Event {
            time: "2026-01-02T03:00:00Z".parse().unwrap(),
            expires: expires.map(|expires| expires.parse().unwrap()),
            ..crate::integrations::tests::event(name, address)
        }
    }

    fn now() -> Timestamp {
        "2026-01-02T03:04:00Z".parse().unwrap()
    }

    fn networks(next: Option<Next>) -> Vec<String> {
        match next {
            Some(Next::Publish(bans)) => bans.iter().map(|ban| ban.network.to_string()).collect(),
            Some(Next::Withdraw(network)) => vec![format!("-{network}")],
            None => Vec::new(),
        }
    }

    #[test]
    fn bans_go_together_and_ends_in_their_turn() {
        let mut queue = Queue::default();
        let later = Some("2026-01-02T04:00:00Z");
        for (name, address) in [
            ("ban", "192.0.2.1"),
            ("block", "192.0.2.2"),
            ("unban", "192.0.2.3"),
            ("ban", "192.0.2.3"),
        ] {
            queue.take(&event(name, address, later));
        }
        for expected in [&["192.0.2.1", "192.0.2.2"][..], &["-192.0.2.3"], &["192.0.2.3"], &[]] {
            let next = queue.next(now());
            if let Some(next) = &next {
                queue.done(next);
            }
            assert_eq!(networks(next), expected);
        }
        assert!(queue.is_empty());
    }

    #[test]
    fn superseded_and_ended_changes_are_dropped() {
        let mut queue = Queue::default();
        queue.take(&event("ban", "192.0.2.1", Some("2026-01-02T03:03:00Z")));
        queue.take(&event("unban", "192.0.2.2", Some("2026-01-02T03:03:00Z")));
        assert_eq!(queue.next(now()), None, "all of it has ended by itself");
        queue.take(&event("ban", "192.0.2.3", None));
        queue.take(&event("unban", "192.0.2.3", None));
        assert_eq!(
            networks(queue.next(now())),
            ["-192.0.2.3"],
            "an earlier one may have been told"
        );
    }

    #[test]
    fn a_ban_lasts_as_long_there_as_here() {
        let mut queue = Queue::default();
        queue.take(&event("ban", "192.0.2.1", Some("2026-01-02T03:10:00Z")));
        queue.take(&event("ban", "192.0.2.2", None));
        let Some(Next::Publish(bans)) = queue.next(now()) else { panic!("no bans") };
        assert_eq!(bans[0].left(now()), Some(Duration::from_secs(360)), "however late it is told");
        assert_eq!(bans[1].left(now()), Some(FOR_GOOD));
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut queue = Queue::default();
        (0..MOST + 3).for_each(|n| {
            queue.take(&event("ban", &format!("10.0.{}.{}", n / 256, n % 256), None))
        });
        assert_eq!((queue.len(), queue.take_dropped(), queue.take_dropped()), (MOST, 3, 0));
        let first = networks(queue.next(now()));
        assert_eq!((first.len(), first[0].as_str()), (BATCH, "10.0.0.3"));
    }
}
