//! Unwrapping of captured packets: link headers, tags, and the tunnels of mirrors. The inner packet
//! becomes the Ethernet frame that the programs would see; unsupported contents have a name. No
//! length is trusted, and the nesting is limited to [`MOST_LAYERS`].
//!
//! More than 400 lines: one function per encapsulation, which call each other.

use sip_xdp_common::packet::headers::{
    ETH_IPV4, ETH_IPV6, ETH_PPPOE, ETH_QINQ, ETH_VLAN, PPP_IPV4, PPP_IPV6,
};

use super::hep;

/// Maximum number of nested tunnels.
const MOST_LAYERS: usize = 8;

/// VLAN tags left in the frame. Further ones are removed here.
const MOST_TAGS: usize = 2;

/// Non-standard EtherTypes of tags, used by switches before 802.1ad.
const OTHER_TAGS: [u16; 3] = [0x9100, 0x9200, 0x9300];

const ETH_MPLS: [u16; 2] = [0x8847, 0x8848];
const ETH_ARP: u16 = 0x0806;
/// Provider backbone bridges (802.1ah): a tag of four bytes, and a whole frame.
const ETH_BACKBONE: u16 = 0x88e7;
const ETH_MACSEC: u16 = 0x88e5;
/// An Ethernet frame in GRE or Geneve.
const ETH_BRIDGED: u16 = 0x6558;
/// ERSPAN in GRE: types I and II, and type III.
const ERSPAN: u16 = 0x88be;
const ERSPAN3: u16 = 0x22eb;
/// PPP in the GRE of PPTP.
const PPTP: u16 = 0x880b;

const IPV4_IN_IP: u8 = 4;
const UDP: u8 = 17;
const IPV6_IN_IP: u8 = 41;
const GRE: u8 = 47;
const ESP: u8 = 50;
const L2TP: u8 = 115;
const MPLS_IN_IP: u8 = 137;

/// Destination ports of tunnels over UDP.
const VXLAN: [u16; 2] = [4_789, 8_472];
const VXLAN_GPE: u16 = 4_790;
const GENEVE: u16 = 6_081;
const GTP_U: u16 = 2_152;
const MPLS_IN_UDP: u16 = 6_635;
/// TZSP, the sniffer protocol of MikroTik routers.
const TZSP: u16 = 37_008;
const L2TP_PORT: u16 = 1_701;
const IPSEC_NAT: u16 = 4_500;

/// Why a packet is not processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// Unsupported link type.
    LinkType,
    /// Truncated within its link header, or too short for a frame.
    Malformed,
}

/// An unwrapped packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unwrapped<'a> {
    /// An Ethernet frame.
    pub(super) frame: &'a [u8],
    /// The outermost tunnel, if any.
    pub(super) tunnel: Option<&'static str>,
    /// Unsupported inner contents.
    pub(super) closed: Option<&'static str>,
}

/// The innermost contents.
enum Inner<'a> {
    /// A frame that is contained in the capture.
    Frame(&'a [u8]),
    /// A packet of this EtherType.
    Packet(u16, &'a [u8]),
    /// A reconstructed IP packet.
    Made(Vec<u8>),
}

/// An inner packet with its wrappings.
struct Found<'a> {
    inner: Inner<'a>,
    tunnel: Option<&'static str>,
    closed: Option<&'static str>,
}

impl<'a> Found<'a> {
    fn plain(inner: Inner<'a>) -> Self {
        Self { inner, tunnel: None, closed: None }
    }

    fn by(self, tunnel: &'static str) -> Self {
        // The outermost tunnel is the one of the capture.
        Self { tunnel: Some(tunnel), ..self }
    }
}

