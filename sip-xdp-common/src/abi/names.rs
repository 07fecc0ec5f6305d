//! The names under which the compiled object carries its programs, maps and globals. User space
//! finds them by these names, and a test holds the object against them.

/// The XDP program that judges what arrives.
pub const INGRESS: &str = "sip_xdp_ingress";

/// The tc program that reads our own responses.
pub const EGRESS: &str = "sip_xdp_egress";

/// Maps that are pinned: they outlive the daemon and are adopted by the next one.
pub const PINNED_MAPS: [&str; 20] = [
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

/// How the tables of the lists are to be read ([`crate::lookup::networks::TableHeader`]).
pub const TABLE_HEADER: &str = "TABLE_HEADER";
/// What each IPv4 /20 has to do with the lists ([`crate::lookup::summary`]).
pub const SUMMARY_COARSE: &str = "SUMMARY_COARSE";
/// What each IPv4 /24 has to do with them, where that of its /20 does not say it all.
pub const SUMMARY_FINE: &str = "SUMMARY_FINE";
/// IPv4 hosts that feeds list ([`crate::lookup::host_rows::Row`]).
pub const FEED_HOSTS: &str = "FEED_HOSTS";
/// What may stand in each bucket of [`NETWORKS`] ([`crate::lookup::networks::Prints`]).
pub const FINGERPRINTS: &str = "FINGERPRINTS";
/// Listed networks, with their counters ([`crate::lookup::networks::Bucket`]).
pub const NETWORKS: &str = "NETWORKS";
/// Who listed what, when and why ([`crate::abi::layout::LedgerKey`] to
/// [`crate::abi::layout::LedgerRow`]); user space only.
pub const LEDGER: &str = "LEDGER";
/// The meters of unknown sources ([`crate::limits::meters::Set`]).
pub const SOURCES: &str = "SOURCES";
/// What is known of sources that went over a limit ([`crate::limits::meters::Records`]).
pub const RECORDS: &str = "RECORDS";
/// Ports of addresses that are banned or known good ([`crate::limits::flow::FlowKey`] to
/// [`crate::limits::flow::Flow`]).
pub const FLOWS: &str = "FLOWS";
/// Hosts that we sent requests to ([`crate::ip_key::IpKey`] to
/// [`crate::limits::flow::PendingRequest`]).
pub const PENDING_REQUESTS: &str = "PENDING_REQUESTS";
/// The marks of sources without a meter ([`crate::limits::storm::MARKS`] words of 32 bits).
pub const SKETCH: &str = "SKETCH";
/// Whether there is a storm ([`crate::limits::storm::StormState`]).
pub const STORM_STATE: &str = "STORM_STATE";
/// Counters per interface slot ([`crate::abi::layout::Counters`]).
pub const COUNTERS: &str = "COUNTERS";
/// Our own responses, by what they say ([`crate::abi::layout::Responses`]).
pub const RESPONSES: &str = "RESPONSES";
/// What each CPU has left to tell the daemon ([`crate::abi::layout::CpuState`]).
pub const CPU_STATE: &str = "CPU_STATE";
/// Events on their way to the daemon ([`crate::abi::layout::Event`]).
pub const EVENTS: &str = "EVENTS";
/// The interfaces that the filter is attached to ([`crate::abi::layout::InterfaceRecord`]).
pub const INTERFACES: &str = "INTERFACES";
/// A settable clock, in nanoseconds, read instead of the kernel's when [`CLOCK_FROM_MAP`] is 1, and
/// beside it what became of the last packet that arrived ([`crate::abi::layout::CLOCK_TIME`],
/// [`crate::abi::layout::CLOCK_OUTCOME`]); and, by the kernel's clock, the end of a trial
/// ([`crate::abi::layout::CLOCK_DEADLINE`]).
pub const CLOCK: &str = "CLOCK";

/// How many dropped packets may still be copied to whoever watches (one `u64`); user space fills it
/// up again, or does not.
pub const DROP_SAMPLE_BUDGET: &str = "DROP_SAMPLE_BUDGET";

/// Global: bitmap of the SIP ports, bit `port % 64` of word `port / 64` (`[u64; 1024]`).
pub const PORTS: &str = "PORTS";
/// Global: the limits of unknown sources ([`crate::limits::gcra::Limits`]).
pub const LIMITS: &str = "LIMITS";
/// Global: what a storm is ([`crate::limits::storm::StormLimits`]).
pub const STORM: &str = "STORM";
/// Global: how networks and sources are hashed ([`crate::lookup::networks::Hashing`]), as
/// [`TABLE_HEADER`] says.
pub const HASHING: &str = "HASHING";
/// Global: the mask under which IPv6 sources are metered (`[u64; 2]`, as [`crate::ip_key::mask`]
/// gives it).
pub const IPV6_MASK: &str = "IPV6_MASK";
/// Global: how frames start on this interface ([`crate::packet::headers::Link`] as `u8`).
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

/// Global: 1 to look at IPv6 (`u8`).
pub const IPV6: &str = "IPV6";
/// Global: 1 to look behind VLAN tags and into PPPoE sessions (`u8`).
pub const TAGS: &str = "TAGS";

/// Global: the limit of known-good addresses and peers ([`crate::limits::gcra::Pace`]).
pub const GOOD_LIMIT: &str = "GOOD_LIMIT";
/// Global: 1 if only those may talk who are trusted, admitted, known good, or peers (`u8`).
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
