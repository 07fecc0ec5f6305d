//! Builders of frames, valid and invalid. Checksums are zero: the filter leaves them to the host.

use std::net::IpAddr;

/// The Ethernet header for `ethertype`.
pub(crate) fn ethernet(ethertype: u16, payload: Vec<u8>) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A VLAN tag of type `tag` (0x8100 or 0x88a8) before what `ethertype` announces. Goes behind an
/// Ethernet header.
pub(crate) fn vlan(id: u16, ethertype: u16, payload: Vec<u8>) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A PPPoE header with code 0 (session data) and the PPP protocol.
pub(crate) fn pppoe(code: u8, protocol: u16, payload: Vec<u8>) -> Vec<u8> {
    let mut bytes = vec![0x11, code, 0x12, 0x34];
    bytes.extend((payload.len() as u16 + 2).to_be_bytes());
    bytes.extend(protocol.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An IP packet under construction.
#[derive(Clone)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) protocol: u8,
    /// IPv4 options, or IPv6 extension headers with their types.
    pub(crate) options: Vec<u8>,
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// IPv4: flags and offset. IPv6 has its fragment header among the extensions.
    pub(crate) fragment: u16,
    /// Added to the correct length.
    pub(crate) lie: i32,
}

impl Ip {
    pub(crate) fn udp(source: &str) -> Self {
        let source = source.parse().unwrap();
        Self {
            source,
            protocol: 17,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: 0,
            lie: 0,
        }
    }

    pub(crate) fn build(&self, payload: &[u8]) -> Vec<u8> {
        match self.source {
            IpAddr::V4(source) => {
                assert!(self.options.len().is_multiple_of(4) && self.options.len() <= 40);
                let header = 20 + self.options.len();
                let mut packet = vec![0x40 | (header / 4) as u8, 0];
                packet
                    .extend(((header + payload.len()) as i32 + self.lie).to_be_bytes()[2..].iter());
                packet.extend([0x12, 0x34]);
                packet.extend(self.fragment.to_be_bytes());
                packet.extend([64, self.protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend([198, 51, 100, 1]);
                packet.extend(&self.options);
                packet.extend(payload);
                packet
            }
            IpAddr::V6(source) => {
                let mut chain = Vec::new();
                let types: Vec<u8> =
                    self.extensions.iter().map(|(kind, _)| *kind).chain([self.protocol]).collect();
                for (n, (_, body)) in self.extensions.iter().enumerate() {
                    chain.push(types[n + 1]);
                    chain.extend(body);
                }
                let length = (chain.len() + payload.len()) as i32 + self.lie;
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend(&length.to_be_bytes()[2..]);
                packet.extend([types[0], 64]);
                packet.extend(source.octets());
                packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
                packet.extend(chain);
                packet.extend(payload);
                packet
            }
        }
    }

    /// In an Ethernet frame.
    pub(crate) fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(self.ethertype(), self.build(payload))
    }

    pub(crate) fn ethertype(&self) -> u16 {
        if self.source.is_ipv4() { 0x0800 } else { 0x86dd }
    }
}

/// An extension header's body behind its type: length in units of 8 bytes less one, and filling.
pub(crate) fn extension(units: u8) -> Vec<u8> {
    let mut body = vec![units];
    body.resize(usize::from(units) * 8 + 7, 0);
    body
}

/// A fragment header's body: offset in units of 8 bytes, and whether more follow.
pub(crate) fn fragment(offset: u16, more: bool) -> Vec<u8> {
    let mut body = vec![0];
    body.extend((offset << 3 | u16::from(more)).to_be_bytes());
    body.extend([0, 0, 0x12, 0x34]);
    body
}

/// A UDP datagram from port 40000.
pub(crate) fn udp(destination: u16, payload: &[u8]) -> Vec<u8> {
    udp_from(40_000, destination, payload)
}

/// A UDP datagram.
pub(crate) fn udp_from(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = udp_lying(destination, payload, 8 + payload.len() as u16);
    bytes[..2].copy_from_slice(&source.to_be_bytes());
    bytes
}

/// A UDP datagram with a wrong length.
pub(crate) fn udp_lying(destination: u16, payload: &[u8], length: u16) -> Vec<u8> {
    let mut bytes = 40_000_u16.to_be_bytes().to_vec();
    bytes.extend(destination.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// A TCP segment (ACK, without payload) from port 40000.
pub(crate) fn tcp(destination: u16) -> Vec<u8> {
    let mut bytes = 40_000_u16.to_be_bytes().to_vec();
    bytes.extend(destination.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 16, 0x20, 0, 0, 0, 0, 0]);
    bytes
}

/// A request with its first headers.
pub(crate) fn request(method: &str) -> Vec<u8> {
    format!(
        "{method} sip:pbx.example SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.7:40000;branch=z9hG4bK7\r\n\
         From: <sip:alice@pbx.example>;tag=1\r\nTo: <sip:alice@pbx.example>\r\nCall-ID: \
         7@192.0.2.7\r\n\
         CSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// A plain request in an Ethernet frame.
pub(crate) fn sip(source: &str, payload: &[u8]) -> Vec<u8> {
    Ip::udp(source).frame(&udp(5060, payload))
}

/// A TCP segment from one port to another, with its options, flags and payload.
pub(crate) fn segment(
    (from, to): (u16, u16),
    flags: u8,
    sequence: u32,
    acknowledges: u32,
    options: usize,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = from.to_be_bytes().to_vec();
    bytes.extend(to.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(acknowledges.to_be_bytes());
    bytes.extend([(((20 + 4 * options) / 4) << 4) as u8, flags, 0x20, 0, 0, 0, 0, 0]);
    bytes.extend([1; 4].repeat(options));
    bytes.extend(payload);
    bytes
}
