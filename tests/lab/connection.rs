//! SIP over one TCP connection: a client that registers or guesses, in the pieces that it is told.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

use crate::digest::Challenge;
use crate::message::Message;
use crate::namespace::Namespace;

/// How long an answer, or a connection, is waited for. A banned client waits that long.
const TIMEOUT: Duration = Duration::from_millis(1_500);

/// How a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pieces {
    /// In one segment.
    Whole,
    /// Byte by byte, each in a segment of its own.
    Bytes,
}

/// A connection to a SIP server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    from: SocketAddr,
    to: SocketAddr,
    /// What came, and is not used yet.
    buffer: Vec<u8>,
    sequence: u32,
    pieces: Pieces,
}

impl Connection {
    /// Connects from an address of the namespace.
    pub fn open(namespace: &Namespace, from: IpAddr, to: SocketAddrV4) -> Result<Self> {
        let IpAddr::V4(address) = from else { bail!("IPv4 only") };
        let stream = namespace.enter(|| {
            let (inet, flags) = (AddressFamily::Inet, SockFlag::SOCK_CLOEXEC);
            let socket = socket(inet, SockType::Stream, flags, None)?;
            bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, 0)))?;
            let stream = TcpStream::from(socket);
            // Limits the time of `connect` as well.
            stream.set_write_timeout(Some(TIMEOUT))?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            connect(stream.as_raw_fd(), &SockaddrIn::from(to))
                .with_context(|| format!("{address} cannot connect to {to}"))?;
            Ok(stream)
        })?;
        stream.set_nodelay(true)?;
        let from = stream.local_addr()?;
        let (buffer, pieces) = (Vec::new(), Pieces::Whole);
        Ok(Self { stream, from, to: to.into(), buffer, sequence: 0, pieces })
    }

    /// Writes in other pieces from now on.
    #[must_use]
    pub fn pieces(mut self, pieces: Pieces) -> Self {
        self.pieces = pieces;
        self
    }

    /// Our end.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// A request of a user in a call, with further headers, each with its line end. All of a user's
    /// connections from one address have one contact: registrars allow few.
    pub fn request(&mut self, method: &str, user: &str, call: &str, headers: &str) -> String {
        self.sequence += 1;
        let Self { from, to, sequence, .. } = self;
        format!(
            "{method} sip:{user}@{to} SIP/2.0\r\n\
             Via: SIP/2.0/TCP {from};branch=z9hG4bK{call}-{sequence}-{};rport\r\n\
             Max-Forwards: 70\r\nFrom: <sip:{user}@lab.example>;tag={call}\r\n\
             To: <sip:{user}@lab.example>\r\nCall-ID: {call}\r\nCSeq: {sequence} {method}\r\n\
             Contact: <sip:{user}@{};transport=tcp>\r\nExpires: 300\r\n\
             User-Agent: lab phone\r\n{headers}Content-Length: 0\r\n\r\n",
            from.port(),
            from.ip()
        )
    }

    /// Writes bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self.pieces {
            Pieces::Whole => self.stream.write_all(bytes)?,
            Pieces::Bytes => {
                bytes.iter().try_for_each(|byte| self.stream.write_all(&[*byte]))?;
            }
        }
        Ok(())
    }

    /// The next message, which has no body. Fails if none comes.
    pub fn read(&mut self) -> Result<Vec<u8>> {
        loop {
            let end = self.buffer.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                let rest = self.buffer.split_off(end + 4);
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            let mut bytes = [0; 4_096];
            match self.stream.read(&mut bytes)? {
                0 => bail!("the server has closed the connection"),
                length => self.buffer.extend_from_slice(&bytes[..length]),
            }
        }
    }

    /// Sends a request, and returns the status of its final answer and the challenge in it.
    pub fn ask(&mut self, request: &str) -> Result<(u16, Option<Challenge>)> {
        self.write(request.as_bytes())?;
        loop {
            let answer = self.read()?;
            let answer = Message::parse(&answer).context("no SIP message")?;
            match answer.status() {
                Some(100..200) | None => {}
                Some(status) => return Ok((status, Challenge::of(&answer))),
            }
        }
    }

    /// Registers a user, and returns the final status.
    pub fn register(&mut self, user: &str, password: &str, call: &str) -> Result<u16> {
        let request = self.request("REGISTER", user, call, "");
        let (status, challenge) = self.ask(&request)?;
        let Some(challenge) = challenge else {
            return Ok(status);
        };
        let credentials = self.credentials(&challenge, user, password);
        let request = self.request("REGISTER", user, call, &credentials);
        self.ask(&request).map(|(status, _)| status)
    }

    /// The credentials of a REGISTER.
    pub fn credentials(&self, challenge: &Challenge, user: &str, password: &str) -> String {
        let uri = format!("sip:{user}@{}", self.to);
        challenge.credentials(user, password, "REGISTER", &uri)
    }
}
