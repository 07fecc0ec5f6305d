//! Feeds in the daemon: applying their lists, except for protected addresses.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use log::Level;
use sip_xdp_common::abi::layout::{List, NEVER, Owner};

use super::Daemon;
use crate::api::answers::Rounds;
use crate::bans::event::{Event, FeedFigures};
use crate::config::{FeedAction, Guards, Policy};
use crate::dataplane::tables::feed_lists::NetworkSet;
use crate::dataplane::tables::ledger::Entry;
use crate::feeds::engine::FeedRow;
use crate::feeds::engine::{FeedState, Update};
use crate::feeds::formats::Tally;
use crate::feeds::guards::{ProtectedSet, trim};
use crate::lists::{EARLIER, Refresh};
use crate::net::network::Network;

impl Daemon {
    /// Follows the configured feeds. Saved lists of new ones are applied at once.
    pub(super) fn prepare_feeds(&mut self) {
        self.protect();
        for (name, networks) in self.feeds.configure(&self.config.feeds) {
            if let Err(reason) = self.put_feed(&name, networks, false) {
                log::error!("feed {name}: its list on disk is not in force: {reason}");
            }
        }
        let wanted: BTreeSet<String> = self.feeds.names().map(str::to_owned).collect();
        let blocking =
            self.lists.feeds().iter().map(|(name, _)| name).filter(|name| *name != EARLIER);
        let listed = blocking.chain(self.feeds.allowing()).map(str::to_owned);
        let gone: Vec<_> = listed.filter(|name| !wanted.contains(name)).collect();
        for name in gone {
            if let Err(reason) = self.put_feed(&name, Vec::new(), false) {
                log::error!("feed {name}: what it listed stays in force: {reason}");
            }
        }
        // Also handles entries of an earlier daemon's feeds, and what the current policy admits.
        if let Err(reason) = self.list_allowed() {
            log::error!("what feeds trust or admit is not in force: {reason}");
        }
        self.settle_feeds();
    }

    /// Processes a feed's update.
    pub(super) fn on_feed_update(&mut self, update: Update) {
        let Update { name, generation, state, list } = update;
        let was_settled = self.feeds.is_settled();
        let Some(before) = self.feeds.note(&name, generation, state.clone()) else {
            return;
        };
        self.publish_feed_state(&name, &before, &state);
        if let Some(list) = list {
            // An error means that the feed's thread has ended.
            let _ = list.applied.send(self.put_feed(&name, list.networks, list.is_expired));
        } else if !was_settled {
            self.settle_feeds();
        }
    }

    /// Publishes a change of a feed's state. The feed's own thread logs it.
    fn publish_feed_state(&self, name: &str, before: &FeedState, now: &FeedState) {
        let total = now.ipv4 + now.ipv6;
        let figures = FeedFigures { feed: name.to_owned(), total, ..FeedFigures::default() };
        if let Some(error) = now.error.as_ref().filter(|error| before.error.as_ref() != Some(error))
        {
            let kind = if now.is_refused { "refused" } else { "failed" };
            self.publish(Event::of_feed(kind, figures.clone()).reason(format!("{name}: {error}")));
        }
        if before.error.is_some() && now.error.is_none() {
            self.publish(Event::of_feed("well", figures.clone()).reason(name));
        }
        let (fired, fired_before) = (now.tally.guards(), before.tally.guards());
        if !fired.is_empty() && fired != fired_before {
            let counts: Vec<_> =
                fired.iter().map(|(guard, count)| format!("{count} {guard}")).collect();
            self.publish(
                Event::of_feed("guard", figures)
                    .reason(format!("{name}: {}", counts.join(", ").replace('_', " "))),
            );
        }
    }

    /// Applies the list of a feed.
    fn put_feed(
        &mut self,
        name: &str,
        networks: Vec<Network>,
        is_expired: bool,
    ) -> Result<Refresh, String> {
        let refresh = match self.feeds.list_of(name) {
            Some(list @ (List::Trust | List::Admit)) => {
                self.lists.replace_feed(name, Vec::new()).map_err(|error| error.to_string())?;
                self.allow_feed(name, Some((list, NetworkSet::new(networks))))?
            }
            Some(List::Block) | None => {
                if self.feeds.allowing().any(|known| known == name) {
                    self.allow_feed(name, None)?;
                }
                self.lists.replace_feed(name, networks).map_err(|error| error.to_string())?
            }
        };
        let Refresh { added, removed, total } = refresh;
        let figures = FeedFigures { feed: name.to_owned(), added, removed, total };
        if is_expired {
            let line = format_args!("feed {name} expired removed={removed}");
            self.announce(Event::of_feed("expired", figures), Level::Warn, line);
        } else if added + removed > 0 {
            let line = format_args!("feed {name} added={added} removed={removed} total={total}");
            self.announce(Event::of_feed("synced", figures), Level::Info, line);
        }
        Ok(refresh)
    }

