//! The egress program: counts the server's responses, records destinations of its requests (pending
//! requests), and samples both for the daemon. It always continues with the next program.

use aya_ebpf::programs::TcContext;
use sip_xdp_common::abi::layout::{
    BY_ADDRESS, EventKind, FRAGMENTED, FROM_GOOD, RESPONSE_UNSEEN_NS, RESPONSES_UNSEEN,
    SampleBudget, Scratch,
};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::flow::PendingRequest;
use sip_xdp_common::limits::gcra::LimitKind;
use sip_xdp_common::limits::meters::MeterKey;
use sip_xdp_common::lookup::search::{self, Counting, Listing};
use sip_xdp_common::packet::reader::Reader;
use sip_xdp_common::pipeline::egress::{self, Answer, Leaves, Leaving, LeavingSegment};
use sip_xdp_common::verdict::Message;

use crate::clock;
use crate::events::{EventDraft, sample, sample_segment};
use crate::globals::{self, Globals};
use crate::lists::Lists;
use crate::maps::{PENDING_REQUESTS, RESPONSES, STORM_STATE, scratch};
use crate::reader::Packet;

/// `TCX_NEXT`, equal to `TC_ACT_UNSPEC` (`include/uapi/linux/bpf.h`): continue with the next
/// program.
const NEXT: i32 = -1;

/// Minimum age in nanoseconds at which an entry of [`PENDING_REQUESTS`] is written again.
const REFRESH: u64 = 1_000_000_000;

/// Processes one outgoing packet and returns the TCX action.
#[inline(always)]
pub(crate) fn read(ctx: &TcContext) -> i32 {
    if let Some(scratch) = scratch() {
        let packet = Packet::leaving(ctx, scratch);
        match egress::read(&packet, &Globals) {
            Some(Leaves::Message(leaving)) => note(ctx, scratch, &packet, &leaving),
            Some(Leaves::Segment(leaving)) => follow(ctx, scratch, &packet, &leaving),
            None => {}
        }
    }
    NEXT
}

/// Samples a TCP segment that the detector reads, or that opens a connection.
#[inline(always)]
fn follow<R: Reader>(ctx: &TcContext, scratch: *mut Scratch, packet: &R, leaving: &LeavingSegment) {
    let segment = &leaving.segment;
    let budget = if segment.is_handshake() {
        SampleBudget::Handshakes
    } else if segment.is_read() {
        SampleBudget::LeavingSegments
    } else {
        return;
    };
    // Widened, so that the rest is verified once and not once per header path.
    let (high, low) = leaving.destination.words();
    let destination = IpKey::from_words(
        packet.verifier_widen(high as usize) as u64,
        packet.verifier_widen(low as usize) as u64,
    );
    let (at, transport) =
        (packet.verifier_widen(leaving.ip), packet.verifier_widen(leaving.transport));
    let listed = search::lookup(&Lists::new(scratch), &destination, Counting::Nothing);
    if listed.is_trusted() {
        return;
    }
    let flags =
        (u8::from(listed.is_per_host()) * BY_ADDRESS) | (u8::from(listed.is_good()) * FROM_GOOD);
    let mut draft = EventDraft {
        ctx,
        scratch,
        kind: EventKind::SegmentLeaving,
        source: &destination,
        port: leaving.port,
        local_port: leaving.local_port,
        message: Message::Unparsed,
        bucket: LimitKind::Connections,
        flags,
        ip: Some(at),
        payload: transport,
        end: leaving.end,
        now: clock::now(scratch),
    };
    let meter_key = MeterKey::of(&destination, search::current(&globals::hashing().seed));
    // What is not sampled is a gap, which the daemon reads over.
    let _ = sample_segment(&mut draft, segment, &meter_key, budget);
}

#[inline(always)]
fn note<R: Reader>(ctx: &TcContext, scratch: *mut Scratch, packet: &R, leaving: &Leaving) {
    // Widened, so that the rest is verified once and not once per header path.
    let (high, low) = leaving.destination.words();
    let destination = IpKey::from_words(
        packet.verifier_widen(high as usize) as u64,
        packet.verifier_widen(low as usize) as u64,
    );
    let number = packet.verifier_widen(leaving.message as usize) & (Message::SLOTS - 1);
    let message = Message::from_number(number as u8).unwrap_or(Message::Unparsed);
    let status = packet.verifier_widen(leaving.status.into()) as u16;
    let is_response = matches!(message, Message::Response);
    if is_response && let Some(counters) = RESPONSES.get_ptr_mut(0) {
        let index = packet.verifier_widen(Answer::of(status) as usize);
        if index < Answer::COUNT {
            // SAFETY: this CPU's map value, valid while the program runs; the index is below the
            // array's length.
            unsafe { *counters.cast::<u64>().add(index) += 1 };
        }
    }
    if is_response && !egress::is_sampled(status) {
        return;
    }
    // Decided and widened ahead of the lookup, and its result behind it: Linux 6.1 would verify the
    // lookup for each range of statuses, and what follows for each way through the lookup.
    let is_for_strangers =
        packet.verifier_widen(usize::from(egress::is_for_strangers(status))) != 0;
    let is_refusal = packet.verifier_widen(usize::from(egress::is_refusal(status))) != 0;
    let listed = search::lookup(&Lists::new(scratch), &destination, Counting::Nothing);
    let listed = Listing::new(packet.verifier_widen(listed.bits() as usize) as u64);
    if listed.is_trusted() || listed.is_good() && is_for_strangers {
        return;
    }
    let now = clock::now(scratch);
    if !is_response {
        // SAFETY: the value is one word of a map value, valid while the program runs.
        let fresh = PENDING_REQUESTS
            .get_ptr(destination)
            .is_some_and(|asked| unsafe { now.saturating_sub((*asked).at) < REFRESH });
        if !fresh {
            // A full LRU map evicts another entry; no other error is possible.
            let _ = PENDING_REQUESTS.insert(destination, PendingRequest { at: now }, 0);
        }
    }
    // What a peer is refused is looked at: one may be a guesser. Of one on the ladder everything
    // is.
    if listed.is_settled_peer() && !listed.is_metered() && !is_refusal {
        return;
    }
    let flags = (u8::from(listed.is_per_host()) * BY_ADDRESS)
        | (u8::from(listed.is_good()) * FROM_GOOD)
        | (u8::from(leaving.first_fragment) * FRAGMENTED)
        | (u8::from(was_response_unseen(now)) * RESPONSES_UNSEEN);
    let draft = EventDraft {
        ctx,
        scratch,
        kind: if is_response { EventKind::Answer } else { EventKind::PendingRequest },
        source: &destination,
        port: leaving.port,
        local_port: leaving.local_port,
        message,
        bucket: LimitKind::Other,
        flags,
        ip: None,
        payload: leaving.payload,
        end: leaving.end,
        now,
    };
    sample(
        &draft,
        &MeterKey::of(&destination, search::current(&globals::hashing().seed)),
        SampleBudget::Leaving,
    );
}

/// Whether an incoming response was lost or truncated within the last [`RESPONSE_UNSEEN_NS`].
#[inline(always)]
fn was_response_unseen(now: u64) -> bool {
    STORM_STATE.get_ptr(0).is_some_and(|storm_state| {
        // SAFETY: an aligned word of a map value, valid while the program runs.
        let at = unsafe { (&raw const (*storm_state).response_unseen).read_volatile() };
        at != 0 && now.saturating_sub(at) < RESPONSE_UNSEEN_NS
    })
}
