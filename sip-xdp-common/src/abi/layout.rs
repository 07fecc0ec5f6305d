//! The layouts that kernel and user space share: map keys, map values and events. All are plain old
//! data with explicit padding. Times are nanoseconds of the filter's clock (`CLOCK_MONOTONIC`),
//! unless a field says otherwise.
//!
//! More than 400 lines: declarations only, nearly one documented field per line.

use bytemuck::{Pod, Zeroable};

use crate::ip_key::IpKey;
use crate::limits::flow::FlowKey;
use crate::limits::ladder::Scan;
use crate::pipeline::egress::Answer;
use crate::verdict::{Message, Reason};

/// Version of all layouts in this module. Pinned maps of another version are replaced; their bans
/// are carried over.
pub const LAYOUT_VERSION: u32 = 9;

/// Expiry of permanent entries.
pub const NEVER: u64 = u64::MAX;

/// Maximum number of interfaces per filter.
pub const MAX_INTERFACES: usize = 64;

/// Payload bytes in an event: the largest UDP payload of an Ethernet MTU (1,500 - 28), so that
/// padding headers of an unfragmented message cannot push others out of the sample.
pub const HEAD: usize = 1472;

/// Bytes of a TCP segment in an event, its TCP header included: the whole of what fits into an
/// Ethernet MTU (1,500 - 20), and of a VLAN's or a tunnel's little more.
pub const SEGMENT: usize = 1536;

/// Events that a longer segment (one that the host has put together from several, or that its
/// network device will cut) is sampled in, so that at least 4 KiB of it are seen.
pub const CHUNKS: usize = 3;

/// The size of [`names::EVENTS`](crate::abi::names::EVENTS) in bytes: about 2,500 events.
pub const EVENTS_BYTES: usize = 4 << 20;

/// Maximum number of (address, port) pairs that are banned or known good.
pub const FLOWS: usize = 65_536;

/// How many sources may be on the ladder ([`crate::limits::ladder`]).
pub const LADDERS: usize = 16_384;

/// How many nonces of sources on the ladder are remembered as their own.
pub const OWN_NONCES: usize = 16_384;

/// How many users may be refused, of all sources ([`crate::limits::ladder::REFUSES_USERS`]).
pub const REFUSED_USERS: usize = 16_384;

/// Maximum number of hosts with a pending request of the server.
pub const PENDING_REQUESTS: usize = 16_384;

/// Number of slices of the seeded source hash. Each has its own sample budget, so that no sender
/// can exhaust the samples of all others.
pub const SLICES: usize = 64;

/// Default capacity of the lists, in networks.
pub const DEFAULT_NETWORKS: u32 = 131_072;

/// Default capacity of the table of unknown sources.
pub const DEFAULT_SOURCES: u32 = 65_536;

/// The owner of a ledger row: [`LedgerKey::owner`].
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// An operator, by command.
    Manual = 0,
    /// The detector.
    Auto = 1,
    /// The configuration file.
    Config = 2,
    /// An address of a host name that is followed through DNS.
    Host = 3,
    /// An external program, such as a jail of fail2ban.
    Tool = 4,
    /// A feed that trusts or admits; the reason names it.
    Feed = 5,
}

impl Owner {
    /// The owner with the highest number.
    pub const LAST: Self = Self::Feed;

    /// The owner with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Manual),
            1 => Some(Self::Auto),
            2 => Some(Self::Config),
            3 => Some(Self::Host),
            4 => Some(Self::Tool),
            5 => Some(Self::Feed),
            _ => None,
        }
    }

    /// The name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Auto => "auto",
            Self::Config => "config",
            Self::Host => "host",
            Self::Tool => "tool",
            Self::Feed => "feed",
        }
    }
}

/// The list of a ledger row: [`LedgerKey::list`].
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// The block table.
    Block = 0,
    /// The trust table.
    Trust = 1,
    /// Sources that may send under the policy `closed`.
    Admit = 2,
}

impl List {
    /// All lists.
    pub const ALL: [Self; 3] = [Self::Block, Self::Trust, Self::Admit];

    /// The name in messages, JSON and the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Trust => "trust",
            Self::Admit => "admit",
        }
    }

    /// The list with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Block),
            1 => Some(Self::Trust),
            2 => Some(Self::Admit),
            _ => None,
        }
    }
}

