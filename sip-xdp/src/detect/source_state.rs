//! The evidence against one source, and its recent activity.

use std::collections::{BTreeSet, VecDeque};

use sip_xdp_common::ip_key::IpKey;

use super::GRACE_NS;
use super::claim::Rejection;
use super::rules::SourceCounts;
use crate::sip::transport::Transport;

/// Maximum number of nonces that the kernel learns when a source goes on the ladder.
const MAX_NONCES: usize = 64;

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
    /// Nonces that it was given, latest last: our digest of each, and the kernel's.
    pub(super) nonces: VecDeque<(u64, u64)>,
    pub(super) challenged: Vec<Challenged>,
    /// What rules count.
    pub(super) counts: SourceCounts,
    /// Time at which the kernel last dropped its packets by a limit.
    pub(super) limited: u64,
    /// Number of sampled requests, and of answered ones.
    pub(super) asked: u64,
    pub(super) answered: u64,
    /// Time of its last finding, so that one offence is one ban.
    pub(super) banned: u64,
    /// Start line, user and Call-ID of its last request, unsanitised and truncated.
    pub(super) start_line: Vec<u8>,
    pub(super) user: Vec<u8>,
    pub(super) call_id: Vec<u8>,
}

impl SourceState {
    pub(super) fn new(source: IpKey) -> Self {
        Self {
            source,
            last: 0,
            transport: Transport::default(),
            routable: false,
            waiting: Vec::new(),
            nonces: VecDeque::new(),
            challenged: Vec::new(),
            counts: SourceCounts::default(),
            limited: 0,
            asked: 0,
            answered: 0,
            banned: 0,
            start_line: Vec::new(),
            user: Vec::new(),
            call_id: Vec::new(),
        }
    }

    /// Takes back evidence of users that were accepted.
    pub(super) fn take_back(&mut self, users: &[String], call: u64) {
        let is_one = |user: &str| users.iter().any(|other| other == user);
        self.waiting.retain(|waiting| !is_one(&waiting.rejection.user));
        self.challenged.retain(|challenged| challenged.call != call && !is_one(&challenged.target));
        self.counts.take_back(users, call);
    }

    /// Whether the kernel dropped its packets by a limit within the last 5 s.
    pub(super) fn is_limited(&self, now: u64) -> bool {
        self.limited != 0 && now.saturating_sub(self.limited) < GRACE_NS
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

    /// Removes the evidence that has led to a ban, of a port or of the whole source.
    pub(super) fn begin_anew(&mut self, port: Option<u16>) {
        self.counts.begin_anew(port);
        match port {
            Some(port) => self.waiting.retain(|waiting| waiting.rejection.port != port),
            None => {
                self.waiting.clear();
                self.challenged.clear();
            }
        }
    }
}
