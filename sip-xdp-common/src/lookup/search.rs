//! Lookup of a source in the lists: one hash table of networks, fingerprints of its contents, and
//! the prefix lengths in use.
//!
//! A [`Slot`] is half a cache line and holds one network of one [`Kind`], of any length and family:
//! address, expiry, length and hit counter. A seeded hash gives a network two candidate buckets of
//! [`WAYS`] slots, both in one group of [`GROUP`], and it is stored in the emptier one. Each bucket
//! has one word of fingerprints, a hash byte per slot: a thirty-second of the table, which stays in
//! the caches and excludes nearly all absent networks. A lookup searches the source's network of
//! each prefix length in use; for IPv4 the [summary](crate::lookup::summary) tells first whether
//! there is nothing to find, or only hosts, and a [row](crate::lookup::host_rows) then mostly tells
//! whether the source is one of them.
//!
//! The table is plain memory that user space maps. User space writes an entry so that a reader sees
//! it whole or not at all, and never moves other entries.
//!
//! More than 400 lines: one lookup, which the verifier follows as a whole.

use crate::abi::layout::NEVER;
use crate::ip_key::IpKey;
use crate::lookup::host_rows::{self, RowKey, RowMatch};
use crate::lookup::networks::{
    ALIKE, CLAIMED, FLOWS, FORMER, GROUP, HIT, Hashed, Hashing, IPV6_LENGTHS, KIND, Kind, LABEL,
    Length, OWN, Prints, Reputation, Slot, SlotBucket, TableHeader, UDP_ONLY, VERSION, WAYS,
    byte_bits, lowest_byte,
};
use crate::lookup::summary::{self, BitPosition};

/// Sampling of hits that only feeds cause: one packet in 64 is counted, with weight 64.
pub const SAMPLE: u64 = 64;

/// Prefix lengths whose fingerprints are compared in an unrolled loop before the full search. The
/// verifier follows each step; lists with more lengths are rare, and pay a few nanoseconds for
/// each.
const UNROLLED_LENGTHS: usize = 8;

/// The lookup tables, as one reader sees them.
pub trait LookupTables {
    /// Hash parameters, to be read with [`current`]: the compiler only knows their initial values.
    fn hashing(&self) -> &Hashing;
    /// The prefix lengths in use.
    fn table_header(&self) -> Option<&TableHeader>;
    /// An element of the summary of /20s.
    fn coarse(&self, element: u32) -> Option<&summary::Element>;
    /// An element of the summary of /24s.
    fn fine(&self, element: u32) -> Option<&summary::Element>;
    /// A row of feed hosts.
    fn feed_hosts(&self, row: u32) -> Option<&host_rows::Row>;
    /// The fingerprints of a group.
    fn prints(&self, group: u32) -> Option<&Prints>;
    /// A bucket.
    fn bucket(&self, number: u32) -> Option<&SlotBucket>;
    /// Adds to a slot's [`state`](Slot::state), atomically.
    fn hit(&self, slot: &Slot, hits: u64);
    /// The current time; read only for entries that expire.
    fn now(&self) -> u64;
    /// Whether this packet is the counted one in [`SAMPLE`].
    fn is_sample(&self) -> bool;
    /// Calls [`Search::step`] at most [`Search::count`] times, until it returns true. The verifier
    /// follows the callback of a helper's loop once, not once per length.
    fn each_length(&self, search: &mut Search);
    /// The negation of `bit` (0 or 1): no bits or all bits. Opaque to the compiler, which would
    /// otherwise turn the following arithmetic into a branch.
    fn mask_from_bit(&self, bit: u64) -> u64;
    /// `bits`, opaque to the compiler, which would otherwise generate a separate path per value.
    fn black_box(&self, bits: u64) -> u64;
    /// See [`Reader::verifier_widen`](crate::packet::reader::Reader::verifier_widen).
    fn verifier_widen(&self, value: usize) -> usize;
}

/// What the tables say about a source, in one word, so that the verifier can be made to drop all of
/// its bounds at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Listing(u64);

