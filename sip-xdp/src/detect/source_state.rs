//! What is held against one source, and what it has done lately.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use sip_xdp_common::ip_key::IpKey;

use super::claim::{Level, Rejection};
use super::rules::enumeration::Refused;
use super::rules::invites;
use super::windows::{LeakyBucket, Window};
use crate::sip::transport::Transport;

/// Nonces of one source that the kernel hears of when it goes on the ladder.
const MAX_NONCES: usize = 64;

/// Ports of one source that have a bucket of their own.
const MAX_PORTS: usize = 64;

/// A rejection that an acceptance may still take back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) at: u64,
    pub(super) rejection: Rejection,
    /// It is among those that count already.
    pub(super) counted: bool,
    /// It counts once its next try has been answered.
    pub(super) may_be_retried: bool,
}

/// A request without credentials that was challenged; credentials should follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenged {
    pub(super) at: u64,
    /// The AOR of a registration, or whom it called.
    pub(super) target: String,
    pub(super) call: u64,
    pub(super) is_invite: bool,
    pub(super) is_register: bool,
    /// Who sent it has completed a handshake.
    pub(super) is_proven: bool,
}

/// A source and the evidence against it.
#[derive(Debug)]
pub(super) struct SourceState {
    pub(super) source: IpKey,
    pub(super) last: u64,
    /// How its last request came.
    pub(super) transport: Transport,
    /// It has shown that it is where it says. For people: evidence has levels of its own.
    pub(super) routable: bool,
    pub(super) waiting: Vec<Waiting>,
    pub(super) rejected: Window<Rejection>,
    /// Rejections of routable senders, and all of them, slowly.
    pub(super) slow: LeakyBucket,
    pub(super) slow_seen: LeakyBucket,
    /// The former, by port, behind an address with accepted users.
    pub(super) slow_ports: BTreeMap<u16, LeakyBucket>,
    /// Rejections that anybody could have caused, at an address with standing.
    pub(super) hidden: Window<()>,
    /// The same, slowly.
    pub(super) hidden_slow: LeakyBucket,
    /// Rejections of an address with accepted users, for users that were rejected at other ports as
    /// well, slowly; and these users, by digest, with ports without a standing, of a day.
    pub(super) roaming: LeakyBucket,
    pub(super) ports: Window<(u64, u16)>,
    /// Nonces that it was given, the latest last: our digest of each, and the kernel's.
    pub(super) nonces: VecDeque<(u64, u64)>,
    /// Rejections for users that are sprayed, of a day.
    pub(super) sprayed: Window<Level>,
    /// Rejections for decoys, of a day.
    pub(super) decoys: Window<(String, u16)>,
    /// Users of the address that were convicted, with the ports.
    pub(super) convicted: Window<(String, u16)>,
    pub(super) refused: Window<Refused>,
    pub(super) challenged: Vec<Challenged>,
    /// What gave it away as a tool.
    pub(super) signature: Option<String>,
    /// Calls that looked like a tool's: by Call-ID, since when; none once it is decided.
    pub(super) tool_calls: HashMap<u64, Option<u64>>,
    /// It says that it is a product that attackers use, too.
    pub(super) is_doubtful: bool,
    pub(super) calls: invites::Calls,
    /// When the kernel last dropped packets of it because of a limit.
    pub(super) limited: u64,
    /// Requests seen, and how many of them were answered.
    pub(super) asked: u64,
    pub(super) answered: u64,
    /// When it was last banned for something, so that one offence is one ban.
    pub(super) banned: u64,
    /// The first line of its last request, and the user that it named, as they came, but not all.
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

    /// A user was accepted: that takes back what was held against the source because of it.
    pub(super) fn take_back(&mut self, users: &[String], call: u64) {
        let is_one = |user: &str| users.iter().any(|other| other == user);
        self.waiting.retain(|waiting| !is_one(&waiting.rejection.user));
        self.rejected.retain(|rejection| !is_one(&rejection.user));
        self.refused.retain(|refused| !is_one(&refused.target));
        self.challenged.retain(|challenged| challenged.call != call && !is_one(&challenged.target));
        self.signature = None;
        self.tool_calls.clear();
    }

    /// Notes a nonce that it was given.
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

    /// The slow bucket of a port.
    pub(super) fn slow_port(&mut self, port: u16) -> Option<&mut LeakyBucket> {
        if self.slow_ports.len() >= MAX_PORTS && !self.slow_ports.contains_key(&port) {
            return None;
        }
        Some(self.slow_ports.entry(port).or_default())
    }

    /// Forgets the evidence that has led to a ban, of a port or of all of the source.
    pub(super) fn begin_anew(&mut self, port: Option<u16>) {
        match port {
            Some(port) => {
                self.rejected.retain(|rejection| rejection.port != port);
                self.waiting.retain(|waiting| waiting.rejection.port != port);
                // What is in its bucket stays: it leaks out in hours, whatever follows.
                self.decoys.retain(|(_, at)| *at != port);
            }
            None => {
                self.rejected = Window::default();
                // Those for sprayed users stay: the third of a day leads to a ban, and so does each
                // after it.
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
