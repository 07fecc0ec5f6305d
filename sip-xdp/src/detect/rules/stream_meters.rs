//! Meters of sources that use TCP: the kernel meters UDP alone. The limits are those of UDP
//! (`[limits.unknown]`), and nothing is dropped by them.

use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::limits::gcra::LimitKind;

use super::super::recent::Recent;
use crate::config::Rate;

/// How many sources have a meter, and for how long after their last request.
const MAX_METERS: usize = 16_384;
const LIFETIME_NS: u64 = 3_600_000_000_000;

/// What a source sends. A bucket is the time at which it is full again (GCRA).
#[derive(Debug, Clone, Copy, Default)]
struct Meter {
    register_full: u64,
    requests_full: u64,
    seen: u64,
    registers: u64,
}

/// A request over a limit, as the kernel would tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct OverLimit {
    /// Which limit.
    pub(in super::super) kind: LimitKind,
    /// Requests so far.
    pub(in super::super) seen: u64,
    /// REGISTER requests among them.
    pub(in super::super) registers: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct StreamMeters(Recent<IpKey, Meter>);

impl Default for StreamMeters {
    fn default() -> Self {
        Self(Recent::new(MAX_METERS, LIFETIME_NS))
    }
}

impl StreamMeters {
    /// Charges a request. `limits`: of REGISTER, and of all requests. Returns what it is over.
    pub(super) fn charge(
        &mut self,
        source: IpKey,
        is_register: bool,
        limits: (Rate, Rate),
        now: u64,
    ) -> Option<OverLimit> {
        let meter = self.0.touch(source, now, Meter::default);
        meter.seen += 1;
        meter.registers += u64::from(is_register);
        let is_over = |full: &mut u64, rate: Rate| {
            let next = (*full).max(now) + rate.per.nanos() / u64::from(rate.count.max(1));
            let is_over = next - now > rate.per.nanos();
            if !is_over {
                *full = next;
            }
            is_over
        };
        let kind = if is_register && is_over(&mut meter.register_full, limits.0) {
            LimitKind::Register
        } else if is_over(&mut meter.requests_full, limits.1) {
            LimitKind::Requests
        } else {
            return None;
        };
        Some(OverLimit { kind, seen: meter.seen, registers: meter.registers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_source_may_send_its_limit_at_once_and_then_as_it_refills() {
        let limits =
            (Rate { count: 2, per: Span::seconds(10) }, Rate { count: 3, per: Span::seconds(10) });
        let mut meters = StreamMeters::default();
        let source = IpKey::v4(7);
        let mut charge = |is_register: bool, at: u64| {
            meters.charge(source, is_register, limits, 1_000 * SECOND + at)
        };
        assert_eq!([charge(true, 0), charge(true, 0), charge(false, 0)], [None; 3]);
        let over = charge(true, 0);
        assert_eq!(over.map(|over| (over.kind, over.seen)), Some((LimitKind::Register, 4)));
        let over = charge(false, 0).map(|over| (over.kind, over.seen, over.registers));
        assert_eq!(over, Some((LimitKind::Requests, 5, 3)));
        assert_eq!(charge(false, 4 * SECOND), None);
        assert!(charge(false, 4 * SECOND).is_some());
        assert_eq!(charge(true, 60 * SECOND), None);
    }
}
