//! The evidence against one source, and its recent activity.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use sip_xdp_common::ip_key::IpKey;

use super::claim::{Level, Rejection};
use super::rules::enumeration::Refused;
use super::rules::invites;
use super::windows::{LeakyBucket, Window};
use crate::sip::transport::Transport;

/// Maximum number of nonces that the kernel learns when a source goes on the ladder.
const MAX_NONCES: usize = 64;

/// Maximum number of ports of one source with a bucket of their own.
const MAX_PORTS: usize = 64;

/// A pending rejection, which an acceptance can take back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) at: u64,
    pub(super) rejection: Rejection,
    /// Whether it is counted already.
    pub(super) counted: bool,
    /// Whether it counts only after the response to its next try.
    pub(super) may_be_retried: bool,
}

/// A challenged request without credentials, which should follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenged {
    pub(super) at: u64,
    /// The AOR of a registration, or the callee.
    pub(super) target: String,
    pub(super) call: u64,
    pub(super) is_invite: bool,
    pub(super) is_register: bool,
    /// Who sent it has completed a handshake.
    pub(super) is_proven: bool,
}

/// The state of a source.
#[derive(Debug)]
pub(super) struct SourceState {
    pub(super) source: IpKey,
    pub(super) last: u64,
    /// How its last request came.
    pub(super) transport: Transport,
    /// Whether its address is proven. For display: each piece of evidence has its own level.
    pub(super) routable: bool,
    pub(super) waiting: Vec<Waiting>,
    pub(super) rejected: Window<Rejection>,
    /// Leaky buckets of level 1 rejections, and of all.
    pub(super) slow: LeakyBucket,
    pub(super) slow_seen: LeakyBucket,
    /// Leaky bucket of level 1 rejections that came quicker than those of a phone.
    pub(super) quick: LeakyBucket,
    /// The former by port, at an address with accepted users.
    pub(super) slow_ports: BTreeMap<u16, LeakyBucket>,
    /// Level 0 rejections at an address with standing.
    pub(super) hidden: Window<()>,
    /// The same in a leaky bucket.
    pub(super) hidden_slow: LeakyBucket,
    /// Leaky bucket of rejections at an address with accepted users, for users that were rejected
    /// at other ports as well; and these users of a day, by digest, with ports without standing.
    pub(super) roaming: LeakyBucket,
    pub(super) ports: Window<(u64, u16)>,
    /// Nonces that it was given, latest last: our digest of each, and the kernel's.
    pub(super) nonces: VecDeque<(u64, u64)>,
    /// Rejections for sprayed users, of a day.
    pub(super) sprayed: Window<Level>,
    /// Rejections for decoys, of a day.
    pub(super) decoys: Window<(String, u16)>,
    /// Banned users of the address, with their ports.
    pub(super) convicted: Window<(String, u16)>,
    pub(super) refused: Window<Refused>,
    pub(super) challenged: Vec<Challenged>,
    /// The tool's signature.
    pub(super) signature: Option<String>,
    /// Calls with a tool's signature: start by Call-ID; `None` once decided.
    pub(super) tool_calls: HashMap<u64, Option<u64>>,
    /// Whether its User-Agent is of a product that attackers use as well.
    pub(super) is_doubtful: bool,
    pub(super) calls: invites::Calls,
    /// Time at which the kernel last dropped its packets by a limit.
    pub(super) limited: u64,
    /// Number of sampled requests, and of answered ones.
    pub(super) asked: u64,
    pub(super) answered: u64,
    /// Time of its last finding, so that one offence is one ban.
    pub(super) banned: u64,
    /// Start line and user of its last request, unsanitised and truncated.
    pub(super) start_line: Vec<u8>,
    pub(super) user: Vec<u8>,
}

impl SourceState {
    pub(super) fn new(source: IpKey) -> Self {
        Self {
            source,
            last: 0,
            transport: Transport::default(),
            routable: false,
            waiting: Vec::new(),
            rejected: Window::default(),
            slow: LeakyBucket::default(),
            slow_seen: LeakyBucket::default(),
            quick: LeakyBucket::default(),
            slow_ports: BTreeMap::new(),
            hidden: Window::default(),
            hidden_slow: LeakyBucket::default(),
            roaming: LeakyBucket::default(),
            ports: Window::default(),
            nonces: VecDeque::new(),
            sprayed: Window::default(),
            decoys: Window::default(),
            convicted: Window::default(),
            refused: Window::default(),
            challenged: Vec::new(),
            signature: None,
            tool_calls: HashMap::new(),
            is_doubtful: false,
            calls: invites::Calls::default(),
            limited: 0,
            asked: 0,
            answered: 0,
            banned: 0,
            start_line: Vec::new(),
            user: Vec::new(),
        }
    }

    /// Takes back evidence of users that were accepted.
    pub(super) fn take_back(&mut self, users: &[String], call: u64) {
        let is_one = |user: &str| users.iter().any(|other| other == user);
        self.waiting.retain(|waiting| !is_one(&waiting.rejection.user));
        self.rejected.retain(|rejection| !is_one(&rejection.user));
        self.refused.retain(|refused| !is_one(&refused.target));
        self.challenged.retain(|challenged| challenged.call != call && !is_one(&challenged.target));
        self.signature = None;
        self.tool_calls.clear();
    }

    /// Records a nonce that it was given.
    pub(super) fn note_nonce(&mut self, nonce: (u64, u64)) {
        if self.nonces.len() >= MAX_NONCES {
            self.nonces.pop_front();
        }
        self.nonces.push_back(nonce);
    }

    /// The users of some rejections.
    pub(super) fn users_of<'a>(
        rejections: impl Iterator<Item = &'a Rejection>,
    ) -> BTreeSet<&'a str> {
        rejections.map(|rejection| rejection.user.as_str()).collect()
    }

    /// The leaky bucket of a port.
    pub(super) fn slow_port(&mut self, port: u16) -> Option<&mut LeakyBucket> {
        if self.slow_ports.len() >= MAX_PORTS && !self.slow_ports.contains_key(&port) {
            return None;
        }
        Some(self.slow_ports.entry(port).or_default())
    }

    /// Removes the evidence that has led to a ban, of a port or of the whole source.
    pub(super) fn begin_anew(&mut self, port: Option<u16>) {
        match port {
            Some(port) => {
                self.rejected.retain(|rejection| rejection.port != port);
                self.waiting.retain(|waiting| waiting.rejection.port != port);
                // Its leaky bucket stays: that drains over hours in any case.
                self.decoys.retain(|(_, at)| *at != port);
            }
            None => {
                self.rejected = Window::default();
                // Those for sprayed users stay: the third of a day bans, and so does each after it.
                self.refused = Window::default();
                self.decoys = Window::default();
                self.waiting.clear();
                self.challenged.clear();
                self.tool_calls.clear();
                self.calls.begin_anew();
            }
        }
    }
}
