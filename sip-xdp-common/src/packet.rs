//! From the first byte of a frame to the UDP or TCP payload: Ethernet, up to two VLAN tags, PPPoE sessions or no link
//! header at all; IPv4 with options; IPv6 with extension headers; fragments.
//!
//! Lengths in a packet may lie in both directions. What counts here is what the host's own stack would take for the
//! payload, cut to the bytes that are there.

use crate::reader::Reader;
use crate::source::Source;

/// How frames start on an interface.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Link {
    /// With an Ethernet header.
    Ethernet = 0,
    /// With the IP header: tun, WireGuard, PPP.
    Ip = 1,
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
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6, neighbour discovery among it.
pub const ICMPV6: u8 = 58;

/// IPv6 fragment header.
const FRAGMENT: u8 = 44;
/// IPv6 authentication header.
const AH: u8 = 51;

/// How many IPv6 extension headers are followed.
pub const MAX_EXTENSIONS: usize = 8;

/// Which piece of a datagram a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// All of it.
    Whole,
    /// The first fragment: it has the ports.
    First,
    /// A later fragment: it has no ports.
    Later,
    /// IPv6 with more than [`MAX_EXTENSIONS`] extension headers, or a first fragment that ends among them: the ports
    /// are somewhere, but not to be found here.
    Hidden,
}

/// An IP header that was found and followed to the transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Whether it is IPv4.
    pub v4: bool,
    /// Where the IP header starts.
    pub at: usize,
    /// Where the transport header starts.
    pub transport: usize,
    /// Where the IP payload ends, by the header's own word.
    pub end: usize,
    /// The transport's IP protocol number.
    pub protocol: u8,
    /// Which piece of the datagram this is.
    pub piece: Piece,
}

/// Finds the IP header of a frame and follows it to the transport header. `None` for everything that is not IP.
#[inline(always)]
pub fn locate<R: Reader>(packet: &R, link: Link) -> Option<Ip> {
    let (ethertype, at) = match link {
        Link::Ethernet => strip_ethernet(packet)?,
        Link::Ip => match packet.byte(0)? >> 4 {
            4 => (ETH_IPV4, 0),
            6 => (ETH_IPV6, 0),
            _ => return None,
        },
    };
    match ethertype {
        ETH_IPV4 => locate_v4(packet, packet.forget(at)),
        ETH_IPV6 => locate_v6(packet, packet.forget(at)),
        _ => None,
    }
}

/// The EtherType behind the Ethernet header, up to two VLAN tags and a PPPoE session, and where its header starts.
#[inline(always)]
fn strip_ethernet<R: Reader>(packet: &R) -> Option<(u16, usize)> {
    let mut ethertype = packet.be16(12)?;
    let mut at = 14;
    for _ in 0..2 {
        if ethertype == ETH_VLAN || ethertype == ETH_QINQ {
            ethertype = packet.be16(at + 2)?;
            at += 4;
        }
    }
    if ethertype == ETH_PPPOE {
        // Version and type, code (0 in a session), session id, length; then the PPP protocol (RFC 2516, 4).
        if packet.byte(at + 1)? != 0 {
            return None;
        }
        ethertype = match packet.be16(at + 6)? {
            PPP_IPV4 => ETH_IPV4,
            PPP_IPV6 => ETH_IPV6,
            _ => return None,
        };
        at += 8;
    }
    Some((ethertype, at))
}

#[inline(always)]
fn locate_v4<R: Reader>(packet: &R, at: usize) -> Option<Ip> {
    let first = packet.byte(at)?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    let total = usize::from(packet.be16(at + 2)?);
    // Three flag bits, "more fragments" the lowest; then the offset in units of 8 bytes (RFC 791, 3.1).
    let fragment = packet.be16(at + 6)?;
    let piece = match (fragment & 0x1fff, fragment & 0x2000) {
        (0, 0) => Piece::Whole,
        (0, _) => Piece::First,
        _ => Piece::Later,
    };
    Some(Ip {
        v4: true,
        at,
        transport: packet.forget(at + header),
        end: packet.forget(at + total),
        protocol: packet.byte(at + 9)?,
        piece,
    })
}

