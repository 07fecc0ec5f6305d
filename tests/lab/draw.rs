//! Reproducible random choices.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// A number generator (splitmix64).
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// With this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// With the seed in SIP_XDP_SEED, or a new one. It is printed, so that a test can be repeated.
    pub fn seeded(what: &str) -> Self {
        let moment = || {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64)
        };
        let seed =
            env::var("SIP_XDP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(moment);
        println!("{what}: SIP_XDP_SEED={seed} draws the same again");
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |seed| -> Vec<u64> {
            let mut draw = Draw::new(seed);
            (0..50).map(|_| draw.below(1_000)).collect()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().collect::<std::collections::BTreeSet<_>>().len() > 40);
    }
}
