//! Transactions: matching of requests and responses (RFC 3261, section 17). Retransmissions of
//! either count once.
//!
//! The key is what a response echoes: branch, Call-ID and CSeq. The source is not part of it, since
//! a response may go elsewhere (`maddr`, NAT, a multi-homed server); `responses` decides what that
//! proves.

use std::sync::Arc;

use sip_xdp_common::ip_key::IpKey;

use super::digest::digest;
use super::observation::Observation;
use super::recent::Recent;
use super::registrations::Place;
use crate::sip::message::{Head, StartLine, headers, uri_host, uri_user, user_name};
use crate::sip::transport::Transport;

/// Maximum number of pending transactions.
const MAX_TRANSACTIONS: usize = 65_536;

/// Their lifetime in nanoseconds: a call may ring for three minutes (timer C of RFC 3261).
const LIFETIME_NS: u64 = 200_000_000_000;

/// Maximum number of sources with the same key, and of different requests of each. Tools use one
/// transaction for all guesses.
const MAX_SENDERS: usize = 4;
const MAX_ATTEMPTS: usize = 8;

/// One set of credentials of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credential {
    pub(super) user: String,
    /// Digest of the echoed nonce.
    pub(super) nonce: u64,
}

/// A sampled incoming request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) source: IpKey,
    /// Source port.
    pub(super) port: u16,
    /// How it came.
    pub(super) transport: Transport,
    /// Its source has completed a handshake.
    pub(super) is_proven: bool,
    pub(super) method: Method,
    /// The claimed user: the AOR of a registration, else the sender.
    pub(super) user: Option<String>,
    /// The target: the AOR of a registration, the callee of a call.
    pub(super) target: Option<String>,
    /// The address that it was sent to, where that was seen.
    pub(super) destination: Option<IpKey>,
    /// The host part of the Request-URI.
    pub(super) host: Option<String>,
    /// Whether it carries credentials.
    pub(super) authorized: bool,
    /// Whether it may have unseen credentials, because it is longer than the sample.
    pub(super) cut: bool,
    pub(super) credentials: Vec<Credential>,
    /// Whether servers may read its credentials in another way, or see others.
    pub(super) is_ambiguous: bool,
    /// Whether the end of its headers was not seen, so that another one may look the same.
    pub(super) is_incomplete: bool,
    /// Digest of the method's name.
    pub(super) name: u64,
    /// Digest of all of it that was seen. A retransmission is the same in every byte (RFC 3261,
    /// section 17.1); whatever differs may be another try.
    pub(super) attempt: u64,
    /// Digest of the Call-ID.
    pub(super) call: u64,
    /// Digest of everything that a client keeps when it answers a challenge.
    pub(super) fingerprint: u64,
    /// Whether it unregisters.
    pub(super) removes: bool,
    /// Whether it is within a dialog.
    pub(super) in_dialog: bool,
    /// The requested lifetime, in seconds.
    pub(super) expires: Option<u32>,
}

/// Classes of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Method {
    Register,
    Invite,
    Options,
    /// SUBSCRIBE, PUBLISH, MESSAGE: requests outside of dialogs that a registrar challenges.
    Session,
    /// ACK, which has no response.
    Ack,
    Other,
}

impl Method {
    fn of(name: &[u8]) -> Self {
        let is = |method: &str| name.eq_ignore_ascii_case(method.as_bytes());
        if is("REGISTER") {
            Self::Register
        } else if is("INVITE") {
            Self::Invite
        } else if is("OPTIONS") {
            Self::Options
        } else if is("SUBSCRIBE") || is("PUBLISH") || is("MESSAGE") {
            Self::Session
        } else if is("ACK") {
            Self::Ack
        } else {
            Self::Other
        }
    }
}

