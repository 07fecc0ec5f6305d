//! A steady stream of datagrams from inside a namespace.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::namespace::Namespace;
use crate::sip::Request;

/// A connected socket inside a namespace.
pub fn socket(namespace: &Namespace, from: SocketAddr, to: SocketAddr) -> Result<UdpSocket> {
    namespace.enter(|| {
        let socket = UdpSocket::bind(from).with_context(|| format!("cannot bind to {from}"))?;
        socket.connect(to).with_context(|| format!("cannot connect to {to}"))?;
        Ok(socket)
    })
}

/// A stream of REGISTERs of one user from port 5060 to port 5060, like a fast tool.
pub fn registers(
    namespace: &Namespace,
    from: impl Into<IpAddr>,
    to: impl Into<IpAddr>,
    rate: u32,
) -> Result<Stream> {
    let (from, to) = (SocketAddr::new(from.into(), 5060), SocketAddr::new(to.into(), 5060));
    Stream::start(socket(namespace, from, to)?, rate, move |number| {
        let sequence = u32::try_from(number).unwrap_or(u32::MAX);
        Request { method: "REGISTER", user: "101", call_id: "stream", sequence, from, to }.bytes()
    })
}

/// A thread that sends at a constant rate until stopped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// Starts sending `rate` datagrams per second, made by `payload` from their number.
    pub fn start(
        socket: UdpSocket,
        rate: u32,
        mut payload: impl FnMut(u64) -> Vec<u8> + Send + 'static,
    ) -> Result<Self> {
        let interval =
            Duration::from_secs(1).checked_div(rate).context("a rate of zero is no stream")?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            let start = Instant::now();
            for number in 0.. {
                while start.elapsed() < interval.mul_f64(number as f64) {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::sleep(interval.min(Duration::from_millis(20)));
                }
                // An ICMP error for an earlier datagram is reported here; the second call sends.
                let datagram = payload(number);
                if socket.send(&datagram).is_ok() || socket.send(&datagram).is_ok() {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// Number sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops it and returns the number sent.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the sending thread panicked"))?;
        }
        Ok(self.sent())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
