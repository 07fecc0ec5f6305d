//! From configured names to interfaces. The interface with that name is filtered; if there is none,
//! the interface that had it at attachment stays filtered under its new name, since it is the same
//! link.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use sip_xdp_common::abi::layout::MAX_INTERFACES;

use super::{InterfaceMaps, unreadable};
use crate::daemon::Daemon;
use crate::dataplane::counters::name_of;
use crate::dataplane::netlink::{Interface, Surroundings};

/// An interface to be filtered, with its configured name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) interface: Interface,
}

/// The result for all configured names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Resolved {
    pub(super) wanted: Vec<Wanted>,
    pub(super) missing: Vec<String>,
}

impl Daemon {
    /// Finds the interfaces to be filtered: the configured ones, or those with a default route.
    /// Fails if none exists, unless the filter was on it before: a wrong name must not look like
    /// protection, and a right one may reappear at any time.
    pub(in crate::daemon) async fn resolve(&self, around: &Surroundings) -> Result<Resolved> {
        let all = self.netlink.interfaces().await?;
        // Without tables of this version there are no records.
        let known = InterfaceMaps::open(&self.pins.maps())
            .and_then(|interface_maps| interface_maps.read())
            .unwrap_or_default();
        let known: Vec<(String, u32)> = known
            .iter()
            .filter(|record| record.index != 0)
            .map(|record| (name_of(record), record.index))
            .collect();
        let mut names = self.config.interfaces.clone();
        if names.is_empty() {
            names = with_default_route(&all, around);
        }
        if names.is_empty() {
            names = known.iter().map(|(name, _)| name.clone()).collect();
        }
        let there =
            || all.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>().join(", ");
        if names.is_empty() {
            bail!(
                "no interface has a default route; name those to filter on with --iface (there \
                 are: {})",
                there()
            );
        }
        let attached: Vec<_> =
            known.iter().filter(|(_, index)| self.pins.link(*index).exists()).cloned().collect();
        let resolved = resolve(&names, &all, &attached);
        if resolved.wanted.len() + resolved.missing.len() > MAX_INTERFACES {
            bail!("{} interfaces are too many; one filter serves {MAX_INTERFACES}", names.len());
        }
        let was_there = |name: &String| known.iter().any(|(known, _)| known == name);
        if resolved.wanted.is_empty() && !resolved.missing.iter().any(was_there) {
            bail!("there is no interface {}; there are: {}", resolved.missing.join(", "), there());
        }
        if let Some(odd) = resolved.wanted.iter().find(|wanted| wanted.interface.link.is_none()) {
            bail!(unreadable(&odd.interface));
        }
        Ok(resolved)
    }
}

/// The interfaces of the configured names. `attached` are names and indices of our attachments.
pub(super) fn resolve(
    names: &[String],
    present: &[Interface],
    attached: &[(String, u32)],
) -> Resolved {
    let mut resolved = Resolved::default();
    let mut seen = BTreeSet::new();
    for name in names.iter().filter(|name| seen.insert(name.as_str())) {
        let by_name = present.iter().find(|interface| interface.name == *name);
        let renamed = || {
            let (_, index) = attached.iter().find(|(attached, _)| attached == name)?;
            let found = present.iter().find(|interface| interface.index == *index)?;
            // The index may have been reused by an interface without our program.
            (found.xdp.is_some() && !names.contains(&found.name)).then_some(found)
        };
        match by_name.or_else(renamed) {
            Some(interface) => {
                resolved.wanted.push(Wanted { name: name.clone(), interface: interface.clone() })
            }
            None => resolved.missing.push(name.clone()),
        }
    }
    resolved
}

/// Names of the interfaces with a default route.
pub(super) fn with_default_route(all: &[Interface], around: &Surroundings) -> Vec<String> {
    let found = all.iter().filter(|interface| around.default_interfaces.contains(&interface.index));
    found.map(|interface| interface.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::interfaces::tests::interface;

    /// Each name with its interface index; 0 for none.
    fn meant(
        names: &[&str],
        present: &[Interface],
        attached: &[(&str, u32)],
    ) -> Vec<(String, u32)> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let attached: Vec<_> =
            attached.iter().map(|(name, index)| ((*name).to_owned(), *index)).collect();
        let resolved = resolve(&names, present, &attached);
        let wanted =
            resolved.wanted.into_iter().map(|wanted| (wanted.name, wanted.interface.index));
        wanted.chain(resolved.missing.into_iter().map(|name| (name, 0))).collect()
    }

    fn pairs(pairs: &[(&str, u32)]) -> Vec<(String, u32)> {
        pairs.iter().map(|(name, index)| ((*name).to_owned(), *index)).collect()
    }

    #[test]
    fn the_configured_name_decides() {
        let both = [interface("wan", 5, true), interface("lan", 6, true)];
        assert_eq!(meant(&["wan", "lan", "wan"], &both, &[]), pairs(&[("wan", 5), ("lan", 6)]));
        // Recreated: the new index.
        let anew = [interface("wan", 9, false)];
        assert_eq!(meant(&["wan"], &anew, &[("wan", 5)]), pairs(&[("wan", 9)]));
        // Gone.
        assert_eq!(
            meant(&["wan", "lan"], &both[1..], &[("wan", 5)]),
            pairs(&[("lan", 6), ("wan", 0)])
        );
        // Two with swapped names.
        let swapped = [interface("lan", 5, true), interface("wan", 6, true)];
        let attached = [("wan", 5), ("lan", 6)];
        assert_eq!(meant(&["wan", "lan"], &swapped, &attached), pairs(&[("wan", 6), ("lan", 5)]));
    }

    #[test]
    fn a_renamed_interface_stays_until_another_has_its_name() {
        let renamed = [interface("wan0", 5, true)];
        assert_eq!(meant(&["wan"], &renamed, &[("wan", 5)]), pairs(&[("wan", 5)]));
        let another = [interface("wan0", 5, true), interface("wan", 9, false)];
        assert_eq!(meant(&["wan"], &another, &[("wan", 5)]), pairs(&[("wan", 9)]));
        // The index was reused by an interface without our program, or by a wanted one.
        assert_eq!(
            meant(&["wan"], &[interface("tap", 5, false)], &[("wan", 5)]),
            pairs(&[("wan", 0)])
        );
        let other = [interface("lan", 5, true)];
        assert_eq!(meant(&["wan", "lan"], &other, &[("wan", 5)]), pairs(&[("lan", 5), ("wan", 0)]));
    }
}