impl Listing {
    /// Trusted.
    pub const TRUSTED: u64 = 1;
    /// Judged per host, not as part of its network.
    pub const PER_HOST: u64 = 2;
    /// Blocked.
    pub const BLOCKED: u64 = 4;
    /// A feed blocks the whole /24, and this packet is the counted one in [`SAMPLE`].
    const SAMPLED: u64 = 8;
    /// Blocked by an operator or the configuration.
    const OWN: u64 = 0x10;
    const ADMITTED: u64 = 0x20;
    const FLOWS: u64 = 0x40;
    const GOOD: u64 = 0x80;
    const PEER: u64 = 0x100;
    const SETTLED: u64 = 0x200;
    /// The networks that contain the source have not been searched yet.
    pub const OPEN: Self = Self(0x400);
    /// Blocked for UDP only.
    const UDP_ONLY: u64 = 0x800;
    /// Position of the scale of a known host.
    const SCALE: u32 = 12;
    /// It is on the ladder, or a network around it is.
    const METERED: u64 = 0x1_0000;
    /// Blocked by an entry whose hit is not counted yet, because the packet may still pass: TCP
    /// under a block of UDP, or a known host's good port.
    const UNCOUNTED: u64 = 0x2_0000;

    /// From its bits.
    #[inline(always)]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// All of its bits.
    #[inline(always)]
    pub const fn bits(&self) -> u64 {
        self.0
    }

    /// Whether it is trusted.
    #[inline(always)]
    pub const fn is_trusted(&self) -> bool {
        self.0 & Self::TRUSTED != 0
    }

    /// Whether it is judged per host, not as part of its network.
    #[inline(always)]
    pub const fn is_per_host(&self) -> bool {
        self.0 & Self::PER_HOST != 0
    }

    /// Whether it is blocked; the hit is counted, unless it [is not](Self::is_uncounted).
    #[inline(always)]
    pub const fn is_blocked(&self) -> bool {
        self.0 & Self::BLOCKED != 0
    }

    /// Whether it is blocked, and neither trust nor its flows can exempt it.
    #[inline(always)]
    pub const fn is_only_blocked(&self) -> bool {
        const ELSE: u64 =
            Listing::TRUSTED | Listing::GOOD | Listing::FLOWS | Listing::OPEN.0 | Listing::UDP_ONLY;
        self.0 & (Self::BLOCKED | ELSE) == Self::BLOCKED
    }

    /// Whether the block covers UDP only: a ban on forgeable evidence.
    #[inline(always)]
    pub const fn is_udp_only(&self) -> bool {
        self.0 & Self::UDP_ONLY != 0
    }

    /// Whether [`count_hit`] is due if the packet is dropped for the block.
    #[inline(always)]
    pub const fn is_uncounted(&self) -> bool {
        self.0 & Self::UNCOUNTED != 0
    }

    /// Whether an operator or the configuration blocks it.
    #[inline(always)]
    pub const fn is_blocked_by_hand(&self) -> bool {
        self.0 & Self::OWN != 0
    }

    /// Whether it may send under the policy `closed`.
    #[inline(always)]
    pub const fn is_admitted(&self) -> bool {
        self.0 & Self::ADMITTED != 0
    }

    /// Whether its flows must be looked up.
    #[inline(always)]
    pub const fn has_flows(&self) -> bool {
        self.0 & Self::FLOWS != 0
    }

    /// Whether it is known good.
    #[inline(always)]
    pub const fn is_good(&self) -> bool {
        self.0 & Self::GOOD != 0
    }

    /// Whether it is a peer.
    #[inline(always)]
    pub const fn is_peer(&self) -> bool {
        self.0 & Self::PEER != 0
    }

    /// Whether it is a peer for at least another half hour.
    #[inline(always)]
    pub const fn is_settled_peer(&self) -> bool {
        self.0 & Self::SETTLED != 0
    }

    /// It is on the ladder ([`crate::limits::ladder`]), or a network around it is.
    #[inline(always)]
    pub const fn is_metered(&self) -> bool {
        self.0 & Self::METERED != 0
    }

    /// Whether it was known good once, and is no longer.
    #[inline(always)]
    pub const fn is_former(&self) -> bool {
        self.scale() == FORMER && self.0 & (Self::GOOD | Self::PEER) == 0
    }

    /// The exponent of two by which a known host's limit is multiplied.
    #[inline(always)]
    pub const fn scale(&self) -> u64 {
        self.0 >> Self::SCALE & 15
    }

