//! Ends the TCP connections of banned sources: their packets no longer arrive, so a server would
//! keep a worker waiting for each. A thread of its own destroys the sockets; the daemon waits for
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use caps::Capability;
use sip_xdp_common::abi::layout::{List, Owner};
use sip_xdp_common::ip_key::IpKey;

use super::Daemon;
use crate::api::answers::SocketsStatus;
use crate::config::PortRange;
use crate::dataplane::tables::ledger::{Entry, Tier};
use crate::dataplane::tcp_sockets::{Destruction, SockDiag};
use crate::lists::Lists;
use crate::net::network::{Network, source_of};
use crate::net::prefix_set::Prefixes;
use crate::sys::{clock, privileges};

/// Bans that may wait for the thread; further ones are counted as lost.
const WAITING: usize = 1_024;

/// Whose connections are to end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ended {
    /// The banned network.
    network: Network,
    /// The banned port of it, if only that is.
    port: Option<u16>,
    /// Trusted networks in it.
    trusted: Vec<Network>,
    /// Known-good ports in it, which go on under a ban that nobody has commanded.
    good: BTreeSet<(IpKey, u16)>,
}

/// What the thread is asked for at once.
#[derive(Debug)]
struct Order {
    /// Ports of the SIP server on this host.
    ports: Vec<PortRange>,
    ended: Vec<Ended>,
}

/// What the thread has done.
#[derive(Debug, Default)]
struct Counts {
    destroyed: AtomicU64,
    lost: AtomicU64,
    error: Mutex<Option<String>>,
    is_said: AtomicBool,
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct SocketDestroyer {
    queue: SyncSender<Order>,
    counts: Arc<Counts>,
}

impl SocketDestroyer {
    /// Starts the thread, which needs `CAP_NET_ADMIN`.
    pub(super) fn start() -> Self {
        let (queue, wanted) = sync_channel(WAITING);
        let counts = Arc::<Counts>::default();
        let run = {
            let counts = Arc::clone(&counts);
            move || run(&wanted, &counts)
        };
        if let Err(error) = thread::Builder::new().name("sockets".to_owned()).spawn(run) {
            counts.fail(&error);
        }
        Self { queue, counts }
    }

    /// Ends the connections of what entries block, where all of it is blocked for TCP as well.
    /// Called when the kernel drops its packets already, so that no connection comes up afterwards.
    pub(super) fn end<'a>(
        &self,
        entries: impl IntoIterator<Item = &'a Entry>,
        lists: &Lists,
        ports: &[PortRange],
        now: u64,
    ) {
        let ended: Vec<Ended> = entries
            .into_iter()
            .filter(|entry| ends_connections(entry) && !lists.trusts(&entry.network, now))
            .map(|entry| {
                let network = entry.network;
                let by_evidence = entry.owner == Owner::Auto;
                let good = by_evidence.then(|| lists.good_flows_within(&network, now));
                let trusted = lists.trusted_within(&network, now);
                Ended { network, port: entry.port, trusted, good: good.unwrap_or_default() }
            })
            .collect();
        if ended.is_empty() {
            return;
        }
        let count = ended.len() as u64;
        // If there is no thread, the error says so.
        if self.queue.try_send(Order { ports: ports.to_vec(), ended }).is_err() {
            self.counts.lost.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Its fields in `status`.
    pub(super) fn status(&self) -> SocketsStatus {
        SocketsStatus {
            destroyed: self.counts.destroyed.load(Ordering::Relaxed),
            lost: self.counts.lost.load(Ordering::Relaxed),
            error: self.counts.error(),
        }
    }

    /// What an operator should know.
    pub(super) fn warning(&self) -> Option<String> {
        let error = self.counts.error()?;
        Some(format!(
            "TCP connections of banned sources stay open until the SIP server ends them: {error}"
        ))
    }
}

impl Daemon {
    /// Ends the TCP connections of networks, as far as entries of the block list demand it.
    pub(super) fn end_connections(&self, networks: impl IntoIterator<Item = Network>) {
        if self.config.dry_run || self.confirmation.is_missed() {
            return;
        }
        let entries =
            networks.into_iter().flat_map(|network| self.lists.owners(List::Block, &network));
        self.sockets.end(entries, &self.lists, &self.config.ports, clock::now());
    }
}

/// Whether an entry blocks TCP as well: evidence that could be forged does not.
fn ends_connections(entry: &Entry) -> bool {
    let is_level_1 = entry.owner != Owner::Auto || entry.tier == Some(Tier::Proven);
    !entry.dry_run && is_level_1
}

impl Counts {
    fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, error: &io::Error) {
        let text = describe(error);
        if !self.is_said.swap(true, Ordering::Relaxed) {
            log::warn!("TCP connections of banned sources stay open: {text}");
        }
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }
}

fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL) => {
            "the kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY, and the module tcp_diag)"
                .to_owned()
        }
        Some(libc::EPERM) => "destroying sockets needs CAP_NET_ADMIN".to_owned(),
        _ => format!("the kernel's sock_diag fails ({error})"),
    }
}

