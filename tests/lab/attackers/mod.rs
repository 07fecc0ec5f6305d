//! Attackers in capture time: strategies that react to what is dropped, against the real kernel
//! programs and the detector, with a model of a registrar behind them. A day takes seconds.
//!
//! What counts is what the attacker came for: guesses that the registrar answered.
//!
//! More than 400 lines: what all strategies are made of.

pub mod budgets;
mod frames;
mod guessers;
mod relay;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use sip_xdp::config::Config;
use sip_xdp::net::network::Network;
use sip_xdp::tools::replay::{Session, SessionBan};

use frames::{LARGEST, Segment, frames};
pub use guessers::{Account, Guesser, NonceSource, Owner, Pace, Peer, Places, Users};
pub use relay::Relay;

/// Nanoseconds.
pub const MILLISECOND: u64 = 1_000_000;
/// Nanoseconds.
pub const SECOND: u64 = 1_000 * MILLISECOND;
/// Nanoseconds.
pub const MINUTE: u64 = 60 * SECOND;
/// Nanoseconds.
pub const HOUR: u64 = 60 * MINUTE;
/// Nanoseconds.
pub const DAY: u64 = 24 * HOUR;

/// Where the first day begins, in nanoseconds since 1970.
const START: u64 = 1_800_000_000 * SECOND;

/// From a request to its answer, in nanoseconds.
const LATENCY: u64 = 200_000;

/// For how long the registrar takes a nonce (Kamailio's `nonce_expire` is 300 s by default).
const NONCE_LIFETIME: u64 = 300 * SECOND;

/// The registrar.
pub const REGISTRAR_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The same by IPv6.
pub const REGISTRAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);

/// How a request is laid out on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// As clients do it.
    #[default]
    Plain,
    /// 1,460 bytes of another header first, so that what identifies it is in the second fragment.
    Padded,
    /// The same behind what identifies it, before its credentials.
    PaddedBehind,
    /// A first fragment that is too short to tell what it is.
    TinyFragment,
    /// Names so long that the challenge in the answer lies behind what is sampled of a request.
    LongNames,
}

/// A request to the registrar.
#[derive(Debug, Clone)]
pub struct Try {
    /// Whence.
    pub from: SocketAddr,
    /// Whether it goes over TCP: by the connection that this place has, or a new one.
    pub is_tcp: bool,
    /// The method.
    pub method: &'static str,
    /// Whose password this is about.
    pub user: String,
    /// The number in its Call-ID.
    pub call: u64,
    /// The nonce of its credentials, if it has any.
    pub nonce: Option<String>,
    /// Whether the password is right.
    pub is_right: bool,
    /// Its form.
    pub shape: Shape,
    /// Where the registrar sends its answer, if not to where the request came from (`maddr`).
    pub answered_at: Option<SocketAddr>,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: it was dropped.
    Silence,
    /// A challenge with a nonce: to a request without credentials, or with a nonce that is too old.
    Challenge(String),
    /// The password was wrong; with the next nonce.
    Wrong(String),
    /// The password was right.
    Accepted,
}

/// Somebody who acts, waits, and acts again.
pub trait Agent {
    /// Acts, and says for how many nanoseconds it waits then; nothing if it is done.
    ///
    /// # Errors
    ///
    /// If the kernel does not run its programs.
    fn act(&mut self, world: &mut World<'_>) -> Result<Option<u64>>;
}

/// The filter, the registrar behind it, and the time.
pub struct World<'c> {
    session: Session<'c>,
    /// Nanoseconds since [`START`].
    now: u64,
    serial: u64,
    /// Nonces and when they were given, the oldest first.
    nonces: HashMap<String, u64>,
    given: VecDeque<String>,
    /// Whether everybody gets the same nonce within a second, as Kamailio does by default.
    shares_nonces: bool,
    /// Guesses that were answered, by day.
    guesses: Vec<u64>,
    /// TCP connections by the client's place.
    connections: HashMap<SocketAddr, Connection>,
}

/// A TCP connection: the next sequence numbers of both sides.
#[derive(Debug, Clone, Copy)]
struct Connection {
    client: u32,
    server: u32,
}

impl<'c> World<'c> {
    /// A world at its beginning.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the programs.
    pub fn new(config: &'c Config) -> Result<Self> {
        let addresses = [IpAddr::from(REGISTRAR_V4), IpAddr::from(REGISTRAR_V6)];
        let session = Session::new(config, addresses.map(Network::host).to_vec())?;
        let (nonces, given) = (HashMap::new(), VecDeque::new());
        Ok(Self {
            session,
            now: 0,
            serial: 0,
            nonces,
            given,
            shares_nonces: false,
            guesses: Vec::new(),
            connections: HashMap::new(),
        })
    }

