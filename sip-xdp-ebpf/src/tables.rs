//! The tables that a judgement asks, over the maps.

use aya_ebpf::programs::XdpContext;
use sip_xdp_common::ingress::{Charged, Listing, Sent, Site, Tables};
use sip_xdp_common::layout::CpuState;
use sip_xdp_common::lists::{self, Shelves as _};
use sip_xdp_common::meter::{Bucket, Meter, ticks};
use sip_xdp_common::packet::{Inspects, Link};
use sip_xdp_common::record::Record;
use sip_xdp_common::source::Source;
use sip_xdp_common::sources::{self, Home, RECORDED, Set, WAYS as MEMBERS};
use sip_xdp_common::storm::{self, Welcome};
use sip_xdp_common::verdict::Message;

use crate::globals::Here;
use crate::lists::Lists;
use crate::maps::{GUIDE, RECORDS, SKETCH, SOURCES, WEATHER};
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
    fn inspects(&self) -> Inspects {
        Here.inspects()
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
    fn listing(&self, source: &Source) -> Listing {
        let listed = lists::look_up(&Lists::new(self.state), source);
        Listing { trusted: listed.is_trusted(), by_address: listed.is_apart(), blocked: listed.is_blocked() }
    }

    #[inline(always)]
    fn charge(&self, message: Message, sent: &Sent) -> Charged {
        let key = Self::metered_as(&sent.source, sent.by_address);
        let now = clock::now();
        let Some(guide) = GUIDE.get(0) else {
            return Charged::Within;
        };
        let home = Home::of(&key, guide.seed);
        let number = home.set(guide.set_mask);
        let Some(set) = SOURCES.get_ptr_mut(number) else {
            return Charged::Within;
        };
        // SAFETY: the set stays where it is while the map lives. Other CPUs write it too, in aligned words: what that
        // may cost is said in `sip_xdp_common::sources`.
        let set = unsafe { &mut *set };
        let way = sources::way_of(&home, &set.ways);
        if way >= MEMBERS {
            return self.meet(set, &home, message, sent, now);
        }
        let meter = &mut set.ways[way & (MEMBERS - 1)];
        let over = meter.charge(message, ticks(now), &Here);
        if over.is_none() && meter.mark & RECORDED == 0 {
            return Charged::Within;
        }
        let Some(records) = RECORDS.get_ptr_mut(number) else {
            return Charged::Within;
        };
        // SAFETY: as above.
        let record = unsafe { &mut (*records).ways[way & (MEMBERS - 1)] };
        if meter.mark & RECORDED == 0 || record.mark != home.mark() {
            meter.mark |= RECORDED;
            record.begin(home.mark(), now);
        }
        record.note(message);
        match over {
            Some(bucket) => {
                if record.note_limited(now) {
                    events::report(self.ctx, self.state, record, bucket, message, sent, now);
                }
                Charged::Limited
            }
            None => Charged::Within,
        }
    }
}

impl MapTables<'_> {
    /// See [`Shelves::forget`].
    #[inline(always)]
    fn forget(&self, value: usize) -> usize {
        Lists::new(self.state).forget(value)
    }

    /// Meets a source that has no meter.
    #[inline(always)]
    fn meet(&self, set: &mut Set, home: &Home, message: Message, sent: &Sent, now: u64) -> Charged {
        let (Some(sketch), Some(weather)) = (SKETCH.get_ptr_mut(0), WEATHER.get_ptr_mut(0)) else {
            return Charged::Within;
        };
        // SAFETY: both values live as long as their maps, and a mark is below the sketch's length. Other CPUs write
        // them too: bytes and aligned words, of which a lost one is a source that is counted once more or less.
        let (mark, weather) = unsafe { (sketch.cast::<u8>().add(home.sketch()), &mut *weather) };
        // SAFETY: as above.
        let found = unsafe { mark.read_volatile() };
        let welcome = weather.meet(found, now, &globals::STORM.load());
        if found != storm::window_mark(now) {
            // SAFETY: as above.
            unsafe { mark.write_volatile(storm::window_mark(now)) };
        }
        match welcome {
            Welcome::Meter => {
                let way = self.forget(sources::least_missed(&set.ways, ticks(now)));
                let meter = &mut set.ways[way & (MEMBERS - 1)];
                *meter = Meter::new(home.mark(), ticks(now));
                // The first message of a source is within any limit: a limit allows at least one.
                meter.charge(message, ticks(now), &Here);
                Charged::Within
            }
            Welcome::Pass => Charged::Within,
            Welcome::Drop => {
                if weather.report_due(now) {
                    let mut record = Record { first: now, ..Record::default() };
                    record.seen = weather.new_sources as u32;
                    events::report(self.ctx, self.state, &record, Bucket::Storm, message, sent, now);
                }
                Charged::Storm
            }
        }
    }
}