/// One owner's entry for one network.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct LedgerKey {
    /// The network's first address.
    pub network: IpKey,
    /// Prefix length in bits out of 128 (96 more than written for IPv4).
    pub prefix: u8,
    /// [`List`].
    pub list: u8,
    /// [`Owner`].
    pub owner: u8,
    /// Zero.
    pub pad: u8,
    /// The port of a flow, in host order; 0 for the whole network.
    pub port: u16,
    /// Zero.
    pub rest: u16,
}

const _: () = assert!(size_of::<LedgerKey>() == 24);

/// Maximum reason length of a ledger row, in bytes.
pub const REASON: usize = 160;

/// [`LedgerRow::tier`]: does not apply (manual entries and trust).
pub const TIER_NONE: u8 = 0;
/// [`LedgerRow::tier`]: evidence with an unproven (forgeable) source address.
pub const TIER_UNPROVEN: u8 = 1;
/// [`LedgerRow::tier`]: evidence with a proven (routable) source address.
pub const TIER_PROVEN: u8 = 2;

/// [`LedgerRow::flags`]: made in a dry run, never enforced.
pub const ROW_DRY_RUN: u8 = 1;
/// [`LedgerRow::flags`]: the tables do not reflect this row yet, or still have to drop it: the row
/// does not count.
pub const ROW_PENDING: u8 = 1 << 1;

/// The value of a ledger row.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct LedgerRow {
    /// Expiry in nanoseconds, or [`NEVER`].
    pub expires: u64,
    /// Creation time in milliseconds since 1970-01-01 UTC.
    pub added_ms: u64,
    /// [`TIER_NONE`], [`TIER_UNPROVEN`] or [`TIER_PROVEN`].
    pub tier: u8,
    /// [`ROW_DRY_RUN`] and [`ROW_PENDING`].
    pub flags: u8,
    /// Bytes used of `reason`.
    pub reason_length: u16,
    /// Zero.
    pub pad: u32,
    /// Reason, in UTF-8.
    pub reason: [u8; REASON],
}

const _: () = assert!(size_of::<LedgerRow>() == 24 + REASON);

/// The counters of one interface on one CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Counters {
    /// Packets by [`Reason`].
    pub packets: [u64; Reason::COUNT],
    /// Bytes by [`Reason`], link header included.
    pub bytes: [u64; Reason::COUNT],
    /// Packets that a dry run passed although enforcement would drop them, by [`Reason`].
    pub would_drop: [u64; Reason::COUNT],
    /// The same in bytes.
    pub would_drop_bytes: [u64; Reason::COUNT],
    /// Packets by [`Message`].
    pub messages: [u64; Message::SLOTS],
    /// SIP over TCP.
    pub tcp: TcpCounters,
    /// Scratch space of the programs, here so that one map lookup finds both.
    pub scratch: Scratch,
}

const _: () = assert!(
    size_of::<Counters>()
        == 8 * (4 * Reason::COUNT + Message::SLOTS)
            + size_of::<TcpCounters>()
            + size_of::<Scratch>()
);

/// TCP to SIP ports on one CPU, in packets, of sources that are neither trusted nor blocked.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct TcpCounters {
    /// SYNs, passed or not.
    pub connections: u64,
    /// SYNs, segments with payload and first fragments that were dropped: over a limit, or over a
    /// storm's budget.
    pub limited: u64,
    /// Segments with payload.
    pub segments: u64,
    /// Of these, sampled as a whole.
    pub sampled: u64,
    /// Of these, not sampled, or not as a whole: the budget was spent, the ring full, or the
    /// segment longer than [`CHUNKS`] samples.
    pub unsampled: u64,
}

const _: () = assert!(size_of::<TcpCounters>() == 40);

impl core::ops::AddAssign for TcpCounters {
    fn add_assign(&mut self, one: Self) {
        self.connections += one.connections;
        self.limited += one.limited;
        self.segments += one.segments;
        self.sampled += one.sampled;
        self.unsampled += one.unsampled;
    }
}

/// Scratch space of one interface's programs on one CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Scratch {
    /// Memory for [`Reader::verifier_widen`](crate::packet::reader::Reader::verifier_widen), in the
    /// ingress program.
    pub widened: u64,
    /// The same for the egress program.
    pub widened_leaving: u64,
    /// Packets dropped for feeds alone; one in 64 of them is counted in its slot.
    pub feed_samples: u64,
    /// The timer tick (`jiffies`) in which `now` was read.
    pub tick: u64,
    /// The time in that tick.
    pub now: u64,
}

