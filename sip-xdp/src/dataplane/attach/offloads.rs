//! Offloads that kernel or driver switch off when a program is attached: generic mode switches LRO
//! and hardware GRO off, on the interface and on those beneath it, and some drivers do so for
//! native mode. Nobody switches them on again. So what went off is noted among the pins, where it
//! survives the daemon, and put back when the program is taken off.

use std::collections::BTreeSet;
use std::ffi::CString;

use anyhow::Result;
use nix::net::if_::{if_indextoname, if_nameindex};
use serde::{Deserialize, Serialize};

use crate::dataplane::ethtool::{self, Features};
use crate::dataplane::pins::Pins;

/// An offload of an interface that was off when the program was taken off.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Offload {
    /// The interface: the filtered one, or one beneath it.
    pub interface: String,
    /// Its name, as ethtool says it.
    pub offload: String,
    /// Why it could not be switched on again; none if it was.
    pub error: Option<String>,
}

/// The offloads of all interfaces at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot(Vec<(u32, BTreeSet<String>)>);

impl Snapshot {
    /// Of now. What cannot be asked is left out: it cannot be put back either.
    pub(crate) fn take() -> Self {
        let interfaces = if_nameindex().ok();
        let interfaces: Vec<(u32, CString)> = interfaces
            .iter()
            .flat_map(|all| all.iter())
            .map(|one| (one.index(), one.name().to_owned()))
            .collect();
        let names = interfaces
            .iter()
            .find_map(|(_, name)| ethtool::feature_names(name.to_str().ok()?).ok());
        let names = names.unwrap_or_default();
        let on = |name: &str| ethtool::features(name, &names).ok().map(|Features { on, .. }| on);
        Self(
            interfaces
                .iter()
                .filter_map(|(index, name)| Some((*index, on(name.to_str().ok()?)?)))
                .collect(),
        )
    }

    /// What was on, and is not on any more.
    fn switched_off(&self, now: &Self) -> Vec<(u32, String)> {
        let now = |index: u32| now.0.iter().find(|(of, _)| *of == index).map(|(_, on)| on);
        let off = self.0.iter().filter_map(|(index, before)| {
            let now = now(*index)?;
            Some(before.difference(now).map(|name| (*index, name.clone())))
        });
        off.flatten().collect()
    }
}

/// Notes what attaching to an interface has switched off since `before`. Returns it in words, if
/// anything.
pub(crate) fn note(pins: &Pins, index: u32, before: &Snapshot) -> Result<Option<String>> {
    let off = before.switched_off(&Snapshot::take());
    for (device, name) in &off {
        pins.note_offload(index, *device, name)?;
    }
    let named = |(device, name): &(u32, String)| format!("{name} of {}", name_of(*device));
    let said = off.iter().map(named).collect::<Vec<_>>().join(", ");
    Ok((!said.is_empty()).then_some(said))
}

/// Switches on again what attaching to an interface has switched off, and forgets it. To be called
/// when the program is off.
pub(crate) fn put_back(pins: &Pins, index: u32) -> Result<Vec<Offload>> {
    let mut done = Vec::new();
    for (device, offload) in pins.noted_offloads(index) {
        // With its interface an offload is gone.
        let Ok(interface) = if_indextoname(device) else { continue };
        let interface = interface.to_string_lossy().into_owned();
        let is_on =
            ethtool::features_of(&interface).is_ok_and(|features| features.on.contains(&offload));
        // Some drivers put it back themselves.
        if is_on {
            continue;
        }
        let error = ethtool::switch_on(&interface, &offload).err().map(|error| error.to_string());
        match &error {
            None => log::info!("{interface}: {offload} is on again"),
            Some(error) => log::warn!(
                "{interface}: {offload} was switched off for the filter and cannot be switched on \
                 again ({error}); \
                 try `ethtool -K {interface} {offload} on`"
            ),
        }
        done.push(Offload { interface, offload, error });
    }
    pins.forget_offloads(index)?;
    Ok(done)
}

fn name_of(index: u32) -> String {
    if_indextoname(index)
        .map_or_else(|_| format!("interface {index}"), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_on_and_is_not_is_found() {
        let of = |rows: &[(u32, &[&str])]| {
            Snapshot(
                rows.iter()
                    .map(|(index, on)| (*index, on.iter().map(|name| (*name).to_owned()).collect()))
                    .collect(),
            )
        };
        let before = of(&[
            (1, &["rx-gro"]),
            (2, &["rx-gro-hw", "rx-lro", "rx-gro"]),
            (3, &["rx-lro"]),
            (4, &["rx-lro"]),
        ]);
        // The fourth is gone, a fifth came.
        let after = of(&[(1, &["rx-gro", "rx-lro"]), (2, &["rx-gro"]), (3, &[]), (5, &[])]);
        let found = before.switched_off(&after);
        let found: Vec<_> = found.iter().map(|(index, name)| (*index, name.as_str())).collect();
        assert_eq!(found, [(2, "rx-gro-hw"), (2, "rx-lro"), (3, "rx-lro")]);
        assert!(before.switched_off(&before).is_empty());
    }
}
