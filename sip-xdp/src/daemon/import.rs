//! Bulk changes: imported lists of networks, and state dumps of another instance.

use anyhow::{Result, bail};
use log::Level;
use sip_xdp_common::abi::layout::{List, Owner};

use super::restore::from_wall_ms;
use super::{Daemon, bounds, clock};
use crate::api::answers::{Imported, Refused};
use crate::api::control::ListName;
use crate::bans::engine::EventSink as _;
use crate::bans::event::Event;
use crate::bans::offences::{MAX_OFFENCES, Offence, OffenceRecord};
use crate::config::MAX_NAMES;
use crate::dataplane::tables::ledger::Entry;
use crate::detect::Acceptance;
use crate::dns::Given;
use crate::net::network::{Network, source_of};
use crate::store::state_dump::{self, Accepted, DumpedEntry, DumpedOwner, Host, Part, PastBan};
use crate::store::{Ban, Change, End};

/// Maximum registration lifetime accepted from a dump, in nanoseconds.
const LONGEST: u64 = 24 * 3_600_000_000_000;

/// Tolerance between two converted times, in nanoseconds, since the two clocks are not read at the
/// same instant.
const ALIKE: u64 = 1_000_000_000;

/// Maximum length of a user name accepted from a dump, in bytes.
const MAX_USER: usize = 256;

/// Overrides for networks that are otherwise refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Insists {
    /// `--force`.
    pub(super) force: bool,
    /// Root, not only a member of the group.
    pub(super) is_root: bool,
}

impl Imported {
    fn refuse(&mut self, what: impl ToString, why: impl ToString) {
        self.refused.push(Refused { what: what.to_string(), why: why.to_string() });
    }
}

impl Daemon {
    /// Adds networks to a list, except for refused ones. Stops when there is no room.
    pub(super) fn import(
        &mut self,
        list: ListName,
        networks: &[Network],
        entry: impl Fn(Network) -> Entry,
        Insists { force, is_root }: Insists,
        operator: Option<Network>,
    ) -> Result<Imported> {
        let (of, verb) = match list {
            ListName::Block => (List::Block, "block"),
            ListName::Trust => (List::Trust, "trust"),
        };
        let mut tally = Imported::default();
        let mut entries = Vec::with_capacity(networks.len());
        for network in networks {
            if network.prefix() == 0 {
                tally.refuse(network, "it is everybody");
            } else if let Some(why) = bounds::objection(network, force && is_root) {
                tally.refuse(network, why);
            } else if let (List::Block, false, Some(why)) =
                (of, force, self.refusal(network, operator))
            {
                tally.refuse(network, why);
            } else {
                entries.push(entry(*network));
            }
        }
        let wanted = entries.len();
        let failed = self.lists.put_all(of, entries).err();
        tally.added = failed.as_ref().map_or(wanted, |stopped| stopped.entered);
        match of {
            List::Trust => self.judge_by_address()?,
            _ => self.end_connections(networks.iter().copied()),
        }
        self.save();
        let (added, refused) = (tally.added, tally.refused.len());
        self.announce(
            Event::new(verb).kind("import").reason(format!("{added} networks")),
            Level::Info,
            format_args!("import list={verb} added={added} refused={refused} owner=manual"),
        );
        match failed {
            Some(error) => {
                bail!("{error}; {added} of these {} networks were entered", networks.len())
            }
            None => Ok(tally),
        }
    }

    /// Imports a part of another instance's dump. Local state that lasts longer stays.
    pub(super) fn restore(&mut self, part: Part) -> Result<Imported> {
        let mut tally = Imported::default();
        let name = part.name();
        match part {
            Part::Trust(rows) => {
                self.restore_entries(List::Trust, rows, &mut tally);
                self.judge_by_address()?;
            }
            Part::Block(rows) => {
                let networks: Vec<Network> = rows.iter().map(|row| row.network).collect();
                self.restore_entries(List::Block, rows, &mut tally);
                self.end_connections(networks);
            }
            Part::Hosts(rows) => {
                rows.into_iter().for_each(|row| self.restore_host(row, &mut tally));
                self.prepare_hosts();
                self.save_hosts(false);
            }
            Part::Accepted(rows) => {
                rows.into_iter().for_each(|row| self.restore_accepted(row, &mut tally));
                self.judge_by_address()?;
            }
            Part::Offences(rows) => {
                rows.into_iter().for_each(|row| self.restore_offence(&row, &mut tally))
            }
            Part::History(rows) => {
                for row in rows {
                    let texts =
                        [&row.kind, &row.reason, row.ended_by.as_ref().unwrap_or(&row.kind)];
                    let checked = texts
                        .into_iter()
                        .try_for_each(|text| bounds::check_text("a text of it", text));
                    match checked {
                        Ok(()) => {
                            tally.added += 1;
                            self.store.record(past(row));
                        }
                        Err(error) => tally.refuse(row.network, error),
                    }
                }
            }
        }
        self.save();
        let (added, kept, refused) = (tally.added, tally.kept, tally.refused.len());
        log::info!("import state={name} added={added} kept={kept} refused={refused}");
        Ok(tally)
    }

