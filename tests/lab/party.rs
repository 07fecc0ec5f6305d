//! A SIP endpoint on one socket that answers every request with 200 and records everything: a
//! carrier, a provider, a stranger, or a PBX.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::message::Message;
use crate::namespace::Namespace;
use crate::sip::Request;
use crate::softphone::description;

/// Interval at which the thread checks for its end.
const PATROL: Duration = Duration::from_millis(50);

/// A received datagram.
#[derive(Debug, Clone)]
pub struct Received {
    /// Time.
    pub at: SystemTime,
    /// Source.
    pub from: SocketAddr,
    /// Text.
    pub text: String,
}

/// The endpoint; dropping it closes its socket.
#[derive(Debug)]
pub struct Party {
    socket: UdpSocket,
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Party {
    /// Listens at one address of a namespace, not a wildcard.
    pub fn open(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let socket = namespace.enter(|| {
            UdpSocket::bind(address).with_context(|| format!("cannot bind to {address}"))
        })?;
        socket.set_read_timeout(Some(PATROL)).context("cannot limit the time to wait")?;
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (listener, log, stopped) =
            (socket.try_clone()?, Arc::clone(&received), Arc::clone(&stop));
        let thread = thread::spawn(move || listen(&listener, address, &log, &stopped));
        Ok(Self { socket, address, received, stop, thread: Some(thread) })
    }

    /// Sends a request with a new Call-ID, which is returned.
    pub fn request(&self, method: &str, user: &str, to: SocketAddr) -> Result<String> {
        let call_id = unique_call_id();
        let request =
            Request { method, user, call_id: &call_id, sequence: 1, from: self.address, to };
        self.send(to, &request.bytes())?;
        Ok(call_id)
    }

    /// Sends anything.
    pub fn send(&self, to: SocketAddr, datagram: &[u8]) -> Result<()> {
        // An ICMP error for an earlier datagram is reported here; the second call sends.
        let sent = self.socket.send_to(datagram, to).or_else(|_| self.socket.send_to(datagram, to));
        sent.map(drop).with_context(|| format!("cannot send to {to}"))
    }

    /// A connected socket on the same port, for a stream. From now on only datagrams from there are
    /// received.
    pub fn connected(&self, to: SocketAddr) -> Result<UdpSocket> {
        self.socket.connect(to).with_context(|| format!("cannot connect to {to}"))?;
        self.socket.try_clone().context("cannot share a socket")
    }

    /// All received datagrams.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.received).clone()
    }

    /// Number of received datagrams that start with this.
    pub fn count(&self, start: &str) -> usize {
        lock(&self.received).iter().filter(|received| received.text.starts_with(start)).count()
    }

    /// Waits for a datagram that satisfies the condition, possibly an earlier one.
    pub fn wait_for(
        &self,
        what: &str,
        timeout: Duration,
        condition: impl Fn(&Received) -> bool,
    ) -> Result<Received> {
        let mut found = None;
        let waited = crate::wait_until(what, timeout, || {
            found = lock(&self.received).iter().find(|received| condition(received)).cloned();
            Ok(found.is_some())
        });
        let starts = || -> Vec<_> {
            self.received().iter().map(|received| first_line(&received.text)).collect()
        };
        waited.with_context(|| format!("{} received only {:?}", self.address, starts()))?;
        found.context("it was just found")
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panicked thread has reported it on standard error.
            let _ = thread.join();
        }
    }
}

/// A new Call-ID.
pub fn unique_call_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("party-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed))
}

fn listen(socket: &UdpSocket, address: SocketAddr, log: &Mutex<Vec<Received>>, stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !stop.load(Relaxed) {
        // A timeout, or an ICMP error for an earlier datagram.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let datagram = &buffer[..length];
        let text = String::from_utf8_lossy(datagram).into_owned();
        lock(log).push(Received { at: SystemTime::now(), from, text });
        if let Some(message) = Message::parse(datagram)
            && message.method().is_some_and(|method| method != "ACK")
        {
            let headers = format!("Contact: <sip:party@{address}>\r\nExpires: 300\r\n");
            // Real servers want to know where the voice goes.
            let (headers, body) = match message.method() {
                Some("INVITE") => {
                    (headers + "Content-Type: application/sdp\r\n", description(address))
                }
                _ => (headers, String::new()),
            };
            // A lost response is requested again. A connected socket accepts no other address.
            let answer = message.answer_with("200 OK", &headers, &body);
            let _ = socket.send_to(&answer, from).or_else(|_| socket.send(&answer));
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn lock(received: &Mutex<Vec<Received>>) -> MutexGuard<'_, Vec<Received>> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}