const _: () = assert!(size_of::<Scratch>() == 40);

/// The server's responses on one CPU, by [`Answer`](crate::pipeline::egress::Answer).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Responses {
    /// Packets.
    pub packets: [u64; Answer::COUNT],
}

const _: () = assert!(size_of::<Responses>() == 32);

/// Event budgets and loss counters of one CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuState {
    /// Time at which this CPU's event bucket is full.
    pub events: u64,
    /// Events lost to the budget or to a full ring.
    pub lost_events: u64,
    /// Samples lost to their slice's budget or to a full ring.
    pub lost_samples: u64,
    /// When each slice's bucket of samples is full again, by [`SampleBudget`].
    pub samples: [[u64; SLICES]; SampleBudget::COUNT],
    /// What is known of the request that is being scanned, and its first bytes.
    pub scan: Scan,
    /// As many as [`HEAD`]; the rest is unused, so that a mask bounds a place in it.
    pub scanned: [u8; SCANNED],
    /// Keys of the maps that are asked about a source on the ladder: there is no room on the stack.
    pub ladder_key: FlowKey,
    /// See [`CpuState::ladder_key`].
    pub nonce_key: u64,
}

/// The room for a request that is scanned: a power of two.
pub const SCANNED: usize = 2_048;

const _: () = assert!(HEAD <= SCANNED && SCANNED.is_power_of_two());
const _: () = assert!(
    size_of::<CpuState>()
        == 24 + 8 * SampleBudget::COUNT * SLICES + size_of::<Scan>() + SCANNED + 32
);

/// The budget of a sample; separate, so that no class crowds out another.
#[repr(usize)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleBudget {
    /// Incoming requests.
    Requests = 0,
    /// Outgoing messages.
    Leaving = 1,
    /// Incoming responses.
    Responses = 2,
    /// Requests of sources on the ladder, which are scanned for credentials.
    Scans = 3,
    /// Incoming TCP segments.
    Segments = 4,
    /// Outgoing TCP segments.
    LeavingSegments = 5,
    /// Outgoing SYN/ACKs and RSTs, which forged SYNs cause.
    Handshakes = 6,
}

impl SampleBudget {
    /// Number of budgets, a power of two.
    pub const COUNT: usize = 8;
}

/// An interface that the filter is attached to. A slot is in use when `index` is not zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct InterfaceRecord {
    /// Interface index (ifindex).
    pub index: u32,
    /// [`MODE_NATIVE`] or [`MODE_GENERIC`].
    pub mode: u8,
    /// [`Link`](crate::packet::headers::Link).
    pub link: u8,
    /// 1 if in a dry run.
    pub dry_run: u8,
    /// Bytes used of `name`.
    pub name_length: u8,
    /// The interface's name (at most IFNAMSIZ, 16 bytes with its NUL).
    pub name: [u8; 16],
    /// Time of attachment in milliseconds since 1970-01-01 UTC.
    pub since_ms: u64,
}

const _: () = assert!(size_of::<InterfaceRecord>() == 32);

/// [`InterfaceRecord::mode`]: native XDP, in the driver.
pub const MODE_NATIVE: u8 = 1;
/// [`InterfaceRecord::mode`]: generic XDP, after the kernel has allocated an skb.
pub const MODE_GENERIC: u8 = 2;

/// Number of words in the `CLOCK` map.
pub const CLOCK_WORDS: u32 = 3;
/// Index of the settable time.
pub const CLOCK_TIME: u32 = 0;
/// Index of the outcome of the last packet, which a program with a settable clock writes: see
/// [`outcome`].
pub const CLOCK_OUTCOME: u32 = 1;
/// Index of the deadline of a trial (`run --confirm`), in nanoseconds of `CLOCK_MONOTONIC`; 0 for
/// none. From then on a program under [`ENFORCE_UNTIL`] drops nothing.
pub const CLOCK_DEADLINE: u32 = 2;

/// [`DRY_RUN`](crate::abi::names::DRY_RUN): enforce.
pub const ENFORCE: u8 = 0;
/// [`DRY_RUN`](crate::abi::names::DRY_RUN): count what would be dropped, drop nothing.
pub const SPARE_ALL: u8 = 1;
/// [`DRY_RUN`](crate::abi::names::DRY_RUN): enforce until the time at [`CLOCK_DEADLINE`].
pub const ENFORCE_UNTIL: u8 = 2;

