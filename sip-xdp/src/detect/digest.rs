//! Digests of strings from senders, which bound the memory. Seeded, so that collisions cannot be
//! constructed.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::LazyLock;

static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The digest of a value, valid for this process.
pub(super) fn digest<T: Hash + ?Sized>(value: &T) -> u64 {
    SEED.hash_one(value)
}

/// Number of distinct values, the most common one, and its count.
pub(super) fn most_common<T: Copy + Eq + Hash>(
    values: impl Iterator<Item = Option<T>>,
) -> Option<(usize, T, usize)> {
    let mut counts: HashMap<T, usize> = HashMap::new();
    values.flatten().for_each(|value| *counts.entry(value).or_default() += 1);
    let (value, count) = counts.iter().max_by_key(|(_, count)| **count)?;
    Some((counts.len(), *value, *count))
}
