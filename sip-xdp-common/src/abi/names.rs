//! Names of the programs, maps and globals in the compiled object. User space finds them by these
//! names; a test compares the object with them.

/// The XDP program, which judges incoming packets.
pub const INGRESS: &str = "sip_xdp_ingress";

/// The tc program, which reads outgoing SIP messages.
pub const EGRESS: &str = "sip_xdp_egress";

/// Pinned maps: they outlive the daemon, and the next one adopts them.
pub const PINNED_MAPS: [&str; 23] = [
    TABLE_HEADER,
    SUMMARY_COARSE,
    SUMMARY_FINE,
    FEED_HOSTS,
    FINGERPRINTS,
    NETWORKS,
    LEDGER,
    SOURCES,
    RECORDS,
    FLOWS,
    LADDERS,
    OWN_NONCES,
    REFUSED_USERS,
    PENDING_REQUESTS,
    SKETCH,
    STORM_STATE,
    COUNTERS,
    RESPONSES,
    CPU_STATE,
    EVENTS,
    INTERFACES,
    CLOCK,
    DROP_SAMPLE_BUDGET,
];

/// The table header: hash parameters, sizes and prefix lengths
/// ([`crate::lookup::networks::TableHeader`]).
pub const TABLE_HEADER: &str = "TABLE_HEADER";
/// The summary of each IPv4 /20 ([`crate::lookup::summary`]).
pub const SUMMARY_COARSE: &str = "SUMMARY_COARSE";
/// The summary of each IPv4 /24, for /20s of mixed contents.
pub const SUMMARY_FINE: &str = "SUMMARY_FINE";
/// IPv4 hosts that feeds list ([`crate::lookup::host_rows::Row`]).
pub const FEED_HOSTS: &str = "FEED_HOSTS";
/// Fingerprints of the buckets of [`NETWORKS`] ([`crate::lookup::networks::Prints`]).
pub const FINGERPRINTS: &str = "FINGERPRINTS";
/// Listed networks with their hit counters ([`crate::lookup::networks::SlotBucket`]).
pub const NETWORKS: &str = "NETWORKS";
/// Owner, times and reason of every entry ([`crate::abi::layout::LedgerKey`] to
/// [`crate::abi::layout::LedgerRow`]); user space only.
pub const LEDGER: &str = "LEDGER";
/// Meters of unknown sources ([`crate::limits::meters::MeterSet`]).
pub const SOURCES: &str = "SOURCES";
/// Records of sources that went over a limit ([`crate::limits::meters::Records`]).
pub const RECORDS: &str = "RECORDS";
/// Ports of addresses that are banned or known good ([`crate::limits::flow::FlowKey`] to
/// [`crate::limits::flow::Flow`]).
pub const FLOWS: &str = "FLOWS";
/// Sources on the ladder ([`crate::limits::flow::FlowKey`], whose port is the width of the source,
/// to [`crate::limits::ladder::Ladder`]).
pub const LADDERS: &str = "LADDERS";
/// Nonces of sources on the ladder that they were given, and nobody else
/// ([`crate::limits::ladder::nonce_key`] to one word that says nothing).
pub const OWN_NONCES: &str = "OWN_NONCES";
/// Users whose passwords are refused on connections of a source without a standing
/// ([`crate::limits::ladder::user_key`] to the time until which, one word).
pub const REFUSED_USERS: &str = "REFUSED_USERS";
/// Hosts with a pending request of the server ([`crate::ip_key::IpKey`] to
/// [`crate::limits::flow::PendingRequest`]).
pub const PENDING_REQUESTS: &str = "PENDING_REQUESTS";
/// Sketch of new sources ([`crate::limits::storm::MARKS`] words of 32 bits).
pub const SKETCH: &str = "SKETCH";
/// Storm state ([`crate::limits::storm::StormState`]).
pub const STORM_STATE: &str = "STORM_STATE";
/// Counters per interface slot ([`crate::abi::layout::Counters`]).
pub const COUNTERS: &str = "COUNTERS";
/// The server's responses by class ([`crate::abi::layout::Responses`]).
pub const RESPONSES: &str = "RESPONSES";
/// Event budgets and loss counters per CPU ([`crate::abi::layout::CpuState`]).
pub const CPU_STATE: &str = "CPU_STATE";
/// Ring buffer of events to the daemon ([`crate::abi::layout::KernelEvent`]).
pub const EVENTS: &str = "EVENTS";
/// The interfaces that the filter is attached to ([`crate::abi::layout::InterfaceRecord`]).
pub const INTERFACES: &str = "INTERFACES";
/// A settable clock in nanoseconds, read instead of the kernel's when [`CLOCK_FROM_MAP`] is 1
/// ([`crate::abi::layout::CLOCK_TIME`]); the outcome of the last incoming packet
/// ([`crate::abi::layout::CLOCK_OUTCOME`]); and, in kernel time, the deadline of a trial
/// ([`crate::abi::layout::CLOCK_DEADLINE`]).
pub const CLOCK: &str = "CLOCK";

