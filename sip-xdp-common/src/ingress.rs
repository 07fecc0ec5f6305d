//! The order in which an arriving packet is judged. It reads from top to bottom like the list in ARCHITECTURE.md, and
//! is the same code in the kernel (over maps) and on the host (over whatever a test or a replay brings).

use crate::packet::{self, ICMP, ICMPV6, Inspects, Ip, Link, Piece, TCP, UDP};
use crate::reader::Reader;
use crate::sip;
use crate::source::Source;
use crate::verdict::{Message, Reason};

/// What the lists say of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Listing {
    /// The source is trusted: nothing else is asked.
    pub trusted: bool,
    /// The source is metered by its full address, although it is IPv6: hosts that must not share a fate live in its
    /// network.
    pub by_address: bool,
    /// A live entry blocks the source, if it is not trusted. The hit is counted.
    pub blocked: bool,
}

/// Where a program stands.
pub trait Site {
    /// How frames start on the interface.
    fn link(&self) -> Link;

    /// Which headers are looked behind.
    fn inspects(&self) -> Inspects;

    /// Whether `port` (host order) is a SIP port.
    fn is_sip_port(&self, port: u16) -> bool;
}

/// Everything that a judgement asks beside the packet itself.
pub trait Tables: Site {
    /// Whether blocked sources lose everything but ICMP, not only SIP.
    fn scope_all(&self) -> bool;

    /// What the lists say of `source`; counts the hit if it is blocked.
    fn listing(&self, source: &Source) -> Listing;

    /// Charges a message to its source's meter, or to the strangers' budget in a storm, and tells the daemon if that is
    /// due.
    fn charge(&self, message: Message, sent: &Sent) -> Charged;
}

/// What became of a message that was charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charged {
    /// It is within its limits.
    Within,
    /// Its source is over a limit.
    Limited,
    /// Its source is a stranger in a storm, and the strangers' budget is spent.
    Storm,
}

/// Whence a message came, and where it is in the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Whose packet it is.
    pub source: Source,
    /// Whether the source is metered by its full address, IPv6 though it may be.
    pub by_address: bool,
    /// Its source port.
    pub source_port: u16,
    /// The port that it was sent to.
    pub destination_port: u16,
    /// Where the UDP payload starts.
    pub payload: usize,
    /// Where the UDP payload ends.
    pub end: usize,
}

/// The outcome for one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// Why, and with it whether the packet is dropped.
    pub reason: Reason,
    /// What the payload is, if the judgement came as far as looking at it.
    pub message: Option<Message>,
    /// Where the packet ends, by its own word; as far away as can be if it has none.
    pub end: usize,
}

impl Judgement {
    #[inline(always)]
    const fn by(reason: Reason, end: usize) -> Self {
        Self { reason, message: None, end }
    }
}

/// Where a packet is headed, as far as this filter cares.
enum Target {
    /// A SIP port.
    Sip { source_port: u16, destination_port: u16 },
    /// Perhaps a SIP port: a first fragment or an overlong header chain hides the ports.
    Hidden,
    /// None, being a later fragment.
    Fragment,
    /// Something else.
    Elsewhere,
}

