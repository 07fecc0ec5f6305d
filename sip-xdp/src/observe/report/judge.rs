//! Evaluation of the facts. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use super::{
    Ban, Change, Doubtful, Facts, Good, Kind, Offender, Report, Rule, SprayedUser, Suggestion,
    Tally,
};
use crate::config::{Detect, Span};
use crate::dataplane::counters::{self, SCHEMA};
use crate::dataplane::tables::ledger::Tier;
use crate::net::network::Network;
use crate::store::{Accepted, Served};
use crate::sys::clock;

/// The kind of phones with a wrong password: a correct ban, which the operator should know.
const MISCONFIGURED: &str = "misconfigured";

/// Maximum number of rows of each list, and of users and addresses named in a row.
const MAX_ROWS: usize = 1_000;
const MAX_NAMED: usize = 8;

/// Maximum number of reported offenders.
const REPEATERS: usize = 10;

/// Minimum number of doubtful bans of a rule before it is suggested to loosen it, and their minimum
/// share of all its bans: one in this many.
const DOUBTS: u64 = 3;
const DOUBTED_ONE_IN: u64 = 5;

/// Number of lifted bans of a source after which it is suggested to trust it.
const LIFTED_AGAIN: u64 = 2;

/// Evaluates the facts.
pub fn judge(facts: Facts) -> Report {
    let bans = Judged::all(&facts);
    let mut kinds: BTreeMap<(String, Option<Tier>), Tally> = BTreeMap::new();
    let mut places: HashSet<(String, Option<Tier>, Network)> = HashSet::new();
    let mut all = Tally::default();
    let mut networks = HashSet::new();
    for judged in &bans {
        let ban = &judged.ban.row.ban;
        let tally = kinds.entry((ban.kind.clone(), ban.tier)).or_default();
        tally.addresses += u64::from(places.insert((ban.kind.clone(), ban.tier, ban.network)));
        all.addresses += u64::from(networks.insert(ban.network));
        [tally, &mut all].into_iter().for_each(|tally| judged.count(tally));
    }
    let kinds = kinds.into_iter().map(|((kind, tier), tally)| Kind { kind, tier, tally });
    let mut kinds: Vec<Kind> = kinds.collect();
    kinds.sort_by_key(|row| std::cmp::Reverse(row.tally.bans));

    let others: HashSet<Network> = bans
        .iter()
        .filter(|judged| judged.ban.row.ban.kind != MISCONFIGURED)
        .map(|judged| judged.ban.row.ban.network)
        .collect();
    let homes: HashSet<IpAddr> = facts.accepted.iter().map(|row| row.address).collect();
    // A guesser who tries one user slowly looks the same, except for the address.
    let is_phone = |judged: &&Judged<'_>| {
        let ban = &judged.ban.row.ban;
        ban.kind == MISCONFIGURED
            && homes.contains(&ban.network.address())
            && !others.contains(&ban.network)
    };
    let phones = offenders(bans.iter().filter(is_phone), true);
    let mut repeaters = offenders(bans.iter().filter(|judged| !is_phone(judged)), false);
    repeaters.truncate(REPEATERS);
    let sprayed = sprayed(&facts);
    let suggestions = suggestions(&facts, &bans, &kinds);
    let mut rules = rules(&facts.rules, &bans);
    rules.sort_by_key(|row| std::cmp::Reverse(row.bans));
    let doubtful = bans.iter().filter(|judged| judged.is_doubtful()).rev().take(MAX_ROWS);
    Report {
        schema: SCHEMA,
        time: counters::now(),
        from: clock::from_ms(facts.from_ms),
        to: clock::from_ms(facts.to_ms),
        bans: all,
        kinds,
        rules,
        doubtful: doubtful.map(Judged::doubtful).collect(),
        phones,
        repeaters,
        sprayed,
        good: good(&facts),
        suggestions,
        notes: facts.notes,
        capture: facts.capture,
    }
}

/// A ban and its outcome.
struct Judged<'a> {
    ban: &'a Ban,
    /// Whether the same place was banned again before the end: its packets count there.
    is_continued: bool,
    /// Users accepted there after the start.
    later: Vec<&'a Accepted>,
}

