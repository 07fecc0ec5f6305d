//! All feeds, with their states, and the channel of their updates to the daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, channel};
use std::thread;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sip_xdp_common::abi::layout::List;
use tokio::sync::{mpsc, watch};

use super::formats::Tally;
use super::guards::{ProtectedSet, trim};
use super::saved;
use super::sync::Last;
use super::thread::{Follower, Order, age};
use crate::config::{FeedAction, FeedConfig, FeedFormat};
use crate::dataplane::tables::feed_lists::NetworkSet;
use crate::lists::Refresh;
use crate::net::network::Network;
use crate::sys::clock::{self, WallWatch};

/// The state of a feed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FeedState {
    /// IPv4 networks in force.
    pub ipv4: usize,
    /// IPv6 networks in force.
    pub ipv6: usize,
    /// Last time that its server confirmed the list, in milliseconds since 1970.
    pub confirmed_ms: Option<u64>,
    /// Time of the next fetch, in milliseconds since 1970.
    pub next_ms: u64,
    /// Error of the last fetch.
    pub error: Option<String>,
    /// Whether a guard refused the list, so that an operator may accept it.
    pub is_refused: bool,
    /// Why the list in force would not survive a reboot.
    pub disk_error: Option<String>,
    /// What was left out of the list in force.
    pub tally: Tally,
    /// Result of the last change.
    pub last: Option<Refresh>,
    /// Number of consecutive failures.
    pub failures: u32,
    /// The last completed round.
    pub round: u64,
    /// Whether this daemon has its list, from the server or from disk.
    pub is_settled: bool,
    /// Name of the format of its list.
    pub format: Option<String>,
    /// Whether its list has no acceptable entry.
    pub is_empty: bool,
}

/// An update of a feed.
#[derive(Debug)]
pub struct Update {
    /// Name of the feed.
    pub name: String,
    /// Which of the feeds that have had this name.
    pub generation: u64,
    /// New state.
    pub state: FeedState,
    /// A list to apply.
    pub list: Option<NewList>,
}

/// A list to apply.
#[derive(Debug)]
pub struct NewList {
    /// All of its networks.
    pub networks: Vec<Network>,
    /// Whether it is empty because the last list expired.
    pub is_expired: bool,
    /// Channel of the result. A feed whose channel is dropped ends.
    pub applied: SyncSender<Result<Refresh, String>>,
}

struct Running {
    config: FeedConfig,
    generation: u64,
    orders: Sender<Order>,
    state: FeedState,
}

/// The state of a feed.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(default)] // a daemon of an earlier version has fewer fields
pub struct FeedRow {
    /// Configured name.
    pub name: String,
    /// The format of its list.
    #[schemars(with = "FeedFormat")]
    pub format: String,
    /// The format was not configured: the list showed it.
    pub detected: bool,
    /// The list is empty, which was accepted.
    pub empty: bool,
    /// `block`, `admit` or `trust`.
    #[schemars(with = "FeedAction")]
    pub action: String,
    /// Where it comes from, without keys.
    pub url: String,
    /// IPv4 networks in force.
    pub ipv4: usize,
    /// IPv6 networks in force.
    pub ipv6: usize,
    /// Seconds since its server last confirmed the list; none if it never did.
    pub age: Option<u64>,
    /// Seconds until it is asked again.
    pub next: u64,
    /// Why the last answer could not be used.
    pub error: Option<String>,
    /// A size guard refused the last list.
    pub refused: bool,
    /// Entries that were left out, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// The number of the first line that could not be read.
    pub first_malformed: Option<u64>,
    /// Entries with bits behind their prefix.
    pub host_bits: u64,
    /// Entries that lost a part, since it is special or protected.
    pub split: u64,
    /// Guards that found something.
    pub guards: Vec<String>,
    /// Networks that the last change brought.
    pub added: Option<usize>,
    /// Networks that it took away.
    pub removed: Option<usize>,
    /// The number of finished rounds.
    pub round: u64,
}

/// All feeds.
pub struct Engine {
    directory: PathBuf,
    running: BTreeMap<String, Running>,
    /// Networks that no feed may block, and those that none may trust or admit.
    unblockable: watch::Sender<Arc<ProtectedSet>>,
    unallowable: watch::Sender<Arc<ProtectedSet>>,
    /// Entries of feeds that trust or admit.
    allowed: BTreeMap<String, (List, NetworkSet)>,
    updates: mpsc::Sender<Update>,
    received: Option<mpsc::Receiver<Update>>,
    counter: u64,
}

impl Engine {
    /// An engine without feeds. Lists are saved in `directory`.
    pub fn new(directory: PathBuf) -> Self {
        let (updates, received) = mpsc::channel(4);
        Self {
            directory,
            running: BTreeMap::new(),
            unblockable: watch::Sender::new(Arc::default()),
            unallowable: watch::Sender::new(Arc::default()),
            allowed: BTreeMap::new(),
            updates,
            received: Some(received),
            counter: 0,
        }
    }

