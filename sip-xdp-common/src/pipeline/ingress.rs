//! The decision order for incoming packets. It reads from top to bottom like the list in
//! ARCHITECTURE.md, and is the same code in the kernel (over maps) and on the host (over the tables
//! of a test or a replay).
//!
//! More than 400 lines: the one decision order, in one piece, with what it asks.

use crate::abi::layout::HEAD;
use crate::ip_key::IpKey;
use crate::lookup::search::Listing;
use crate::packet::headers::{
    self, FastPathHeaders, Fragmentation, ICMP, ICMPV6, Inspects, Ip, Link, PortPair, TCP,
    UDP_LITE, tcp_flags,
};
use crate::packet::reader::Reader;
use crate::sip;
use crate::verdict::{Message, Reason};

/// The settings of a program.
pub trait ProgramSettings {
    /// Link type of the interface.
    fn link(&self) -> Link;

    /// Optional headers to inspect.
    fn inspects(&self) -> Inspects;

    /// Whether `port` (host order) is a SIP port.
    fn is_sip_port(&self, port: u16) -> bool;
}

/// Everything that a decision needs besides the packet.
pub trait Tables: ProgramSettings {
    /// The position of a source's meter.
    type MeterSlot: Copy;

    /// Whether blocked sources lose everything but ICMP (`block_scope = "all"`), not only SIP.
    fn scope_all(&self) -> bool;

    /// Whether the policy is `closed`: only trusted, admitted, known-good and peer sources pass.
    fn is_closed(&self) -> bool;

    /// The summary lookup of `source`; counts the hit if it is blocked, as `listing` does. Without
    /// a summary it is [open](Listing::OPEN).
    #[inline(always)]
    fn lookup_summary(&self, _source: &IpKey) -> Listing {
        Listing::OPEN
    }

    /// The lookup of `source` in the lists, completing `lookup_summary`; counts the hit if it is
    /// blocked, and nothing else decides.
    fn listing(&self, source: &IpKey, lookup_summary: Listing) -> Listing;

    /// Counts the hit of a packet that is dropped for a block that `listing` has not counted.
    /// `is_whole`: blocks of UDP alone do not apply to it.
    #[inline(always)]
    fn count_hit(&self, _source: &IpKey, _is_whole: bool) {}

    /// The state of a port of `source`; counts the hit if it is banned.
    fn flow(&self, source: &IpKey, port: u16) -> FlowState;

    /// Whether a request of the server to `source` is pending.
    fn has_pending_request(&self, source: &IpKey) -> bool;

    /// Locates a source's meter and prefetches it, so that the load overlaps with parsing the
    /// payload.
    fn place(&self, source: &IpKey, listed: &Listing) -> Self::MeterSlot;

    /// Charges a message to its source's meter, or to the shared budget in a storm, and sends the
    /// event that is due.
    fn charge(&self, message: Message, sent: &Sent, place: Self::MeterSlot) -> Charged;

    /// Charges a TCP segment to its source's meter, if it is one that is metered, and samples what
    /// the detector reads. In `sent` the payload begins with the TCP header.
    fn charge_segment(&self, segment: &Segment, sent: &Sent, place: Self::MeterSlot) -> Charged;
}

/// The port of SIP over TLS (RFC 3261, section 19.1.2), where nothing can be read.
pub const SIPS_PORT: u16 = 5061;

/// A TCP segment, as far as it is metered and sampled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledges: u32,
    /// Length of the TCP header in bytes; 0 if it is not all there.
    pub header: usize,
    /// Control bits: [`tcp_flags`].
    pub flags: u8,
    /// Length of the payload in bytes.
    pub payload: usize,
}

impl Segment {
    /// Whether there is payload.
    #[inline(always)]
    pub const fn has_payload(&self) -> bool {
        self.payload != 0
    }

    /// Whether it asks for a connection: a SYN that acknowledges nothing.
    #[inline(always)]
    pub const fn is_request(&self) -> bool {
        self.flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    }

    /// Whether the detector reads it: it has payload, or ends a connection. Acknowledgements come
    /// with the payload of the other direction as well.
    #[inline(always)]
    pub const fn is_read(&self) -> bool {
        self.flags & tcp_flags::SYN == 0
            && (self.has_payload() || self.flags & (tcp_flags::FIN | tcp_flags::RST) != 0)
    }

    /// Whether it is a part of a handshake that anybody can cause: a SYN/ACK, or a RST.
    #[inline(always)]
    pub const fn is_handshake(&self) -> bool {
        self.flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN | tcp_flags::ACK
            || (self.flags & tcp_flags::RST != 0 && !self.has_payload())
    }
}