    /// Applies the list of a feed that trusts or admits. On an error nothing has changed.
    fn allow_feed(
        &mut self,
        name: &str,
        allowed: Option<(List, NetworkSet)>,
    ) -> Result<Refresh, String> {
        let new = allowed.as_ref().map(|(_, listed)| listed.clone()).unwrap_or_default();
        let of = allowed.as_ref().map(|(list, _)| *list);
        let before = self.feeds.allow(name, allowed);
        let changed = |list: List| {
            let none = NetworkSet::default();
            let old =
                before.as_ref().filter(|(of, _)| *of == list).map_or(&none, |(_, listed)| listed);
            let new = if of == Some(list) { &new } else { &none };
            new.without(old).into_iter().chain(old.without(new)).collect::<Vec<_>>()
        };
        let [trust, admit] = [List::Trust, List::Admit].map(changed);
        let listed = match before {
            // Its first list: an earlier daemon's entries of this feed may exist.
            None => self.list_allowed(),
            Some(_) => self
                .list_changed(List::Trust, trust)
                .and_then(|()| self.list_changed(List::Admit, admit)),
        };
        if let Err(reason) = listed {
            self.feeds.allow(name, before);
            let _ = self.list_allowed();
            return Err(reason);
        }
        let old = before.map(|(_, listed)| listed).unwrap_or_default();
        let (added, removed) = (new.without(&old).len(), old.without(&new).len());
        Ok(Refresh { added, removed, total: new.networks().len() })
    }

    /// Makes a list's feed entries match the feeds, for the changed networks only.
    fn list_changed(&mut self, list: List, networks: Vec<Network>) -> Result<(), String> {
        if networks.is_empty() || (list == List::Admit && self.config.policy == Policy::Open) {
            return Ok(());
        }
        let mut coming = Vec::new();
        for network in networks {
            let known = self
                .lists
                .entry(list, &network, None, Owner::Feed)
                .map(|known| known.reason.clone());
            match (self.feeds.allowed_by(list, &network), known) {
                (Some(names), Some(known)) if known == names => {}
                (Some(names), _) => {
                    coming.push(Entry {
                        owner: Owner::Feed,
                        ..Entry::manual(network, NEVER, &names)
                    });
                }
                // Another feed that listed it before this daemon started has no list yet.
                (None, Some(known))
                    if known.split(',').any(|name| self.feeds.is_unsettled(name)) => {}
                (None, Some(_)) => {
                    let removed = self.lists.remove(list, &network, Owner::Feed);
                    removed.map_err(|error| error.to_string())?;
                }
                (None, None) => {}
            }
        }
        self.lists.put_all(list, coming).map_err(|stopped| stopped.to_string())?;
        match list {
            List::Trust => self.judge_by_address().map_err(|error| format!("{error:#}")),
            List::Block | List::Admit => Ok(()),
        }
    }

    /// Makes the feed entries of the trust and admit lists match the feeds. Entries of an earlier
    /// daemon's feeds stay until each feed has a list.
    fn list_allowed(&mut self) -> Result<(), String> {
        for list in [List::Trust, List::Admit] {
            // Under the policy `open` nothing needs to be admitted.
            let is_idle = list == List::Admit && self.config.policy == Policy::Open;
            let mut wanted = if is_idle { Default::default() } else { self.feeds.allowed(list) };
            let Self { lists, feeds, .. } = self;
            let is_unknown =
                |entry: &Entry| entry.reason.split(',').any(|name| feeds.is_unsettled(name));
            let gone = lists.retain(|of, entry| {
                let is_ours = of == list && entry.owner == Owner::Feed;
                is_ours && !wanted.contains_key(&entry.network) && (is_idle || !is_unknown(entry))
            });
            let gone = gone.map_err(|error| error.to_string())?;
            for entry in lists.entries(list).filter(|entry| entry.owner == Owner::Feed) {
                if wanted.get(&entry.network) == Some(&entry.reason) {
                    wanted.remove(&entry.network);
                }
            }
            let entry = |(network, names): (_, String)| Entry {
                owner: Owner::Feed,
                ..Entry::manual(network, NEVER, &names)
            };
            let coming: Vec<Entry> = wanted.into_iter().map(entry).collect();
            let has_changed = !gone.is_empty() || !coming.is_empty();
            lists.put_all(list, coming).map_err(|stopped| stopped.to_string())?;
            if has_changed && list == List::Trust {
                self.judge_by_address().map_err(|error| format!("{error:#}"))?;
            }
        }
        Ok(())
    }

