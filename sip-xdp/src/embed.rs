//! The filter as a library: loaded on one interface, with lists that the program writes and events
//! that it reads. Nothing is pinned, so that everything ends with the [`Filter`], or with the
//! process.
//!
//! The daemon adds persistence, feeds, host names, restarts without a gap, and automatic bans. Use
//! [`daemon::run`](crate::daemon::run) to embed that.
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
//! let ten_minutes = Some(Duration::from_secs(600));
//! let mut filter = Filter::attach(&Config::default(), "eth0").await?;
//! filter.trust("203.0.113.0/24".parse()?, None, "our carrier")?;
//! filter.block("192.0.2.0/24".parse()?, ten_minutes, "seen elsewhere")?;
//! while let Some(event) = filter.next_event() {
//!     match event {
//!         Event::Limited { address, port } => println!("{address} port {port} is over a limit"),
//!         Event::Attack { address, finding } => {
//!             println!("{address} attacks: {}", finding.reason);
//!             filter.block(Network::host(address), ten_minutes, &finding.reason)?;
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

/// The only interface's slot in the counters.
const SLOT: u32 = 0;

/// A filter on one interface; dropping it detaches.
pub struct Filter {
    // Owns the programs, and with them the links.
    _object: Ebpf,
    mode: Mode,
    sees_responses: bool,
    lists: Lists,
    counters: PerCpuArray<MapData, Counters>,
    samples: RingBuf<MapData>,
    detector: Detector,
    events: VecDeque<Event>,
}

/// An observation of the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A source is over one of its limits; this packet was dropped. At most every 50 ms per source.
    Limited {
        /// Source address; over UDP it may be forged.
        address: IpAddr,
        /// Source port.
        port: u16,
    },
    /// The detector has enough evidence for a ban, which is up to the caller.
    Attack {
        /// Source address.
        address: IpAddr,
        /// The evidence.
        finding: Finding,
    },
}

/// Packets to SIP ports, and other inspected ones, since the filter was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packets {
    /// Passed to the network stack.
    pub passed: u64,
    /// Dropped; in a dry run: those that enforcement would drop.
    pub dropped: u64,
}

impl Filter {
    /// Loads the programs with the limits and rules of a configuration, and attaches them to an
    /// interface. Must be called on a tokio runtime. `interfaces`, lists, feeds and integrations of
    /// the configuration are not used.
    ///
    /// # Errors
    ///
    /// If a capability is missing (`CAP_BPF`, `CAP_NET_ADMIN`, `CAP_PERFMON`), if the interface
    /// does not exist, if its link type is not supported, or if another XDP program is attached to
    /// it.
    pub async fn attach(config: &Config, interface: &str) -> Result<Self> {
        Platform::ask().check()?;
        let interfaces = Netlink::connect()?.interfaces().await?;
        let found = interfaces.iter().find(|found| found.name == interface);
        let found = found.with_context(|| format!("there is no interface {interface}"))?;
        let link = found.link.with_context(|| {
            format!("{interface} has a link type that this filter does not know")
        })?;

        let mut object = loader::load(&config.program_settings(link, SLOT), None)?;
        // The lists are initialised, though empty, before the first packet.
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
        // Without tcx (Linux 6.6) limits and lists work, but evidence from responses is missing.
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

    /// The attach mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the server's responses are seen, which most evidence needs: since Linux 6.6.
    pub fn sees_responses(&self) -> bool {
        self.sees_responses
    }

    /// Drops packets of a network to the SIP ports, from now on; permanently without a ttl.
    ///
    /// # Errors
    ///
    /// If the tables are full (`capacity.networks`); nothing is evicted.
    pub fn block(&mut self, network: Network, ttl: Option<Duration>, reason: &str) -> Result<()> {
        self.put(List::Block, network, ttl, reason)
    }

    /// Never drops packets of a network, whatever else lists it.
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

    /// Removes a network from the block list. Returns whether it was listed.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to change its tables.
    pub fn unblock(&mut self, network: Network) -> Result<bool> {
        Ok(self.lists.remove(List::Block, &network, Owner::Manual)?.is_some())
    }

    /// Removes a network from the trust list. Returns whether it was listed.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to change its tables.
    pub fn distrust(&mut self, network: Network) -> Result<bool> {
        Ok(self.lists.remove(List::Trust, &network, Owner::Manual)?.is_some())
    }

    /// Number of packets dropped for a blocked network.
    pub fn hits(&self, network: Network) -> u64 {
        self.lists.hits(&network)
    }

    /// The next event, if there is one. Poll often: the kernel buffers a few thousand samples, and
    /// drops further ones.
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

    /// Evaluates evidence that depends on elapsed time, such as missing responses. Call it about
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

    /// Packet counts so far.
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

    /// Detaches the filter, as dropping it does.
    pub fn detach(self) {}
}