/// Supported link types (tcpdump.org/linktypes.html), with names.
const LINKS: [(i32, &str); 21] = [
    (NULL, "null"),
    (ETHERNET, "ethernet"),
    (PPP, "ppp"),
    (12, "raw"),
    (14, "raw"),
    (PPP_HDLC, "ppp_hdlc"),
    (PPP_ETHER, "pppoe"),
    (101, "raw"),
    (CISCO_HDLC, "c_hdlc"),
    (LOOP, "loop"),
    (ENC, "enc"),
    (SLL, "sll"),
    (PFLOG, "pflog"),
    (PPP_PPPD, "ppp_pppd"),
    (PPP_WITH_DIRECTION, "ppp_with_dir"),
    (228, "ipv4"),
    (229, "ipv6"),
    (NFLOG, "nflog"),
    (ETHERNET_MPACKET, "ethernet_mpacket"),
    (SLL2, "sll2"),
    (MPLS, "mpls"),
];

/// Unsupported link types, with names.
const OTHER_LINKS: [(i32, &str); 14] = [
    (105, "Wi-Fi"),
    (119, "Wi-Fi with a Prism header"),
    (127, "Wi-Fi with a radiotap header"),
    (163, "Wi-Fi with an AVS header"),
    (107, "frame relay"),
    (147, "of a private link type"),
    (187, "Bluetooth"),
    (201, "Bluetooth"),
    (189, "USB"),
    (220, "USB"),
    (195, "IEEE 802.15.4"),
    (252, "Wireshark's exported PDUs; export packets instead"),
    (253, "netlink"),
    (265, "D-Bus"),
];

/// BSD loopback: four bytes of protocol family in the writer's byte order.
const NULL: i32 = 0;
const ETHERNET: i32 = 1;
const PPP: i32 = 9;
const PPP_HDLC: i32 = 50;
/// PPP in PPPoE, without the Ethernet header.
const PPP_ETHER: i32 = 51;
const CISCO_HDLC: i32 = 104;
/// OpenBSD loopback: the family in network byte order.
const LOOP: i32 = 108;
/// OpenBSD's enc: twelve bytes, then an IP packet.
const ENC: i32 = 109;
/// Linux cooked capture.
const SLL: i32 = 113;
/// OpenBSD's and FreeBSD's firewall log.
const PFLOG: i32 = 117;
const PPP_PPPD: i32 = 166;
const PPP_WITH_DIRECTION: i32 = 204;
const MPLS: i32 = 219;
/// Netfilter log (`tcpdump -i nflog`).
const NFLOG: i32 = 239;
const ETHERNET_MPACKET: i32 = 274;
/// Linux cooked capture, version 2.
const SLL2: i32 = 276;

/// Name of a link type; `None` if unsupported.
pub(super) fn link_name(link: i32) -> Option<&'static str> {
    LINKS.iter().find(|(number, _)| *number == link).map(|(_, name)| *name)
}

/// Description of an unsupported link type.
pub(super) fn unread_name(link: i32) -> String {
    match OTHER_LINKS.iter().find(|(number, _)| *number == link) {
        Some((_, name)) => format!("link type {link} ({name})"),
        None => format!("link type {link}"),
    }
}

/// Unwraps a packet. The frame is built in `buffer`, unless the capture contains it.
pub(super) fn unwrap<'a>(
    link: i32,
    data: &'a [u8],
    buffer: &'a mut Vec<u8>,
) -> Result<Unwrapped<'a>, Unread> {
    let found = by_link(link, data)?;
    let (tunnel, closed) = (found.tunnel, found.closed);
    let frame = match found.inner {
        Inner::Frame(frame) => frame,
        Inner::Packet(kind, packet) => made(kind, packet, buffer),
        Inner::Made(packet) => made(by_version(&packet).ok_or(Unread::Malformed)?, &packet, buffer),
    };
    Ok(Unwrapped { frame, tunnel, closed })
}

/// A frame around a packet, with zero MAC addresses.
fn made<'a>(kind: u16, packet: &[u8], buffer: &'a mut Vec<u8>) -> &'a [u8] {
    buffer.clear();
    buffer.extend([0; 12]);
    buffer.extend(kind.to_be_bytes());
    buffer.extend(packet);
    buffer
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*data.get(at..)?.first_chunk()?))
}

