//! The [`Tables`](sip_xdp_common::pipeline::ingress::Tables) of the decision order, over the maps.
//!
//! Above 400 lines: one implementation of one trait.

use core::mem::offset_of;

use aya_ebpf::programs::XdpContext;
use sip_xdp_common::abi::layout::{
    BY_ADDRESS, Counters, EventKind, FRAGMENTED, FROM_GOOD, IN_DRY_RUN, IN_STORM, SUSPECTED,
    SampleBudget, Scratch,
};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::flow::{FlowKey, RESERVE};
use sip_xdp_common::limits::gcra::{LimitKind, LimitSource as _, Meter, STREAM_UNIT, ticks};
use sip_xdp_common::limits::ladder::{self, Tries};
use sip_xdp_common::limits::meters::{self, KNOWN, MeterKey, MeterSet, RECORDED, WAYS as MEMBERS};
use sip_xdp_common::limits::storm::{self, NewSourcePolicy};
use sip_xdp_common::lookup::search::{self, Counting, Listing, LookupTables as _};
use sip_xdp_common::packet::headers::{Inspects, Link};
use sip_xdp_common::pipeline::ingress::{
    Charged, FlowState, ProgramSettings, SIPS_PORT, Segment, Sent, Tables,
};
use sip_xdp_common::verdict::Message;

use crate::events::{EventDraft, Numbers, report, sample, sample_segment};
use crate::globals::Globals;
use crate::lists::Lists;
use crate::maps::{
    FLOWS, LADDERS, PENDING_REQUESTS, RECORDS, SKETCH, SOURCES, STORM_STATE, cpu_state,
};
use crate::reader::bounded;
use crate::{clock, globals, scan};

/// Beside the numbers of [`ladder::Kind`]: a request whose user is refused.
const REFUSED: usize = 3;

/// The kernel's tables, for one packet.
pub(crate) struct MapTables<'a> {
    ctx: &'a XdpContext,
    scratch: *mut Scratch,
}

impl<'a> MapTables<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext, scratch: *mut Scratch) -> Self {
        Self { ctx, scratch }
    }

    /// The counter of TCP at this offset in [`Counters`] counts one more.
    #[inline(always)]
    fn count(&self, offset: usize) {
        // SAFETY: the scratch space is a field of this CPU's counters, and `offset` that of one of
        // its words; nothing else on this CPU writes them now.
        unsafe {
            let counters = self.scratch.byte_sub(offset_of!(Counters, scratch));
            *counters.byte_add(offset).cast::<u64>() += 1;
        }
    }

    /// The key under which a source is metered: its address, or its IPv6 network.
    #[inline(always)]
    fn metered_as(source: &IpKey, by_address: bool) -> IpKey {
        if by_address || source.is_v4() {
            return *source;
        }
        let [high, low] = globals::IPV6_MASK.load();
        source.masked((high, low))
    }
}

impl ProgramSettings for MapTables<'_> {
    #[inline(always)]
    fn link(&self) -> Link {
        Globals.link()
    }

    #[inline(always)]
    fn inspects(&self) -> Inspects {
        Globals.inspects()
    }

    #[inline(always)]
    fn is_sip_port(&self, port: u16) -> bool {
        Globals.is_sip_port(port)
    }
}

/// The position of a source's meter.
#[derive(Clone, Copy)]
pub(crate) struct MeterSlot {
    meter_key: MeterKey,
    /// Number of its set.
    set: u32,
}

