//! Attachment of the egress program to an interface, or its replacement.
//!
//! Since Linux 6.6 by tcx: a link that is pinned and so outlives the daemon, like that of the
//! ingress program. Before, by a filter on the interface's clsact qdisc, which stays until it is
//! removed. The qdisc may belong to another product and hold its filters. So our filter has a
//! constant priority, handle and name, and what we created is recorded among the pins, as
//! directories: `clsact/INDEX` for the filter, and in it `qdisc` if we created the qdisc. Detaching
//! removes exactly this filter, and the qdisc only if it is recorded as ours and empty, since
//! others may have added filters meanwhile.

use anyhow::{Context, Result, anyhow, bail};
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle,
};
use aya::programs::{Link, ProgramError, SchedClassifier, TcAttachType};
use schemars::JsonSchema;
use serde::Serialize;
use sip_xdp_common::abi::names;

use crate::dataplane::attach::clsact::{self, CLSACT, Filter};
use crate::dataplane::attach::xdp::{cause, innermost};
use crate::dataplane::netlink::Interface;
use crate::dataplane::pins::Pins;

/// The filter's priority: low, because an earlier filter with a final verdict hides the packet from
/// it, but behind the first few, which other products expect for themselves. Our filter never
/// returns a verdict.
const PRIORITY: u16 = 5;

/// The filter's handle.
const HANDLE: u16 = 0x5060;

/// The attachment of the egress program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressWay {
    /// A tcx link: Linux 6.6 or newer.
    Tcx,
    /// A filter on the clsact qdisc.
    Clsact,
}

impl EgressWay {
    /// All, preferred first.
    pub const ALL: [Self; 2] = [Self::Tcx, Self::Clsact];
}

/// Attaches the program in the first of these ways that works, replacing the attached one.
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
                // Only one attachment, so that every response is counted once.
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

/// The current egress attachment of an interface.
pub fn way(interface: &Interface, pins: &Pins) -> Option<EgressWay> {
    if pins.egress_link(interface.index).exists() {
        return Some(EgressWay::Tcx);
    }
    // A failed query counts as absent.
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
        // The link's interface is gone; another one has its index now.
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
        // Recorded first, so that it is removed eventually even if an earlier daemon's record was
        // lost.
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
    // A remaining record belongs to an interface that is gone.
    pins.forget_clsact(index)?;
    let kind = clsact::qdisc(index)?;
    match kind.as_deref() {
        None => {
            pins.note_clsact(index, true)?;
            tc::qdisc_add_clsact(name)
                .map_err(|error| anyhow!("no clsact qdisc ({})", innermost(&error)))?;
        }
        Some(CLSACT) => pins.note_clsact(index, false)?,
        // Under an ingress qdisc the filter would see incoming packets.
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

/// Keeps a filter when this process ends.
fn keep(
    program: &mut SchedClassifier,
    attached: Result<SchedClassifierLinkId, ProgramError>,
) -> Result<()> {
    let id = attached.map_err(|error| anyhow!("no clsact filter ({})", cause(&error)))?;
    // Dropping the link would remove the filter. Forgetting it leaks no descriptor: it holds only
    // the filter's constant identifiers.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Removes our filter from an interface, and the qdisc if it is ours and empty. Without a record
/// this does nothing.
pub(crate) fn detach_filter(index: u32, pins: &Pins) -> Result<()> {
    if !pins.clsact(index).exists() {
        return Ok(());
    }
    // It may be gone, with or without its interface.
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
