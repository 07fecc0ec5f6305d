//! Any bytes as an incoming packet, judged with tables whose contents the input defines. It starts
//! with [`Answers`].

use std::cell::Cell;

use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::lookup::search::Listing;
use sip_xdp_common::packet::headers::{Inspects, Link};
use sip_xdp_common::packet::reader::Bytes;
use sip_xdp_common::pipeline::ingress::{
    self, Charged, FlowState, Judgement, ProgramSettings, Segment, Sent, Tables,
};
use sip_xdp_common::verdict::{Message, Reason, Verdict};

use crate::site::Interface;

/// Bytes of an input that define the tables.
pub const ANSWERS: usize = 4;

/// The tables, and the lookups made.
#[derive(Debug)]
struct Answers {
    site: Interface,
    scope_all: bool,
    closed: bool,
    listed: Listing,
    flow: FlowState,
    has_pending_request: bool,
    charged: Charged,
    source: Cell<Option<IpKey>>,
    flow_asked: Cell<bool>,
    sent: Cell<Option<(Message, Sent)>>,
    segment: Cell<Option<(Segment, Sent)>>,
}

impl Answers {
    /// The reason of what was charged, with the one of a stranger's that passes.
    fn expected(&self, passes_as: Reason) -> Reason {
        match self.charged {
            Charged::Limited => Reason::Limited,
            Charged::Storm => Reason::Storm,
            Charged::Within if self.listed.is_good() => Reason::Good,
            Charged::Within if self.listed.is_peer() => Reason::Peer,
            Charged::Within => passes_as,
        }
    }

    fn new(bytes: [u8; ANSWERS]) -> Self {
        let [site, answers, low, high] = bytes;
        Self {
            site: Interface(site),
            scope_all: site & 8 != 0,
            closed: site & 16 != 0,
            listed: Listing::new(u16::from_le_bytes([low, high]).into()),
            flow: [FlowState::Stranger, FlowState::Good, FlowState::Banned]
                [usize::from(answers & 3) % 3],
            has_pending_request: answers & 4 != 0,
            charged: [Charged::Within, Charged::Limited, Charged::Storm]
                [usize::from(answers >> 3 & 3) % 3],
            source: Cell::new(None),
            flow_asked: Cell::new(false),
            sent: Cell::new(None),
            segment: Cell::new(None),
        }
    }
}

impl ProgramSettings for Answers {
    fn link(&self) -> Link {
        self.site.link()
    }

    fn inspects(&self) -> Inspects {
        self.site.inspects()
    }

    fn is_sip_port(&self, port: u16) -> bool {
        self.site.is_sip_port(port)
    }
}

impl Tables for Answers {
    type MeterSlot = ();

    fn scope_all(&self) -> bool {
        self.scope_all
    }

    fn is_closed(&self) -> bool {
        self.closed
    }

    fn listing(&self, source: &IpKey, _: Listing) -> Listing {
        assert_eq!(self.source.replace(Some(*source)), None, "the lists are asked twice");
        self.listed
    }

    fn flow(&self, source: &IpKey, _: u16) -> FlowState {
        assert_eq!(self.source.get(), Some(*source));
        assert!(!self.flow_asked.replace(true), "the flows are asked twice");
        self.flow
    }

    fn has_pending_request(&self, source: &IpKey) -> bool {
        assert_eq!(self.source.get(), Some(*source));
        self.has_pending_request
    }

    fn place(&self, _: &IpKey, _: &Listing) {}

    fn charge(&self, message: Message, sent: &Sent, (): ()) -> Charged {
        assert_eq!(self.sent.replace(Some((message, *sent))), None, "a message is charged twice");
        self.charged
    }

    fn charge_segment(&self, segment: &Segment, sent: &Sent, (): ()) -> Charged {
        let before = self.segment.replace(Some((*segment, *sent)));
        assert_eq!((before, self.sent.get()), (None, None), "a segment is charged twice");
        self.charged
    }
}

/// Judges any bytes, and panics if an invariant is violated.
pub fn run(bytes: &[u8]) {
    let Some((answers, packet)) = bytes.split_first_chunk::<ANSWERS>() else {
        return;
    };
    let tables = Answers::new(*answers);
    let judgement = ingress::judge(&Bytes(packet), &tables);
    if let Some((message, sent)) = tables.sent.get() {
        check_charge(packet, &tables, message, &sent, &judgement);
    } else if let Some((segment, sent)) = tables.segment.get() {
        check_segment(packet, &tables, &segment, &sent, &judgement);
    } else {
        let reasons =
            [Reason::NotSip, Reason::Trusted, Reason::Fragment, Reason::Blocked, Reason::Closed];
        // TCP, other transports, or more tags than are removed.
        let is_by_headers = matches!(judgement.reason, Reason::Unknown | Reason::Limited)
            && judgement.message.is_none();
        assert!(
            is_by_headers || reasons.contains(&judgement.reason),
            "{:?} without a charge",
            judgement.reason
        );
    }
    check_lists(&tables, &judgement);
}

