//! The layouts that kernel and user space share: keys and values of maps, and events. All are plain
//! old data with explicit padding. Times are nanoseconds of the filter's clock (`CLOCK_MONOTONIC`),
//! unless a field says otherwise.

use bytemuck::{Pod, Zeroable};

use crate::ip_key::IpKey;
use crate::pipeline::egress::Answer;
use crate::verdict::{Message, Reason};

/// The version of everything in this module. Pinned maps of another version are replaced, with
/// their bans carried over.
pub const LAYOUT_VERSION: u32 = 6;

/// The expiry of what never expires.
pub const NEVER: u64 = u64::MAX;

/// How many interfaces one filter serves.
pub const MAX_INTERFACES: usize = 64;

/// How many bytes of a payload an event carries: all that fits into one packet of Ethernet, so that
/// no header can hide behind others in a message that is not fragmented.
pub const HEAD: usize = 1472;

/// The size of [`names::EVENTS`](crate::abi::names::EVENTS) in bytes: about 2,700 events.
pub const EVENTS_BYTES: usize = 4 << 20;

/// How many ports of addresses are remembered, banned or known good.
pub const FLOWS: usize = 65_536;

/// How many hosts are remembered that we sent requests to.
pub const PENDING_REQUESTS: usize = 16_384;

/// In how many slices sources are divided, by a seeded hash; each has a budget of samples of its
/// own, so that nobody can use up that of everybody else.
pub const SLICES: usize = 64;

/// Default capacity of the lists, in networks.
pub const DEFAULT_NETWORKS: u32 = 131_072;

/// Default capacity of the table of unknown sources.
pub const DEFAULT_SOURCES: u32 = 65_536;

/// Whose entry a ledger row is: [`LedgerKey::owner`].
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// An operator, by command.
    Manual = 0,
    /// The detector.
    Auto = 1,
    /// The configuration file.
    Config = 2,
    /// A host name that is followed, of which this is an address.
    Host = 3,
    /// Programs that block on their own account, such as the jails of fail2ban.
    Tool = 4,
    /// Feeds that trust or admit; which, the reason says.
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

/// Which table a ledger row is about: [`LedgerKey::list`].
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// The block table.
    Block = 0,
    /// The trust table.
    Trust = 1,
    /// Who may talk under the policy `closed`.
    Admit = 2,
}

impl List {
    /// All of them.
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

/// One owner's claim on one network.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct LedgerKey {
    /// The network's first address.
    pub network: IpKey,
    /// Its length in bits, 96 more for IPv4.
    pub prefix: u8,
    /// [`List`].
    pub list: u8,
    /// [`Owner`].
    pub owner: u8,
    /// Zero.
    pub pad: u8,
    /// The port of a flow, in host order; 0 for all of the network.
    pub port: u16,
    /// Zero.
    pub rest: u16,
}

const _: () = assert!(size_of::<LedgerKey>() == 24);

/// How many bytes of a reason a ledger row holds.
pub const REASON: usize = 160;

/// [`LedgerRow::tier`]: does not apply (manual entries and trust).
pub const TIER_NONE: u8 = 0;
/// [`LedgerRow::tier`]: the source could be forged.
pub const TIER_UNPROVEN: u8 = 1;
/// [`LedgerRow::tier`]: the source has shown that it is where it says.
pub const TIER_PROVEN: u8 = 2;

/// [`LedgerRow::flags`]: made in a dry run, never enforced.
pub const ROW_DRY_RUN: u8 = 1;
/// [`LedgerRow::flags`]: the tables are about to follow, or to forget it: the claim does not count.
pub const ROW_PENDING: u8 = 1 << 1;

/// What is remembered of a claim.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct LedgerRow {
    /// When it ends, or [`NEVER`].
    pub expires: u64,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub added_ms: u64,
    /// [`TIER_NONE`], [`TIER_UNPROVEN`] or [`TIER_PROVEN`].
    pub tier: u8,
    /// [`ROW_DRY_RUN`] and [`ROW_PENDING`].
    pub flags: u8,
    /// Bytes used of `reason`.
    pub reason_length: u16,
    /// Zero.
    pub pad: u32,
    /// Why, in UTF-8.
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
    /// Packets that a dry run passed although they would be dropped, by [`Reason`].
    pub would_drop: [u64; Reason::COUNT],
    /// The same in bytes.
    pub would_drop_bytes: [u64; Reason::COUNT],
    /// Packets by [`Message`].
    pub messages: [u64; Message::SLOTS],
    /// What a run of a program needs beside: one look-up finds both.
    pub scratch: Scratch,
}