/// The state of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowState {
    /// Unknown.
    Stranger,
    /// Known good.
    Good,
    /// Banned.
    Banned,
}

/// The result of charging a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charged {
    /// Within its limits.
    Within,
    /// The source is over a limit.
    Limited,
    /// A source without a meter, in a storm whose shared budget is spent.
    Storm,
}

/// Origin of a message, and its position in the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Source address.
    pub source: IpKey,
    /// The source's listing.
    pub listed: Listing,
    /// Whether it passes although its address is blocked: a known-good flow, exempt from bans by
    /// the detector or a feed.
    pub spared: bool,
    /// Source port, in host order.
    pub source_port: u16,
    /// Destination port, in host order.
    pub destination_port: u16,
    /// Offset of the IP header.
    pub ip: usize,
    /// Start of the UDP payload.
    pub payload: usize,
    /// End of the UDP payload.
    pub end: usize,
    /// Whether the payload continues in other fragments.
    pub first_fragment: bool,
    /// Whether a sample cannot hold the whole message.
    pub is_cut: bool,
}

/// The decision about one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// The reason, which determines the verdict.
    pub reason: Reason,
    /// The message kind, if the payload was classified.
    pub message: Option<Message>,
    /// End of the packet, by its own length field; `usize::MAX` if it has none.
    pub end: usize,
}

impl Judgement {
    /// A decision that did not depend on the payload.
    #[inline(always)]
    pub const fn by(reason: Reason, end: usize) -> Self {
        Self { reason, message: None, end }
    }
}

/// The destination of a packet, as far as this filter cares.
enum Target {
    /// A SIP port.
    Sip(PortPair),
    /// Possibly a SIP port: a first fragment or an overlong header chain hides the ports.
    Hidden,
    /// A SIP port, from source port 0.
    SipFromNobody,
    /// A later fragment, without ports.
    Fragment,
    /// A first fragment to another port.
    FragmentElsewhere,
    /// Another port or protocol.
    Elsewhere,
}

impl Target {
    #[inline(always)]
    const fn is_sip(&self) -> bool {
        matches!(self, Self::Sip(_) | Self::SipFromNobody | Self::Hidden)
    }

    /// The reason under which a packet that is not to a SIP port passes.
    #[inline(always)]
    const fn by_the_way(&self) -> Reason {
        match self {
            Self::Elsewhere | Self::FragmentElsewhere => Reason::NotSip,
            Self::Fragment => Reason::Fragment,
            Self::Sip(_) | Self::SipFromNobody | Self::Hidden => Reason::Unknown,
        }
    }
}

