//! A filter and a model that change together.

use std::collections::BTreeSet;
use std::fmt;

use sip_xdp::dataplane::loader::Settings;
use sip_xdp::dataplane::tables::ledger::Entry;
use sip_xdp::lists::{EARLIER, ListError, Lists};
use sip_xdp::net::network::address_of;
use sip_xdp_common::abi::layout::{List, NEVER, Owner};
use sip_xdp_common::lookup::host_rows::MARKS;
use sip_xdp_common::verdict::Reason;

use super::draw::Draw;
use super::reference::{Intervals, Prefix, ReferenceLists, is_v4, source};
use crate::kernel::feed_hosts::of_one_row;
use crate::kernel::frames::{Ip, tcp};
use crate::kernel::harness::{Kernel, SECOND, START};

/// One question in so many is also asked for the reason.
const REASONED: u64 = 8;
/// The feeds. Those of an earlier daemon have a name of their own.
const FEEDS: [&str; 2] = ["one", "two"];
/// Hosts of one row, three times as many as it has room for.
const CROWD: usize = 3 * MARKS;
/// How many changes a failure shows.
const SHOWN: usize = 12;

/// How large things are.
pub(super) struct Plan {
    /// Networks of a feed, at most.
    pub(super) feed: u64,
    /// Questions after each change.
    pub(super) each: u64,
}

/// What happened.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    pub(super) probes: u64,
    pub(super) blocked: u64,
    pub(super) trusted: u64,
    pub(super) changes: u64,
    pub(super) refused: u64,
    /// Refused although there was room, for want of a place.
    pub(super) crowded: u64,
    /// The most networks that were blocked at a time.
    most: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { probes, blocked, trusted, changes, refused, crowded, most } = self;
        write!(
            f,
            "{probes} probes, {blocked} blocked, {trusted} trusted; {changes} changes, {refused} \
             refused, {crowded} of \
             them for want of a place; at most {most} networks blocked"
        )
    }
}

pub(super) struct World {
    kernel: Kernel,
    reference: ReferenceLists,
    plan: Plan,
    capacity: usize,
    draw: Draw,
    now: u64,
    /// The networks of the last change.
    changed: Vec<Prefix>,
    /// The last changes in words.
    history: Vec<String>,
    pub(super) tally: Tally,
}

