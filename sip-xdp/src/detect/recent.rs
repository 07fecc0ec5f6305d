//! A bounded map with expiry: entries expire when not touched for their lifetime, and the oldest is
//! evicted when it is full. All operations take amortised constant time.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A bounded map with expiry.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    order: VecDeque<(u64, K)>,
    capacity: usize,
    lifetime_ns: u64,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    /// An empty map with this capacity and lifetime in nanoseconds.
    pub(super) fn new(capacity: usize, lifetime_ns: u64) -> Self {
        let (entries, order) = (HashMap::new(), VecDeque::new());
        Self { entries, order, capacity, lifetime_ns }
    }

    /// The entry of `key`, created if missing, and touched.
    pub(super) fn touch(&mut self, key: K, now: u64, make: impl FnOnce() -> V) -> &mut V {
        self.tidy(now);
        let is_new = !self.entries.contains_key(&key);
        if is_new {
            self.make_room();
            self.order.push_back((now, key));
        }
        let entry = self.entries.entry(key).or_insert_with(|| (now, make()));
        entry.0 = now;
        &mut entry.1
    }

    /// Inserts or replaces a value.
    pub(super) fn insert(&mut self, key: K, now: u64, value: V)
    where
        V: Clone,
    {
        let entry = self.touch(key, now, || value.clone());
        *entry = value;
    }

    /// The live entry of a key.
    pub(super) fn get(&self, key: &K, now: u64) -> Option<&V> {
        let (at, value) = self.entries.get(key)?;
        (now.saturating_sub(*at) < self.lifetime_ns).then_some(value)
    }

    /// The entry of a key, however old.
    pub(super) fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// As [`Recent::get`], mutable, without touching it.
    pub(super) fn get_mut(&mut self, key: &K, now: u64) -> Option<&mut V> {
        let lifetime_ns = self.lifetime_ns;
        let (at, value) = self.entries.get_mut(key)?;
        (now.saturating_sub(*at) < lifetime_ns).then_some(value)
    }

    /// Removes the entries whose keys are such.
    pub(super) fn remove_where(&mut self, is_gone: impl Fn(&K) -> bool) {
        // Their places in the order are skipped later.
        self.entries.retain(|key, _| !is_gone(key));
    }

    /// All entries, with the time of their last touch, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, u64, &V)> {
        self.entries.iter().map(|(key, (at, value))| (key, *at, value))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn tidy(&mut self, now: u64) {
        while let Some((at, _)) = self.order.front()
            && now.saturating_sub(*at) >= self.lifetime_ns
        {
            self.pass_over();
        }
        // Removed keys must not fill the order.
        while self.order.len() > 2 * self.capacity {
            self.pass_over();
        }
    }

    fn make_room(&mut self) {
        while self.entries.len() >= self.capacity && !self.order.is_empty() {
            let Some((at, key)) = self.order.pop_front() else {
                return;
            };
            match self.entries.get(&key) {
                Some((touched, _)) if *touched > at => self.order.push_back((*touched, key)),
                _ => _ = self.entries.remove(&key),
            }
        }
    }

    /// Evicts the first of the order, or requeues it if it was touched since.
    fn pass_over(&mut self) {
        let Some((at, key)) = self.order.pop_front() else {
            return;
        };
        match self.entries.get(&key) {
            Some((touched, _)) if *touched > at => self.order.push_back((*touched, key)),
            _ => _ = self.entries.remove(&key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_stays_and_memory_is_bounded() {
        let mut recent = Recent::new(100, 1_000);
        recent.insert(0_u64, 0, "kept");
        for n in 1..10_000_u64 {
            recent.insert(n, n, "passing");
            recent.touch(0, n, || "made anew");
        }
        assert!(recent.len() <= 100, "{}", recent.len());
        assert_eq!(recent.get(&0, 9_999), Some(&"kept"));
        assert_eq!(recent.get(&1, 9_999), None);
        assert_eq!(recent.get(&9_999, 9_999 + 1_000), None);
    }
}
