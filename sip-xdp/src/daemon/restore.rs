//! State restored after restarts and reboots besides the lists: reputations, offences, evidence.

use std::time::Duration;

use sip_xdp_common::abi::layout::{LADDERS, Owner};
use sip_xdp_common::ip_key::IpKey;

use super::{Daemon, clock};
use crate::bans::engine::FORMER;
use crate::bans::offences::{HOUR, Offence};
use crate::detect::{Acceptance, Spray};
use crate::lists::HostReputation;
use crate::net::network::{address_of, source_of};
use crate::store::{self, Change, Peer, State};

/// Name of the stored evidence.
const EVIDENCE: &str = "evidence";

/// Name of the stored end of the learning period.
const LEARNING: &str = "learning";

impl Daemon {
    /// Starts the learning period, if configured: this is a first start.
    pub(super) fn begin_to_learn(&mut self) {
        let learn = self.config.learn.0;
        if !learn.is_zero() {
            self.learning_until = clock::after(Some(learn));
            let value = to_wall_ms(self.learning_until).to_string().into_bytes();
            self.store.record(Change::Note { name: LEARNING.to_owned(), value });
        }
    }

    /// Restores the contents of a store that was locked at the start: entries that have not been
    /// added again meanwhile, and reputations. Evidence restarts empty.
    pub(super) fn recall_late(&mut self) {
        let Some(mut state) = self.store.take_late() else {
            return;
        };
        let now = clock::now();
        let mut count = 0;
        for (list, entry) in std::mem::take(&mut state.entries) {
            let known = self.lists.entry(list, &entry.network, entry.port, entry.owner).is_some();
            if known
                || entry.is_over(now)
                || !matches!(entry.owner, Owner::Manual | Owner::Auto | Owner::Tool)
            {
                continue;
            }
            match self.lists.put(list, entry) {
                Ok(()) => count += 1,
                Err(error) => log::error!("{error}"),
            }
        }
        state.notes.retain(|(name, _)| name == LEARNING);
        self.recall(state);
        if let Err(error) = self.judge_by_address() {
            log::error!("{error:#}");
        }
        self.store.record(Change::Entries(self.lists.all_entries()));
        log::info!(
            "{} is not locked any more; {count} entries were taken up",
            self.paths.store_file().display()
        );
    }

    /// Restores the state, before the first packet is judged.
    pub(super) fn recall(&mut self, state: State) {
        let now = clock::now();
        let State { accepted, peers, offences, notes, .. } = state;
        let acceptances = accepted.into_iter().map(|row| Acceptance {
            source: source_of(row.address),
            user: row.user,
            port: row.port,
            transport: row.transport,
            at: from_wall_ms(row.last_ms),
            // A registration never lasts longer than its original lifetime, whatever the clock.
            until: from_wall_ms(row.until_ms)
                .min(clock::after(Some(between(row.last_ms, row.until_ms)))),
        });
        let acceptances: Vec<_> = acceptances.collect();
        let peers: Vec<_> = peers
            .into_iter()
            .map(|peer| (source_of(peer.address), from_wall_ms(peer.until_ms).min(now + HOUR)))
            .collect();
        self.detector.restore(acceptances.iter().cloned(), peers.iter().copied());
        for acceptance in &acceptances {
            if acceptance.until > now {
                self.ban_engine().note_good(acceptance.source, acceptance.port, now);
            } else if acceptance.until.saturating_add(FORMER) > now {
                let until = acceptance.until.saturating_add(FORMER);
                let remember = |reputation: &mut HostReputation| {
                    reputation.former_until = reputation.former_until.max(until)
                };
                self.ban_engine().know(acceptance.source, now, remember);
            }
        }
        for (source, until) in peers.into_iter().filter(|(_, until)| *until > now) {
            self.ban_engine().know(source, now, |reputation| {
                reputation.peer_until = reputation.peer_until.max(until)
            });
        }
        let mut offenders = Vec::new();
        for offence in offences {
            let at = from_wall_ms(offence.last_ms);
            self.offences.insert(offence.network, Offence { count: offence.count, at });
            if offence.network.is_host() {
                self.detector.restore_offender(offence.network.first(), offence.count, at);
            }
            offenders.push((at, offence.network));
        }
        // The latest ones last: they stay, if there are more than have room.
        offenders.sort_unstable();
        let many = offenders.len().saturating_sub(LADDERS / 2);
        for (at, network) in offenders.into_iter().skip(many) {
            self.ban_engine().meter_offender(network, at, now);
        }
        let note =
            |wanted: &str| notes.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
        if let Some(value) = note(EVIDENCE)
            && let Err(error) = self.detector.recall(value, now, clock::wall_ms())
        {
            log::warn!("the evidence of before cannot be read, and begins anew: {error:#}");
        }
        let served: Vec<_> = self.detector.served_sources(now).collect();
        for (source, _, until) in served {
            self.ban_engine().know(source, now, |reputation| {
                reputation.good_until = reputation.good_until.max(until);
                reputation.former_until = reputation.former_until.max(until.saturating_add(FORMER));
            });
        }
        let until = note(LEARNING).and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        // Never longer than the configured period, whatever the clock.
        self.learning_until = until
            .map_or(0, |until| from_wall_ms(until).min(clock::after(Some(self.config.learn.0))));
    }

    /// Saves the evidence.
    pub(super) fn remember_evidence(&self) {
        match self.detector.evidence(clock::now(), clock::wall_ms()) {
            Ok(value) => self.store.record(Change::Note { name: EVIDENCE.to_owned(), value }),
            Err(error) => log::error!("the evidence cannot be kept: {error:#}"),
        }
    }
}

/// An acceptance as a store change.
pub(super) fn accepted(acceptance: &Acceptance) -> Change {
    let Acceptance { source, user, port, transport, at, until } = acceptance;
    let last_ms = to_wall_ms(*at);
    Change::Accepted(store::Accepted {
        address: address_of(*source),
        user: user.clone(),
        port: *port,
        transport: *transport,
        first_ms: last_ms,
        last_ms,
        until_ms: to_wall_ms(*until),
    })
}

/// A peer as a store change.
pub(super) fn peer(source: IpKey, until: u64) -> Change {
    Change::Peer(Peer { address: address_of(source), until_ms: to_wall_ms(until) })
}

/// A sprayed user as the store remembers it.
pub(super) fn sprayed(spray: &Spray) -> Change {
    let Spray { user, first, last, tier, tries, sources } = spray;
    Change::Sprayed(store::Sprayed {
        user: user.clone(),
        from_ms: to_wall_ms(*first),
        last_ms: to_wall_ms(*last),
        tier: *tier,
        tries: *tries,
        sources: *sources,
    })
}

/// A wall-clock time on the filter's clock; 0 for times before its start.
pub(super) fn from_wall_ms(ms: u64) -> u64 {
    let (wall, now) = (clock::wall_ms(), clock::now());
    let apart = Duration::from_millis(ms.abs_diff(wall)).as_nanos();
    let apart = u64::try_from(apart).unwrap_or(u64::MAX);
    if ms >= wall { now.saturating_add(apart) } else { now.saturating_sub(apart) }
}

/// The time between two wall-clock times; zero if the second is earlier.
fn between(from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(to_ms.saturating_sub(from_ms))
}

/// A time on the filter's clock as wall-clock time.
fn to_wall_ms(time: u64) -> u64 {
    let (wall, now) = (clock::wall_ms(), clock::now());
    let apart = time.abs_diff(now) / 1_000_000;
    if time >= now { wall.saturating_add(apart) } else { wall.saturating_sub(apart) }
}
