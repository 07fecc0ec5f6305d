//! A password guesser for patterns that no tool has: one password every few seconds, from changing
//! addresses, or in unusual spellings that real SIP servers accept.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::digest::Challenge;
use crate::message::Message;
use crate::namespace::Namespace;
use crate::sip::Request;
use crate::spelling::{PLAIN, Spelling};
use crate::stream;

/// Timeout of a response.
const TIMEOUT: Duration = Duration::from_millis(300);

/// Options of a guesser.
#[derive(Debug, Clone)]
pub struct Guess {
    /// Addresses and ports, a new one for each password.
    pub from: Vec<SocketAddr>,
    /// The registrar.
    pub to: SocketAddr,
    /// The attacked user.
    pub user: String,
    /// Interval between passwords.
    pub every: Duration,
    /// Spelling of its requests.
    pub spelling: Spelling,
}

impl Guess {
    /// Twenty passwords per second from one address, in usual requests.
    pub fn new(from: SocketAddr, to: SocketAddr, user: &str) -> Self {
        Self {
            from: vec![from],
            to,
            user: user.to_owned(),
            every: Duration::from_millis(50),
            spelling: PLAIN,
        }
    }
}

/// A guesser at work until it is dropped.
#[derive(Debug)]
pub struct Guesser {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    stop: AtomicBool,
    tried: AtomicU64,
    rejected: AtomicU64,
}

impl Guesser {
    /// Starts guessing.
    pub fn start(namespace: &Namespace, guess: Guess) -> Result<Self> {
        let open = |from: &SocketAddr| {
            let socket = stream::socket(namespace, *from, guess.to)?;
            socket.set_read_timeout(Some(TIMEOUT)).context("cannot limit the time to wait")?;
            Ok(socket)
        };
        let sockets: Vec<_> = guess.from.iter().map(open).collect::<Result<_>>()?;
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let thread = thread::spawn(move || work(&sockets, &guess, &shared));
        Ok(Self { counts, thread: Some(thread) })
    }

    /// Number of passwords sent.
    pub fn tried(&self) -> u64 {
        self.counts.tried.load(Relaxed)
    }

    /// Number of passwords answered with another challenge.
    pub fn rejected(&self) -> u64 {
        self.counts.rejected.load(Relaxed)
    }
}

impl Drop for Guesser {
    fn drop(&mut self) {
        self.counts.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panicked thread has reported it on standard error.
            let _ = thread.join();
        }
    }
}

fn work(sockets: &[UdpSocket], guess: &Guess, counts: &Counts) {
    let start = Instant::now();
    for (number, (from, socket)) in (0_u32..).zip(guess.from.iter().zip(sockets).cycle()) {
        while start.elapsed() < guess.every * number {
            if counts.stop.load(Relaxed) {
                return;
            }
            thread::sleep(guess.every.min(Duration::from_millis(20)));
        }
        if counts.stop.load(Relaxed) {
            return;
        }
        let asking = |sequence, credentials: &str| {
            let call_id = format!("guess-{}-{}", from.ip(), from.port());
            let Guess { to, user, .. } = guess;
            let request = Request {
                method: "REGISTER",
                user,
                call_id: &call_id,
                sequence,
                from: *from,
                to: *to,
            };
            ask(socket, &guess.spelling, &request.bytes_with(credentials))
        };
        // A fresh nonce for every password, as in real tools.
        let Some(challenge) = asking(2 * number + 1, "") else { continue };
        let uri = format!("sip:{}@{}", guess.user, guess.to);
        let credentials =
            challenge.credentials(&guess.user, &format!("guess-{number}"), "REGISTER", &uri);
        counts.tried.fetch_add(1, Relaxed);
        if asking(2 * number + 2, &credentials).is_some() {
            counts.rejected.fetch_add(1, Relaxed);
        }
    }
}

/// Sends a request and waits for a challenge.
fn ask(socket: &UdpSocket, spelling: &Spelling, request: &[u8]) -> Option<Challenge> {
    let request = (spelling.write)(&String::from_utf8_lossy(request));
    // An ICMP error for an earlier datagram is reported here; the second call sends.
    socket.send(request.as_bytes()).or_else(|_| socket.send(request.as_bytes())).ok()?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    Challenge::of(&Message::parse(&buffer[..length])?)
}
