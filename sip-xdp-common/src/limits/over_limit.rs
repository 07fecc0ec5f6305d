//! Records: what the kernel keeps of a source from the moment it exceeds a limit, for the detector
//! and for event rates. Most sources never have one, so that meters stay small.

use bytemuck::{Pod, Zeroable};

use crate::limits::gcra::{TICK_BITS, ticks};
use crate::verdict::Message;

/// Minimum interval between two events about one source, in [`ticks`]: 50 ms. Twenty per second are
/// enough to classify a sender, and bound what a flood makes the daemon read.
const EVENT_INTERVAL: u32 = 763;

/// The record of a source that exceeded a limit, or uses TCP.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Record {
    /// Time of the first excess, in [`ticks`]: see [`Record::since`].
    pub first: u32,
    /// Time of the last event about this source, in [`ticks`].
    pub reported: u32,
    /// The mark of its source: [`Meter::mark`](crate::limits::gcra::Meter::mark).
    pub mark: u32,
    /// Requests since `first`, passed or dropped.
    pub seen: u32,
    /// REGISTER requests among them.
    pub registers: u32,
    /// Packets over a limit.
    pub limited: u32,
    /// Time at which the bucket of fragmented and overlong messages is full, in [`ticks`].
    pub fragments: u32,
    /// Time at which the bucket of TCP connections is full, in [`ticks`].
    pub connections: u32,
    /// Time at which the bucket of TCP payload is full, in [`ticks`].
    pub stream: u32,
}

const _: () = assert!(size_of::<Record>() == 36);

impl Record {
    /// Starts the record of a source that exceeds a limit at `now`, in nanoseconds.
    #[inline(always)]
    pub fn begin(&mut self, mark: u32, now: u64) {
        self.first = ticks(now);
        // So that the first event is due at once.
        self.reported = ticks(now).wrapping_sub(EVENT_INTERVAL);
        self.mark = mark;
        (self.seen, self.registers, self.limited) = (0, 0, 0);
        (self.fragments, self.connections, self.stream) = (ticks(now), ticks(now), ticks(now));
    }

    /// Time of the first excess in nanoseconds of the filter's clock, as exact as a tick.
    #[inline(always)]
    pub const fn since(&self, now: u64) -> u64 {
        now.saturating_sub((ticks(now).wrapping_sub(self.first) as u64) << TICK_BITS)
    }

    /// Counts a message of its source.
    #[inline(always)]
    pub fn note(&mut self, message: Message) {
        if message.is_request() {
            self.seen = self.seen.saturating_add(1);
        }
        if matches!(message, Message::Register) {
            self.registers = self.registers.saturating_add(1);
        }
    }

    /// Counts a message over a limit. Returns whether an event is due for this packet.
    #[inline(always)]
    pub fn note_limited(&mut self, now: u64) -> bool {
        self.limited = self.limited.saturating_add(1);
        let due = ticks(now).wrapping_sub(self.reported) >= EVENT_INTERVAL;
        if due {
            self.reported = ticks(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 1_000 * SECOND;

    #[test]
    fn events_about_one_source_keep_their_distance() {
        let mut record = Record::default();
        record.begin(1, START);
        let reports =
            (0..2_000).filter(|n| record.note_limited(START + n * SECOND / 1_000)).count();
        assert!((35..=40).contains(&reports), "{reports} events in two seconds");
        assert_eq!(record.limited, 2_000);
        let since = record.since(START + 2 * SECOND);
        assert!(since.abs_diff(START) < 1 << TICK_BITS, "{since}");
    }
}
