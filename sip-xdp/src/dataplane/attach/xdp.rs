//! Attachment of the ingress program to an interface, or its replacement without a gap.

use std::fmt;
use std::io;

use anyhow::{Context, Result, anyhow, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpLinkId};
use aya::programs::{ProgramError, ProgramInfo, Xdp, XdpMode, loaded_links, loaded_programs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sip_xdp_common::abi::layout::{MODE_GENERIC, MODE_NATIVE};

use super::driver_refusal::Refusal;
use super::offloads::Snapshot;
use super::{extack, offloads};
use crate::dataplane::ethtool;
use crate::dataplane::netlink::{AttachedXdp, Interface};
use crate::dataplane::pins::Pins;
use crate::dataplane::virtio::Obstacle;

/// The configured attach mode.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum ModeChoice {
    /// Native if the driver supports it, else generic with a warning.
    #[default]
    Auto,
    /// Native or not at all.
    Native,
    /// Generic.
    Generic,
}

/// The attach mode of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Native: in the driver, before an skb is allocated.
    Native,
    /// Generic: in the network stack, for drivers without XDP.
    Generic,
}

impl Mode {
    /// The number in [`InterfaceRecord`](sip_xdp_common::abi::layout::InterfaceRecord).
    pub fn number(self) -> u8 {
        match self {
            Self::Native => MODE_NATIVE,
            Self::Generic => MODE_GENERIC,
        }
    }

    /// The mode with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            MODE_NATIVE => Some(Self::Native),
            MODE_GENERIC => Some(Self::Generic),
            _ => None,
        }
    }

    fn xdp(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// Attaches `program` to `interface` and pins its link. A pinned link is adopted: the kernel then
/// swaps the programs between two packets. Returns the mode, and a warning if it is a fallback.
pub fn attach(
    program: &mut Xdp,
    interface: &Interface,
    choice: ModeChoice,
    pins: &Pins,
) -> Result<(Mode, Option<String>)> {
    if let Some(mode) = adopt(program, interface, choice, pins)? {
        pin_program(program, interface, pins)?;
        return Ok((mode, None));
    }
    let name = &interface.name;
    let before = Snapshot::take();
    let obstacle = Obstacle::of(name).filter(|obstacle| *obstacle == Obstacle::NeverCalls);
    let (mode, warning) = match (choice, obstacle) {
        (ModeChoice::Generic, _) => (generic(program, interface, pins)?, None),
        // The driver would take it, and nothing would be filtered until that is noticed.
        (ModeChoice::Auto, Some(obstacle)) => {
            let warning = instead_of_native(name, obstacle.words(), Some(obstacle.remedy()));
            (generic(program, interface, pins)?, Some(warning))
        }
        (ModeChoice::Native | ModeChoice::Auto, _) => {
            match attach_anew(program, interface, Mode::Native, pins) {
                Ok(()) => (Mode::Native, None),
                Err(error) if is_taken(&error) => return Err(error),
                Err(error) if choice == ModeChoice::Native => {
                    let remedy =
                        remedy(&error).map(|remedy| format!("; {remedy}")).unwrap_or_default();
                    bail!(
                        "{name} cannot run it in its driver ({error:#}){remedy}; or use --mode \
                         auto or generic"
                    )
                }
                Err(error) => {
                    generic(program, interface, pins)?;
                    let warning =
                        instead_of_native(name, &format!("{error:#}"), remedy(&error).as_deref());
                    (Mode::Generic, Some(warning))
                }
            }
        }
    };
    match offloads::note(pins, interface.index, &before) {
        Ok(None) => {}
        Ok(Some(off)) => {
            log::info!("{name}: attaching has switched off {off}; `sip-xdp unload` puts that back")
        }
        Err(error) => log::error!("{name}: what attaching has switched off stays off: {error:#}"),
    }
    pin_program(program, interface, pins)?;
    Ok((mode, warning))
}

/// The warning of an interface in generic mode: why, and what makes native mode possible.
fn instead_of_native(name: &str, reason: &str, remedy: Option<&str>) -> String {
    let remedy = remedy.map(|remedy| format!("; for native mode: {remedy}")).unwrap_or_default();
    format!(
        "{name}: the driver cannot run it ({reason}); attached in generic mode, which protects as \
         well but costs \
         several times the CPU per dropped packet{remedy}"
    )
}

/// Attaches in generic mode.
fn generic(program: &mut Xdp, interface: &Interface, pins: &Pins) -> Result<Mode> {
    match attach_anew(program, interface, Mode::Generic, pins) {
        Ok(()) => Ok(Mode::Generic),
        Err(error) if is_taken(&error) => Err(error),
        Err(error) => {
            Err(error.context(format!("{} cannot be filtered; is it still there?", interface.name)))
        }
    }
}

/// Replaces the program behind the interface's pinned link. `None` if there is no link, or none
/// that can be adopted.
fn adopt(
    program: &mut Xdp,
    interface: &Interface,
    choice: ModeChoice,
    pins: &Pins,
) -> Result<Option<Mode>> {
    let path = pins.link(interface.index);
    if !path.exists() {
        return Ok(None);
    }
    let mode = match interface.xdp {
        Some(xdp) if xdp.native => Mode::Native,
        Some(_) => Mode::Generic,
        // The interface was deleted and recreated under the same index: the link is detached.
        None => {
            pins.detach(interface.index)?;
            return Ok(None);
        }
    };
    let wanted = match choice {
        ModeChoice::Auto => mode,
        ModeChoice::Native => Mode::Native,
        ModeChoice::Generic => Mode::Generic,
    };
    if wanted != mode {
        log::warn!("{}: changing from {mode} to {wanted} mode leaves a short gap", interface.name);
        pins.detach(interface.index)?;
        return Ok(None);
    }
    let link = PinnedLink::from_pin(&path)
        .with_context(|| format!("{} cannot be opened", path.display()))?;
    let link = XdpLink::try_from(FdLink::from(link))
        .map_err(|error| anyhow!("{}: {error}", path.display()))?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // The pin keeps the link; closing our descriptor changes nothing.
            drop(fd_link(program, id)?);
            Ok(Some(mode))
        }
        // ENOLINK: the interface under the link is gone (net/core/dev.c, bpf_xdp_link_update).
        Err(error) if errno(&error) == Some(libc::ENOLINK) => {
            pins.detach(interface.index)?;
            Ok(None)
        }
        Err(error) => {
            Err(anyhow!("{}: the program cannot be swapped: {}", interface.name, cause(&error)))
        }
    }
}

