//! Offloads that kernel or driver switch off when a program is attached: generic mode switches LRO
//! and hardware GRO off, on the interface and those beneath it, and some drivers do so for native
//! mode. They are never switched on again by themselves. So they are recorded among the pins, where
//! the record survives the daemon, and restored when the program is detached.

use std::collections::BTreeSet;
use std::ffi::CString;

use anyhow::Result;
use nix::net::if_::{if_indextoname, if_nameindex};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataplane::ethtool::{self, Features};
use crate::dataplane::pins::Pins;

/// An offload that attaching had switched off, and whether it was restored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
pub struct Offload {
    /// The interface: the filtered one, or one beneath it.
    pub interface: String,
    /// Its ethtool feature name.
    pub offload: String,
    /// Why it could not be restored; `None` if it was.
    pub error: Option<String>,
}

/// The enabled features of all interfaces at one time.
#[derive(Debug, Default)]
pub(crate) struct Snapshot(Vec<(u32, BTreeSet<String>)>);

impl Snapshot {
    /// The current features. Interfaces that ethtool cannot query are left out: their features
    /// cannot be restored either.
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

    /// Features that were on and are off now.
    fn switched_off(&self, now: &Self) -> Vec<(u32, String)> {
        let now = |index: u32| now.0.iter().find(|(of, _)| *of == index).map(|(_, on)| on);
        let off = self.0.iter().filter_map(|(index, before)| {
            let now = now(*index)?;
            Some(before.difference(now).map(|name| (*index, name.clone())))
        });
        off.flatten().collect()
    }
}

/// Records the offloads that attaching to an interface has switched off since `before`. Returns a
/// description, if there are any.
pub(crate) fn note(pins: &Pins, index: u32, before: &Snapshot) -> Result<Option<String>> {
    let off = before.switched_off(&Snapshot::take());
    for (device, name) in &off {
        pins.note_offload(index, *device, name)?;
    }
    let named = |(device, name): &(u32, String)| format!("{name} of {}", name_of(*device));
    let names = off.iter().map(named).collect::<Vec<_>>().join(", ");
    Ok((!names.is_empty()).then_some(names))
}

/// Restores the offloads that attaching to an interface switched off, and removes the record. To be
/// called after detaching.
pub(crate) fn put_back(pins: &Pins, index: u32) -> Result<Vec<Offload>> {
    let mut done = Vec::new();
    for (device, offload) in pins.noted_offloads(index) {
        // The interface is gone.
        let Ok(interface) = if_indextoname(device) else { continue };
        let interface = interface.to_string_lossy().into_owned();
        let is_on =
            ethtool::features_of(&interface).is_ok_and(|features| features.on.contains(&offload));
        // Some drivers restore it themselves.
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
    fn switched_off_features_are_found() {
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
        // Interface 4 is gone, 5 is new.
        let after = of(&[(1, &["rx-gro", "rx-lro"]), (2, &["rx-gro"]), (3, &[]), (5, &[])]);
        let found = before.switched_off(&after);
        let found: Vec<_> = found.iter().map(|(index, name)| (*index, name.as_str())).collect();
        assert_eq!(found, [(2, "rx-gro-hw"), (2, "rx-lro"), (3, "rx-lro")]);
        assert!(before.switched_off(&before).is_empty());
    }
}