    /// Removes entries of an earlier daemon's feeds, once all feeds have a list.
    fn settle_feeds(&mut self) {
        if let Err(reason) = self.list_allowed() {
            log::error!("what feeds trusted or admitted before stays in force: {reason}");
        }
        let count = self.lists.feeds().get(EARLIER).map_or(0, |listed| listed.networks().len());
        if count == 0 || !self.feeds.is_settled() {
            return;
        }
        if let Err(error) = self.lists.replace_feed(EARLIER, Vec::new()) {
            log::error!("what feeds listed before stays in force: {error}");
        }
    }

    /// Updates the protected addresses, and removes them from the feeds' entries.
    pub(super) fn protect_from_feeds(&mut self) {
        if !self.protect() {
            return;
        }
        // The trust list has precedence in the kernel; here only the host itself matters, with its
        // gateways and resolvers.
        let own = ProtectedSet::new(self.never_ban.networks().collect());
        let guards = Guards { min_prefix: 0, min_prefix6: 0, ..Guards::default() };
        let names: Vec<String> =
            self.lists.feeds().iter().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let Some(listed) = self.lists.feeds().get(&name) else {
                continue;
            };
            let is_touched = |host: Network| listed.covers(&host);
            if !self.never_ban.networks().any(is_touched) {
                continue;
            }
            let kept = trim(listed.networks().to_vec(), &guards, &own, &mut Tally::default());
            if let Err(reason) = self.put_feed(&name, kept.into_networks(), false) {
                log::error!(
                    "feed {name}: addresses that must stay reachable stay blocked: {reason}"
                );
            }
        }
    }

    /// Updates what feeds must not block (this host, what it needs, trusted networks) and must not
    /// trust or admit (networks that operators block). Returns whether the former has changed.
    fn protect(&self) -> bool {
        let trusted = self.lists.entries(List::Trust).map(|entry| entry.network);
        let anybody_allows = self.config.feeds.iter().any(|feed| feed.action != FeedAction::Block);
        let blocked = self.lists.entries(List::Block);
        let blocked = blocked
            .filter(|entry| anybody_allows && entry.owner == Owner::Manual && entry.port.is_none());
        self.feeds.protect(
            ProtectedSet::new(self.never_ban.networks().chain(trusted).collect()),
            ProtectedSet::new(blocked.map(|entry| entry.network).collect()),
        )
    }

    /// `feed list`.
    pub(super) fn feed_list(&self) -> Vec<FeedRow> {
        self.feeds.rows()
    }

    /// `feed sync`: starts a fetch. The response has the rounds that a waiting client polls the
    /// list for.
    pub(super) fn feed_sync(&mut self, name: Option<&str>, accept: bool) -> Result<Rounds> {
        self.protect();
        match self.feeds.sync(name, accept) {
            Some(rounds) => Ok(Rounds { rounds }),
            None => bail!("there is no feed {}; see `sip-xdp feed list`", name.unwrap_or_default()),
        }
    }

    /// Why an address stays blocked by feeds alone: the feeds that list it, and the remedy.
    pub(super) fn feed_listing(&self, network: &Network) -> Option<String> {
        let names = self.lists.feeds().covering(network);
        let name = |name: &&str| {
            if *name == EARLIER { "of an earlier run".to_owned() } else { (*name).to_owned() }
        };
        let names: Vec<_> = names.iter().map(name).collect();
        let all = names.join(", ");
        (!names.is_empty()).then(|| {
            format!(
                "{network} is still listed by the feed {all}; `sip-xdp trust add {network}` lets \
                 it through"
            )
        })
    }

    /// Warnings about feeds.
    pub(super) fn feeds_warnings(&self) -> Vec<String> {
        let mut warnings = self.feeds.warnings();
        if let Some(listed) = self.lists.feeds().get(EARLIER) {
            let count = listed.networks().len();
            warnings.push(format!(
                "{count} networks that feeds listed before this daemon started stay in force until \
                 each feed has been fetched"
            ));
        }
        warnings
    }
}
