//! The order in which an arriving packet is judged. It reads from top to bottom like the list in
//! ARCHITECTURE.md, and is the same code in the kernel (over maps) and on the host (over whatever a
//! test or a replay brings).

use crate::abi::layout::HEAD;
use crate::ip_key::IpKey;
use crate::lookup::search::Listing;
use crate::packet::headers::{
    self, FastPathHeaders, Fragmentation, ICMP, ICMPV6, Inspects, Ip, Link, PortPair, TCP, UDP_LITE,
};
use crate::packet::reader::Reader;
use crate::sip;
use crate::verdict::{Message, Reason};

/// Where a program stands.
pub trait ProgramSettings {
    /// How frames start on the interface.
    fn link(&self) -> Link;

    /// Which headers are looked behind.
    fn inspects(&self) -> Inspects;

    /// Whether `port` (host order) is a SIP port.
    fn is_sip_port(&self, port: u16) -> bool;
}

/// Everything that a judgement asks beside the packet itself.
pub trait Tables: ProgramSettings {
    /// Where a source's meter is.
    type MeterSlot: Copy;

    /// Whether blocked sources lose everything but ICMP, not only SIP.
    fn scope_all(&self) -> bool;

    /// Whether only those may talk who are trusted, admitted, known good, or peers.
    fn is_closed(&self) -> bool;

    /// What a look at the lists' front says of `source`; counts the hit if it is blocked. Whoever
    /// has no front leaves it [open](Listing::OPEN).
    #[inline(always)]
    fn lookup_summary(&self, _source: &IpKey) -> Listing {
        Listing::OPEN
    }

    /// What the lists say of `source`, after that; counts the hit if it is blocked.
    fn listing(&self, source: &IpKey, lookup_summary: Listing) -> Listing;

    /// What is known of a port of `source`; counts the hit if it is banned.
    fn flow(&self, source: &IpKey, port: u16) -> FlowState;

    /// Whether we sent `source` a request a moment ago.
    fn has_pending_request(&self, source: &IpKey) -> bool;

    /// Finds the place of a source's meter. Its memory is asked for, so that it arrives while the
    /// payload is looked at.
    fn place(&self, source: &IpKey, listed: &Listing) -> Self::MeterSlot;

    /// Charges a message to its source's meter, or to the strangers' budget in a storm, and tells
    /// the daemon of it if that is due.
    fn charge(&self, message: Message, sent: &Sent, place: Self::MeterSlot) -> Charged;
}

/// What is known of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowState {
    /// Nothing.
    Stranger,
    /// A known-good phone is there.
    Good,
    /// It is banned.
    Banned,
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
    pub source: IpKey,
    /// What the lists say of it.
    pub listed: Listing,
    /// It passes although its address is blocked: a known-good flow that an entry of the detector
    /// or of a feed does not end.
    pub spared: bool,
    /// Its source port.
    pub source_port: u16,
    /// The port that it was sent to.
    pub destination_port: u16,
    /// Where the IP header starts.
    pub ip: usize,
    /// Where the UDP payload starts.
    pub payload: usize,
    /// Where the UDP payload ends.
    pub end: usize,
    /// The payload goes on in other fragments.
    pub first_fragment: bool,
    /// A sample of the payload is not all of the message.
    pub is_cut: bool,
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
    /// Of a packet whose payload does not matter.
    #[inline(always)]
    pub const fn by(reason: Reason, end: usize) -> Self {
        Self { reason, message: None, end }
    }
}

/// Where a packet is headed, as far as this filter cares.
enum Target {
    /// A SIP port.
    Sip(PortPair),
    /// Perhaps a SIP port: a first fragment or an overlong header chain hides the ports.
    Hidden,
    /// A SIP port, from port 0.
    SipFromNobody,
    /// None, being a later fragment.
    Fragment,
    /// Something else, being a first fragment.
    FragmentElsewhere,
    /// Something else.
    Elsewhere,
}

impl Target {
    #[inline(always)]
    const fn is_sip(&self) -> bool {
        matches!(self, Self::Sip(_) | Self::SipFromNobody | Self::Hidden)
    }