/// The EtherType of an IP packet by its version.
fn by_version(data: &[u8]) -> Option<u16> {
    match data.first()? >> 4 {
        4 => Some(ETH_IPV4),
        6 => Some(ETH_IPV6),
        _ => None,
    }
}

fn by_link(link: i32, data: &[u8]) -> Result<Found<'_>, Unread> {
    let behind = |header: usize| data.get(header..).ok_or(Unread::Malformed);
    let packet = |kind: Option<u16>, header: usize| {
        let (kind, rest) = (kind.ok_or(Unread::Malformed)?, behind(header)?);
        Ok(of_type(kind, rest, 0).unwrap_or(Found::plain(Inner::Packet(kind, rest))))
    };
    let ip = |header: usize| packet(by_version(behind(header)?), header);
    match link {
        ETHERNET => frame(data, 0).ok_or(Unread::Malformed),
        ETHERNET_MPACKET => frame(behind(8)?, 0).ok_or(Unread::Malformed),
        SLL => packet(be16(data, 14), 16),
        SLL2 => packet(be16(data, 0), 20),
        NULL | LOOP => ip(4),
        ENC => ip(12),
        PFLOG => ip(usize::from(*data.first().ok_or(Unread::Malformed)?).div_ceil(4) * 4),
        PPP | PPP_HDLC => ppp(data, 0).ok_or(Unread::Malformed),
        PPP_PPPD => ppp(behind(2)?, 0).ok_or(Unread::Malformed),
        PPP_WITH_DIRECTION => ppp(behind(1)?, 0).ok_or(Unread::Malformed),
        PPP_ETHER => ppp(behind(6)?, 0).ok_or(Unread::Malformed),
        CISCO_HDLC => packet(be16(data, 2), 4),
        NFLOG => {
            let inner = nflog(data).ok_or(Unread::Malformed)?;
            let kind = by_version(inner).ok_or(Unread::Malformed)?;
            Ok(of_type(kind, inner, 0).unwrap_or(Found::plain(Inner::Packet(kind, inner))))
        }
        MPLS => mpls(data, 0).ok_or(Unread::Malformed),
        link if link_name(link).is_some() => ip(0),
        _ => Err(Unread::LinkType),
    }
}

/// The contents of a frame; `None` if it is too short.
fn frame(data: &[u8], depth: usize) -> Option<Found<'_>> {
    let mut at = 12;
    let mut kind = be16(data, at)?;
    // Tags that the programs see, and whether there are others.
    let (mut tags, mut is_odd) = (0, false);
    while matches!(kind, ETH_VLAN | ETH_QINQ) || OTHER_TAGS.contains(&kind) {
        tags += 1;
        is_odd |= OTHER_TAGS.contains(&kind);
        at += 4;
        match be16(data, at) {
            Some(next) => kind = next,
            None => return Some(Found::plain(Inner::Frame(data))),
        }
    }
    let whole = || Found::plain(Inner::Frame(data));
    let Some(payload) = data.get(at + 2..) else {
        return Some(whole());
    };
    let found = match of_type(kind, payload, depth) {
        Some(found) => found,
        None => return Some(whole()),
    };
    // What the programs can parse stays as it is.
    is_odd |= kind == ETH_PPPOE && payload.get(6).is_some_and(|protocol| protocol & 1 == 1);
    let is_bare = !is_odd
        && found.tunnel.is_none()
        && matches!(kind, ETH_IPV4 | ETH_IPV6 | ETH_PPPOE)
        && tags <= MOST_TAGS;
    Some(if is_bare { Found { closed: found.closed, ..whole() } } else { found })
}