#[inline(always)]
fn locate_v6<R: Reader>(packet: &R, at: usize) -> Option<Ip> {
    if packet.byte(at)? >> 4 != 6 {
        return None;
    }
    let length = usize::from(packet.be16(at + 4)?);
    // A length of zero announces a jumbogram (RFC 2675, 3): all that is there belongs to it.
    let end = if length == 0 { usize::from(u16::MAX) } else { at + 40 + length };
    let mut ip = Ip {
        v4: false,
        at,
        transport: at + 40,
        end: packet.forget(end),
        protocol: packet.byte(at + 6)?,
        piece: Piece::Whole,
    };
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(ip.protocol) {
            return Some(ip);
        }
        let Some(head) = packet.be16(ip.transport) else {
            return hidden_if_first(ip);
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
                return hidden_if_first(ip);
            };
            if fragment & 0xfff8 != 0 {
                ip.piece = Piece::Later;
            } else if fragment & 1 != 0 {
                ip.piece = Piece::First;
            }
        }
        ip.protocol = (head >> 8) as u8;
        if matches!(ip.piece, Piece::Later) {
            return Some(ip);
        }
        ip.transport = packet.forget(ip.transport + bytes);
    }
    if is_extension(ip.protocol) {
        ip.piece = Piece::Hidden;
    }
    Some(ip)
}

/// Whether an IPv6 header of this type is followed by another one: hop-by-hop, routing, fragment, AH, destination
/// options, mobility, HIP, Shim6 (IANA's IPv6 Extension Header Types). ESP is left out: nothing behind it is readable.
#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

/// A chain that the packet's end cuts off hides the ports in a first fragment; in a whole packet it is malformed and
/// no host takes it.
#[inline(always)]
fn hidden_if_first(mut ip: Ip) -> Option<Ip> {
    if !matches!(ip.piece, Piece::First) {
        return None;
    }
    ip.piece = Piece::Hidden;
    Some(ip)
}

impl Ip {
    /// The source address. What follows is verified once for both families: nothing in the result tells the verifier
    /// which of them it came from.
    #[inline(always)]
    pub fn source<R: Reader>(&self, packet: &R) -> Option<Source> {
        let (high, low) = if self.v4 {
            Source::v4(packet.four(self.at + 12)?).words()
        } else {
            (packet.eight(self.at + 8)?, packet.eight(self.at + 16)?)
        };
        Some(Source::from_words(packet.forget(high as usize) as u64, packet.forget(low as usize) as u64))
    }

    /// The source and destination port (the same place in UDP and TCP).
    #[inline(always)]
    pub fn ports<R: Reader>(&self, packet: &R) -> Option<(u16, u16)> {
        Some((packet.be16(self.transport)?, packet.be16(self.transport + 2)?))
    }

    /// Whether the ports are hidden behind too many headers, not merely behind the packet's end.
    #[inline(always)]
    pub fn is_overlong(&self) -> bool {
        matches!(self.piece, Piece::Hidden) && is_extension(self.protocol)
    }

    /// Where the UDP payload starts and where it ends. `None` if the UDP header is one that no host takes.
    ///
    /// The end is what the host's stack makes of the UDP length (`net/ipv4/udp.c` trims to it; `net/ipv6/udp.c` takes
    /// zero for "all"), and never behind the end of the IP payload.
    #[inline(always)]
    pub fn udp_payload<R: Reader>(&self, packet: &R) -> Option<(usize, usize)> {
        let length = usize::from(packet.be16(self.transport + 4)?);
        packet.be16(self.transport + 6)?;
        let start = self.transport + 8;
        let claimed = match length {
            0 if !self.v4 => self.end,
            0..8 => return None,
            _ => self.transport + length,
        };
        Some((start, packet.forget(if claimed < self.end { claimed } else { self.end })))
    }
}
