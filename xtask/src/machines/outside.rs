//! The world outside a machine: taps in a private network namespace, with the addresses of an
//! attacker, a phone and a stranger, and their packets.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::interfaces::{Card, Row};
use super::tags::Tagger;
use crate::command::run_quietly;

/// Where SIP is served.
pub(crate) const SIP: u16 = 5060;

/// How long an answer may take on an emulated machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A sender outside: the last byte of its address.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Who {
    Gateway = 1,
    Machine = 2,
    Blocked = 66,
    Flooder = 77,
    Phone = 88,
    Stranger = 99,
}

/// The outside of one row's interface. Dropping it removes its devices, so that the next kernel's
/// may have the same names.
pub(crate) struct Outside {
    network: u8,
    devices: Vec<String>,
    _tagger: Option<Tagger>,
}

impl Drop for Outside {
    fn drop(&mut self) {
        for device in &self.devices {
            // A failure shows when a device of this name is made again.
            let _ = run_quietly(&mut ip(&["link", "delete", "dev", device]));
        }
    }
}

impl Outside {
    /// Makes the taps, before a machine is booted that uses them, and gives them addresses. Two
    /// cards are joined by a bridge, like two ports of a switch.
    pub(crate) fn open(cards: &[Card], row: &Row, directory: &Path) -> Result<Self> {
        let first = cards.first().context("a row has a card")?;
        let network = first.number;
        let mut outside = Self { network, devices: Vec::new(), _tagger: None };
        for card in cards.iter().filter(|card| !card.tagged) {
            let tap = card.tap();
            let mut command = ip(&["tuntap", "add", "dev", &tap, "mode", "tap", "vnet_hdr"]);
            if card.has_queues() {
                command.arg("multi_queue");
            }
            run_quietly(&mut command)?;
            run_quietly(&mut ip(&["link", "set", "dev", &tap, "mtu", &row.mtu.to_string(), "up"]))?;
            outside.devices.push(tap);
        }
        let device = match cards {
            [only] if only.tagged => {
                let name = format!("plain{network}");
                outside._tagger = Some(Tagger::start(&name, directory, network)?);
                outside.devices.push(name.clone());
                name
            }
            [only] => only.tap(),
            several => {
                let name = format!("switch{network}");
                run_quietly(&mut ip(&["link", "add", "name", &name, "type", "bridge"]))?;
                outside.devices.push(name.clone());
                for card in several {
                    run_quietly(&mut ip(&["link", "set", "dev", &card.tap(), "master", &name]))?;
                }
                name
            }
        };
        for who in [Who::Gateway, Who::Blocked, Who::Flooder, Who::Phone, Who::Stranger] {
            run_quietly(&mut ip(&[
                "address",
                "add",
                &format!("{}/24", outside.address(who)),
                "dev",
                &device,
            ]))?;
        }
        run_quietly(&mut ip(&["link", "set", "dev", &device, "up"]))?;
        Ok(outside)
    }

    /// Somebody's address.
    pub(crate) fn address(&self, who: Who) -> Ipv4Addr {
        Ipv4Addr::new(10, 64, self.network, who as u8)
    }

    fn machine(&self) -> SocketAddr {
        SocketAddrV4::new(self.address(Who::Machine), SIP).into()
    }

    fn socket(&self, who: Who) -> Result<UdpSocket> {
        let socket = UdpSocket::bind((self.address(who), 0))?;
        socket.connect(self.machine())?;
        Ok(socket)
    }

    /// Waits until the machine is reached: until a request is answered.
    pub(crate) fn reach(&self) -> Result<()> {
        let socket = self.socket(Who::Gateway)?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let mut buffer = [0; 2048];
        for number in 0..80 {
            // Until the neighbour is known, the kernel may answer that nobody is there.
            let _ = socket.send(self.request(Who::Gateway, "OPTIONS", number, None).as_bytes());
            if socket.recv(&mut buffer).is_ok() {
                return Ok(());
            }
        }
        bail!("no packet comes back from the machine")
    }

    /// Sends so many requests; those after the first answer are not waited for.
    pub(crate) fn send(&self, who: Who, method: &str, count: u32, pause: Duration) -> Result<()> {
        let socket = self.socket(who)?;
        for number in 0..count {
            // An error is an ICMP message for an earlier one.
            let _ = socket.send(self.request(who, method, number, None).as_bytes());
            thread::sleep(pause);
        }
        Ok(())
    }

