//! Supervision of filtered links: native programs that see no packets, and drivers that lose the
//! program when their link is reset.
//!
//! A blind program is replaced by a fresh one where that may help, else by generic mode, which
//! always sees packets: once, and never back, since the driver would lose it again. The state is
//! reported, after restarts too, until the interface is unloaded or recreated. With `mode =
//! "native"` it is an error that fails `status --check`.
//!
//! More than 400 lines: half of it is tests of one small state machine.

use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use log::Level;

use super::{Daemon, InterfaceMaps, Loaded, Served, Wanted};
use crate::api::answers::BlindInterface;
use crate::bans::event::Event;
use crate::dataplane::attach::xdp::{Mode, ModeChoice};
use crate::dataplane::counters;
use crate::dataplane::ethtool;
use crate::dataplane::netlink::Interface;
use crate::dataplane::sight::{Blind, Sight};
use crate::sys::clock;

/// Drivers that lose the program when their rings are reallocated: on link up and on MTU changes.
/// vmxnet3 does so in 6.8 to 7.3. The kernel does not hand an identical program to the driver
/// again, so that a fresh one is needed.
const FORGETFUL: &[&str] = &["vmxnet3"];

/// Time for resets that attaching itself causes, in nanoseconds: igb and vmxnet3 take their link
/// down for a moment.
const ATTACHING: u64 = 2_000_000_000;

/// Supervision state of a filtered interface.
pub(super) struct Watched {
    sight: Sight,
    /// The last seen link state; `None` while attaching may still change it.
    link: Option<LinkState>,
    /// Time of attachment, in nanoseconds of the filter's clock.
    since: u64,
    /// Whether this program replaced a blind one.
    is_remedy: bool,
    /// A second set of loaded programs for the next replacement.
    reserve: Option<Loaded>,
}

impl Watched {
    /// The state after an attachment.
    pub(super) fn new(is_remedy: bool) -> Self {
        let since = clock::now();
        Self { sight: Sight::new(since, false), link: None, since, is_remedy, reserve: None }
    }
}

/// Link properties that change when rings are reallocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LinkState {
    up: bool,
    mtu: u32,
    carrier_changes: u32,
}

impl LinkState {
    fn of(interface: &Interface) -> Self {
        Self { up: interface.up, mtu: interface.mtu, carrier_changes: interface.carrier_changes }
    }

    /// The event since `before` that may have reallocated the rings. A link that went down and up
    /// between two polls shows in the carrier count.
    fn reset_since(self, before: Self) -> Option<&'static str> {
        match self {
            _ if self.mtu != before.mtu => Some("its MTU has changed"),
            Self { up: true, .. } if !before.up => Some("it came up"),
            Self { up: true, .. } if self.carrier_changes != before.carrier_changes => {
                Some("its link was reset")
            }
            _ => None,
        }
    }
}

/// An interface whose native program sees, or saw, no packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) struct Blindness {
    since: Timestamp,
    packets: u64,
    /// Whether generic mode is in use instead.
    is_mended: bool,
}

/// The remedy for a blind program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cure {
    /// Replace it by a fresh one.
    Swap,
    /// Switch to generic mode.
    Generic,
    /// Only report it.
    Say,
}

impl Cure {
    /// A program that saw packets before may have been lost, so that a fresh one helps; one that
    /// never saw any will not.
    fn of(blind: Blind, is_forgetful: bool, is_remedy: bool, choice: ModeChoice) -> Self {
        match choice {
            _ if blind.has_seen || (is_forgetful && !is_remedy) => Self::Swap,
            ModeChoice::Auto => Self::Generic,
            ModeChoice::Native | ModeChoice::Generic => Self::Say,
        }
    }
}

impl Daemon {
    /// Checks the filtered links: after each change, and every second.
    pub(in crate::daemon) async fn watch_links(&mut self) {
        let indices: Vec<u32> = self.served.iter().map(Served::index).collect();
        for index in indices {
            match self.netlink.interface(index).await {
                Ok(Some(interface)) => self.watch_link(&interface),
                // Gone; handled elsewhere.
                Ok(None) => {}
                Err(error) => log::debug!("{error:#}"),
            }
        }
    }