    /// Lets the registrar give everybody the same nonce within a second.
    pub fn share_nonces(&mut self) {
        self.shares_nonces = true;
    }

    /// Nanoseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// A number that was not used before.
    pub fn number(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Guesses that were answered on each day.
    pub fn guesses(&self) -> &[u64] {
        &self.guesses
    }

    /// All bans so far.
    pub fn bans(&self) -> Vec<SessionBan> {
        self.session.bans().collect()
    }

    /// What else was decided.
    pub fn session(&self) -> &Session<'c> {
        &self.session
    }

    /// Lets agents act until then, in nanoseconds since the beginning.
    ///
    /// # Errors
    ///
    /// If the kernel does not run its programs.
    pub fn run(&mut self, agents: &mut [Box<dyn Agent>], until: u64) -> Result<()> {
        let mut due: BinaryHeap<Reverse<(u64, usize)>> =
            (0..agents.len()).map(|n| Reverse((self.now, n))).collect();
        while let Some(Reverse((at, number))) = due.pop() {
            if at >= until {
                break;
            }
            self.now = self.now.max(at);
            if let Some(pause) = agents[number].act(self)? {
                due.push(Reverse((self.now + pause.max(MILLISECOND), number)));
            }
        }
        self.now = until;
        Ok(())
    }

    /// The registrar's address for a client.
    fn registrar(client: &SocketAddr) -> SocketAddr {
        match client {
            SocketAddr::V4(_) => (REGISTRAR_V4, 5060).into(),
            SocketAddr::V6(_) => (REGISTRAR_V6, 5060).into(),
        }
    }

    /// Sends a request, and lets the registrar answer it if it arrives.
    ///
    /// # Errors
    ///
    /// If the kernel does not run its programs.
    pub fn send(&mut self, request: &Try) -> Result<Reply> {
        if request.is_tcp {
            return self.send_by_tcp(request);
        }
        let serial = self.number();
        let to = Self::registrar(&request.from);
        let text = request.text(serial);
        let first = if request.shape == Shape::TinyFragment { 32 } else { LARGEST };
        let mut arrives = true;
        for frame in frames(request.from, to, text.as_bytes(), first, serial as u32) {
            arrives &= self.session.arrives(START + self.now, &frame)?;
        }
        if !arrives {
            return Ok(Reply::Silence);
        }
        let (reply, answer) = self.judge(request, serial);
        self.now += LATENCY;
        self.leave(to, request.answered_at.unwrap_or(request.from), answer.as_bytes())?;
        Ok(reply)
    }

    /// The same over TCP. A client whose segment is dropped gives its connection up.
    fn send_by_tcp(&mut self, request: &Try) -> Result<Reply> {
        let (client, server) = (request.from, Self::registrar(&request.from));
        let connection = match self.connections.remove(&client) {
            Some(connection) => Some(connection),
            None => self.connect(client, server)?,
        };
        let Some(Connection { client: sequence, server: acknowledges }) = connection else {
            return Ok(Reply::Silence);
        };
        let serial = self.number();
        let text = request.text(serial);
        let asking = Segment {
            sequence,
            acknowledges: Some(acknowledges),
            payload: text.as_bytes(),
            ..Segment::default()
        };
        let first = if request.shape == Shape::TinyFragment { 32 } else { LARGEST };
        let mut arrives = true;
        for frame in asking.frames(client, server, first, serial as u32)? {
            arrives &= self.session.arrives(START + self.now, &frame)?;
        }
        if !arrives {
            return Ok(Reply::Silence);
        }
        let (reply, answer) = self.judge(request, serial);
        self.now += LATENCY;
        let next = Connection {
            client: sequence.wrapping_add(text.len() as u32),
            server: acknowledges.wrapping_add(answer.len() as u32),
        };
        let answering = Segment {
            sequence: acknowledges,
            acknowledges: Some(next.client),
            payload: answer.as_bytes(),
            ..Segment::default()
        };
        self.session.frame(START + self.now, &answering.frame(server, client)?)?;
        if next.acknowledge(self, client, server)? {
            self.connections.insert(client, next);
        }
        Ok(reply)
    }

