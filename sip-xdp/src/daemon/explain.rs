//! The daemon's part of `explain`: what is not in the kernel's tables.

use std::net::IpAddr;

use anyhow::Result;

use super::Daemon;
use crate::api::answers::Known;
use crate::config::SourceRules;
use crate::net::network::{Network, source_of};
use crate::sys::clock;

impl Daemon {
    /// Evidence, and what is in force.
    pub(super) fn explain(&self, address: IpAddr) -> Result<Known> {
        let now = clock::now();
        let never_banned = self.ban_exemption(&Network::host(address), now);
        let mut known = self.detector.explain(&source_of(address), now);
        if never_banned.is_some() {
            // The detector knows of no exemptions.
            known.refused.clear();
        }
        Ok(Known {
            settings: SourceRules::from(&self.config),
            known,
            never_banned,
            learning: now < self.learning_until,
            registrar_failing: self.detector.registrar_is_failing(now),
        })
    }
}
