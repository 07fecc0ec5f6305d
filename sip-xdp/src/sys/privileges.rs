//! Privileges: the daemon keeps the least that it needs.
//!
//! Capabilities belong to threads, and one thread cannot drop those of another. So the thread that
//! attaches programs keeps what it needs for the next interface and reload, and each thread with
//! network or disk access drops everything first. Programs that such a thread starts inherit
//! nothing; and because of no_new_privs, being root does not regain capabilities either.

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

/// Capabilities for filtering.
///
/// - `CAP_BPF`: load programs, also on reload, and open the pinned maps.
/// - `CAP_NET_ADMIN`: attach programs to new interfaces, replace and detach them.
/// - `CAP_PERFMON`: pointer comparison and arithmetic on packet pointers in programs.
pub(crate) const FILTER: &[Capability] =
    &[Capability::CAP_NET_ADMIN, Capability::CAP_BPF, Capability::CAP_PERFMON];

/// Capabilities for reading the pinned maps.
pub(crate) const READER: &[Capability] = &[Capability::CAP_BPF];

/// Capabilities for fetching feeds, notifying, and writing root's files: none.
pub(crate) const NOTHING: &[Capability] = &[];

/// Sets no_new_privs for this thread and the threads that it starts.
pub(crate) fn end_gaining() {
    if let Err(error) = prctl::set_no_new_privs() {
        log::warn!(
            "no_new_privs cannot be set ({error}); programs that are notified may gain privileges"
        );
    }
}

/// Drops all capabilities of this thread but these, from every set. Failures are logged, and
/// filtering goes on.
pub(crate) fn keep(wanted: &[Capability]) {
    if let Err(error) = try_keep(wanted) {
        log::warn!("privileges cannot be given up, the daemon goes on with what it has: {error:#}");
    }
}

fn try_keep(wanted: &[Capability]) -> Result<()> {
    let kept = kept(
        &caps::read(None, CapSet::Permitted).context("what is permitted cannot be read")?,
        wanted,
    );
    // Changing the bounding set needs CAP_SETPCAP, which services (whose bounding set is already
    // small) and later threads lack. Programs gain nothing from the rest of the bounding set, see
    // `end_gaining`.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        let bounding = caps::read(None, CapSet::Bounding)?;
        for capability in bounding.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability)
                .with_context(|| format!("{capability} stays in the bounding set"))?;
        }
    }
    caps::clear(None, CapSet::Ambient).context("the ambient set cannot be emptied")?;
    caps::clear(None, CapSet::Inheritable).context("the inheritable set cannot be emptied")?;
    // Effective capabilities must be permitted, so they are dropped first.
    caps::set(None, CapSet::Effective, &kept).context("the effective set cannot be changed")?;
    caps::set(None, CapSet::Permitted, &kept).context("the permitted set cannot be changed")
}

/// The held capabilities to keep.
fn kept(held: &CapsHashSet, wanted: &[Capability]) -> CapsHashSet {
    let mut kept: CapsHashSet =
        wanted.iter().copied().filter(|capability| held.contains(capability)).collect();
    let stands_in =
        wanted.iter().any(|capability| !held.contains(capability) && is_stood_in_for(*capability));
    if stands_in && held.contains(&Capability::CAP_SYS_ADMIN) {
        kept.insert(Capability::CAP_SYS_ADMIN);
    }
    kept
}

/// Names of the capabilities for filtering that this thread lacks.
pub(crate) fn missing() -> Result<Vec<String>> {
    let effective = caps::read(None, CapSet::Effective)
        .context("this process's capabilities cannot be read")?;
    Ok(lacking(&effective).map(|capability| capability.to_string()).collect())
}

fn lacking(effective: &CapsHashSet) -> impl Iterator<Item = Capability> {
    let is_admin = effective.contains(&Capability::CAP_SYS_ADMIN);
    let has = move |wanted: &Capability| {
        effective.contains(wanted) || (is_admin && is_stood_in_for(*wanted))
    };
    FILTER.iter().copied().filter(move |wanted| !has(wanted))
}

/// Whether this process may mount file systems.
pub(crate) fn can_mount() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// Whether `CAP_SYS_ADMIN`, from which the kernel split it off, substitutes for it.
fn is_stood_in_for(capability: Capability) -> bool {
    matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(capabilities: &[Capability]) -> CapsHashSet {
        capabilities.iter().copied().collect()
    }

    #[test]
    fn only_needed_capabilities_are_kept() {
        assert_eq!(kept(&caps::all(), FILTER), set(FILTER));
        assert_eq!(kept(&caps::all(), READER), set(READER));
        assert_eq!(kept(&caps::all(), NOTHING), set(&[]));
        assert_eq!(kept(&set(&[Capability::CAP_CHOWN]), FILTER), set(&[]));
    }

    #[test]
    fn the_old_capability_stands_in_for_the_new_ones_where_they_are_missing() {
        let old =
            set(&[Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN, Capability::CAP_CHOWN]);
        assert_eq!(
            kept(&old, FILTER),
            set(&[Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN])
        );
        assert_eq!(kept(&old, NOTHING), set(&[]));
        assert_eq!(lacking(&old).count(), 0);
        assert!(lacking(&set(&[Capability::CAP_SYS_ADMIN])).eq([Capability::CAP_NET_ADMIN]));
        assert!(lacking(&set(&[])).eq(FILTER.iter().copied()));
    }

    #[test]
    fn a_thread_that_gives_up_everything_has_nothing_left() {
        std::thread::spawn(|| {
            try_keep(NOTHING).unwrap();
            for kind in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient]
            {
                assert!(caps::read(None, kind).unwrap().is_empty(), "{kind:?}");
            }
        })
        .join()
        .unwrap();
    }
}