    /// Opens a connection; none if a segment of the client's is dropped.
    fn connect(&mut self, client: SocketAddr, server: SocketAddr) -> Result<Option<Connection>> {
        // Numbers that differ from those of the connection before.
        let first = (self.number() as u32).wrapping_mul(0x9e37_79b9);
        let syn = Segment { syn: true, sequence: first, ..Segment::default() };
        if !self.session.arrives(START + self.now, &syn.frame(client, server)?)? {
            return Ok(None);
        }
        let next = Connection { client: first.wrapping_add(1), server: !first };
        let accept = Segment {
            syn: true,
            sequence: next.server.wrapping_sub(1),
            acknowledges: Some(next.client),
            ..Segment::default()
        };
        self.session.frame(START + self.now, &accept.frame(server, client)?)?;
        Ok(next.acknowledge(self, client, server)?.then_some(next))
    }

    /// A request that arrives and that the host throws away, because its UDP checksum is wrong.
    /// Returns the number in its branch.
    ///
    /// # Errors
    ///
    /// If the kernel does not run its programs.
    pub fn send_in_vain(&mut self, request: &Try) -> Result<u64> {
        let serial = self.number();
        let to = Self::registrar(&request.from);
        for frame in frames(request.from, to, request.text(serial).as_bytes(), LARGEST, 0) {
            self.session.arrives(START + self.now, &frame)?;
        }
        Ok(serial)
    }

    /// An answer to a request that nobody else has answered, made up by `from`: it arrives, and the
    /// registrar, as a proxy, sends it on to its second Via.
    ///
    /// # Errors
    ///
    /// If the kernel does not run its programs.
    pub fn forward(
        &mut self,
        from: SocketAddr,
        request: &Try,
        serial: u64,
        status: &str,
        headers: &str,
    ) -> Result<()> {
        let proxy = Self::registrar(&request.from);
        let answer = request.answer(status, headers, serial);
        let via = format!("Via: SIP/2.0/UDP {proxy};branch=z9hG4bKown{serial}\r\n");
        let (line, rest) = answer.split_once("\r\n").unwrap_or((&answer, ""));
        let arriving = format!("{line}\r\n{via}{rest}");
        let id = self.number() as u32;
        let mut arrives = true;
        for frame in frames(from, proxy, arriving.as_bytes(), LARGEST, id) {
            arrives &= self.session.arrives(START + self.now, &frame)?;
        }
        self.now += LATENCY;
        if arrives {
            self.leave(proxy, request.from, answer.as_bytes())?;
        }
        Ok(())
    }