impl<'a> Judged<'a> {
    fn all(facts: &'a Facts) -> Vec<Self> {
        let mut accepted: HashMap<IpAddr, Vec<&Accepted>> = HashMap::new();
        for row in &facts.accepted {
            accepted.entry(row.address).or_default().push(row);
        }
        // In reverse, to know the next ban of each place.
        let mut next: HashMap<(Network, Option<u16>), u64> = HashMap::new();
        let mut all: Vec<Self> = Vec::with_capacity(facts.bans.len());
        for ban in facts.bans.iter().rev() {
            let row = &ban.row;
            let end = row.end.as_ref().map_or(u64::MAX, |end| end.at_ms);
            let after = next.insert((row.ban.network, row.ban.port), row.ban.from_ms);
            let is_continued = after.is_some_and(|from| from < end);
            all.push(Self { ban, is_continued, later: accepted_later(ban, &accepted) });
        }
        all.reverse();
        all
    }

    fn is_lifted(&self) -> bool {
        self.ban.row.end.as_ref().is_some_and(|end| end.by == "command")
    }

    fn is_doubtful(&self) -> bool {
        // A phone that was accepted later has been repaired; the ban was right.
        let is_phone = self.ban.row.ban.kind == MISCONFIGURED;
        self.is_lifted() || !self.later.is_empty() && !is_phone
    }

    /// Whether it has ended, and no packet was dropped for it.
    fn is_quiet(&self) -> bool {
        self.ban.row.end.is_some() && self.ban.hits == Some(0) && !self.is_continued
    }

    fn hits(&self) -> u64 {
        if self.is_continued { 0 } else { self.ban.hits.unwrap_or(0) }
    }

    fn count(&self, tally: &mut Tally) {
        tally.bans += 1;
        tally.lifted += u64::from(self.is_lifted());
        tally.good_later += u64::from(!self.later.is_empty());
        tally.quiet += u64::from(self.is_quiet());
        tally.in_force += u64::from(self.ban.row.end.is_none() && !self.is_continued);
        tally.hits += self.hits();
    }

    fn doubtful(&self) -> Doubtful {
        let ban = &self.ban.row.ban;
        let users: BTreeSet<&str> = self.later.iter().map(|row| row.user.as_str()).collect();
        Doubtful {
            address: ban.network,
            port: ban.port,
            kind: ban.kind.clone(),
            tier: ban.tier,
            reason: ban.reason.clone(),
            from: clock::from_ms(ban.from_ms),
            lifted: self.is_lifted(),
            users: users.into_iter().take(MAX_NAMED).map(str::to_owned).collect(),
            known_before: self.later.iter().any(|row| row.first_ms < ban.from_ms),
        }
    }
}

/// Users accepted at a place after its ban.
fn accepted_later<'a>(
    ban: &Ban,
    accepted: &HashMap<IpAddr, Vec<&'a Accepted>>,
) -> Vec<&'a Accepted> {
    let ban = &ban.row.ban;
    let is_later =
        |row: &&Accepted| row.last_ms > ban.from_ms && ban.port.is_none_or(|port| port == row.port);
    if ban.network.is_host() {
        let rows = accepted.get(&ban.network.address()).into_iter().flatten();
        return rows.copied().filter(is_later).collect();
    }
    let inside =
        accepted.iter().filter(|(address, _)| ban.network.contains(&Network::host(**address)));
    inside.flat_map(|(_, rows)| rows.iter().copied()).filter(is_later).collect()
}

/// Banned sources by descending number of bans; phones by port.
fn offenders<'a>(bans: impl Iterator<Item = &'a Judged<'a>>, by_port: bool) -> Vec<Offender> {
    let mut all: BTreeMap<(Network, Option<u16>), Offender> = BTreeMap::new();
    for judged in bans {
        let ban = &judged.ban.row.ban;
        let port = if by_port { ban.port } else { None };
        let one = all.entry((ban.network, port)).or_insert_with(|| Offender {
            address: ban.network,
            port,
            bans: 0,
            hits: 0,
            last: clock::from_ms(ban.from_ms),
            kinds: Vec::new(),
            reason: String::new(),
        });
        one.bans += 1;
        one.hits += judged.hits();
        one.last = clock::from_ms(ban.from_ms);
        one.reason.clone_from(&ban.reason);
        if !one.kinds.contains(&ban.kind) {
            one.kinds.push(ban.kind.clone());
        }
    }
    let mut all: Vec<Offender> = all.into_values().collect();
    all.sort_by_key(|one| std::cmp::Reverse((one.bans, one.hits)));
    all.truncate(MAX_ROWS);
    all
}

