//! What a registrar and its clients say to one another over TCP, TLS or WebSocket: as messages, as
//! TCP segments of a capture, and as HEP that a server sends.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket};

use anyhow::{Context, Result};

use crate::digest::Challenge;
use crate::message::Message;
use crate::namespace::Namespace;

/// A message, and whether it arrives at the server.
pub type Said = (bool, Vec<u8>);

/// One try of a user to register: the request, the challenge, the request with credentials, and the
/// answer to that. `number` tells tries apart.
pub fn register(user: &str, transport: &str, number: usize, is_right: bool) -> Vec<Said> {
    let request = |sequence: u32, credentials: &str| {
        format!(
            "REGISTER sip:pbx.example SIP/2.0\r\n\
             Via: SIP/2.0/{transport} phone.invalid;branch=z9hG4bK-{number}-{sequence}\r\n\
             From: <sip:{user}@pbx.example>;tag=f{number}\r\nTo: <sip:{user}@pbx.example>\r\n\
             Call-ID: call-{number}@phone.invalid\r\nCSeq: {sequence} REGISTER\r\n\
             Contact: <sip:{user}@phone.invalid;transport={transport}>;expires=600\r\n\
             User-Agent: Phone 1.0\r\n{credentials}Content-Length: 0\r\n\r\n"
        )
        .into_bytes()
    };
    let first = request(1, "");
    let challenge = format!(
        "WWW-Authenticate: Digest realm=\"pbx.example\", nonce=\"nonce-{number}\", \
         algorithm=MD5\r\n"
    );
    let answer = |request: &[u8], status: &str, headers: &str| {
        Message::parse(request).map(|request| request.answer(status, headers)).unwrap_or_default()
    };
    let challenged = answer(&first, "401 Unauthorized", &challenge);
    let read = Message::parse(&challenged).and_then(|message| Challenge::of(&message));
    let credentials = read.map(|challenge| {
        challenge.credentials(user, &format!("{number}"), "REGISTER", "sip:pbx.example")
    });
    let second = request(2, &credentials.unwrap_or_default());
    let last = if is_right {
        let contact = format!("Contact: <sip:{user}@phone.invalid>;expires=600\r\n");
        answer(&second, "200 OK", &contact)
    } else {
        answer(&second, "401 Unauthorized", &challenge)
    };
    vec![(true, first), (false, challenged), (true, second), (false, last)]
}

/// A TCP connection as a capture has it.
#[derive(Debug, Clone)]
pub struct Connection {
    client: SocketAddrV4,
    server: SocketAddrV4,
    /// The next sequence numbers of the client and the server.
    next: [u32; 2],
    /// When the next segment is sent, in nanoseconds since 1970.
    pub time: u64,
    /// Frames with their times.
    pub frames: Vec<(u64, Vec<u8>)>,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// How long after another a segment is sent, in nanoseconds.
const STEP: u64 = 200_000;

impl Connection {
    /// Opens one at a time in nanoseconds since 1970.
    pub fn open(client: SocketAddrV4, server: SocketAddrV4, time: u64) -> Self {
        // Both numbers wrap on the way.
        let next = [u32::MAX - 300, u32::MAX - 900];
        let mut connection = Self { client, server, next, time, frames: Vec::new() };
        connection.segment(true, SYN, b"");
        connection.next[0] = connection.next[0].wrapping_add(1);
        connection.segment(false, SYN | ACK, b"");
        connection.next[1] = connection.next[1].wrapping_add(1);
        connection.segment(true, ACK, b"");
        connection
    }

    /// Sends bytes in segments of so many at most, and has them acknowledged.
    pub fn send(&mut self, is_client: bool, bytes: &[u8], most: usize) {
        for part in bytes.chunks(most) {
            self.segment(is_client, ACK, part);
            let own = usize::from(!is_client);
            self.next[own] = self.next[own].wrapping_add(part.len() as u32);
        }
        self.segment(!is_client, ACK, b"");
    }

    /// Closes it.
    pub fn close(&mut self) {
        for is_client in [true, false] {
            self.segment(is_client, ACK | FIN, b"");
            let own = usize::from(!is_client);
            self.next[own] = self.next[own].wrapping_add(1);
        }
        self.segment(true, ACK, b"");
    }

    fn segment(&mut self, is_client: bool, flags: u8, payload: &[u8]) {
        let (from, to) =
            if is_client { (self.client, self.server) } else { (self.server, self.client) };
        let own = usize::from(!is_client);
        let acknowledged = if flags & ACK == 0 { 0 } else { self.next[1 - own] };
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        frame.extend((40 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend(from.ip().octets());
        frame.extend(to.ip().octets());
        frame.extend(from.port().to_be_bytes());
        frame.extend(to.port().to_be_bytes());
        frame.extend(self.next[own].to_be_bytes());
        frame.extend(acknowledged.to_be_bytes());
        frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(payload);
        self.frames.push((self.time, frame));
        self.time += STEP;
    }
}

/// A SIP server that sends HEP3.
#[derive(Debug)]
pub struct HepServer {
    socket: UdpSocket,
    key: Vec<u8>,
}

impl HepServer {
    /// In a namespace, to this address, with this key; none if it is empty.
    pub fn new(namespace: &Namespace, to: &str, key: &str) -> Result<Self> {
        let socket = namespace.enter(|| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        Ok(Self { socket, key: key.as_bytes().to_vec() })
    }

    /// Tells of a message between a client and the server, carried by this IP protocol.
    pub fn tell(
        &self,
        protocol: u8,
        (client, server): (SocketAddr, SocketAddr),
        (arrives, message): &Said,
    ) -> Result<()> {
        let (from, to) = if *arrives { (client, server) } else { (server, client) };
        let packet = hep3(protocol, from, to, &self.key, message);
        self.socket.send(&packet).context("HEP cannot be sent").map(drop)
    }
}

/// A packet of HEP3, with chunks that nobody needs to know.
pub fn hep3(protocol: u8, from: SocketAddr, to: SocketAddr, key: &[u8], message: &[u8]) -> Vec<u8> {
    let chunk = |vendor: u16, kind: u16, value: &[u8]| {
        let length = value.len() as u16 + 6;
        [&[vendor, kind, length].map(u16::to_be_bytes).concat()[..], value].concat()
    };
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let v6 = u16::from(from.is_ipv6());
    let mut body = [
        chunk(0, 1, &[if from.is_ipv6() { 10 } else { 2 }]),
        chunk(0, 2, &[protocol]),
        chunk(0, 3 + 2 * v6, &octets(from.ip())),
        chunk(0, 4 + 2 * v6, &octets(to.ip())),
        chunk(0, 7, &from.port().to_be_bytes()),
        chunk(0, 8, &to.port().to_be_bytes()),
        chunk(0, 9, &1_700_000_000_u32.to_be_bytes()),
        chunk(0, 10, &[0; 4]),
        chunk(0, 11, &[1]),
        chunk(0, 12, &7_u32.to_be_bytes()),
        chunk(0x4242, 1, b"of a vendor"),
    ]
    .concat();
    if !key.is_empty() {
        body.extend(chunk(0, 14, key));
    }
    body.extend(chunk(0, 15, message));
    body.extend(chunk(0, 17, b"correlation"));
    [b"HEP3", &(body.len() as u16 + 6).to_be_bytes()[..], &body].concat()
}
