//! The header parser, from the first byte of a frame to the UDP or TCP payload: Ethernet, VLAN and
//! priority tags, PPPoE sessions or no link header; IPv4 with options; IPv6 with extension headers;
//! fragments.
//!
//! Length fields may be wrong in either direction. The payload is what the host's own stack would
//! take, cut to the bytes that are present.
//!
//! More than 400 lines: one parser, and 210 lines of tests.

use crate::ip_key::IpKey;
use crate::packet::reader::{MAX_OFFSET, Reader};

/// The link type of an interface.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Link {
    /// Frames with an Ethernet header.
    Ethernet = 0,
    /// Packets that start with the IP header: tun, WireGuard, PPP.
    Ip = 1,
}

/// Optional headers that are parsed. Frames with others pass unseen, at no cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inspects {
    /// IPv6.
    pub ipv6: bool,
    /// VLAN tags and PPPoE sessions.
    pub tags: bool,
}

impl Inspects {
    /// All optional headers.
    pub const ALL: Self = Self { ipv6: true, tags: true };
}

/// EtherType of IPv4 (IEEE 802 numbers, as all below; `include/uapi/linux/if_ether.h`).
pub const ETH_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETH_IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const ETH_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
pub const ETH_QINQ: u16 = 0x88a8;
/// EtherType of a PPPoE session (RFC 2516).
pub const ETH_PPPOE: u16 = 0x8864;
/// PPP protocol number of IPv4 (RFC 1332).
pub const PPP_IPV4: u16 = 0x0021;
/// PPP protocol number of IPv6 (RFC 5072).
pub const PPP_IPV6: u16 = 0x0057;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of UDP-Lite (RFC 3828), whose ports are where UDP's are.
pub const UDP_LITE: u8 = 136;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6, neighbour discovery among it.
pub const ICMPV6: u8 = 58;

/// Control bits of the TCP header (RFC 9293, section 3.1).
pub mod tcp_flags {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// Length of a TCP header without options, in bytes (RFC 9293, section 3.1).
pub const TCP_HEADER: usize = 20;

/// IPv6 fragment header.
const FRAGMENT: u8 = 44;
/// IPv6 authentication header.
const AH: u8 = 51;

/// Maximum number of VLAN tags removed. Linux removes any number of priority tags, those with VLAN
/// identifier 0 (`__netif_receive_skb_core` in `net/core/dev.c`); legitimate frames have at most
/// one beside a provider's two, and the verifier follows each.
pub const MAX_TAGS: usize = 4;

/// Maximum number of IPv6 extension headers followed.
pub const MAX_EXTENSIONS: usize = 8;

/// The fragment type of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragmentation {
    /// Not fragmented.
    Whole,
    /// The first fragment, which has the ports.
    First,
    /// A later fragment, without ports.
    Later,
    /// The ports cannot be located: more than [`MAX_TAGS`] tags, more than [`MAX_EXTENSIONS`] IPv6
    /// extension headers, or headers that extend beyond the readable part of the packet.
    Hidden,
}

/// A located IP header, followed to the transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Whether this is IPv4.
    pub v4: bool,
    /// Offset of the IP header.
    pub at: usize,
    /// Offset of the transport header.
    pub transport: usize,
    /// End of the IP payload, by the header's length field.
    pub end: usize,
    /// The transport's IP protocol number.
    pub protocol: u8,
    /// The fragment type.
    pub fragmentation: Fragmentation,
}

/// The result of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastPathHeaders {
    /// The IP header.
    pub ip: Ip,
    /// The source address.
    pub source: IpKey,
    /// The ports, where the protocol has them.
    pub ports: PortPair,
}

/// The ports of a UDP datagram or a TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortPair(u32);

impl PortPair {
    /// From the first four bytes of the transport header, the first in the lowest bits.
    #[inline(always)]
    pub const fn new(bytes: u32) -> Self {
        Self(bytes)
    }

    /// Source port, in host order.
    #[inline(always)]
    pub const fn source(self) -> u16 {
        (self.0 as u16).swap_bytes()
    }

