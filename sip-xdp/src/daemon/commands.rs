//! Commands of operators.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use log::Level;
use sip_xdp_common::abi::layout::{List, Owner};
use sip_xdp_common::limits::ladder::Digest;

use super::import::Insists;
use super::{Daemon, bounds};
use crate::api::answers::{Listed, Removed, RemovedEntry, Reply, StillTrusted, Unloaded};
use crate::api::control::{ListName, Request};
use crate::bans::event::Event;
use crate::config::BlockScope;
use crate::dataplane::tables::ledger::Entry;
use crate::net::network::Network;
use crate::store::Change;
use crate::sys::clock;
use crate::text::Quoted;

impl Daemon {
    /// Executes one request, of root or of a member of the group.
    pub(super) async fn command(&mut self, request: Request, is_root: bool) -> Result<Reply> {
        bounds::check(&request, is_root)?;
        match request {
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Add {
                list: ListName::Block,
                network,
                ttl,
                force,
                operator,
                by: Some(tool),
                ..
            } => {
                let expires = clock::after(ttl.map(Duration::from_secs));
                let operator = operator.map(Network::host);
                Ok(Reply::Listed(self.block_for(&tool, network, expires, force, operator)?))
            }
            Request::Delete { list: ListName::Block, network, by: Some(tool) } => {
                Ok(Reply::Removed(self.unblock_for(&tool, &network)?))
            }
            Request::Add { list, network, ttl, reason, force, operator, .. } => {
                let ttl = ttl.map(Duration::from_secs);
                let entry = Entry::manual(network, clock::after(ttl), &reason);
                Ok(Reply::Listed(match list {
                    ListName::Block => self.block(entry, force, operator.map(Network::host))?,
                    ListName::Trust => self.trust(entry)?,
                }))
            }
            Request::Delete { list: ListName::Block, network, .. } => {
                Ok(Reply::Removed(self.unblock(&network)?))
            }
            Request::Delete { list: ListName::Trust, network, .. } => {
                Ok(Reply::Removed(self.untrust(&network)?))
            }
            Request::TrustHost { name, ttl, reason } => {
                Ok(Reply::HostTrusted(self.trust_host(name, ttl, reason)?))
            }
            Request::DistrustHost { name } => Ok(Reply::HostRemoved(self.distrust_host(&name)?)),
            Request::Import { list, networks, ttl, reason, force, operator } => {
                let expires = clock::after(ttl.map(Duration::from_secs));
                let operator = operator.map(Network::host);
                let with = |network| Entry::manual(network, expires, &reason);
                let insists = Insists { force, is_root };
                Ok(Reply::Imported(self.import(list, &networks, with, insists, operator)?))
            }
            Request::Restore { part } => Ok(Reply::Imported(self.restore(part)?)),
            Request::Explain { address } => Ok(Reply::Known(Box::new(self.explain(address)?))),
            Request::Watch { .. } => bail!("events are told over a connection of their own"),
            Request::Recent => Ok(Reply::Recent(Box::new(self.hub.recent()))),
            Request::FeedList => Ok(Reply::Feeds(self.feed_list())),
            Request::FeedSync { name, accept } => {
                Ok(Reply::Rounds(self.feed_sync(name.as_deref(), accept)?))
            }
            Request::Confirm => Ok(Reply::Confirmed(self.confirm().await?)),
            Request::Reload => Ok(Reply::Applied(self.reload().await?)),
            Request::Unload { interfaces } => Ok(Reply::Unloaded(self.unload(&interfaces)?)),
        }
    }

    pub(super) fn block(
        &mut self,
        entry: Entry,
        force: bool,
        operator: Option<Network>,
    ) -> Result<Listed> {
        let network = entry.network;
        if network.prefix() == 0 {
            bail!(
                "{network} is everybody, this host among them; block the networks that attack, or \
                 stop the SIP server"
            );
        }
        if !force && let Some(why) = self.refusal(&network, operator) {
            bail!("{network} was not blocked: {why}; add --force if you mean it");
        }
        let (expires, reason, owner) = (entry.expires, entry.reason.clone(), entry.owner.name());
        let event = Event::of("block", &entry).kind("command");
        self.lists.put(List::Block, entry)?;
        self.end_connections([network]);
        self.announce(
            event,
            Level::Info,
            format_args!("block {network} owner={owner} reason={}", Quoted(&reason)),
        );
        Ok(Listed { network, expires: clock::to_wall(expires), was_blocked: None })
    }