    fn watch_link(&mut self, interface: &Interface) {
        let now = clock::now();
        let Some(at) = self.served.iter().position(|served| served.index == interface.index) else {
            return;
        };
        let served = &mut self.served[at];
        if served.mode != Mode::Native || interface.xdp.is_none_or(|xdp| xdp.id != served.program) {
            return;
        }
        let (name, slot) = (served.name.clone(), served.slot());
        let state = LinkState::of(interface);
        let watched = &mut served.watched;
        if now.saturating_sub(watched.since) < ATTACHING {
            watched.link = None;
        } else if let Some(before) = watched.link.replace(state)
            && let Some(what) = state.reset_since(before)
        {
            watched.sight = Sight::new(now, watched.sight.has_seen());
            if is_forgetful(interface) {
                // The verifier takes 0.3 s; the next reset finds loaded programs.
                return self.swap(
                    at,
                    interface,
                    &format!("{what}, and its driver loses the program then"),
                );
            }
        }
        // Read after the interface's own counter, so that no packet is counted there alone.
        let counted = if self.overrides.blind { Ok(0) } else { counters::seen(&self.pins, slot) };
        let Ok(counted) = counted.inspect_err(|error| log::debug!("{error:#}")) else { return };
        let served = &mut self.served[at];
        let blind = served.watched.sight.look(now, interface.rx_packets, counted);
        let has_seen = served.watched.sight.has_seen();
        if let Some(blind) = blind {
            self.cure(at, interface, blind);
        } else if has_seen && self.blind.remove(&name).is_some() {
            self.announce_interface(&name, "seeing", "the program sees packets again");
        }
    }

    /// Applies the remedy for a blind program.
    fn cure(&mut self, at: usize, interface: &Interface, blind: Blind) {
        let served = &self.served[at];
        let name = served.name.clone();
        let cure =
            Cure::of(blind, is_forgetful(interface), served.watched.is_remedy, self.config.mode);
        match cure {
            Cure::Swap => {
                let what = format!("its program saw none of the last {} packets", blind.packets);
                self.swap(at, interface, &what);
            }
            Cure::Generic => {
                let is_mended = self.take_over(at, interface);
                self.note_blind(&name, blind, is_mended);
            }
            Cure::Say => self.note_blind(&name, blind, false),
        }
    }

    fn note_blind(&mut self, name: &str, blind: Blind, is_mended: bool) {
        let packets = blind.packets;
        let is_new = !self.blind.contains_key(name);
        let since = self.blind.get(name).map_or_else(counters::now, |known| known.since);
        self.blind.insert(name.to_owned(), Blindness { since, packets, is_mended });
        let index = self.served.iter().find(|served| served.name == name).map(Served::index);
        if is_mended
            && let Some(index) = index
            && let Err(error) = self.pins.note_blind(index, since.as_second(), packets)
        {
            log::warn!(
                "{name}: a restart will forget that its driver never calls the program: {error:#}"
            );
        }
        if is_new {
            let then = if is_mended { "generic" } else { "none" };
            self.announce_interface(
                name,
                "blind",
                &format!("packets={packets} mode=native action={then}"),
            );
        }
    }

    /// Restores the records of an earlier daemon: interfaces that generic mode has taken over.
    pub(super) fn recall_blind(&mut self) {
        for served in self.served.iter().filter(|served| served.mode == Mode::Generic) {
            let noted = self.pins.noted_blind(served.index);
            let noted = noted
                .and_then(|(since, packets)| Some((Timestamp::from_second(since).ok()?, packets)));
            if let Some((since, packets)) = noted {
                self.blind
                    .insert(served.name.clone(), Blindness { since, packets, is_mended: true });
            }
        }
    }

    /// Replaces the program by one that the driver does not consider identical, between two
    /// packets.
    fn swap(&mut self, at: usize, interface: &Interface, what: &str) {
        let name = self.served[at].name.clone();
        let fresh = match self.served[at].watched.reserve.take() {
            Some(reserve) => Ok(reserve),
            None => self.load_again(at, interface),
        };
        let put = fresh.and_then(|fresh| self.put_anew(at, interface, fresh));
        match put {
            Ok(()) => {
                let reason = format!("reason=\"{what}: a fresh one was swapped in\"");
                self.announce_interface(&name, "swapped", &reason);
            }
            Err(error) => {
                log::error!("{name}: a fresh program could not be put on it: {error:#}");
                // Not retried with each packet.
                self.served[at].watched = Watched::new(true);
            }
        }
    }

    /// Switches to generic mode, with the loaded programs: no new verification.
    fn take_over(&mut self, at: usize, interface: &Interface) -> bool {
        let Served { name, loaded, .. } = self.served.remove(at);
        let wanted = Wanted { name, interface: interface.clone() };
        let put = InterfaceMaps::open(&self.pins.maps()).and_then(|mut interface_maps| {
            self.put_on(&wanted, loaded, false, ModeChoice::Generic, &mut interface_maps)
        });
        match put {
            Ok((served, warnings)) => {
                self.attach_warnings.extend(warnings);
                self.served.insert(at, served);
                true
            }
            Err(error) => {
                log::error!("{}: generic mode could not take over: {error:#}", wanted.name);
                // Attached at the next tick, like a new interface.
                if let Err(error) = self.pins.detach(interface.index) {
                    log::error!("{error:#}");
                }
                false
            }
        }
    }

