//! Takes HEP of SIP servers: copies of messages that cannot be read on the wire, since they are
//! encrypted. Each place where it listens has a thread of its own without privileges, which checks
//! who sends, and hands on what the detector can use. The daemon waits for none of them.
//!
//! A file of more than 400 lines: a quarter is its tests.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::api::answers::HepStatus;
use crate::config::{HepConfig, HepListen};
use crate::net::network::Network;
use crate::sip::hep;
use crate::sip::transport::Transport;
use crate::sys::privileges;

/// How many messages wait for the daemon; further ones are lost, and counted.
pub(crate) const WAITING: usize = 1_024;

/// How much of a message is handed on, in bytes: the headers of any that a server takes.
pub(crate) const MESSAGE: usize = 16_384;

/// How many TCP connections there may be at each place; further ones are closed at once.
pub(crate) const CONNECTIONS: usize = 16;

/// How long a TCP connection may be silent, and how long a packet may take to arrive.
const IDLE_TIME: Duration = Duration::from_secs(3_600);
const PACKET_TIME: Duration = Duration::from_secs(10);

/// Interval between attempts to listen.
const RETRY: Duration = Duration::from_secs(5);

/// The longest key that is read from a file, in bytes.
const MAX_KEY: usize = 256;

/// A message that a server has told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    /// Who told it.
    pub(crate) teller: IpAddr,
    /// Where it was taken.
    pub(crate) listen: HepListen,
    /// How it was carried: never a transport that is read on the wire.
    pub(crate) transport: Transport,
    /// Where it came from.
    pub(crate) from: SocketAddr,
    /// Where it went.
    pub(crate) to: SocketAddr,
    /// Its start.
    pub(crate) message: Vec<u8>,
    /// There was more.
    pub(crate) is_cut: bool,
}

/// Packets of one place, by what became of them.
#[derive(Debug, Default)]
struct Counts {
    /// Handed on.
    taken: AtomicU64,
    /// Of transports that are read on the wire, or not of SIP.
    ignored: AtomicU64,
    /// Without the key, or of nobody who may send.
    refused: AtomicU64,
    /// No HEP, or compressed.
    malformed: AtomicU64,
    /// Beyond what waits for the daemon.
    lost: AtomicU64,
}

/// What is known of one place.
#[derive(Debug, Default)]
struct State {
    counts: Counts,
    address: Mutex<Option<SocketAddr>>,
    error: Mutex<Option<String>>,
    /// Whether refused and malformed packets were said.
    said: [AtomicBool; 2],
}

/// One place where HEP is taken. Dropping it ends it.
#[derive(Debug)]
struct Place {
    config: HepConfig,
    state: Arc<State>,
    /// What ends the thread when it is dropped, and the thread.
    running: Option<(watch::Sender<()>, thread::JoinHandle<()>)>,
}

impl Drop for Place {
    /// Waits for the thread, which never blocks, so that its port is free for a successor.
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            // A panic was told by the thread itself.
            let _ = thread.join();
        }
    }
}

/// All places.
#[derive(Debug)]
pub(crate) struct HepInput {
    places: Vec<Place>,
    queue: mpsc::Sender<Received>,
    received: Option<mpsc::Receiver<Received>>,
}

impl Default for HepInput {
    fn default() -> Self {
        let (queue, received) = mpsc::channel(WAITING);
        Self { places: Vec::new(), queue, received: Some(received) }
    }
}

