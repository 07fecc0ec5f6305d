//! The filter inside a program of one's own: loaded on one interface, with lists that the program
//! writes and events that it reads. Nothing is pinned, so that all of it ends with the [`Filter`],
//! or with the process.
//!
//! The daemon does more: it remembers, follows feeds and host names, outlives restarts, and decides
//! on bans by itself. Use [`daemon::run`](crate::daemon::run) to embed that one.
//!
//! `cargo run --example embed -- eth0 192.0.2.0/24` runs the example `sip-xdp/examples/embed.rs`;
//! in short:
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use sip_xdp::config::Config;
//! use sip_xdp::embed::{Event, Filter};
//! use sip_xdp::net::network::Network;
//!
//! # async fn embed() -> anyhow::Result<()> {
//! let mut filter = Filter::attach(&Config::default(), "eth0").await?;
//! filter.trust("203.0.113.0/24".parse()?, None, "our carrier")?;
//! filter.block("192.0.2.0/24".parse()?, Some(Duration::from_secs(600)), "seen elsewhere")?;
//! while let Some(event) = filter.next_event() {
//!     match event {
//!         Event::Limited { address, port } => println!("{address} port {port} is over a limit"),
//!         Event::Attack { address, finding } => {
//!             println!("{address} attacks: {}", finding.reason);
//!             filter.block(Network::host(address), Some(Duration::from_secs(600)), &finding.reason)?;
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::links::LinkOrder;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{TcAttachType, XdpMode};
use sip_xdp_common::abi::layout::{Counters, EventKind, KernelEvent as Sample, List, Owner};
use sip_xdp_common::abi::names;
use sip_xdp_common::verdict::{Reason, Verdict};

use crate::config::Config;
use crate::dataplane::attach::xdp::{Mode, ModeChoice, cause};
use crate::dataplane::loader;
use crate::dataplane::netlink::Netlink;
use crate::dataplane::probe::Platform;
use crate::dataplane::tables::ledger::Entry;
use crate::detect::{Action, Detector, Finding};
use crate::lists::Lists;
use crate::net::network::{Network, address_of};
use crate::sys::clock;

/// The one interface's place in the counters.
const SLOT: u32 = 0;

/// A filter on one interface; dropping it detaches.
pub struct Filter {
    // Holds the programs, and with them the links.
    _object: Ebpf,
    mode: Mode,
    sees_responses: bool,
    lists: Lists,
    counters: PerCpuArray<MapData, Counters>,
    samples: RingBuf<MapData>,
    detector: Detector,
    events: VecDeque<Event>,
}

/// Something that the filter noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A source is over one of its limits; this packet was dropped. Said at most every 50 ms for
    /// each source.
    Limited {
        /// Who sent it, as far as one can tell: over UDP it may be forged.
        address: IpAddr,
        /// From which port.
        port: u16,
    },
    /// The detector has enough evidence for a ban. To act on it is the caller's.
    Attack {
        /// Whom it is about.
        address: IpAddr,
        /// The evidence.
        finding: Finding,
    },
}

/// Packets to SIP ports, and others that were looked at, since the filter was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packets {
    /// Went on to the network stack.
    pub passed: u64,
    /// Were dropped; in a dry run: would have been.
    pub dropped: u64,
}

impl Filter {
    /// Loads the programs with the limits and rules of a configuration, and attaches them to an
    /// interface. Must be called on a tokio runtime. Of the configuration `interfaces`, lists,
    /// feeds and everything about telling others is not used.
    ///
    /// # Errors
    ///
    /// If a capability is missing (`CAP_BPF`, `CAP_NET_ADMIN`, `CAP_PERFMON`), if there is no such
    /// interface, if its link type is not known, or if another XDP program is on it.
    pub async fn attach(config: &Config, interface: &str) -> Result<Self> {
        Platform::ask().check()?;
        let interfaces = Netlink::connect()?.interfaces().await?;
        let found = interfaces.iter().find(|found| found.name == interface);
        let found = found.with_context(|| format!("there is no interface {interface}"))?;
        let link = found.link.with_context(|| {
            format!("{interface} has a link type that this filter does not know")
        })?;

        let mut object = loader::load(&config.program_settings(link, SLOT), None)?;
        // The lists are complete, though empty, before the first packet asks them.
        let mut take = |name: &str| object.take_map(name).with_context(|| format!("no map {name}"));
        let samples = take(names::EVENTS)?.try_into()?;
        let counters = take(names::COUNTERS)?.try_into()?;
        let lists = Lists::open(take)?;

        let ingress = loader::ingress(&mut object)?;
        let mut attach = |mode: Mode| {
            let xdp = if mode == Mode::Native { XdpMode::Driver } else { XdpMode::Skb };
            ingress.attach_to_if_index(found.index, xdp).map(|_| mode)
        };
        let mode = match config.mode {
            ModeChoice::Native => attach(Mode::Native),
            ModeChoice::Generic => attach(Mode::Generic),
            ModeChoice::Auto => attach(Mode::Native).or_else(|_| attach(Mode::Generic)),
        };
        let mode =
            mode.map_err(|error| anyhow!("{interface} cannot be filtered: {}", cause(&error)))?;
        // Without it, which takes Linux 6.6, limits and lists work, and evidence that rests on
        // responses does not come.
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let egress = loader::egress(&mut object)?;
        let sees_responses =
            egress.attach_with_options(interface, TcAttachType::Egress, options).is_ok();
        let (detector, events) = (Detector::new(config), VecDeque::new());
        Ok(Self {
            _object: object,
            mode,
            sees_responses,
            lists,
            counters,
            samples,
            detector,
            events,
        })
    }

