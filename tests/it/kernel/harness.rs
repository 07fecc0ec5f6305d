//! A private filter: its own maps, a settable clock, and an outcome per frame.

use std::cell::RefCell;

use aya::Ebpf;
use aya::maps::{Array, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{TestRun, TestRunOptions};
use nix::sched::sched_getcpu;
use sip_xdp::dataplane::loader::{self, Capacity, Ports, Settings};
use sip_xdp::dataplane::tables::ledger::Entry;
use sip_xdp::dataplane::tables::meters::Sources;
use sip_xdp::lists::Lists;
use sip_xdp_common::abi::layout::{
    CLOCK_DEADLINE, CLOCK_TIME, Counters, KernelEvent, List, Responses,
};
use sip_xdp_common::abi::names;
use sip_xdp_common::limits::gcra::{Limit, Limits, Pace, STREAM};
use sip_xdp_common::limits::storm::StormLimits;
use sip_xdp_common::packet::headers::{Inspects, Link};
use sip_xdp_common::pipeline::egress::Answer;
use sip_xdp_common::verdict::{Message, Reason};
use sip_xdp_tests::cpu::stay_on;
use sip_xdp_tests::private::Maps;

pub(crate) const SECOND: u64 = 1_000_000_000;

/// Where tests start the clock.
pub(crate) const START: u64 = 1_000 * SECOND;

/// The program's decision on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// `XDP_DROP`, not `XDP_PASS`.
    pub(crate) dropped: bool,
    pub(crate) reason: Reason,
    pub(crate) message: Option<Message>,
    /// Counted under `would_drop`.
    pub(crate) would: bool,
}

pub(crate) fn limits() -> Limits {
    Limits {
        register: Pace::new(100, 60 * SECOND),
        requests: Pace::new(50, 10 * SECOND),
        other: Pace::new(300, 10 * SECOND),
        fragments: Pace::new(10, 10 * SECOND),
        connections: Pace::new(60, 10 * SECOND),
        stream: STREAM,
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        ports: Ports::new([(5060, 5061)]),
        limits: limits(),
        good: Pace::with_burst(400, SECOND, 4_000),
        storm: StormLimits::new(2_000, SECOND, Limit::new(500, SECOND)),
        ipv6_prefix: 64,
        scope_all: false,
        closed: false,
        dry_run: false,
        trial: false,
        inspects: Inspects::ALL,
        link: Link::Ethernet,
        slot: 0,
        clock_from_map: true,
        capacity: Capacity { networks: 1_024, sources: 65_536 },
    }
}

pub(crate) struct Kernel {
    object: Ebpf,
    clock: Array<MapData, u64>,
    counters: PerCpuArray<MapData, Counters>,
    pub(crate) sources: Sources,
    pub(crate) lists: Lists,
    responses: PerCpuArray<MapData, Responses>,
    events: RingBuf<MapData>,
    maps: Maps,
    last: RefCell<Counters>,
}

impl Kernel {
    pub(crate) fn new(settings: &Settings) -> Self {
        assert!(
            is_root(),
            "this test loads a BPF program and needs root: run `sudo -E cargo xtask test`"
        );
        // Budgets of samples and events are those of one CPU.
        sched_getcpu()
            .map_err(anyhow::Error::from)
            .and_then(stay_on)
            .expect("the test stays on one CPU");
        let mut object = loader::load(settings, None).expect("the kernel takes the program");
        let maps = Maps::of(&object).unwrap();
        let mut take =
            |name: &str| object.take_map(name).unwrap_or_else(|| panic!("no map {name}"));
        let clock = take(names::CLOCK).try_into().unwrap();
        let counters: PerCpuArray<_, Counters> = take(names::COUNTERS).try_into().unwrap();
        let responses = take(names::RESPONSES).try_into().unwrap();
        let events = take(names::EVENTS).try_into().unwrap();
        let lists = Lists::open(|name| maps.open(name)).unwrap();
        let sources = Sources::open(|name| maps.open(name)).unwrap();
        let last = RefCell::new(sum(&counters, settings.slot));
        let mut kernel =
            Self { object, clock, counters, sources, lists, responses, events, maps, last };
        kernel.set_clock(START);
        kernel
    }

    pub(crate) fn set_clock(&mut self, now: u64) {
        self.clock.set(CLOCK_TIME, now, 0).unwrap();
    }

    /// Sets the end of a trial, 0 for none.
    pub(crate) fn set_deadline(&mut self, deadline: u64) {
        self.clock.set(CLOCK_DEADLINE, deadline, 0).unwrap();
    }

    /// Lists a network until `expires`.
    pub(crate) fn list(&mut self, list: List, network: &str, expires: u64) {
        self.lists.put(list, Entry::manual(network.parse().unwrap(), expires, "test")).unwrap();
    }