    /// Sends one datagram of this size: larger than a packet of the usual size.
    pub(crate) fn send_large(&self, who: Who, size: usize) -> Result<()> {
        let mut text = self.request(who, "OPTIONS", 7_000, None);
        text.push_str(&"x".repeat(size.saturating_sub(text.len())));
        self.socket(who)?.send(text.as_bytes())?;
        Ok(())
    }

    /// Sends from the blocked address, every few milliseconds, until stopped.
    pub(crate) fn keep_sending(&self) -> Result<Stream> {
        let socket = self.socket(Who::Blocked)?;
        let text = self.request(Who::Blocked, "OPTIONS", 9_000, None);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                sent += u32::from(socket.send(text.as_bytes()).is_ok());
                thread::sleep(Duration::from_millis(5));
            }
            sent
        });
        Ok(Stream { stop, thread: Some(thread) })
    }

    /// Registers as a phone does: challenged once, accepted with credentials.
    pub(crate) fn register(&self) -> Result<()> {
        let socket = self.socket(Who::Phone)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        let challenge = exchange(&socket, &self.request(Who::Phone, "REGISTER", 1, None))?;
        if !challenge.starts_with("SIP/2.0 401") {
            bail!("not challenged: {}", challenge.lines().next().unwrap_or_default());
        }
        let nonce = challenge.split("nonce=\"").nth(1).and_then(|rest| rest.split('"').next());
        let accepted = exchange(
            &socket,
            &self.request(Who::Phone, "REGISTER", 2, Some(nonce.context("no nonce")?)),
        )?;
        if !accepted.starts_with("SIP/2.0 200") {
            bail!("not accepted: {}", accepted.lines().next().unwrap_or_default());
        }
        Ok(())
    }

    fn request(&self, who: Who, method: &str, number: u32, nonce: Option<&str>) -> String {
        let (from, to, name) = (self.address(who), self.address(Who::Machine), who as u8);
        let credentials = nonce.map_or(String::new(), |nonce| {
            format!(
                "Authorization: Digest username=\"{name}\", realm=\"machine\", nonce=\"{nonce}\", \
                 uri=\"sip:{to}\", response=\"0123456789abcdef0123456789abcdef\"\r\n"
            )
        });
        // A registration is one conversation: its requests share the Call-ID.
        let call = if method == "REGISTER" && matches!(who, Who::Phone) { 0 } else { number };
        format!(
            "{method} sip:{to} SIP/2.0\r\nVia: SIP/2.0/UDP \
             {from}:5060;rport;branch=z9hG4bK{name}x{number}\r\n\
             Max-Forwards: 70\r\nFrom: <sip:{name}@{to}>;tag={name}\r\nTo: <sip:{name}@{to}>\r\n\
             Call-ID: {call}.{name}@{from}\r\nCSeq: {number} {method}\r\nContact: \
             <sip:{name}@{from}:5060>\r\n\
             {credentials}Content-Length: 0\r\n\r\n"
        )
    }

    /// Sends bytes to the machine over TCP and takes the same back.
    pub(crate) fn echo_inwards(&self, size: usize) -> Result<()> {
        let mut stream =
            TcpStream::connect_timeout(&self.machine(), TIMEOUT).context("no connection")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let sent: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
        let mut writer = stream.try_clone()?;
        let bytes = sent.clone();
        let writing = thread::spawn(move || writer.write_all(&bytes));
        let mut received = vec![0; size];
        stream.read_exact(&mut received).context("not all bytes came back")?;
        if !writing.join().is_ok_and(|result| result.is_ok()) || sent != received {
            bail!("other bytes came back than were sent");
        }
        Ok(())
    }

    /// Serves an echo for one connection of the machine; the address is for it to connect to.
    pub(crate) fn echo_outwards(&self) -> Result<(SocketAddr, JoinHandle<()>)> {
        let listener = TcpListener::bind((self.address(Who::Gateway), 0))?;
        let address = listener.local_addr()?;
        let thread = thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut buffer = vec![0; 65_536];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
        Ok((address, thread))
    }
}

/// Somebody who goes on sending.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Stream {
    /// Stops, and says how many packets were sent.
    pub(crate) fn stop(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(0)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends a request until an answer to it comes, as retransmissions do.
fn exchange(socket: &UdpSocket, request: &str) -> Result<String> {
    let mut buffer = vec![0; 65_536];
    socket.send(request.as_bytes())?;
    let length = socket.recv(&mut buffer).context("no answer")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn ip(arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments);
    command
}
