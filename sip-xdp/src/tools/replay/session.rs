//! A replay without a capture: whoever reacts to what becomes of a packet hands in one frame after
//! the other, each at its time.

use std::net::IpAddr;

use anyhow::Result;
use bytemuck::Zeroable as _;
use sip_xdp_common::abi::layout::KernelEvent;
use sip_xdp_common::verdict::{Reason, Verdict};

use super::kernel::{Kernel, OneCpu};
use super::registrar::Registrar;
use super::{Buffers, Packet, Replay};
use crate::config::Config;
use crate::dataplane::tables::ledger::Tier;
use crate::net::network::{Network, address_of};

/// The link type of Ethernet in capture files (tcpdump's `LINKTYPE_ETHERNET`).
const ETHERNET: i32 = 1;

/// A replay that is fed frame by frame. It keeps its thread on one CPU while it lives.
pub struct Session<'c> {
    replay: Replay<'c>,
    buffers: Buffers,
    _cpu: OneCpu,
}

/// A ban that is the outcome of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionBan {
    /// Whom it hit.
    pub network: Network,
    /// The port, if one flow was banned.
    pub port: Option<u16>,
    /// Which kind of evidence led to it.
    pub kind: String,
    /// Whether the evidence could not have been forged.
    pub is_proven: bool,
    /// Its length in seconds.
    pub length: u64,
    /// Start, in milliseconds since 1970.
    pub at: i64,
    /// The evidence in words.
    pub reason: String,
}

impl<'c> Session<'c> {
    /// Loads the programs as `config` says, enforcing, for a host with these addresses.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the programs, or the thread cannot stay on one CPU.
    pub fn new(config: &'c Config, registrar: Vec<Network>) -> Result<Self> {
        let cpu = OneCpu::take()?;
        let replay = Replay::new(config, Registrar::named(registrar), Kernel::load(config)?)?;
        let buffers = Buffers { frame: Vec::new(), event: Box::new(KernelEvent::zeroed()) };
        Ok(Self { replay, buffers, _cpu: cpu })
    }

    /// Hands in an Ethernet frame at a time in nanoseconds since 1970; times do not go back. Says
    /// why it passed or was dropped; nothing for a frame that leaves, or is for somebody else.
    ///
    /// # Errors
    ///
    /// If the kernel does not run its program.
    pub fn frame(&mut self, at: u64, frame: &[u8]) -> Result<Option<Reason>> {
        let length = frame.len() as u32;
        let packet = Packet { at, link: ETHERNET, length, data: frame, is_any: false };
        self.replay.judged = None;
        self.replay.take(&packet, &mut self.buffers)?;
        Ok(self.replay.judged)
    }

    /// Whether a frame that arrives goes on to the host.
    ///
    /// # Errors
    ///
    /// As [`Session::frame`].
    pub fn arrives(&mut self, at: u64, frame: &[u8]) -> Result<bool> {
        Ok(self.frame(at, frame)?.is_some_and(|reason| reason.verdict() == Verdict::Pass))
    }

    /// All bans so far, in the order of time.
    pub fn bans(&self) -> impl Iterator<Item = SessionBan> + '_ {
        self.replay.timeline.bans.iter().map(|ban| SessionBan {
            network: ban.network,
            port: ban.port,
            kind: ban.kind.clone(),
            is_proven: ban.tier == Some(Tier::Proven),
            length: ban.length,
            at: ban.at.as_millisecond(),
            reason: ban.reason.clone(),
        })
    }

    /// Packets that a source has lost to limits and bans so far.
    pub fn lost(&self, address: IpAddr) -> u64 {
        let all = self.replay.timeline.tallies.iter();
        all.filter(|(source, _)| address_of(**source) == address)
            .map(|(_, tally)| tally.all.dropped)
            .sum()
    }

    /// Decisions so far, by name: `ban`, `suspect`, `sprayed` and so on, whom they are about, and
    /// why.
    pub fn events(&self) -> impl Iterator<Item = (String, Option<Network>, String)> + '_ {
        self.replay.timeline.events.iter().map(|event| {
            let reason = event.reason.as_deref().unwrap_or_default().to_owned();
            (event.event.to_string(), event.address, reason)
        })
    }
}
