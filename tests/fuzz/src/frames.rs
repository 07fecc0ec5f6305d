//! Builders of seed packets. Checksums are zero: the filter leaves them to the host.

/// The Ethernet header for `ethertype`.
pub(crate) fn ethernet(ethertype: u16, payload: Vec<u8>) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &ethertype.to_be_bytes()[..], &payload].concat()
}

/// A VLAN tag, to be placed behind an Ethernet header.
pub(crate) fn vlan(ethertype: u16, payload: Vec<u8>) -> Vec<u8> {
    [&[0, 7], &ethertype.to_be_bytes()[..], &payload].concat()
}

/// A PPPoE session with the PPP protocol.
pub(crate) fn pppoe(protocol: u16, payload: Vec<u8>) -> Vec<u8> {
    let length = (payload.len() as u16 + 2).to_be_bytes();
    [&[0x11, 0, 0x12, 0x34], &length[..], &protocol.to_be_bytes()[..], &payload].concat()
}

/// A UDP datagram.
pub(crate) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16 + 8).to_be_bytes();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length, &[0, 0], payload].concat()
}

/// An IP packet under construction.
#[derive(Debug, Clone)]
pub(crate) struct Ip {
    /// Whether this is IPv4.
    pub v4: bool,
    /// The transport's protocol number.
    pub(crate) protocol: u8,
    /// IPv4: bytes of options, a multiple of four.
    pub(crate) options: usize,
    /// IPv4: flags and fragment offset.
    pub(crate) fragment: u16,
    /// IPv6: extension headers, by type and by the bytes behind the next header field.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
}

impl Ip {
    /// IPv4 with UDP.
    pub(crate) fn v4() -> Self {
        Self { v4: true, protocol: 17, options: 0, fragment: 0, extensions: Vec::new() }
    }

    /// IPv6 with UDP.
    pub(crate) fn v6() -> Self {
        Self { v4: false, ..Self::v4() }
    }

    /// The packet without a link header.
    pub(crate) fn build(&self, payload: &[u8]) -> Vec<u8> {
        if self.v4 {
            let header = 20 + self.options;
            let length = ((header + payload.len()) as u16).to_be_bytes();
            let mut packet = [&[0x40 | (header / 4) as u8, 0][..], &length, &[0x12, 0x34]].concat();
            packet.extend(self.fragment.to_be_bytes());
            packet.extend([64, self.protocol, 0, 0, 192, 0, 2, 7, 198, 51, 100, 1]);
            packet.resize(header, 1);
            packet.extend(payload);
            return packet;
        }
        let types: Vec<u8> =
            self.extensions.iter().map(|(kind, _)| *kind).chain([self.protocol]).collect();
        let bodies = self.extensions.iter().zip(&types[1..]);
        let chain: Vec<u8> =
            bodies.flat_map(|((_, body), next)| [&[*next], &body[..]].concat()).collect();
        let length = ((chain.len() + payload.len()) as u16).to_be_bytes();
        let mut packet = [&[0x60, 0, 0, 0], &length[..], &[types[0], 64]].concat();
        for host in [7, 1] {
            packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, host, 0, 0, 0, 0, 0, 0, 0, host]);
        }
        [packet, chain, payload.to_vec()].concat()
    }

    /// In an Ethernet frame.
    pub(crate) fn frame(&self, payload: &[u8]) -> Vec<u8> {
        ethernet(if self.v4 { 0x0800 } else { 0x86dd }, self.build(payload))
    }
}
