//! Host names in the daemon: DNS results become list entries.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use sip_xdp_common::abi::layout::{List, NEVER, Owner};

use super::Daemon;
use crate::api::answers::{HostRemoved, HostRow, HostTrusted, RemovedEntry};
use crate::config::MAX_NAMES;
use crate::config::{HostName, Policy};
use crate::dataplane::tables::ledger::Entry;
use crate::dns::{self, Given, HostsUpdate, Purpose};
use crate::net::network::Network;
use crate::sys::clock;
use crate::text::Quoted;

impl Daemon {
    /// Processes the DNS result of a name.
    pub(super) fn host_answered(&mut self, update: HostsUpdate) {
        let name = update.name.clone();
        self.hosts.take(update);
        let addresses = self.hosts.addresses(&name).into_iter().collect();
        for purpose in [Purpose::Trust, Purpose::Admit] {
            // It may have been removed during the query.
            if self.host_names(purpose).contains(&name) {
                self.apply_hosts(purpose, &name, &addresses);
            }
        }
    }

    /// Applies the current set of names, with the last known addresses of each.
    pub(super) fn prepare_hosts(&mut self) {
        let mut all = BTreeSet::new();
        for purpose in [Purpose::Trust, Purpose::Admit] {
            let names = self.host_names(purpose);
            let of = self.addresses_of_hosts(purpose);
            of.retain(|name, _| names.contains(name));
            for name in &names {
                let addresses = self.hosts.addresses(name);
                self.note_hosts(purpose, name, &addresses);
            }
            // All at once, so that wanted entries of an earlier daemon stay throughout.
            self.list_hosts(purpose);
            all.extend(names);
        }
        // Configuration and commands may exceed the limit together; `status` warns.
        self.hosts.follow(all.into_iter().take(MAX_NAMES).collect());
    }

    /// Replaces the addresses of a name for a purpose; none removes the name.
    pub(super) fn apply_hosts(
        &mut self,
        purpose: Purpose,
        name: &HostName,
        addresses: &BTreeSet<IpAddr>,
    ) {
        let is_new = self.note_hosts(purpose, name, addresses);
        // Entries that found no room before may find some now.
        if is_new || self.hosts_error.is_some() {
            self.list_hosts(purpose);
        }
    }

    /// Stores the addresses of a name. Returns whether they changed.
    fn note_hosts(
        &mut self,
        purpose: Purpose,
        name: &HostName,
        addresses: &BTreeSet<IpAddr>,
    ) -> bool {
        let of = self.addresses_of_hosts(purpose);
        let before = if addresses.is_empty() {
            of.remove(name)
        } else {
            of.insert(name.clone(), addresses.clone())
        };
        before.unwrap_or_default() != *addresses
    }

    fn addresses_of_hosts(&mut self, purpose: Purpose) -> &mut dns::ByName {
        match purpose {
            Purpose::Trust => &mut self.trusted_hosts,
            Purpose::Admit => &mut self.admitted_hosts,
        }
    }

    /// The names that are followed for a purpose.
    fn host_names(&self, purpose: Purpose) -> BTreeSet<HostName> {
        match purpose {
            Purpose::Trust => {
                self.config.trust.hosts.iter().chain(self.hosts.given().keys()).cloned().collect()
            }
            Purpose::Admit => self.config.admit.hosts.iter().cloned().collect(),
        }
    }

