//! Puts the egress program on an interface, or swaps it for the one that is there.
//!
//! Since Linux 6.6 there is tcx: a link that is pinned and so outlives the daemon, like that of the
//! ingress program. Before, the program is a filter on the interface's clsact qdisc, which stays
//! until somebody removes it. The qdisc may be another product's, and carry that one's filters. So
//! what is ours is known by a priority, a handle and a name that do not change, and what we made is
//! noted among the pins, as directories: `clsact/INDEX` for the filter, and in it `qdisc` if the
//! qdisc was not there before. Removing takes exactly the filter away, and the qdisc only if it is
//! noted and nothing is left on it, since others may have put filters on it meanwhile.

use anyhow::{Context, Result, anyhow, bail};
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle,
};
use aya::programs::{Link, ProgramError, SchedClassifier, TcAttachType};
use serde::Serialize;
use sip_xdp_common::abi::names;

use crate::dataplane::attach::clsact::{self, CLSACT, Filter};
use crate::dataplane::attach::xdp::{cause, innermost};
use crate::dataplane::netlink::Interface;
use crate::dataplane::pins::Pins;

/// The filter's priority. Early, since a filter before it that decides keeps it from seeing the
/// packet, but behind the first ones, which other products expect to be theirs. It never decides
/// anything itself.
const PRIORITY: u16 = 5;

/// The filter's handle.
const HANDLE: u16 = 0x5060;

/// How our responses are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressWay {
    /// A tcx link: Linux 6.6 or newer.
    Tcx,
    /// A filter on the clsact qdisc.
    Clsact,
}

impl EgressWay {
    /// Both, the better one first.
    pub const ALL: [Self; 2] = [Self::Tcx, Self::Clsact];
}

/// Attaches the program in the first of these ways that works, in place of the one that is there.
pub fn attach_egress(
    program: &mut SchedClassifier,
    interface: &Interface,
    ways: &[EgressWay],
    pins: &Pins,
) -> Result<EgressWay> {
    let mut failures = Vec::new();
    for way in ways {
        let attached = match way {
            EgressWay::Tcx => attach_tcx(program, interface, pins),
            EgressWay::Clsact => attach_filter(program, interface, pins),
        };
        match attached {
            Ok(()) => {
                // Every response is read once.
                match way {
                    EgressWay::Tcx => detach_filter(interface.index, pins)?,
                    EgressWay::Clsact => pins.remove_egress_link(interface.index)?,
                }
                return Ok(*way);
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    bail!(failures.join("; "))
}

/// How responses are read on an interface right now.
pub fn way(interface: &Interface, pins: &Pins) -> Option<EgressWay> {
    if pins.egress_link(interface.index).exists() {
        return Some(EgressWay::Tcx);
    }
    // What cannot be asked is not known.
    let is_there =
        pins.clsact(interface.index).exists() && has_filter(interface.index).unwrap_or(false);
    is_there.then_some(EgressWay::Clsact)
}

fn attach_tcx(program: &mut SchedClassifier, interface: &Interface, pins: &Pins) -> Result<()> {
    let path = pins.egress_link(interface.index);
    if path.exists() {
        let link = PinnedLink::from_pin(&path)
            .with_context(|| format!("{} cannot be opened", path.display()))?;
        let adopted = SchedClassifierLink::try_from(FdLink::from(link))
            .map_err(|error| anyhow!("{}: {error}", path.display()))
            .and_then(|link| Ok(program.attach_to_link(link)?));
        if let Ok(id) = adopted {
            drop(FdLink::try_from(program.take_link(id)?)?);
            return Ok(());
        }
        // The interface under the link is gone; one with the same index has taken its place.
        std::fs::remove_file(&path)?;
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program
        .attach_with_options(&interface.name, TcAttachType::Egress, options)
        .map_err(|error| anyhow!("no tcx link ({})", cause(&error)))?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    link.pin(&path).with_context(|| format!("{} cannot be pinned", path.display()))?;
    Ok(())
}

fn attach_filter(program: &mut SchedClassifier, interface: &Interface, pins: &Pins) -> Result<()> {
    let (index, name) = (interface.index, &interface.name);
    if has_filter(index)? {
        // It is noted before, so that it is removed in the end even if the note of an earlier
        // daemon was lost.
        pins.note_clsact(index, false)?;
        let link = SchedClassifierLink::attached(
            name,
            TcAttachType::Egress,
            PRIORITY,
            TcHandle::new(0, HANDLE),
            None,
        )?;
        let id = program.attach_to_link(link);
        return keep(program, id)
            .with_context(|| format!("the filter of {name} cannot be swapped"));
    }
    // What is still noted is about an interface that is gone.
    pins.forget_clsact(index)?;
    let kind = clsact::qdisc(index)?;
    match kind.as_deref() {
        None => {
            pins.note_clsact(index, true)?;
            tc::qdisc_add_clsact(name)
                .map_err(|error| anyhow!("no clsact qdisc ({})", innermost(&error)))?;
        }
        Some(CLSACT) => pins.note_clsact(index, false)?,
        // In its place a filter for what leaves would read what arrives.
        Some(other) => bail!("no clsact qdisc (there is an {other} qdisc in its place)"),
    }
    let options = NlOptions { priority: PRIORITY, handle: TcHandle::new(0, HANDLE), classid: None };
    let id =
        program.attach_with_options(name, TcAttachType::Egress, TcAttachOptions::Netlink(options));
    keep(program, id).inspect_err(|_| {
        if let Err(error) = detach_filter(index, pins) {
            log::error!("{name}: {error:#}");
        }
    })
}

/// Lets a filter stay when this process ends.
fn keep(
    program: &mut SchedClassifier,
    attached: Result<SchedClassifierLinkId, ProgramError>,
) -> Result<()> {
    let id = attached.map_err(|error| anyhow!("no clsact filter ({})", cause(&error)))?;
    // Dropping the link would remove the filter. It has no descriptor to close: it is a few numbers
    // that say which filter it is, and those are always the same.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Removes our filter from an interface, and the qdisc if it is ours and empty. Where nothing is
/// noted, nothing is done.
pub(crate) fn detach_filter(index: u32, pins: &Pins) -> Result<()> {
    if !pins.clsact(index).exists() {
        return Ok(());
    }
    // It may be gone, with its interface or without.
    if has_filter(index)? {
        let name = interface_name(index)?;
        let link = SchedClassifierLink::attached(
            &name,
            TcAttachType::Egress,
            PRIORITY,
            TcHandle::new(0, HANDLE),
            None,
        )?;
        link.detach().map_err(|error| {
            anyhow!("the filter of {name} cannot be removed ({})", cause(&error))
        })?;
    }
    if pins.owns_qdisc(index) {
        clsact::remove_if_empty(index)?;
    }
    pins.forget_clsact(index)
}

/// Whether our filter is on an interface.
fn has_filter(index: u32) -> Result<bool> {
    let is_ours = |filter: &Filter| {
        filter.priority == PRIORITY
            && filter.handle == u32::from(HANDLE)
            && filter.program.as_deref() == Some(names::EGRESS)
    };
    Ok(clsact::egress_filters(index)?.iter().any(is_ours))
}

fn interface_name(index: u32) -> Result<String> {
    let all = nix::net::if_::if_nameindex().context("the interfaces cannot be listed")?;
    let found = all.iter().find(|interface| interface.index() == index);
    let found = found.with_context(|| format!("interface {index} is gone"))?;
    Ok(found.name().to_string_lossy().into_owned())
}
