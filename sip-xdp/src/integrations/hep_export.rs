//! Sends bans and copies of dropped messages to a capture server such as Homer, as HEP version 3:
//! no capture on this host sees what is dropped in the driver.
//!
//! A task picks bans and, at a limited rate, drop samples; a thread without privileges sends them.
//! What cannot be sent at once is lost, and counted: a capture is no archive, and nothing waits.
//!
//! More than 400 lines: a third is its tests.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;
use sip_xdp_common::packet::headers::{self, Fragmentation, Inspects, Link};
use sip_xdp_common::packet::reader::Bytes;
use tokio::sync::broadcast::error::RecvError;

use super::hep::read_key;
use super::{Following, lock, note};
use crate::api::answers::HepExportStatus;
use crate::api::event_stream::{Hub, LinkKind, PacketSample};
use crate::bans::event::Event;
use crate::config::{HepExportConfig, HepServer, Rate};
use crate::net::network::address_of;
use crate::sip::hep::{Outgoing, TCP, UDP};
use crate::sip::message::Head;
use crate::sip::transport::Transport;
use crate::sys::privileges;

/// Queue length in bans and messages.
pub(crate) const WAITING: usize = 1_024;

/// How long connecting to the server, and sending to it, may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Maximum pause after repeated failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is sent.
#[derive(Debug)]
enum Item {
    Ban(Arc<Event>),
    Packet(Arc<PacketSample>),
}

#[derive(Debug, Default)]
struct Report {
    bans: AtomicU64,
    packets: AtomicU64,
    /// Drop samples beyond the rate.
    suppressed: AtomicU64,
    /// What had no room, or could not be sent.
    lost: AtomicU64,
    error: Mutex<Option<String>>,
}

/// The exporter. Ends when dropped, after the current packet.
pub(crate) struct Exporter {
    config: HepExportConfig,
    report: Arc<Report>,
    _following: Option<Following>,
}

impl Exporter {
    /// Starts sending what happens from now on to `server`. Must be called inside the runtime.
    pub(crate) fn start(config: HepExportConfig, server: HepServer, hub: &Hub) -> Self {
        let report = Arc::<Report>::default();
        let following = match Self::run(&config, server, hub, &report) {
            Ok(following) => Some(following),
            Err(error) => {
                let error = format!("{error:#}");
                log::error!("hep_export: nothing is sent: {error}");
                *lock(&report.error) = Some(error);
                None
            }
        };
        Self { config, report, _following: following }
    }

    fn run(
        config: &HepExportConfig,
        server: HepServer,
        hub: &Hub,
        report: &Arc<Report>,
    ) -> Result<Following> {
        let key = read_key("hep_export.key_file", &config.key_file)?.unwrap_or_default();
        let worker = Worker {
            writer: Writer { node_id: config.node_id, node_name: config.node_name.clone(), key },
            line: Line { server, socket: None, failures: 0, not_before: Instant::now() },
            last_logged: None,
            report: Arc::clone(report),
        };
        let (queue, items) = sync_channel(WAITING);
        thread::Builder::new().name("hep_export".to_owned()).spawn(move || worker.work(&items))?;
        Ok(follow(config, hub, queue, Arc::clone(report)))
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> &HepExportConfig {
        &self.config
    }

    /// Its fields in `status`.
    pub(crate) fn status(&self) -> HepExportStatus {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        HepExportStatus {
            server: self.config.server.clone(),
            bans: count(&self.report.bans),
            packets: count(&self.report.packets),
            suppressed: count(&self.report.suppressed),
            lost: count(&self.report.lost),
            error: lock(&self.report.error).clone(),
        }
    }

    /// What an operator should know.
    pub(crate) fn warning(&self) -> Option<String> {
        let error = lock(&self.report.error).clone()?;
        Some(format!("no HEP is sent to {}: {error}", self.config.server))
    }
}

/// Puts bans and drop samples into the queue; bans first.
fn follow(
    config: &HepExportConfig,
    hub: &Hub,
    queue: SyncSender<Item>,
    report: Arc<Report>,
) -> Following {
    let mut events = config.bans.then(|| hub.subscribe());
    // Only while somebody is subscribed to them does the kernel sample dropped packets.
    let mut packets = config.packets.then(|| hub.subscribe_packets());
    let mut pace = Pace::new(config.rate);
    Following(tokio::spawn(async move {
        loop {
            let item = tokio::select! {
                biased;
                event = next_of(&mut events) => event.map(|event| {
                    (event.event == "ban").then_some(Item::Ban(event))
                }),
                packet = next_of(&mut packets) => packet.map(|packet| {
                    let is_due = pace.admits(Instant::now());
                    report.suppressed.fetch_add(u64::from(!is_due), Ordering::Relaxed);
                    is_due.then_some(Item::Packet(packet))
                }),
            };
            let item = match item {
                Ok(Some(item)) => item,
                Ok(None) => continue,
                Err(RecvError::Lagged(count)) => {
                    report.lost.fetch_add(count, Ordering::Relaxed);
                    continue;
                }
                Err(RecvError::Closed) => return,
            };
            match queue.try_send(item) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => {
                    report.lost.fetch_add(1, Ordering::Relaxed);
                }
                Err(TrySendError::Disconnected(_)) => return,
            }
        }
    }))
}

