//! The daemon's event sink: a stable log line and an event per decision.

use std::fmt;

use log::Level;
use sip_xdp_common::abi::layout::List;
use sip_xdp_common::ip_key::IpKey;

use super::sockets::SocketDestroyer;
use super::{Daemon, restore, save};
use crate::api::event_stream::Hub;
use crate::bans::engine::{self, BanEngine, EventSink};
use crate::bans::event::Event;
use crate::bans::offences::OffenceRecord;
use crate::config::PortRange;
use crate::dataplane::tables::ledger::Entry;
use crate::detect::{Acceptance, Spray};
use crate::lists::Lists;
use crate::net::network::{Network, address_of};
use crate::store::{Change, Store};
use crate::sys::clock::{self, Moment};

/// The consumers of the daemon's decisions: log, watchers, and store.
pub(super) struct DaemonSink<'a> {
    hub: &'a Hub,
    store: &'a Store,
    /// Ends connections of banned sources; none while nothing is filtered.
    sockets: Option<&'a SocketDestroyer>,
    ports: &'a [PortRange],
}

impl EventSink for DaemonSink<'_> {
    fn announce(&mut self, event: Event, level: Level, line: fmt::Arguments<'_>) {
        log::log!(level, "{line}");
        self.publish(event);
    }

    fn publish(&mut self, event: Event) {
        self.hub.publish(event);
    }

    fn accepted(&mut self, acceptance: &Acceptance) {
        self.store.record(restore::accepted(acceptance));
    }

    fn peer(&mut self, source: IpKey, until: u64) {
        self.store.record(restore::peer(source, until));
    }

    fn offence(&mut self, offence: OffenceRecord) {
        self.store.record(Change::Offence(offence));
    }

    fn banned(&mut self, kind: &str, entry: &Entry, lists: &mut Lists) {
        if let Some(sockets) = self.sockets {
            sockets.end([entry], lists, self.ports, clock::now());
        }
        self.store.record_ban(kind, entry);
        save(self.store, lists);
    }

    fn served(&mut self, source: IpKey) {
        self.store.record(Change::Served(address_of(source), clock::wall_ms()));
    }

    fn sprayed(&mut self, spray: &Spray) {
        self.store.record(restore::sprayed(spray));
    }

    fn expired(&mut self, list: List, entry: &Entry, hits: Option<u64>) {
        self.store.record_end(list, entry, "expired", hits);
    }
}

/// The daemon's sink. A macro, because beside a sink others of the daemon's fields are written.
macro_rules! sink_of {
    ($daemon:ident) => {
        DaemonSink {
            hub: &$daemon.hub,
            store: &$daemon.store,
            sockets: (!$daemon.confirmation.is_missed()).then_some(&$daemon.sockets),
            ports: &$daemon.config.ports,
        }
    };
}

impl Daemon {
    pub(super) fn daemon_sink(&self) -> DaemonSink<'_> {
        sink_of!(self)
    }

    /// The ban engine at the current time.
    pub(super) fn ban_engine(&mut self) -> BanEngine<'_, DaemonSink<'_>> {
        BanEngine {
            config: &self.config,
            lists: &mut self.lists,
            detector: &mut self.detector,
            never_ban: &self.never_ban,
            offences: &mut self.offences,
            repeats: &mut self.repeats,
            notes: &mut self.notes,
            learning_until: self.learning_until,
            at: Moment::present(),
            event_sink: sink_of!(self),
        }
    }

    /// Why `network` is exempt from bans by evidence, if it is.
    pub(super) fn ban_exemption(&self, network: &Network, now: u64) -> Option<String> {
        engine::ban_exemption(&self.never_ban, &self.lists, network, now)
    }

    /// Publishes an event to watchers.
    pub(super) fn publish(&self, event: Event) {
        self.daemon_sink().publish(event);
    }

    /// Writes the line to the log, and publishes the event to watchers.
    pub(super) fn announce(&self, event: Event, level: Level, line: fmt::Arguments<'_>) {
        self.daemon_sink().announce(event, level, line);
    }
}
