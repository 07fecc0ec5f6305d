//! IPv4 hosts listed by feeds: nearly all of a long list, and therefore stored a second time beside
//! the table of networks. One million take a sixteenth of that table's memory, and one load of 16
//! bytes answers.
//!
//! The address is mixed reversibly and split into the number of a [`Row`] and a mark of 15 bits;
//! together they hold all of its bits, so that a match is exact. Hosts without room in their row,
//! and hosts that owners other than feeds block, are counted in the row's last lane: where that is
//! not zero, a miss continues in the table of networks, which holds every host.

/// Four lanes of 16 bits per word, the lowest bits first: the marks of up to [`MARKS`] hosts,
/// unordered, 0 for a free lane; in the last lane the number of hosts of this row that only the
/// table of networks holds.
pub type Row = [u64; 2];

/// Marks per row.
pub const MARKS: usize = 7;

/// Right shift of a row's last word that yields the number of hosts held elsewhere.
pub const ELSEWHERE_SHIFT: u32 = 48;

/// The lowest bit of each lane, and the highest.
const LOWEST: u64 = 0x0001_0001_0001_0001;
const HIGHEST: u64 = LOWEST << 15;

/// The fewest rows with which row number and 15-bit mark hold a whole address.
const FEWEST: u32 = 1 << 17;

/// Number of rows for a capacity of `networks`: a power of two, with at most four hosts per row on
/// average. At most one host in thirty then overflows.
pub const fn rows(networks: u32) -> u32 {
    let wanted = networks.div_ceil(4).next_power_of_two();
    if wanted < FEWEST { FEWEST } else { wanted }
}

/// The answer of a row about a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowMatch {
    /// Not listed.
    Unlisted,
    /// Listed by a feed.
    FeedHost,
    /// Unknown here: look in the table of networks.
    AskTable,
}

/// The position of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowKey {
    /// The number of the row.
    pub row: u32,
    /// The mark; never 0.
    pub mark: u16,
}

impl RowKey {
    /// The key of an IPv4 address in host order, in tables with this
    /// [`seed`](crate::lookup::networks::Hashing) and shift. The constants are those of two
    /// well-known hashes (the golden ratio in 32 bits, and MurmurHash3's finalizer); each step is
    /// reversible.
    #[inline(always)]
    pub const fn of(address: u32, seed: u64, row_shift: u32) -> Self {
        let mixed = (address ^ seed as u32).wrapping_mul(0x9e37_79b1);
        let mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
        // Bit 15 is part of the row number as well.
        Self { row: mixed >> (row_shift & 31), mark: mixed as u16 | 0x8000 }
    }

    /// Looks the host up in its row.
    #[inline(always)]
    pub const fn look(&self, row: &Row) -> RowMatch {
        let mark = self.mark as u64 * LOWEST;
        // A lane is 0 where the mark matches; the last lane holds no mark.
        let [first, last] = [row[0] ^ mark, (row[1] ^ mark) | 1 << ELSEWHERE_SHIFT];
        if highest_bits(first) & highest_bits(last) & HIGHEST != HIGHEST {
            RowMatch::FeedHost
        } else if row[1] >> ELSEWHERE_SHIFT != 0 {
            RowMatch::AskTable
        } else {
            RowMatch::Unlisted
        }
    }
}

/// The highest bit of each lane that is not 0. It may be missing in a lane that is 1 above a lane
/// that is 0.
#[inline(always)]
const fn highest_bits(lanes: u64) -> u64 {
    // `!(lanes - LOWEST)`, one instruction shorter.
    (LOWEST - 1).wrapping_sub(lanes) | lanes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::lookup::networks::Hashing;

    fn row_keys(networks: u32) -> impl Fn(u32) -> RowKey {
        let Hashing { seed, row_shift, .. } = Hashing::new(0x1234_5678_9abc_def1, networks, 64);
        move |address| RowKey::of(address, seed, row_shift)
    }

    #[test]
    fn no_two_hosts_have_row_and_mark_in_common() {
        for networks in [16, 1 << 20, 1 << 21, u32::MAX] {
            let row_key = row_keys(networks);
            let row_keys =
                |n: u32| [n, n << 12, n.reverse_bits()].map(|address| (address, row_key(address)));
            let (addresses, places): (HashSet<_>, HashSet<_>) = (0..1 << 18)
                .flat_map(row_keys)
                .map(|(address, row_key)| (address, (row_key.row, row_key.mark)))
                .unzip();
            assert_eq!(addresses.len(), places.len());
            assert!(places.iter().all(|(row, mark)| *row < rows(networks) && *mark != 0));
        }
        // All hosts of one row: the case where marks could collide.
        let row_key = row_keys(1);
        let of_row =
            (0..=u32::MAX >> 7).map(|n| row_key(n << 7)).filter(|row_key| row_key.row == 77);
        let marks: Vec<u16> = of_row.map(|row_key| row_key.mark).collect();
        assert!(
            marks.len() > 200 && marks.iter().collect::<HashSet<_>>().len() == marks.len(),
            "{}",
            marks.len()
        );
    }

    #[test]
    fn a_mark_is_found_where_it_stands_and_nowhere_else() {
        let row_keys: Vec<RowKey> =
            (0..400_u32).map(|n| n.wrapping_mul(0x0101_0107)).map(row_keys(1)).collect();
        let with = |lane: usize, mark: u16, mut row: Row| {
            row[lane / 4] =
                row[lane / 4] & !(0xffff << (lane % 4 * 16)) | u64::from(mark) << (lane % 4 * 16);
            row
        };
        for (n, row_key) in row_keys.iter().enumerate() {
            assert_eq!(row_key.look(&[0; 2]), RowMatch::Unlisted);
            assert_eq!(row_key.look(&with(MARKS, 1, [0; 2])), RowMatch::AskTable);
            // The overflow count in the last lane is not a mark.
            assert_eq!(row_key.look(&with(MARKS, row_key.mark, [0; 2])), RowMatch::AskTable);
            // Among marks that differ in one bit, and others.
            let others = |lane: usize| match row_keys[(n + lane + 1) % row_keys.len()].mark {
                mark if mark == row_key.mark || lane.is_multiple_of(2) => {
                    row_key.mark ^ (1 << (lane % 15))
                }
                mark => mark,
            };
            let full = (0..MARKS).fold([0; 2], |row, lane| with(lane, others(lane), row));
            assert_eq!(row_key.look(&full), RowMatch::Unlisted, "{row_key:?} {full:x?}");
            for lane in 0..MARKS {
                for row in [[0; 2], full, with(MARKS, 3, full)] {
                    assert_eq!(
                        row_key.look(&with(lane, row_key.mark, row)),
                        RowMatch::FeedHost,
                        "{row_key:?} {row:x?}"
                    );
                }
            }
        }
    }

    /// Feeds list adjacent addresses, or addresses at a fixed stride. Few overflow at capacity.
    #[test]
    fn rows_have_room() {
        let networks = 1 << 20;
        for step in [1, 3, 7, 16, 255, 256, 1 << 11, 4_093] {
            let row_key = row_keys(networks);
            let mut used = vec![0_u32; rows(networks) as usize];
            (0..networks).for_each(|n| used[row_key(n.wrapping_mul(step)).row as usize] += 1);
            let elsewhere: u32 = used.iter().map(|used| used.saturating_sub(MARKS as u32)).sum();
            assert!(
                elsewhere < networks / 25,
                "step {step}: {elsewhere} of {networks} are elsewhere"
            );
        }
    }
}
