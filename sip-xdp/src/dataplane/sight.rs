//! Detection of native programs that see no packets. Some drivers accept a program and never call
//! it (virtio_net without mergeable buffers), or lose it when their rings are reallocated
//! (vmxnet3): the filter then looks healthy and filters nothing.
//!
//! The interface's receive counter is compared with the program's. Only in native mode, and only
//! for "none at all", because interfaces also count packets that no program of theirs sees: bonds
//! those of their members, PPP and WireGuard keepalives. In generic mode the network stack calls
//! the program. Drivers that refresh their counters periodically may report packets from before the
//! attachment; so packets must arrive in at least two polls.

use std::time::Duration;

/// Minimum number of unseen packets.
pub(crate) const UNSEEN: u64 = 20;

/// Minimum number of polls in which they arrived.
const LOOKS: u32 = 2;

/// Time without judgement after an attachment or link change. Drivers refresh their counters within
/// two seconds.
pub(crate) const SETTLING: Duration = Duration::from_millis(900);

/// Observation of one interface since its program last saw a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    /// Receive counter and program counter at the start.
    since: Option<(u64, u64)>,
    /// Receive counter at the last poll.
    last: u64,
    /// Polls in which the receive counter grew.
    looks: u32,
    /// Whether the program has counted a packet since it was attached.
    has_seen: bool,
    /// Start of judgement, in nanoseconds of the filter's clock.
    settled: u64,
}

/// A program that sees no packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blind {
    /// Number of unseen packets.
    pub(crate) packets: u64,
    /// Whether it saw packets before, so that attaching it again may help.
    pub(crate) has_seen: bool,
}

impl Sight {
    /// A new observation of a program that was attached at `now`, or whose interface changed then.
    pub(crate) fn new(now: u64, has_seen: bool) -> Self {
        let settling = u64::try_from(SETTLING.as_nanos()).unwrap_or(u64::MAX);
        Self { since: None, last: 0, looks: 0, has_seen, settled: now.saturating_add(settling) }
    }

    /// Whether the program has counted a packet since it was attached.
    pub(crate) fn has_seen(&self) -> bool {
        self.has_seen
    }

    /// One poll: `taken` is the interface's receive counter, read before the program's counter,
    /// `counted`. Returns whether the program is blind.
    pub(crate) fn look(&mut self, now: u64, taken: u64, counted: u64) -> Option<Blind> {
        let Some((taken_then, counted_then)) = self.since else {
            if now >= self.settled {
                (self.since, self.last) = (Some((taken, counted)), taken);
            }
            return None;
        };
        // A counter that decreased was reset, by the interface or a reload.
        if counted != counted_then || taken < self.last {
            self.has_seen |= counted > counted_then;
            *self = Self { since: Some((taken, counted)), last: taken, looks: 0, ..*self };
            return None;
        }
        self.looks = self.looks.saturating_add(u32::from(taken > self.last));
        self.last = taken;
        let packets = taken - taken_then;
        (packets >= UNSEEN && self.looks >= LOOKS)
            .then_some(Blind { packets, has_seen: self.has_seen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Polls once a second, after the settling time.
    fn looks(counters: &[(u64, u64)]) -> Vec<Option<u64>> {
        let mut sight = Sight::new(0, false);
        let looks = counters.iter().zip(1..);
        looks
            .map(|((taken, counted), n)| Some(sight.look(n * SECOND, *taken, *counted)?.packets))
            .collect()
    }

    #[test]
    fn packets_that_arrive_unseen_are_noticed() {
        assert_eq!(
            looks(&[(1_000, 5), (1_010, 5), (1_030, 5), (1_030, 5)]),
            [None, None, Some(30), Some(30)]
        );
        // A slow trickle as well.
        let trickle: Vec<_> = (0..30).map(|n| (n, 0)).collect();
        assert_eq!(looks(&trickle).iter().position(Option::is_some), Some(20));
    }

    #[test]
    fn nothing_is_said_for_too_little() {
        assert_eq!(looks(&[(0, 0), (10, 0), (19, 0), (19, 0)]), [None; 4]);
        // A single jump may be from before the attachment: a periodically refreshed counter.
        assert_eq!(looks(&[(0, 0), (500, 0), (500, 0), (500, 0)]), [None; 4]);
        assert_eq!(looks(&[(0, 0), (500, 0), (501, 0)]), [None, None, Some(501)]);
    }

    #[test]
    fn one_packet_that_is_seen_is_enough() {
        assert_eq!(looks(&[(0, 0), (15, 0), (30, 1), (45, 1), (49, 1)]), [None; 5]);
        // The observation then starts again.
        assert_eq!(looks(&[(0, 0), (15, 1), (30, 1), (45, 1)]), [None, None, None, Some(30)]);
    }

    #[test]
    fn a_program_that_saw_before_is_told_from_one_that_never_did() {
        let mut sight = Sight::new(0, false);
        for (n, (taken, counted)) in (1..).zip([(0, 0), (5, 5), (20, 5)]) {
            assert_eq!(sight.look(n * SECOND, taken, counted), None);
        }
        assert_eq!(sight.look(4 * SECOND, 40, 5), Some(Blind { packets: 35, has_seen: true }));
        assert!(sight.has_seen() && !Sight::new(0, false).has_seen());
    }

    #[test]
    fn counters_that_are_reset_are_no_packets() {
        assert_eq!(looks(&[(1_000, 9), (1_015, 9), (3, 9), (20, 9), (22, 9)]), [None; 5]);
        assert_eq!(looks(&[(0, 900), (15, 900), (30, 0), (45, 0), (49, 0)]), [None; 5]);
    }

    #[test]
    fn nothing_is_judged_before_it_has_settled() {
        let mut sight = Sight::new(10 * SECOND, true);
        for n in 0..8 {
            assert_eq!(sight.look(10 * SECOND + n * SECOND / 10, n * 100, 0), None);
        }
        assert_eq!(sight.look(11 * SECOND, 900, 0), None);
        assert_eq!(sight.look(12 * SECOND, 900, 0), None);
    }
}