    /// Destination port, in host order.
    #[inline(always)]
    pub const fn destination(self) -> u16 {
        ((self.0 >> 16) as u16).swap_bytes()
    }
}

/// A TCP header (RFC 9293, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// The ports.
    pub ports: PortPair,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledges: u32,
    /// Length of the header with its options, in bytes: 20 to 60.
    pub header: usize,
    /// The lower eight control bits: [`tcp_flags`].
    pub flags: u8,
}

/// The fast path: Ethernet without tags, IPv4 without options, not fragmented, as nearly all frames
/// are. Two loads recognise it, two more fetch the rest, down to the ports. Everything else, and
/// whatever is too short for a UDP header, is left to [`parse_headers`].
#[inline(always)]
pub fn parse_fast_path<R: Reader>(packet: &R) -> Option<FastPathHeaders> {
    // EtherType, version and header length, type of service, total length, identification; flags
    // and fragment offset, time to live, protocol, checksum, half of the source; source,
    // destination; the first eight bytes of UDP or TCP.
    let [first, second, addresses, transport] = packet.eights::<4, 42>([12, 20, 26, 34])?;
    const FAST_PATH: u64 = u32::from_le_bytes([0x08, 0x00, 0x45, 0]) as u64;
    const FRAGMENTED: u64 = u16::from_le_bytes([0x3f, 0xff]) as u64;
    if first & 0xff_ffff != FAST_PATH || second & FRAGMENTED != 0 {
        return None;
    }
    let total = usize::from(((first >> 32) as u16).swap_bytes());
    let protocol = (second >> 24) as u8;
    let ip = Ip {
        v4: true,
        at: 14,
        transport: 34,
        end: 14 + total,
        protocol,
        fragmentation: Fragmentation::Whole,
    };
    Some(FastPathHeaders {
        ip,
        source: IpKey::v4(addresses as u32),
        ports: PortPair::new(transport as u32),
    })
}

/// Locates the IP header of a frame and follows it to the transport header. `None` for everything
/// that is not IP, or behind headers that are not inspected.
#[inline(always)]
pub fn parse_headers<R: Reader>(packet: &R, link: Link, inspects: Inspects) -> Option<Ip> {
    let (ethertype, at) = match link {
        Link::Ethernet if inspects.tags => match strip_ethernet(packet)? {
            (ETH_VLAN | ETH_QINQ, at) => return Some(Ip::behind_tags(at)),
            stripped => stripped,
        },
        Link::Ethernet => (packet.be16(12)?, 14),
        Link::Ip => match packet.byte(0)? >> 4 {
            4 => (ETH_IPV4, 0),
            6 => (ETH_IPV6, 0),
            _ => return None,
        },
    };
    match ethertype {
        ETH_IPV4 => parse_ipv4(packet, packet.verifier_widen(at)),
        ETH_IPV6 if inspects.ipv6 => parse_ipv6(packet, packet.verifier_widen(at)),
        _ => None,
    }
}

/// The EtherType behind the Ethernet header, up to [`MAX_TAGS`] VLAN tags and a PPPoE session, and
/// the offset of its header.
#[inline(always)]
fn strip_ethernet<R: Reader>(packet: &R) -> Option<(u16, usize)> {
    let mut ethertype = packet.be16(12)?;
    let mut at = 14;
    for _ in 0..MAX_TAGS {
        if ethertype != ETH_VLAN && ethertype != ETH_QINQ {
            break;
        }
        ethertype = packet.be16(at + 2)?;
        at = packet.verifier_widen(at + 4);
    }
    if ethertype == ETH_PPPOE {
        // Version and type, code (0 in a session), session id, length; then the PPP protocol (RFC
        // 2516, 4).
        if packet.byte(at + 1)? != 0 {
            return None;
        }
        // The protocol number may be compressed to its second byte, which is odd, unlike the first
        // byte (RFC 1661, 6.5).
        let first = packet.byte(at + 6)?;
        let is_compressed = first & 1 == 1;
        let protocol = if is_compressed { u16::from(first) } else { packet.be16(at + 6)? };
        ethertype = match protocol {
            PPP_IPV4 => ETH_IPV4,
            PPP_IPV6 => ETH_IPV6,
            _ => return None,
        };
        at = packet.verifier_widen(at + if is_compressed { 7 } else { 8 });
    }
    Some((ethertype, at))
}

