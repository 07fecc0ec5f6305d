//! The servers in the machine: SIP over UDP, which counts and responds, and a TCP echo on the same
//! port.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Port of both.
const PORT: u16 = 5060;

/// Datagrams that arrived, by source address.
type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

/// Both servers, in threads.
pub(crate) struct Server {
    counts: Counts,
}

impl Server {
    pub(crate) fn start() -> Result<Self> {
        let counts = Counts::default();
        let socket =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("cannot serve SIP over UDP")?;
        let counted = Arc::clone(&counts);
        thread::spawn(move || serve_sip(&socket, &counted));
        let listener =
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("cannot serve over TCP")?;
        thread::spawn(move || serve_echo(&listener));
        Ok(Self { counts })
    }

    /// Datagrams by source address.
    pub(crate) fn counts(&self) -> Value {
        json!(*lock(&self.counts))
    }

    pub(crate) fn forget(&self) {
        lock(&self.counts).clear();
    }
}

fn lock(counts: &Counts) -> MutexGuard<'_, BTreeMap<String, u64>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve_sip(socket: &UdpSocket, counts: &Counts) {
    let mut buffer = vec![0; 65_536];
    // An error is an ICMP message for an earlier response: continue.
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        *lock(counts).entry(from.ip().to_string()).or_default() += 1;
        if let Some(answer) = answer(&String::from_utf8_lossy(&buffer[..length])) {
            let _ = socket.send_to(answer.as_bytes(), from);
        }
    }
}

/// A registrar's response: a challenge without credentials, and an acceptance with any.
fn answer(request: &str) -> Option<String> {
    let header = |name: &str| request.lines().find(|line| line.starts_with(name));
    let (via, from, to) = (header("Via:")?, header("From:")?, header("To:")?);
    let (call_id, cseq) = (header("Call-ID:")?, header("CSeq:")?);
    let (status, extra) = if header("Authorization:").is_some() {
        ("200 OK", format!("{};expires=3600", header("Contact:")?))
    } else if request.starts_with("REGISTER ") {
        let nonce = format!("{:016x}{:016x}", hash(call_id), hash(via));
        (
            "401 Unauthorized",
            format!("WWW-Authenticate: Digest realm=\"machine\", nonce=\"{nonce}\""),
        )
    } else {
        ("200 OK", "Server: machine".to_owned())
    };
    let tag = format!("{:016x}", hash(request));
    Some(format!(
        "SIP/2.0 {status}\r\n{via}\r\n{from}\r\n{to};tag={tag}\r\n{call_id}\r\n{cseq}\r\n\
         {extra}\r\nContent-Length: 0\r\n\r\n"
    ))
}

/// FNV-1a, to give different texts different nonces and tags.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn serve_echo(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
    }
}