impl Request {
    /// From a message whose head this is, if it is a request.
    pub(super) fn new(event: &Observation<'_>, head: &Head<'_>) -> Option<Self> {
        let StartLine::Request { method, uri } = head.start else {
            return None;
        };
        let (name, method) = (method, Method::of(method));
        let register = method == Method::Register;
        // Some servers take the user from the credentials, whatever From and To say.
        let claimed = head.credentials.first().map(|credentials| credentials.username);
        let named = claimed.filter(|name| !name.is_empty());
        let user = if register { head.to.user.or(head.from.user) } else { head.from.user };
        let user = user.or(named);
        let target = if register { user } else { uri_user(uri).or(head.to.user) };
        let credentials = head
            .credentials
            .iter()
            .map(|one| Credential { user: user_name(one.username), nonce: digest(one.nonce) });
        Some(Self {
            source: event.source,
            port: event.port,
            transport: event.transport,
            is_proven: event.is_proven,
            method,
            user: user.map(user_name),
            target: target.map(user_name),
            destination: event.checksum.map(|(to, _)| to),
            host: uri_host(uri),
            authorized: head.authorized,
            cut: event.is_cut && !head.complete && !head.authorized,
            is_ambiguous: head.is_ambiguous,
            is_incomplete: event.is_cut && !head.complete,
            name: digest(&name.to_ascii_uppercase()),
            attempt: digest(&event.bytes),
            credentials: credentials.collect(),
            call: digest(&head.call_id),
            fingerprint: if register { 0 } else { fingerprint(event.bytes, uri) },
            removes: register && (head.expires == Some(0) || head.contact_expires == Some(0)),
            in_dialog: head.to.tag.is_some(),
            expires: head.lifetime(),
        })
    }

    /// The address-of-record that it is to register.
    pub(super) fn aor(&self) -> Option<&String> {
        self.user.as_ref().filter(|_| self.method == Method::Register)
    }

    /// Where it came from.
    pub(super) fn place(&self) -> Place {
        Place { source: self.source, port: self.port, transport: self.transport }
    }

    /// Users whose password this may try: those in the credentials for which `counts` is true, else
    /// the first one named.
    pub(super) fn claimed_users(&self, counts: impl Fn(&Credential) -> bool) -> Vec<String> {
        let mut users: Vec<String> = Vec::new();
        for one in self.credentials.iter().filter(|one| !one.user.is_empty() && counts(one)) {
            if !users.contains(&one.user) {
                users.push(one.user.clone());
            }
        }
        if users.is_empty() {
            let first = self.credentials.iter().map(|one| &one.user).find(|user| !user.is_empty());
            users.extend(first.or(self.user.as_ref()).cloned());
        }
        users
    }
}

/// Headers that differ between a request and its repetition with credentials.
const CHANGING: [&str; 9] = [
    "via",
    "v",
    "cseq",
    "authorization",
    "proxy-authorization",
    "content-length",
    "l",
    "date",
    "timestamp",
];

fn fingerprint(bytes: &[u8], uri: &[u8]) -> u64 {
    let keeps =
        |name: &[u8]| !CHANGING.iter().any(|other| name.eq_ignore_ascii_case(other.as_bytes()));
    let kept: Vec<_> = headers(bytes).filter(|(name, _)| keeps(name)).collect();
    digest(&(uri, kept))
}

/// One of several requests with the same key.
#[derive(Debug)]
struct Attempt {
    request: Arc<Request>,
    /// Whether it has no final response.
    is_open: bool,
}

#[derive(Debug)]
struct Transaction {
    source: IpKey,
    attempts: Vec<Attempt>,
    /// Whether a provisional response said that it rings.
    rang: bool,
    /// Whether there was any response.
    is_answered: bool,
}

/// A request that a response answers.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    pub(super) request: Arc<Request>,
    /// Whether it rang before.
    pub(super) rang: bool,
    /// Whether this is its first response.
    pub(super) is_first: bool,
    /// Whether no other request has the same branch, Call-ID and CSeq, so that it is the one that
    /// was answered.
    pub(super) is_only: bool,
}

/// The request of a response.
#[derive(Debug, Clone)]
pub(super) enum Match {
    /// The current instant.
    Of(Answered),
    /// One that was answered before: a retransmission.
    Repeated,
    /// None that was sampled.
    Unknown,
}

impl Transaction {
    /// Whether a request is a retransmission of one of these.
    fn has(&self, request: &Request) -> bool {
        let is_same = |one: &Attempt| one.request.attempt == request.attempt;
        !request.is_incomplete && self.attempts.iter().any(is_same)
    }

    /// The request that a response with this status is to: of several, a rejection is of the first
    /// that may try a password. None if a final response is a repetition.
    fn answered(&mut self, status: u16) -> Option<&mut Attempt> {
        let open = |one: &Attempt| one.is_open;
        let tries = |one: &Attempt| one.is_open && (one.request.authorized || one.request.cut);
        let at = match status {
            401 | 403 | 407 => {
                let first = self.attempts.iter().position(tries);
                first.or_else(|| self.attempts.iter().position(open))
            }
            100..=199 => self.attempts.len().checked_sub(1),
            _ => self.attempts.iter().rposition(open),
        };
        self.attempts.get_mut(at?)
    }
}