    /// Whether it runs in the driver.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether our own responses are read, on which most evidence rests: not before Linux 6.6.
    pub fn sees_responses(&self) -> bool {
        self.sees_responses
    }

    /// Drops what a network sends to the SIP ports, at once and for as long; without a ttl for
    /// good.
    ///
    /// # Errors
    ///
    /// If the tables are full (`capacity.networks`); nothing is evicted.
    pub fn block(&mut self, network: Network, ttl: Option<Duration>, reason: &str) -> Result<()> {
        self.put(List::Block, network, ttl, reason)
    }

    /// Never drops what a network sends, whatever else lists it.
    ///
    /// # Errors
    ///
    /// If the tables are full (`capacity.networks`); nothing is evicted.
    pub fn trust(&mut self, network: Network, ttl: Option<Duration>, reason: &str) -> Result<()> {
        self.put(List::Trust, network, ttl, reason)
    }

    fn put(
        &mut self,
        list: List,
        network: Network,
        ttl: Option<Duration>,
        reason: &str,
    ) -> Result<()> {
        Ok(self.lists.put(list, Entry::manual(network, clock::after(ttl), reason))?)
    }

    /// Takes a network off the block list; whether it was there.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to change its tables.
    pub fn unblock(&mut self, network: Network) -> Result<bool> {
        Ok(self.lists.remove(List::Block, &network, Owner::Manual)?.is_some())
    }

    /// Takes a network off the trust list; whether it was there.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to change its tables.
    pub fn distrust(&mut self, network: Network) -> Result<bool> {
        Ok(self.lists.remove(List::Trust, &network, Owner::Manual)?.is_some())
    }

    /// How many packets of a blocked network were dropped.
    pub fn hits(&self, network: Network) -> u64 {
        self.lists.hits(&network)
    }

    /// The next event, if there is one. Ask often: the kernel keeps a few thousand samples, and
    /// drops what finds no room.
    pub fn next_event(&mut self) -> Option<Event> {
        while self.events.is_empty() {
            let sample: Sample = bytemuck::try_pod_read_unaligned(&self.samples.next()?).ok()?;
            if EventKind::from_number(sample.kind) == Some(EventKind::Limited) {
                self.events.push_back(Event::Limited {
                    address: address_of(sample.source),
                    port: sample.port,
                });
            }
            let actions = self.detector.observe(&sample);
            self.judge(actions);
        }
        self.events.pop_front()
    }

    /// Lets time pass for the detector: some evidence is that nothing has followed. Call it about
    /// once a second.
    pub fn tick(&mut self) {
        let now = clock::now();
        let actions = self.detector.tick(now);
        self.judge(actions);
        self.detector.tidy(now);
    }

    fn judge(&mut self, actions: Vec<Action>) {
        self.events.extend(actions.into_iter().filter_map(|action| match action {
            Action::Ban(finding) => {
                Some(Event::Attack { address: address_of(finding.source), finding })
            }
            _ => None,
        }));
    }

    /// What became of the packets so far.
    ///
    /// # Errors
    ///
    /// If the kernel's counters cannot be read.
    pub fn packets(&self) -> Result<Packets> {
        let per_cpu = self.counters.get(&SLOT, 0).context("the counters cannot be read")?;
        let mut packets = Packets::default();
        for counters in per_cpu.iter() {
            for reason in Reason::ALL {
                let count = counters.packets[reason as usize];
                if reason.verdict() == Verdict::Drop {
                    packets.dropped += count
                } else {
                    packets.passed += count
                }
                packets.dropped += counters.would_drop[reason as usize];
            }
        }
        Ok(packets)
    }

    /// Takes the filter off the interface, as dropping it does.
    pub fn detach(self) {}
}
