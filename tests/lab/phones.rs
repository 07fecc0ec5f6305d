//! Many simulated phones in one thread: each has its own socket, user and Call-IDs, registers with
//! digest authentication, subscribes to other extensions (busy lamp fields), retransmits, and after
//! a refusal pauses for half a minute.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::handset::Handset;
use crate::namespace::Namespace;
use crate::topology::{PBX_LAN, PHONE};

/// Port of the first phone; the others follow.
pub const FIRST_PORT: u16 = 20_000;
/// User of the first phone; the others follow.
pub const FIRST_USER: u16 = 1000;
/// Number of starts so far: each has Call-IDs of its own, as phones have after a power cut.
static STARTS: AtomicU64 = AtomicU64::new(0);
/// Poll interval.
const PATROL: Duration = Duration::from_millis(10);

/// Options of the phones.
#[derive(Debug, Clone)]
pub struct PhonesOptions {
    /// Number of phones.
    pub count: u16,
    /// Their addresses, in turn: one for an office behind NAT.
    pub addresses: Vec<Ipv4Addr>,
    /// Registrar.
    pub registrar: Ipv4Addr,
    /// Subscriptions per phone.
    pub subscriptions: u16,
    /// Interval between an acceptance and the next registration; `None` for never.
    pub refresh: Option<Duration>,
}

impl Default for PhonesOptions {
    fn default() -> Self {
        Self {
            count: 300,
            addresses: vec![PHONE],
            registrar: PBX_LAN,
            subscriptions: 0,
            refresh: None,
        }
    }
}

/// Running phones, until dropped.
#[derive(Debug)]
pub struct Phones {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

/// Counters of the phones.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    stop: AtomicBool,
    again: AtomicBool,
    /// Currently registered phones.
    registered: AtomicUsize,
    /// Currently accepted subscriptions.
    subscribed: AtomicUsize,
    pub(crate) begun: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) unanswered: AtomicU64,
    pub(crate) called: AtomicU64,
}

/// Counts at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhonesTally {
    /// Currently registered phones.
    pub registered: usize,
    /// Currently accepted subscriptions.
    pub subscribed: usize,
    /// Registrations started.
    pub begun: u64,
    /// Registrations accepted.
    pub accepted: u64,
    /// Requests sent, including retransmissions.
    pub sent: u64,
    /// Retransmissions.
    pub repeated: u64,
    /// Credentials challenged again, except for a stale nonce.
    pub rejected: u64,
    /// Credentials challenged again for a stale nonce.
    pub stale: u64,
    /// Final responses other than a challenge or an acceptance.
    pub refused: u64,
    /// Requests without any response.
    pub unanswered: u64,
    /// Calls that reached a phone, which answers them.
    pub called: u64,
}

impl Phones {
    /// Starts all phones at once.
    pub fn start(namespace: &Namespace, options: &PhonesOptions) -> Result<Self> {
        let to = SocketAddr::new(options.registrar.into(), 5060);
        let addresses = options.addresses.iter().cycle();
        let places: Vec<_> =
            (0..options.count).zip(addresses).map(|(number, &address)| (number, address)).collect();
        let sockets: Vec<_> = namespace.enter(|| {
            places.iter().map(|&(number, at)| socket(number, at, to)).collect::<Result<_>>()
        })?;
        let start = STARTS.fetch_add(1, Relaxed);
        let handsets = places.iter().map(|&(number, address)| {
            let from = SocketAddr::new(address.into(), FIRST_PORT + number);
            // Extensions subscribe to those that follow them.
            let watched =
                (1..=options.subscriptions).map(|next| user((number + next) % 300)).collect();
            Handset::new(start, user(number), from, to, watched, options.refresh)
        });
        let mut handsets: Vec<_> = handsets.collect();
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let thread = thread::spawn(move || work(&sockets, &mut handsets, &shared));
        Ok(Self { counts, thread: Some(thread) })
    }