const _: () = assert!(
    size_of::<Counters>() == 8 * (4 * Reason::COUNT + Message::SLOTS) + size_of::<Scratch>()
);

/// What the programs of one interface keep for themselves on one CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Scratch {
    /// Where a number goes for [`Reader::forget`](crate::packet::reader::Reader::forget), in the
    /// ingress program.
    pub widened: u64,
    /// The same for the egress program.
    pub widened_leaving: u64,
    /// Packets that only feeds have dropped, of which some are sampled.
    pub feed_samples: u64,
    /// The timer tick in which the time was last asked for, by the kernel's count (`jiffies`).
    pub tick: u64,
    /// The time in that tick.
    pub now: u64,
}

const _: () = assert!(size_of::<Scratch>() == 40);

/// Our own responses on one CPU, by [`Answer`](crate::pipeline::egress::Answer).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Responses {
    /// Packets.
    pub packets: [u64; Answer::COUNT],
}

const _: () = assert!(size_of::<Responses>() == 32);

/// What each CPU has left to tell the daemon.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuState {
    /// When this CPU's bucket of events is full again.
    pub events: u64,
    /// Events that found no room, in the bucket or in the ring.
    pub lost_events: u64,
    /// Samples that found no room, in their slice's bucket or in the ring.
    pub lost_samples: u64,
    /// When each slice's bucket of samples is full again, by [`SampleBudget`]; the last row is
    /// unused, so that a mask bounds the number of a row.
    pub samples: [[u64; SLICES]; 4],
}

const _: () = assert!(size_of::<CpuState>() == 24 + 32 * SLICES);

/// Which budget a sample is taken from, so that none of these crowds out another.
#[repr(usize)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleBudget {
    /// Requests that arrive.
    Requests = 0,
    /// What leaves.
    Leaving = 1,
    /// Responses that arrive.
    Responses = 2,
}

/// An interface that the filter is attached to. A slot is in use when `index` is not zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct InterfaceRecord {
    /// The kernel's index of the interface.
    pub index: u32,
    /// 1 if attached in the driver (native), 2 if generic.
    pub mode: u8,
    /// [`Link`](crate::packet::headers::Link).
    pub link: u8,
    /// 1 if in a dry run.
    pub dry_run: u8,
    /// Bytes used of `name`.
    pub name_length: u8,
    /// The interface's name (IFNAMSIZ is 16, with its NUL).
    pub name: [u8; 16],
    /// When it was attached, in milliseconds since 1970-01-01 UTC.
    pub since_ms: u64,
}

const _: () = assert!(size_of::<InterfaceRecord>() == 32);

/// [`InterfaceRecord::mode`]: in the driver.
pub const MODE_NATIVE: u8 = 1;
/// [`InterfaceRecord::mode`]: in the network stack, after the kernel has allocated.
pub const MODE_GENERIC: u8 = 2;

/// How many words the map of the settable clock has.
pub const CLOCK_WORDS: u32 = 3;
/// Where in it the time stands.
pub const CLOCK_TIME: u32 = 0;
/// Where in it the program that reads this clock says what became of its last packet: see
/// [`outcome`].
pub const CLOCK_OUTCOME: u32 = 1;
/// Where in it the end of a trial (`run --confirm`) stands, in nanoseconds of `CLOCK_MONOTONIC`; 0
/// when nobody has to confirm. A program under [`ENFORCE_UNTIL`] drops nothing from then on.
pub const CLOCK_DEADLINE: u32 = 2;

/// [`crate::names::DRY_RUN`]: drops.
pub const ENFORCE: u8 = 0;
/// [`crate::names::DRY_RUN`]: counts what it would drop, and drops nothing.
pub const SPARE_ALL: u8 = 1;
/// [`crate::names::DRY_RUN`]: drops until the time at [`CLOCK_DEADLINE`].
pub const ENFORCE_UNTIL: u8 = 2;

/// What became of a packet, in one word; [`reason_of`] reads it.
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

/// The kind of message in an [`outcome`], if the judgement came as far as looking at it.
pub fn message_of(outcome: u64) -> Option<Message> {
    Message::from_number(((outcome >> 8) as u8).checked_sub(1)?)
}