impl HepInput {
    /// What the servers tell; once.
    pub(crate) fn messages(&mut self) -> mpsc::Receiver<Received> {
        self.received.take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Listens as configured: afterwards each place takes packets, or has failed. Failures are in
    /// [`Self::warnings`], and retried.
    pub(crate) fn configure(&mut self, config: &[HepConfig]) {
        self.places.retain(|place| config.contains(&place.config));
        for one in config {
            if !self.places.iter().any(|place| place.config == *one) {
                self.places.push(self.start(one.clone()));
            }
        }
    }

    fn start(&self, config: HepConfig) -> Place {
        let state = Arc::new(State::default());
        let (stop, stopped) = watch::channel(());
        let gate = read_key("hep.key_file", &config.key_file).map(|key| Gate {
            key,
            senders: config.senders.clone(),
            queue: self.queue.clone(),
            state: Arc::clone(&state),
            listen: config.listen,
        });
        let (tried, was_tried) = sync_channel(1);
        let started = gate.and_then(|gate| {
            let run = move || run(&Arc::new(gate), &tried, stopped);
            thread::Builder::new().name("hep".to_owned()).spawn(run).context("no thread")
        });
        let running = match started {
            Ok(thread) => {
                // An error says that the thread has ended, and it has told why.
                let _ = was_tried.recv();
                Some((stop, thread))
            }
            Err(error) => {
                state.fail(config.listen, format!("{error:#}"));
                None
            }
        };
        Place { config, state, running }
    }

    /// Notes that a message which was taken is ignored after all: it was read on the wire.
    pub(crate) fn ignore(&self, received: &Received) {
        let is_place = |place: &&Place| place.config.listen == received.listen;
        if let Some(Place { state, .. }) = self.places.iter().find(is_place) {
            state.counts.taken.fetch_sub(1, Ordering::Relaxed);
            state.counts.ignored.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Its fields in `status`.
    pub(crate) fn status(&self) -> Vec<HepStatus> {
        self.places.iter().map(Place::status).collect()
    }

    /// What an operator should know.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.places.iter().flat_map(Place::warnings).collect()
    }
}

impl Place {
    fn status(&self) -> HepStatus {
        let counts = &self.state.counts;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let address = *self.state.address.lock().unwrap_or_else(PoisonError::into_inner);
        let error = self.state.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        HepStatus {
            listen: self.config.listen.to_string(),
            listening: address.is_some(),
            error,
            taken: count(&counts.taken),
            ignored: count(&counts.ignored),
            refused: count(&counts.refused),
            malformed: count(&counts.malformed),
            lost: count(&counts.lost),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let listen = self.config.listen;
        let error = self.state.error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut warnings: Vec<String> =
            error.into_iter().map(|error| format!("no HEP at {listen}: {error}")).collect();
        let refused = self.state.counts.refused.load(Ordering::Relaxed);
        if refused > 0 {
            warnings.push(format!(
                "{refused} HEP packets at {listen} were refused: their key is wrong, or [[hep]] \
                 senders does not name who sends them"
            ));
        }
        let lost = self.state.counts.lost.load(Ordering::Relaxed);
        if lost > 0 {
            warnings
                .push(format!("{lost} HEP messages at {listen} came faster than they are read"));
        }
        warnings
    }
}

impl State {
    fn fail(&self, listen: HepListen, error: String) {
        let mut before = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if before.is_none() {
            log::error!("no HEP at {listen}: {error}");
        }
        *before = Some(error);
    }
}

/// The key in a file that a setting names: its first line. None where no file is named.
pub(super) fn read_key(setting: &str, file: &Path) -> Result<Option<Vec<u8>>> {
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    let text = std::fs::read(file)
        .with_context(|| format!("{setting} = {:?} cannot be read", file.display()))?;
    let key = text.split(|byte| *byte == b'\n').next().unwrap_or_default().trim_ascii();
    if key.is_empty() || key.len() > MAX_KEY {
        bail!("{setting} = {:?} has no key of 1 to {MAX_KEY} bytes", file.display());
    }
    Ok(Some(key.to_vec()))
}

/// Compares in a time that does not tell where two keys differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let differs = one.iter().zip(other).fold(0, |sum, (one, other)| sum | (one ^ other));
    one.len() == other.len() && differs == 0
}

/// Decides what of one place is handed on.
#[derive(Debug)]
struct Gate {
    key: Option<Vec<u8>>,
    senders: Vec<Network>,
    queue: mpsc::Sender<Received>,
    state: Arc<State>,
    listen: HepListen,
}

impl Gate {
    fn admits(&self, sender: IpAddr) -> bool {
        let host = Network::host(sender);
        self.senders.is_empty() || self.senders.iter().any(|network| network.contains(&host))
    }

    fn refuse(&self, sender: IpAddr, why: &str) {
        self.state.counts.refused.fetch_add(1, Ordering::Relaxed);
        if !self.state.said[0].swap(true, Ordering::Relaxed) {
            log::warn!(
                "HEP of {sender} at {} is refused: {why}; more is only counted",
                self.listen
            );
        }
    }

    fn malformed(&self, sender: IpAddr, what: &str) {
        self.state.counts.malformed.fetch_add(1, Ordering::Relaxed);
        if !self.state.said[1].swap(true, Ordering::Relaxed) {
            log::warn!("what {sender} sends to {} is {what}; more is only counted", self.listen);
        }
    }

    /// Takes a packet.
    fn take(&self, sender: IpAddr, data: &[u8]) {
        let counts = &self.state.counts;
        if !self.admits(sender) {
            return self.refuse(sender, "it is none of the senders");
        }
        let Some(packet) = hep::read(data) else {
            return self.malformed(sender, "no HEP");
        };
        if let Some(key) = &self.key
            && !packet.key.is_some_and(|other| is_same(key, other))
        {
            return self.refuse(sender, "its key is missing or wrong");
        }
        if packet.is_packed {
            return self.malformed(sender, "compressed, which is not read");
        }
        // UDP is read on the wire, and must not count twice.
        let transport = packet.transport().filter(|transport| transport.is_stream());
        let (Some(transport), true) = (transport, packet.is_sip) else {
            counts.ignored.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let ends = (packet.from, packet.to, packet.message);
        let (Some(from), Some(to), Some(message)) = ends else {
            return self.malformed(sender, "without addresses or a message");
        };
        let kept = message.len().min(MESSAGE);
        let received = Received {
            teller: sender,
            listen: self.listen,
            transport,
            from: SocketAddr::new(from.to_canonical(), packet.from_port),
            to: SocketAddr::new(to.to_canonical(), packet.to_port),
            message: message[..kept].to_vec(),
            is_cut: kept < message.len(),
        };
        // Counted first: whoever takes it may move it to `ignored`.
        counts.taken.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(received).is_err() {
            counts.taken.fetch_sub(1, Ordering::Relaxed);
            counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Listens until `stopped` is dropped on the other side; `tried` is told of each attempt to begin.
fn run(gate: &Arc<Gate>, tried: &SyncSender<()>, mut stopped: watch::Receiver<()>) {
    privileges::keep(privileges::NOTHING);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return gate.state.fail(gate.listen, error.to_string()),
    };
    runtime.block_on(async {
        tokio::select! {
            () = listen(gate, tried) => {}
            // Only the drop of the other end matters.
            _ = stopped.changed() => {}
        }
    });
}

async fn listen(gate: &Arc<Gate>, tried: &SyncSender<()>) {
    let listening = |address| {
        gate.listening(address);
        // Only the first attempt is waited for.
        let _ = tried.try_send(());
    };
    loop {
        let address = gate.listen.address;
        let ended = if gate.listen.is_tcp {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    listening(listener.local_addr());
                    accept(&listener, gate).await
                }
                Err(error) => error,
            }
        } else {
            match UdpSocket::bind(address).await {
                Ok(socket) => {
                    listening(socket.local_addr());
                    datagrams(&socket, gate).await
                }
                Err(error) => error,
            }
        };
        *gate.state.address.lock().unwrap_or_else(PoisonError::into_inner) = None;
        gate.state.fail(gate.listen, describe(&ended));
        let _ = tried.try_send(());
        sleep(RETRY).await;
    }
}

impl Gate {
    fn listening(&self, address: io::Result<SocketAddr>) {
        let address = address.unwrap_or(self.listen.address);
        *self.state.address.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        *self.state.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        log::info!("HEP is taken at {}", self.listen);
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use by another program; set hep.listen to a free one".to_owned()
        }
        _ => format!("it cannot be listened on ({error})"),
    }
}

/// Takes datagrams until the socket fails.
async fn datagrams(socket: &UdpSocket, gate: &Gate) -> io::Error {
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, sender)) => gate.take(sender.ip().to_canonical(), &buffer[..length]),
            Err(error) => return error,
        }
    }
}