/// The contents of a packet by EtherType; `None` if that contains nothing supported, or is
/// truncated.
fn of_type(kind: u16, data: &[u8], depth: usize) -> Option<Found<'_>> {
    if depth > MOST_LAYERS {
        return None;
    }
    match kind {
        ETH_IPV4 | ETH_IPV6 => ip(kind, data, depth),
        ETH_PPPOE => ppp(data.get(6..)?, depth),
        ETH_BRIDGED => plausible(data, depth),
        ETH_BACKBONE => Some(plausible(data.get(4..)?, depth + 1)?.by("802.1ah")),
        ETH_MACSEC => Some(Found {
            closed: Some("MACsec (encrypted)"),
            ..Found::plain(Inner::Packet(kind, data))
        }),
        kind if ETH_MPLS.contains(&kind) => Some(mpls(data, depth + 1)?.by("MPLS")),
        ETH_VLAN | ETH_QINQ => of_type(be16(data, 2)?, data.get(4..)?, depth + 1),
        _ => None,
    }
}

/// Whether bytes are a frame with a known EtherType.
fn begins_as_frame(data: &[u8]) -> bool {
    const KNOWN: [u16; 8] =
        [ETH_IPV4, ETH_IPV6, ETH_ARP, ETH_VLAN, ETH_QINQ, ETH_PPPOE, ETH_MPLS[0], ETH_MPLS[1]];
    be16(data, 12).is_some_and(|kind| KNOWN.contains(&kind))
}

/// An inner frame, if it starts like one.
fn plausible(data: &[u8], depth: usize) -> Option<Found<'_>> {
    let kind = be16(data, 12)?;
    // Frames with a length instead of an EtherType, such as spanning tree, contain no IP.
    if begins_as_frame(data) || kind < 0x0600 { frame(data, depth) } else { None }
}

/// The contents of PPP, with or without address and control fields, and with a protocol of one byte
/// or two.
fn ppp(data: &[u8], depth: usize) -> Option<Found<'_>> {
    let data = data.strip_prefix(&[0xff, 3]).unwrap_or(data);
    let first = *data.first()?;
    let (protocol, header) =
        if first & 1 == 1 { (u16::from(first), 1) } else { (be16(data, 0)?, 2) };
    let rest = data.get(header..)?;
    match protocol {
        PPP_IPV4 => ip(ETH_IPV4, rest, depth),
        PPP_IPV6 => ip(ETH_IPV6, rest, depth),
        0x0281 | 0x0283 => mpls(rest, depth + 1),
        // Compressed headers and PPP control protocols: not supported.
        _ => Some(Found::plain(Inner::Packet(ETH_PPPOE, rest))),
    }
}

/// The contents behind MPLS labels: an IP packet, or a frame, with or without a control word.
fn mpls(data: &[u8], depth: usize) -> Option<Found<'_>> {
    let mut rest = data;
    loop {
        let label = rest.first_chunk::<4>()?;
        rest = &rest[4..];
        if label[2] & 1 == 1 {
            break;
        }
    }
    if depth > MOST_LAYERS {
        return None;
    }
    match by_version(rest) {
        Some(kind) => ip(kind, rest, depth).or_else(|| plausible(rest, depth)),
        // A MAC address may look like a control word: what follows decides.
        None if rest.first()? >> 4 == 0 && !begins_as_frame(rest) => {
            plausible(rest.get(4..)?, depth)
        }
        None => plausible(rest, depth),
    }
}

/// The IP packet of a Netfilter log record: blocks of length, type and value, in the byte order of
/// the host that wrote them (tcpdump.org/linktypes/LINKTYPE_NFLOG.html).
fn nflog(data: &[u8]) -> Option<&[u8]> {
    const PAYLOAD: u16 = 9;
    let find = |read: fn([u8; 2]) -> u16| {
        let mut rest = data.get(4..)?;
        loop {
            let head = rest.first_chunk::<4>()?;
            let (length, kind) =
                (usize::from(read([head[0], head[1]])), read([head[2], head[3]]) & 0x7fff);
            let value = rest.get(4..length.min(rest.len()))?;
            if kind == PAYLOAD {
                return Some(value);
            }
            rest = rest.get(length.max(4).div_ceil(4) * 4..)?;
        }
    };
    let is_ip = |value: &&[u8]| by_version(value).is_some();
    find(u16::from_le_bytes).filter(is_ip).or_else(|| find(u16::from_be_bytes).filter(is_ip))
}

