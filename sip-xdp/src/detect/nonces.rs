//! Who was given which nonce. A source that echoes one that was given to it and to nobody else is where it says it is.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU64;

use sip_xdp_common::ip_key::Source;

use super::digest::digest;

/// How many nonces are remembered.
const MAX_NONCES: usize = 65_536;

/// For how long, in nanoseconds: registrars take nonces back after some minutes.
const LIFETIME: u64 = 3_600_000_000_000;

/// The nonces that we gave out.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    given: HashMap<u64, Given>,
    order: VecDeque<(u64, u64)>,
}

/// To whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// To the source with this digest, which is half as long.
    Alone(NonZeroU64),
    /// To several.
    Shared,
}

/// What an echoed nonce says of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Echo {
    /// Nothing: we never gave it out, or not to this source.
    Foreign,
    /// It was given to this source, among others.
    Shared,
    /// It was given to this source alone.
    Own,
}

impl Given {
    fn alone(to: &Source) -> Self {
        Self::Alone(NonZeroU64::MIN.saturating_add(digest(to)))
    }
}

impl Nonces {
    /// Notes that a nonce is on its way to a source.
    pub(super) fn give(&mut self, nonce: u64, to: Source, now: u64) {
        while let Some((at, oldest)) = self.order.front().copied() {
            if now.saturating_sub(at) < LIFETIME && self.order.len() < MAX_NONCES {
                break;
            }
            self.order.pop_front();
            self.given.remove(&oldest);
        }
        let given = Given::alone(&to);
        match self.given.get_mut(&nonce) {
            Some(before) if *before != given => *before = Given::Shared,
            Some(_) => {}
            None => {
                self.given.insert(nonce, given);
                self.order.push_back((now, nonce));
            }
        }
    }

    /// What it says that a source echoes a nonce.
    pub(super) fn echo(&self, nonce: u64, by: Source) -> Echo {
        match self.given.get(&nonce) {
            Some(given) if *given == Given::alone(&by) => Echo::Own,
            // To whom else it was given is not remembered.
            Some(Given::Shared) => Echo::Shared,
            _ => Echo::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nonce_of_ones_own_proves_anything() {
        let mut nonces = Nonces::default();
        let (one, other) = (Source::v4(1), Source::v4(2));
        nonces.give(7, one, 1);
        assert_eq!(
            (nonces.echo(7, one), nonces.echo(7, other), nonces.echo(8, one)),
            (Echo::Own, Echo::Foreign, Echo::Foreign)
        );
        nonces.give(7, one, 2);
        assert_eq!(nonces.echo(7, one), Echo::Own, "the same challenge again");
        nonces.give(7, other, 3);
        assert_eq!((nonces.echo(7, one), nonces.echo(7, other)), (Echo::Shared, Echo::Shared));
    }

    #[test]
    fn memory_is_bounded() {
        let mut nonces = Nonces::default();
        (0..2 * MAX_NONCES as u64).for_each(|n| nonces.give(n, Source::v4(1), n));
        assert!(nonces.given.len() <= MAX_NONCES && nonces.order.len() <= MAX_NONCES);
        nonces.give(1 << 60, Source::v4(1), 2 * LIFETIME);
        assert_eq!(nonces.given.len(), 1);
    }
}