/// Takes connections until the socket fails.
async fn accept(listener: &TcpListener, gate: &Arc<Gate>) -> io::Error {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let (stream, sender) = match listener.accept().await {
            Ok((stream, sender)) => (stream, sender.ip().to_canonical()),
            // Most likely out of descriptors: wait for connections to end.
            Err(_) => {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !gate.admits(sender) {
            gate.refuse(sender, "it is none of the senders");
            continue;
        }
        // Without a permit the connection is dropped here.
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let gate = Arc::clone(gate);
            tokio::spawn(async move {
                // How a connection ends is its sender's business.
                let _ = packets(stream, sender, &gate).await;
                drop(place);
            });
        }
    }
}

/// Takes the packets of a connection, one behind the other. What is no packet ends it, since
/// nothing says where the next one begins.
async fn packets(mut stream: TcpStream, sender: IpAddr, gate: &Gate) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        let mut head = [0; hep::HEADER];
        timeout(IDLE_TIME, stream.read_exact(&mut head[..1])).await??;
        timeout(PACKET_TIME, stream.read_exact(&mut head[1..])).await??;
        let Some(length) = hep::length(&head) else {
            gate.malformed(sender, "no HEP3");
            return Ok(());
        };
        buffer[..hep::HEADER].copy_from_slice(&head);
        timeout(PACKET_TIME, stream.read_exact(&mut buffer[hep::HEADER..length])).await??;
        gate.take(sender, &buffer[..length]);
    }
}