/// Judges one packet.
#[inline(always)]
pub fn judge<R: Reader, T: Tables>(packet: &R, tables: &T) -> Judgement {
    // 1. What is not headed for a SIP port passes.
    let glanced = if matches!(tables.link(), Link::Ethernet) { packet::glance(packet) } else { None };
    if let Some(ip) = &glanced
        && (ip.protocol == UDP || ip.protocol == TCP)
        && !tables.scope_all()
        && let Some((_, port)) = ip.ports(packet)
        && !tables.is_sip_port(port)
    {
        return Judgement::by(Reason::NotSip, ip.end);
    }
    let located = match glanced {
        // Forgotten, so that both ways are verified as one.
        Some(ip) => {
            let (at, transport) = (packet.forget(ip.at), packet.forget(ip.transport));
            Some(Ip { at, transport, end: packet.forget(ip.end), ..ip })
        }
        None => packet::locate(packet, tables.link(), tables.inspects()),
    };
    let Some(ip) = located else {
        return Judgement::by(Reason::NotSip, usize::MAX);
    };
    let packet = &packet.afresh();
    let target = target(packet, tables, &ip);
    let by_the_way = match target {
        Target::Elsewhere => Reason::NotSip,
        Target::Fragment => Reason::Fragment,
        Target::Sip { .. } | Target::Hidden => Reason::Unknown,
    };
    let to_sip = matches!(by_the_way, Reason::Unknown);
    if !to_sip && (!tables.scope_all() || ip.protocol == ICMP || ip.protocol == ICMPV6) {
        return Judgement::by(by_the_way, ip.end);
    }
    let Some(source) = ip.source(packet) else {
        return Judgement::by(Reason::NotSip, ip.end);
    };

    // 2. Trusted sources pass, before any list is asked.
    let listing = tables.listing(&source);
    if listing.trusted {
        return Judgement::by(if to_sip { Reason::Trusted } else { by_the_way }, ip.end);
    }

    // 3. Blocked sources go no further.
    if listing.blocked {
        return Judgement::by(Reason::Blocked, ip.end);
    }
    if !to_sip || ip.protocol == TCP {
        return Judgement::by(by_the_way, ip.end);
    }

    // From here on it no longer matters which list was asked, and which family the source is of.
    let by_address = packet.forget(usize::from(listing.by_address)) != 0;
    let (high, low) = source.words();
    let source = Source::from_words(packet.forget(high as usize) as u64, packet.forget(low as usize) as u64);

    // 4. The payload, by its start line.
    let (mut source_port, mut destination_port) = (0, 0);
    let (mut payload, mut end) = (ip.transport, ip.transport);
    let message = match target {
        Target::Sip { source_port: from, destination_port: to } => {
            (source_port, destination_port) = (from, to);
            // Forgotten, so that the verifier follows the parser once, not once for each kind of packet.
            let first = packet.forget(usize::from(matches!(ip.piece, Piece::First))) != 0;
            match ip.udp_payload(packet) {
                Some(span) => {
                    (payload, end) = span;
                    sip::classify(packet, payload, end, first)
                }
                None if first => Message::Other,
                None => Message::Unparsed,
            }
        }
        // Too many headers are noise; a first fragment too short for its ports counts as a request.
        _ if ip.is_overlong() => Message::Unparsed,
        _ => Message::Other,
    };

    // What follows is verified once, not once for each kind of message.
    let number = packet.forget(message as usize) & (Message::SLOTS - 1);
    let message = Message::from_number(number as u8).unwrap_or(Message::Unparsed);

    // 5. Unknown sources stay within their limits; 6. and in a storm, strangers within a budget that they share.
    let sent = Sent { source, by_address, source_port, destination_port, payload, end };
    let reason = match tables.charge(message, &sent) {
        Charged::Within => message.passes_as(),
        Charged::Limited => Reason::Limited,
        Charged::Storm => Reason::Storm,
    };
    Judgement { reason, message: Some(message), end: ip.end }
}

#[inline(always)]
fn target<R: Reader, T: Tables>(packet: &R, tables: &T, ip: &Ip) -> Target {
    if matches!(ip.piece, Piece::Hidden) {
        return Target::Hidden;
    }
    if ip.protocol != UDP && ip.protocol != TCP {
        return Target::Elsewhere;
    }
    if matches!(ip.piece, Piece::Later) {
        return Target::Fragment;
    }
    match ip.ports(packet) {
        Some((source_port, destination_port)) if tables.is_sip_port(destination_port) => {
            Target::Sip { source_port, destination_port }
        }
        None if matches!(ip.piece, Piece::First) => Target::Hidden,
        _ => Target::Elsewhere,
    }
}
