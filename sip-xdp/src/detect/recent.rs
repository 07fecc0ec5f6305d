//! A bounded map that forgets: what was not touched for its lifetime goes, and so does the oldest
//! when there is no more room. Every operation takes constant time, amortised.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// See the module.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    order: VecDeque<(u64, K)>,
    capacity: usize,
    lifetime_ns: u64,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    /// An empty map for so many entries, each of which lives so many nanoseconds.
    pub(super) fn new(capacity: usize, lifetime_ns: u64) -> Self {
        let (entries, order) = (HashMap::new(), VecDeque::new());
        Self { entries, order, capacity, lifetime_ns }
    }

    /// The entry of `key`, made if it is not there, and touched.
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

    /// Puts a value in the place of what was there.
    pub(super) fn insert(&mut self, key: K, now: u64, value: V)
    where
        V: Clone,
    {
        let entry = self.touch(key, now, || value.clone());
        *entry = value;
    }

    /// What is there and has not ended.
    pub(super) fn get(&self, key: &K, now: u64) -> Option<&V> {
        let (at, value) = self.entries.get(key)?;
        (now.saturating_sub(*at) < self.lifetime_ns).then_some(value)
    }

    /// As [`Recent::get`], to be changed; it is not touched by that.
    pub(super) fn get_mut(&mut self, key: &K, now: u64) -> Option<&mut V> {
        let lifetime_ns = self.lifetime_ns;
        let (at, value) = self.entries.get_mut(key)?;
        (now.saturating_sub(*at) < lifetime_ns).then_some(value)
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        // Its place in the order goes when its turn comes.
        self.entries.remove(key).map(|(_, value)| value)
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
        // Keys that were removed must not fill the order.
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

    /// Takes the first of the order out, or puts it back if it was touched since.
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