/// An IP packet, or the contents of its tunnel. `None` if it is no IP packet.
fn ip(kind: u16, data: &[u8], depth: usize) -> Option<Found<'_>> {
    let bare = |closed| Some(Found { closed, ..Found::plain(Inner::Packet(kind, data)) });
    let Some((protocol, payload)) = payload(kind, data) else {
        return bare(None);
    };
    let closed = match protocol {
        ESP => Some("ESP (encrypted)"),
        L2TP => Some("L2TP"),
        UDP => match be16(payload, 2) {
            Some(L2TP_PORT) => Some("L2TP"),
            // Without the non-ESP marker of IKE it is ESP.
            Some(IPSEC_NAT) if payload.get(8..12).is_some_and(|mark| mark != [0; 4]) => {
                Some("ESP (encrypted)")
            }
            _ => None,
        },
        _ => None,
    };
    if closed.is_some() || depth >= MOST_LAYERS {
        return bare(closed);
    }
    let depth = depth + 1;
    let inner = match protocol {
        IPV4_IN_IP => ip(ETH_IPV4, payload, depth)
            .filter(|_| by_version(payload) == Some(ETH_IPV4))
            .map(|found| found.by("IP in IP")),
        IPV6_IN_IP => ip(ETH_IPV6, payload, depth)
            .filter(|_| by_version(payload) == Some(ETH_IPV6))
            .map(|found| found.by("IPv6 in IP")),
        MPLS_IN_IP => mpls(payload, depth).map(|found| found.by("MPLS")),
        GRE => gre(payload, depth),
        UDP => udp(payload, depth).or_else(|| hep_packet(kind, data, payload)),
        _ => None,
    };
    inner.map_or_else(|| bare(None), Some)
}

/// Protocol and payload of an IP packet; `None` for later fragments and truncated headers.
fn payload(kind: u16, data: &[u8]) -> Option<(u8, &[u8])> {
    if by_version(data)? != kind {
        return None;
    }
    if kind == ETH_IPV4 {
        let header = usize::from(data.first()? & 0xf) * 4;
        let total = usize::from(be16(data, 2)?);
        let is_first = be16(data, 6)? & 0x1fff == 0;
        // Segmentation offload leaves a length of zero.
        let end = if total >= header && total != 0 { total.min(data.len()) } else { data.len() };
        let rest = data.get(header.max(20)..end)?;
        return is_first.then_some((*data.get(9)?, rest));
    }
    let mut protocol = *data.get(6)?;
    let end = match usize::from(be16(data, 4)?) {
        0 => data.len(),
        length => (40 + length).min(data.len()),
    };
    let mut rest = data.get(40..end)?;
    // Hop-by-hop options, routing, fragment, authentication, destination options (RFC 8200, RFC
    // 4302).
    for _ in 0..MOST_LAYERS {
        let length = match protocol {
            0 | 43 | 60 => (usize::from(*rest.get(1)?) + 1) * 8,
            44 if be16(rest, 2)? & 0xfff8 != 0 => return None,
            44 => 8,
            51 => (usize::from(*rest.get(1)?) + 2) * 4,
            _ => break,
        };
        protocol = *rest.first()?;
        rest = rest.get(length..)?;
    }
    Some((protocol, rest))
}