impl Tables for MapTables<'_> {
    type MeterSlot = MeterSlot;

    #[inline(always)]
    fn scope_all(&self) -> bool {
        globals::SCOPE_ALL.load() == 1
    }

    #[inline(always)]
    fn is_closed(&self) -> bool {
        globals::CLOSED.load() == 1
    }

    #[inline(always)]
    fn lookup_summary(&self, source: &IpKey) -> Listing {
        search::lookup_summary(&Lists::new(self.scratch), source, Counting::Hits)
    }

    #[inline(always)]
    fn listing(&self, source: &IpKey, lookup_summary: Listing) -> Listing {
        search::lookup_networks(&Lists::new(self.scratch), source, lookup_summary, Counting::Hits)
    }

    #[inline(always)]
    fn count_hit(&self, source: &IpKey, is_whole: bool) {
        let counting = if is_whole { Counting::DroppedWhole } else { Counting::Dropped };
        search::count_hit(&Lists::new(self.scratch), source, counting);
    }

    #[inline(always)]
    fn flow(&self, source: &IpKey, port: u16) -> FlowState {
        let Some(flow) = FLOWS.get_ptr_mut(FlowKey::new(*source, port)) else {
            return FlowState::Stranger;
        };
        let now = clock::now(self.scratch);
        // SAFETY: a map value, valid while the program runs (the kernel frees it after a grace
        // period). Two CPUs that count a hit at once may lose one.
        unsafe {
            if (*flow).banned_until > now {
                (*flow).hits += 1;
                return FlowState::Banned;
            }
            if (*flow).good_until > now { FlowState::Good } else { FlowState::Stranger }
        }
    }

    #[inline(always)]
    fn has_pending_request(&self, source: &IpKey) -> bool {
        // A copy: a value whose address is passed to a helper stays in memory, with everything that
        // it is part of.
        let source = *source;
        // SAFETY: as above; the value is one word.
        PENDING_REQUESTS
            .get_ptr(source)
            .is_some_and(|asked| unsafe { (*asked).is_open(clock::now(self.scratch)) })
    }

    #[inline(always)]
    fn place(&self, source: &IpKey, listed: &Listing) -> MeterSlot {
        let key = Self::metered_as(source, listed.is_per_host());
        let hashing = globals::hashing();
        let meter_key = MeterKey::of(&key, search::current(&hashing.seed));
        let place = MeterSlot { meter_key, set: meter_key.set(search::current(&hashing.set_mask)) };
        if let Some(set) = SOURCES.get_ptr_mut(place.set) {
            // SAFETY: a word of a set, which is valid while the map lives. The value is not used:
            // this is a prefetch.
            let _ = unsafe { (&raw const (*set).ways).cast::<u32>().read_volatile() };
        }
        place
    }

    #[inline(always)]
    fn charge(&self, message: Message, sent: &Sent, place: MeterSlot) -> Charged {
        let now = clock::now(self.scratch);
        let MeterSlot { meter_key, set: number } = place;
        if sent.listed.is_metered() && message.is_request() && !self.descend(sent, &meter_key, now)
        {
            return Charged::Limited;
        }
        let Some(set) = SOURCES.get_ptr_mut(number) else {
            return Charged::Within;
        };
        // SAFETY: the set is valid while the map lives. Other CPUs write it too, in aligned words:
        // `sip_xdp_common::limits::meters` describes the possible loss.
        let set = unsafe { &mut *set };
        let way = meters::way_of(&meter_key, &set.ways);
        let (charged, flags) = if sent.listed.is_good() || sent.listed.is_peer() {
            (self.charge_known(set, way, &meter_key, sent, now), 0)
        } else if way >= MEMBERS {
            self.on_new_source(set, &meter_key, Some(message), sent, now)
        } else {
            (self.charge_unknown(set, way, number, &meter_key, message, sent, now), 0)
        };
        if matches!(charged, Charged::Within) {
            self.sample(message, sent, flags, &meter_key, now);
        }
        charged
    }

    #[inline(always)]
    fn charge_segment(&self, segment: &Segment, sent: &Sent, place: MeterSlot) -> Charged {
        let is_known = sent.listed.is_good() || sent.listed.is_peer();
        let is_metered = segment.is_request()
            || sent.first_fragment
            || (segment.has_payload() && !is_known && !sent.listed.is_admitted());
        // Widened, so that what follows is verified once for all of them.
        let is_metered = self.verifier_widen(usize::from(is_metered)) != 0;
        if segment.is_request() {
            self.count(offset_of!(Counters, tcp.connections));
        } else if segment.has_payload() {
            self.count(offset_of!(Counters, tcp.segments));
        }
        let now = clock::now(self.scratch);
        let MeterSlot { meter_key, set: number } = place;
        if is_metered {
            let Some(set) = SOURCES.get_ptr_mut(number) else {
                return Charged::Within;
            };
            // SAFETY: as for a message.
            let set = unsafe { &mut *set };
            let way = meters::way_of(&meter_key, &set.ways);
            let charged = if is_known {
                self.charge_known(set, way, &meter_key, sent, now)
            } else {
                self.charge_stranger(segment, set, way, number, &meter_key, sent, now)
            };
            if !matches!(charged, Charged::Within) {
                self.count(offset_of!(Counters, tcp.limited));
                return charged;
            }
        }
        // What a fragment hides may try a password. TLS has no words to be found in.
        let may_be_refused = sent.listed.is_metered()
            && (segment.has_payload() || sent.first_fragment)
            && sent.destination_port != SIPS_PORT;
        // Widened, so that what follows is verified once.
        let may_be_refused = self.verifier_widen(usize::from(may_be_refused)) != 0;
        if may_be_refused && !self.passes_by_user(segment, sent, &meter_key, now) {
            self.count(offset_of!(Counters, tcp.limited));
            return Charged::Limited;
        }
        if !segment.is_read() {
            return Charged::Within;
        }
        let mut draft = self.draft_event(
            EventKind::Segment,
            LimitKind::Connections,
            Message::Unparsed,
            sent,
            now,
        );
        let is_whole = sample_segment(&mut draft, segment, &meter_key, SampleBudget::Segments);
        if segment.has_payload() {
            self.count(if is_whole {
                offset_of!(Counters, tcp.sampled)
            } else {
                offset_of!(Counters, tcp.unsampled)
            });
        }
        Charged::Within
    }
}

