//! Phones that register continuously, to measure the capacity of a registrar beside another load.
//! One thread plays all phones through one socket; they differ in their Call-IDs.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cpu::stay_on;
use crate::digest::Challenge;
use crate::message::Message;
use crate::namespace::Namespace;
use crate::sip::Request;
use crate::stream;

/// Retransmission interval (T1 of RFC 3261).
const RETRANSMIT: Duration = Duration::from_millis(500);
/// Poll interval of waiting phones.
const PATROL: Duration = Duration::from_millis(20);

/// The phones, until dropped.
#[derive(Debug)]
pub struct Office {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

/// Counts so far.
#[derive(Debug, Default)]
struct Counts {
    stop: AtomicBool,
    registered: AtomicU64,
    refused: AtomicU64,
    repeated: AtomicU64,
}

/// Counts at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Completed registrations: challenged, then accepted.
    pub registered: u64,
    /// Final responses other than a challenge or an acceptance, and credentials that were
    /// challenged again.
    pub refused: u64,
    /// Retransmissions.
    pub repeated: u64,
}

impl Office {
    /// Starts phones of one user at an address of a namespace, all on one CPU. Each waits for its
    /// own response only.
    pub fn open(
        namespace: &Namespace,
        address: Ipv4Addr,
        registrar: Ipv4Addr,
        phones: usize,
        credentials: (&str, &str),
        cpu: usize,
    ) -> Result<Self> {
        let (from, to) =
            (SocketAddr::new(address.into(), 5060), SocketAddr::new(registrar.into(), 5060));
        let socket = stream::socket(namespace, from, to)?;
        socket.set_read_timeout(Some(PATROL)).context("cannot limit the time to wait")?;
        let line =
            Line { from, to, user: credentials.0.to_owned(), password: credentials.1.to_owned() };
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let thread = thread::spawn(move || {
            // A forbidden CPU is reported by the registrar, which gets the same one.
            let _ = stay_on(cpu);
            work(&socket, &line, phones, &shared);
        });
        Ok(Self { counts, thread: Some(thread) })
    }

    /// Counts so far.
    pub fn tally(&self) -> Tally {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { registered, refused, repeated, .. } = &*self.counts;
        Tally { registered: read(registered), refused: read(refused), repeated: read(repeated) }
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panicked thread has reported it on standard error.
            let _ = thread.join();
        }
    }
}

/// What all phones share.
struct Line {
    from: SocketAddr,
    to: SocketAddr,
    user: String,
    password: String,
}

/// One phone: its last request, with its time.
struct Handset {
    number: usize,
    /// CSeq of the last request; odd without credentials, even with.
    sequence: u32,
    request: Vec<u8>,
    sent: Instant,
}

fn work(socket: &UdpSocket, line: &Line, phones: usize, counts: &Counts) {
    let mut handsets: Vec<_> = (0..phones).map(|number| Handset::new(number, line)).collect();
    for handset in &mut handsets {
        handset.send(socket);
    }
    let mut patrolled = Instant::now();
    let mut buffer = [0; 4096];
    while !counts.stop.load(Ordering::Relaxed) {
        // A timeout, or an ICMP error for an earlier request.
        if let Ok(length) = socket.recv(&mut buffer) {
            let answer = Message::parse(&buffer[..length]).and_then(|message| Answer::of(&message));
            if let Some(answer) = answer
                && let Some(handset) = handsets.get_mut(answer.phone)
                && handset.sequence == answer.sequence
            {
                handset.go_on(&answer, line, counts);
                handset.send(socket);
            }
        }
        if patrolled.elapsed() > PATROL {
            patrolled = Instant::now();
            for handset in handsets.iter_mut().filter(|handset| handset.sent.elapsed() > RETRANSMIT)
            {
                counts.repeated.fetch_add(1, Ordering::Relaxed);
                handset.send(socket);
            }
        }
    }
}

impl Handset {
    fn new(number: usize, line: &Line) -> Self {
        let mut handset = Self { number, sequence: 1, request: Vec::new(), sent: Instant::now() };
        handset.request = handset.register(line, "");
        handset
    }