/// The charge matches the reason, at the offsets of the packet.
fn check_charge(
    packet: &[u8],
    tables: &Answers,
    message: Message,
    sent: &Sent,
    judgement: &Judgement,
) {
    assert_eq!(judgement.message, Some(message));
    assert_eq!((Some(sent.source), sent.listed), (tables.source.get(), tables.listed));
    assert_eq!(judgement.reason, tables.expected(message.passes_as()));
    assert!(!tables.listed.is_blocked() || sent.spared);
    assert!(!sent.spared || (tables.listed.is_blocked() && tables.flow == FlowState::Good));
    // A SIP message has a start line, and its ports precede it.
    if matches!(message, Message::Response)
        || (message.is_request() && !matches!(message, Message::Other))
    {
        assert!(sent.payload + 8 <= packet.len() && sent.payload + 8 <= sent.end);
        assert!(sent.end - sent.payload <= usize::from(u16::MAX));
        let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let ports = (word(sent.payload - 8), word(sent.payload - 6));
        assert_eq!(ports, (sent.source_port, sent.destination_port));
        assert!(tables.is_sip_port(sent.destination_port));
    }
}

/// The same of a TCP segment.
fn check_segment(
    packet: &[u8],
    tables: &Answers,
    segment: &Segment,
    sent: &Sent,
    judgement: &Judgement,
) {
    assert_eq!(judgement.message, None);
    assert_eq!((Some(sent.source), sent.listed), (tables.source.get(), tables.listed));
    assert_eq!(judgement.reason, tables.expected(Reason::Unknown));
    let listed = tables.listed;
    assert!(!listed.is_blocked() || listed.is_udp_only() || sent.spared);
    assert!(!sent.spared || (listed.is_blocked() && tables.flow == FlowState::Good));
    if segment.header == 0 {
        assert!(sent.first_fragment, "a segment without its header");
        return;
    }
    assert!((20..=60).contains(&segment.header) && sent.payload + 16 <= packet.len());
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    assert_eq!(
        (word(sent.payload), word(sent.payload + 2)),
        (sent.source_port, sent.destination_port)
    );
    assert_eq!(packet[sent.payload + 13], segment.flags);
    assert!(segment.payload == 0 || sent.payload + segment.header + segment.payload == sent.end);
}

/// Trust first, then blocks, then the policy.
fn check_lists(tables: &Answers, judgement: &Judgement) {
    let reason = judgement.reason;
    let passes = reason.verdict() == Verdict::Pass;
    let listed = tables.listed;
    if tables.source.get().is_none() {
        let is_unread = reason == Reason::Limited && judgement.message.is_none();
        let is_by_the_way = passes && matches!(reason, Reason::NotSip | Reason::Fragment);
        assert!(is_by_the_way || is_unread, "{reason:?} without asking the lists");
        return;
    }
    if listed.is_trusted() {
        let is_charged = tables.sent.get().is_some() || tables.segment.get().is_some();
        assert!(passes && !is_charged, "a trusted source meets {reason:?}");
        assert!(!tables.flow_asked.get());
        return;
    }
    let banned = tables.flow_asked.get() && tables.flow == FlowState::Banned;
    let spared = tables.flow_asked.get()
        && tables.flow == FlowState::Good
        && listed.is_good()
        && !listed.is_blocked_by_hand();
    if banned || (listed.is_blocked() && !spared) {
        // A UDP-only ban leaves TCP and other ports; a known-good source's fragments may be its
        // phone's.
        let may_pass = listed.is_udp_only() || (listed.is_good() && !listed.is_blocked_by_hand());
        let is_elsewhere = matches!(reason, Reason::NotSip | Reason::Fragment);
        let is_tcp = tables.segment.get().is_some()
            || (judgement.message.is_none() && matches!(reason, Reason::Unknown | Reason::Closed));
        assert!(
            reason == Reason::Blocked || (may_pass && (is_elsewhere || is_tcp)),
            "{reason:?} although it is blocked"
        );
        return;
    }
    assert_ne!(reason, Reason::Blocked, "blocked by nothing");
    let is_by_headers = reason == Reason::Limited && judgement.message.is_none();
    let is_by_the_way = is_by_headers || matches!(reason, Reason::NotSip | Reason::Fragment);
    let may_talk = !tables.closed || listed.is_admitted() || listed.is_good() || listed.is_peer();
    if may_talk {
        assert_ne!(reason, Reason::Closed);
    } else if !is_by_the_way {
        let answers = tables.has_pending_request && judgement.message == Some(Message::Response);
        assert_eq!(
            answers,
            reason != Reason::Closed,
            "a stranger meets {reason:?} under the policy closed"
        );
    }
}