    /// The listing bits of a known host.
    #[inline(always)]
    fn known(state: u64, now: u64) -> u64 {
        let reputation = Reputation::of(state);
        let bit = |is: bool, bit: u64| (is as u64).wrapping_neg() & bit;
        bit(reputation.is_good(now), Self::GOOD)
            | bit(reputation.is_peer(now), Self::PEER)
            | bit(reputation.is_settled_peer(now), Self::SETTLED)
            | bit(state & FLOWS != 0, Self::FLOWS)
            | reputation.scale() << Self::SCALE
    }
}

/// Reads a word that another CPU or user space may change at any time.
#[inline(always)]
pub fn current<T: Copy>(word: &T) -> T {
    // SAFETY: a reference is valid and aligned. Volatile, so that it is read exactly once, here.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

/// Whether a lookup counts hits.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// Yes, if nothing but the block decides; otherwise the listing is
    /// [uncounted](Listing::is_uncounted).
    Hits,
    /// No.
    Nothing,
    /// Yes: the packet is dropped. The first block found is hit.
    Dropped,
    /// The same; blocks of UDP alone do not apply to the packet.
    DroppedWhole,
}

/// Looks a source up in the tables.
#[inline(always)]
pub fn lookup<S: LookupTables>(tables: &S, source: &IpKey, counting: Counting) -> Listing {
    lookup_networks(tables, source, lookup_summary(tables, source, counting), counting)
}

/// Looks an IPv4 source up in the [summary](crate::lookup::summary), and, where that knows only
/// hosts, in its row. Says nothing about IPv6.
#[inline(always)]
pub fn lookup_summary<S: LookupTables>(tables: &S, source: &IpKey, counting: Counting) -> Listing {
    if !source.is_v4() {
        return Listing::OPEN;
    }
    let (high, low) = source.words();
    let address = ((low >> 32) as u32).swap_bytes();
    let (coarse, fine) = (BitPosition::coarse(address), BitPosition::fine(address));
    let mut state = read(tables.coarse(coarse.element), &coarse);
    if state == summary::MIXED {
        state = read(tables.fine(fine.element), &fine);
    }
    let bits = match state {
        summary::EMPTY => 0,
        summary::HOSTS => match host(tables, address, (high, low), counting) {
            // Not opaque to the compiler: most packets of a flood take this path, which deserves
            // its own code.
            Listing::BLOCKED => return Listing(Listing::BLOCKED),
            bits => bits,
        },
        summary::COVERED if !tables.is_sample() => Listing::BLOCKED,
        summary::COVERED => Listing::BLOCKED | Listing::SAMPLED | Listing::OPEN.0,
        _ => Listing::OPEN.0,
    };
    Listing(tables.black_box(bits))
}

/// Looks up an IPv4 host where only hosts are listed. If only a feed lists it, nothing else is
/// read, except for the counted packet in [`SAMPLE`].
#[inline(always)]
fn host<S: LookupTables>(
    tables: &S,
    address: u32,
    (high, low): (u64, u64),
    counting: Counting,
) -> u64 {
    let hashing = tables.hashing();
    let row_key = RowKey::of(address, current(&hashing.seed), current(&hashing.row_shift));
    match tables.feed_hosts(row_key.row).map(|row| row_key.look(&row.each_ref().map(current))) {
        None | Some(RowMatch::Unlisted) => 0,
        Some(RowMatch::FeedHost) if !tables.is_sample() => Listing::BLOCKED,
        row_match => {
            let before =
                if matches!(row_match, Some(RowMatch::FeedHost)) { Listing::SAMPLED } else { 0 };
            match find(tables, high, low, Kind::Blocked.label(128)) {
                Some(slot) => block(tables, slot, Listing(before), counting),
                None => 0,
            }
        }
    }
}

/// Completes a [`lookup_summary`]: searches the source's network of each prefix length in use.
#[inline(always)]
pub fn lookup_networks<S: LookupTables>(
    tables: &S,
    source: &IpKey,
    lookup_summary: Listing,
    counting: Counting,
) -> Listing {
    if lookup_summary.0 & Listing::OPEN.0 == 0 {
        return lookup_summary;
    }
    let before = Listing(lookup_summary.0 & !Listing::OPEN.0);
    Listing(
        tables.verifier_widen(search_lengths(tables, source, before, counting).0 as usize) as u64
    )
}

