//! Accounts that cover guesses: others are tried at their ports, which no ban closes. They lose
//! their standing at that address, and earn none at its site for a day.

use std::collections::BTreeSet;

use sip_xdp_common::ip_key::IpKey;

use super::super::explain::named;
use super::super::registrations::AcceptedPort;
use super::super::{Action, Detector};
use super::forgotten::{WANDERING, site_of};

/// Number of users that are tried at ports of accounts from which on these may cover them.
const MANY_COVERED: usize = 5;

impl Detector {
    /// Accounts at whose ports others are tried cover these tries, if such users were no fewer than
    /// they are, and more than a customer's PBX has forgotten. They lose their places at this
    /// address, and earn none there for a day.
    pub(super) fn expel_accounts(
        &mut self,
        source: IpKey,
        tried: &BTreeSet<u16>,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        let accounts = self.accounts_at(&source, tried, now);
        let covered = self.covered_users(&source, now);
        if covered >= accounts.len().max(MANY_COVERED) {
            self.expel(source, accounts, now, actions);
        }
    }

    /// Accounts that are registered at ever new addresses of an IPv6 site, where others are tried
    /// at their ports.
    pub(super) fn expel_wanderers(
        &mut self,
        source: IpKey,
        port: u16,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        if self.is_covered_by_wandering(&source, now) {
            let mut accounts = self.accounts_at(&source, &BTreeSet::from([port]), now);
            accounts.retain(|user| {
                let is_here = |address: &&IpKey| site_of(address) == site_of(&source);
                self.memory.rejected.is_expelled(&source, user, now)
                    || self.known.addresses(user).filter(is_here).count() >= WANDERING
            });
            self.expel(source, accounts, now, actions);
        }
    }

    /// The users that are accepted at some of these ports.
    fn accounts_at(&self, source: &IpKey, ports: &BTreeSet<u16>, now: u64) -> BTreeSet<String> {
        let is_live = |at: &AcceptedPort| at.until > now && ports.contains(&at.port);
        let accepted = self.known.accepted_at(source).filter(|(_, at)| is_live(at));
        accepted.map(|(user, _)| user.to_owned()).collect()
    }

    fn expel(
        &mut self,
        source: IpKey,
        accounts: BTreeSet<String>,
        now: u64,
        actions: &mut Vec<Action>,
    ) {
        if accounts.is_empty() {
            return;
        }
        let text = format!(
            "at ports of {} passwords of others are tried: no standing there for a day",
            named(accounts.iter().map(String::as_str))
        );
        let mut ended = Vec::new();
        for user in accounts {
            let places = self.known.forget_account(&source, &user);
            ended.extend(places.into_iter().map(|port| (source, port)));
            self.memory.rejected.expel(&source, user, now);
        }
        actions.push(Action::Ended(ended));
        actions.push(Action::Expelled(source, text));
    }
}