/// Attaches to an interface without a program of ours.
fn attach_anew(program: &mut Xdp, interface: &Interface, mode: Mode, pins: &Pins) -> Result<()> {
    let id = match program.attach_to_if_index(interface.index, mode.xdp()) {
        Ok(id) => id,
        Err(error) => {
            return Err(match errno(&error) {
                Some(libc::EBUSY | libc::EEXIST) => anyhow!(Taken(occupant(interface))),
                _ if mode == Mode::Generic => anyhow!("the kernel said: {}", cause(&error)),
                errno => anyhow!(Refused(refusal(program, interface, errno))),
            });
        }
    };
    let path = pins.link(interface.index);
    fd_link(program, id)?
        .pin(&path)
        .with_context(|| format!("{} cannot be pinned", path.display()))?;
    Ok(())
}

/// Takes a link from aya. A link made through netlink (kernels before 5.9) cannot be pinned, so
/// that the filter would end with the daemon: that is an error, and dropping the link detaches it.
fn fd_link(program: &mut Xdp, id: XdpLinkId) -> Result<FdLink> {
    let link = program.take_link(id)?;
    FdLink::try_from(link).map_err(|_| {
        anyhow!("the kernel has no XDP links, with which the filter outlives its daemon")
    })
}

fn pin_program(program: &mut Xdp, interface: &Interface, pins: &Pins) -> Result<()> {
    let path = pins.program(interface.index);
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    program.pin(&path).with_context(|| format!("{} cannot be pinned", path.display()))
}

/// The driver refused the program.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(Refusal);

/// The properties of the interface that may explain a refusal.
fn refusal(program: &Xdp, interface: &Interface, errno: Option<i32>) -> Refusal {
    let name = &interface.name;
    let driver = interface.kind.clone().or_else(|| ethtool::driver(name).ok());
    Refusal {
        interface: name.clone(),
        driver: driver.unwrap_or_default(),
        errno,
        text: extack::refusal(program, interface.index),
        mtu: interface.mtu,
        channels: ethtool::channels(name).ok().filter(|channels| channels.used > 0),
    }
}

/// The remedy, if the error is a refusal.
fn remedy(error: &anyhow::Error) -> Option<String> {
    error.downcast_ref::<Refused>()?.0.remedy()
}

/// Another XDP program is attached to the interface.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Taken(String);

fn is_taken(error: &anyhow::Error) -> bool {
    error.is::<Taken>()
}

/// Describes the attached program, and how to remove it.
fn occupant(interface: &Interface) -> String {
    let name = &interface.name;
    let Some(AttachedXdp { id, .. }) = interface.xdp else {
        return format!("{name} already runs another XDP program; see `ip link show dev {name}`");
    };
    let program = loaded_programs().flatten().find(|program| program.id() == id);
    let program = program.as_ref().and_then(ProgramInfo::name_as_str).unwrap_or_default();
    if program == sip_xdp_common::abi::names::INGRESS {
        return format!(
            "{name} is already filtered by another sip-xdp (program {id}); unload that one, with \
             its --pin-dir"
        );
    }
    // Program names require CAP_SYS_ADMIN, which the service lacks.
    let program = if program.is_empty() { String::new() } else { format!("\"{program}\" ") };
    // A program behind a link can only be detached through the link.
    let link = loaded_links().flatten().find(|link| link.program_id() == id);
    let command = match link {
        Some(link) => format!("bpftool link detach id {}", link.id()),
        None => format!("ip link set dev {name} xdp off"),
    };
    format!(
        "{name} already runs an XDP program {program}(id {id}), and the kernel takes one per \
         interface; stop its owner, \
         or take it off with `{command}`"
    )
}

/// The errno inside an error of aya.
fn errno(error: &ProgramError) -> Option<i32> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        cause = error.source();
    }
    None
}

/// The innermost cause of an error of aya.
pub(crate) fn cause(error: &ProgramError) -> String {
    innermost(error)
}

/// The innermost cause of an error; for errors of aya, that of the system.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
