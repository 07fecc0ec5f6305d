//! Host names that are trusted or admitted: which there are, what DNS last said of them, and which entries follow.
//!
//! Trusting a name is trusting whoever answers for it. What can be done is done: an answer that fails or is empty never
//! takes anything away, and no answer can name an address that belongs to nobody or to everybody.

mod follower;
mod resolver;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use sip_xdp_common::abi::layout::Owner;
use tokio::sync::{mpsc, watch};

use crate::config::HostName;
use crate::dataplane::tables::ledger::Entry;
use crate::net::network::Network;
use crate::sys::clock;

pub use follower::HostsUpdate;

use follower::Wanted;
use store::Kept;

/// How many names are followed, for whatever purpose.
pub const MAX_NAMES: usize = 256;

/// How many addresses a name may have.
pub const MAX_ADDRESSES: usize = 64;

/// Addresses by the name that has them.
pub type ByName = BTreeMap<HostName, BTreeSet<IpAddr>>;

/// What a name is followed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Its addresses are never dropped and never banned.
    Trust,
    /// Its addresses may talk under the policy `closed`.
    Admit,
}

impl Purpose {
    /// The name in logs and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Admit => "admit",
        }
    }
}

/// A name that an operator gave by command, to be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// When, in milliseconds since 1970.
    pub added_ms: u64,
    /// When that ends, on the filter's clock.
    pub expires: u64,
    /// Why.
    pub reason: String,
}

/// What DNS last said of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// When all of that was answered, in milliseconds since 1970.
    pub at_ms: u64,
}

/// What the daemon knows of host names.
#[derive(Debug)]
pub struct Hosts {
    path: PathBuf,
    kept: Kept,
    errors: BTreeMap<HostName, String>,
    wanted: watch::Sender<Wanted>,
    is_dirty: bool,
}

impl Hosts {
    /// Reads what is on disk. The text says what is wrong with it.
    pub fn open(path: PathBuf) -> (Self, Option<String>) {
        let (kept, trouble) = store::load(&path);
        let wanted = watch::Sender::default();
        (Self { path, kept, errors: BTreeMap::new(), wanted, is_dirty: false }, trouble)
    }