    /// Adds rows to a list, except for refused ones. Rows without room are refused.
    fn restore_entries(&mut self, list: List, rows: Vec<DumpedEntry>, tally: &mut Imported) {
        let mut entries: Vec<Entry> =
            rows.into_iter().filter_map(|row| self.restored(list, row, tally)).collect();
        while !entries.is_empty() {
            let Err(stopped) = self.lists.put_all(list, entries.clone()) else {
                tally.added += entries.len();
                return;
            };
            tally.added += stopped.entered;
            tally.refuse(entries[stopped.entered].network, stopped.error);
            entries.drain(..=stopped.entered);
        }
    }

    /// The local entry for a row, if it is to be imported.
    fn restored(&self, list: List, row: DumpedEntry, tally: &mut Imported) -> Option<Entry> {
        let now = clock::now();
        let DumpedEntry { network, port, .. } = row;
        let expires = row.expires.map_or(sip_xdp_common::abi::layout::NEVER, clock::from_wall);
        let owner = match row.owner {
            DumpedOwner::Manual => Owner::Manual,
            DumpedOwner::Auto => Owner::Auto,
        };
        let stays = (list == List::Block).then(|| self.ban_exemption(&network, now)).flatten();
        if let Some(why) = stays {
            tally.refuse(network, format!("it {why}"));
            return None;
        }
        if port == Some(0) {
            tally.refuse(network, "nobody has port 0");
            return None;
        }
        if network.prefix() == 0
            || (port.is_some() && !network.is_host())
            || (list == List::Trust && port.is_some())
        {
            tally.refuse(network, "it is everybody, or a port of more than one host");
            return None;
        }
        if let Some(why) = bounds::objection(&network, false) {
            tally.refuse(network, why);
            return None;
        }
        if let Err(error) = bounds::check_text("its reason", &row.reason) {
            tally.refuse(network, error);
            return None;
        }
        let entry = Entry {
            owner,
            port,
            tier: row.tier,
            added_ms: clock::to_ms(row.added),
            dry_run: owner == Owner::Auto && self.config.dry_run,
            ..Entry::manual(network, expires, &row.reason)
        };
        let known = self.lists.entry(list, &network, port, owner);
        if entry.is_over(now)
            || known.is_some_and(|known| known.expires.saturating_add(ALIKE) >= expires)
        {
            tally.kept += 1;
            return None;
        }
        Some(entry)
    }

    fn restore_host(&mut self, row: Host, tally: &mut Imported) {
        let expires = row.expires.map_or(sip_xdp_common::abi::layout::NEVER, clock::from_wall);
        let known = self
            .hosts
            .given()
            .get(&row.name)
            .is_some_and(|given| given.expires.saturating_add(ALIKE) >= expires);
        if let Err(error) = bounds::check_text("its reason", &row.reason) {
            return tally.refuse(row.name, error);
        }
        if known || expires <= clock::now() {
            tally.kept += 1;
        } else if self.hosts.given().len() >= MAX_NAMES || !row.name.as_str().contains('.') {
            tally.refuse(
                row.name,
                format!("it is no whole name, or {MAX_NAMES} are followed already"),
            );
        } else {
            self.hosts.give(
                row.name,
                Given { added_ms: clock::to_ms(row.added), expires, reason: row.reason },
            );
            tally.added += 1;
        }
    }

    fn restore_accepted(&mut self, row: Accepted, tally: &mut Imported) {
        let now = clock::now();
        let Accepted { address, port, transport, user, .. } = row;
        let source = source_of(address);
        if user.len() > MAX_USER {
            return tally.refuse(address, "the name of its user is too long");
        }
        let at = from_wall_ms(clock::to_ms(row.last)).min(now);
        let until = from_wall_ms(clock::to_ms(row.until)).min(now.saturating_add(LONGEST));
        let known = self.detector.registered_until(&source, &user, port);
        if known.saturating_add(ALIKE) >= until {
            tally.kept += 1;
            return;
        }
        let acceptance = Acceptance { source, user, port, transport, at, until };
        self.detector.restore([acceptance.clone()], []);
        self.daemon_sink().accepted(&acceptance);
        if until > now {
            self.ban_engine().note_good(source, port, now);
        }
        tally.added += 1;
    }

    fn restore_offence(&mut self, row: &state_dump::Offence, tally: &mut Imported) {
        let state_dump::Offence { network, count, last } = row;
        let at = from_wall_ms(clock::to_ms(*last)).min(clock::now());
        let known = self.offences.get(network).copied();
        if known.is_some_and(|known| known.count >= *count) || self.offences.len() >= MAX_OFFENCES {
            tally.kept += 1;
            return;
        }
        self.offences.insert(
            *network,
            Offence { count: *count, at: at.max(known.map_or(0, |known| known.at)) },
        );
        let offence =
            OffenceRecord { network: *network, count: *count, last_ms: clock::to_ms(*last) };
        self.store.record(Change::Offence(offence));
        tally.added += 1;
    }
}

/// A ban for the history.
fn past(row: PastBan) -> Change {
    let ban = Ban {
        network: row.network,
        port: row.port,
        kind: row.kind,
        tier: row.tier,
        reason: row.reason,
        from_ms: clock::to_ms(row.from),
        until_ms: row.until.map(clock::to_ms),
    };
    let (by, hits) = (row.ended_by.unwrap_or_default(), row.hits);
    let end = row.ended.map(|at| End { at_ms: clock::to_ms(at), by, hits });
    Change::Past(ban, end)
}