    /// Makes a list's host name entries match the addresses of the names. Entries without room are
    /// logged, and in `status` until there is room.
    fn list_hosts(&mut self, purpose: Purpose) {
        let (list, by_name) = match purpose {
            Purpose::Trust => (List::Trust, &self.trusted_hosts),
            Purpose::Admit => (List::Admit, &self.admitted_hosts),
        };
        // Under the policy `open` nothing needs to be admitted.
        let nobody = dns::ByName::new();
        let is_open = self.config.policy == Policy::Open;
        let by_name = if list == List::Admit && is_open { &nobody } else { by_name };
        let (verb, undo) = match purpose {
            Purpose::Trust => ("trust", "untrust"),
            Purpose::Admit => ("admit", "unadmit"),
        };
        let ends = |name: &HostName| match self.hosts.given().get(name) {
            Some(given) if purpose == Purpose::Trust && !self.config.trust.hosts.contains(name) => {
                given.expires
            }
            _ => NEVER,
        };
        let (gone, coming) = dns::changes(by_name, ends, self.lists.entries(list));
        if gone.is_empty() && coming.is_empty() && self.hosts_error.is_none() {
            return;
        }
        let mut failed = None;
        for network in &gone {
            match self.lists.remove(list, network, Owner::Host) {
                Ok(Some(entry)) => {
                    log::info!("{undo} {network} owner=host reason={}", Quoted(&entry.reason))
                }
                Ok(None) => {}
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        for entry in coming {
            let (network, name) = (entry.network, entry.reason.clone());
            match self.lists.put(list, entry) {
                Ok(()) => log::info!("{verb} {network} owner=host reason={}", Quoted(&name)),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        let failed = failed.map(anyhow::Error::from).or_else(|| self.judge_by_address().err());
        let failed = failed.map(|error| {
            format!("not all addresses of the hosts to {verb} are in force: {error:#}")
        });
        if let Some(error) =
            failed.as_ref().filter(|error| self.hosts_error.as_ref() != Some(error))
        {
            log::error!("{error}");
        }
        self.hosts_error = failed;
    }

    /// Trusts a host name. Its addresses follow asynchronously, when DNS responds.
    pub(super) fn trust_host(
        &mut self,
        name: HostName,
        ttl: Option<u64>,
        reason: String,
    ) -> Result<HostTrusted> {
        if !name.as_str().contains('.') {
            bail!(
                "{name} is neither an address nor a whole host name; write it with its domain: \
                 {name}.example.com"
            );
        }
        if !self.hosts.follows(&name) && self.hosts.followed() >= MAX_NAMES {
            bail!(
                "{MAX_NAMES} host names are followed already, {name} was not added; trust \
                 networks, or remove names"
            );
        }
        let expires = clock::after(ttl.map(Duration::from_secs));
        self.hosts.give(name.clone(), Given { added_ms: clock::wall_ms(), expires, reason });
        self.prepare_hosts();
        self.save_hosts(false);
        log::info!("trust {name} owner=manual");
        let addresses = self.hosts.addresses(&name).into_iter().collect();
        Ok(HostTrusted { host: name, expires: clock::to_wall(expires), addresses })
    }

    /// Removes a host name that was given by command, with its addresses.
    pub(super) fn distrust_host(&mut self, name: &HostName) -> Result<HostRemoved> {
        let by_file = self.config.trust.hosts.contains(name);
        if self.hosts.withdraw(name).is_none() {
            if by_file {
                bail!(
                    "{name} is trusted by {}; take it out of trust.hosts there and run `sip-xdp \
                     reload`",
                    self.paths.config.display()
                );
            }
            bail!("{name} is not in the trust list; see `sip-xdp trust list`");
        }
        let listed: Vec<Entry> = self
            .lists
            .entries(List::Trust)
            .filter(|entry| entry.owner == Owner::Host)
            .cloned()
            .collect();
        self.prepare_hosts();
        self.save_hosts(false);
        log::info!("untrust {name} owner=manual reason=\"by command\"");
        let is_gone = |entry: &&Entry| self.trusting_host(&entry.network).is_none();
        let removed = listed.iter().filter(is_gone).map(RemovedEntry::from).collect();
        Ok(HostRemoved { host: name.clone(), removed, still_trusted_by_config: by_file })
    }

    /// The host name because of which exactly `network` is trusted, if any.
    pub(super) fn trusting_host(&self, network: &Network) -> Option<&str> {
        let owners = self.lists.owners(List::Trust, network).into_iter();
        owners.filter(|entry| entry.owner == Owner::Host).map(|entry| entry.reason.as_str()).next()
    }

    /// Why an address of a trusted host name cannot be removed by itself.
    pub(super) fn belongs_to_host(&self, network: &Network, name: &str) -> String {
        let way = if self.config.trust.hosts.iter().any(|known| known.as_str() == name) {
            format!(
                "take that out of trust.hosts in {} and run `sip-xdp reload`",
                self.paths.config.display()
            )
        } else {
            format!("`sip-xdp trust del {name}` takes it out")
        };
        format!("{network} is trusted as an address of {name}; {way}")
    }

    /// Removes expired names.
    pub(super) fn expire_hosts(&mut self, now: u64) {
        let over = self.hosts.expire(now);
        if over.is_empty() {
            return;
        }
        for name in over {
            log::info!("untrust {name} owner=manual reason=\"expired\"");
        }
        self.prepare_hosts();
    }

    /// Saves the names if they have changed. A failure is logged once, and in `status`.
    pub(super) fn save_hosts(&mut self, all: bool) {
        let failed = self.hosts.save(all).err();
        let failed = failed
            .map(|error| format!("hosts that are trusted would not survive a reboot: {error:#}"));
        if let Some(error) = failed.as_ref().filter(|_| self.hosts_save_error.is_none()) {
            log::error!("{error}");
        }
        self.hosts_save_error = failed;
    }

    /// The names in `status`.
    pub(super) fn hosts_status(&self) -> Vec<HostRow> {
        let row = |purpose: Purpose, name: HostName| {
            let given = self.hosts.given().get(&name).filter(|_| purpose == Purpose::Trust);
            let owner = if given.is_some() { Owner::Manual } else { Owner::Config };
            HostRow {
                purpose: purpose.name().to_owned(),
                addresses: self.hosts.addresses(&name).into_iter().collect(),
                age: self.hosts.age(&name),
                error: self.hosts.error(&name).map(ToString::to_string),
                owner: owner.name().to_owned(),
                reason: given.map(|given| given.reason.clone()).unwrap_or_default(),
                expires: given.and_then(|given| clock::to_wall(given.expires)),
                name,
            }
        };
        let purposes = [Purpose::Trust, Purpose::Admit].into_iter();
        purposes
            .flat_map(|purpose| {
                self.host_names(purpose).into_iter().map(move |name| (purpose, name))
            })
            .map(|(purpose, name)| row(purpose, name))
            .collect()
    }

    /// Warnings about names.
    pub(super) fn hosts_warnings(&self) -> Vec<String> {
        let names: BTreeSet<_> = [Purpose::Trust, Purpose::Admit]
            .into_iter()
            .flat_map(|purpose| self.host_names(purpose))
            .collect();
        let unresolved = names.iter().filter(|name| self.hosts.addresses(name).is_empty());
        let mut warnings: Vec<_> = unresolved
            .filter_map(|name| {
                Some(format!("the host {name} has no address yet: {}", self.hosts.error(name)?))
            })
            .collect();
        if names.len() > MAX_NAMES {
            warnings.push(format!(
                "there are {} host names, of which only the first {MAX_NAMES} are followed; take \
                 some out",
                names.len()
            ));
        }
        warnings.extend(self.hosts_error.clone());
        warnings.extend(self.hosts_save_error.clone());
        warnings
    }
}
