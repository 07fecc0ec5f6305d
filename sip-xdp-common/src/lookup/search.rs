//! The lists as the kernel sees them: one hash table of networks, fingerprints of what is in it,
//! and the lengths that occur.
//!
//! A [`Slot`] holds one network of one [`Kind`], of any length and either family, in one half of a
//! cache line: its address, its end, its length and its hit counter. Slots stand in buckets of
//! [`WAYS`]; a network has two buckets to choose from, by a seeded hash, and goes to the emptier
//! one (both are of one group of [`GROUP`], so that one look tells). For each bucket there is a
//! word of fingerprints, one byte of the hash per slot: these words are a thirty-second of the
//! table, stay in the caches, and tell nearly every network that is not there. To find what lists a
//! source, its network of each length that occurs is looked for; for IPv4 the [`front`] says
//! beforehand that there is nothing to find, or only hosts, and then a [row](feed_hosts) says most
//! often whether the source is one of them.
//!
//! The table is plain memory that user space maps. It writes an entry so that a reader sees it
//! whole or not at all, and changing other entries never moves one that stays.

use crate::abi::layout::NEVER;
use crate::ip_key::IpKey;
use crate::lookup::host_rows::{self, RowKey, RowMatch};
use crate::lookup::networks::{
    ALIKE, CLAIMED, FLOWS, FORMER, GROUP, HIT, Hashed, Hashing, IPV6_LENGTHS, KIND, Kind, LABEL,
    Length, OWN, Prints, Reputation, SUSPECT, Slot, SlotBucket, TableHeader, UDP_ONLY, VERSION,
    WAYS, byte_bits, lowest_byte,
};
use crate::lookup::summary::{self, BitPosition};

/// One packet in so many that nothing but feeds drops is counted, with this weight.
pub const SAMPLE: u64 = 64;

/// For how many lengths the fingerprints are looked at before anything else is. The verifier
/// follows each of these steps; lists with more lengths than this are rare, and pay a few
/// nanoseconds for each.
const GLANCES: usize = 8;

/// The tables, as one reader sees them.
pub trait LookupTables {
    /// How networks are hashed. Its words are to be read as [`current`] ones: the compiler knows
    /// only what they were first.
    fn hashing(&self) -> &Hashing;
    /// Which lengths there are.
    fn table_header(&self) -> Option<&TableHeader>;
    /// An element of the front's bits for /20s.
    fn coarse(&self, element: u32) -> Option<&summary::Element>;
    /// An element of the front's bits for /24s.
    fn fine(&self, element: u32) -> Option<&summary::Element>;
    /// A row of hosts that feeds list.
    fn feed_hosts(&self, row: u32) -> Option<&host_rows::Row>;
    /// The fingerprints of a group.
    fn prints(&self, group: u32) -> Option<&Prints>;
    /// A bucket.
    fn bucket(&self, number: u32) -> Option<&SlotBucket>;
    /// Adds to a slot's [`state`](Slot::state), atomically.
    fn hit(&self, slot: &Slot, hits: u64);
    /// The time; asked only for what ends.
    fn now(&self) -> u64;
    /// Whether this packet is the one in [`SAMPLE`].
    fn is_sample(&self) -> bool;
    /// Takes at most [`Search::count`] steps, until one says that it was the last. The kernel's
    /// verifier follows a helper's loop once, not once for each length.
    fn each_length(&self, search: &mut Search);
    /// `bit` (0 or 1) negated: no bits or all of them. The compiler must not see through it, or it
    /// makes a branch of what is calculated with the result.
    fn mask_from_bit(&self, bit: u64) -> u64;
    /// `bits`. The compiler must not see through it, or it makes a way of its own for each of its
    /// values, and carries along each of them what only the longer ones need.
    fn black_box(&self, bits: u64) -> u64;
    /// See [`Reader::verifier_widen`](crate::packet::reader::Reader::verifier_widen).
    fn verifier_widen(&self, value: usize) -> usize;
}

/// What the tables say of a source: in one word, so that the verifier can be made to forget all of
/// it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Listing(u64);

