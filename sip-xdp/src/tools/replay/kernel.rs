//! The kernel programs on private maps: never attached, never pinned, with a settable clock.
//! Everything ends with the process.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use sip_xdp_common::abi::layout::{
    CLOCK_OUTCOME, CLOCK_TIME, CpuState, KernelEvent, Responses, message_of, reason_of,
};
use sip_xdp_common::abi::names;
use sip_xdp_common::limits::gcra::{Limits, Pace};
use sip_xdp_common::packet::headers::Link;
use sip_xdp_common::pipeline::egress::Answer;
use sip_xdp_common::verdict::{Message, Reason};

use super::ring::Ring;
use crate::config::Config;
use crate::dataplane::loader::{self, Settings};
use crate::dataplane::mmap::{Mapped, View};
use crate::lists::Lists;

/// Minimum frame length of BPF_PROG_TEST_RUN (`ETH_HLEN` in net/bpf/test_run.c).
pub(super) const SHORTEST: usize = 14;

/// How much of a frame is shown to the programs: more than they look at or hand on, so that nothing
/// else changes, and less than BPF_PROG_TEST_RUN takes, which is about a page.
const SHOWN: usize = 2_048;

fn shown(frame: &[u8]) -> Option<&[u8]> {
    Some(&frame[..frame.len().min(SHOWN)])
}

/// The programs.
pub(super) struct Kernel {
    object: Ebpf,
    /// The map of the settable clock.
    clock: View,
    events: Ring,
    responses: PerCpuArray<MapData, Responses>,
    cpu_states: PerCpuArray<MapData, CpuState>,
}

impl Kernel {
    /// Loads them with a configuration, but enforcing, and opens their lists.
    pub(super) fn load(config: &Config) -> Result<(Self, Lists)> {
        let settings = config.program_settings(Link::Ethernet, 0);
        let settings = Settings {
            clock_from_map: true,
            dry_run: false,
            // What is dropped of a connection would have come later, which the capture cannot show.
            limits: Limits { stream: Pace::NONE, ..settings.limits },
            ..settings
        };
        let mut object = loader::load(&settings, None)?;
        let mut take = |name: &str| -> Result<Map> {
            object.take_map(name).with_context(|| format!("no map {name}"))
        };
        let clock = Mapped::new(take(names::CLOCK)?)?.all()?;
        let events = Ring::new(take(names::EVENTS)?)?;
        let responses = take(names::RESPONSES)?.try_into()?;
        let cpu_states = take(names::CPU_STATE)?.try_into()?;
        let mut lists = Lists::open(take)?;
        lists.keep_mapped()?;
        Ok((Self { object, clock, events, responses, cpu_states }, lists))
    }

    /// Sets the filter's clock.
    pub(super) fn set_clock(&self, now: u64) {
        self.clock.words()[CLOCK_TIME as usize].store(now, Ordering::Relaxed);
    }

    /// Runs the ingress program on a frame. Returns the reason and the message kind.
    pub(super) fn arrive(&mut self, frame: &[u8]) -> Result<(Reason, Option<Message>)> {
        let options = TestRunOptions { data_in: shown(frame), ..TestRunOptions::new() };
        loader::ingress(&mut self.object)?
            .test_run(options)
            .context("the kernel does not run its program")?;
        let outcome = self.clock.words()[CLOCK_OUTCOME as usize].load(Ordering::Relaxed);
        let reason =
            reason_of(outcome).ok_or_else(|| anyhow!("the program gives reason {outcome:#x}"))?;
        Ok((reason, message_of(outcome)))
    }

    /// Runs the egress program on a frame.
    pub(super) fn leave(&mut self, frame: &[u8]) -> Result<()> {
        let options = TestRunOptions { data_in: shown(frame), ..TestRunOptions::new() };
        loader::egress(&mut self.object)?
            .test_run(options)
            .context("the kernel does not run its program")?;
        Ok(())
    }

    /// Copies the next event to `event`, and returns whether there is one.
    pub(super) fn event(&mut self, event: &mut KernelEvent) -> bool {
        self.events.next(event)
    }

    /// Number of final responses by class.
    pub(super) fn answers(&self) -> Result<[u64; Answer::COUNT]> {
        let per_cpu = self.responses.get(&0, 0).context("the responses cannot be read")?;
        Ok(std::array::from_fn(|kind| per_cpu.iter().map(|one| one.packets[kind]).sum()))
    }

    /// Number of lost samples and events, as on a host with one CPU.
    pub(super) fn lost(&self) -> Result<u64> {
        let states = self.cpu_states.get(&0, 0).context("the CPUs' states cannot be read")?;
        Ok(states.iter().map(|state| state.lost_events + state.lost_samples).sum())
    }
}

/// Pins this thread to one CPU while it lives: sample budgets are per CPU, and a replay must be
/// reproducible.
pub(super) struct OneCpu(CpuSet);

impl OneCpu {
    /// Pins the current thread.
    pub(super) fn take() -> Result<Self> {
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this).context("the CPUs that may be used are not known")?;
        // The one where it runs: replays beside each other then share all CPUs.
        let here = sched_getcpu().context("the CPU that this runs on is not known")?;
        let mut one = CpuSet::new();
        one.set(here)?;
        sched_setaffinity(this, &one).context("the thread cannot stay on one CPU")?;
        Ok(Self(before))
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}
