//! The timeline of a replay: its event sink, and the packets of every source.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use jiff::Timestamp;
use log::Level;
use schemars::JsonSchema;
use sip_xdp_common::abi::layout::{List, Owner};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::verdict::{Reason, Verdict};

use crate::bans::engine::EventSink;
use crate::bans::event::Event;
use crate::bans::offences::OffenceRecord;
use crate::dataplane::tables::ledger::{Entry, Tier};
use crate::detect::{Acceptance, Spray};
use crate::lists::Lists;
use crate::net::network::Network;
use crate::sip::transport::Transport;
use crate::sys::clock::{self, Moment};

/// Maximum number of recorded events.
const MAX_EVENTS: usize = 100_000;

/// Maximum number of sources with their own counts.
const MAX_SOURCES: usize = 1 << 20;

/// Packets by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, serde::Serialize)]
pub struct Fate {
    /// Passed.
    pub passed: u64,
    /// Dropped.
    pub dropped: u64,
}

impl Fate {
    fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Drop => self.dropped += 1,
            Verdict::Pass => self.passed += 1,
        }
    }
}

impl std::ops::AddAssign for Fate {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.dropped += other.dropped;
    }
}

/// A ban.
#[derive(Debug, Clone)]
pub(super) struct Banned {
    pub(super) at: Timestamp,
    pub(super) network: Network,
    pub(super) port: Option<u16>,
    pub(super) kind: String,
    pub(super) tier: Option<Tier>,
    pub(super) reason: String,
    /// Duration in seconds.
    pub(super) length: u64,
    /// Packets before it.
    pub(super) before: Fate,
    /// Packets after it, until the next ban.
    pub(super) after: Fate,
}

/// A source that was over a limit, or a suspect.
#[derive(Debug, Clone)]
pub(super) struct Noted {
    pub(super) at: Timestamp,
    /// The limit, or the reason.
    pub(super) what: String,
}

/// The packets of a source.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) all: Fate,
    /// Packets over a limit.
    pub(super) limited: u64,
    /// Index of its last ban, and the port that it covers.
    ban: Option<(u32, Option<u16>)>,
}

impl Tally {
    /// Whether it, one of its ports, or a network around it was banned.
    pub(super) fn was_banned(&self) -> bool {
        self.ban.is_some()
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    pub(super) events: Vec<Event>,
    /// Number of further events.
    pub(super) more_events: u64,
    pub(super) bans: Vec<Banned>,
    pub(super) limited: BTreeMap<IpKey, Noted>,
    pub(super) suspected: BTreeMap<IpKey, Noted>,
    /// Accepted users by address.
    pub(super) good: HashMap<IpKey, BTreeSet<String>>,
    /// Acceptances of each user by port: transport, first and last time and end in milliseconds
    /// since 1970.
    pub(super) accepted: HashMap<(IpKey, u16, String), (Transport, [u64; 3])>,
    /// Sources whose calls were processed without credentials: first and last time.
    pub(super) served: HashMap<IpKey, (u64, u64)>,
    /// Users whose passwords unknown sources tried, by the time of the first try on the filter's
    /// clock: the latest figures, and the times of the first and the last try in milliseconds since
    /// 1970.
    pub(super) sprayed: BTreeMap<(String, u64), (Spray, [u64; 2])>,
    pub(super) peers: HashSet<IpKey>,
    pub(super) tallies: HashMap<IpKey, Tally>,
    /// Sources beyond the maximum, in total.
    pub(super) others: Fate,
    /// Packets lost to limits and bans by source and port.
    pub(super) lost: HashMap<(IpKey, u16), u64>,
    /// Last ban by network, for sources that appear later.
    banned: HashMap<Network, u32>,
    /// Prefix length under which IPv6 sources are judged together.
    ipv6_prefix: u8,
}

/// Prefix lengths of banned IPv6 networks besides the configured one: hosts and sites.
const LENGTHS: [u8; 2] = [128, 56];

impl Timeline {
    pub(super) fn new(ipv6_prefix: u8) -> Self {
        Self { ipv6_prefix, ..Self::default() }
    }

    /// Counts a packet.
    pub(super) fn count(&mut self, source: IpKey, port: Option<u16>, reason: Reason) {
        let verdict = reason.verdict();
        if verdict == Verdict::Drop
            && let Some(port) = port
            && (self.lost.len() < MAX_SOURCES || self.lost.contains_key(&(source, port)))
        {
            *self.lost.entry((source, port)).or_default() += 1;
        }
        if self.tallies.len() >= MAX_SOURCES && !self.tallies.contains_key(&source) {
            self.others.count(verdict);
            return;
        }
        let (banned, prefix) = (&self.banned, self.ipv6_prefix);
        let tally = self.tallies.entry(source).or_insert_with(|| {
            let known = |bits: u8| banned.get(&Network::around(source, bits));
            let ban = if banned.is_empty() {
                None
            } else if source.is_v4() {
                known(128)
            } else {
                LENGTHS.into_iter().chain([prefix]).find_map(known)
            };
            Tally { ban: ban.map(|number| (*number, None)), ..Tally::default() }
        });
        tally.all.count(verdict);
        tally.limited += u64::from(reason == Reason::Limited);
        if let Some((number, only)) = tally.ban
            && (only.is_none() || only == port)
            && let Some(ban) = self.bans.get_mut(number as usize)
        {
            ban.after.count(verdict);
        }
    }

