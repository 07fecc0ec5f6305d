//! Datagrams with forged source addresses, through a raw socket of a namespace.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, connect, socket,
};

use crate::namespace::Namespace;
use crate::sip::Request;
use crate::stream::Stream;

const IP_HEADER: u16 = 20;
const UDP_HEADER: u16 = 8;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// A stream of REGISTERs with the source address `source`, every second one with invented
/// credentials; `port` gives each source port.
pub fn forge(
    namespace: &Namespace,
    source: SocketAddrV4,
    to: SocketAddrV4,
    rate: u32,
    port: impl Fn(u64) -> u16 + Send + 'static,
) -> Result<Stream> {
    let socket = namespace.enter(|| raw_socket(to))?;
    Stream::start(socket, rate, move |number| {
        let from = SocketAddrV4::new(*source.ip(), port(number));
        let sequence = u32::try_from(number).unwrap_or(u32::MAX);
        let call_id = format!("forged-{number}");
        let request = Request {
            method: "REGISTER",
            user: "101",
            call_id: &call_id,
            sequence,
            from: from.into(),
            to: to.into(),
        };
        packet(from, to, &request.bytes_with(if number % 2 == 1 { CREDENTIALS } else { "" }))
    })
}

/// A stream of requests, each with another source; `request` makes them from number and source.
pub fn forge_sources(
    namespace: &Namespace,
    to: SocketAddrV4,
    rate: u32,
    request: impl Fn(u64, SocketAddrV4) -> Vec<u8> + Send + 'static,
) -> Result<Stream> {
    let socket = namespace.enter(|| raw_socket(to))?;
    Stream::start(socket, rate, move |number| {
        let from = SocketAddrV4::new(scattered(number), 5060);
        packet(from, to, &request(number, from))
    })
}

/// A stream of SYNs, each with another source, as [`forge_sources`] has them.
pub fn forge_connections(namespace: &Namespace, to: SocketAddrV4, rate: u32) -> Result<Stream> {
    let socket = namespace.enter(|| raw_socket(to))?;
    Stream::start(socket, rate, move |number| {
        let from = SocketAddrV4::new(scattered(number), 1_024 + (number % 60_000) as u16);
        syn(from, to, number as u32)
    })
}

/// Scattered over 64.0.0.0/6: none repeats before all have occurred.
fn scattered(number: u64) -> Ipv4Addr {
    const FIRST: u32 = 64 << 24;
    const HOSTS: u32 = (1 << 26) - 1;
    Ipv4Addr::from(FIRST | ((number as u32).wrapping_mul(2_654_435_761) & HOSTS))
}

/// A SYN with its checksum, so that the host answers it.
fn syn(from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> Vec<u8> {
    let mut tcp = from.port().to_be_bytes().to_vec();
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]);
    let pseudo = [&from.ip().octets()[..], &to.ip().octets(), &[0, TCP, 0, 20], &tcp].concat();
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair[1]);
    let sum: u32 = pseudo.chunks(2).map(word).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(tcp);
    packet
}

const CREDENTIALS: &str = "Authorization: Digest username=\"101\", realm=\"lab.example\", \
                           nonce=\"0123456789abcdef\", \
                           uri=\"sip:101@lab.example\", \
                           response=\"00112233445566778899aabbccddeeff\", algorithm=MD5\r\n";

/// A socket that takes packets with their IP headers (raw(7)), and otherwise behaves like a
/// datagram socket.
fn raw_socket(to: SocketAddrV4) -> Result<UdpSocket> {
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
        .context("cannot open a raw socket")?;
    connect(raw.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0)))
        .with_context(|| format!("cannot send to {to}"))?;
    Ok(raw.into())
}

/// An IPv4 packet without UDP checksum. The kernel fills in identification, length and IP checksum.
fn packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).saturating_add(UDP_HEADER);
    let mut packet = Vec::with_capacity(payload.len() + usize::from(IP_HEADER + UDP_HEADER));
    packet.extend([0x45, 0]);
    packet.extend((length + IP_HEADER).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_a_syn_that_others_can_read() {
        let (from, to) = ("64.0.2.7:2000".parse().unwrap(), "198.51.100.1:5060".parse().unwrap());
        let packet = syn(from, to, 7);
        let read = etherparse::SlicedPacket::from_ip(&packet).unwrap();
        let Some(etherparse::TransportSlice::Tcp(tcp)) = read.transport else { panic!("{read:?}") };
        let right = tcp.calc_checksum_ipv4(from.ip().octets(), to.ip().octets()).unwrap();
        assert_eq!((tcp.syn(), tcp.ack(), tcp.destination_port()), (true, false, 5060));
        assert_eq!(tcp.checksum(), right);
    }

    #[test]
    fn writes_a_packet_that_others_can_read() {
        let (from, to) = ("192.0.2.7:5060".parse().unwrap(), "198.51.100.1:5061".parse().unwrap());
        let packet = packet(from, to, b"hello");
        let read = etherparse::SlicedPacket::from_ip(&packet).unwrap();
        let Some(etherparse::TransportSlice::Udp(udp)) = read.transport else { panic!("{read:?}") };
        assert_eq!(
            (udp.source_port(), udp.destination_port(), udp.payload()),
            (5060, 5061, &b"hello"[..])
        );
    }
}
