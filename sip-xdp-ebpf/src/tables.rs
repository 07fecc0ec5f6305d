//! The tables that a judgement asks, over the maps.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::warn;
use sip_xdp_common::front::{self, Place};
use sip_xdp_common::ingress::{Charged, Sent, Site, Standing, Tables};
use sip_xdp_common::layout::{BY_ADDRESS, CpuState, TRUSTED};
use sip_xdp_common::meter::{Bucket, Charge, Meter};
use sip_xdp_common::packet::Link;
use sip_xdp_common::source::Source;
use sip_xdp_common::storm::{self, Welcome};
use sip_xdp_common::verdict::Message;

use crate::globals::Here;
use crate::maps::{BLOCKLIST, FRONT, HITS, SKETCH, SOURCES, TRUST, WEATHER};
use crate::{clock, events, globals};

/// The kernel's tables, for one packet.
pub(crate) struct MapTables<'a> {
    ctx: &'a XdpContext,
    state: *mut CpuState,
}

impl<'a> MapTables<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext, state: *mut CpuState) -> Self {
        Self { ctx, state }
    }

    /// Whether the tables need to be asked: not if the front says that no network on the list of `bit` meets the
    /// source's /24. IPv6 has no front.
    #[inline(always)]
    fn may_be_listed(source: &Source, bit: u64) -> bool {
        if !source.is_v4() {
            return true;
        }
        let place = Place::of_source(source);
        FRONT.get(place.element).is_none_or(|element| element[place.word & 7] >> place.shift & bit != 0)
    }

    /// The key under which a source is metered: its address, or its IPv6 network.
    #[inline(always)]
    fn metered_as(source: &Source, by_address: bool) -> Source {
        if by_address || source.is_v4() {
            return *source;
        }
        let [high, low] = globals::IPV6_MASK.load();
        source.masked((high, low))
    }
}

impl Site for MapTables<'_> {
    #[inline(always)]
    fn link(&self) -> Link {
        Here.link()
    }

    #[inline(always)]
    fn is_sip_port(&self, port: u16) -> bool {
        Here.is_sip_port(port)
    }
}

impl Tables for MapTables<'_> {
    #[inline(always)]
    fn scope_all(&self) -> bool {
        globals::SCOPE_ALL.load() == 1
    }

    #[inline(always)]
    fn standing(&self, source: &Source) -> Standing {
        if !Self::may_be_listed(source, front::TRUSTED) {
            return Standing::default();
        }
        match TRUST.get(&Key::new(128, source.octets)) {
            Some(entry) if entry.expires > clock::now() => {
                Standing { trusted: entry.flags & TRUSTED != 0, by_address: entry.flags & BY_ADDRESS != 0 }
            }
            _ => Standing::default(),
        }
    }

    #[inline(always)]
    fn is_blocked(&self, source: &Source) -> bool {
        if !Self::may_be_listed(source, front::BLOCKED) {
            return false;
        }
        let Some(entry) = BLOCKLIST.get(&Key::new(128, source.octets)) else {
            return false;
        };
        if entry.expires <= clock::now() {
            return false;
        }
        if let Some(hits) = HITS.get_ptr_mut(entry.slot) {
            // SAFETY: the slot is an aligned word of map memory that lives as long as the map. The addition is
            // atomic; its result is not used, so that it compiles to a plain BPF atomic add.
            unsafe {
                core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(hits, 1)
            };
        }
        true
    }

    #[inline(always)]
    fn charge(&self, message: Message, sent: &Sent) -> Charged {
        let key = Self::metered_as(&sent.source, sent.by_address);
        let now = clock::now();
        let Some(slot) = SOURCES.get_ptr_mut(key) else {
            return self.meet(&key, message, sent, now);
        };
        // SAFETY: the value stays allocated while the program runs. Two CPUs that charge one source in the same instant
        // may lose one of the two charges, no more: each field is an aligned word.
        let meter = unsafe { &mut *slot };
        match meter.charge(message, now, &Here) {
            Charge::Within => Charged::Within,
            Charge::Over { bucket, report } => {
                if report {
                    events::report(self.ctx, self.state, meter, bucket, message, sent, now);
                }
                Charged::Limited
            }
        }
    }
}

impl MapTables<'_> {
    /// Meets a source that has no meter.
    #[inline(always)]
    fn meet(&self, key: &Source, message: Message, sent: &Sent, now: u64) -> Charged {
        let storm = globals::STORM.load();
        let (Some(sketch), Some(weather)) = (SKETCH.get_ptr_mut(0), WEATHER.get_ptr_mut(0)) else {
            return Charged::Within;
        };
        // SAFETY: both values live as long as their maps, and a mark is below the sketch's length. Other CPUs write
        // them too: bytes and aligned words, of which a lost one is a source that is counted once more or less.
        let (mark, weather) = unsafe { (sketch.cast::<u8>().add(storm::mark(key, storm.seed)), &mut *weather) };
        // SAFETY: as above.
        let found = unsafe { mark.read_volatile() };
        let welcome = weather.meet(found, now, &storm);
        if found != storm::window_mark(now) {
            // SAFETY: as above.
            unsafe { mark.write_volatile(storm::window_mark(now)) };
        }
        // SAFETY: this CPU's map value, valid while the program runs; nothing else uses the field.
        let meter = unsafe { &mut (*self.state).newcomer };
        *meter = Meter::new(now);
        // The first message of a source is within any limit: a limit allows at least one.
        meter.charge(message, now, &Here);
        match welcome {
            Welcome::Meter => {
                // By reference, since a copy would go on the stack.
                let newcomer: &Meter = meter;
                if let Err(error) = SOURCES.insert(key, newcomer, 0)
                    && events::diagnostic_due(self.state, now)
                {
                    warn!(self.ctx, "no room to meter another source (error {})", error);
                }
                Charged::Within
            }
            Welcome::Pass => Charged::Within,
            Welcome::Drop => {
                if weather.report_due(now) {
                    meter.seen = weather.new_sources;
                    events::report(self.ctx, self.state, meter, Bucket::Storm, message, sent, now);
                }
                Charged::Storm
            }
        }
    }
}