/// The outcome of a packet in one word, which [`reason_of`] and [`message_of`] decode.
#[inline(always)]
pub const fn outcome(reason: Reason, message: Option<Message>) -> u64 {
    let message = match message {
        Some(message) => 1 + message as u64,
        None => 0,
    };
    reason as u64 | message << 8
}

/// The reason in an [`outcome`].
pub fn reason_of(outcome: u64) -> Option<Reason> {
    Reason::ALL.get(usize::from(outcome as u8)).copied()
}

/// The message kind in an [`outcome`], if the payload was classified.
pub fn message_of(outcome: u64) -> Option<Message> {
    Message::from_number(((outcome >> 8) as u8).checked_sub(1)?)
}

/// The kind of an event.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A source is over a limit; the packet is one of the dropped ones.
    Limited,
    /// A storm; the packet is a dropped one of an unknown source.
    Storm,
    /// A sample of a passed request.
    Request,
    /// A sample of an incoming response.
    Response,
    /// A sample of a final (or 18x) response of the server.
    Answer,
    /// A sample of a request of the server.
    PendingRequest,
    /// A known-good flow passed although its address is blocked.
    Conflict,
    /// A sample of a dropped packet, for `watch`. [`KernelEvent::head`] holds the start of the
    /// frame, [`KernelEvent::length`] the frame's length, [`KernelEvent::seen`] the [`Reason`]; the
    /// source has to be parsed from the frame.
    Dropped,
    /// A sample of an incoming TCP segment: see [`KernelEvent::segment`].
    Segment,
    /// A sample of an outgoing TCP segment.
    SegmentLeaving,
}

impl EventKind {
    /// The kind with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Limited,
            1 => Self::Storm,
            2 => Self::Request,
            3 => Self::Response,
            4 => Self::Answer,
            5 => Self::PendingRequest,
            6 => Self::Conflict,
            7 => Self::Dropped,
            8 => Self::Segment,
            9 => Self::SegmentLeaving,
            _ => return None,
        })
    }
}

/// An event of the kernel: one packet, and the record of its source if that is over a limit.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct KernelEvent {
    /// Time of the event.
    pub time: u64,
    /// Time at which the source first went over a limit; the three counters below start there.
    pub first: u64,
    /// Requests, passed or dropped. In a storm: new sources.
    pub seen: u64,
    /// REGISTER requests among them.
    pub registers: u64,
    /// Packets over a limit.
    pub limited: u64,
    /// Remote address: the source of incoming packets, the destination of outgoing ones.
    pub source: IpKey,
    /// The interface's slot.
    pub slot: u32,
    /// Remote port, in host order.
    pub port: u16,
    /// Local port, in host order.
    pub local_port: u16,
    /// [`EventKind`].
    pub kind: u8,
    /// [`Message`].
    pub message: u8,
    /// The exceeded [`LimitKind`](crate::limits::gcra::LimitKind).
    pub bucket: u8,
    /// [`BY_ADDRESS`], [`IN_DRY_RUN`], [`FROM_GOOD`], [`FRAGMENTED`], [`SUSPECTED`], [`IN_STORM`].
    pub flags: u8,
    /// Bytes used of `head`.
    pub head_length: u16,
    /// Payload length in bytes, as far as this packet (fragment) goes.
    pub length: u16,
    /// Incoming packets and TCP segments: the first 40 bytes from the IP header on, which include
    /// both addresses. Zero if the packet is shorter.
    pub ip: [u8; 40],
    /// Incoming packets: the UDP header. Zero if it is missing.
    pub udp: [u8; 8],
    /// Start of the payload, at most [`HEAD`] bytes; of a TCP segment, up to [`SEGMENT`] bytes from
    /// its TCP header on.
    pub head: [u8; SEGMENT],
}

const _: () = assert!(
    HEAD <= SEGMENT
        && size_of::<KernelEvent>() == 120 + SEGMENT
        && size_of::<KernelEvent>().is_multiple_of(8)
);

impl KernelEvent {
    /// The destination address of an incoming packet.
    pub fn destination(&self) -> Option<IpKey> {
        self.addresses().map(|(_, destination)| destination)
    }