/// What an event is about.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A source is over a limit; the packet is one that was dropped.
    Limited,
    /// There is a storm; the packet is a stranger's that was dropped.
    Storm,
    /// A sample of the requests that pass.
    Request,
    /// A sample of the responses that arrive.
    Response,
    /// A sample of our final responses.
    Answer,
    /// A sample of our requests.
    PendingRequest,
    /// A known-good flow passes although its address is blocked.
    Conflict,
    /// A sample of what is dropped, for whoever watches. [`KernelEvent::head`] is how the frame
    /// starts, [`KernelEvent::length`] is the frame's, [`KernelEvent::seen`] the [`Reason`]; whose
    /// it is, the frame says.
    Dropped,
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
            _ => return None,
        })
    }
}

/// What the kernel tells the daemon: one packet, and for a source over a limit its record.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct KernelEvent {
    /// When.
    pub time: u64,
    /// When the source first went over a limit; the numbers below count from there.
    pub first: u64,
    /// Requests, passed or not. In a storm: new sources.
    pub seen: u64,
    /// REGISTER requests among them.
    pub registers: u64,
    /// Packets over a limit.
    pub limited: u64,
    /// The other side: who sent what arrives, who is sent what leaves.
    pub source: IpKey,
    /// The interface's slot.
    pub slot: u32,
    /// The other side's port.
    pub port: u16,
    /// Our port.
    pub local_port: u16,
    /// [`EventKind`].
    pub kind: u8,
    /// [`Message`].
    pub message: u8,
    /// [`LimitKind`](crate::limits::gcra::LimitKind) that the packet is over.
    pub bucket: u8,
    /// [`BY_ADDRESS`], [`IN_DRY_RUN`], [`FROM_GOOD`], [`FRAGMENTED`], [`SUSPECTED`], [`IN_STORM`].
    pub flags: u8,
    /// Bytes used of `head`.
    pub head_length: u16,
    /// Bytes of the payload, as far as the packet goes.
    pub length: u16,
    /// Of what arrives, how its IP header starts, with the destination address. Zero if so much is
    /// not there.
    pub ip: [u8; 40],
    /// Of what arrives, its UDP header. Zero if it is not there.
    pub udp: [u8; 8],
    /// How the payload starts.
    pub head: [u8; HEAD],
}

const _: () =
    assert!(size_of::<KernelEvent>() == 120 + HEAD && size_of::<KernelEvent>().is_multiple_of(8));

impl KernelEvent {
    /// Whom a packet that arrived was sent to.
    pub fn destination(&self) -> Option<IpKey> {
        let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|n| self.ip[at + n]));
        match self.ip[0] >> 4 {
            4 => Some(IpKey::v4((word(16) & 0xffff_ffff) as u32)),
            6 => Some(IpKey::from_words(word(24), word(32))),
            _ => None,
        }
    }

    /// The UDP checksum of a packet that arrived, in host order.
    pub const fn checksum(&self) -> u16 {
        u16::from_be_bytes([self.udp[6], self.udp[7]])
    }
}

/// [`KernelEvent::flags`]: the source is metered by its full address, IPv6 though it may be.
pub const BY_ADDRESS: u8 = 1;
/// [`KernelEvent::flags`] of a response of ours: one that arrived went unseen a moment ago
/// ([`RESPONSE_UNSEEN_NS`]), and this may be that one, forwarded by a proxy.
pub const RESPONSES_UNSEEN: u8 = 64;
/// For how long no response of ours says anything of its destination after one that arrived was not
/// seen, in nanoseconds. A proxy forwards within a round trip of a DNS server.
pub const RESPONSE_UNSEEN_NS: u64 = 2_000_000_000;
/// [`KernelEvent::flags`]: in a dry run.
pub const IN_DRY_RUN: u8 = 2;
/// [`KernelEvent::flags`]: the source is known good.
pub const FROM_GOOD: u8 = 4;
/// [`KernelEvent::flags`]: the payload goes on in other fragments.
pub const FRAGMENTED: u8 = 8;
/// [`KernelEvent::flags`]: the source is under suspicion, and limited more strictly than others.
pub const SUSPECTED: u8 = 16;
/// [`KernelEvent::flags`]: a storm blows, and before this packet the source had no meter. Most such
/// sources are forged.
pub const IN_STORM: u8 = 32;

#[cfg(feature = "user")]
mod user {
    use super::*;
    use crate::limits::flow::{Flow, FlowKey, PendingRequest};
    use crate::limits::gcra::{Limits, Pace};
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
        Records
    );
}