#[inline(always)]
fn parse_ipv4<R: Reader>(packet: &R, at: usize) -> Option<Ip> {
    let first = packet.byte(at)?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    let total = usize::from(packet.be16(at + 2)?);
    // Three flag bits, "more fragments" the lowest; then the offset in units of 8 bytes (RFC 791,
    // 3.1).
    let fragment = packet.be16(at + 6)?;
    let fragmentation = match (fragment & 0x1fff, fragment & 0x2000) {
        (0, 0) => Fragmentation::Whole,
        (0, _) => Fragmentation::First,
        _ => Fragmentation::Later,
    };
    Some(Ip {
        v4: true,
        at,
        transport: at + header,
        end: at + total,
        protocol: packet.byte(at + 9)?,
        fragmentation,
    })
}

#[inline(always)]
fn parse_ipv6<R: Reader>(packet: &R, at: usize) -> Option<Ip> {
    if packet.byte(at)? >> 4 != 6 {
        return None;
    }
    let length = usize::from(packet.be16(at + 4)?);
    // A length of zero announces a jumbogram (RFC 2675, 3): the payload is the rest of the packet.
    let end = if length == 0 { usize::from(u16::MAX) } else { at + 40 + length };
    let mut ip = Ip {
        v4: false,
        at,
        transport: at + 40,
        end: packet.verifier_widen(end),
        protocol: packet.byte(at + 6)?,
        fragmentation: Fragmentation::Whole,
    };
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(ip.protocol) {
            return Some(ip);
        }
        let Some(head) = packet.be16(ip.transport) else {
            return Some(ip.cut_off());
        };
        let length = usize::from(head & 0xff);
        let bytes = match ip.protocol {
            FRAGMENT => 8,
            AH => (length + 2) * 4, // in units of 4 bytes, less 2 (RFC 4302, 2.2)
            _ => (length + 1) * 8,  // in units of 8 bytes, less 1 (RFC 8200, 4)
        };
        if ip.protocol == FRAGMENT {
            // Next header, reserved, offset in 8 bytes and the "more" bit (RFC 8200, 4.5).
            let Some(fragment) = packet.be16(ip.transport + 2) else {
                return Some(ip.cut_off());
            };
            if fragment & 0xfff8 != 0 {
                ip.fragmentation = Fragmentation::Later;
            } else if fragment & 1 != 0 {
                ip.fragmentation = Fragmentation::First;
            }
        }
        ip.protocol = (head >> 8) as u8;
        if matches!(ip.fragmentation, Fragmentation::Later) {
            return Some(ip);
        }
        ip.transport = packet.verifier_widen(ip.transport + bytes);
    }
    if is_extension(ip.protocol) {
        ip.fragmentation = Fragmentation::Hidden;
    }
    Some(ip)
}

/// Whether an IPv6 header of this type is followed by another one: hop-by-hop, routing, fragment,
/// AH, destination options, mobility, HIP, Shim6 (IANA's IPv6 Extension Header Types). Not ESP:
/// what follows is encrypted.
#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

impl Ip {
    /// A frame with more tags than are removed: not even its source is readable.
    #[inline(always)]
    const fn behind_tags(at: usize) -> Self {
        Self {
            v4: true,
            at: MAX_OFFSET + 1,
            transport: at,
            end: at,
            protocol: UDP,
            fragmentation: Fragmentation::Hidden,
        }
    }

    /// Whether the transport is UDP, or UDP-Lite, which counts as UDP.
    #[inline(always)]
    pub const fn is_udp(&self) -> bool {
        matches!(self.protocol, UDP | UDP_LITE)
    }

    /// Whether the transport may be UDP or TCP: also where the extension headers of a fragment
    /// continue in another one.
    #[inline(always)]
    pub const fn may_have_ports(&self) -> bool {
        self.is_udp()
            || self.protocol == TCP
            || (!matches!(self.fragmentation, Fragmentation::Whole) && is_extension(self.protocol))
    }

