//! Comparison of two configurations on one capture: the sources that are treated differently.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::report::{Ban, Limited, Replayed};
use super::timeline::Fate;
use crate::dataplane::counters::{self, SCHEMA};
use crate::net::network::{Network, source_of};

/// Both replays, and their differences.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Comparison {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Time of the comparison.
    pub time: Timestamp,
    /// Names of the configurations.
    pub configurations: [String; 2],
    /// Sources that are treated differently.
    pub differences: Vec<Difference>,
    /// Both replays.
    pub replays: [Replayed; 2],
}

/// A source that is treated differently.
#[derive(Debug, Clone, JsonSchema, Serialize)]
pub struct Difference {
    /// Source address.
    pub address: IpAddr,
    /// Its outcome with the first configuration.
    pub first: Outcome,
    /// Its outcome with the second.
    pub second: Outcome,
}

/// The outcome of a source.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Outcome {
    /// `banned`, `limited` or `passes`: the worst.
    #[schemars(extend("enum" = ["passes", "limited", "banned"]))]
    pub verdict: &'static str,
    /// The evidence, or the limit.
    pub kind: Option<String>,
    /// First occurrence.
    pub since: Option<Timestamp>,
    /// Number of bans.
    pub bans: usize,
    /// Its packets.
    #[serde(flatten)]
    pub fate: Fate,
}

impl Comparison {
    /// Compares two replays with the names of their configurations.
    pub(super) fn of([(first, one), (second, two)]: [(&str, Replayed); 2]) -> Self {
        let addresses: BTreeSet<IpAddr> =
            one.fates.keys().chain(two.fates.keys()).copied().collect();
        let outcomes = [Outcomes::of(&one), Outcomes::of(&two)];
        let differences = addresses.into_iter().filter_map(|address| {
            let [first, second] = [0, 1].map(|which: usize| outcomes[which].outcome(address));
            (first != second).then_some(Difference { address, first, second })
        });
        Self {
            schema: SCHEMA,
            time: counters::now(),
            configurations: [first.to_owned(), second.to_owned()],
            differences: differences.collect(),
            replays: [one, two],
        }
    }
}

/// Outcomes of a replay by address.
struct Outcomes<'r> {
    replayed: &'r Replayed,
    bans: BTreeMap<Network, Vec<&'r Ban>>,
    limited: BTreeMap<IpAddr, &'r Limited>,
    /// Prefix lengths of banned networks.
    lengths: BTreeSet<u8>,
}

impl<'r> Outcomes<'r> {
    fn of(replayed: &'r Replayed) -> Self {
        let mut bans: BTreeMap<Network, Vec<&Ban>> = BTreeMap::new();
        replayed.banned.iter().for_each(|ban| bans.entry(ban.address).or_default().push(ban));
        let limited = replayed.limited.iter().map(|row| (row.address, row)).collect();
        Self { replayed, lengths: bans.keys().map(Network::bits).collect(), bans, limited }
    }

    fn outcome(&self, address: IpAddr) -> Outcome {
        let fate = self.replayed.fates.get(&address).copied().unwrap_or_default();
        let around = self.lengths.iter().map(|bits| Network::around(source_of(address), *bits));
        let bans: Vec<&Ban> =
            around.filter_map(|network| self.bans.get(&network)).flatten().copied().collect();
        if let Some(first) = bans.iter().min_by_key(|ban| ban.time) {
            let (kind, since) = (Some(first.kind.clone()), Some(first.time));
            return Outcome { verdict: "banned", kind, since, bans: bans.len(), fate };
        }
        match self.limited.get(&address) {
            Some(row) => Outcome {
                verdict: "limited",
                kind: Some(row.kind.clone()),
                since: Some(row.time),
                bans: 0,
                fate,
            },
            None => Outcome { verdict: "passes", kind: None, since: None, bans: 0, fate },
        }
    }
}
