//! Weighing of evidence: one file per rule, each with the level that its evidence needs. All end in
//! [`Detector::emit_ban`], the only place where evidence becomes a finding.

pub(super) mod decoy;
pub(super) mod enumeration;
pub(super) mod forgotten;
pub(super) mod invites;
pub(super) mod kinds;
pub(super) mod networks;
pub(super) mod rejected;
pub(super) mod signature;
pub(super) mod sprayed;
pub(super) mod stream_meters;
pub(super) mod volume;

use sip_xdp_common::ip_key::IpKey;

use super::claim::{Growth, Level};
use super::{Action, Detector, Finding};

/// Minimum interval between two findings of one kind about one place.
const ONCE_NS: u64 = 1_000_000_000;

/// How long an offender has lower thresholds.
pub(super) const MEMORY_NS: u64 = 7 * 24 * 3_600_000_000_000;

/// The lowest threshold.
const LEAST: u32 = 2;

impl Detector {
    /// The threshold for a source: halved (at least two) for offenders, and for products that
    /// attackers use as well.
    pub(super) fn threshold(&self, source: &IpKey, count: u32, now: u64) -> usize {
        let offender = self.offenders.get(source, now).copied().unwrap_or(0);
        let is_doubtful = self.sources.get(source).is_some_and(|state| state.is_doubtful);
        let lowered = match offender + u32::from(is_doubtful) {
            0 => count,
            1 => (count / 2).max(LEAST),
            _ => LEAST,
        };
        lowered.min(count) as usize
    }

    /// A finding about a whole source.
    pub(super) fn about(
        &self,
        source: IpKey,
        kind: &'static str,
        level: Level,
        reason: String,
    ) -> Finding {
        Finding {
            source,
            bits: 128,
            port: None,
            ports: Vec::new(),
            transport: self.sources.get(&source).map_or_else(Default::default, |s| s.transport),
            kind,
            tier: level.tier(),
            growth: if level == Level::Routable { Growth::Full } else { Growth::None },
            reason,
        }
    }

    /// Makes evidence a finding. The offending place loses its standing at once, by level 1
    /// evidence only; its evidence restarts empty.
    pub(super) fn emit_ban(
        &mut self,
        level: Level,
        finding: Finding,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let source = finding.source;
        // Forgeable evidence never affects known sources.
        if level == Level::Seen && self.has_standing(&source, now) {
            return;
        }
        // Port 0 is no flow; an entry without a port would mean the whole address.
        if finding.port == Some(0) {
            return;
        }
        self.source_state(source, now);
        let Some(state) = self.sources.get_mut(&source) else {
            return;
        };
        if finding.port.is_none() && finding.bits == 128 {
            if state.banned != 0 && now.saturating_sub(state.banned) < ONCE_NS {
                return;
            }
            state.banned = now;
        }
        if finding.bits == 128 {
            state.begin_anew(finding.port);
        }
        if level == Level::Routable {
            match finding.port {
                Some(port) => _ = self.known.mark_offender(&source, Some(port)),
                None => {
                    for port in &finding.ports {
                        self.known.mark_offender(&source, Some(*port));
                    }
                    self.served.end(&source);
                }
            }
            if finding.growth == Growth::Full && finding.port.is_none() {
                *self.offenders.touch(source, now, || 0) += 1;
            }
        }
        actions.push(Action::Ban(finding));
    }
}
