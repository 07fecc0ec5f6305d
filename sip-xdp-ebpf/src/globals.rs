//! Read-only globals. The loader sets them before the program is verified, so that the verifier
//! prunes disabled code. Their names are those of `sip_xdp_common::abi::names`.

use aya_ebpf::Global;
use sip_xdp_common::abi::layout::{ENFORCE, SPARE_ALL};
use sip_xdp_common::limits::gcra::{Limit, LimitSource, Limits, Pace};
use sip_xdp_common::limits::storm::StormLimits;
use sip_xdp_common::lookup::networks::Hashing;
use sip_xdp_common::packet::headers::{Inspects, Link};
use sip_xdp_common::pipeline::ingress::ProgramSettings;

const UNSET: Limit = Limit { interval: 0, burst: 0 };

#[unsafe(no_mangle)]
static PORTS: Global<[u64; 1024]> = Global::new([0; 1024]);

#[unsafe(no_mangle)]
static LIMITS: Global<Limits> = Global::new(Limits {
    register: Pace::NONE,
    requests: Pace::NONE,
    other: Pace::NONE,
    fragments: Pace::NONE,
    connections: Pace::NONE,
    stream: Pace::NONE,
});

/// The limit of known-good addresses and peers.
#[unsafe(no_mangle)]
pub(crate) static GOOD_LIMIT: Global<Pace> = Global::new(Pace::NONE);

/// Thresholds of a storm.
#[unsafe(no_mangle)]
pub(crate) static STORM: Global<StormLimits> =
    Global::new(StormLimits { new_sources: 0, budget: UNSET });

/// Hash parameters of networks and sources.
#[unsafe(no_mangle)]
static HASHING: Global<Hashing> =
    Global::new(Hashing { seed: 0, bucket_mask: 0, set_mask: 0, row_shift: 0, pad: 0 });

/// Mask applied to IPv6 sources before metering.
#[unsafe(no_mangle)]
pub(crate) static IPV6_MASK: Global<[u64; 2]> = Global::new([0; 2]);

/// `sip_xdp_common::packet::headers::Link` as a number.
#[unsafe(no_mangle)]
static LINK: Global<u8> = Global::new(0);

/// This interface's slot in `COUNTERS`.
#[unsafe(no_mangle)]
pub(crate) static SLOT: Global<u32> = Global::new(0);

/// 1: everything but ICMP from blocked sources is dropped (`block_scope = "all"`).
#[unsafe(no_mangle)]
pub(crate) static SCOPE_ALL: Global<u8> = Global::new(0);

/// 1: policy `closed`: only trusted, admitted, known-good and peer sources pass.
#[unsafe(no_mangle)]
pub(crate) static CLOSED: Global<u8> = Global::new(0);

/// Enforcement mode: `ENFORCE`, `SPARE_ALL` or `ENFORCE_UNTIL` of the layout.
#[unsafe(no_mangle)]
pub(crate) static DRY_RUN: Global<u8> = Global::new(ENFORCE);

/// 1 in a dry run, else 0.
#[inline(always)]
pub(crate) fn dry_run() -> u8 {
    DRY_RUN.load() & SPARE_ALL
}

/// 1: the time is read from the `CLOCK` map.
#[unsafe(no_mangle)]
pub(crate) static CLOCK_FROM_MAP: Global<u8> = Global::new(0);

#[unsafe(no_mangle)]
static IPV6: Global<u8> = Global::new(1);

#[unsafe(no_mangle)]
static TAGS: Global<u8> = Global::new(1);

/// The settings of this program, read from its globals.
pub(crate) struct Globals;

impl ProgramSettings for Globals {
    #[inline(always)]
    fn link(&self) -> Link {
        if LINK.load() == Link::Ip as u8 { Link::Ip } else { Link::Ethernet }
    }

    #[inline(always)]
    fn inspects(&self) -> Inspects {
        Inspects { ipv6: IPV6.load() == 1, tags: TAGS.load() == 1 }
    }

    #[inline(always)]
    fn is_sip_port(&self, port: u16) -> bool {
        let words = (&raw const PORTS).cast::<u64>();
        // SAFETY: `Global` is transparent over its 1024 words, and a port shifted by 6 is at most
        // 1023. The read is volatile because the loader, not this program, decides the value.
        let word = unsafe { words.add(usize::from(port >> 6)).read_volatile() };
        word >> (port & 63) & 1 == 1
    }
}

/// Hash parameters of networks and sources. The compiler assumes the initial value above, so its
/// words must be read with [`current`](sip_xdp_common::lookup::search::current).
#[inline(always)]
pub(crate) const fn hashing() -> &'static Hashing {
    // SAFETY: `Global` is transparent over its value, and the kernel keeps it for as long as the
    // program is loaded.
    unsafe { &*(&raw const HASHING).cast() }
}

/// The configured limits, to be read field by field. `Global` is transparent over its value, and
/// the reads are volatile, because the loader sets it.
#[inline(always)]
const fn limits() -> *const Limits {
    (&raw const LIMITS).cast()
}

impl LimitSource for Globals {
    #[inline(always)]
    fn register(&self) -> Pace {
        // SAFETY: a field of a static, which the kernel keeps for as long as the program is loaded.
        unsafe { (&raw const (*limits()).register).read_volatile() }
    }

    #[inline(always)]
    fn requests(&self) -> Pace {
        // SAFETY: as above.
        unsafe { (&raw const (*limits()).requests).read_volatile() }
    }

    #[inline(always)]
    fn other(&self) -> Pace {
        // SAFETY: as above.
        unsafe { (&raw const (*limits()).other).read_volatile() }
    }

    #[inline(always)]
    fn fragments(&self) -> Pace {
        // SAFETY: as above.
        unsafe { (&raw const (*limits()).fragments).read_volatile() }
    }

    #[inline(always)]
    fn connections(&self) -> Pace {
        // SAFETY: as above.
        unsafe { (&raw const (*limits()).connections).read_volatile() }
    }

    #[inline(always)]
    fn stream(&self) -> Pace {
        // SAFETY: as above.
        unsafe { (&raw const (*limits()).stream).read_volatile() }
    }
}