    /// Why a network must not be blocked by command without `--force`, if so.
    pub(super) fn refusal(&self, network: &Network, operator: Option<Network>) -> Option<String> {
        if let Some(what) = self.ban_exemption(network, clock::now()) {
            return Some(format!("it {what}"));
        }
        let operator = operator.filter(|operator| network.contains(operator))?;
        let cuts_off = self.config.block_scope == BlockScope::All;
        cuts_off.then(|| {
            format!(
                "you are logged in from {operator}, and block_scope = \"all\" would cut you off"
            )
        })
    }

    fn trust(&mut self, entry: Entry) -> Result<Listed> {
        let network = entry.network;
        if network.prefix() == 0 {
            bail!(
                "{network} is everybody and would switch the filter off; trust the networks that \
                 you know"
            );
        }
        let expires = entry.expires;
        let blocked = self.lists.blocks(&network, clock::now());
        let event = Event::of("trust", &entry).kind("command");
        self.lists.put(List::Trust, entry)?;
        self.judge_by_address()?;
        self.announce(event, Level::Info, format_args!("trust {network} owner=manual"));
        Ok(Listed { network, expires: clock::to_wall(expires), was_blocked: Some(blocked) })
    }

    fn unblock(&mut self, network: &Network) -> Result<Removed> {
        let removed =
            self.delete(List::Block, network, &[Owner::Manual, Owner::Auto, Owner::Tool])?;
        let forgotten = self.forget_evidence(network)?;
        if removed.is_empty() && forgotten.is_empty() {
            if let Some(feed_listing) = self.feed_listing(network) {
                bail!(feed_listing);
            }
            bail!(
                "{network} is not blocked, and neither is a network around it; see `sip-xdp block \
                 list --match {network}`"
            );
        }
        self.remember_evidence();
        for offender in self.offences.keys().filter(|offender| network.meets(offender)) {
            self.store.record(Change::Pardon(*offender));
        }
        self.offences.retain(|offender, _| !network.meets(offender));
        let source = network.first();
        for gone in [source, Network::around(source, self.config.ipv6_prefix).first()] {
            self.sources.forget(&gone)?;
        }
        let mut pardons = Vec::new();
        for entry in &removed {
            let hits = self.lists.take_hits(entry);
            self.store.record_end(List::Block, entry, "command", hits);
            let event = Event::of("unban", entry);
            pardons.push((event, entry.place(), entry.owner, entry.dry_run));
        }
        if removed.is_empty() {
            let dry_run = self.config.dry_run;
            let event = Event::new("unban").about(*network).dry_run(dry_run);
            pardons.push((event, network.to_string(), Owner::Auto, dry_run));
        }
        for (event, place, owner, dry_run) in pardons {
            let owner = owner.name();
            self.announce(
                event.kind("command"),
                Level::Info,
                format_args!("unban {place} owner={owner} dry_run={dry_run} reason=\"by command\""),
            );
        }
        if let Some(feed_listing) = self.feed_listing(network) {
            bail!("what else blocked it was removed, but {feed_listing}");
        }
        let mut around = self.lists.covering(List::Block, network).into_iter();
        if let Some(around) = around.find(|around| self.lists.blocks(around, clock::now())) {
            bail!(
                "what blocked {network} alone was removed, but {around} around it still blocks it: \
                 `sip-xdp unban {around}` ends that, or `sip-xdp trust add {network}` spares it"
            );
        }
        let removed = removed.iter().map(RemovedEntry::from).collect();
        Ok(Removed { removed, still: None, ..forgotten })
    }