    /// Loads the programs once more for drivers that need fresh ones. The verifier takes 0.3 s and
    /// more, during which nothing would be filtered after a reset.
    pub(super) fn with_reserve(
        &self,
        mut served: Served,
        interface: &Interface,
        maps: &Path,
    ) -> Served {
        if served.mode == Mode::Native && is_forgetful(interface) {
            let reserve = self.load(interface, served.slot(), maps);
            let name = &served.name;
            let failed = |error: &anyhow::Error| {
                log::warn!("{name}: no program is kept in reserve: {error:#}")
            };
            served.watched.reserve = reserve.inspect_err(failed).ok();
        }
        served
    }

    /// Loads the programs of an interface once more.
    fn load_again(&self, at: usize, interface: &Interface) -> Result<Loaded> {
        self.load(interface, self.served[at].slot(), &self.pins.maps())
    }

    /// Attaches other programs to an interface, and keeps the previous ones in reserve.
    fn put_anew(&mut self, at: usize, interface: &Interface, fresh: Loaded) -> Result<()> {
        let wanted = Wanted { name: self.served[at].name.clone(), interface: interface.clone() };
        let mut interface_maps = InterfaceMaps::open(&self.pins.maps())?;
        let (mut served, warnings) =
            self.put_on(&wanted, fresh, false, self.config.mode, &mut interface_maps)?;
        served.watched.is_remedy = true;
        self.attach_warnings.retain(|warning| !warning.starts_with(&format!("{}: ", wanted.name)));
        self.attach_warnings.extend(warnings);
        let before = std::mem::replace(&mut self.served[at], served);
        self.served[at].watched.reserve = Some(before.loaded);
        Ok(())
    }

    /// Blind interfaces in `status`.
    pub(in crate::daemon) fn blind_status(&self) -> Vec<BlindInterface> {
        let shown = self.blind.iter().map(|(name, blind)| BlindInterface {
            interface: name.clone(),
            since: blind.since,
            packets: blind.packets,
            action: blind.is_mended.then(|| "generic".to_owned()),
        });
        shown.collect()
    }

    /// Warnings about blind interfaces.
    pub(in crate::daemon) fn blind_warnings(&self) -> impl Iterator<Item = String> + '_ {
        self.blind.iter().map(|(name, blind)| {
            let packets = blind.packets;
            if blind.is_mended {
                format!(
                    "{name}: the driver took the program but showed it none of {packets} packets; \
                     generic mode has \
                     taken over, which protects as well but costs several times the CPU per \
                     dropped packet. For \
                     virtio_net the host's mrg_rxbuf=off is the usual cause"
                )
            } else {
                format!(
                    "{name} is blind: the driver took the program but showed it none of {packets} \
                     packets, nothing \
                     is filtered there; set mode = \"auto\" or \"generic\" and run `sip-xdp reload`"
                )
            }
        })
    }

    /// Logs and publishes an interface event.
    pub(in crate::daemon) fn announce_interface(
        &self,
        name: &str,
        kind: &'static str,
        details: &str,
    ) {
        let level = match kind {
            "attached" | "seeing" => Level::Info,
            "blind" if details.ends_with("action=none") => Level::Error,
            _ => Level::Warn,
        };
        let event = Event::new("interface")
            .interface(name)
            .kind(kind)
            .reason(details)
            .dry_run(self.config.dry_run);
        self.announce(event, level, format_args!("interface {name} kind={kind} {details}"));
    }
}

fn is_forgetful(interface: &Interface) -> bool {
    interface.kind.is_none()
        && ethtool::driver(&interface.name).is_ok_and(|name| FORGETFUL.contains(&name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_told_from_other_changes() {
        let before = LinkState { up: true, mtu: 1_500, carrier_changes: 2 };
        assert_eq!(before.reset_since(before), None);
        let down = LinkState { up: false, carrier_changes: 3, ..before };
        assert_eq!(down.reset_since(before), None);
        let again = LinkState { carrier_changes: 4, ..before };
        assert_eq!(again.reset_since(down), Some("it came up"));
        // Between two polls.
        assert_eq!(again.reset_since(before), Some("its link was reset"));
        assert_eq!(
            LinkState { mtu: 1_400, ..before }.reset_since(before),
            Some("its MTU has changed")
        );
        assert_eq!(LinkState { mtu: 1_400, ..down }.reset_since(down), Some("its MTU has changed"));
    }

    #[test]
    fn the_cure_fits_the_blindness() {
        let (lost, never) =
            (Blind { packets: 20, has_seen: true }, Blind { packets: 20, has_seen: false });
        for choice in [ModeChoice::Auto, ModeChoice::Native] {
            assert_eq!(Cure::of(lost, false, false, choice), Cure::Swap);
            assert_eq!(Cure::of(never, true, false, choice), Cure::Swap, "vmxnet3, at once");
        }
        // A blind replacement is not replaced again.
        for (is_forgetful, is_remedy) in [(false, false), (false, true), (true, true)] {
            assert_eq!(Cure::of(never, is_forgetful, is_remedy, ModeChoice::Auto), Cure::Generic);
            assert_eq!(Cure::of(never, is_forgetful, is_remedy, ModeChoice::Native), Cure::Say);
        }
    }
}
