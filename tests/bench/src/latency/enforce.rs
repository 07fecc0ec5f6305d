//! Enforcement latency: time from the block command to the first dropped packet of a source.
//!
//! A stream of numbered requests runs all the time, and their send times are recorded; the first
//! one that does not arrive was sent after the enforcement.

use std::mem::replace;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sip_xdp_tests::sip::Request;
use sip_xdp_tests::topology::{ATTACKER, PBX_WAN, WAN};
use sip_xdp_tests::{Filter, FilterOptions, Lab, Stream, stream};

/// Requests per second; their interval is the precision of the result.
pub(crate) const RATE: u32 = 10_000;

/// Nothing but the block list may drop anything.
const NO_LIMITS: &str = r#"
[limits.unknown]
register = { count = 1000000, per = "2m" }
requests = { count = 1000000, per = "2m" }
[detect.register]
enabled = false
count = 100
per = "60s"
[detect.requests]
enabled = false
count = 50
per = "10s"
"#;

const TIMEOUT: Duration = Duration::from_secs(5);
/// How often is asked whether packets arrive.
const PULSE: Duration = Duration::from_millis(1);
/// How many packets in a row make us believe that they all arrive, or that none does.
const ENOUGH: u64 = 20;
/// More than the stream sends between a block and its evaluation.
const REMEMBERED: usize = 1 << 16;

/// Blocks and unblocks the source of the stream `count` times; milliseconds from each call to the
/// first dropped packet.
pub(crate) fn run(count: usize) -> Result<Vec<f64>> {
    let lab = Lab::new()?;
    let options = FilterOptions { configuration: NO_LIMITS.to_owned(), ..FilterOptions::default() };
    let filter = Filter::start_with(&lab.pbx, lab.directory(), options)?;
    let target = SocketAddr::new(PBX_WAN.into(), 5060);
    let sink = lab
        .pbx
        .enter(|| UdpSocket::bind(target).with_context(|| format!("cannot bind to {target}")))?;
    let received = Received::listen(sink);
    let sent = Arc::new(SendTimes::new());
    let flow = numbered(&lab, target, Arc::clone(&sent))?;

    let mut latencies = Vec::with_capacity(count);
    for _ in 0..count {
        let before = received.latest();
        wait_until("the stream flows", || received.latest() > before + ENOUGH)?;
        let called = sent.clock();
        filter.put("block", &[ATTACKER.to_string()], None)?;
        let last = received.settle(&flow)?;
        let dropped = sent.of(last + 1);
        latencies.push(dropped.saturating_sub(called).as_secs_f64() * 1e3);
        filter.call(
            &json!({ "command": "delete", "list": "block", "network": ATTACKER.to_string() }),
        )?;
    }
    flow.stop()?;
    if filter.packets(WAN, "drop.blocked")? != filter.dropped(WAN)? {
        bail!("something else than the block list dropped packets");
    }
    Ok(latencies)
}

/// Asks again and again until `condition` holds.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > TIMEOUT {
            bail!("not within {TIMEOUT:?}: {what}");
        }
        sleep(PULSE);
    }
    Ok(())
}

/// The stream: each request ends with its number, counted from 1, and is remembered with its time.
fn numbered(lab: &Lab, target: SocketAddr, times: Arc<SendTimes>) -> Result<Stream> {
    let from = SocketAddr::new(ATTACKER.into(), 5060);
    let request = Request {
        method: "REGISTER",
        user: "101",
        call_id: "stream",
        sequence: 1,
        from,
        to: target,
    };
    let head = request.bytes();
    Stream::start(stream::socket(&lab.attacker, from, target)?, RATE, move |number| {
        times.record(number + 1);
        [&head[..], &(number + 1).to_be_bytes()].concat()
    })
}

/// When each of the last packets was sent.
struct SendTimes {
    start: Instant,
    /// Nanoseconds since the start, by the packet's number modulo their count.
    times: Vec<AtomicU64>,
}

impl SendTimes {
    fn new() -> Self {
        Self { start: Instant::now(), times: (0..REMEMBERED).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Now, on the same clock.
    fn clock(&self) -> Duration {
        self.start.elapsed()
    }

    fn record(&self, number: u64) {
        let now = u64::try_from(self.clock().as_nanos()).unwrap_or(u64::MAX);
        self.slot(number).store(now, Ordering::Relaxed);
    }

    fn of(&self, number: u64) -> Duration {
        Duration::from_nanos(self.slot(number).load(Ordering::Relaxed))
    }

    fn slot(&self, number: u64) -> &AtomicU64 {
        // The remainder is smaller than the number of slots.
        &self.times[number as usize % REMEMBERED]
    }
}

/// What arrives at the server.
struct Received {
    latest: Arc<AtomicU64>,
}

impl Received {
    /// Receives on a thread of its own, which ends with this value.
    fn listen(socket: UdpSocket) -> Self {
        let latest = Arc::new(AtomicU64::new(0));
        let asked = Arc::downgrade(&latest);
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            // Without a time limit the thread could not notice that nobody asks any more.
            if socket.set_read_timeout(Some(Duration::from_millis(100))).is_err() {
                return;
            }
            while let Some(latest) = asked.upgrade() {
                let Ok(length) = socket.recv(&mut buffer) else { continue };
                if let Some(number) = buffer[..length].last_chunk().copied().map(u64::from_be_bytes)
                {
                    latest.fetch_max(number, Ordering::Relaxed);
                }
            }
        });
        Self { latest }
    }

    /// The highest number so far.
    fn latest(&self) -> u64 {
        self.latest.load(Ordering::Relaxed)
    }

    /// Waits until nothing of the stream arrives any more; the number of the last one that did.
    fn settle(&self, flow: &Stream) -> Result<u64> {
        let mut last = self.latest();
        wait_until("packets of the blocked source stop arriving", || {
            let before = replace(&mut last, self.latest());
            before == last && flow.sent() > last + ENOUGH
        })?;
        Ok(last)
    }
}