/// Judges one packet.
#[inline(always)]
pub fn judge<R: Reader, T: Tables>(packet: &R, tables: &T) -> Judgement {
    // 1. Packets that are not to a SIP port pass.
    let may_pass = |target: &Target, ip: &Ip| {
        matches!(target, Target::Elsewhere)
            && (!tables.scope_all() || ip.protocol == ICMP || ip.protocol == ICMPV6)
    };
    let fast_path = if matches!(tables.link(), Link::Ethernet) {
        headers::parse_fast_path(packet)
    } else {
        None
    };
    // The fast path has its own code up to the summary lookup, because there the compiler knows the
    // header layout.
    let (ip, target, source, lookup_summary) = match fast_path {
        Some(FastPathHeaders { ip, source, ports }) => {
            let target = target(tables, &ip, || Some(ports));
            if may_pass(&target, &ip) {
                return Judgement::by(target.by_the_way(), ip.end);
            }
            let lookup_summary = tables.lookup_summary(&source);
            if lookup_summary.is_only_blocked() {
                return Judgement::by(Reason::Blocked, ip.end);
            }
            (ip, target, source, lookup_summary)
        }
        None => {
            let Some(ip) = headers::parse_headers(packet, tables.link(), tables.inspects()) else {
                return Judgement::by(Reason::NotSip, usize::MAX);
            };
            let packet = &packet.reload_bounds();
            let target = target(tables, &ip, || ip.ports(packet));
            if may_pass(&target, &ip) {
                return Judgement::by(target.by_the_way(), ip.end);
            }
            let source = match ip.source(packet) {
                Some(source) => source,
                // Linux would deliver it, but its source is unreadable: more tags than are removed.
                None if matches!(ip.fragmentation, Fragmentation::Hidden) => {
                    return Judgement::by(Reason::Limited, ip.end);
                }
                None => return Judgement::by(Reason::NotSip, ip.end),
            };
            let lookup_summary = tables.lookup_summary(&source);
            (ip, target, source, lookup_summary)
        }
    };
    let (to_sip, by_the_way) = (target.is_sip(), target.by_the_way());

    // 2. Trusted sources pass, whatever else lists them. In an attack most sources are blocked and
    //    nothing else, which the summary tells.
    let listed = tables.listing(&source, lookup_summary);
    if listed.is_only_blocked() {
        return Judgement::by(Reason::Blocked, ip.end);
    }
    let packet = &packet.reload_bounds();
    // Widened, so that fast path and full parser are verified as one from here on.
    let ip = Ip {
        transport: packet.verifier_widen(ip.transport),
        end: packet.verifier_widen(ip.end),
        ..ip
    };
    if listed.is_trusted() {
        return Judgement::by(if to_sip { Reason::Trusted } else { by_the_way }, ip.end);
    }

    // 3. Blocked sources are dropped, and so are banned ports, by UDP and TCP. A known-good phone
    //    keeps its port, or its connection, when the detector or a feed blocks its address.
    let mut spared = false;
    if to_sip
        && (listed.has_flows() || listed.is_blocked())
        && (listed.has_flows() || listed.is_good())
        && !listed.is_blocked_by_hand()
        && let Target::Sip(ports) = target
    {
        match tables.flow(&source, ports.source()) {
            FlowState::Banned => return Judgement::by(Reason::Blocked, ip.end),
            FlowState::Good => spared = listed.is_blocked() && listed.is_good(),
            FlowState::Stranger => {}
        }
    }
    // Fragments have no port that would identify a registered phone. Those of a blocked source are
    // dropped whatever their destination, because they fill the host's reassembly memory.
    let may_be_good = spared || (!to_sip && listed.is_good() && !listed.is_blocked_by_hand());
    // A ban on forgeable evidence covers UDP to SIP ports only.
    let is_whole = ip.protocol == TCP || matches!(by_the_way, Reason::NotSip);
    let is_exempt = listed.is_udp_only() && is_whole;
    if listed.is_blocked() && !may_be_good && !is_exempt {
        if listed.is_uncounted() {
            tables.count_hit(&source, is_whole);
        }
        return Judgement::by(Reason::Blocked, ip.end);
    }
    if !to_sip {
        return Judgement::by(by_the_way, ip.end);
    }

    // Under the policy `closed` unknown sources may only answer pending requests.
    let may_talk =
        !tables.is_closed() || listed.is_admitted() || listed.is_good() || listed.is_peer();
    if !may_talk && (!ip.is_udp() || !tables.has_pending_request(&source)) {
        return Judgement::by(Reason::Closed, ip.end);
    }
    if ip.protocol == TCP {
        return judge_segment(packet, tables, &ip, &source, &listed, spared);
    }
    // UDP-Lite carries no SIP: only attackers send it. A datagram from port 0 wants no answer (RFC
    // 768), so that no client sends one; but a server may answer to the port in its Via.
    if ip.protocol == UDP_LITE || matches!(target, Target::SipFromNobody) {
        return Judgement::by(Reason::Limited, ip.end);
    }

    // Widened: the list and the family of the source no longer matter.
    let listed = Listing::new(packet.verifier_widen(listed.bits() as usize) as u64);
    let flags = packet.verifier_widen(usize::from(may_talk) | usize::from(spared) << 1);
    let (may_talk, spared) = (flags & 1 != 0, flags & 2 != 0);
    let (high, low) = source.words();
    let source = IpKey::from_words(
        packet.verifier_widen(high as usize) as u64,
        packet.verifier_widen(low as usize) as u64,
    );

    let place = tables.place(&source, &listed);

    // 4. The payload is classified by its start line.
    let (mut source_port, mut destination_port) = (0, 0);
    let (mut payload, mut end) = (ip.transport, ip.transport);
    // Widened, so that the verifier follows the parser once, not once per packet type.
    let first_fragment =
        packet.verifier_widen(usize::from(matches!(ip.fragmentation, Fragmentation::First))) != 0;
    let message = match target {
        Target::Sip(ports) => {
            (source_port, destination_port) = (ports.source(), ports.destination());
            match ip.udp_payload(packet) {
                Some(span) => {
                    (payload, end) = span;
                    sip::classify(packet, payload, end, first_fragment)
                }
                None if first_fragment => Message::Other,
                None => Message::Unparsed,
            }
        }
        // A first fragment too short for its ports counts as a request; hidden ports count as
        // unparsed.
        _ if first_fragment => Message::Other,
        _ => Message::Unparsed,
    };

    // Widened, so that the rest is verified once, not once per message kind.
    let number = packet.verifier_widen(message as usize) & (Message::SLOTS - 1);
    let message = Message::from_number(number as u8).unwrap_or(Message::Unparsed);
    if !may_talk && !matches!(message, Message::Response) {
        return Judgement { reason: Reason::Closed, message: Some(message), end: ip.end };
    }

    // 5. Known sources have generous limits; 6. unknown sources have their own; 7. in a storm, new
    //    sources share a budget.
    let is_cut = packet
        .verifier_widen(usize::from(first_fragment || end.saturating_sub(payload) > HEAD))
        != 0;
    let at = packet.verifier_widen(ip.at);
    let sent = Sent {
        source,
        listed,
        spared,
        source_port,
        destination_port,
        ip: at,
        payload,
        end,
        first_fragment,
        is_cut,
    };
    let reason = match tables.charge(message, &sent, place) {
        Charged::Within if listed.is_good() => Reason::Good,
        Charged::Within if listed.is_peer() => Reason::Peer,
        Charged::Within => message.passes_as(),
        Charged::Limited => Reason::Limited,
        Charged::Storm => Reason::Storm,
    };
    Judgement { reason, message: Some(message), end: ip.end }
}

