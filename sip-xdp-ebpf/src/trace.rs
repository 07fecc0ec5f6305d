//! A trace of the decision order in the daemon's log: the lookups that [`ingress::judge`] makes,
//! and their results. Only in programs compiled with the feature `trace`; others have neither its
//! map nor any instruction.
//!
//! [`ingress::judge`]: sip_xdp_common::pipeline::ingress::judge

use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::lookup::search::Listing;
use sip_xdp_common::packet::headers::{Inspects, Link};
use sip_xdp_common::pipeline::ingress::{
    Charged, FlowState, Judgement, ProgramSettings, Segment, Sent, Tables,
};
use sip_xdp_common::verdict::Message;

/// Tables that log their results.
pub(crate) struct Traced<'a, T> {
    tables: T,
    ctx: &'a XdpContext,
}

impl<'a, T> Traced<'a, T> {
    #[inline(always)]
    pub(crate) fn new(tables: T, ctx: &'a XdpContext) -> Self {
        Self { tables, ctx }
    }
}

impl<T: ProgramSettings> ProgramSettings for Traced<'_, T> {
    #[inline(always)]
    fn link(&self) -> Link {
        self.tables.link()
    }

    #[inline(always)]
    fn inspects(&self) -> Inspects {
        self.tables.inspects()
    }

    #[inline(always)]
    fn is_sip_port(&self, port: u16) -> bool {
        self.tables.is_sip_port(port)
    }
}

impl<T: Tables> Tables for Traced<'_, T> {
    type MeterSlot = T::MeterSlot;

    #[inline(always)]
    fn scope_all(&self) -> bool {
        self.tables.scope_all()
    }

    #[inline(always)]
    fn is_closed(&self) -> bool {
        self.tables.is_closed()
    }

    #[inline(always)]
    fn lookup_summary(&self, source: &IpKey) -> Listing {
        self.tables.lookup_summary(source)
    }

    #[inline(always)]
    fn listing(&self, source: &IpKey, summary: Listing) -> Listing {
        let listing = self.tables.listing(source, summary);
        info!(self.ctx, "trace: the lists say {:x}", listing.bits());
        listing
    }

    #[inline(always)]
    fn count_hit(&self, source: &IpKey, is_whole: bool) {
        self.tables.count_hit(source, is_whole);
    }

    #[inline(always)]
    fn flow(&self, source: &IpKey, port: u16) -> FlowState {
        let flow = self.tables.flow(source, port);
        let name = match flow {
            FlowState::Stranger => "unknown",
            FlowState::Good => "known good",
            FlowState::Banned => "banned",
        };
        info!(self.ctx, "trace: source port {} is {}", port, name);
        flow
    }

    #[inline(always)]
    fn has_pending_request(&self, source: &IpKey) -> bool {
        self.tables.has_pending_request(source)
    }

    #[inline(always)]
    fn place(&self, source: &IpKey, listed: &Listing) -> Self::MeterSlot {
        self.tables.place(source, listed)
    }

    #[inline(always)]
    fn charge(&self, message: Message, sent: &Sent, slot: Self::MeterSlot) -> Charged {
        let charged = self.tables.charge(message, sent, slot);
        info!(self.ctx, "trace: message {} is {}", message as u8, name_of(charged));
        charged
    }

    #[inline(always)]
    fn charge_segment(&self, segment: &Segment, sent: &Sent, slot: Self::MeterSlot) -> Charged {
        let charged = self.tables.charge_segment(segment, sent, slot);
        info!(self.ctx, "trace: segment, flags {:x}, is {}", segment.flags, name_of(charged));
        charged
    }
}

#[inline(always)]
const fn name_of(charged: Charged) -> &'static str {
    match charged {
        Charged::Within => "within its limits",
        Charged::Limited => "over a limit",
        Charged::Storm => "over the budget of a storm",
    }
}

/// Logs a decision.
#[inline(always)]
pub(crate) fn decided(ctx: &XdpContext, judgement: &Judgement) {
    info!(ctx, "trace: decided: {}", judgement.reason.name());
}