    /// The reason for which a packet passes of which nothing but this matters.
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
    // 1. What is not headed for a SIP port passes.
    let may_pass = |target: &Target, ip: &Ip| {
        matches!(target, Target::Elsewhere)
            && (!tables.scope_all() || ip.protocol == ICMP || ip.protocol == ICMPV6)
    };
    let glanced = if matches!(tables.link(), Link::Ethernet) {
        headers::parse_fast_path(packet)
    } else {
        None
    };
    // What nearly all packets are is looked at by itself up to the lists' front: there the compiler
    // knows what it is.
    let (ip, target, source, lookup_summary) = match glanced {
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
                // Linux would deliver it, and it cannot be held against any list: there are more
                // tags than are taken off.
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

    // 2. Trusted sources pass, whatever else lists them. In an attack most are blocked and nothing
    //    else, which one look tells.
    let listed = tables.listing(&source, lookup_summary);
    if listed.is_only_blocked() {
        return Judgement::by(Reason::Blocked, ip.end);
    }
    let packet = &packet.reload_bounds();
    // Forgotten, so that what was glanced at and what was located are verified as one.
    let ip = Ip {
        transport: packet.verifier_widen(ip.transport),
        end: packet.verifier_widen(ip.end),
        ..ip
    };
    if listed.is_trusted() {
        return Judgement::by(if to_sip { Reason::Trusted } else { by_the_way }, ip.end);
    }

    // 3. Blocked sources go no further, and neither do blocked ports of theirs. What the detector
    //    or a feed blocks, a phone that had registered before may go on to use.
    let is_sip_udp = to_sip && ip.is_udp();
    let mut spared = false;
    if is_sip_udp
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
    // Fragments have no port by which a registered phone could be told. A blocked source's are
    // dropped whatever they are for, since they fill the memory in which the host puts fragments
    // together.
    let may_be_good = spared || (!to_sip && listed.is_good() && !listed.is_blocked_by_hand());
    // A ban on evidence that anybody could have sent ends nothing but UDP to SIP ports.
    let is_exempt =
        listed.is_udp_only() && (ip.protocol == TCP || matches!(by_the_way, Reason::NotSip));
    if listed.is_blocked() && !may_be_good && !is_exempt {
        return Judgement::by(Reason::Blocked, ip.end);
    }
    if !to_sip {
        return Judgement::by(by_the_way, ip.end);
    }

    // Under the policy `closed` strangers may only answer.
    let may_talk =
        !tables.is_closed() || listed.is_admitted() || listed.is_good() || listed.is_peer();
    if !may_talk && (!is_sip_udp || !tables.has_pending_request(&source)) {
        return Judgement::by(Reason::Closed, ip.end);
    }
    if ip.protocol == TCP {
        return Judgement::by(by_the_way, ip.end);
    }
    // SIP has no such transport: nobody but an attacker sends it, and no server answers. A datagram
    // from port 0 asks for no answer (RFC 768), so no client sends one; but a server may answer it
    // to the port in its Via.
    if ip.protocol == UDP_LITE || matches!(target, Target::SipFromNobody) {
        return Judgement::by(Reason::Limited, ip.end);
    }

    // From here on it no longer matters which list was asked, and which family the source is of.
    let listed = Listing::new(packet.verifier_widen(listed.bits() as usize) as u64);
    let flags = packet.verifier_widen(usize::from(may_talk) | usize::from(spared) << 1);
    let (may_talk, spared) = (flags & 1 != 0, flags & 2 != 0);
    let (high, low) = source.words();
    let source = IpKey::from_words(
        packet.verifier_widen(high as usize) as u64,
        packet.verifier_widen(low as usize) as u64,
    );

    let place = tables.place(&source, &listed);

    // 4. The payload, by its start line.
    let (mut source_port, mut destination_port) = (0, 0);
    let (mut payload, mut end) = (ip.transport, ip.transport);
    // Forgotten, so that the verifier follows the parser once, not once for each kind of packet.
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
        // A first fragment too short for its ports counts as a request; headers that hide the ports
        // are noise.
        _ if first_fragment => Message::Other,
        _ => Message::Unparsed,
    };

    // What follows is verified once, not once for each kind of message.
    let number = packet.verifier_widen(message as usize) & (Message::SLOTS - 1);
    let message = Message::from_number(number as u8).unwrap_or(Message::Unparsed);
    if !may_talk && !matches!(message, Message::Response) {
        return Judgement { reason: Reason::Closed, message: Some(message), end: ip.end };
    }

    // 5. Known sources have generous limits, 6. unknown ones theirs; 7. and in a storm, strangers
    //    share a budget.
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
        // Behind the part of the packet that can be read, or one that no host takes.
        None => Target::Hidden,
    }
}