/// Drop samples that may still be sent (one `u64`); user space refills it while somebody watches.
pub const DROP_SAMPLE_BUDGET: &str = "DROP_SAMPLE_BUDGET";

/// Global: bitmap of the SIP ports, bit `port % 64` of word `port / 64` (`[u64; 1024]`).
pub const PORTS: &str = "PORTS";
/// Global: the limits of unknown sources ([`crate::limits::gcra::Limits`]).
pub const LIMITS: &str = "LIMITS";
/// Global: storm thresholds ([`crate::limits::storm::StormLimits`]).
pub const STORM: &str = "STORM";
/// Global: hash parameters ([`crate::lookup::networks::Hashing`]), a copy of those in
/// [`TABLE_HEADER`].
pub const HASHING: &str = "HASHING";
/// Global: mask applied to IPv6 sources before metering (`[u64; 2]`, as [`crate::ip_key::mask`]
/// returns it).
pub const IPV6_MASK: &str = "IPV6_MASK";
/// Global: link type of this interface ([`crate::packet::headers::Link`] as `u8`).
pub const LINK: &str = "LINK";
/// Global: this interface's slot in [`COUNTERS`] and [`INTERFACES`] (`u32`).
pub const SLOT: &str = "SLOT";
/// Global: 1 to drop everything but ICMP from blocked sources, not only SIP (`u8`).
pub const SCOPE_ALL: &str = "SCOPE_ALL";
/// Global: [`crate::abi::layout::ENFORCE`], [`SPARE_ALL`](crate::abi::layout::SPARE_ALL) or
/// [`ENFORCE_UNTIL`](crate::abi::layout::ENFORCE_UNTIL) (`u8`).
pub const DRY_RUN: &str = "DRY_RUN";
/// Global: 1 to take the time from the [`CLOCK`] map (`u8`).
pub const CLOCK_FROM_MAP: &str = "CLOCK_FROM_MAP";

/// Global: 1 to parse IPv6 (`u8`).
pub const IPV6: &str = "IPV6";
/// Global: 1 to parse VLAN tags and PPPoE sessions (`u8`).
pub const TAGS: &str = "TAGS";

/// Global: the limit of known-good addresses and peers ([`crate::limits::gcra::Pace`]).
pub const GOOD_LIMIT: &str = "GOOD_LIMIT";
/// Global: 1 for the policy `closed`: only trusted, admitted, known-good and peer sources pass
/// (`u8`).
pub const CLOSED: &str = "CLOSED";

/// All globals that the loader sets.
pub const GLOBALS: [&str; 14] = [
    PORTS,
    LIMITS,
    GOOD_LIMIT,
    STORM,
    HASHING,
    IPV6_MASK,
    LINK,
    SLOT,
    SCOPE_ALL,
    CLOSED,
    DRY_RUN,
    CLOCK_FROM_MAP,
    IPV6,
    TAGS,
];