    /// This packet with headers that extend beyond the readable part. A first fragment stays one.
    #[inline(always)]
    const fn cut_off(self) -> Self {
        let fragmentation = if matches!(self.fragmentation, Fragmentation::First) {
            Fragmentation::First
        } else {
            Fragmentation::Hidden
        };
        Self { fragmentation, ..self }
    }

    /// The source address.
    #[inline(always)]
    pub fn source<R: Reader>(&self, packet: &R) -> Option<IpKey> {
        Some(if self.v4 {
            IpKey::v4(packet.four(self.at + 12)?)
        } else {
            IpKey::from_words(packet.eight(self.at + 8)?, packet.eight(self.at + 16)?)
        })
    }

    /// The destination address.
    #[inline(always)]
    pub fn destination<R: Reader>(&self, packet: &R) -> Option<IpKey> {
        Some(if self.v4 {
            IpKey::v4(packet.four(self.at + 16)?)
        } else {
            IpKey::from_words(packet.eight(self.at + 24)?, packet.eight(self.at + 32)?)
        })
    }

    /// The ports, which UDP and TCP have at the same offset.
    #[inline(always)]
    pub fn ports<R: Reader>(&self, packet: &R) -> Option<PortPair> {
        packet.four(self.transport).map(PortPair::new)
    }

    /// The TCP header. `None` if it is not all there, or invalid for every host.
    #[inline(always)]
    pub fn tcp<R: Reader>(&self, packet: &R) -> Option<Tcp> {
        // Ports and sequence number; acknowledgement number, data offset, flags, window.
        let first = packet.eight(self.transport)?;
        let second = packet.eight(self.transport + 8)?;
        let header = (second >> 32) as usize >> 2 & 0x3c;
        // As `tcp_v4_rcv` (net/ipv4/tcp_ipv4.c).
        if header < TCP_HEADER {
            return None;
        }
        Some(Tcp {
            ports: PortPair::new(first as u32),
            sequence: ((first >> 32) as u32).swap_bytes(),
            acknowledges: (second as u32).swap_bytes(),
            header,
            flags: (second >> 40) as u8,
        })
    }