fn rules(config: &Detect, bans: &[Judged<'_>]) -> Vec<Rule> {
    let mut fired: HashMap<&str, (u64, u64)> = HashMap::new();
    for judged in bans {
        let ban = &judged.ban.row.ban;
        let entry = fired.entry(ban.kind.as_str()).or_default();
        *entry = (entry.0 + 1, entry.1.max(ban.from_ms));
    }
    let rule = |(rule, enabled)| {
        let (bans, last) = fired.get(rule).copied().unwrap_or_default();
        Rule { rule, enabled, bans, last: (bans > 0).then(|| clock::from_ms(last)) }
    };
    config.names().into_iter().map(rule).collect()
}

fn sprayed(facts: &Facts) -> Vec<SprayedUser> {
    let mut places: HashMap<(&str, IpAddr), u64> = HashMap::new();
    for row in &facts.accepted {
        let first = places.entry((row.user.as_str(), row.address)).or_insert(row.first_ms);
        *first = (*first).min(row.first_ms);
    }
    let mut new_places: BTreeMap<&str, Vec<(IpAddr, u64)>> = BTreeMap::new();
    for ((user, address), first) in places {
        new_places.entry(user).or_default().push((address, first));
    }
    let user = |row: &crate::store::Sprayed| {
        let new = new_places.get(row.user.as_str()).into_iter().flatten();
        let mut new: Vec<IpAddr> =
            new.filter(|(_, first)| *first >= row.from_ms).map(|(address, _)| *address).collect();
        new.sort_unstable();
        new.truncate(MAX_NAMED);
        SprayedUser {
            user: row.user.clone(),
            tier: row.tier,
            tries: row.tries,
            addresses: row.sources,
            first: clock::from_ms(row.from_ms),
            last: clock::from_ms(row.last_ms),
            new_places: new,
        }
    };
    // A user that was tried again later, or around a restart, has several rows.
    let mut users: BTreeMap<&str, SprayedUser> = BTreeMap::new();
    for row in &facts.sprayed {
        let one = user(row);
        match users.entry(row.user.as_str()) {
            Entry::Vacant(place) => _ = place.insert(one),
            Entry::Occupied(mut known) => known.get_mut().add(one),
        }
    }
    let mut all: Vec<SprayedUser> = users.into_values().collect();
    all.sort_by_key(|one| std::cmp::Reverse(one.tries));
    all.truncate(MAX_ROWS);
    all
}

impl SprayedUser {
    /// Adds the figures of another period. Addresses of both count twice.
    fn add(&mut self, other: Self) {
        self.tries += other.tries;
        self.addresses += other.addresses;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.tier = self.tier.max(other.tier);
        self.new_places.extend(other.new_places);
        self.new_places.sort_unstable();
        self.new_places.dedup();
    }
}

/// Addresses whose calls the server processes, without those that were banned, which may be an
/// attacker's.
fn partners(facts: &Facts) -> impl Iterator<Item = &Served> {
    let banned: HashSet<Network> = facts.bans.iter().map(|ban| ban.row.ban.network).collect();
    facts.served.iter().filter(move |row| !banned.contains(&Network::host(row.address)))
}

fn good(facts: &Facts) -> Good {
    let lately =
        || facts.accepted.iter().filter(|row| row.until_ms.max(row.last_ms) >= facts.from_ms);
    let users: HashSet<&str> = lately().map(|row| row.user.as_str()).collect();
    let addresses: HashSet<IpAddr> = lately().map(|row| row.address).collect();
    let mut served: Vec<IpAddr> = partners(facts).map(|row| row.address).collect();
    served.sort_unstable();
    Good { users: users.len() as u64, addresses: addresses.len() as u64, served, lost: facts.lost }
}

fn suggestions(facts: &Facts, bans: &[Judged<'_>], kinds: &[Kind]) -> Vec<Suggestion> {
    let mut all = Vec::new();
    passwords(facts, bans, &mut all);
    let is_trusted =
        |address: &Network| facts.trusted.iter().any(|trusted| trusted.contains(address));
    let served = partners(facts).map(|row| (Network::host(row.address), row));
    for (address, row) in served.filter(|(address, _)| !is_trusted(address)) {
        let since = clock::from_ms(row.first_ms).strftime("%F");
        let reason = format!("the server has taken its calls without credentials since {since}");
        all.push(trust(&address, reason));
    }
    let mut lifted: BTreeMap<Network, u64> = BTreeMap::new();
    for judged in bans.iter().filter(|judged| judged.is_lifted()) {
        *lifted.entry(judged.ban.row.ban.network).or_default() += 1;
    }
    for (address, count) in lifted {
        let has =
            all.iter().any(|one| one.change == Change::Trust && one.about == address.to_string());
        if count >= LIFTED_AGAIN && !is_trusted(&address) && !has {
            all.push(trust(&address, format!("its bans were lifted by an operator {count} times")));
        }
    }
    loosen(&facts.rules, bans, kinds, &mut all);
    all.truncate(MAX_ROWS);
    all
}

fn trust(address: &Network, reason: String) -> Suggestion {
    let command = format!("sip-xdp trust add {address} --reason '{reason}'");
    Suggestion { change: Change::Trust, about: address.to_string(), reason, command: Some(command) }
}

/// Users who were accepted at the address of a guesser, and before only elsewhere.
fn passwords(facts: &Facts, bans: &[Judged<'_>], all: &mut Vec<Suggestion>) {
    let mut homes: HashMap<&str, Vec<(IpAddr, u64)>> = HashMap::new();
    for row in &facts.accepted {
        homes.entry(row.user.as_str()).or_default().push((row.address, row.first_ms));
    }
    let lives_elsewhere = |row: &Accepted| {
        let homes = homes.get(row.user.as_str()).into_iter().flatten();
        homes.into_iter().any(|(address, first)| *address != row.address && *first < row.first_ms)
    };
    let mut told = BTreeSet::new();
    for judged in bans {
        let ban = &judged.ban.row.ban;
        if !matches!(ban.kind.as_str(), "rejected" | "slow" | "sprayed" | "decoy") {
            continue;
        }
        // A user accepted there before has mistyped.
        if judged.later.iter().any(|row| row.first_ms <= ban.from_ms) {
            continue;
        }
        for row in &judged.later {
            if lives_elsewhere(row) && told.insert((row.user.clone(), row.address)) {
                let reason = format!(
                    "was accepted at {} after that was banned ({}): the password may have been \
                     guessed",
                    row.address, ban.kind
                );
                all.push(Suggestion {
                    change: Change::Password,
                    about: row.user.clone(),
                    reason,
                    command: None,
                });
            }
        }
    }
}

/// Rules with many doubtful bans.
fn loosen(rules: &Detect, bans: &[Judged<'_>], kinds: &[Kind], all: &mut Vec<Suggestion>) {
    for (name, _) in rules.names() {
        let of = kinds.iter().filter(|row| row.kind == name);
        let count: u64 = of.map(|row| row.tally.bans).sum();
        let is_wrong =
            |judged: &&Judged<'_>| judged.ban.row.ban.kind == name && judged.is_doubtful();
        let doubted = bans.iter().filter(is_wrong).count() as u64;
        if doubted < DOUBTS || doubted * DOUBTED_ONE_IN < count {
            continue;
        }
        let reason = format!(
            "{doubted} of its {count} bans were lifted, or hit somebody who was accepted later"
        );
        let command = rules.looser(name).map(|(count, per): (u32, Span)| {
            format!(
                "[detect.{name}] count = {count}, per = \"{per}\"; try it: sip-xdp replay --compare"
            )
        });
        all.push(Suggestion {
            change: Change::Loosen,
            about: format!("detect.{name}"),
            reason,
            command,
        });
    }
}
