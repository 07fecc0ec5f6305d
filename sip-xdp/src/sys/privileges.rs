//! What the daemon may do: as little as it takes to go on.
//!
//! The kernel keeps capabilities for each thread, and one thread cannot take them from another. So
//! the thread that attaches programs keeps what it needs for the next interface and the next
//! configuration, and each thread that talks to the world, or to the disk, gives up everything
//! before it does anything else. Programs that such a thread starts inherit nothing; and since
//! nobody here gains privileges by starting a program (no_new_privs), being root does not give them
//! back either.

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

/// What filtering takes for as long as it lasts.
///
/// - `CAP_BPF`: loads programs, which a reload does anew, and opens the pinned maps.
/// - `CAP_NET_ADMIN`: attaches them to interfaces that come later, swaps them, takes them off.
/// - `CAP_PERFMON`: lets programs compare and move pointers into packets, as ours do.
pub(crate) const FILTER: &[Capability] =
    &[Capability::CAP_NET_ADMIN, Capability::CAP_BPF, Capability::CAP_PERFMON];

/// What reading the pinned maps takes.
pub(crate) const READER: &[Capability] = &[Capability::CAP_BPF];

/// What it takes to fetch lists, to notify, and to write files that belong to root.
pub(crate) const NOTHING: &[Capability] = &[];

/// Sees to it that no program that this thread starts, or threads that it starts, gains privileges
/// by being started.
pub(crate) fn end_gaining() {
    if let Err(error) = prctl::set_no_new_privs() {
        log::warn!(
            "no_new_privs cannot be set ({error}); programs that are notified may gain privileges"
        );
    }
}

/// Gives up all capabilities of this thread but these, in every set. What cannot be given up is
/// said: filtering goes on.
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
    // Only with this one can the bounding set be changed: not in a service, whose bounding set was
    // made for it, and not in threads that are started later. Programs gain nothing from what stays
    // in there, see `end_gaining`.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        let bounding = caps::read(None, CapSet::Bounding)?;
        for capability in bounding.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability)
                .with_context(|| format!("{capability} stays in the bounding set"))?;
        }
    }
    caps::clear(None, CapSet::Ambient).context("the ambient set cannot be emptied")?;
    caps::clear(None, CapSet::Inheritable).context("the inheritable set cannot be emptied")?;
    // Effective ones must be permitted, so they go first.
    caps::set(None, CapSet::Effective, &kept).context("the effective set cannot be changed")?;
    caps::set(None, CapSet::Permitted, &kept).context("the permitted set cannot be changed")
}

/// What is kept of the capabilities that are held.
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

/// The names of the capabilities that filtering takes and this thread does not have.
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

/// Whether `CAP_SYS_ADMIN`, of which the kernel split it off, will do as well.
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
    fn what_is_needed_is_kept_and_nothing_else() {
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