/// Counts the hit of a dropped packet whose listing is [uncounted](Listing::is_uncounted).
#[inline(always)]
pub fn count_hit<S: LookupTables>(tables: &S, source: &IpKey, counting: Counting) {
    let Some(table_header) = tables.table_header() else {
        return;
    };
    let (high, low) = source.words();
    let is_v4 = source.is_v4();
    let version = (current(&table_header.version) & 1) as usize;
    let count = current(&table_header.counts[version][usize::from(!is_v4)]);
    let base = tables.verifier_widen(version * VERSION + if is_v4 { 0 } else { IPV6_LENGTHS });
    let at = base as u32;
    let mut search = Search { high, low, at, count, counting, pad: 0, found: Listing::default() };
    tables.each_length(&mut search);
}

/// `before`, completed by the networks that contain the source.
#[inline(always)]
fn search_lengths<S: LookupTables>(
    tables: &S,
    source: &IpKey,
    before: Listing,
    counting: Counting,
) -> Listing {
    let Some(table_header) = tables.table_header() else {
        return before;
    };
    let (high, low) = source.words();
    let is_v4 = source.is_v4();
    let version = (current(&table_header.version) & 1) as usize;
    let count = current(&table_header.counts[version][usize::from(!is_v4)]) as usize;
    let base = tables.verifier_widen(version * VERSION + if is_v4 { 0 } else { IPV6_LENGTHS });
    let before = Listing(tables.verifier_widen(before.0 as usize) as u64);
    // Fingerprints first: for most sources none matches.
    let mut first = count;
    for n in 0..=UNROLLED_LENGTHS {
        if n >= count {
            break;
        }
        if n == UNROLLED_LENGTHS {
            first = n;
            break;
        }
        let length = length(table_header, base + n);
        let (high, low) = (high & current(&length.high), low & current(&length.low));
        if fits(tables, high, low, current(&length.label)) {
            first = n;
            break;
        }
    }
    let first = tables.verifier_widen(first);
    if first >= count {
        return before;
    }
    let at = (base + first) as u32;
    let count = (count - first) as u32;
    let mut search = Search { high, low, at, count, counting, pad: 0, found: before };
    tables.each_length(&mut search);
    search.found
}

/// The bits of a summary element; [`summary::EMPTY`] if it is missing.
#[inline(always)]
fn read(element: Option<&summary::Element>, place: &BitPosition) -> u64 {
    element.map_or(summary::EMPTY, |element| place.read(current(&element[place.word & 7])))
}

#[inline(always)]
fn length(table_header: &TableHeader, at: usize) -> &Length {
    &table_header.lengths[(at / VERSION) & 1][at % VERSION]
}

/// Whether a network may be in the table, by its fingerprint.
#[inline(always)]
fn fits<S: LookupTables>(tables: &S, high: u64, low: u64, label: u64) -> bool {
    let hashing = tables.hashing();
    let hashed = Hashed::new(high, low, label, current(&hashing.seed));
    let [first, second] = hashed.buckets(current(&hashing.bucket_mask));
    let Some(prints) = tables.prints(first / GROUP as u32) else {
        return false;
    };
    let (first, second) = (&prints[first as usize % GROUP], &prints[second as usize % GROUP]);
    let print = hashed.print();
    // Both at once: one branch less to predict.
    byte_bits(current(first), print) | byte_bits(current(second), print) != 0
}

/// A search through the prefix lengths of a family.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Search {
    high: u64,
    low: u64,
    /// Index of the next length in the array of both versions.
    at: u32,
    /// Number of lengths.
    pub count: u32,
    counting: Counting,
    pad: u32,
    /// Result so far.
    found: Listing,
}