    /// The updates of the feeds; there is one receiver.
    pub fn updates(&mut self) -> mpsc::Receiver<Update> {
        self.received.take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Sets the networks that no feed may block, and those that none may trust or admit. Returns
    /// whether the former changed.
    pub fn protect(&self, unblockable: ProtectedSet, unallowable: ProtectedSet) -> bool {
        let change = |watch: &watch::Sender<Arc<ProtectedSet>>, protected_set: ProtectedSet| {
            watch.send_if_modified(|known| {
                let is_new = **known != protected_set;
                if is_new {
                    *known = Arc::new(protected_set);
                }
                is_new
            })
        };
        change(&self.unallowable, unallowable);
        change(&self.unblockable, unblockable)
    }

    /// The protected networks for feeds with this action.
    fn protected_set(&self, action: FeedAction) -> &watch::Sender<Arc<ProtectedSet>> {
        if action == FeedAction::Block { &self.unblockable } else { &self.unallowable }
    }

    /// The list to which a feed's networks belong; `None` without such a feed.
    pub fn list_of(&self, name: &str) -> Option<List> {
        Some(match self.running.get(name)?.config.action {
            FeedAction::Block => List::Block,
            FeedAction::Admit => List::Admit,
            FeedAction::Trust => List::Trust,
        })
    }

    /// Whether such a feed exists and has no list yet, so that its earlier entries are unknown.
    pub fn is_unsettled(&self, name: &str) -> bool {
        self.running.get(name).is_some_and(|running| !running.state.is_settled)
    }

    /// Sets the networks that a feed trusts or admits, and returns the previous ones. An empty set
    /// removes it.
    pub fn allow(
        &mut self,
        name: &str,
        allowed: Option<(List, NetworkSet)>,
    ) -> Option<(List, NetworkSet)> {
        match allowed.filter(|(_, listed)| !listed.networks().is_empty()) {
            Some(allowed) => self.allowed.insert(name.to_owned(), allowed),
            None => self.allowed.remove(name),
        }
    }

    /// Names of the feeds that trust or admit any network.
    pub fn allowing(&self) -> impl Iterator<Item = &str> {
        self.allowed.keys().map(String::as_str)
    }

    /// All networks that feeds put on a list, with the names of these feeds.
    pub fn allowed(&self, list: List) -> BTreeMap<Network, String> {
        let mut all: BTreeMap<Network, String> = BTreeMap::new();
        for (name, (_, listed)) in self.allowed.iter().filter(|(_, (of, _))| *of == list) {
            for network in listed.networks() {
                let names = all.entry(*network).or_default();
                names.push_str(if names.is_empty() { "" } else { "," });
                names.push_str(name);
            }
        }
        all
    }

    /// The names of the feeds that put exactly this network on a list, as in [`Engine::allowed`].
    pub fn allowed_by(&self, list: List, network: &Network) -> Option<String> {
        let listing =
            self.allowed.iter().filter(|(_, (of, listed))| *of == list && listed.contains(network));
        let names: Vec<&str> = listing.map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(","))
    }

    /// Follows exactly these feeds. Returns the saved lists of new ones, which may be applied at
    /// once.
    pub fn configure(&mut self, feeds: &[FeedConfig]) -> Vec<(String, Vec<Network>)> {
        self.running.retain(|_, running| feeds.contains(&running.config));
        saved::forget_others(&self.directory, feeds);
        let new: Vec<_> =
            feeds.iter().filter(|feed| !self.running.contains_key(&feed.name)).cloned().collect();
        new.into_iter()
            .filter_map(|feed| Some((feed.name.clone(), self.follow(feed)?.into_networks())))
            .collect()
    }