/// Which side of a message is ours, so that the other is judged: true if it arrived. The address
/// tells if only one is an address of the server, else the port; none if neither does.
pub(crate) fn arrives(
    received: &Received,
    is_own: impl Fn(IpAddr) -> bool,
    is_sip_port: impl Fn(u16) -> bool,
) -> Option<bool> {
    let is_ours = |address: IpAddr| {
        address.is_unspecified()
            || is_own(address)
            || address == received.teller && !received.teller.is_loopback()
    };
    let Received { from, to, .. } = received;
    match (is_ours(from.ip()), is_ours(to.ip())) {
        (false, true) => Some(true),
        (true, false) => Some(false),
        _ => match (is_sip_port(from.port()), is_sip_port(to.port())) {
            (false, true) => Some(true),
            (true, false) => Some(false),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE_TEXT: &[u8] = b"REGISTER sip:a SIP/2.0\r\nVia: SIP/2.0/TLS b\r\n\r\n";

    fn chunk(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = value.len() as u16 + 6;
        [&[0, kind, length].map(u16::to_be_bytes).concat()[..], value].concat()
    }

    fn packet(protocol: u8, key: &[u8], message: &[u8]) -> Vec<u8> {
        let body = [
            chunk(2, &[protocol]),
            chunk(3, &[192, 0, 2, 7]),
            chunk(4, &[198, 51, 100, 1]),
            chunk(7, &40_000_u16.to_be_bytes()),
            chunk(8, &5_061_u16.to_be_bytes()),
            chunk(14, key),
            chunk(15, message),
        ]
        .concat();
        let length = (body.len() + hep::HEADER) as u16;
        [&hep::MAGIC[..], &length.to_be_bytes(), &body].concat()
    }

    fn gate(key: Option<&[u8]>, senders: &[&str]) -> (Gate, mpsc::Receiver<Received>) {
        let (queue, received) = mpsc::channel(2);
        let gate = Gate {
            key: key.map(<[u8]>::to_vec),
            senders: senders.iter().map(|text| text.parse().unwrap()).collect(),
            queue,
            state: Arc::default(),
            listen: HepListen::default(),
        };
        (gate, received)
    }

    fn counts(gate: &Gate) -> [u64; 5] {
        let Counts { taken, ignored, refused, malformed, lost } = &gate.state.counts;
        [taken, ignored, refused, malformed, lost].map(|count| count.load(Ordering::Relaxed))
    }

    #[test]
    fn what_is_not_read_on_the_wire_is_handed_on_and_the_rest_is_counted() {
        let (gate, mut received) = gate(None, &[]);
        let server: IpAddr = "127.0.0.1".parse().unwrap();
        gate.take(server, &packet(17, b"", MESSAGE_TEXT));
        gate.take(server, b"REGISTER sip:a SIP/2.0\r\n\r\n");
        gate.take(server, &packet(6, b"", &[b'x'; MESSAGE + 1]));
        gate.take(server, &packet(6, b"any", MESSAGE_TEXT));
        gate.take(server, &packet(6, b"", MESSAGE_TEXT));
        assert_eq!(counts(&gate), [2, 1, 0, 1, 1]);
        let long = received.try_recv().unwrap();
        assert_eq!((long.message.len(), long.is_cut), (MESSAGE, true));
        let one = received.try_recv().unwrap();
        assert_eq!((one.transport, one.message.as_slice()), (Transport::Tls, MESSAGE_TEXT));
        assert_eq!(one.from, "192.0.2.7:40000".parse().unwrap());
    }

    #[test]
    fn who_sends_must_be_named_and_know_the_key() {
        let (gate, _received) = gate(Some(b"secret"), &["192.0.2.0/24"]);
        let (good, bad) = ("192.0.2.9".parse().unwrap(), "198.51.100.9".parse().unwrap());
        gate.take(good, &packet(6, b"secret", MESSAGE_TEXT));
        for key in [&b""[..], b"secreT", b"secret ", b"secre"] {
            gate.take(good, &packet(6, key, MESSAGE_TEXT));
        }
        gate.take(bad, &packet(6, b"secret", MESSAGE_TEXT));
        assert_eq!(counts(&gate), [1, 0, 5, 0, 0]);
    }

    #[test]
    fn our_side_is_known_by_its_address_or_else_by_its_port() {
        let told = |teller: &str, from: &str, to: &str| Received {
            teller: teller.parse().unwrap(),
            listen: HepConfig::default().listen,
            transport: Transport::Tls,
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            message: Vec::new(),
            is_cut: false,
        };
        let own: IpAddr = "198.51.100.1".parse().unwrap();
        for (teller, from, to, expected) in [
            ("127.0.0.1", "192.0.2.7:40000", "198.51.100.1:8089", Some(true)),
            ("127.0.0.1", "198.51.100.1:8089", "192.0.2.7:5061", Some(false)),
            ("127.0.0.1", "192.0.2.7:40000", "0.0.0.0:8089", Some(true)),
            // Of another host, which tells of itself.
            ("203.0.113.5", "192.0.2.7:40000", "203.0.113.5:8089", Some(true)),
            // Address translation hides ours: the port tells.
            ("203.0.113.5", "192.0.2.7:40000", "10.0.0.5:5061", Some(true)),
            ("203.0.113.5", "10.0.0.5:5061", "192.0.2.7:40000", Some(false)),
            ("127.0.0.1", "127.0.0.1:40000", "127.0.0.1:8089", None),
        ] {
            let found = arrives(&told(teller, from, to), |one| one == own, |port| port == 5_061);
            assert_eq!(found, expected, "{from} {to}");
        }
    }

    #[test]
    fn a_place_listens_once_it_is_configured_and_leaves_its_port_to_the_next() {
        let mut input = HepInput::default();
        // A port that was free a moment ago.
        let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listen = HepListen { is_tcp: false, address: free };
        for senders in ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"] {
            let senders = vec![senders.parse().unwrap()];
            input.configure(&[HepConfig { listen, senders, ..HepConfig::default() }]);
            let [place] = &input.status()[..] else {
                panic!("one place");
            };
            assert!(place.listening && place.error.is_none(), "{place:?}");
        }
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = HepListen { is_tcp: false, address: taken.local_addr().unwrap() };
        input.configure(&[HepConfig { listen, ..HepConfig::default() }]);
        let place = &input.status()[0];
        assert!(!place.listening && place.error.is_some(), "{place:?}");
    }

    #[test]
    fn keys_are_the_first_line_of_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        assert_eq!(read_key("hep.key_file", Path::new("")).unwrap(), None);
        assert!(read_key("hep.key_file", &file).is_err());
        std::fs::write(&file, " secret \r\nmore\n").unwrap();
        assert_eq!(read_key("hep.key_file", &file).unwrap().as_deref(), Some(&b"secret"[..]));
        std::fs::write(&file, "\nsecret\n").unwrap();
        assert!(read_key("hep.key_file", &file).is_err());
    }
}
