//! Messages that SIP servers tell by HEP, as the detector takes them.

use std::collections::BTreeSet;

use tokio::sync::mpsc::Receiver;

use super::Daemon;
use crate::detect::Observation;
use crate::integrations::hep::{HepInput, Received, arrives};
use crate::net::network::source_of;
use crate::sys::clock;

/// How many messages are taken before anything else has its turn.
const MESSAGES_AT_ONCE: usize = 256;

/// How many ports are named that are not filtered.
const MAX_PORTS: usize = 16;

/// HEP, as the daemon keeps it.
#[derive(Debug, Default)]
pub(super) struct Hep {
    pub(super) input: HepInput,
    /// Ports of ours that are told of, and that the configuration does not list.
    unlisted: BTreeSet<u16>,
    /// Messages of which it is not known which side is ours.
    undirected: u64,
}

impl Daemon {
    /// Takes a message that a server has told, and those that wait behind it.
    pub(super) fn take_hep(&mut self, first: Received, waiting: &mut Receiver<Received>) {
        self.judge_hep(&first);
        for _ in 1..MESSAGES_AT_ONCE {
            let Ok(next) = waiting.try_recv() else {
                return;
            };
            self.judge_hep(&next);
        }
    }

    fn judge_hep(&mut self, received: &Received) {
        let is_own = |address| self.never_ban.is_own(address);
        let is_listed = |port: u16| {
            self.config.ports.iter().any(|range| (range.first..=range.last).contains(&port))
        };
        let Some(arrives) = arrives(received, is_own, is_listed) else {
            self.hep.undirected += 1;
            return;
        };
        let (peer, ours) =
            if arrives { (received.from, received.to) } else { (received.to, received.from) };
        // Nothing counts twice. What the message says of its transport is the sender's to choose.
        let ends = [peer, ours].map(|end| (source_of(end.ip()), end.port()));
        if self.streams.has_read(ends[0], ends[1]) {
            self.hep.input.ignore(received);
            return;
        }
        if !is_listed(ours.port()) && self.hep.unlisted.len() < MAX_PORTS {
            self.hep.unlisted.insert(ours.port());
        }
        let observation = Observation::of_stream(
            clock::now(),
            (source_of(peer.ip()), peer.port()),
            ours.port(),
            received.transport,
            arrives,
            &received.message,
        );
        if let Some(observation) = observation {
            let observation = Observation { is_cut: received.is_cut, ..observation };
            self.ban_engine().observe_message(&observation);
        }
    }

    /// What an operator should know of HEP.
    pub(super) fn hep_warnings(&self) -> Vec<String> {
        let mut warnings = self.hep.input.warnings();
        let is_listed = |port: u16| {
            self.config.ports.iter().any(|range| (range.first..=range.last).contains(&port))
        };
        let unlisted: Vec<String> = self
            .hep
            .unlisted
            .iter()
            .filter(|port| !is_listed(**port))
            .map(ToString::to_string)
            .collect();
        if !unlisted.is_empty() {
            warnings.push(format!(
                "messages of port {} come by HEP, but `ports` does not list it: bans do not close \
                 it; add it to ports",
                unlisted.join(", ")
            ));
        }
        if self.hep.undirected > 0 {
            warnings.push(format!(
                "{} HEP messages are between addresses of which none is known as the server's, \
                 and ports that `ports` does not list: nobody is judged by them",
                self.hep.undirected
            ));
        }
        warnings
    }
}