    /// The reaction to a response: credentials after a challenge, otherwise the next registration.
    fn go_on(&mut self, answer: &Answer, line: &Line, counts: &Counts) {
        let challenge =
            answer.challenge.as_ref().filter(|_| answer.status == 401 && self.sequence % 2 == 1);
        if challenge.is_none() {
            let is_done = answer.status == 200 && self.sequence.is_multiple_of(2);
            let counter = if is_done { &counts.registered } else { &counts.refused };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        // The next odd number starts again, the next even one has credentials.
        self.sequence += if challenge.is_none() && self.sequence % 2 == 1 { 2 } else { 1 };
        let credentials =
            challenge.map_or_else(String::new, |challenge| line.credentials(challenge));
        self.request = self.register(line, &credentials);
    }

    fn register(&self, line: &Line, credentials: &str) -> Vec<u8> {
        let call_id = format!("{PREFIX}{}", self.number);
        let Line { from, to, user, .. } = line;
        let request = Request {
            method: "REGISTER",
            user,
            call_id: &call_id,
            sequence: self.sequence,
            from: *from,
            to: *to,
        };
        request.bytes_with(credentials)
    }

    fn send(&mut self, socket: &UdpSocket) {
        self.sent = Instant::now();
        // Lost requests are retransmitted.
        let _ = socket.send(&self.request);
    }
}

impl Line {
    /// The header that answers a challenge.
    fn credentials(&self, challenge: &Challenge) -> String {
        let Self { user, password, to, .. } = self;
        challenge.credentials(user, password, "REGISTER", &format!("sip:{user}@{to}"))
    }
}

const PREFIX: &str = "office-";

/// The needed parts of a final response.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    phone: usize,
    sequence: u32,
    challenge: Option<Challenge>,
}

impl Answer {
    fn of(message: &Message<'_>) -> Option<Self> {
        Some(Self {
            status: message.status().filter(|status| *status >= 200)?,
            phone: message.header("Call-ID")?.strip_prefix(PREFIX)?.parse().ok()?,
            sequence: message.sequence()?,
            challenge: Challenge::of(message),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Option<Answer> {
        Answer::of(&Message::parse(text.as_bytes())?)
    }

    /// A response to the 17th phone, always with a challenge, which is read only with 401 or 407.
    fn answered(status: u16, sequence: u32) -> Answer {
        let text = format!(
            "SIP/2.0 {status} x\r\nVia: x\r\nCSeq: {sequence} REGISTER\r\nCall-ID: office-17\r\n\
             WWW-Authenticate: Digest realm=\"lab.example\", nonce=\"abc\"\r\n\r\n"
        );
        answer(&text).unwrap()
    }

    #[test]
    fn reads_answers() {
        let read = answered(401, 3);
        assert_eq!(
            (read.status, read.phone, read.sequence, read.challenge.is_some()),
            (401, 17, 3, true)
        );
        assert!(answered(200, 3).challenge.is_none());
        assert_eq!(
            answer("SIP/2.0 100 Trying\r\nCSeq: 3 REGISTER\r\nCall-ID: office-17\r\n\r\n"),
            None
        );
    }

    #[test]
    fn a_phone_takes_one_step_after_the_other() {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 5060);
        let line =
            Line { from: address, to: address, user: "alice".into(), password: "secret".into() };
        let counts = Counts::default();
        let mut handset = Handset::new(0, &line);
        handset.go_on(&answered(401, 1), &line, &counts);
        assert!(
            handset.sequence == 2
                && handset.request.windows(14).any(|part| part == b"Authorization:")
        );
        handset.go_on(&answered(200, 2), &line, &counts);
        assert_eq!((handset.sequence, counts.registered.load(Ordering::Relaxed)), (3, 1));
        handset.go_on(&answered(503, 3), &line, &counts);
        assert_eq!((handset.sequence, counts.refused.load(Ordering::Relaxed)), (5, 1));
        handset.go_on(&answered(401, 5), &line, &counts);
        handset.go_on(&answered(401, 6), &line, &counts);
        assert_eq!((handset.sequence, counts.refused.load(Ordering::Relaxed)), (7, 2));
    }
}