    /// Start and end of the UDP payload. `None` if the UDP header is invalid for every host.
    ///
    /// The end is what the host's stack derives from the UDP length (`net/ipv4/udp.c` trims to it;
    /// `net/ipv6/udp.c` takes zero as "all"), and never behind the end of the IP payload.
    #[inline(always)]
    pub fn udp_payload<R: Reader>(&self, packet: &R) -> Option<(usize, usize)> {
        // The whole header must be present.
        let length = usize::from(((packet.eight(self.transport)? >> 32) as u16).swap_bytes());
        let start = self.transport + 8;
        let claimed = match length {
            // The field is the checksum coverage (RFC 3828, 3.1).
            _ if self.protocol == UDP_LITE => self.end,
            0 if !self.v4 => self.end,
            0..8 => return None,
            _ => self.transport + length,
        };
        Some((
            packet.verifier_widen(start),
            packet.verifier_widen(if claimed < self.end { claimed } else { self.end }),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::reader::Bytes;
    use proptest::prelude::*;

    /// A UDP datagram from port 40000 to port 5060 around `payload`.
    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x9c, 0x40, 0x13, 0xc4];
        bytes.extend((8 + payload.len() as u16).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(payload);
        bytes
    }

    fn v4(options: usize, body: &[u8]) -> Vec<u8> {
        let header = 20 + 4 * options;
        let mut packet = vec![0x40 | (header / 4) as u8, 0];
        packet.extend(((header + body.len()) as u16).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, UDP, 0, 0, 192, 0, 2, 7, 198, 51, 100, 1]);
        packet.resize(header, 1);
        packet.extend(body);
        packet
    }

    /// Extension headers by type and length in units of 8 bytes less one; AH and fragment headers
    /// have their own units.
    fn v6(extensions: &[(u8, u8)], body: &[u8]) -> Vec<u8> {
        let kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).chain([UDP]).collect();
        let mut chain = Vec::new();
        for (n, (kind, units)) in extensions.iter().enumerate() {
            let (length, bytes) = match *kind {
                FRAGMENT => (0, 8),
                AH => (*units, (usize::from(*units) + 2) * 4),
                _ => (*units, (usize::from(*units) + 1) * 8),
            };
            let start = chain.len();
            chain.extend([kinds[n + 1], length]);
            chain.resize(start + bytes, 0);
        }
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(((chain.len() + body.len()) as u16).to_be_bytes());
        packet.extend([kinds[0], 64]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 7]);
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend(chain);
        packet.extend(body);
        packet
    }

    /// Ethernet, then tags, then optionally a PPPoE session, then `ip`.
    fn frame(tags: &[u16], pppoe: bool, ip: &[u8]) -> Vec<u8> {
        let is_v4 = ip[0] >> 4 == 4;
        let mut kinds = tags.to_vec();
        kinds.push(match (pppoe, is_v4) {
            (true, _) => ETH_PPPOE,
            (false, true) => ETH_IPV4,
            (false, false) => ETH_IPV6,
        });
        let mut frame = vec![2; 12];
        frame.extend(kinds[0].to_be_bytes());
        for kind in &kinds[1..] {
            frame.extend([0, 7]);
            frame.extend(kind.to_be_bytes());
        }
        if pppoe {
            frame.extend([0x11, 0, 0, 1]);
            frame.extend((ip.len() as u16 + 2).to_be_bytes());
            frame.extend(if is_v4 { PPP_IPV4 } else { PPP_IPV6 }.to_be_bytes());
        }
        frame.extend(ip);
        frame
    }

    proptest! {
        /// Payload, ports and source are found behind any headers.
        #[test]
        fn the_payload_is_found(
            tags in prop::collection::vec(
                prop::sample::select(vec![ETH_VLAN, ETH_QINQ]),
                0..=MAX_TAGS,
            ),
            pppoe in any::<bool>(),
            ethernet in any::<bool>(),
            options in 0_usize..=10,
            extensions in prop::collection::vec(
                (prop::sample::select(vec![0_u8, 43, 60, 135, 139, 140, FRAGMENT, AH]), 0_u8..4),
                0..=8,
            ),
            is_v4 in any::<bool>(),
            payload in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let udp = udp(&payload);
            let ip = if is_v4 { v4(options, &udp) } else { v6(&extensions, &udp) };
            let (bytes, link) = if ethernet {
                (frame(&tags, pppoe, &ip), Link::Ethernet)
            } else {
                (ip, Link::Ip)
            };
            let packet = Bytes(&bytes);
            let found = parse_headers(&packet, link, Inspects::ALL).expect("an IP packet");
            let plain = ethernet && is_v4 && tags.is_empty() && !pppoe && options == 0;
            let fast_path = if ethernet { parse_fast_path(&packet) } else { None };
            prop_assert_eq!(fast_path.map(|plain| plain.ip), plain.then_some(found));
            prop_assert_eq!(
                (found.v4, found.protocol, found.fragmentation),
                (is_v4, UDP, Fragmentation::Whole)
            );
            prop_assert_eq!(
                found.ports(&packet).map(|ports| (ports.source(), ports.destination())),
                Some((40_000, 5060))
            );
            prop_assert_eq!(found.source(&packet).expect("a source").is_v4(), is_v4);
            let (start, end) = found.udp_payload(&packet).expect("a payload");
            prop_assert_eq!(&bytes[start..end], payload.as_slice());
        }

        #[test]
        fn any_bytes_at_all(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            ethernet in any::<bool>(),
        ) {
            let packet = Bytes(&bytes);
            if ethernet
                && let Some(FastPathHeaders { ip, source, ports }) = parse_fast_path(&packet)
            {
                prop_assert_eq!(parse_headers(&packet, Link::Ethernet, Inspects::ALL), Some(ip));
                prop_assert_eq!(ip.source(&packet), Some(source));
                prop_assert_eq!(ip.ports(&packet), Some(ports));
            }
            let link = if ethernet { Link::Ethernet } else { Link::Ip };
            if let Some(ip) = parse_headers(&packet, link, Inspects::ALL) {
                let (_, _) = (ip.source(&packet), ip.ports(&packet));
                let payload = ip.udp_payload(&packet);
                prop_assert!(payload.is_none_or(|(start, _)| start <= MAX_OFFSET + 8));
            }
        }
    }

    /// The payload found behind `tags` tags with VLAN identifier 0, and optionally a PPPoE session
    /// with a one-byte protocol field.
    fn behind(tags: usize, compressed: bool, ip: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = frame(&vec![ETH_VLAN; tags], compressed, ip);
        if compressed {
            bytes.remove(bytes.len() - ip.len() - 2);
        }
        let packet = Bytes(&bytes);
        let found = parse_headers(&packet, Link::Ethernet, Inspects::ALL)?;
        let (start, end) = found.udp_payload(&packet)?;
        Some(bytes[start..end].to_vec())
    }

    #[test]
    fn any_number_of_priority_tags_is_taken_off() {
        for ip in [v4(0, &udp(b"hello")), v6(&[], &udp(b"hello"))] {
            for tags in [1, 2, 3, 4, MAX_TAGS - 1, MAX_TAGS] {
                assert_eq!(behind(tags, false, &ip).as_deref(), Some(&b"hello"[..]), "{tags} tags");
            }
        }
        let more = frame(&[ETH_VLAN; MAX_TAGS + 1], false, &v4(0, &udp(b"hello")));
        let hidden =
            parse_headers(&Bytes(&more), Link::Ethernet, Inspects::ALL).expect("a frame to meter");
        assert_eq!(
            (hidden.fragmentation, hidden.source(&Bytes(&more))),
            (Fragmentation::Hidden, None)
        );
    }

    #[test]
    fn a_ppp_protocol_may_take_one_byte() {
        for ip in [v4(3, &udp(b"hello")), v6(&[(60, 1)], &udp(b"hello"))] {
            for tags in 0..4 {
                assert_eq!(behind(tags, true, &ip).as_deref(), Some(&b"hello"[..]), "{tags} tags");
            }
        }
    }

    #[test]
    fn udp_lite_is_udp_without_a_length() {
        for covered in [0_u16, 8, 9, 2_000] {
            let mut bytes = v4(0, &udp(b"hello"));
            bytes[9] = UDP_LITE;
            bytes[24..26].copy_from_slice(&covered.to_be_bytes());
            let packet = Bytes(&bytes);
            let found = parse_headers(&packet, Link::Ip, Inspects::ALL).expect("an IP packet");
            assert!(found.is_udp() && found.may_have_ports());
            assert_eq!(found.udp_payload(&packet), Some((28, bytes.len())));
        }
    }

    #[test]
    fn headers_that_go_on_where_nothing_can_be_read_hide_the_ports() {
        let whole = v6(&[(60, 200), (60, 200)], &udp(b"hello"));
        for readable in [41, 44, 100, 1_648, 1_649] {
            let packet = Bytes(&whole[..readable]);
            let found = parse_headers(&packet, Link::Ip, Inspects::ALL).expect("a packet to meter");
            assert_eq!(found.fragmentation, Fragmentation::Hidden, "{readable} bytes");
            assert!(found.source(&packet).is_some());
        }
        let packet = Bytes(&whole[..whole.len() - 13]);
        let found = parse_headers(&packet, Link::Ip, Inspects::ALL).expect("a packet to meter");
        assert_eq!((found.fragmentation, found.ports(&packet)), (Fragmentation::Whole, None));
    }

    #[test]
    fn more_extension_headers_than_are_followed_hide_the_ports() {
        let chain: Vec<_> = [(60, 0); MAX_EXTENSIONS + 1].to_vec();
        let bytes = v6(&chain, &udp(b"x"));
        let found =
            parse_headers(&Bytes(&bytes), Link::Ip, Inspects::ALL).expect("a packet to meter");
        assert_eq!(found.fragmentation, Fragmentation::Hidden);
        let mut short = v4(0, &udp(b"x"));
        short[0] = 0x44;
        assert_eq!(parse_headers(&Bytes(&short), Link::Ip, Inspects::ALL), None);
    }
}
