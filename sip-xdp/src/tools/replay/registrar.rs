//! The local side of a capture: the addresses that a filter would protect.

use std::collections::{BTreeMap, HashSet};

use sip_xdp_common::ip_key::IpKey;
use sip_xdp_common::verdict::Message;

use super::frame::Ends;
use crate::dataplane::loader::Ports;
use crate::net::network::Network;

/// Maximum number of address pairs used for the guess; further ones are ignored.
const MAX_PAIRS: usize = 1 << 20;

/// The local addresses.
#[derive(Debug, Default)]
pub(super) struct Registrar {
    pub(super) networks: Vec<Network>,
    /// How they were determined.
    pub(super) how: &'static str,
    /// Guessed addresses.
    hosts: HashSet<IpKey>,
}

impl Registrar {
    /// From the command line.
    pub(super) fn named(networks: Vec<Network>) -> Self {
        Self { networks, how: "given", hosts: HashSet::new() }
    }

    /// Whether an address is local.
    pub(super) fn has(&self, address: &IpKey) -> bool {
        if !self.hosts.is_empty() {
            return self.hosts.contains(address);
        }
        let host = Network::around(*address, 128);
        self.networks.iter().any(|network| network.contains(&host))
    }

    /// Whether they are unknown, so that everything to a SIP port counts as incoming.
    pub(super) fn is_unknown(&self) -> bool {
        self.networks.is_empty()
    }
}

/// The guess of the local addresses, by who answers SIP messages.
#[derive(Debug, Default)]
pub(super) struct Guess {
    /// Requests by source and destination, and whether they were REGISTER.
    asked: HashSet<(IpKey, IpKey, bool)>,
    answered: HashSet<(IpKey, IpKey, bool)>,
    candidates: BTreeMap<IpKey, Candidate>,
}

/// An address that received requests on a SIP port, ordered by preference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Number of hosts whose registrations it answered.
    registered: usize,
    /// Number of hosts that it answered.
    answered: usize,
    /// Number of hosts that sent it requests.
    asked: usize,
}

impl Guess {
    /// Takes a SIP message.
    pub(super) fn look(&mut self, ends: &Ends, message: Message, ports: &Ports) {
        let Some((from, to)) = ends.ports else {
            return;
        };
        if self.asked.len() + self.answered.len() >= MAX_PAIRS {
            return;
        }
        if message.is_request() && ports.contains(to) {
            for is_register in
                [false, true].into_iter().take(1 + usize::from(message == Message::Register))
            {
                let is_new = self.asked.insert((ends.source, ends.destination, is_register));
                let candidate = self.candidates.entry(ends.destination).or_default();
                candidate.asked += usize::from(is_new && !is_register);
            }
        } else if message == Message::Response && ports.contains(from) {
            for is_register in [false, true] {
                let pair = (ends.destination, ends.source, is_register);
                if self.asked.contains(&pair) && self.answered.insert(pair) {
                    let candidate = self.candidates.entry(ends.source).or_default();
                    *(if is_register {
                        &mut candidate.registered
                    } else {
                        &mut candidate.answered
                    }) += 1;
                }
            }
        }
    }

    /// The result: the address that answers most, and all others that answer but never talk to it,
    /// since addresses of one host do not.
    pub(super) fn make(self) -> Registrar {
        let mut ranked: Vec<(Candidate, IpKey)> =
            self.candidates.iter().map(|(source, rank)| (*rank, *source)).collect();
        ranked.sort_unstable_by_key(|(rank, source)| (std::cmp::Reverse(*rank), *source));
        let mut hosts: Vec<IpKey> = Vec::new();
        for (rank, source) in &ranked {
            let talk = |a: &IpKey, b: &IpKey| self.asked.contains(&(*a, *b, false));
            if rank.answered > 0
                && !hosts.iter().any(|host| talk(host, source) || talk(source, host))
            {
                hosts.push(*source);
            }
        }
        let how = if hosts.is_empty() {
            "asked, but seen to answer nobody"
        } else {
            "guessed: it answers requests"
        };
        if hosts.is_empty() {
            hosts.extend(ranked.first().map(|(_, source)| *source));
        }
        let how = if hosts.is_empty() { "unknown: nobody is sent requests" } else { how };
        let networks = hosts.iter().map(|host| Network::around(*host, 128)).collect();
        Registrar { networks, how, hosts: hosts.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::network::source_of;

    /// The guess from lines "FROM TO METHOD", with ports where they are not 5060.
    fn guess(lines: &[&str]) -> (Vec<String>, &'static str) {
        let ports = Ports::new([(5060, 5060)]);
        let mut guess = Guess::default();
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let end = |word: &str| -> (IpKey, u16) {
                let (address, port) = word.rsplit_once('/').unwrap_or((word, "5060"));
                (source_of(address.parse().unwrap()), port.parse().unwrap())
            };
            let ((source, from), (destination, to)) = (end(words[0]), end(words[1]));
            let message = match words[2] {
                "REGISTER" => Message::Register,
                "OPTIONS" => Message::Options,
                _ => Message::Response,
            };
            let ends = Ends { source, destination, ports: Some((from, to)), protocol: 17 };
            guess.look(&ends, message, &ports);
        }
        let registrar = guess.make();
        (registrar.networks.iter().map(ToString::to_string).collect(), registrar.how)
    }

    #[test]
    fn the_answering_host_is_the_registrar_and_its_provider_is_not() {
        let lines = [
            "192.0.2.7 198.51.100.1 REGISTER",
            "198.51.100.1 192.0.2.7 401",
            "192.0.2.8/4000 198.51.100.1 REGISTER",
            "198.51.100.1 192.0.2.8/4000 401",
            // A phone and a provider answer its requests.
            "198.51.100.1 192.0.2.7 OPTIONS",
            "192.0.2.7 198.51.100.1 200",
            "198.51.100.1 203.0.113.9 OPTIONS",
            "203.0.113.9 198.51.100.1 200",
            // Its second address.
            "2001:db8::7 2001:db8::1 OPTIONS",
            "2001:db8::1 2001:db8::7 200",
        ];
        let (hosts, how) = guess(&lines);
        assert_eq!(hosts, ["198.51.100.1", "2001:db8::1"]);
        assert!(how.contains("guessed"));
    }

    #[test]
    fn without_answers_it_is_whom_most_ask() {
        let lines = [
            "192.0.2.7 198.51.100.1 REGISTER",
            "192.0.2.8 198.51.100.1 OPTIONS",
            "192.0.2.8 198.51.100.2 OPTIONS",
        ];
        let (hosts, how) = guess(&lines);
        assert_eq!(hosts, ["198.51.100.1"]);
        assert!(how.contains("answer nobody"));
        assert!(guess(&["192.0.2.7/4000 198.51.100.1/4000 OPTIONS"]).0.is_empty(), "no SIP port");
    }
}