/// The contents of GRE (RFC 2784, RFC 2890; RFC 2637 for PPTP; draft-foschiano-erspan).
fn gre(data: &[u8], depth: usize) -> Option<Found<'_>> {
    let (flags, kind) = (be16(data, 0)?, be16(data, 2)?);
    let has = |flag: u16| usize::from(flags & flag != 0) * 4;
    let mut header = 4 + has(0x8000) + has(0x2000) + has(0x1000);
    let has_sequence = flags & 0x1000 != 0;
    if flags & 7 == 1 {
        header += has(0x0080);
    }
    let rest = data.get(header..)?;
    match kind {
        PPTP => Some(ppp(rest, depth)?.by("PPTP")),
        // Type I has no header, and no sequence numbers.
        ERSPAN if !has_sequence => Some(plausible(rest, depth)?.by("ERSPAN")),
        ERSPAN => Some(plausible(rest.get(8..)?, depth)?.by("ERSPAN")),
        ERSPAN3 => {
            let has_more = rest.get(11)? & 1 == 1;
            Some(plausible(rest.get(if has_more { 20 } else { 12 }..)?, depth)?.by("ERSPAN"))
        }
        kind => Some(of_type(kind, rest, depth)?.by("GRE")),
    }
}

/// The contents of a tunnel over UDP; `None` if it is none.
fn udp(data: &[u8], depth: usize) -> Option<Found<'_>> {
    let (port, rest) = (be16(data, 2)?, data.get(8..)?);
    let head = rest.first_chunk::<4>()?;
    let found = match port {
        // The flag of a valid network identifier, which is mandatory.
        port if VXLAN.contains(&port) && head[0] & 0x08 != 0 => {
            plausible(rest.get(8..)?, depth)?.by("VXLAN")
        }
        VXLAN_GPE => {
            let inner = rest.get(8..)?;
            match head[3] {
                1 => ip(ETH_IPV4, inner, depth)?,
                2 => ip(ETH_IPV6, inner, depth)?,
                _ => plausible(inner, depth)?,
            }
            .by("VXLAN-GPE")
        }
        GENEVE if head[0] >> 6 == 0 => {
            let inner = rest.get(8 + usize::from(head[0] & 0x3f) * 4..)?;
            of_type(be16(rest, 2)?, inner, depth)?.by("Geneve")
        }
        GTP_U => gtp(rest, depth)?.by("GTP-U"),
        MPLS_IN_UDP => mpls(rest, depth)?.by("MPLS"),
        TZSP => tzsp(rest, depth)?.by("TZSP"),
        _ => return None,
    };
    Some(found)
}

/// A user packet in GTP-U version 1 (3GPP TS 29.281).
fn gtp(data: &[u8], depth: usize) -> Option<Found<'_>> {
    let flags = *data.first()?;
    if flags >> 4 != 3 || *data.get(1)? != 0xff {
        return None;
    }
    let mut at = 8;
    if flags & 7 != 0 {
        let mut next = *data.get(11)?;
        at = 12;
        while flags & 4 != 0 && next != 0 && at < data.len() {
            let length = usize::from(*data.get(at)?).max(1) * 4;
            next = *data.get(at + length - 1)?;
            at += length;
        }
    }
    let inner = data.get(at..)?;
    ip(by_version(inner)?, inner, depth)
}

/// An Ethernet frame in TZSP: a header, and tagged fields up to the end tag.
fn tzsp(data: &[u8], depth: usize) -> Option<Found<'_>> {
    if be16(data, 2)? != 1 {
        return None;
    }
    let mut rest = data.get(4..)?;
    loop {
        rest = match *rest.first()? {
            1 => return plausible(&rest[1..], depth),
            0 => &rest[1..],
            _ => rest.get(2 + usize::from(*rest.get(1)?)..)?,
        };
    }
}

/// The packet in a HEP packet.
fn hep_packet<'a>(kind: u16, outer: &'a [u8], udp: &[u8]) -> Option<Found<'a>> {
    let found = match hep::read(udp.get(8..)?)? {
        hep::HepEnds::Packet(packet) => Found::plain(Inner::Made(packet)),
        hep::HepEnds::Other(what) => {
            Found { closed: Some(what), ..Found::plain(Inner::Packet(kind, outer)) }
        }
    };
    Some(found.by("HEP"))
}
