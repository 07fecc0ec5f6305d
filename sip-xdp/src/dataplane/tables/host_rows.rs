//! The writer of the rows of feed hosts, which the kernel reads concurrently. Their layout is
//! described in [`sip_xdp_common::lookup::host_rows`].
//!
//! A lookup reads a row word by word. So a host that stays listed may leave its lane only after the
//! row counts it as held elsewhere, and after a grace period for readers of the earlier row. A host
//! held elsewhere stays there as long as it is listed.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use aya::maps::Map;
use sip_xdp_common::abi::names;
use sip_xdp_common::lookup::host_rows::{ELSEWHERE_SHIFT, MARKS, Row, RowKey};
use sip_xdp_common::lookup::networks::Hashing;

use crate::dataplane::mmap::{Mapped, View};
use crate::dataplane::rcu::grace_period;

const ROW_WORDS: usize = size_of::<Row>() / size_of::<u64>();

/// Lanes per word, and bits per lane.
const LANES: usize = 4;
const LANE_BITS: usize = 16;

/// The words of one row.
pub fn row(all: &View, number: u32) -> &[AtomicU64] {
    &all.words()[number as usize * ROW_WORDS..][..ROW_WORDS]
}

/// The owners that block a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// None.
    Nobody,
    /// Feeds only.
    Feed,
    /// Other owners, with or without feeds.
    Others,
}

/// The rows.
pub struct Rows {
    rows: Mapped,
    hashing: Hashing,
    /// Hosts that are counted as held elsewhere, and leave their lanes after the next grace period.
    leaving: RefCell<Vec<RowKey>>,
}

impl Rows {
    /// Opens the map by name, through `open`.
    pub fn open(mut open: impl FnMut(&str) -> Result<Map>, hashing: Hashing) -> Result<Self> {
        Ok(Self {
            rows: Mapped::new(open(names::FEED_HOSTS)?)?,
            hashing,
            leaving: RefCell::default(),
        })
    }

    /// Keeps the rows mapped from now on.
    pub(crate) fn keep_mapped(&mut self) -> Result<()> {
        self.rows.keep()
    }

    /// The position of a host, by its address in host order.
    pub fn row_key(&self, address: u32) -> RowKey {
        RowKey::of(address, self.hashing.seed, self.hashing.row_shift)
    }

    /// Maps all rows.
    pub fn all(&self) -> Result<View> {
        self.rows.all()
    }

    /// Maps one row.
    pub fn one(&self, number: u32) -> Result<View> {
        self.rows.one(number)
    }

    /// Updates a host's row for a change of the owners that block it.
    pub fn change(&self, words: &[AtomicU64], row_key: RowKey, from: By, to: By) {
        let row = Lanes(words);
        match (row.find(row_key.mark), to) {
            (Some(_), By::Feed) => {}
            (Some(lane), By::Nobody) => row.set(lane, 0),
            (Some(_), By::Others) => {
                row.add_elsewhere(1);
                self.leaving.borrow_mut().push(row_key);
            }
            (None, By::Nobody) if from == By::Nobody => {}
            (None, By::Nobody) => row.add_elsewhere(-1),
            (None, _) if from != By::Nobody => {}
            (None, _) => match row.find(0) {
                Some(free) if to == By::Feed => row.set(free, row_key.mark),
                _ => row.add_elsewhere(1),
            },
        }
    }

    /// Clears the lanes of leaving hosts. To be called at the end of a change.
    pub fn settle(&self) -> Result<()> {
        let mut leaving = self.leaving.borrow_mut();
        if leaving.is_empty() {
            return Ok(());
        }
        grace_period()?;
        let all = self.all()?;
        for row_key in leaving.drain(..) {
            let row = Lanes(row(&all, row_key.row));
            if let Some(lane) = row.find(row_key.mark) {
                row.set(lane, 0);
            }
        }
        Ok(())
    }

    /// Repairs the rows after a crash of their writer at any point: `hosts` are all blocked hosts.
    pub fn repair(&self, mut hosts: Vec<(RowKey, By)>) -> Result<()> {
        hosts.sort_unstable_by_key(|(row_key, _)| row_key.row);
        let all = self.all()?;
        let mut rest = hosts.as_slice();
        for number in 0..self.rows.elements() {
            let (of_row, others) =
                rest.split_at(rest.iter().take_while(|(row_key, _)| row_key.row == number).count());
            rest = others;
            let row = Lanes(row(&all, number));
            let mut elsewhere = of_row.len();
            for lane in 0..MARKS {
                let mark = row.get(lane);
                match of_row.iter().find(|(row_key, _)| row_key.mark == mark) {
                    Some((_, By::Feed)) if row.find(mark) == Some(lane) => elsewhere -= 1,
                    Some((row_key, _)) => self.leaving.borrow_mut().push(*row_key),
                    None if mark != 0 => row.set(lane, 0),
                    None => {}
                }
            }
            row.set(MARKS, elsewhere as u16);
        }
        self.settle()
    }
}

/// The lanes of a row.
struct Lanes<'a>(&'a [AtomicU64]);

impl Lanes<'_> {
    fn get(&self, lane: usize) -> u16 {
        (self.0[lane / LANES].load(Ordering::Relaxed) >> (lane % LANES * LANE_BITS)) as u16
    }

    fn set(&self, lane: usize, value: u16) {
        let (word, shift) = (&self.0[lane / LANES], lane % LANES * LANE_BITS);
        let others = word.load(Ordering::Relaxed) & !(u64::from(u16::MAX) << shift);
        word.store(others | u64::from(value) << shift, Ordering::Release);
    }

    /// The lowest lane with this mark; with 0, the lowest free one.
    fn find(&self, mark: u16) -> Option<usize> {
        (0..MARKS).find(|lane| self.get(*lane) == mark)
    }

    fn add_elsewhere(&self, change: i16) {
        self.set(MARKS, self.get(MARKS).saturating_add_signed(change));
    }
}

const _: () = assert!(
    LANES * ROW_WORDS == MARKS + 1 && MARKS % LANES * LANE_BITS == ELSEWHERE_SHIFT as usize
);
