//! What lists say: one module for each format. Everything is read line by line in bounded memory, and believed word by
//! word: what is not an address or a network as a whole is skipped, counted, and never repaired.

mod apiban;
mod crowdsec;
mod dshield;
mod lines;
mod list;
mod spamhaus;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::FeedFormat;
use crate::net::network::Network;

pub(super) use apiban::{Page, page};
pub(super) use crowdsec::decisions;

use lines::{Line, Lines};

/// What was read, and what was left out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The networks, in the order of the list.
    pub networks: Vec<Network>,
    /// What was left out.
    pub tally: Tally,
}

/// What was left out of a list and why, and what was put right.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// How many entries were skipped, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// How many had bits set behind their prefix; the network was taken.
    pub host_bits: u64,
    /// How many were split, because something that must stay reachable lies inside.
    pub split: u64,
    /// How many networks more there are for that.
    pub pieces: u64,
    /// The first line that was no entry.
    pub first_malformed: Option<u64>,
}

/// The reasons to skip an entry.
pub(super) mod reason {
    pub(in crate::feeds) const MALFORMED: &str = "malformed";
    pub(in crate::feeds) const DUPLICATE: &str = "duplicate";
    pub(in crate::feeds) const TOO_BROAD: &str = "too_broad";
    pub(in crate::feeds) const SPECIAL: &str = "special";
    pub(in crate::feeds) const PROTECTED: &str = "protected";
    pub(in crate::feeds) const OTHER: &str = "other";
}

impl Tally {
    /// Counts one that is skipped.
    pub fn skip(&mut self, reason: &'static str) {
        *self.skipped.entry(reason).or_default() += 1;
    }

    /// How many were skipped for a reason.
    pub fn count(&self, reason: &str) -> u64 {
        self.skipped.get(reason).copied().unwrap_or_default()
    }

    /// The guards that fired, and how often.
    pub fn guards(&self) -> Vec<(&'static str, u64)> {
        let skipped = [reason::TOO_BROAD, reason::SPECIAL, reason::PROTECTED].map(|name| (name, self.count(name)));
        skipped.into_iter().chain([("split", self.split)]).filter(|(_, count)| *count > 0).collect()
    }

    /// Whether nothing was left out or changed.
    pub(super) fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    fn malformed(&mut self, line: u64) {
        self.first_malformed.get_or_insert(line);
        self.skip(reason::MALFORMED);
    }
}

/// Reads a list of one of the formats that are files. More than `most` entries are an error.
pub(super) fn parse(format: FeedFormat, reader: impl BufRead, most: usize) -> Result<Parsed, String> {
    let mut reading = Reading { parsed: Parsed::default(), most };
    let mut lines = Lines::new(reader);
    match format {
        FeedFormat::Spamhaus => spamhaus::read(&mut lines, &mut reading)?,
        FeedFormat::Dshield => dshield::read(&mut lines, &mut reading)?,
        FeedFormat::List | FeedFormat::Apiban | FeedFormat::Crowdsec => list::read(&mut lines, &mut reading)?,
    }
    let parsed = reading.parsed;
    let malformed = parsed.tally.count(reason::MALFORMED);
    if malformed > parsed.networks.len() as u64 {
        let first = parsed.tally.first_malformed.unwrap_or_default();
        return Err(format!(
            "{malformed} of {} lines are no entries of the format {}, the first of them line {first}",
            malformed + parsed.networks.len() as u64,
            format.name()
        ));
    }
    Ok(parsed)
}

/// A list that is being read.
struct Reading {
    parsed: Parsed,
    most: usize,
}

impl Reading {
    /// Takes a word that should be an address or a network.
    fn take(&mut self, word: &str, line: u64) -> Result<(), String> {
        take(&mut self.parsed, word, line);
        if self.parsed.networks.len() > self.most {
            return Err(format!("it has more than {} entries", self.most));
        }
        Ok(())
    }
}

fn take(parsed: &mut Parsed, word: &str, line: u64) {
    match Word::read(word) {
        Word::Network { network, host_bits } => {
            parsed.tally.host_bits += u64::from(host_bits);
            parsed.networks.push(network);
        }
        Word::Everybody => parsed.tally.skip(reason::TOO_BROAD),
        Word::Mapped => parsed.tally.skip(reason::SPECIAL),
        Word::Malformed => parsed.tally.malformed(line),
    }
}

/// What a word means.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    /// A network, perhaps with bits set behind its prefix.
    Network { network: Network, host_bits: bool },
    /// An IPv6 network that covers the range where IPv4 is mapped to.
    Everybody,
    /// IPv4 written as IPv6.
    Mapped,
    /// Neither an address nor a network.
    Malformed,
}

impl Word {
    fn read(text: &str) -> Self {
        let net = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => match text.parse::<IpNet>() {
                Ok(net) => net,
                Err(_) => return Self::Malformed,
            },
        };
        let network = Network::from(net);
        if matches!(net, IpNet::V6(_)) && network.meets_ipv4() {
            return if network.bits() < 19 { Self::Everybody } else { Self::Mapped };
        }
        Self::Network { network, host_bits: net.trunc() != net }
    }
}

/// The text of a line, and why there is none.
fn text<'a>(line: &Line<'a>) -> Option<&'a str> {
    match line {
        Line::Text(bytes) => std::str::from_utf8(bytes).ok().map(str::trim_ascii),
        Line::TooLong => None,
    }
}
