//! Host names that are trusted or admitted: the set of names, their last DNS results, and the
//! resulting entries.
//!
//! Trusting a name means trusting its DNS servers. The damage is limited: each record kind counts
//! by itself, so that an address which a response no longer names is removed, whatever other
//! queries fail; a failed or empty response removes nothing for [`Seen::hold`], and everything
//! after that; and no response can name a special-purpose address.

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
use crate::config::MAX_NAMES;
use crate::dataplane::tables::ledger::Entry;
use crate::net::network::Network;
use crate::sys::clock;

pub use follower::HostsUpdate;

use follower::Wanted;
use resolver::{Kinds, Origin};
use store::Kept;

/// Maximum number of addresses per name.
pub const MAX_ADDRESSES: usize = 64;

/// Addresses by name.
pub type ByName = BTreeMap<HostName, BTreeSet<IpAddr>>;

/// The purpose of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Trust: its addresses are never dropped and never banned.
    Trust,
    /// Admit: its addresses may send under the policy `closed`.
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

/// A name that an operator trusted by command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Creation time in milliseconds since 1970.
    pub added_ms: u64,
    /// Expiry, on the filter's clock.
    pub expires: u64,
    /// Reason.
    pub reason: String,
}

/// The last DNS result of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The addresses.
    pub addresses: BTreeMap<IpAddr, Seen>,
    /// Time of the last complete result, in milliseconds since 1970.
    pub at_ms: u64,
}

/// When and how DNS last named an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Time in milliseconds since 1970.
    pub at_ms: u64,
    /// TTL in milliseconds.
    pub ttl_ms: u64,
    /// The record kinds that named it.
    pub(crate) kinds: Kinds,
}

/// Minimum time that an unconfirmed address is kept, in milliseconds: an hour.
const MIN_HOLD_MS: u64 = 3_600_000;

/// Maximum of that time, in milliseconds: a day.
const MAX_HOLD_MS: u64 = 24 * MIN_HOLD_MS;

impl Seen {
    /// An address without further information, seen at `at_ms`.
    fn at(address: IpAddr, at_ms: u64) -> Self {
        Self { at_ms, ttl_ms: 0, kinds: Kinds::of_address(address) }
    }

    /// The time that an address is kept unconfirmed, in milliseconds: three TTLs, between an hour
    /// and a day.
    pub fn hold(&self) -> u64 {
        self.ttl_ms.saturating_mul(3).clamp(MIN_HOLD_MS, MAX_HOLD_MS)
    }

    fn is_over(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) > self.hold()
    }
}

/// The state of host names.
#[derive(Debug)]
pub struct Hosts {
    path: PathBuf,
    kept: Kept,
    errors: BTreeMap<HostName, String>,
    wanted: watch::Sender<Wanted>,
    is_dirty: bool,
}

impl Hosts {
    /// Reads the saved state. The text describes an unreadable file.
    pub fn open(path: PathBuf) -> (Self, Option<String>) {
        let (kept, trouble) = store::load(&path);
        let wanted = watch::Sender::default();
        (Self { path, kept, errors: BTreeMap::new(), wanted, is_dirty: false }, trouble)
    }