/// A key in this CPU's map memory, since the stack is full; valid until the next one.
#[inline(always)]
fn flow_key<'a>(source: IpKey, port: u16) -> Option<&'a FlowKey> {
    let state = cpu_state()?;
    // SAFETY: this CPU's map value, valid while the program runs.
    unsafe {
        let key = &raw mut (*state).ladder_key;
        key.write_volatile(FlowKey::new(source, port));
        Some(&*key)
    }
}

/// Whether a message comes from a port with a standing.
#[inline(always)]
fn has_standing(sent: &Sent, now: u64) -> bool {
    flow_key(sent.source, sent.source_port).is_some_and(|key| {
        // SAFETY: an aligned word of a map value, valid while the program runs.
        FLOWS.get_ptr(key).is_some_and(|flow| unsafe { (*flow).good_until > now })
    })
}

/// A member of a set; `way` is below [`MEMBERS`] already, and the mask repeats that for the
/// verifier.
#[inline(always)]
fn member<T>(ways: &mut [T; MEMBERS], way: usize) -> &mut T {
    // SAFETY: the mask leaves an index below the array's length.
    unsafe { ways.get_unchecked_mut(bounded::<{ MEMBERS - 1 }>(way)) }
}

impl MapTables<'_> {
    /// See [`LookupTables::verifier_widen`].
    #[inline(always)]
    fn verifier_widen(&self, value: usize) -> usize {
        Lists::new(self.scratch).verifier_widen(value)
    }

    /// An event about a packet.
    #[inline(always)]
    fn draft_event<'s>(
        &'s self,
        kind: EventKind,
        bucket: LimitKind,
        message: Message,
        sent: &'s Sent,
        now: u64,
    ) -> EventDraft<'s, XdpContext> {
        let flags = (u8::from(sent.listed.is_per_host()) * BY_ADDRESS)
            | (u8::from(sent.listed.is_good()) * FROM_GOOD)
            | (u8::from(sent.first_fragment) * FRAGMENTED)
            | (u8::from(sent.listed.is_metered()) * SUSPECTED)
            | (globals::dry_run() * IN_DRY_RUN);
        EventDraft {
            ctx: self.ctx,
            scratch: self.scratch,
            kind,
            source: &sent.source,
            port: sent.source_port,
            local_port: sent.destination_port,
            message,
            bucket,
            flags,
            ip: Some(sent.ip),
            payload: sent.payload,
            end: sent.end,
            now,
        }
    }

    /// Whether a request of a source on the ladder passes: it is refused if its user is, and each
    /// of its widths on the ladder is charged.
    #[inline(always)]
    fn descend(&self, sent: &Sent, meter_key: &MeterKey, now: u64) -> bool {
        let is_known = sent.listed.is_good() || sent.listed.is_peer();
        let (kind, tries) = if sent.is_cut {
            (ladder::Kind::Try, Tries::Unclear)
        } else {
            scan::request(self.ctx, self.scratch, sent, meter_key, now)
        };
        // A port with standing tries its own passwords.
        let is_settled = matches!(kind, ladder::Kind::Own) && is_known && has_standing(sent, now);
        let kind = if is_settled { ladder::Kind::Other } else { kind };
        let kind = match self.host_on_ladder(sent) {
            Some(found) => {
                found.by_user(kind, tries, false, |user| scan::is_refused(&sent.source, user, now))
            }
            None => Some(kind),
        };
        let kind = match self.verifier_widen(kind.map_or(REFUSED, |kind| kind as usize)) {
            0 => ladder::Kind::Try,
            1 => ladder::Kind::Own,
            2 => ladder::Kind::Other,
            _ => return false,
        };
        let mut goes_on = 1;
        for (bits, mask) in ladder::WIDTHS.into_iter().zip(ladder::MASKS) {
            let Some(key) = flow_key(sent.source.masked(mask), bits.into()) else {
                return false;
            };
            let Some(found) = LADDERS.get_ptr_mut(key) else {
                continue;
            };
            // SAFETY: a map value, valid while the program runs (the kernel frees it after a grace
            // period). Two CPUs that charge it at once may lose one charge.
            let found = unsafe { &mut *found };
            goes_on =
                self.verifier_widen(usize::from(goes_on != 0 && found.charge(kind, is_known, now)));
        }
        goes_on != 0
    }

    /// The entry of the packet's own address on the ladder.
    #[inline(always)]
    fn host_on_ladder<'m>(&self, sent: &Sent) -> Option<&'m mut ladder::Ladder> {
        let found = flow_key(sent.source, ladder::WIDTHS[0].into())
            .and_then(|key| LADDERS.get_ptr_mut(key))?;
        // SAFETY: as in `descend`.
        Some(unsafe { &mut *found })
    }

    /// Whether payload of a source on the ladder passes: some of its users may be refused, or tries
    /// on connections without a standing metered, those of its IPv6 networks together.
    #[inline(always)]
    fn passes_by_user(
        &self,
        segment: &Segment,
        sent: &Sent,
        meter_key: &MeterKey,
        now: u64,
    ) -> bool {
        let is_known = sent.listed.is_good() || sent.listed.is_peer();
        // Widened: which maps were asked does not matter for what follows.
        let is_settled = self.verifier_widen(usize::from(has_standing(sent, now))) != 0;
        let host = self.host_on_ladder(sent).filter(|found| found.modes != 0);
        let refuses = host.as_ref().is_some_and(|found| found.modes & ladder::REFUSES_USERS != 0);
        // Known hosts are judged by themselves.
        let by_network = !is_settled && !is_known && !sent.source.is_v4();
        if (host.is_none() || is_settled && !refuses) && !by_network {
            return true;
        }
        let payload = self.verifier_widen(sent.payload + segment.header);
        let tries = if sent.first_fragment {
            Tries::Unclear
        } else {
            scan::tries(self.ctx, self.scratch, sent, meter_key, now, payload)
        };
        let mut goes_on = 1;
        if let Some(found) = host {
            let is_try = match tries {
                Tries::Nobody => false,
                Tries::User(_) => !is_settled && found.modes & ladder::PORTS_SHARE != 0,
                Tries::Unclear => !is_settled,
            };
            let kind = if is_try { ladder::Kind::Try } else { ladder::Kind::Other };
            let kind = found
                .by_user(kind, tries, is_settled, |user| scan::is_refused(&sent.source, user, now));
            goes_on = self.verifier_widen(usize::from(match kind {
                Some(ladder::Kind::Try) => found.charge(ladder::Kind::Try, is_known, now),
                Some(_) => true,
                None => false,
            }));
        }
        let may_try = !matches!(tries, Tries::Nobody);
        if self.verifier_widen(usize::from(by_network && may_try)) == 0 {
            return goes_on != 0;
        }
        goes_on = self.has_place::<1>(sent, goes_on, now);
        goes_on = self.has_place::<2>(sent, goes_on, now);
        self.has_place::<3>(sent, goes_on, now) != 0
    }

    /// Charges a try that goes on so far (1, else 0) to the IPv6 network of the width with this
    /// number, if its strangers share the ladder. Returns whether it still goes on.
    #[inline(always)]
    fn has_place<const WIDTH: usize>(&self, sent: &Sent, goes_on: usize, now: u64) -> usize {
        if goes_on == 0 {
            return 0;
        }
        let network = sent.source.masked(ladder::MASKS[WIDTH]);
        let Some(found) = flow_key(network, ladder::WIDTHS[WIDTH].into())
            .and_then(|key| LADDERS.get_ptr_mut(key))
        else {
            return 1;
        };
        // SAFETY: as in `descend`.
        let found = unsafe { &mut *found };
        let goes_on = found.modes & ladder::STRANGERS_SHARE == 0
            || found.charge(ladder::Kind::Try, false, now);
        self.verifier_widen(usize::from(goes_on))
    }

    /// Samples what the detector needs: requests of unknown sources, registrations and calls of
    /// known-good ones, and all responses. Responses to requests of the server make peers; others
    /// may be forwarded by a proxy as its own.
    #[inline(always)]
    fn sample(&self, message: Message, sent: &Sent, flags: u8, meter_key: &MeterKey, now: u64) {
        let listed = &sent.listed;
        let kind = if message.is_request() {
            // A peer that registers is a client, and an INVITE may try a password.
            let matters = match message {
                Message::Register | Message::Invite => true,
                _ => !listed.is_good() && !listed.is_peer(),
            };
            // Everything of a source on the ladder is sampled.
            let matters = matters || listed.is_metered();
            if !matters {
                return;
            }
            if sent.spared { EventKind::Conflict } else { EventKind::Request }
        } else if matches!(message, Message::Response) {
            EventKind::Response
        } else {
            return;
        };
        let mut draft_event = self.draft_event(kind, LimitKind::Requests, message, sent, now);
        draft_event.flags |= flags;
        let is_response = matches!(message, Message::Response);
        let budget = if is_response { SampleBudget::Responses } else { SampleBudget::Requests };
        let is_seen = sample(&draft_event, meter_key, budget);
        // A first fragment too short to classify may be a response, too.
        let may_respond = is_response || (sent.first_fragment && matches!(message, Message::Other));
        if may_respond
            && !(is_seen && is_response)
            && let Some(storm_state) = STORM_STATE.get_ptr_mut(0)
        {
            // SAFETY: an aligned word of a map value, valid while the program runs; concurrent
            // writers write about the same time.
            unsafe { (&raw mut (*storm_state).response_unseen).write_volatile(now) };
        }
    }

    /// Charges a known-good source or a peer. Packets over its limit may still be within its flow's
    /// reserve.
    #[inline(always)]
    fn charge_known(
        &self,
        set: &mut MeterSet,
        way: usize,
        meter_key: &MeterKey,
        sent: &Sent,
        now: u64,
    ) -> Charged {
        let way = if way >= MEMBERS {
            self.verifier_widen(meters::least_missed(&set.ways, ticks(now)))
        } else {
            way
        };
        let meter = member(&mut set.ways, way);
        if meter.mark != meter_key.mark() | KNOWN {
            *meter = Meter::new(meter_key.mark() | KNOWN, ticks(now));
        }
        if meter.charge_known(ticks(now), &globals::GOOD_LIMIT.load().scaled(sent.listed.scale())) {
            return Charged::Within;
        }
        let Some(flow) = FLOWS.get_ptr_mut(FlowKey::new(sent.source, sent.source_port)) else {
            return Charged::Limited;
        };
        // SAFETY: a map value, valid while the program runs. Two CPUs that take from the reserve at
        // once may take the same packet's worth.
        unsafe {
            match RESERVE.take((*flow).reserve, now) {
                Some(full_at) if (*flow).good_until > now => {
                    (*flow).reserve = full_at;
                    Charged::Within
                }
                _ => Charged::Limited,
            }
        }
    }

    /// Charges an unknown source that has a meter.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "what `charge` has looked up already")]
    fn charge_unknown(
        &self,
        set: &mut MeterSet,
        way: usize,
        number: u32,
        meter_key: &MeterKey,
        message: Message,
        sent: &Sent,
        now: u64,
    ) -> Charged {
        let meter = member(&mut set.ways, way);
        if meter.mark & KNOWN != 0 {
            // It was known before; its timestamps are those of another limit.
            *meter = Meter::new(meter_key.mark(), ticks(now));
        }
        let mut over = meter.charge(message, ticks(now), &Globals);
        if over.is_none() && meter.mark & RECORDED == 0 && !sent.is_cut {
            return Charged::Within;
        }
        let Some(records) = RECORDS.get_ptr_mut(number) else {
            return Charged::Within;
        };
        // SAFETY: as for the set.
        let record = member(unsafe { &mut (*records).ways }, way);
        if meter.mark & RECORDED == 0 || record.mark != meter_key.mark() {
            meter.mark |= RECORDED;
            record.begin(meter_key.mark(), now);
        }
        record.note(message);
        if sent.is_cut && over.is_none() {
            match Globals.fragments().take(record.fragments, ticks(now)) {
                Some(full_at) => record.fragments = full_at,
                None => over = Some(LimitKind::Fragments),
            }
        }
        match over {
            Some(bucket) => {
                if record.note_limited(now) {
                    report(
                        &self.draft_event(EventKind::Limited, bucket, message, sent, now),
                        &Numbers::of(record, now),
                    );
                }
                Charged::Limited
            }
            None => Charged::Within,
        }
    }

    /// Charges a segment of a source that is not known: a connection, payload, or a fragment.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "what `charge_segment` has looked up already")]
    fn charge_stranger(
        &self,
        segment: &Segment,
        set: &mut MeterSet,
        way: usize,
        number: u32,
        meter_key: &MeterKey,
        sent: &Sent,
        now: u64,
    ) -> Charged {
        if way >= MEMBERS {
            let (charged, _) = self.on_new_source(set, meter_key, None, sent, now);
            if !matches!(charged, Charged::Within) {
                return charged;
            }
        }
        let way = meters::way_of(meter_key, &set.ways);
        if way >= MEMBERS {
            // In a storm, within the shared budget.
            return Charged::Within;
        }
        let meter = member(&mut set.ways, way);
        if meter.mark & KNOWN != 0 {
            *meter = Meter::new(meter_key.mark(), ticks(now));
        }
        meter.touch(ticks(now));
        let Some(records) = RECORDS.get_ptr_mut(number) else {
            return Charged::Within;
        };
        // SAFETY: as for a message.
        let record = member(unsafe { &mut (*records).ways }, way);
        if meter.mark & RECORDED == 0 || record.mark != meter_key.mark() {
            meter.mark |= RECORDED;
            record.begin(meter_key.mark(), now);
        }
        let (taken, bucket) = if sent.first_fragment {
            let taken = Globals.fragments().take(record.fragments, ticks(now));
            record.fragments = taken.unwrap_or(record.fragments);
            (taken, LimitKind::Fragments)
        } else if !segment.is_request() {
            let units = (segment.payload as u32).div_ceil(STREAM_UNIT);
            let taken = Globals.stream().take_many(units, record.stream, ticks(now));
            record.stream = taken.unwrap_or(record.stream);
            (taken, LimitKind::Stream)
        } else {
            let limit = if sent.listed.is_admitted() {
                globals::GOOD_LIMIT.load()
            } else {
                Globals.connections()
            };
            let taken = limit.take(record.connections, ticks(now));
            record.connections = taken.unwrap_or(record.connections);
            // TCP Fast Open (RFC 7413): payload ahead of the handshake. Clients do without after a
            // loss.
            let taken = taken.filter(|_| !segment.has_payload());
            (taken, LimitKind::Connections)
        };
        if taken.is_some() {
            return Charged::Within;
        }
        if record.note_limited(now) {
            let draft = self.draft_event(EventKind::Limited, bucket, Message::Unparsed, sent, now);
            report(&draft, &Numbers::of(record, now));
        }
        Charged::Limited
    }

    /// Applies the policy for a source without a meter. Returns the charge, and the flags of its
    /// sample. `None` for a message: a TCP segment, which is charged elsewhere.
    #[inline(always)]
    fn on_new_source(
        &self,
        set: &mut MeterSet,
        meter_key: &MeterKey,
        message: Option<Message>,
        sent: &Sent,
        now: u64,
    ) -> (Charged, u8) {
        let (Some(sketch), Some(storm_state)) = (SKETCH.get_ptr_mut(0), STORM_STATE.get_ptr_mut(0))
        else {
            return (Charged::Within, 0);
        };
        // SAFETY: both values are valid while their maps live, and a mark is below the sketch's
        // length. Other CPUs write them too, in aligned words; a lost write miscounts one source.
        let (mark, storm_state) =
            unsafe { (sketch.cast::<storm::Mark>().add(meter_key.sketch()), &mut *storm_state) };
        // SAFETY: as above.
        let found = unsafe { mark.read_volatile() };
        // A formerly known-good source is not new, and does not count towards a storm.
        let former = sent.listed.is_former();
        let policy = if former {
            NewSourcePolicy::Meter
        } else {
            storm_state.on_new_source(found, now, &globals::STORM.load())
        };
        if !former && found != storm::window_mark(now) {
            // SAFETY: as above.
            unsafe { mark.write_volatile(storm::window_mark(now)) };
        }
        let flags = u8::from(!former && storm_state.is_storm(now)) * IN_STORM;
        let charged = match policy {
            NewSourcePolicy::Meter => {
                let way = self.verifier_widen(meters::least_missed(&set.ways, ticks(now)));
                let meter = member(&mut set.ways, way);
                *meter = Meter::new(meter_key.mark(), ticks(now));
                // The first message of a source is within any limit: a limit allows at least one.
                if let Some(message) = message {
                    meter.charge(message, ticks(now), &Globals);
                }
                Charged::Within
            }
            NewSourcePolicy::Pass => Charged::Within,
            NewSourcePolicy::Drop => {
                if storm_state.report_due(now) {
                    let seen = storm_state.new_sources as u32;
                    let numbers = Numbers { first: now, seen, ..Numbers::default() };
                    let message = message.unwrap_or(Message::Unparsed);
                    report(
                        &self.draft_event(EventKind::Storm, LimitKind::Storm, message, sent, now),
                        &numbers,
                    );
                }
                Charged::Storm
            }
        };
        (charged, flags)
    }
}