async fn next_of<T: Clone>(
    channel: &mut Option<tokio::sync::broadcast::Receiver<T>>,
) -> Result<T, RecvError> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

/// A rate, by windows.
#[derive(Debug)]
struct Pace {
    rate: Rate,
    left: u32,
    since: Option<Instant>,
}

impl Pace {
    fn new(rate: Rate) -> Self {
        Self { rate, left: 0, since: None }
    }

    fn admits(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= self.rate.per.0) {
            (self.since, self.left) = (Some(now), self.rate.count);
        }
        let is_due = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_due
    }
}

/// The thread that sends.
struct Worker {
    writer: Writer,
    line: Line,
    last_logged: Option<String>,
    report: Arc<Report>,
}

impl Worker {
    fn work(mut self, items: &Receiver<Item>) {
        privileges::keep(privileges::NOTHING);
        while let Ok(item) = items.recv() {
            let (packet, count) = match &item {
                Item::Ban(event) => (self.writer.ban(event), &self.report.bans),
                Item::Packet(sample) => (self.writer.packet(sample), &self.report.packets),
            };
            // What is no SIP message is not sent.
            let Some(packet) = packet else { continue };
            match self.line.send(&packet) {
                Sent::Yes => {
                    count.fetch_add(1, Ordering::Relaxed);
                    *lock(&self.report.error) = None;
                    note("hep_export", &mut self.last_logged, Ok(()));
                }
                Sent::Failed(error) => {
                    self.report.lost.fetch_add(1, Ordering::Relaxed);
                    *lock(&self.report.error) = Some(error.clone());
                    note("hep_export", &mut self.last_logged, Err(error));
                }
                Sent::NotTried => {
                    self.report.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// The way to the server.
struct Line {
    server: HepServer,
    socket: Option<Wire>,
    failures: u32,
    not_before: Instant,
}

enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

/// What became of a packet.
#[derive(Debug)]
enum Sent {
    Yes,
    Failed(String),
    /// During the pause after a failure.
    NotTried,
}

impl Line {
    fn send(&mut self, packet: &[u8]) -> Sent {
        if self.socket.is_none() && Instant::now() < self.not_before {
            return Sent::NotTried;
        }
        match self.try_send(packet) {
            Ok(()) => {
                self.failures = 0;
                Sent::Yes
            }
            Err(error) => {
                // The next attempt also asks for the address again.
                self.socket = None;
                let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16));
                self.failures = self.failures.saturating_add(1);
                self.not_before = Instant::now() + pause.min(LONGEST_PAUSE);
                Sent::Failed(error.to_string())
            }
        }
    }

    fn try_send(&mut self, packet: &[u8]) -> io::Result<()> {
        let wire = match &mut self.socket {
            Some(wire) => wire,
            None => self.socket.insert(connect(&self.server)?),
        };
        match wire {
            Wire::Udp(socket) => socket.send(packet).map(drop),
            Wire::Tcp(stream) => stream.write_all(packet),
        }
    }
}

fn connect(server: &HepServer) -> io::Result<Wire> {
    let mut last = io::Error::other(format!("{} has no address", server.host));
    for address in (server.host.as_str(), server.port).to_socket_addrs()? {
        match connect_to(address, server.is_tcp) {
            Ok(wire) => return Ok(wire),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect_to(address: SocketAddr, is_tcp: bool) -> io::Result<Wire> {
    if is_tcp {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        return Ok(Wire::Tcp(stream));
    }
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.connect(address)?;
    Ok(Wire::Udp(socket))
}

/// Makes packets of events and samples.
struct Writer {
    node_id: u32,
    node_name: String,
    key: Vec<u8>,
}

impl Writer {
    fn outgoing<'a>(&'a self, time: Timestamp, payload: &'a [u8]) -> Outgoing<'a> {
        let nobody = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let seconds = u32::try_from(time.as_second()).unwrap_or_default();
        let micros = u32::try_from(time.subsec_microsecond()).unwrap_or_default();
        Outgoing {
            protocol: UDP,
            from: nobody,
            to: nobody,
            time: (seconds, micros),
            is_sip: true,
            agent: self.node_id,
            node_name: &self.node_name,
            key: &self.key,
            correlation: b"",
            payload,
        }
    }

    /// A ban as a log in JSON, as `watch` shows it. It belongs to the call of the last request;
    /// where that is not known, to the address, since heplify-server drops what belongs to nothing.
    fn ban(&self, event: &Event) -> Option<Vec<u8>> {
        let network = event.address?;
        let address = network.address();
        let any: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let correlation = event.call_id.clone().unwrap_or_else(|| network.to_string());
        let is_stream = event.transport.is_some_and(Transport::is_stream);
        let payload = serde_json::to_vec(event).ok()?;
        let outgoing = Outgoing {
            protocol: if is_stream { TCP } else { UDP },
            from: SocketAddr::new(address, event.port.unwrap_or(0)),
            to: SocketAddr::new(any, 0),
            is_sip: false,
            correlation: correlation.as_bytes(),
            ..self.outgoing(event.time, &payload)
        };
        Some(outgoing.write())
    }

    /// A dropped message, as far as it was sampled. `None` for what is none.
    fn packet(&self, sample: &PacketSample) -> Option<Vec<u8>> {
        let data = sample.bytes()?;
        let link = match sample.link {
            LinkKind::Ethernet => Link::Ethernet,
            LinkKind::Ip => Link::Ip,
        };
        let dropped = Dropped::read(&data, link)?;
        let head = Head::read(dropped.payload).filter(|_| names_sip(dropped.payload))?;
        let outgoing = Outgoing {
            protocol: dropped.protocol,
            from: dropped.from,
            to: dropped.to,
            correlation: head.call_id.unwrap_or_default(),
            ..self.outgoing(sample.time, dropped.payload)
        };
        Some(outgoing.write())
    }
}

/// Whether the start line names SIP: the parser takes that of HTTP as well, and a capture server
/// takes neither for the other.
fn names_sip(message: &[u8]) -> bool {
    let line = message.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
    line.windows(4).any(|part| part.eq_ignore_ascii_case(b"SIP/"))
}

/// What a dropped frame carried.
#[derive(Debug, PartialEq, Eq)]
struct Dropped<'a> {
    protocol: u8,
    from: SocketAddr,
    to: SocketAddr,
    payload: &'a [u8],
}

impl<'a> Dropped<'a> {
    fn read(data: &'a [u8], link: Link) -> Option<Self> {
        let packet = Bytes(data);
        let ip = headers::parse_headers(&packet, link, Inspects { ipv6: true, tags: true })?;
        let ports = ip.ports(&packet)?;
        let (protocol, (start, end)) = if ip.is_udp() {
            (UDP, ip.udp_payload(&packet)?)
        } else if ip.protocol == headers::TCP && ip.fragmentation == Fragmentation::Whole {
            // The data offset, in words of four bytes (RFC 9293, section 3.1).
            let header = usize::from(data.get(ip.transport + 12)? >> 4) * 4;
            (TCP, (ip.transport + header, ip.end))
        } else {
            return None;
        };
        Some(Self {
            protocol,
            from: SocketAddr::new(address_of(ip.source(&packet)?), ports.source()),
            to: SocketAddr::new(address_of(ip.destination(&packet)?), ports.destination()),
            payload: data.get(start..end.min(data.len()))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;
    use crate::integrations::tests::event;
    use crate::sip::hep::{self, HepPacket};

    const MESSAGE: &[u8] = b"OPTIONS sip:x SIP/2.0\r\nCall-ID: c-1\r\n\r\n";

    fn writer() -> Writer {
        Writer { node_id: 7, node_name: "gateway".to_owned(), key: b"secret".to_vec() }
    }

    /// A frame from 192.0.2.7, port 5070, to 198.51.100.1, port 5060.
    fn frame(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header: &[u8] = match protocol {
            UDP => &[0; 4],
            // Sequence numbers, a data offset of six words, and an option.
            _ => &[0, 0, 0, 1, 0, 0, 0, 2, 0x60, 0x18, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1],
        };
        let length = (20 + 4 + header.len() + payload.len()) as u16;
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 7, 198, 51, 100, 1]);
        frame.extend([5_070_u16, 5_060].map(u16::to_be_bytes).concat());
        if protocol == UDP {
            frame.extend((8 + payload.len() as u16).to_be_bytes());
            frame.extend([0, 0]);
        } else {
            frame.extend(header);
        }
        frame.extend(payload);
        frame
    }

    fn sample(data: &[u8]) -> PacketSample {
        PacketSample {
            time: "2026-01-02T03:04:05.25Z".parse().unwrap(),
            event: "packet".into(),
            kind: Some("blocked".into()),
            address: None,
            port: None,
            reason: None,
            tier: None,
            dry_run: false,
            interface: None,
            link: LinkKind::Ethernet,
            length: data.len() as u16,
            data: data.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    #[test]
    fn a_dropped_message_is_told_with_its_addresses() {
        for protocol in [UDP, TCP] {
            let data = frame(protocol, MESSAGE);
            let packet = writer().packet(&sample(&data)).unwrap();
            let found = hep::read(&packet).unwrap();
            assert_eq!((found.protocol, found.is_sip), (protocol, true));
            assert_eq!(found.from, Some("192.0.2.7".parse().unwrap()));
            assert_eq!(found.to, Some("198.51.100.1".parse().unwrap()));
            assert_eq!((found.from_port, found.to_port), (5_070, 5_060));
            assert_eq!((found.message, found.correlation), (Some(MESSAGE), Some(&b"c-1"[..])));
            assert_eq!(found.time, (1_767_323_045, 250_000));
            assert_eq!((found.agent, found.node_name), (7, Some(&b"gateway"[..])));
            assert_eq!(found.key, Some(&b"secret"[..]));
            for length in 0..data.len() {
                // Any truncation.
                let _ = writer().packet(&sample(&data[..length]));
            }
        }
    }

    #[test]
    fn what_is_no_message_is_not_told() {
        for payload in [&b"\r\n\r\n"[..], b"", b"\x16\x03\x01\x02", b"GET / HTTP/1.0\r\n\r\n"] {
            for protocol in [UDP, TCP] {
                assert_eq!(writer().packet(&sample(&frame(protocol, payload))), None);
            }
        }
        assert_eq!(writer().packet(&sample(&frame(1, MESSAGE))), None);
        let odd = PacketSample { data: "0g".to_owned(), ..sample(b"") };
        assert_eq!(writer().packet(&odd), None);
    }

    #[test]
    fn a_ban_is_a_log_of_its_call() {
        let of_call = Event { call_id: Some("c-2".to_owned()), ..event("ban", "192.0.2.7") };
        let of_nobody = event("ban", "2001:db8::/64").transport(Transport::Tls);
        for (event, address, protocol, correlation) in
            [(of_call, "192.0.2.7", UDP, "c-2"), (of_nobody, "2001:db8::", TCP, "2001:db8::/64")]
        {
            let packet = writer().ban(&event).unwrap();
            let HepPacket { from, is_sip, message, correlation: found, protocol: by, .. } =
                hep::read(&packet).unwrap();
            assert_eq!((from, is_sip, by), (Some(address.parse().unwrap()), false, protocol));
            assert_eq!(found, Some(correlation.as_bytes()));
            let told: serde_json::Value = serde_json::from_slice(message.unwrap()).unwrap();
            assert_eq!((&told["kind"], &told["event"]), (&"rejected".into(), &"ban".into()));
        }
        assert_eq!(writer().ban(&Event::new("ban")), None);
    }

    #[test]
    fn the_rate_is_kept() {
        let mut pace = Pace::new(Rate { count: 2, per: Span::seconds(1) });
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let admitted = [0, 1, 2, 999, 1_000, 1_001, 1_002, 9_000].map(|at| pace.admits(after(at)));
        assert_eq!(admitted, [true, true, false, false, true, true, false, true]);
    }

    #[tokio::test]
    async fn bans_and_samples_arrive_and_a_dead_server_costs_them_only() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        let place = server.local_addr().unwrap();
        let config = HepExportConfig {
            server: format!("udp:{place}"),
            rate: Rate { count: 1, per: Span::seconds(60) },
            ..HepExportConfig::default()
        };
        let hub = Hub::default();
        let exporter = Exporter::start(config.clone(), config.destination().unwrap(), &hub);
        let mut buffer = [0; 2_048];
        for number in 0..3 {
            hub.publish_packet(sample(&frame(UDP, MESSAGE)));
            hub.publish(event("limit", "192.0.2.7"));
            hub.publish(event("ban", &format!("192.0.2.{number}")));
        }
        let is_done = || {
            let status = exporter.status();
            status.bans >= 3 && status.suppressed >= 2 && status.packets >= 1
        };
        while !is_done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let told = |buffer: &mut [u8]| {
            let length = server.recv(buffer).unwrap();
            hep::read(&buffer[..length]).unwrap().is_sip
        };
        let logs = (0..4).filter(|_| !told(&mut buffer)).count();
        assert_eq!((logs, exporter.status().packets), (3, 1));
        assert_eq!(exporter.warning(), None);
        drop(server);
        while exporter.status().error.is_none() {
            hub.publish(event("ban", "192.0.2.9"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(exporter.status().lost > 0);
        assert!(exporter.warning().unwrap().contains(&format!("to udp:{place}: ")));
        let of_key = HepExportConfig { key_file: "/nowhere/key".into(), ..config };
        let server = of_key.destination().unwrap();
        let warning = Exporter::start(of_key, server, &hub).warning().unwrap();
        assert!(
            warning.contains("hep_export.key_file = \"/nowhere/key\" cannot be read"),
            "{warning}"
        );
    }
}
