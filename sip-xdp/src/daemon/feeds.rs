//! Feeds in the daemon: what they bring is put into force, and what must stay reachable is kept out of it.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use log::Level;
use serde_json::{Value, json};
use sip_xdp_common::layout::List;

use super::Daemon;
use super::events::Event as Said;
use crate::config::Guards;
use crate::feeds::engine::Update;
use crate::feeds::guards::{Untouchable, trim};
use crate::feeds::parse::Tally;
use crate::lists::EARLIER;
use crate::network::Network;

impl Daemon {
    /// Follows the feeds of the configuration. What is on disk of those that are new comes into force at once.
    pub(super) fn prepare_feeds(&mut self) {
        self.feeds.protect(self.untouchable());
        for (name, networks) in self.feeds.configure(&self.config.feeds) {
            if let Err(reason) = self.put_feed(&name, networks, false) {
                log::error!("feed {name}: its list on disk is not in force: {reason}");
            }
        }
        let wanted: BTreeSet<String> = self.feeds.names().map(str::to_owned).collect();
        let listed = self.lists.feeds().iter().map(|(name, _)| name.to_owned());
        let gone: Vec<_> = listed.filter(|name| name != EARLIER && !wanted.contains(name)).collect();
        for name in gone {
            if let Err(reason) = self.put_feed(&name, Vec::new(), false) {
                log::error!("feed {name}: what it listed stays in force: {reason}");
            }
        }
        self.settle_feeds();
    }

    /// Takes what a feed has to say.
    pub(super) fn feed_said(&mut self, update: Update) {
        let Update { name, generation, state, list } = update;
        let was_settled = self.feeds.is_settled();
        let before = self.feeds.trouble(&name);
        if !self.feeds.note(&name, generation, state) {
            return;
        }
        // Its thread has logged it.
        match self.feeds.trouble(&name) {
            now if now == before => {}
            Some((error, is_refused)) => {
                let kind = if is_refused { "refused" } else { "failed" };
                self.tell(&Said::new("feed").kind(kind).reason(format!("{name}: {error}")));
            }
            None => self.tell(&Said::new("feed").kind("well").reason(name.as_str())),
        }
        if let Some(list) = list {
            // If it has ended meanwhile, nobody wants to know.
            let _ = list.applied.send(self.put_feed(&name, list.networks, list.is_expired));
        } else if !was_settled {
            self.settle_feeds();
        }
    }

    /// Puts what a feed lists into force.
    fn put_feed(
        &mut self,
        name: &str,
        networks: Vec<Network>,
        is_expired: bool,
    ) -> Result<crate::lists::Refresh, String> {
        let refresh = self.lists.replace_feed(name, networks).map_err(|error| error.to_string())?;
        let crate::lists::Refresh { added, removed, total } = refresh;
        if is_expired {
            let said = Said::new("feed").kind("expired").reason(format!("{name}: {removed} networks were taken out"));
            self.say(said, Level::Warn, format_args!("feed {name} expired removed={removed}"));
        } else if added + removed > 0 {
            let reason = format!("{name}: {added} added, {removed} removed, {total} in all");
            let said = Said::new("feed").kind("changed").reason(reason);
            self.say(said, Level::Info, format_args!("feed {name} added={added} removed={removed} total={total}"));
        }
        Ok(refresh)
    }

    /// Lets go of what feeds of an earlier daemon listed, as soon as all have spoken.
    fn settle_feeds(&mut self) {
        let count = self.lists.feeds().get(EARLIER).map_or(0, |listed| listed.networks().len());
        if count == 0 || !self.feeds.is_settled() {
            return;
        }
        if let Err(error) = self.lists.replace_feed(EARLIER, Vec::new()) {
            log::error!("what feeds listed before stays in force: {error}");
        }
    }

    /// What must stay reachable now: what feeds list of it is taken out, and not taken in.
    pub(super) fn protect_from_feeds(&mut self) {
        if !self.feeds.protect(self.untouchable()) {
            return;
        }
        // The kernel asks the trust list first; here only the host itself matters, and what it needs.
        let own = Untouchable::new(self.exempt.networks().collect());
        let guards = Guards { min_prefix: 0, min_prefix6: 0, ..Guards::default() };
        let names: Vec<String> = self.lists.feeds().iter().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let Some(listed) = self.lists.feeds().get(&name) else {
                continue;
            };
            let is_touched = |host: Network| listed.covers(&host);
            if !self.exempt.networks().any(is_touched) {
                continue;
            }
            let kept = trim(listed.networks().to_vec(), &guards, &own, &mut Tally::default());
            if let Err(reason) = self.put_feed(&name, kept.into_networks(), false) {
                log::error!("feed {name}: addresses that must stay reachable stay blocked: {reason}");
            }
        }
    }

    fn untouchable(&self) -> Untouchable {
        let trusted = self.lists.entries(List::Trust).map(|entry| entry.network);
        Untouchable::new(self.exempt.networks().chain(trusted).collect())
    }

    /// `feed list`.
    pub(super) fn feed_list(&self) -> Value {
        Value::Array(self.feeds.rows())
    }

    /// `feed sync`: starts it. Who waits asks for the list until it says these rounds.
    pub(super) fn feed_sync(&mut self, name: Option<&str>, accept: bool) -> Result<Value> {
        self.feeds.protect(self.untouchable());
        match self.feeds.sync(name, accept) {
            Some(rounds) => Ok(json!({ "rounds": rounds })),
            None => bail!("there is no feed {}; see `sip-xdp feed list`", name.unwrap_or_default()),
        }
    }

    /// Why an address stays blocked although nobody else blocks it: the feeds that list it, and what helps.
    pub(super) fn fed(&self, network: &Network) -> Option<String> {
        let names = self.lists.feeds().covering(network);
        let name = |name: &&str| if *name == EARLIER { "of an earlier run".to_owned() } else { (*name).to_owned() };
        let names: Vec<_> = names.iter().map(name).collect();
        let all = names.join(", ");
        (!names.is_empty()).then(|| {
            format!("{network} is still listed by the feed {all}; `sip-xdp trust add {network}` lets it through")
        })
    }

    /// What an operator should know of the feeds.
    pub(super) fn feeds_warnings(&self) -> Vec<String> {
        let mut warnings = self.feeds.warnings();
        if let Some(listed) = self.lists.feeds().get(EARLIER) {
            let count = listed.networks().len();
            warnings.push(format!(
                "{count} networks that feeds listed before this daemon started stay in force until each feed has been fetched"
            ));
        }
        warnings
    }
}
