//! Scans what a source on the ladder sends for credentials: whether all of a request's echo nonces
//! of its own, and whose password it tries. Nobody else pays for it.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use aya_ebpf::programs::XdpContext;
use sip_xdp_common::abi::layout::{HEAD, SCANNED, SLICES, SampleBudget, Scratch};
use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::gcra::Limit;
use sip_xdp_common::limits::ladder::{Kind, Scan, Tries, nonce_key, user_key};
use sip_xdp_common::limits::meters::MeterKey;
use sip_xdp_common::lookup::search;
use sip_xdp_common::pipeline::ingress::Sent;

use crate::events::Origin as _;
use crate::globals;
use crate::maps::{OWN_NONCES, REFUSED_USERS, cpu_state};
use crate::reader::{bounded, size_up_to};

/// Requests and segments that are scanned per CPU and slice of all flows: 100 at once, then 50 a
/// second. One takes up to 20 us; those beyond count as tries. By flow, so that who forges other
/// ports of a phone's address does not use up what the phone's own port needs.
const SCANS: Limit = Limit { interval: 20_000_000, burst: 2_000_000_000 };

/// What a request is to the ladder, and whose password it tries.
#[inline(always)]
pub(crate) fn request(
    ctx: &XdpContext,
    scratch: *mut Scratch,
    sent: &Sent,
    key: &MeterKey,
    now: u64,
) -> (Kind, Tries) {
    let whole = ctx.verifier_widen(scratch, sent.end.saturating_sub(sent.payload));
    let length = size_up_to::<HEAD>(whole);
    let Some(scan) = run(ctx, scratch, sent, key, now, sent.payload, length, Scan::begin) else {
        return (Kind::Try, Tries::Unclear);
    };
    let seed = search::current(&globals::hashing().seed);
    let kind = scan.kind(|nonce| {
        word_key(nonce_key(&sent.source, nonce, seed))
            .is_some_and(|key| OWN_NONCES.get_ptr(key).is_some())
    });
    (kind, scan.tries())
}

/// A key in this CPU's map memory, since the stack is full; valid until the next one.
#[inline(always)]
fn word_key<'a>(word: u64) -> Option<&'a u64> {
    let state = cpu_state()?;
    // SAFETY: this CPU's map value, valid while the program runs.
    unsafe {
        let key = &raw mut (*state).nonce_key;
        key.write_volatile(word);
        Some(&*key)
    }
}

/// Whose password a segment tries, whose payload begins at `payload`. What begins or ends within a
/// line, or is longer than a sample, is unclear.
#[inline(always)]
pub(crate) fn tries(
    ctx: &XdpContext,
    scratch: *mut Scratch,
    sent: &Sent,
    key: &MeterKey,
    now: u64,
    payload: usize,
) -> Tries {
    let whole = ctx.verifier_widen(scratch, sent.end.saturating_sub(payload));
    if whole > HEAD {
        return Tries::Unclear;
    }
    let length = size_up_to::<HEAD>(whole);
    let Some(scan) = run(ctx, scratch, sent, key, now, payload, length, Scan::begin_piece) else {
        return Tries::Unclear;
    };
    let Some(state) = cpu_state() else {
        return Tries::Unclear;
    };
    let last = bounded::<{ SCANNED - 1 }>(length.wrapping_sub(1));
    // SAFETY: this CPU's map value, valid while the program runs; the places are below the array's
    // length.
    let (first, last) = unsafe {
        let bytes = (&raw const (*state).scanned).cast::<u8>();
        (bytes.read_volatile(), bytes.add(last).read_volatile())
    };
    if first == b' ' || first == b'\t' || last != b'\n' {
        return Tries::Unclear;
    }
    scan.tries()
}

/// Whether a user of a source is refused at `now`.
#[inline(always)]
pub(crate) fn is_refused(source: &IpKey, user: u64, now: u64) -> bool {
    let seed = search::current(&globals::hashing().seed);
    word_key(user_key(source, user, seed)).is_some_and(|key| {
        // SAFETY: an aligned word of a map value, valid while the program runs.
        REFUSED_USERS.get_ptr(key).is_some_and(|until| unsafe { *until > now })
    })
}

/// Scans `length` bytes from `start` on; nothing if there is no budget for it, or the packet cannot
/// be read.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a packet, its place in it, and who pays")]
fn run<'a>(
    ctx: &XdpContext,
    scratch: *mut Scratch,
    sent: &Sent,
    key: &MeterKey,
    now: u64,
    start: usize,
    length: usize,
    begin: impl FnOnce(&mut Scan),
) -> Option<&'a Scan> {
    let state = cpu_state()?;
    let flow = key.sketch() ^ usize::from(sent.source_port);
    let slice = bounded::<{ SLICES - 1 }>(ctx.verifier_widen(scratch, flow));
    // SAFETY: this CPU's map value, valid while the program runs; the slice is below the array's
    // length.
    let bucket = unsafe {
        (&raw mut (*state).samples).cast::<u64>().add(SampleBudget::Scans as usize * SLICES + slice)
    };
    // SAFETY: as above.
    match unsafe { SCANS.take(*bucket, now) } {
        // SAFETY: as above.
        Some(full_at) => unsafe { *bucket = full_at },
        None => return None,
    }
    // SAFETY: there is room for `HEAD` bytes in this CPU's map value, and `length` is at most that.
    let failed =
        unsafe { ctx.load(start as u32, (&raw mut (*state).scanned).cast(), length as u32) };
    if failed != 0 {
        return None;
    }
    // SAFETY: as above.
    begin(unsafe { &mut (*state).scan });
    let step: unsafe extern "C" fn(u32, *mut c_void) -> u64 = step;
    // SAFETY: the helper calls `step`, at most `HEAD` times; it refuses counts of more than 8
    // million, and flags other than 0. Nothing is handed over.
    unsafe { bpf_loop(length as u32, step as *mut c_void, core::ptr::null_mut(), 0) };
    // SAFETY: as above.
    Some(unsafe { &(*state).scan })
}

/// One byte, as `bpf_loop` calls it. Returns 1 if there is nothing to be read, else 0.
unsafe extern "C" fn step(at: u32, _: *mut c_void) -> u64 {
    let Some(state) = cpu_state() else {
        return 1;
    };
    let at = bounded::<{ SCANNED - 1 }>(at as usize);
    // SAFETY: this CPU's map value, valid while the program runs; the place is below the array's
    // length.
    unsafe {
        let byte = (&raw const (*state).scanned).cast::<u8>().add(at).read_volatile();
        (*state).scan.step(byte);
    }
    0
}
