//! Bounds-checked packet access.
//!
//! The kernel implements [`Reader`] over packet memory in a form that the verifier accepts, the
//! host over a slice. Parsers written against it cannot read past the end on either side.

/// The highest readable offset, in bytes from the start of the packet. Reads beyond it return
/// `None` on both sides: the verifier needs a bound (it refuses packet offsets of 65535 and more),
/// and no relevant header starts behind it.
pub const MAX_OFFSET: usize = 0x3fff;

/// Bounds-checked access to a packet. Offsets are bytes from the start of its data.
pub trait Reader {
    /// The byte at `at`.
    fn byte(&self, at: usize) -> Option<u8>;

    /// The two bytes at `at`, big-endian.
    fn be16(&self, at: usize) -> Option<u16>;

    /// The four bytes at `at`, little-endian.
    fn four(&self, at: usize) -> Option<u32>;

    /// The eight bytes at `at`, little-endian.
    fn eight(&self, at: usize) -> Option<u64>;

    /// The eight bytes at each of these offsets, if all end at or before `END` and the packet has
    /// that many bytes; checked once.
    fn eights<const N: usize, const END: usize>(&self, at: [usize; N]) -> Option<[u64; N]>;

    /// `value`, with its verifier bounds dropped. At the end of a loop or branch this lets the
    /// verifier merge states that differ only in this number.
    fn verifier_widen(&self, value: usize) -> usize;

    /// The same packet, without the length that the verifier has proven: the counterpart of
    /// [`Reader::verifier_widen`] for branches that have read different parts of it.
    #[must_use]
    fn reload_bounds(&self) -> Self;
}

/// The host's [`Reader`]: a packet in a slice.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if at > MAX_OFFSET {
            return None;
        }
        self.0.get(at..at + N)?.try_into().ok()
    }
}

impl Reader for Bytes<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.array::<1>(at).map(|[byte]| byte)
    }

    fn be16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    fn four(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn eight(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    fn eights<const N: usize, const END: usize>(&self, at: [usize; N]) -> Option<[u64; N]> {
        let packet = Bytes(self.0.get(..END)?);
        let mut all = [0; N];
        for (eight, at) in all.iter_mut().zip(at) {
            *eight = packet.eight(at)?;
        }
        Some(all)
    }

    fn verifier_widen(&self, value: usize) -> usize {
        value
    }

    fn reload_bounds(&self) -> Self {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_at_the_end() {
        let packet = Bytes(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(packet.byte(8), Some(9));
        assert_eq!(packet.byte(9), None);
        assert_eq!(packet.be16(7), Some(0x0809));
        assert_eq!(packet.be16(8), None);
        assert_eq!(packet.four(0), Some(0x0403_0201));
        assert_eq!(packet.eight(1), Some(0x0908_0706_0504_0302));
        assert_eq!(packet.eight(2), None);
        assert_eq!(
            packet.eights::<2, 9>([0, 1]),
            Some([0x0807_0605_0403_0201, 0x0908_0706_0504_0302])
        );
        assert_eq!(packet.eights::<1, 10>([0]), None);
    }

    #[test]
    fn reads_stop_at_the_highest_offset() {
        let large = vec![7; MAX_OFFSET + 64];
        let packet = Bytes(&large);
        assert_eq!(packet.byte(MAX_OFFSET), Some(7));
        assert_eq!(packet.byte(MAX_OFFSET + 1), None);
        assert_eq!(packet.byte(usize::MAX), None);
    }
}