impl World {
    pub(super) fn new(settings: &Settings, plan: Plan, seed: u64) -> Self {
        let kernel = Kernel::new(settings);
        let draw = Draw::new(seed, of_one_row(&kernel, CROWD));
        Self {
            kernel,
            reference: ReferenceLists::default(),
            plan,
            capacity: settings.capacity.networks as usize,
            draw,
            now: START,
            changed: Vec::new(),
            history: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Makes one change.
    pub(super) fn change(&mut self) {
        self.tally.changes += 1;
        self.changed.clear();
        match self.draw.below(100) {
            0..36 => self.put(),
            36..40 => self.put_many(),
            40..62 => self.remove(),
            62..84 => self.replace(),
            84..88 => self.end_feed(),
            88..92 => self.expire(),
            92..94 => self.adopt(),
            _ => self.note("time goes by"),
        }
        self.now += self.draw.below(3) * SECOND / 2;
        self.kernel.set_clock(self.now);
        let blocked = self.reference.networks(List::Block).len();
        assert!(
            blocked <= self.capacity + self.capacity.div_ceil(3),
            "{blocked} networks are more than there is room for\n{}",
            self.history()
        );
        self.tally.most = self.tally.most.max(blocked);
    }

    /// A list and whose entry it is to be.
    fn claimant(&mut self) -> (List, Owner) {
        let (list, other) = if self.draw.below(2) == 0 {
            (List::Trust, Owner::Config)
        } else {
            (List::Block, Owner::Auto)
        };
        (list, if self.draw.below(2) == 0 { Owner::Manual } else { other })
    }

    fn end(&mut self) -> u64 {
        if self.draw.below(6) == 0 { NEVER } else { self.now + self.draw.below(120) * SECOND }
    }

    /// Enters some networks at once: those before the first that is refused.
    fn put_many(&mut self) {
        let (list, owner) = self.claimant();
        let count = 1 + self.draw.below(40);
        let new: Vec<(Prefix, u64)> = (0..count).map(|_| (self.network(4), self.end())).collect();
        self.note(&format!("{list:?} {count} networks at once for {}", owner.name()));
        let entry = |(prefix, end): &(Prefix, u64)| Entry {
            owner,
            ..Entry::manual(prefix.network(), *end, "")
        };
        let entered = match self.kernel.lists.put_all(list, new.iter().map(entry).collect()) {
            Ok(()) => new.len(),
            Err(stopped) => {
                let before = self.reference.claims.clone();
                // The model is to hold also what there is no room for.
                let wanted = new[..=stopped.entered]
                    .iter()
                    .map(|(prefix, end)| ((list, *prefix, owner), *end));
                self.reference.claims.extend(wanted);
                self.refused(&stopped.error);
                self.reference.claims = before;
                stopped.entered
            }
        };
        for (prefix, end) in &new[..entered] {
            self.reference.claims.insert((list, *prefix, owner), *end);
        }
        self.changed.extend(new.iter().map(|(prefix, _)| *prefix));
    }

    fn put(&mut self) {
        let (list, owner) = self.claimant();
        let (prefix, end) = (self.network(4), self.end());
        self.changed.push(prefix);
        self.note(&format!("{list:?} {} for {}, ends at {end}", prefix.network(), owner.name()));
        let before = self.reference.claims.insert((list, prefix, owner), end);
        let entry = Entry { owner, ..Entry::manual(prefix.network(), end, "") };
        if let Err(error) = self.kernel.lists.put(list, entry) {
            self.refused(&error);
            match before {
                Some(end) => self.reference.claims.insert((list, prefix, owner), end),
                None => self.reference.claims.remove(&(list, prefix, owner)),
            };
        }
    }

    fn remove(&mut self) {
        let claims: Vec<_> = self.reference.claims.keys().copied().collect();
        let Some(claim) = self.draw.one(&claims) else { return };
        let (list, prefix, owner) = claim;
        self.changed.push(prefix);
        self.note(&format!("{list:?} {} no longer for {}", prefix.network(), owner.name()));
        let removed = self.kernel.lists.remove(list, &prefix.network(), owner).unwrap();
        assert_eq!(
            removed.map(|entry| entry.expires),
            self.reference.claims.remove(&claim),
            "{}",
            self.history()
        );
    }

    /// Changes one or two networks of a feed in a hundred, half of them, or all.
    fn replace(&mut self) {
        let name = FEEDS[self.draw.below(2) as usize];
        let before = self.reference.feeds.get(name).cloned().unwrap_or_default();
        let leave = [1, 2, 50, 100][self.draw.below(8).saturating_sub(4) as usize];
        let mut after: BTreeSet<Prefix> =
            before.into_iter().filter(|_| self.draw.below(100) >= leave).collect();
        let wanted = self.plan.feed / 2 + self.draw.below(self.plan.feed / 2 + 1);
        while (after.len() as u64) < wanted {
            after.insert(self.network(20));
        }
        self.set_feed(name, after);
    }

    /// Ends a feed, or what is left of those of an earlier daemon.
    fn end_feed(&mut self) {
        let name = if self.reference.feeds.contains_key(EARLIER) {
            EARLIER
        } else {
            FEEDS[self.draw.below(2) as usize]
        };
        self.set_feed(name, BTreeSet::new());
    }

    fn set_feed(&mut self, name: &'static str, after: BTreeSet<Prefix>) {
        let before = self.reference.feeds.insert(name, after.clone()).unwrap_or_default();
        self.changed.extend(before.symmetric_difference(&after));
        let (added, removed) =
            (after.difference(&before).count(), before.difference(&after).count());
        self.note(&format!("feed \"{name}\" lists {}: {added} new, {removed} gone", after.len()));
        match self.kernel.lists.replace_feed(name, after.iter().map(Prefix::network).collect()) {
            Ok(refresh) => {
                let found = (refresh.added, refresh.removed, refresh.total);
                assert_eq!(found, (added, removed, after.len()), "{}", self.history());
            }
            Err(error) => {
                self.refused(&error);
                self.reference.feeds.insert(name, before);
            }
        }
        self.reference.feeds.retain(|_, networks| !networks.is_empty());
    }

    fn expire(&mut self) {
        self.note("what has ended is taken out");
        let out = self.kernel.lists.expire(self.now).unwrap().len();
        let over: Vec<_> = self
            .reference
            .claims
            .iter()
            .filter(|(_, end)| **end <= self.now)
            .map(|(claim, _)| *claim)
            .collect();
        assert_eq!(out, over.len(), "{}", self.history());
        for claim in over {
            self.reference.claims.remove(&claim);
            self.changed.push(claim.1);
        }
    }

    /// A new daemon takes over.
    fn adopt(&mut self) {
        self.note("a new daemon takes over");
        self.kernel.lists = Lists::open(|name| self.kernel.map_again(name)).unwrap();
        self.reference.adopt(EARLIER);
    }

    /// A refusal must say why, and be right: the model holds now what there is no room for.
    fn refused(&mut self, error: &ListError) {
        self.tally.refused += 1;
        self.note("refused");
        // While a feed is replaced, what comes needs places beside what goes.
        if matches!(error, ListError::NoPlace(_)) {
            self.tally.crowded += 1;
            return;
        }
        assert!(matches!(error, ListError::Full { .. }), "{error}\n{}", self.history());
        let networks: usize = [List::Block, List::Trust]
            .map(|list| self.reference.networks(list).len())
            .into_iter()
            .sum();
        let of_feeds: BTreeSet<&Prefix> = self.reference.feeds.values().flatten().collect();
        let of_feeds = of_feeds.len();
        // Feeds leave a third more to others, and a sixteenth to operators.
        let (capacity, reserve) = (self.capacity, self.capacity / 16);
        let room = (capacity + of_feeds).min(capacity + capacity.div_ceil(3)) - reserve;
        let most = self.reference.claims.len().max(of_feeds);
        assert!(
            most > capacity || networks > room,
            "{error}, but there is room\n{}",
            self.history()
        );
    }

    /// A random network, or one in so many times one that is listed already.
    fn network(&mut self, one_in: u64) -> Prefix {
        let known =
            if self.draw.below(one_in) == 0 { self.draw.one(&self.reference.all()) } else { None };
        known.unwrap_or_else(|| self.draw.prefix())
    }

    /// Asks the kernel about addresses: many of what has just changed, and of all that is listed.
    pub(super) fn ask(&mut self) {
        let blocked = self.reference.addresses(List::Block, self.now);
        let trusted = self.reference.addresses(List::Trust, self.now);
        let fed: Vec<Prefix> = self.reference.feeds.values().flatten().copied().collect();
        let claimed: Vec<Prefix> =
            self.reference.claims.keys().map(|(_, prefix, _)| *prefix).collect();
        let template = |from: &str| Ip { protocol: 6, ..Ip::udp(from) }.frame(&tcp(5060));
        let [mut frame4, mut frame6] = ["10.0.0.1", "2001:db8::1"].map(template);
        for probe in 0..self.plan.each {
            let near = match self.draw.below(8) {
                0..3 => self.draw.one(&self.changed),
                3 => self.draw.one(&fed),
                4..6 => self.draw.one(&claimed),
                _ => None,
            };
            let address = match near {
                Some(prefix) => self.draw.at(prefix),
                None => self.draw.address(),
            };
            let frame = if is_v4(address) {
                frame4[26..30].copy_from_slice(&address.to_be_bytes()[12..]);
                &frame4
            } else {
                frame6[22..38].copy_from_slice(&address.to_be_bytes());
                &frame6
            };
            let expected = judge(&blocked, &trusted, address);
            let right = if probe % REASONED == 0 {
                self.kernel.catch_up();
                self.kernel.run(frame).reason == expected
            } else {
                self.kernel.action(frame) == if expected == Reason::Blocked { 1 } else { 2 }
            };
            if !right {
                self.fail(address, expected);
            }
            self.tally.probes += 1;
            self.tally.blocked += u64::from(expected == Reason::Blocked);
            self.tally.trusted += u64::from(expected == Reason::Trusted);
        }
    }

    fn fail(&self, address: u128, expected: Reason) -> ! {
        panic!(
            "{} is not {} at {}, after change {}: {}\n{}",
            address_of(source(address)),
            expected.name(),
            self.now,
            self.tally.changes,
            self.reference.explain(address),
            self.history()
        )
    }

    /// The ledger says what was claimed.
    pub(super) fn agree_on_entries(&self) {
        for list in [List::Block, List::Trust] {
            let found: Vec<_> =
                self.kernel.lists.entries(list).map(|e| (e.network, e.owner, e.expires)).collect();
            let claims = self.reference.claims.iter().filter(|((of, ..), _)| *of == list);
            let mut expected: Vec<_> =
                claims.map(|((_, prefix, owner), end)| (prefix.network(), *owner, *end)).collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "{list:?}");
        }
    }

    fn note(&mut self, what: &str) {
        if self.history.len() == SHOWN {
            self.history.remove(0);
        }
        self.history.push(format!("{}: {what}", self.now));
    }

    fn history(&self) -> String {
        self.history.join("\n")
    }
}

/// Trust wins.
fn judge(blocked: &Intervals, trusted: &Intervals, address: u128) -> Reason {
    if trusted.contain(address) {
        Reason::Trusted
    } else if blocked.contain(address) {
        Reason::Blocked
    } else {
        Reason::Unknown
    }
}