impl Listing {
    /// It is trusted.
    pub const TRUSTED: u64 = 1;
    /// It is not judged as part of its network.
    pub const PER_HOST: u64 = 2;
    /// Something blocks it.
    pub const BLOCKED: u64 = 4;
    /// A feed blocks all of the /24, and this packet is the one in [`SAMPLE`].
    const SAMPLED: u64 = 8;
    /// An operator blocks it, or the configuration.
    const OWN: u64 = 0x10;
    const ADMITTED: u64 = 0x20;
    const FLOWS: u64 = 0x40;
    const GOOD: u64 = 0x80;
    const PEER: u64 = 0x100;
    const SETTLED: u64 = 0x200;
    /// It has not been asked yet which networks the source is in.
    pub const OPEN: Self = Self(0x400);
    /// What blocks it blocks UDP alone.
    const UDP_ONLY: u64 = 0x800;
    /// Where the scale of a known host stands.
    const SCALE: u32 = 12;

    /// From its bits.
    #[inline(always)]
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// All of it.
    #[inline(always)]
    pub const fn bits(&self) -> u64 {
        self.0
    }

    /// It is trusted.
    #[inline(always)]
    pub const fn is_trusted(&self) -> bool {
        self.0 & Self::TRUSTED != 0
    }

    /// It is not judged as part of its network.
    #[inline(always)]
    pub const fn is_per_host(&self) -> bool {
        self.0 & Self::PER_HOST != 0
    }

    /// Something blocks it, and the hit is counted.
    #[inline(always)]
    pub const fn is_blocked(&self) -> bool {
        self.0 & Self::BLOCKED != 0
    }

    /// It is blocked, and neither trust nor what is known of its ports can spare it.
    #[inline(always)]
    pub const fn is_only_blocked(&self) -> bool {
        const ELSE: u64 =
            Listing::TRUSTED | Listing::GOOD | Listing::FLOWS | Listing::OPEN.0 | Listing::UDP_ONLY;
        self.0 & (Self::BLOCKED | ELSE) == Self::BLOCKED
    }

    /// What blocks it blocks UDP alone: a ban on evidence that anybody could have sent.
    #[inline(always)]
    pub const fn is_udp_only(&self) -> bool {
        self.0 & Self::UDP_ONLY != 0
    }

    /// What blocks it is an operator, or the configuration.
    #[inline(always)]
    pub const fn is_blocked_by_hand(&self) -> bool {
        self.0 & Self::OWN != 0
    }

    /// It may talk under the policy `closed`.
    #[inline(always)]
    pub const fn is_admitted(&self) -> bool {
        self.0 & Self::ADMITTED != 0
    }

    /// Its ports are to be asked about.
    #[inline(always)]
    pub const fn has_flows(&self) -> bool {
        self.0 & Self::FLOWS != 0
    }

    /// It is known good.
    #[inline(always)]
    pub const fn is_good(&self) -> bool {
        self.0 & Self::GOOD != 0
    }

    /// It is a peer.
    #[inline(always)]
    pub const fn is_peer(&self) -> bool {
        self.0 & Self::PEER != 0
    }

    /// It is a peer, and will be for some time.
    #[inline(always)]
    pub const fn is_settled_peer(&self) -> bool {
        self.0 & Self::SETTLED != 0
    }

    /// It is under suspicion, and neither known good nor a peer.
    #[inline(always)]
    pub const fn is_suspect(&self) -> bool {
        self.scale() == SUSPECT && self.0 & (Self::GOOD | Self::PEER) == 0
    }

    /// It was known good once, and is not any more.
    #[inline(always)]
    pub const fn is_former(&self) -> bool {
        self.scale() == FORMER && self.0 & (Self::GOOD | Self::PEER) == 0
    }

    /// The power of two by which a known host's limit is multiplied.
    #[inline(always)]
    pub const fn scale(&self) -> u64 {
        self.0 >> Self::SCALE & 15
    }

    /// What a slot says of a known host.
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
    // SAFETY: a reference is valid and aligned. Volatile, so that it is read once, where it stands
    // here.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

/// Whether a look-up is for a packet that is dropped if its source is blocked.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// It is: that is a hit.
    Hits,
    /// It is not.
    Nothing,
}