    /// Makes all phones register again at once, as after a power cut.
    pub fn register_again(&self) {
        self.counts.again.store(true, Relaxed);
    }

    /// Counts so far.
    pub fn tally(&self) -> PhonesTally {
        let counts = &*self.counts;
        PhonesTally {
            registered: counts.registered.load(Relaxed),
            subscribed: counts.subscribed.load(Relaxed),
            begun: counts.begun.load(Relaxed),
            accepted: counts.accepted.load(Relaxed),
            sent: counts.sent.load(Relaxed),
            repeated: counts.repeated.load(Relaxed),
            rejected: counts.rejected.load(Relaxed),
            stale: counts.stale.load(Relaxed),
            refused: counts.refused.load(Relaxed),
            unanswered: counts.unanswered.load(Relaxed),
            called: counts.called.load(Relaxed),
        }
    }

    /// Waits until this number of phones is registered; returns the time taken.
    pub fn wait_registered(&self, count: usize, timeout: Duration) -> Result<Duration> {
        crate::wait_until("all phones are registered", timeout, || {
            // After `register_again` the count drops as soon as the thread has noticed.
            Ok(!self.counts.again.load(Relaxed) && self.tally().registered >= count)
        })
        .with_context(|| {
            format!("{count} phones were to be registered, but they saw {:?}", self.tally())
        })
    }
}

impl Drop for Phones {
    fn drop(&mut self) {
        self.counts.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panicked thread has reported it on standard error.
            let _ = thread.join();
        }
    }
}

/// The user of a phone, by its number.
pub fn user(number: u16) -> String {
    (FIRST_USER + number).to_string()
}

fn socket(number: u16, address: Ipv4Addr, to: SocketAddr) -> Result<UdpSocket> {
    let from = SocketAddr::new(address.into(), FIRST_PORT + number);
    let socket = UdpSocket::bind(from).with_context(|| format!("cannot bind to {from}"))?;
    socket.connect(to).with_context(|| format!("cannot connect to {to}"))?;
    socket.set_nonblocking(true).context("cannot make a socket return at once")?;
    Ok(socket)
}

fn work(sockets: &[UdpSocket], handsets: &mut [Handset], counts: &Counts) {
    let timeout = PollTimeout::try_from(PATROL).unwrap_or(PollTimeout::ZERO);
    let mut ready: Vec<_> =
        sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
    let mut buffer = [0; 4096];
    let mut patrolled: Option<Instant> = None;
    // A phone a patrol further: of phones that retransmit at once none is always the last one.
    let mut first = 0;
    while !counts.stop.load(Relaxed) {
        let now = Instant::now();
        if counts.again.load(Relaxed) {
            handsets.iter_mut().for_each(|handset| handset.register_again(now));
            counts.registered.store(0, Relaxed);
            counts.again.store(false, Relaxed);
        }
        if patrolled.is_none_or(|last| now - last >= PATROL) {
            patrolled = Some(now);
            first = (first + 1) % handsets.len().max(1);
            let (early, late) = handsets.split_at_mut(first);
            for (handset, socket) in
                late.iter_mut().zip(&sockets[first..]).chain(early.iter_mut().zip(sockets))
            {
                handset.patrol(now, socket, counts);
            }
            counts
                .registered
                .store(handsets.iter().filter(|handset| handset.is_registered()).count(), Relaxed);
            counts.subscribed.store(handsets.iter().map(Handset::subscribed).sum(), Relaxed);
        }
        // An interrupted wait is just short.
        let _ = poll(&mut ready, timeout);
        let now = Instant::now();
        for (index, (handset, socket)) in handsets.iter_mut().zip(sockets).enumerate() {
            if ready[index].any().unwrap_or(true) {
                // ICMP errors for earlier datagrams are reported here too; the timers handle them.
                while let Ok(length) = socket.recv(&mut buffer) {
                    handset.take(&buffer[..length], now, socket, counts);
                }
            }
        }
    }
}
