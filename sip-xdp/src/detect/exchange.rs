//! Brings requests and the responses to them together. Retransmissions of either count once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use sip_xdp_common::ip_key::Source;

use super::digest::digest;
use crate::sip::message::{Head, StartLine, uri_user, user_name};

/// How many requests are remembered that may still be answered.
const MAX_EXCHANGES: usize = 65_536;

/// For how long, in nanoseconds: timer B and F of RFC 3261 are 32 s.
const PATIENCE: u64 = 40_000_000_000;

/// A request that was sampled on its way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    /// The source port that it came from.
    pub(super) port: u16,
    /// Who it says it is: the AOR of a registration, the sender of anything else.
    pub(super) user: Option<String>,
    /// Who it is for: the AOR of a registration, the callee of a call.
    pub(super) target: Option<String>,
    /// Whether it carries credentials.
    pub(super) authorized: bool,
    /// Whether it may carry credentials that were not seen, because it goes on where the sample ends.
    pub(super) cut: bool,
    /// The nonces that it echoes.
    pub(super) nonces: Vec<u64>,
    /// What tells this try from others: a digest of its credentials.
    pub(super) credentials: u64,
    pub(super) call_id: u64,
    /// It takes a registration back.
    pub(super) removes: bool,
    /// It is part of a dialog that exists.
    pub(super) in_dialog: bool,
    /// The lifetime that it asks for, in seconds.
    pub(super) expires: Option<u32>,
}

/// Methods, as far as they make a difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Method {
    Register,
    Invite,
    Options,
    /// SUBSCRIBE, PUBLISH, MESSAGE: what a registrar asks credentials for outside of dialogs.
    Session,
    /// ACK, which is never answered.
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
    /// From the head of a request that came from this port. `unseen`: there is more of it than was sampled.
    pub(super) fn new(head: &Head<'_>, port: u16, unseen: bool) -> Option<Self> {
        let StartLine::Request { method, uri } = head.start else {
            return None;
        };
        let method = Method::of(method);
        let register = method == Method::Register;
        // Some servers take the name in the credentials for the user, whatever From and To say.
        let named = head.credentials.first().map(|credentials| credentials.username).filter(|name| !name.is_empty());
        let user = if register { head.to.user.or(head.from.user) } else { head.from.user }.or(named);
        let target = if register { user } else { uri_user(uri).or(head.to.user) };
        let credentials = head.credentials.iter().map(|credentials| (credentials.nonce, credentials.response));
        Some(Self {
            method,
            port,
            user: user.map(user_name),
            target: target.map(user_name),
            authorized: head.authorized,
            cut: unseen && !head.complete && !head.authorized,
            nonces: head.credentials.iter().map(|credentials| digest(credentials.nonce)).collect(),
            credentials: digest(&credentials.collect::<Vec<_>>()),
            call_id: digest(&head.call_id),
            removes: register && (head.expires == Some(0) || head.contact_expires == Some(0)),
            in_dialog: head.to.tag.is_some(),
            expires: head.lifetime(),
        })
    }
}

#[derive(Debug)]
struct Exchange {
    request: Arc<Request>,
    /// Tries that have not been answered. Tools use one transaction for all of their guesses.
    pending: u32,
}

/// The requests that may still be answered.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    open: HashMap<u64, Exchange>,
    order: VecDeque<(u64, u64)>,
}

impl Exchanges {
    /// Notes a request. Returns whether it is a new one, not a retransmission.
    pub(super) fn ask(&mut self, source: Source, head: &Head<'_>, request: &Arc<Request>, now: u64) -> bool {
        self.tidy(now);
        let key = key(source, head);
        match self.open.get_mut(&key) {
            Some(exchange) if exchange.request.credentials == request.credentials => false,
            Some(exchange) => {
                exchange.pending += 1;
                exchange.request = Arc::clone(request);
                true
            }
            None => {
                self.open.insert(key, Exchange { request: Arc::clone(request), pending: 1 });
                self.order.push_back((now, key));
                true
            }
        }
    }

    /// Finds the request that a final response answers. `Err` if it was answered before: a retransmission.
    /// `Ok(None)` if it was not sampled.
    pub(super) fn answer(&mut self, source: Source, head: &Head<'_>) -> Result<Option<Arc<Request>>, Repeated> {
        match self.open.get_mut(&key(source, head)) {
            None => Ok(None),
            Some(exchange) if exchange.pending == 0 => Err(Repeated),
            Some(exchange) => {
                exchange.pending -= 1;
                Ok(Some(Arc::clone(&exchange.request)))
            }
        }
    }

    fn tidy(&mut self, now: u64) {
        while let Some((at, key)) = self.order.front().copied() {
            if now.saturating_sub(at) < PATIENCE && self.order.len() < MAX_EXCHANGES {
                break;
            }
            self.order.pop_front();
            self.open.remove(&key);
        }
    }
}

/// The response was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Repeated;

/// What a request and its responses share (RFC 3261, 17.1.3 and 8.2.6.2), and whose it is.
fn key(source: Source, head: &Head<'_>) -> u64 {
    let method = head.cseq.map(|(_, method)| method.to_ascii_uppercase());
    digest(&(source.octets(), head.branch, head.call_id, head.cseq.map(|(number, _)| number), method))
}