/// Asks the tables about a source.
#[inline(always)]
pub fn lookup<S: LookupTables>(tables: &S, source: &IpKey, counting: Counting) -> Listing {
    lookup_networks(tables, source, lookup_summary(tables, source, counting), counting)
}

/// Asks the [`front`] about an IPv4 source, and where it knows of nothing but hosts, for the host.
/// It knows nothing of IPv6.
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
            // The compiler may see through this: what most of a flood consists of is to have a way
            // of its own.
            Listing::BLOCKED => return Listing(Listing::BLOCKED),
            bits => bits,
        },
        summary::COVERED if !tables.is_sample() => Listing::BLOCKED,
        summary::COVERED => Listing::BLOCKED | Listing::SAMPLED | Listing::OPEN.0,
        _ => Listing::OPEN.0,
    };
    Listing(tables.black_box(bits))
}

/// Asks about an IPv4 host where hosts are all that is listed. If only a feed lists it, nothing
/// else need be looked at, but for the packet in [`SAMPLE`] that is counted.
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

/// Completes a [`lookup_summary`]: asks for the source's network of each length that occurs in its
/// family.
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

/// What was known `before`, and what the networks say that the source is in.
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
    // First only the fingerprints: for most sources none fits.
    let mut first = count;
    for n in 0..=GLANCES {
        if n >= count {
            break;
        }
        if n == GLANCES {
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

/// What an element of the front says; one that is not there says nothing.
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
    // Both at once: a branch less to guess.
    byte_bits(current(first), print) | byte_bits(current(second), print) != 0
}

/// A search through the lengths of a family.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Search {
    high: u64,
    low: u64,
    /// The place of the next length among all of both versions.
    at: u32,
    /// How many lengths there are.
    pub count: u32,
    counting: Counting,
    pad: u32,
    /// What was found.
    found: Listing,
}

impl Search {
    /// Looks for the source's network of the next length. Returns whether all is found that
    /// matters.
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
            let blocked = block(tables, slot, self.found, self.counting);
            // Whatever blocks all of it counts for more, wherever it was found.
            let all = |bits: u64| bits & (Listing::BLOCKED | Listing::UDP_ONLY) == Listing::BLOCKED;
            let is_all = all(self.found.0) || all(blocked);
            let udp_only = if is_all { 0 } else { Listing::UDP_ONLY };
            self.found.0 = (self.found.0 | blocked) & !Listing::UDP_ONLY | udp_only;
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
        } else {
            Listing::ADMITTED
        };
        false
    }
}

/// Counts a hit: nothing else that is found can matter any more. Hits of what only feeds list are
/// sampled.
#[inline(always)]
fn block<S: LookupTables>(tables: &S, slot: &Slot, before: Listing, counting: Counting) -> u64 {
    let state = current(&slot.state);
    if matches!(counting, Counting::Nothing) {
        // Nothing is dropped for it.
    } else if before.0 & Listing::SAMPLED != 0 {
        tables.hit(slot, HIT * SAMPLE);
    } else if state & CLAIMED != 0 {
        tables.hit(slot, HIT);
    } else if tables.is_sample() {
        tables.hit(slot, HIT * SAMPLE);
    }
    let bit = |flag: u64, bit: u64| if state & flag != 0 { bit } else { 0 };
    Listing::BLOCKED | bit(OWN, Listing::OWN) | bit(UDP_ONLY, Listing::UDP_ONLY)
}

/// What there is for exactly this network, if it is live. Which of the two buckets it stands in and
/// where there is calculated, not branched on: it is as good as random, and a wrong guess costs
/// more than the whole path.
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
        // All ones if there is a bit in the first.
        let mask = tables.mask_from_bit((in_first | in_first.wrapping_neg()) >> 63);
        let bits = in_second ^ (in_first ^ in_second) & mask;
        let number = second ^ (first ^ second) & mask as u32;
        let way = lowest_byte(bits);
        let bucket = tables.bucket(number)?;
        // Only slots whose fingerprints fit are read.
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