    /// Runs one frame. BPF_PROG_TEST_RUN takes no fewer than 14 bytes.
    pub(crate) fn run(&mut self, frame: &[u8]) -> Outcome {
        let action = self.action(frame);
        let now = sum(&self.counters, 0);
        let last = self.last.replace(now);
        let one = |now: &[u64], last: &[u64]| -> Option<usize> {
            let changed: Vec<usize> = (0..now.len()).filter(|n| now[*n] != last[*n]).collect();
            assert!(
                changed.len() <= 1 && changed.iter().all(|n| now[*n] == last[*n] + 1),
                "counted more than once"
            );
            changed.first().copied()
        };
        let counted = one(&now.packets, &last.packets);
        let would = one(&now.would_drop, &last.would_drop);
        assert!(counted.is_some() != would.is_some(), "not counted exactly once");
        let reason = Reason::ALL[counted.or(would).unwrap()];
        let bytes = now.bytes.iter().chain(&now.would_drop_bytes).sum::<u64>()
            - last.bytes.iter().chain(&last.would_drop_bytes).sum::<u64>();
        assert_eq!(bytes, frame.len() as u64, "all bytes are counted");
        let message = one(&now.messages, &last.messages).map(|n| Message::ALL[n]);
        assert!(matches!(action, 1 | 2), "action {action}");
        Outcome { dropped: action == 1, reason, message, would: would.is_some() }
    }

    /// The action for one frame, without the counters.
    pub(crate) fn action(&mut self, frame: &[u8]) -> u32 {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        loader::ingress(&mut self.object)
            .unwrap()
            .test_run(options)
            .expect("a test run")
            .return_value
    }

    /// All counters so far.
    pub(crate) fn counted(&self) -> Counters {
        sum(&self.counters, 0)
    }

    /// Synchronises the counters of [`Kernel::run`] after frames that it has not seen.
    pub(crate) fn catch_up(&mut self) {
        self.last.replace(sum(&self.counters, 0));
    }

    /// Runs one frame through the egress program, which must continue, and returns its class.
    pub(crate) fn leave(&mut self, frame: &[u8]) -> Option<Answer> {
        let before = self.answers();
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() };
        let result =
            loader::egress(&mut self.object).unwrap().test_run(options).expect("a test run");
        assert_eq!(result.return_value as i32, -1, "not TCX_NEXT");
        let after = self.answers();
        let all = [Answer::Accepted, Answer::Challenged, Answer::Refused, Answer::Other];
        all.into_iter().find(|answer| after[*answer as usize] != before[*answer as usize])
    }

    fn answers(&self) -> [u64; Answer::COUNT] {
        let per_cpu = self.responses.get(&0, 0).unwrap();
        std::array::from_fn(|n| per_cpu.iter().map(|one| one.packets[n]).sum())
    }

    /// Nanoseconds per run, averaged by the kernel.
    pub(crate) fn cost(&mut self, frame: &[u8], repeat: u32) -> u128 {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        loader::ingress(&mut self.object)
            .unwrap()
            .test_run(options)
            .expect("a test run")
            .duration
            .as_nanos()
    }

    /// Instructions that the verifier processed, ingress and egress.
    pub(crate) fn verified_instructions(&mut self) -> [u32; 2] {
        let ingress = loader::ingress(&mut self.object).unwrap().info().unwrap();
        let egress = loader::egress(&mut self.object).unwrap().info().unwrap();
        [ingress, egress]
            .map(|info| info.verified_instruction_count().expect("Linux 5.16 or newer"))
    }

    /// A second handle on the maps of the lists, as the next daemon would have.
    pub(crate) fn map_again(&self, name: &str) -> anyhow::Result<Map> {
        self.maps.open(name)
    }

    /// Lets the next daemon open the lists.
    pub(crate) fn reopen(&mut self) {
        self.lists = Lists::open(|name| self.maps.open(name)).unwrap();
    }

    /// The events since the last call.
    pub(crate) fn events(&mut self) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            events.push(bytemuck::pod_read_unaligned(&item));
        }
        events
    }
}

fn sum(counters: &PerCpuArray<MapData, Counters>, slot: u32) -> Counters {
    let per_cpu = counters.get(&slot, 0).unwrap();
    let mut words = vec![0_u64; size_of::<Counters>() / 8];
    for cpu in per_cpu.iter() {
        words
            .iter_mut()
            .zip(bytemuck::cast_slice::<Counters, u64>(&[*cpu]))
            .for_each(|(sum, one)| *sum += one);
    }
    *bytemuck::from_bytes(bytemuck::cast_slice(&words))
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
    })
}