    /// Source and destination address, in the packet's direction, where its IP header was copied.
    pub fn addresses(&self) -> Option<(IpKey, IpKey)> {
        let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|n| self.ip[at + n]));
        match self.ip[0] >> 4 {
            4 => Some((IpKey::v4(word(12) as u32), IpKey::v4(word(16) as u32))),
            6 => {
                Some((IpKey::from_words(word(8), word(16)), IpKey::from_words(word(24), word(32))))
            }
            _ => None,
        }
    }

    /// The TCP segment, or the part of it, in an event of a segment. `None` in other events.
    pub fn segment(&self) -> Option<SampledSegment<'_>> {
        if self.kind != EventKind::Segment as u8 && self.kind != EventKind::SegmentLeaving as u8 {
            return None;
        }
        let (header, flags) = ((self.limited >> 8) as u8, self.limited as u8);
        let head = self.head.get(..usize::from(self.head_length))?;
        let (header, payload) = head.split_at_checked(usize::from(header))?;
        Some(SampledSegment {
            header,
            payload,
            length: (self.first as usize).max(payload.len()),
            sequence: self.seen as u32,
            acknowledges: self.registers as u32,
            flags,
        })
    }

    /// The UDP checksum of an incoming packet, in host order.
    pub const fn checksum(&self) -> u16 {
        u16::from_be_bytes([self.udp[6], self.udp[7]])
    }
}

/// A TCP segment as it is sampled: see [`KernelEvent::segment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampledSegment<'a> {
    /// The TCP header; empty in the second and later events of a segment.
    pub header: &'a [u8],
    /// The payload, or the part of it that this event holds.
    pub payload: &'a [u8],
    /// Bytes of payload that this event stands for: in the last one of a segment also those that
    /// were not sampled.
    pub length: usize,
    /// The sequence number of the first byte of `payload`, or of the SYN.
    pub sequence: u32,
    /// The acknowledgement number.
    pub acknowledges: u32,
    /// The flags (RFC 9293, section 3.1): [`crate::packet::headers::tcp_flags`].
    pub flags: u8,
}

/// [`KernelEvent::flags`]: the source is metered by its full address, even in IPv6.
pub const BY_ADDRESS: u8 = 1;
/// [`KernelEvent::flags`] of an outgoing response: an incoming response was lost or truncated
/// within [`RESPONSE_UNSEEN_NS`], and this may be that response, forwarded by a proxy.
pub const RESPONSES_UNSEEN: u8 = 64;
/// Nanoseconds after an unseen incoming response during which outgoing responses prove nothing
/// about their destination. A proxy forwards within a DNS round trip.
pub const RESPONSE_UNSEEN_NS: u64 = 2_000_000_000;
/// [`KernelEvent::flags`]: in a dry run.
pub const IN_DRY_RUN: u8 = 2;
/// [`KernelEvent::flags`]: the source is known good.
pub const FROM_GOOD: u8 = 4;
/// [`KernelEvent::flags`]: the payload continues in other fragments.
pub const FRAGMENTED: u8 = 8;
/// [`KernelEvent::flags`]: the source is on the ladder ([`crate::limits::ladder`]).
pub const SUSPECTED: u8 = 16;
/// [`KernelEvent::flags`]: a storm is on, and the source had no meter before this packet. Most such
/// sources are forged.
pub const IN_STORM: u8 = 32;

#[cfg(feature = "user")]
mod user {
    use super::*;
    use crate::limits::flow::{Flow, PendingRequest};
    use crate::limits::gcra::{Limits, Pace};
    use crate::limits::ladder::Ladder;
    use crate::limits::meters::Records;
    use crate::limits::storm::StormState;
    use crate::lookup::networks::{SlotBucket, TableHeader};

    /// Every type here is `bytemuck::Pod`: any bit pattern is valid and there is no padding, which
    /// is all that aya's marker asks for.
    macro_rules! plain {
        ($($type:ty),* $(,)?) => { $(
            // SAFETY: the type is `bytemuck::Pod`, which promises at least as much as `aya::Pod`.
            unsafe impl aya::Pod for $type where $type: bytemuck::Pod {}
        )* };
    }

    plain!(
        IpKey,
        LedgerKey,
        LedgerRow,
        Counters,
        Responses,
        CpuState,
        InterfaceRecord,
        KernelEvent
    );
    plain!(
        Limits,
        Pace,
        StormState,
        TableHeader,
        SlotBucket,
        FlowKey,
        Flow,
        PendingRequest,
        Records,
        Ladder
    );
}