    fn follow(&mut self, config: FeedConfig) -> Option<NetworkSet> {
        let protected_set = Arc::clone(&self.protected_set(config.action).borrow());
        let saved = saved::load(&self.directory, &config).unwrap_or_else(|error| {
            log::warn!("feed {}: {error:#}; it waits for its server", config.name);
            None
        });
        let is_over = |at| !config.ttl.0.is_zero() && age(at) >= config.ttl.0;
        let saved = saved.filter(|saved| !is_over(saved.confirmed_ms));
        let (mut state, mut last, mut listed) = (FeedState::default(), Last::default(), None);
        if let Some(mut saved) = saved {
            let networks = std::mem::take(&mut saved.listed).into_networks();
            let tally = &mut state.tally;
            saved.listed = trim(networks, &config.effective_guards(), &protected_set, tally);
            // The protected networks of the saved list are unknown.
            last = Last::recall(
                &config,
                &saved,
                if tally.is_clean() { protected_set } else { Arc::default() },
            );
            [state.ipv4, state.ipv6] = saved.listed.counts();
            state.is_empty = saved.listed.networks().is_empty();
            state.format.clone_from(&saved.format);
            (state.confirmed_ms, state.is_settled) = (Some(saved.confirmed_ms), true);
            listed = Some(saved.listed);
        }
        self.counter += 1;
        let (generation, name) = (self.counter, config.name.clone());
        let (orders, received) = channel();
        let follower = Follower {
            config: config.clone(),
            generation,
            directory: self.directory.clone(),
            updates: self.updates.clone(),
            protected_set: self.protected_set(config.action).subscribe(),
            last,
            state: state.clone(),
            last_logged: None,
            wall: WallWatch::default(),
        };
        if let Err(error) =
            thread::Builder::new().name("feed".to_owned()).spawn(move || follower.run(received))
        {
            log::error!("feed {name} cannot be followed: {error}");
            state.error = Some(format!("it cannot be followed: {error}"));
        }
        self.running.insert(name, Running { config, generation, orders, state });
        listed
    }

    /// Stores the state of a feed, and returns the previous one; `None` if the feed no longer
    /// exists.
    pub fn note(&mut self, name: &str, generation: u64, state: FeedState) -> Option<FeedState> {
        let running =
            self.running.get_mut(name).filter(|running| running.generation == generation)?;
        Some(std::mem::replace(&mut running.state, state))
    }

    /// Triggers a fetch of one feed, or all. Returns the round that each will report when done, by
    /// name; `None` without such a feed.
    pub fn sync(&mut self, name: Option<&str>, accept: bool) -> Option<BTreeMap<String, u64>> {
        if name.is_some_and(|name| !self.running.contains_key(name)) {
            return None;
        }
        self.counter += 1;
        let round = self.counter;
        let wanted = self.running.iter().filter(|(feed, _)| name.is_none_or(|name| name == *feed));
        let asked =
            wanted.filter(|(_, running)| running.orders.send(Order { round, accept }).is_ok());
        Some(asked.map(|(name, _)| (name.clone(), round)).collect())
    }

    /// Error of a feed's last fetch, and whether a guard refused it.
    pub fn trouble(&self, name: &str) -> Option<(String, bool)> {
        let state = &self.running.get(name)?.state;
        Some((state.error.clone()?, state.is_refused))
    }

    /// The names of all feeds.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.running.keys().map(String::as_str)
    }

    /// Whether every feed has a list.
    pub fn is_settled(&self) -> bool {
        self.running.values().all(|running| running.state.is_settled)
    }

    /// The rows of `feed list`.
    pub fn rows(&self) -> Vec<FeedRow> {
        self.running.iter().map(|(name, running)| row(name, running)).collect()
    }

    /// Warnings for the operator.
    pub fn warnings(&self) -> Vec<String> {
        let warning = |(name, running): (&String, &Running)| {
            let state = &running.state;
            let error = state.error.as_ref().map(|error| {
                let kept = match state.ipv4 + state.ipv6 {
                    0 => "it lists nothing".to_owned(),
                    count => format!("its last list stays in force ({count} networks)"),
                };
                format!("the feed {name} fails: {error}; {kept}")
            });
            let disk = state.disk_error.as_ref();
            let disk = disk.map(|error| {
                format!("the list of the feed {name} would not survive a reboot: {error}")
            });
            error.into_iter().chain(disk)
        };
        self.running.iter().flat_map(warning).collect()
    }
}

fn row(name: &str, running: &Running) -> FeedRow {
    let Running { config, state, .. } = running;
    let fired = state.tally.guards().into_iter().map(|(guard, _)| guard);
    let guards = fired.chain(state.is_refused.then_some("size"));
    FeedRow {
        name: name.to_owned(),
        format: state.format.as_deref().unwrap_or(config.format.name()).to_owned(),
        detected: config.format == FeedFormat::Auto && state.format.is_some(),
        empty: state.is_empty,
        action: config.action.name().to_owned(),
        url: config.shown_url(),
        ipv4: state.ipv4,
        ipv6: state.ipv6,
        age: state.confirmed_ms.map(|at| age(at).as_secs()),
        next: state.next_ms.saturating_sub(clock::wall_ms()) / 1_000,
        error: state.error.clone(),
        refused: state.is_refused,
        skipped: state.tally.skipped.iter().map(|(why, n)| (why.to_string(), *n)).collect(),
        first_malformed: state.tally.first_malformed,
        host_bits: state.tally.host_bits,
        split: state.tally.split,
        guards: guards.map(str::to_owned).collect(),
        added: state.last.map(|last| last.added),
        removed: state.last.map(|last| last.removed),
        round: state.round,
    }
}