    /// Packets that all sources of a network have sent so far.
    fn sent_by(&self, network: &Network) -> Fate {
        let mut sum = Fate::default();
        if network.is_host() {
            sum += self.tallies.get(&network.first()).map(|tally| tally.all).unwrap_or_default();
            return sum;
        }
        let inside = |source: &IpKey| network.contains(&Network::around(*source, 128));
        self.tallies
            .iter()
            .filter(|(source, _)| inside(source))
            .for_each(|(_, tally)| sum += tally.all);
        sum
    }

    fn begin_ban(&mut self, ban: Banned) {
        let number = self.bans.len() as u32;
        let mark = Some((number, ban.port));
        if ban.network.is_host() {
            self.tallies.entry(ban.network.first()).or_default().ban = mark;
        } else {
            let inside = |source: &IpKey| ban.network.contains(&Network::around(*source, 128));
            self.tallies
                .iter_mut()
                .filter(|(source, _)| inside(source))
                .for_each(|(_, tally)| tally.ban = mark);
        }
        if ban.port.is_none() {
            self.banned.insert(ban.network, number);
        }
        self.bans.push(ban);
    }
}

/// The event sink at one time.
pub(super) struct ReplaySink<'a> {
    pub(super) timeline: &'a mut Timeline,
    pub(super) at: Moment,
}

impl ReplaySink<'_> {
    fn time(&self) -> Timestamp {
        clock::from_ms(self.at.wall_ms)
    }
}

impl EventSink for ReplaySink<'_> {
    fn announce(&mut self, mut event: Event, _: Level, _: fmt::Arguments<'_>) {
        event.time = self.time();
        // Computed by this machine's clock, which is unrelated to the capture's.
        event.expires = None;
        let what = event.kind.clone().or_else(|| event.reason.clone()).unwrap_or_default();
        let noted = Noted { at: event.time, what };
        match (&*event.event, event.address) {
            ("limit", Some(network)) => {
                _ = self.timeline.limited.entry(network.first()).or_insert(noted)
            }
            ("suspect", Some(network)) => {
                _ = self.timeline.suspected.entry(network.first()).or_insert(noted)
            }
            _ => {}
        }
        if self.timeline.events.len() >= MAX_EVENTS {
            self.timeline.more_events += 1;
        } else {
            self.timeline.events.push(event);
        }
    }

    fn publish(&mut self, event: Event) {
        self.announce(event, Level::Info, format_args!(""));
    }

    fn accepted(&mut self, acceptance: &Acceptance) {
        let users = self.timeline.good.entry(acceptance.source).or_default();
        if !users.contains(&acceptance.user) {
            users.insert(acceptance.user.clone());
        }
        let Acceptance { source, user, port, transport, until, .. } = acceptance;
        let at = self.at.wall_ms;
        let key = (*source, *port, user.clone());
        if self.timeline.accepted.len() < MAX_SOURCES || self.timeline.accepted.contains_key(&key) {
            let (by, times) = self.timeline.accepted.entry(key).or_insert((*transport, [at; 3]));
            *by = *transport;
            times[1] = at;
            times[2] = at.saturating_add(until.saturating_sub(self.at.now) / 1_000_000);
        }
    }

    fn peer(&mut self, source: IpKey, _: u64) {
        self.timeline.peers.insert(source);
    }

    fn offence(&mut self, _: OffenceRecord) {}

    fn banned(&mut self, kind: &str, entry: &Entry, lists: &mut Lists) {
        debug_assert_eq!(entry.owner, Owner::Auto);
        let before = self.timeline.sent_by(&entry.network);
        self.timeline.begin_ban(Banned {
            at: self.time(),
            network: entry.network,
            port: entry.port,
            kind: kind.to_owned(),
            tier: entry.tier,
            reason: entry.reason.clone(),
            length: entry.expires.saturating_sub(self.at.now) / 1_000_000_000,
            before,
            after: Fate::default(),
        });
        // There is no store.
        drop(lists.take_changes());
    }

    fn served(&mut self, source: IpKey) {
        let at = self.at.wall_ms;
        self.timeline.served.entry(source).or_insert((at, at)).1 = at;
    }

    fn sprayed(&mut self, spray: &Spray) {
        let wall = |time: u64| {
            self.at.wall_ms.saturating_sub(self.at.now.saturating_sub(time) / 1_000_000)
        };
        let times = [spray.first, spray.last].map(wall);
        self.timeline.sprayed.insert((spray.user.clone(), spray.first), (spray.clone(), times));
    }

    fn expired(&mut self, _: List, _: &Entry, _: Option<u64>) {}
}
