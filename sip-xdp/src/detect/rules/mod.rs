//! Evidence is weighed here: one file a rule. Each says of which level its evidence must be, and
//! all of them end in [`Detector::emit_ban`], the one place where evidence becomes a finding.

pub(super) mod decoy;
pub(super) mod enumeration;
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

/// The same place is not convicted twice for the same within this time.
const ONCE_NS: u64 = 1_000_000_000;

/// For how long a source that offended has lower thresholds.
pub(super) const MEMORY_NS: u64 = 7 * 24 * 3_600_000_000_000;

/// The least that any threshold is lowered to.
const LEAST: u32 = 2;

impl Detector {
    /// How much of a kind of evidence is enough, for a source: half for one that has offended
    /// before, or says that it is a product that attackers use; then two.
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

    /// A finding about all of a source.
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

    /// Evidence becomes a finding. A convicted place loses its standing at once, by level 1
    /// evidence only; its evidence begins anew.
    pub(super) fn emit_ban(
        &mut self,
        level: Level,
        finding: Finding,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let source = finding.source;
        // By what could be forged nobody loses anything who is known.
        if level == Level::Seen && self.has_standing(&source, now) {
            return;
        }
        // A port of zero names nobody's port; an entry without one would mean all of the address.
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
