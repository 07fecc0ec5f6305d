//! All feeds: which are followed, how each is, and what they have to say to the daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, channel};
use std::thread;

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

/// How a feed is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FeedState {
    /// IPv4 networks in force.
    pub ipv4: usize,
    /// IPv6 networks in force.
    pub ipv6: usize,
    /// When its server last said that this is its list, in milliseconds since 1970.
    pub confirmed_ms: Option<u64>,
    /// When it is asked next, in milliseconds since 1970.
    pub next_ms: u64,
    /// What went wrong with the last answer.
    pub error: Option<String>,
    /// Whether that was a guard, so that somebody may accept the list.
    pub is_refused: bool,
    /// Why the list in force would not survive a reboot.
    pub disk_error: Option<String>,
    /// What was left out of the list in force.
    pub tally: Tally,
    /// What the last change came to.
    pub last: Option<Refresh>,
    /// How often in turn it has failed.
    pub failures: u32,
    /// The last order that was carried out.
    pub round: u64,
    /// Whether this daemon has had a list of it, from its server or from disk.
    pub is_settled: bool,
    /// The name of the format by which its list was read.
    pub format: Option<String>,
    /// Whether its list has no entry that may be taken.
    pub is_empty: bool,
}

/// What a feed has to say.
#[derive(Debug)]
pub struct Update {
    /// Its name.
    pub name: String,
    /// Which of the feeds that had this name.
    pub generation: u64,
    /// How it is.
    pub state: FeedState,
    /// A list to be put into force.
    pub list: Option<NewList>,
}

/// A list to be put into force.
#[derive(Debug)]
pub struct NewList {
    /// All of its networks.
    pub networks: Vec<Network>,
    /// There are none because the last list became too old.
    pub is_expired: bool,
    /// Where to say what that came to. A feed that is dropped instead ends.
    pub applied: SyncSender<Result<Refresh, String>>,
}

struct Running {
    config: FeedConfig,
    generation: u64,
    orders: Sender<Order>,
    state: FeedState,
}

/// How a feed is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)] // a daemon of an earlier version has fewer fields
pub struct FeedRow {
    /// Its configured name.
    pub name: String,
    /// The format of its list.
    pub format: String,
    /// The format was not configured: the list showed it.
    pub detected: bool,
    /// The list is empty, which was accepted.
    pub empty: bool,
    /// `block`, `admit` or `trust`.
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
    /// What no list may block, and what none may trust or admit.
    unblockable: watch::Sender<Arc<ProtectedSet>>,
    unallowable: watch::Sender<Arc<ProtectedSet>>,
    /// What feeds trust or admit.
    allowed: BTreeMap<String, (List, NetworkSet)>,
    updates: mpsc::Sender<Update>,
    received: Option<mpsc::Receiver<Update>>,
    counter: u64,
}

impl Engine {
    /// Without any feeds yet. Their lists are kept in `directory`.
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

    /// What feeds have to say; there is one receiver.
    pub fn updates(&mut self) -> mpsc::Receiver<Update> {
        self.received.take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Says what no list may block from now on, and what none may trust or admit. Whether the first
    /// is something else than before.
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

    /// What no list may touch whose networks become this.
    fn protected_set(&self, action: FeedAction) -> &watch::Sender<Arc<ProtectedSet>> {
        if action == FeedAction::Block { &self.unblockable } else { &self.unallowable }
    }

    /// The list on which a feed's networks are to be; `None` if there is no such feed.
    pub fn list_of(&self, name: &str) -> Option<List> {
        Some(match self.running.get(name)?.config.action {
            FeedAction::Block => List::Block,
            FeedAction::Admit => List::Admit,
            FeedAction::Trust => List::Trust,
        })
    }

    /// Whether there is such a feed, and it has had no list yet: what it listed before is not
    /// known.
    pub fn is_unsettled(&self, name: &str) -> bool {
        self.running.get(name).is_some_and(|running| !running.state.is_settled)
    }

    /// Notes what a feed trusts or admits, and returns what that was before. Nothing at all ends
    /// it.
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

    /// The names of the feeds that trust or admit anything.
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

    /// The names of the feeds that put exactly this network on a list, as [`Engine::allowed`] has
    /// them.
    pub fn allowed_by(&self, list: List, network: &Network) -> Option<String> {
        let listing =
            self.allowed.iter().filter(|(_, (of, listed))| *of == list && listed.contains(network));
        let names: Vec<&str> = listing.map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(","))
    }

    /// Follows these feeds and no others. Returns the lists that are on disk of those that are new:
    /// they may come into force at once.
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
            // By what the last list was held against is not known any more.
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
            said: None,
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

    /// Takes how a feed is, and returns how it was; `None` if there is no such feed any more.
    pub fn note(&mut self, name: &str, generation: u64, state: FeedState) -> Option<FeedState> {
        let running =
            self.running.get_mut(name).filter(|running| running.generation == generation)?;
        Some(std::mem::replace(&mut running.state, state))
    }

    /// Has one feed, or all, asked now. Returns the number of the round that each will say when it
    /// is done, by name; `None` if there is no such feed.
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

    /// What went wrong with the last answer of a feed, and whether a guard refused it.
    pub fn trouble(&self, name: &str) -> Option<(String, bool)> {
        let state = &self.running.get(name)?.state;
        Some((state.error.clone()?, state.is_refused))
    }

    /// The names of all feeds.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.running.keys().map(String::as_str)
    }

    /// Whether every feed has had a list by now.
    pub fn is_settled(&self) -> bool {
        self.running.values().all(|running| running.state.is_settled)
    }

    /// The rows of `feed list`.
    pub fn rows(&self) -> Vec<FeedRow> {
        self.running.iter().map(|(name, running)| row(name, running)).collect()
    }

    /// What an operator should know of them.
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