/// Pending transactions.
#[derive(Debug)]
pub(super) struct Transactions {
    open: Recent<u64, Vec<Transaction>>,
    /// By source and Call-ID: the latest try, and whether it has no final response yet.
    calls: Recent<(u64, u64), (u64, bool)>,
}

impl Default for Transactions {
    fn default() -> Self {
        let (open, calls) = (
            Recent::new(MAX_TRANSACTIONS, LIFETIME_NS),
            Recent::new(MAX_TRANSACTIONS, LIFETIME_NS),
        );
        Self { open, calls }
    }
}

impl Transactions {
    /// Records a request. Returns whether it is new, and no retransmission; `None` if its response
    /// could not be matched.
    pub(super) fn ask(
        &mut self,
        head: &Head<'_>,
        request: &Arc<Request>,
        now: u64,
    ) -> Option<bool> {
        let key = key(head)?;
        let senders = self.open.touch(key, now, Vec::new);
        let attempt = Attempt { request: Arc::clone(request), is_open: true };
        let is_new = match senders.iter_mut().find(|one| one.source == request.source) {
            Some(one) if one.has(request) => false,
            Some(one) => {
                if one.attempts.len() >= MAX_ATTEMPTS {
                    let answered = one.attempts.iter().position(|other| !other.is_open);
                    one.attempts.remove(answered.unwrap_or(0));
                }
                one.attempts.push(attempt);
                (one.rang, one.is_answered) = (false, false);
                true
            }
            None => {
                if senders.len() >= MAX_SENDERS {
                    senders.remove(0);
                }
                let (source, attempts) = (request.source, vec![attempt]);
                senders.push(Transaction { source, attempts, rang: false, is_answered: false });
                true
            }
        };
        if is_new && request.method != Method::Ack {
            self.calls.insert((digest(&request.source), request.call), now, (key, true));
        }
        Some(is_new)
    }

    /// Finds the request of a response to `destination`, preferably one from that address.
    pub(super) fn answer(&mut self, destination: IpKey, head: &Head<'_>, now: u64) -> Match {
        let Some((key, senders)) =
            key(head).and_then(|key| Some((key, self.open.get_mut(&key, now)?)))
        else {
            return Match::Unknown;
        };
        let own = senders.iter().position(|one| one.source == destination);
        // With so many the one that is answered may have been displaced.
        let last = senders.len().checked_sub(1).filter(|_| senders.len() < MAX_SENDERS);
        let Some(one) = own.or(last).and_then(|at| senders.get_mut(at)) else {
            return Match::Unknown;
        };
        let StartLine::Response(status) = head.start else {
            return Match::Unknown;
        };
        let (rang, is_first, is_only) = (one.rang, !one.is_answered, one.attempts.len() == 1);
        let is_final = status >= 200;
        let Some(attempt) = one.answered(status) else {
            return Match::Repeated;
        };
        let answered = Answered { request: Arc::clone(&attempt.request), rang, is_first, is_only };
        attempt.is_open &= !is_final;
        one.is_answered = true;
        if !is_final {
            // Other provisional responses, such as 100, ring nowhere (RFC 3261, 21.1).
            one.rang |= matches!(head.start, StartLine::Response(180..=189));
            return Match::Of(answered);
        }
        let call = (digest(&answered.request.source), answered.request.call);
        if let Some((last, waits)) = self.calls.get_mut(&call, now)
            && *last == key
        {
            *waits = false;
        }
        Match::Of(answered)
    }

    /// Whether the latest try of a call has no final response.
    pub(super) fn is_open(&self, source: &IpKey, call: u64, now: u64) -> bool {
        self.calls.get(&(digest(source), call), now).is_some_and(|(_, waits)| *waits)
    }
}

/// What a request and its responses share (RFC 3261, 17.1.3 and 8.2.6.2). `None` if that is not in
/// the sample.
fn key(head: &Head<'_>) -> Option<u64> {
    let (number, method) = head.cseq?;
    Some(digest(&(head.branch, head.call_id?, number, method.to_ascii_uppercase())))
}
