//! A real feed engine whose daemon is a test.

use std::thread::sleep;
use std::time::{Duration, Instant};

use sip_xdp::config::{FeedConfig, FeedFormat};
use sip_xdp::dataplane::tables::feed_lists::NetworkSet;
use sip_xdp::feeds::engine::{Engine, FeedState, Update};
use sip_xdp::feeds::guards::ProtectedSet;
use sip_xdp::lists::Refresh;
use sip_xdp::net::network::Network;
use sip_xdp_tests::ListServer;
use tempfile::TempDir;

/// Longer than any synchronisation may take.
const TIMEOUT: Duration = Duration::from_secs(45);

pub(crate) struct Followed {
    engine: Engine,
    take: Box<dyn FnMut() -> Option<Update>>,
    pub(crate) config: FeedConfig,
    pub(crate) directory: TempDir,
    pub(crate) in_force: NetworkSet,
    pub(crate) state: FeedState,
    /// How often a list came into force.
    pub(crate) changes: usize,
    /// The daemon's reaction to the next list.
    pub(crate) refuses: Option<String>,
}

/// A feed of a server, fetched only on demand.
pub(crate) fn config(server: &ListServer, path: &str, format: FeedFormat) -> FeedConfig {
    let every = "1d".parse().unwrap();
    FeedConfig { format, every, ..FeedConfig::new("test", &server.url(path)) }
}

impl Followed {
    pub(crate) fn new(config: FeedConfig) -> Self {
        Self::protecting(config, &[])
    }

    pub(crate) fn protecting(config: FeedConfig, protected: &[&str]) -> Self {
        Self::begin(config, tempfile::tempdir().unwrap(), protected)
    }

    /// Another daemon with what this one left on disk.
    pub(crate) fn restart(self) -> Self {
        Self::begin(self.config, self.directory, &[])
    }

    pub(crate) fn begin(config: FeedConfig, directory: TempDir, protected: &[&str]) -> Self {
        let mut engine = Engine::new(directory.path().to_owned());
        engine.protect(
            ProtectedSet::new(protected.iter().map(|text| text.parse().unwrap()).collect()),
            ProtectedSet::default(),
        );
        let mut updates = engine.updates();
        let on_disk = engine.configure(std::slice::from_ref(&config)).pop();
        let in_force = NetworkSet::new(on_disk.map(|(_, networks)| networks).unwrap_or_default());
        let take = Box::new(move || updates.try_recv().ok());
        let state = FeedState::default();
        Self { engine, take, config, directory, in_force, state, changes: 0, refuses: None }
    }

    /// Takes what the feed has to say until something holds.
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> &FeedState {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}: {:?}", self.state);
            let Some(Update { name, generation, state, list }) = (self.take)() else {
                sleep(Duration::from_millis(5));
                continue;
            };
            if self.engine.note(&name, generation, state.clone()).is_none() {
                continue;
            }
            self.state = state;
            if let Some(list) = list {
                let answer = match self.refuses.clone() {
                    Some(reason) => Err(reason),
                    None => {
                        let total = list.networks.len();
                        let before =
                            std::mem::replace(&mut self.in_force, NetworkSet::new(list.networks));
                        self.changes += 1;
                        let added = self.in_force.without(&before).len();
                        Ok(Refresh { added, removed: before.without(&self.in_force).len(), total })
                    }
                };
                list.applied.send(answer).unwrap();
            }
        }
        &self.state
    }

    /// Asks now, and waits for the result.
    pub(crate) fn sync(&mut self, accept: bool) -> FeedState {
        let round = self.engine.sync(None, accept).unwrap()["test"];
        self.until("a synchronisation", |followed| followed.state.round >= round).clone()
    }

    pub(crate) fn protect(&self, protected: &[&str]) {
        self.engine.protect(
            ProtectedSet::new(protected.iter().map(|text| text.parse().unwrap()).collect()),
            ProtectedSet::default(),
        );
    }

    /// What is in force, as text.
    pub(crate) fn listed(&self) -> Vec<String> {
        self.in_force.networks().iter().map(ToString::to_string).collect()
    }

    pub(crate) fn row(&self) -> serde_json::Value {
        serde_json::to_value(self.engine.rows().remove(0)).unwrap()
    }

    pub(crate) fn blocks(&self, address: &str) -> bool {
        self.in_force.covers(&address.parse::<Network>().unwrap())
    }
}

/// So many addresses of 192.0.2.0/24 and the networks behind it, a line each.
pub(crate) fn addresses(count: u32) -> String {
    let first = u32::from(std::net::Ipv4Addr::new(198, 51, 100, 0));
    (0..count).map(|number| format!("{}\n", std::net::Ipv4Addr::from(first + number))).collect()
}