    /// Takes an earlier daemon's host entries as results, for names without saved ones.
    pub fn recall<'a>(&mut self, listed: impl Iterator<Item = &'a Entry>) {
        let now_ms = clock::wall_ms();
        let mut recalled: BTreeMap<HostName, Answer> = BTreeMap::new();
        for entry in listed.filter(|entry| entry.owner == Owner::Host) {
            if let Ok(name) = entry.reason.parse() {
                let address = entry.network.address();
                recalled
                    .entry(name)
                    .or_default()
                    .addresses
                    .insert(address, Seen::at(address, now_ms));
            }
        }
        for (name, answer) in recalled {
            self.kept.answers.entry(name).or_insert(answer);
        }
    }

    /// Starts the DNS task, which ends with this object. Results come out of the receiver.
    pub fn start(&self) -> mpsc::Receiver<HostsUpdate> {
        let (sender, receiver) = mpsc::channel(MAX_NAMES);
        tokio::spawn(follower::follow(resolver::System::new, self.wanted.subscribe(), sender));
        receiver
    }

    /// Sets the names to be followed.
    pub fn follow(&self, names: BTreeSet<HostName>) {
        self.wanted.send_if_modified(|wanted| {
            let is_new = wanted.names != names;
            wanted.names = names;
            is_new
        });
    }

    /// Triggers queries of all names.
    pub fn ask_again(&self) {
        self.wanted.send_modify(|wanted| wanted.round += 1);
    }

    /// Whether a name is followed.
    pub fn follows(&self, name: &HostName) -> bool {
        self.wanted.borrow().names.contains(name)
    }

    /// Number of followed names.
    pub fn followed(&self) -> usize {
        self.wanted.borrow().names.len()
    }

    /// Processes the DNS result of a name, at the current time.
    pub fn take(&mut self, update: HostsUpdate) {
        self.take_at(update, clock::wall_ms());
    }

    /// Processes the DNS result of a name. An address that a record kind named and no longer names
    /// is removed; without a response, or if DNS knows nothing of the name at all, it stays for
    /// [`Seen::hold`]. Beyond [`MAX_ADDRESSES`] the most recently named stay.
    fn take_at(&mut self, update: HostsUpdate, now_ms: u64) {
        let HostsUpdate { name, addresses, unanswered, error } = update;
        let last = self.kept.answers.get(&name);
        let before = last.map(|answer| answer.addresses.clone()).unwrap_or_default();
        let unanswered = if addresses.is_empty() { Kinds::ALL } else { unanswered };
        let at_ms = if error.is_none() { now_ms } else { last.map_or(0, |answer| answer.at_ms) };
        let mut seen: Vec<(IpAddr, Seen)> = Vec::with_capacity(before.len() + addresses.len());
        for (address, Origin { kinds, ttl }) in &addresses {
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            seen.push((*address, Seen { at_ms: now_ms, ttl_ms, kinds: *kinds }));
        }
        for (address, last) in before.iter().filter(|(address, _)| !addresses.contains_key(address))
        {
            // The wall clock may have been set back.
            let kept =
                Seen { at_ms: last.at_ms.min(now_ms), kinds: last.kinds.both(unanswered), ..*last };
            if kept.kinds != Kinds::NONE && !kept.is_over(now_ms) {
                seen.push((*address, kept));
            }
        }
        seen.sort_by_key(|(address, seen)| (std::cmp::Reverse(seen.at_ms), *address));
        let now: BTreeMap<_, _> = seen.into_iter().take(MAX_ADDRESSES).collect();
        match error {
            Some(error) => {
                if !self.errors.contains_key(&name) {
                    let kept = if now.is_empty() {
                        "it has no address yet"
                    } else {
                        "its last answer is kept for a while"
                    };
                    log::warn!("host {name}: {error}; {kept}");
                }
                self.errors.insert(name.clone(), error);
            }
            None => drop(self.errors.remove(&name)),
        }
        if !now.keys().eq(before.keys()) {
            let texts: Vec<_> = now.keys().map(ToString::to_string).collect();
            log::info!("host {name} addresses={}", texts.join(","));
            self.is_dirty = true;
        }
        if now.is_empty() {
            self.kept.answers.remove(&name);
        } else {
            self.kept.answers.insert(name, Answer { addresses: now, at_ms });
        }
    }

    /// The last known addresses of a name.
    pub fn addresses(&self, name: &HostName) -> BTreeSet<IpAddr> {
        self.kept
            .answers
            .get(name)
            .map(|answer| answer.addresses.keys().copied().collect())
            .unwrap_or_default()
    }

    /// Seconds since the last complete result of a name.
    pub fn age(&self, name: &HostName) -> Option<u64> {
        let at = self.kept.answers.get(name).map(|answer| answer.at_ms).filter(|at| *at != 0)?;
        Some(clock::wall_ms().saturating_sub(at) / 1_000)
    }

    /// Why the last result was empty or incomplete.
    pub fn error(&self, name: &HostName) -> Option<&str> {
        self.errors.get(name).map(String::as_str)
    }

    /// Names given by command.
    pub fn given(&self) -> &BTreeMap<HostName, Given> {
        &self.kept.given
    }

    /// Adds or replaces a name by command.
    pub fn give(&mut self, name: HostName, given: Given) {
        self.kept.given.insert(name, given);
        self.is_dirty = true;
    }

    /// Removes a name that was given by command.
    pub fn withdraw(&mut self, name: &HostName) -> Option<Given> {
        let given = self.kept.given.remove(name);
        self.is_dirty |= given.is_some();
        given
    }

    /// Removes the names that have expired at `now`, and returns them.
    pub fn expire(&mut self, now: u64) -> Vec<HostName> {
        let over = self.kept.given.iter().filter(|(_, given)| given.expires <= now);
        let over: Vec<_> = over.map(|(name, _)| name.clone()).collect();
        for name in &over {
            self.withdraw(name);
        }
        over
    }

    /// Saves changes; with `all` also new times of unchanged results. Names that are no longer
    /// followed are left out.
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

/// The changes that make the entries of [`Owner::Host`] match the addresses of its names: networks
/// to remove, and entries to add or change. An address of two names has one entry, with one of them
/// as reason and the later expiry.
pub fn changes<'a>(
    by_name: &ByName,
    ends: impl Fn(&HostName) -> u64,
    listed: impl Iterator<Item = &'a Entry>,
) -> (Vec<Network>, Vec<Entry>) {
    let mut claims: BTreeMap<Network, Vec<Entry>> = BTreeMap::new();
    for (name, addresses) in by_name {
        for address in addresses {
            let network = Network::host(*address);
            let entry =
                Entry { owner: Owner::Host, ..Entry::manual(network, ends(name), name.as_str()) };
            claims.entry(network).or_default().push(entry);
        }
    }
    let listed: BTreeMap<Network, &Entry> = listed
        .filter(|entry| entry.owner == Owner::Host)
        .map(|entry| (entry.network, entry))
        .collect();
    let gone = listed.keys().filter(|network| !claims.contains_key(network)).copied().collect();
    let mut coming = Vec::new();
    for (network, mut entries) in claims {
        let Some(expires) = entries.iter().map(|entry| entry.expires).max() else {
            continue;
        };
        let known = listed.get(&network);
        let same =
            known.and_then(|known| entries.iter().position(|entry| entry.reason == known.reason));
        let entry = Entry { expires, ..entries.swap_remove(same.unwrap_or(0)) };
        match known {
            Some(known) if same.is_some() && known.expires == expires => {}
            Some(known) => coming.push(Entry { added_ms: known.added_ms, ..entry }),
            None => coming.push(entry),
        }
    }
    (gone, coming)
}