fn run(wanted: &Receiver<Order>, counts: &Counts) {
    privileges::keep(&[Capability::CAP_NET_ADMIN]);
    while let Ok(first) = wanted.recv() {
        // All that wait are served by one look at the sockets.
        let mut targets = Targets::default();
        std::iter::once(first).chain(wanted.try_iter()).for_each(|order| targets.add(order));
        match destroy(&targets, counts) {
            Ok(()) => *counts.error.lock().unwrap_or_else(PoisonError::into_inner) = None,
            Err(error) => counts.fail(&error),
        }
    }
}

fn destroy(targets: &Targets, counts: &Counts) -> io::Result<()> {
    let diag = SockDiag::open()?;
    let mut destroyed: BTreeMap<Network, u64> = BTreeMap::new();
    let mut result = Ok(());
    for socket in diag.connected(|socket| targets.hit(socket.port, socket.peer).is_some())? {
        match diag.destroy(&socket) {
            Ok(Destruction::Done) => {
                counts.destroyed.fetch_add(1, Ordering::Relaxed);
                if let Some(network) = targets.hit(socket.port, socket.peer) {
                    *destroyed.entry(network).or_default() += 1;
                }
            }
            Ok(Destruction::Gone) => {}
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    for (network, destroyed) in destroyed {
        log::info!("disconnect {network} connections={destroyed}");
    }
    result
}

/// Networks whose connections are to end, for look-ups by socket.
#[derive(Debug, Default)]
struct Targets {
    ports: Vec<PortRange>,
    networks: Prefixes,
    by_network: BTreeMap<Network, Ended>,
    /// Banned ports of addresses.
    flows: BTreeMap<(IpKey, u16), Network>,
}

impl Targets {
    fn add(&mut self, order: Order) {
        self.ports = order.ports;
        for mut ended in order.ended {
            let network = ended.network;
            if let Some(port) = ended.port {
                self.flows.insert((network.first(), port), network);
                continue;
            }
            self.networks.insert(network, u64::MAX);
            // What one of two entries of a network does not spare goes.
            if let Some(before) = self.by_network.remove(&network) {
                ended.good.retain(|flow| before.good.contains(flow));
            }
            self.by_network.insert(network, ended);
        }
    }

    /// The network for which a socket is to be destroyed.
    fn hit(&self, port: u16, peer: SocketAddr) -> Option<Network> {
        let host = Network::host(peer.ip());
        let flow = (source_of(peer.ip()), peer.port());
        if !self.ports.iter().any(|range| (range.first..=range.last).contains(&port)) {
            return None;
        }
        let by_network = self.networks.covering(&host).find_map(|(network, _)| {
            let ended = self.by_network.get(&network)?;
            let is_trusted = ended.trusted.iter().any(|trusted| trusted.contains(&host));
            (!is_trusted && !ended.good.contains(&flow)).then_some(network)
        });
        by_network.or_else(|| self.flows.get(&flow).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(network: &str) -> Ended {
        let network = network.parse().unwrap();
        Ended { network, port: None, trusted: Vec::new(), good: BTreeSet::new() }
    }

    fn targets(ended: Vec<Ended>) -> Targets {
        let mut targets = Targets::default();
        let ports = vec![PortRange { first: 5_060, last: 5_061 }];
        targets.add(Order { ports, ended });
        targets
    }

    fn hit(targets: &Targets, port: u16, peer: &str) -> Option<String> {
        targets.hit(port, peer.parse().unwrap()).map(|network| network.to_string())
    }

    #[test]
    fn only_sip_ports_and_only_who_is_banned() {
        let all = ["192.0.2.7", "198.51.100.0/24", "2001:db8:1::/64"];
        let targets = targets(all.into_iter().map(ended).collect());
        for (port, peer, expected) in [
            (5_060, "192.0.2.7:40000", Some("192.0.2.7")),
            (5_061, "192.0.2.7:1", Some("192.0.2.7")),
            (22, "192.0.2.7:40000", None),
            (5_062, "192.0.2.7:40000", None),
            (5_060, "192.0.2.8:40000", None),
            (5_060, "198.51.100.200:9", Some("198.51.100.0/24")),
            (5_061, "[2001:db8:1::9]:9", Some("2001:db8:1::/64")),
            (5_061, "[2001:db8:2::9]:9", None),
        ] {
            assert_eq!(hit(&targets, port, peer).as_deref(), expected, "{port} {peer}");
        }
        assert_eq!(hit(&Targets::default(), 5_060, "192.0.2.7:1"), None);
    }

    #[test]
    fn only_what_blocks_tcp_ends_connections() {
        let command = Entry::manual("192.0.2.7".parse().unwrap(), 9, "by hand");
        let ban = Entry { owner: Owner::Auto, tier: Some(Tier::Proven), ..command.clone() };
        let tool = Entry { owner: Owner::Tool, ..command.clone() };
        let port = Entry { port: Some(5_062), ..ban.clone() };
        assert!([&command, &ban, &tool, &port].into_iter().all(ends_connections));
        for spared in
            [Entry { tier: Some(Tier::Unproven), ..ban.clone() }, Entry { dry_run: true, ..ban }]
        {
            assert!(!ends_connections(&spared), "{spared:?}");
        }
    }

    #[test]
    fn of_a_banned_port_only_its_connection_ends() {
        let port = Ended { port: Some(50_000), ..ended("192.0.2.7") };
        let targets = targets(vec![port, ended("192.0.2.9")]);
        for (peer, expected) in [
            ("192.0.2.7:50000", Some("192.0.2.7")),
            ("192.0.2.7:50001", None),
            ("192.0.2.9:50001", Some("192.0.2.9")),
        ] {
            assert_eq!(hit(&targets, 5_060, peer).as_deref(), expected, "{peer}");
        }
        assert_eq!(hit(&targets, 22, "192.0.2.7:50000"), None);
    }

    #[test]
    fn trusted_hosts_and_known_good_connections_are_spared() {
        let good = BTreeSet::from([(source_of("192.0.2.9".parse().unwrap()), 50_000)]);
        let trusted = vec!["192.0.2.64/28".parse().unwrap()];
        let ban = Ended { trusted, good, ..ended("192.0.2.0/24") };
        let by_evidence = targets(vec![ban.clone()]);
        assert_eq!(hit(&by_evidence, 5_060, "192.0.2.65:1"), None);
        assert_eq!(hit(&by_evidence, 5_060, "192.0.2.9:50000"), None);
        assert!(hit(&by_evidence, 5_060, "192.0.2.9:50001").is_some());
        // An operator's command for the same network, or a narrower one, spares no phone.
        let command = Ended { good: BTreeSet::new(), ..ban.clone() };
        let both = targets(vec![ban.clone(), command]);
        assert!(hit(&both, 5_060, "192.0.2.9:50000").is_some());
        assert_eq!(hit(&both, 5_060, "192.0.2.65:1"), None);
        let narrower = targets(vec![ban, ended("192.0.2.9")]);
        assert_eq!(hit(&narrower, 5_060, "192.0.2.9:50000").as_deref(), Some("192.0.2.9"));
    }
}
