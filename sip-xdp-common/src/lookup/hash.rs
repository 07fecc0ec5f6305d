//! The hash of addresses, seeded when the tables are created, so that an attacker cannot choose a
//! bucket.

/// Mixes the two halves of an address and the label of its network. The constants are those of
/// splitmix64; every output bit depends on every input bit.
#[inline(always)]
pub const fn mix(high: u64, low: u64, label: u64, seed: u64) -> u64 {
    let mixed = (high ^ seed ^ label.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 32) ^ low).wrapping_mul(0x94d0_49bb_1331_11eb);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_do_not_meet() {
        let seen: std::collections::HashSet<u64> = (0..100_000)
            .flat_map(|n| [mix(0, n << 32, 128, 7), mix(n, 0, 64, 7), mix(n, 0, 48, 7)])
            .collect();
        assert_eq!(seen.len(), 300_000);
    }

    #[test]
    fn every_bit_of_the_input_moves_half_of_the_output() {
        for bit in 0..64 {
            let changed = [(1 << bit, 0), (0, 1 << bit)].map(|(high, low)| {
                (0..64)
                    .map(|n| (mix(n, n, 0, 1) ^ mix(n ^ high, n ^ low, 0, 1)).count_ones())
                    .sum::<u32>()
                    / 64
            });
            assert!(changed.iter().all(|bits| (26..=38).contains(bits)), "bit {bit}: {changed:?}");
        }
    }
}
