//! HEP, by which SIP servers and capture agents send copies of messages to a collector such as
//! Homer: versions 1, 2 and 3. A message becomes the UDP packet that it came in.

use std::net::IpAddr;

/// What a HEP packet tells of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HepEnds {
    /// A SIP message over UDP, as an IP packet.
    Packet(Vec<u8>),
    /// Something else, by name.
    Other(&'static str),
}

/// The protocol numbers of what is told.
const UDP: u8 = 17;

/// Reads a HEP packet; none if it is none.
pub(super) fn read(data: &[u8]) -> Option<HepEnds> {
    if data.starts_with(b"HEP3") { version3(data) } else { version1_or_2(data) }
}

/// Where a message went from and to.
#[derive(Debug, Default)]
struct Route {
    protocol: u8,
    from: Option<IpAddr>,
    to: Option<IpAddr>,
    from_port: u16,
    to_port: u16,
}

impl Route {
    fn hep_ends(&self, message: &[u8]) -> Option<HepEnds> {
        if self.protocol != UDP {
            return Some(HepEnds::Other("HEP of TCP or TLS"));
        }
        Some(HepEnds::Packet(packet(
            (self.from?, self.from_port),
            (self.to?, self.to_port),
            message,
        )?))
    }
}

/// Chunks of a vendor, a type, a length and a value (HEP3 network protocol specification, revision
/// 36).
fn version3(data: &[u8]) -> Option<HepEnds> {
    const SIP: u8 = 1;
    let be16 = |data: &[u8], at: usize| Some(u16::from_be_bytes(*data.get(at..)?.first_chunk()?));
    let end = usize::from(be16(data, 4)?).min(data.len());
    let mut rest = data.get(6..end)?;
    let (mut route, mut message, mut is_packed, mut kind) = (Route::default(), None, false, SIP);
    while let Some(head) = rest.first_chunk::<6>() {
        let [vendor, chunk, length] =
            [0, 2, 4].map(|at| u16::from_be_bytes([head[at], head[at + 1]]));
        let value = rest.get(6..usize::from(length).min(rest.len()))?;
        match (vendor, chunk) {
            (0, 2) => route.protocol = *value.first()?,
            (0, 3) => route.from = Some(IpAddr::from(*value.first_chunk::<4>()?)),
            (0, 4) => route.to = Some(IpAddr::from(*value.first_chunk::<4>()?)),
            (0, 5) => route.from = Some(IpAddr::from(*value.first_chunk::<16>()?)),
            (0, 6) => route.to = Some(IpAddr::from(*value.first_chunk::<16>()?)),
            (0, 7) => route.from_port = be16(value, 0)?,
            (0, 8) => route.to_port = be16(value, 0)?,
            (0, 11) => kind = *value.first()?,
            (0, 15) => message = Some(value),
            (0, 16) => (message, is_packed) = (Some(value), true),
            _ => {}
        }
        rest = rest.get(usize::from(length).max(6)..).unwrap_or_default();
    }
    if kind != SIP {
        return Some(HepEnds::Other("HEP of something else than SIP"));
    }
    if is_packed {
        return Some(HepEnds::Other("HEP with compressed messages"));
    }
    route.hep_ends(message?)
}

/// A fixed header: version, its length, family, protocol, ports, addresses, and in version 2 a
/// time.
fn version1_or_2(data: &[u8]) -> Option<HepEnds> {
    let [version, length, family, protocol, ports @ ..] = data.first_chunk::<8>()?;
    let (width, family_length) = match family {
        2 => (4, 16),
        10 => (16, 40),
        _ => return None,
    };
    if !matches!(version, 1 | 2)
        || usize::from(*length) < family_length
        || !matches!(protocol, 6 | 17 | 132)
    {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        let rest = data.get(at..)?;
        Some(match width {
            4 => IpAddr::from(*rest.first_chunk::<4>()?),
            _ => IpAddr::from(*rest.first_chunk::<16>()?),
        })
    };
    let route = Route {
        protocol: *protocol,
        from: address(8),
        to: address(8 + width),
        from_port: u16::from_be_bytes([ports[0], ports[1]]),
        to_port: u16::from_be_bytes([ports[2], ports[3]]),
    };
    // Whether the length counts the time, which is 10 bytes or, padded, 12, is not agreed on: the
    // message tells.
    let starts = [usize::from(*length), family_length, family_length + 10, family_length + 12];
    let message = starts.into_iter().filter_map(|at| data.get(at..)).find(|rest| is_sip(rest))?;
    route.hep_ends(message)
}

/// Whether a text begins like a SIP message.
fn is_sip(text: &[u8]) -> bool {
    let line = text.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    line.starts_with(b"SIP/2.0 ")
        || line.ends_with(b" SIP/2.0") && line.first().is_some_and(u8::is_ascii_uppercase)
}

/// A UDP packet; none if its addresses are of two families, or it would be longer than one can be.
fn packet(
    (from, from_port): (IpAddr, u16),
    (to, to_port): (IpAddr, u16),
    message: &[u8],
) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len() + 8).ok()?;
    let mut packet = Vec::with_capacity(message.len() + 48);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend(length.checked_add(20)?.to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([UDP, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => return None,
    }
    packet.extend(from_port.to_be_bytes());
    packet.extend(to_port.to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(message);
    Some(packet)
}