    /// Lets the registrar send something.
    fn leave(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Result<()> {
        let id = self.number() as u32;
        for frame in frames(from, to, payload, LARGEST, id) {
            self.session.frame(START + self.now, &frame)?;
        }
        Ok(())
    }

    /// The registrar asks a host whether it is there, which answers; so it becomes a peer.
    ///
    /// # Errors
    ///
    /// If the kernel does not run its programs.
    pub fn ask(&mut self, host: SocketAddr) -> Result<()> {
        let (from, number) = (Self::registrar(&host), self.number());
        let common = format!(
            "Via: SIP/2.0/UDP {from};branch=z9hG4bK{number}\r\nFrom: \
             <sip:ping@{from}>;tag=p{number}\r\n\
             To: <sip:{host}>\r\nCall-ID: ping-{number}\r\nCSeq: {number} \
             OPTIONS\r\nContent-Length: 0\r\n\r\n"
        );
        self.leave(from, host, format!("OPTIONS sip:{host} SIP/2.0\r\n{common}").as_bytes())?;
        self.now += LATENCY;
        let answer = format!("SIP/2.0 200 OK\r\n{common}");
        for frame in frames(host, from, answer.as_bytes(), LARGEST, number as u32) {
            self.session.arrives(START + self.now, &frame)?;
        }
        Ok(())
    }

    /// What the registrar answers.
    fn judge(&mut self, request: &Try, serial: u64) -> (Reply, String) {
        let is_fresh = |nonce: &String| {
            self.nonces.get(nonce).is_some_and(|at| self.now - at < NONCE_LIFETIME)
        };
        let tried = request.nonce.as_ref().map(is_fresh);
        if tried == Some(true) && request.is_right {
            return (Reply::Accepted, request.answer("200 OK", "Expires: 3600\r\n", serial));
        }
        let is_guess = tried == Some(true);
        if is_guess {
            let day = (self.now / DAY) as usize;
            self.guesses.resize(self.guesses.len().max(day + 1), 0);
            self.guesses[day] += 1;
        }
        let nonce = self.nonce(serial);
        let stale = if tried == Some(false) { ", stale=TRUE" } else { "" };
        let (status, header) = match request.method {
            "REGISTER" => ("401 Unauthorized", "WWW-Authenticate"),
            _ => ("407 Proxy Authentication Required", "Proxy-Authenticate"),
        };
        let header =
            format!("{header}: Digest realm=\"lab.example\", nonce=\"{nonce}\"{stale}\r\n");
        let answer = request.answer(status, &header, serial);
        (if is_guess { Reply::Wrong(nonce) } else { Reply::Challenge(nonce) }, answer)
    }

    fn nonce(&mut self, serial: u64) -> String {
        let number = if self.shares_nonces { self.now / SECOND } else { serial };
        let nonce = format!("{number:012x}{:020x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if !self.nonces.contains_key(&nonce) {
            self.given.push_back(nonce.clone());
        }
        self.nonces.insert(nonce.clone(), self.now);
        while let Some(oldest) = self.given.front()
            && self.nonces.get(oldest).is_none_or(|at| self.now - at > 2 * NONCE_LIFETIME)
        {
            self.nonces.remove(oldest);
            self.given.pop_front();
        }
        nonce
    }
}

impl Connection {
    /// The client acknowledges what it has. Returns whether that arrives.
    fn acknowledge(
        &self,
        world: &mut World<'_>,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<bool> {
        let segment = Segment {
            sequence: self.client,
            acknowledges: Some(self.server),
            ..Segment::default()
        };
        world.session.arrives(START + world.now, &segment.frame(client, server)?)
    }
}

impl Try {
    /// A request without credentials, as clients write it, by UDP.
    pub fn new(from: SocketAddr, method: &'static str, user: impl Into<String>, call: u64) -> Self {
        Self {
            from,
            is_tcp: false,
            method,
            user: user.into(),
            call,
            nonce: None,
            is_right: false,
            shape: Shape::Plain,
            answered_at: None,
        }
    }

    /// Lines that a request and its answer share, and where names may be long.
    fn dialog(&self, serial: u64, tag: &str) -> String {
        let Self { from, method, user, call, shape, .. } = self;
        let by = if self.is_tcp { "TCP" } else { "UDP" };
        let name = if *shape == Shape::LongNames { "n".repeat(520) } else { String::new() };
        format!(
            "Via: SIP/2.0/{by} {from};branch=z9hG4bK{serial:x};rport\r\n\
             From: \"{name}\" <sip:{user}@lab.example>;tag=f{call}\r\n\
             To: \"{name}\" <sip:{user}@lab.example>{tag}\r\n\
             Call-ID: call-{call}\r\nCSeq: {serial} {method}\r\n"
        )
    }

    fn text(&self, serial: u64) -> String {
        let Self { from, method, user, nonce, is_right, shape, .. } = self;
        let to = World::registrar(from);
        let padding = |of: Shape| {
            if *shape == of {
                format!("X-Padding: {}\r\n", "p".repeat(1_460))
            } else {
                String::new()
            }
        };
        let (padding, behind) = (padding(Shape::Padded), padding(Shape::PaddedBehind));
        let name = if *method == "REGISTER" { "Authorization" } else { "Proxy-Authorization" };
        let response = if *is_right { 0 } else { serial };
        let credentials = nonce.as_ref().map_or_else(String::new, |nonce| {
            format!(
                "{name}: Digest username=\"{user}\", realm=\"lab.example\", nonce=\"{nonce}\", \
                 uri=\"sip:{to}\", response=\"{response:032x}\", algorithm=MD5\r\n"
            )
        });
        let target = if *method == "REGISTER" { to.to_string() } else { format!("900@{to}") };
        let dialog = self.dialog(serial, "");
        format!(
            "{method} sip:{target} SIP/2.0\r\n{padding}{dialog}Max-Forwards: 70\r\n\
             Contact: <sip:{user}@{from}>\r\n{behind}{credentials}Content-Length: 0\r\n\r\n"
        )
    }

    fn answer(&self, status: &str, headers: &str, serial: u64) -> String {
        let tag = format!(";tag=to-{:016x}", serial.wrapping_mul(0x2545_f491_4f6c_dd1d));
        format!(
            "SIP/2.0 {status}\r\n{}{headers}Content-Length: 0\r\n\r\n",
            self.dialog(serial, &tag)
        )
    }
}