    /// Takes the entries of hosts that an earlier daemon has listed for answers, where there are none on disk.
    pub fn recall<'a>(&mut self, listed: impl Iterator<Item = &'a Entry>) {
        let mut recalled = ByName::new();
        for entry in listed.filter(|entry| entry.owner == Owner::Host) {
            if let Ok(name) = entry.reason.parse() {
                recalled.entry(name).or_default().insert(entry.network.address());
            }
        }
        for (name, addresses) in recalled {
            self.kept.answers.entry(name).or_insert(Answer { addresses, at_ms: 0 });
        }
    }

    /// Starts the task that asks DNS, which ends with this object. What it finds comes out of the receiver.
    pub fn start(&self) -> mpsc::Receiver<HostsUpdate> {
        let (sender, receiver) = mpsc::channel(MAX_NAMES);
        tokio::spawn(follower::follow(resolver::System::new, self.wanted.subscribe(), sender));
        receiver
    }

    /// The names that are to be followed from now on.
    pub fn follow(&self, names: BTreeSet<HostName>) {
        self.wanted.send_if_modified(|wanted| {
            let is_new = wanted.names != names;
            wanted.names = names;
            is_new
        });
    }

    /// Has all names asked about now.
    pub fn ask_again(&self) {
        self.wanted.send_modify(|wanted| wanted.round += 1);
    }

    /// Whether a name is followed.
    pub fn follows(&self, name: &HostName) -> bool {
        self.wanted.borrow().names.contains(name)
    }

    /// How many names are followed.
    pub fn followed(&self) -> usize {
        self.wanted.borrow().names.len()
    }

    /// Takes what DNS says of a name. An answer that is not complete adds to the last one and takes nothing away.
    pub fn take(&mut self, update: HostsUpdate) {
        let HostsUpdate { name, addresses, error } = update;
        let last = self.kept.answers.get(&name);
        let before = last.map(|answer| answer.addresses.clone()).unwrap_or_default();
        let (now, at_ms) = match &error {
            None => (addresses, clock::wall_ms()),
            Some(_) => {
                let now = before.iter().chain(addresses.difference(&before)).take(MAX_ADDRESSES).copied().collect();
                (now, last.map_or(0, |answer| answer.at_ms))
            }
        };
        match error {
            Some(error) => {
                if !self.errors.contains_key(&name) {
                    let kept = if now.is_empty() { "it has no address yet" } else { "its last answer is kept" };
                    log::warn!("host {name}: {error}; {kept}");
                }
                self.errors.insert(name.clone(), error);
            }
            None => drop(self.errors.remove(&name)),
        }
        if now != before {
            let texts: Vec<_> = now.iter().map(ToString::to_string).collect();
            log::info!("host {name} addresses={}", texts.join(","));
            self.is_dirty = true;
        }
        if !now.is_empty() {
            self.kept.answers.insert(name, Answer { addresses: now, at_ms });
        }
    }

    /// The addresses that a name had last.
    pub fn addresses(&self, name: &HostName) -> BTreeSet<IpAddr> {
        self.kept.answers.get(name).map(|answer| answer.addresses.clone()).unwrap_or_default()
    }

    /// The seconds since all of a name's addresses were last answered.
    pub fn age(&self, name: &HostName) -> Option<u64> {
        let at = self.kept.answers.get(name).map(|answer| answer.at_ms).filter(|at| *at != 0)?;
        Some(clock::wall_ms().saturating_sub(at) / 1_000)
    }

    /// Why the last answer was none, or not complete.
    pub fn error(&self, name: &HostName) -> Option<&str> {
        self.errors.get(name).map(String::as_str)
    }

    /// The names that were given by command.
    pub fn given(&self) -> &BTreeMap<HostName, Given> {
        &self.kept.given
    }

    /// Adds a name by command, or replaces what was said of it.
    pub fn give(&mut self, name: HostName, given: Given) {
        self.kept.given.insert(name, given);
        self.is_dirty = true;
    }

    /// Takes a name back that was given by command.
    pub fn withdraw(&mut self, name: &HostName) -> Option<Given> {
        let given = self.kept.given.remove(name);
        self.is_dirty |= given.is_some();
        given
    }

    /// Takes the names back whose time has ended at `now`, and returns them.
    pub fn expire(&mut self, now: u64) -> Vec<HostName> {
        let over = self.kept.given.iter().filter(|(_, given)| given.expires <= now);
        let over: Vec<_> = over.map(|(name, _)| name.clone()).collect();
        for name in &over {
            self.withdraw(name);
        }
        over
    }

    /// Writes what has changed to disk; with `all` also since when answers hold. Names that are not followed any more are
    /// forgotten.
    pub fn save(&mut self, all: bool) -> Result<()> {
        let before = self.kept.answers.len();
        {
            let wanted = self.wanted.borrow();
            self.kept.answers.retain(|name, _| wanted.names.contains(name));
            self.errors.retain(|name, _| wanted.names.contains(name));
        }
        self.is_dirty |= before != self.kept.answers.len();
        if self.is_dirty || (all && !self.kept.answers.is_empty()) {
            store::save(&self.path, &self.kept)?;
            self.is_dirty = false;
        }
        Ok(())
    }
}

/// What must change so that the entries of a list whose owner is [`Owner::Host`] are the addresses of its names: the
/// networks that go, and the entries that come or change. An address of two names has one entry, which names one of them
/// as its reason and ends with the later of the two.
pub fn changes<'a>(
    by_name: &ByName,
    ends: impl Fn(&HostName) -> u64,
    listed: impl Iterator<Item = &'a Entry>,
) -> (Vec<Network>, Vec<Entry>) {
    let mut claims: BTreeMap<Network, Vec<Entry>> = BTreeMap::new();
    for (name, addresses) in by_name {
        for address in addresses {
            let network = Network::host(*address);
            let entry = Entry { owner: Owner::Host, ..Entry::manual(network, ends(name), name.as_str()) };
            claims.entry(network).or_default().push(entry);
        }
    }
    let listed: BTreeMap<Network, &Entry> =
        listed.filter(|entry| entry.owner == Owner::Host).map(|entry| (entry.network, entry)).collect();
    let gone = listed.keys().filter(|network| !claims.contains_key(network)).copied().collect();
    let mut coming = Vec::new();
    for (network, mut entries) in claims {
        let Some(expires) = entries.iter().map(|entry| entry.expires).max() else {
            continue;
        };
        let known = listed.get(&network);
        let same = known.and_then(|known| entries.iter().position(|entry| entry.reason == known.reason));
        let entry = Entry { expires, ..entries.swap_remove(same.unwrap_or(0)) };
        match known {
            Some(known) if same.is_some() && known.expires == expires => {}
            Some(known) => coming.push(Entry { added_ms: known.added_ms, ..entry }),
            None => coming.push(entry),
        }
    }
    (gone, coming)
}
