//! UDP datagrams and TCP segments as Ethernet frames, IPv4 and IPv6, whole or in fragments. UDP
//! checksums are left out, as a replay takes any.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use etherparse::PacketBuilder;

/// Addresses, EtherType left out.
const ETHERNET: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// IPv6 fragment header (RFC 8200, 4.5).
const FRAGMENT: u8 = 44;

/// The largest IP payload of a packet; a multiple of 8.
pub(super) const LARGEST: usize = 1_480;

/// The frames of a datagram, whose first fragment has at most `first` bytes of IP payload and the
/// others [`LARGEST`]. `id` tells its fragments from those of others.
pub(super) fn frames(
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
    first: usize,
    id: u32,
) -> Vec<Vec<u8>> {
    let length = (payload.len() + 8) as u16;
    let header =
        [from.port().to_be_bytes(), to.port().to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    pieces((from.ip(), to.ip()), UDP, &[&header[..], payload].concat(), first, id)
}

/// The frames of an IP payload, as [`frames`] says.
fn pieces(
    (from, to): (IpAddr, IpAddr),
    protocol: u8,
    data: &[u8],
    first: usize,
    id: u32,
) -> Vec<Vec<u8>> {
    if data.len() <= first {
        return vec![frame(from, to, protocol, data, None, id)];
    }
    let mut frames = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let room = if at == 0 { first / 8 * 8 } else { LARGEST };
        let end = data.len().min(at + room);
        let piece = Some((at, end < data.len()));
        frames.push(frame(from, to, protocol, &data[at..end], piece, id));
        at = end;
    }
    frames
}

/// A TCP segment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Segment<'a> {
    /// Whether it has a SYN.
    pub(super) syn: bool,
    /// Sequence number.
    pub(super) sequence: u32,
    /// Acknowledgement number, if it acknowledges anything.
    pub(super) acknowledges: Option<u32>,
    /// Payload.
    pub(super) payload: &'a [u8],
}

impl Segment<'_> {
    /// Its frame.
    ///
    /// # Errors
    ///
    /// If it is longer than a packet may be.
    pub(super) fn frame(&self, from: SocketAddr, to: SocketAddr) -> Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
        let ip = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            _ => unreachable!("both ends are of one family"),
        };
        let mut tcp = ip.tcp(from.port(), to.port(), self.sequence, 0xffff);
        if self.syn {
            tcp = tcp.syn();
        }
        if let Some(number) = self.acknowledges {
            tcp = tcp.ack(number);
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, self.payload)?;
        Ok(frame)
    }

    /// Its frames where IP takes it apart, as [`frames`] does.
    ///
    /// # Errors
    ///
    /// If it is longer than a packet may be.
    pub(super) fn frames(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        first: usize,
        id: u32,
    ) -> Result<Vec<Vec<u8>>> {
        let whole = self.frame(from, to)?;
        let headers = 14 + if from.is_ipv4() { 20 } else { 40 };
        Ok(pieces((from.ip(), to.ip()), TCP, &whole[headers..], first, id))
    }
}

/// A packet; a fragment if `piece` says at which byte, and whether more follow.
fn frame(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    data: &[u8],
    piece: Option<(usize, bool)>,
    id: u32,
) -> Vec<u8> {
    let mut frame = ETHERNET.to_vec();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((data.len() as u16 + 20).to_be_bytes());
            frame.extend((id as u16).to_be_bytes());
            let (at, more) = piece.unwrap_or_default();
            frame.extend(((at / 8) as u16 | u16::from(more) << 13).to_be_bytes());
            frame.extend([64, protocol, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let extra = if piece.is_some() { 8 } else { 0 };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((data.len() as u16 + extra).to_be_bytes());
            frame.extend([if piece.is_some() { FRAGMENT } else { protocol }, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
            if let Some((at, more)) = piece {
                frame.extend([protocol, 0]);
                frame.extend((at as u16 | u16::from(more)).to_be_bytes());
                frame.extend(id.to_be_bytes());
            }
        }
        _ => unreachable!("both ends are of one family"),
    }
    frame.extend(data);
    frame
}