/// Judges a TCP segment to a SIP port. Of unknown sources, connections are metered by their SYN,
/// payload by its length, and first fragments, which could hide what they carry. All else passes,
/// and is sampled for the detector. No state is kept of a connection.
#[inline(always)]
fn judge_segment<R: Reader, T: Tables>(
    packet: &R,
    tables: &T,
    ip: &Ip,
    source: &IpKey,
    listed: &Listing,
    spared: bool,
) -> Judgement {
    // Widened, as for UDP: list and family of the source no longer matter.
    let listed = Listing::new(packet.verifier_widen(listed.bits() as usize) as u64);
    let (high, low) = source.words();
    let source = IpKey::from_words(
        packet.verifier_widen(high as usize) as u64,
        packet.verifier_widen(low as usize) as u64,
    );
    let passes_as = if listed.is_good() {
        Reason::Good
    } else if listed.is_peer() {
        Reason::Peer
    } else {
        Reason::Unknown
    };
    let first_fragment =
        packet.verifier_widen(usize::from(matches!(ip.fragmentation, Fragmentation::First))) != 0;
    let (mut source_port, mut destination_port) = (0, 0);
    let mut segment = Segment::default();
    if let Some(tcp) = ip.tcp(packet) {
        (source_port, destination_port) = (tcp.ports.source(), tcp.ports.destination());
        segment = Segment {
            sequence: tcp.sequence,
            acknowledges: tcp.acknowledges,
            header: packet.verifier_widen(tcp.header),
            flags: tcp.flags,
            payload: packet.verifier_widen(ip.end.saturating_sub(ip.transport + tcp.header)),
        };
    }
    // An acknowledgement alone, or what the host throws away for its header.
    if !segment.is_request() && !segment.is_read() && !first_fragment {
        return Judgement::by(passes_as, ip.end);
    }
    let place = tables.place(&source, &listed);
    let sent = Sent {
        source,
        listed,
        spared,
        source_port,
        destination_port,
        ip: packet.verifier_widen(ip.at),
        payload: packet.verifier_widen(ip.transport),
        end: packet.verifier_widen(ip.end),
        first_fragment,
        is_cut: first_fragment,
    };
    let reason = match tables.charge_segment(&segment, &sent, place) {
        Charged::Within => passes_as,
        Charged::Limited => Reason::Limited,
        Charged::Storm => Reason::Storm,
    };
    Judgement::by(reason, ip.end)
}

#[inline(always)]
fn target<T: Tables>(tables: &T, ip: &Ip, ports: impl FnOnce() -> Option<PortPair>) -> Target {
    if matches!(ip.fragmentation, Fragmentation::Hidden) {
        return Target::Hidden;
    }
    if !ip.may_have_ports() {
        return Target::Elsewhere;
    }
    if matches!(ip.fragmentation, Fragmentation::Later) {
        return Target::Fragment;
    }
    match ports() {
        Some(ports) if tables.is_sip_port(ports.destination()) && ports.source() == 0 => {
            Target::SipFromNobody
        }
        Some(ports) if tables.is_sip_port(ports.destination()) => Target::Sip(ports),
        Some(_) if matches!(ip.fragmentation, Fragmentation::First) => Target::FragmentElsewhere,
        Some(_) => Target::Elsewhere,
        // Beyond the readable part of the packet, or invalid for every host.
        None => Target::Hidden,
    }
}