    /// Forgets the evidence against the hosts of a network, and against the networks around it:
    /// takes them off the ladder, refuses no users from there, and lets accounts earn standing
    /// again. Returns what was in force. Offences, which lengthen bans, stay.
    pub(super) fn forget_evidence(&mut self, network: &Network) -> Result<Removed> {
        let now = clock::now();
        let suspects = self.lists.metered_places(network, now);
        for place in &suspects {
            self.lists.unmeter(place)?;
        }
        let mut refused = BTreeSet::new();
        for (host, user, _) in self.detector.refused_users(network, now) {
            self.lists.refuse_user(host, Digest::of(user.as_bytes()).0, 0)?;
            refused.insert(user.to_owned());
        }
        let expelled = self.detector.expelled_accounts(network, now);
        let expelled = expelled.map(|(user, _)| user.to_owned()).collect();
        self.detector.forget(network);
        self.repeats.forget(network);
        Ok(Removed {
            suspect: !suspects.is_empty(),
            suspects,
            refused: refused.into_iter().collect(),
            expelled,
            ..Removed::default()
        })
    }

    fn untrust(&mut self, network: &Network) -> Result<Removed> {
        let by_file = self
            .lists
            .owners(List::Trust, network)
            .iter()
            .any(|entry| entry.owner == Owner::Config);
        let by_host = self.trusting_host(network).map(|name| self.belongs_to_host(network, name));
        let removed = match self.lists.remove(List::Trust, network, Owner::Manual)? {
            Some(entry) => entry,
            None if by_file => bail!(
                "{network} is trusted by {}; take it out of trust.networks there and run `sip-xdp \
                 reload`",
                self.paths.config.display()
            ),
            None if let Some(error) = by_host => bail!(error),
            None if let Some(feed_listing) =
                self.lists.entry(List::Trust, network, None, Owner::Feed) =>
            {
                bail!(
                    "{network} is trusted by the feed {}; take the feed out of the configuration, \
                     or `sip-xdp block add {network} --force` and sync it, and it leaves that out",
                    feed_listing.reason
                )
            }
            None => bail!("{network} is not in the trust list; see `sip-xdp trust list`"),
        };
        self.judge_by_address()?;
        self.announce(
            Event::of("untrust", &removed).kind("command"),
            Level::Info,
            format_args!("untrust {network} owner=manual reason=\"by command\""),
        );
        let still = StillTrusted {
            still_trusted_by_config: by_file,
            still_trusted_by_host: self.trusting_host(network).map(str::to_owned),
        };
        let removed = vec![RemovedEntry::from(&removed)];
        Ok(Removed { removed, still: Some(still), ..Removed::default() })
    }

    fn delete(&mut self, list: List, network: &Network, owners: &[Owner]) -> Result<Vec<Entry>> {
        let mut networks = self.lists.covering(list, network);
        if networks.contains(network) {
            networks = vec![*network];
        }
        let mut removed = Vec::new();
        for network in networks {
            for owner in owners {
                removed.extend(self.lists.remove(list, &network, *owner)?);
            }
        }
        if list == List::Block {
            removed.extend(self.lists.remove_flows(network)?);
        }
        Ok(removed)
    }

    fn unload(&mut self, interfaces: &[String]) -> Result<Unloaded> {
        if let Some(unknown) = interfaces.iter().find(|name| !self.wanted.contains(name)) {
            bail!("{unknown} is not filtered; see `sip-xdp status`");
        }
        let all = interfaces.is_empty() || self.wanted.iter().all(|name| interfaces.contains(name));
        if all {
            self.save_now();
            let offloads = self.pins.remove_all()?;
            self.ended = true;
            log::info!("unloaded; nothing is filtered any more");
            return Ok(Unloaded { unloaded: self.wanted.clone(), offloads });
        }
        let mut offloads = Vec::new();
        for name in interfaces {
            offloads.extend(self.disable(name)?);
        }
        Ok(Unloaded { unloaded: interfaces.to_vec(), offloads })
    }
}
