//! Capture files, built packet by packet as tcpdump and dumpcap write them.

use std::net::{IpAddr, SocketAddr};

/// Time in nanoseconds since 1970, and Ethernet frame.
pub type Timed = (u64, Vec<u8>);

/// Link type of a capture file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// Ethernet.
    Ethernet,
    /// Linux cooked.
    Sll,
    /// Linux cooked, version 2.
    Sll2,
    /// Raw IP.
    Raw,
}

impl Cover {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ethernet, Self::Sll, Self::Sll2, Self::Raw];

    /// Its LINKTYPE number.
    fn number(self) -> u32 {
        match self {
            Self::Ethernet => 1,
            Self::Sll => 113,
            Self::Sll2 => 276,
            Self::Raw => 101,
        }
    }

    /// An Ethernet frame converted to this link type.
    fn dress(self, frame: &[u8]) -> Vec<u8> {
        let (header, rest) = frame.split_at(12);
        let (protocol, packet) = rest.split_at(2);
        match self {
            Self::Ethernet => frame.to_vec(),
            Self::Sll => [&[0, 0, 0, 1, 0, 6], &header[6..], &[0, 0], protocol, packet].concat(),
            Self::Sll2 => {
                [protocol, &[0, 0, 0, 0, 0, 2, 0, 1, 0, 6], &header[6..], &[0, 0], packet].concat()
            }
            Self::Raw => packet.to_vec(),
        }
    }
}

/// A pcap file with nanoseconds.
pub fn pcap(cover: Cover, packets: &[Timed]) -> Vec<u8> {
    let mut file =
        [0xa1b2_3c4d, 0x0004_0002, 0, 0, 262_144, cover.number()].map(u32::to_le_bytes).concat();
    for (at, frame) in packets {
        let data = cover.dress(frame);
        let length = data.len() as u32;
        let (seconds, rest) = ((at / 1_000_000_000) as u32, (at % 1_000_000_000) as u32);
        file.extend([seconds, rest, length, length].map(u32::to_le_bytes).concat());
        file.extend(data);
    }
    file
}

/// A pcapng file with nanoseconds.
pub fn pcapng(cover: Cover, packets: &[Timed]) -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let length = (12 + body.len() as u32).to_le_bytes();
        [&kind.to_le_bytes()[..], &length, body, &length].concat()
    };
    let section = [&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
    // if_tsresol: 10^-9.
    let interface =
        [&cover.number().to_le_bytes()[..], &[0, 0, 4, 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]]
            .concat();
    let mut file = [block(0x0a0d_0d0a, &section), block(1, &interface)].concat();
    for (at, frame) in packets {
        let mut data = cover.dress(frame);
        let length = data.len() as u32;
        data.resize(data.len().next_multiple_of(4), 0);
        let head =
            [0, (at >> 32) as u32, *at as u32, length, length].map(u32::to_le_bytes).concat();
        file.extend(block(6, &[head, data].concat()));
    }
    file
}

/// An Ethernet frame of a datagram, without checksums. Both ends are of one family.
pub fn datagram(from: impl Into<SocketAddr>, to: impl Into<SocketAddr>, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (from.into(), to.into());
    let length = payload.len() as u16 + 8;
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            let wide = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([17, 64]);
            frame.extend(wide(source));
            frame.extend(wide(destination));
        }
    }
    frame.extend(from.port().to_be_bytes());
    frame.extend(to.port().to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}