impl Search {
    /// Searches the source's network of the next length. Returns whether the result is final.
    #[inline(always)]
    pub fn step<S: LookupTables>(&mut self, tables: &S) -> bool {
        let Some(table_header) = tables.table_header() else {
            return true;
        };
        let length = length(table_header, self.at as usize);
        self.at += 1;
        let label = current(&length.label);
        let (high, low) = (self.high & current(&length.high), self.low & current(&length.low));
        let Some(slot) = find(tables, high, low, label) else {
            return false;
        };
        let kind = label & KIND;
        if kind == Kind::Blocked as u64 {
            match self.counting {
                Counting::DroppedWhole if current(&slot.state) & UDP_ONLY != 0 => return false,
                Counting::Dropped | Counting::DroppedWhole => {
                    count(tables, slot, current(&slot.state), Listing::default());
                    return true;
                }
                Counting::Hits | Counting::Nothing => {}
            }
            let blocked = block(tables, slot, self.found, self.counting);
            // A block of all protocols outranks one of UDP alone, in either order.
            let all = |bits: u64| bits & (Listing::BLOCKED | Listing::UDP_ONLY) == Listing::BLOCKED;
            let is_all = all(self.found.0) || all(blocked);
            let udp_only = if is_all { 0 } else { Listing::UDP_ONLY };
            let either = self.found.0 & !Listing::UNCOUNTED | blocked;
            self.found.0 = either & !Listing::UDP_ONLY | udp_only;
            return is_all;
        }
        if kind == Kind::Trusted as u64 {
            self.found.0 |= Listing::TRUSTED;
            return true;
        }
        self.found.0 |= if kind == Kind::Known as u64 {
            Listing::known(current(&slot.state), tables.now())
        } else if kind == Kind::PerHost as u64 {
            Listing::PER_HOST
        } else if kind == Kind::Metered as u64 {
            Listing::METERED
        } else {
            Listing::ADMITTED
        };
        false
    }
}

/// The bits of a block. Counts the hit, unless the packet may still pass: then it is
/// [uncounted](Listing::is_uncounted).
#[inline(always)]
fn block<S: LookupTables>(tables: &S, slot: &Slot, before: Listing, counting: Counting) -> u64 {
    let state = current(&slot.state);
    let bit = |flag: u64, bit: u64| if state & flag != 0 { bit } else { 0 };
    let bits = Listing::BLOCKED | bit(OWN, Listing::OWN) | bit(UDP_ONLY, Listing::UDP_ONLY);
    if matches!(counting, Counting::Nothing) {
        return bits;
    }
    // Reputations come before blocks in the order of lengths.
    if before.0 & (Listing::GOOD | Listing::FLOWS) != 0 || state & UDP_ONLY != 0 {
        return bits | Listing::UNCOUNTED;
    }
    count(tables, slot, state, before);
    bits
}

/// Counts a dropped packet. Hits of entries that only feeds list are sampled.
#[inline(always)]
fn count<S: LookupTables>(tables: &S, slot: &Slot, state: u64, before: Listing) {
    if before.0 & Listing::SAMPLED != 0 {
        tables.hit(slot, HIT * SAMPLE);
    } else if state & CLAIMED != 0 {
        tables.hit(slot, HIT);
    } else if tables.is_sample() {
        tables.hit(slot, HIT * SAMPLE);
    }
}

/// The live entry of exactly this network. Bucket and slot are computed without branches: they are
/// unpredictable, and a misprediction costs more than the whole path.
#[inline(always)]
fn find<S: LookupTables>(tables: &S, high: u64, low: u64, label: u64) -> Option<&Slot> {
    let hashing = tables.hashing();
    let hashed = Hashed::new(high, low, label, current(&hashing.seed));
    let [first, second] = hashed.buckets(current(&hashing.bucket_mask));
    let prints = tables.prints(first / GROUP as u32)?;
    let print = hashed.print();
    let mut in_first = byte_bits(current(&prints[first as usize % GROUP]), print);
    let mut in_second = byte_bits(current(&prints[second as usize % GROUP]), print);
    for _ in 0..2 * ALIKE {
        if in_first | in_second == 0 {
            break;
        }
        // All ones if the first bucket has a match.
        let mask = tables.mask_from_bit((in_first | in_first.wrapping_neg()) >> 63);
        let bits = in_second ^ (in_first ^ in_second) & mask;
        let number = second ^ (first ^ second) & mask as u32;
        let way = lowest_byte(bits);
        let bucket = tables.bucket(number)?;
        // Only slots with matching fingerprints are read.
        let slot = &bucket.slots[way & (WAYS - 1)];
        let differs = (current(&slot.state) & LABEL ^ label)
            | (current(&slot.low) ^ low)
            | (current(&slot.high) ^ high);
        if differs == 0 {
            let expires = current(&slot.expires);
            if expires != NEVER && expires <= tables.now() {
                return None;
            }
            return Some(slot);
        }
        let lowest = bits & bits.wrapping_neg();
        in_first ^= lowest & mask;
        in_second ^= lowest & !mask;
    }
    None
}
