//! The checksums of UDP (RFC 768) and TCP (RFC 9293, 3.1; over IPv6: RFC 8200, 8.1). Hosts discard
//! packets with a wrong checksum, so that these are no evidence.

use crate::ip_key::IpKey;
use crate::packet::headers::{TCP, TCP_HEADER, UDP};

/// A UDP datagram, as its checksum covers it.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// Source address.
    pub source: IpKey,
    /// Destination address.
    pub destination: IpKey,
    /// Source port, in host order.
    pub source_port: u16,
    /// Destination port, in host order.
    pub destination_port: u16,
    /// The checksum field, in host order.
    pub checksum: u16,
    /// The whole payload.
    pub payload: &'a [u8],
}

impl Datagram<'_> {
    /// Whether Linux delivers it: the checksum is right; or absent, over IPv4; or the sum of the
    /// pseudo header alone, as in packets that never were on a wire and whose sender left the rest
    /// to a device (`CHECKSUM_PARTIAL` in `include/linux/skbuff.h`; veth and virtio pass packets
    /// like that).
    pub fn is_delivered(&self) -> bool {
        let length = 8 + self.payload.len() as u32;
        if self.checksum == 0 {
            return self.source.is_v4();
        }
        let pseudo = sum_of_address(&self.source)
            + sum_of_address(&self.destination)
            + u32::from(UDP)
            + length;
        let header = u32::from(self.source_port) + u32::from(self.destination_port) + length;
        let all =
            u64::from(pseudo) + u64::from(header) + u64::from(self.checksum) + sum(self.payload);
        fold(all) == u16::MAX || fold(u64::from(pseudo)) == self.checksum
    }
}

/// Whether Linux delivers a TCP segment with this header and payload, both whole: by its checksum,
/// as [`Datagram::is_delivered`], but that there is always one.
pub fn is_segment_delivered(
    source: &IpKey,
    destination: &IpKey,
    header: &[u8],
    payload: &[u8],
) -> bool {
    let Some(fixed) = header.first_chunk::<TCP_HEADER>() else {
        return false;
    };
    let length = (header.len() + payload.len()) as u32;
    let pseudo = sum_of_address(source) + sum_of_address(destination) + u32::from(TCP) + length;
    // A header is a multiple of four bytes, so that the payload begins a word.
    let all = u64::from(pseudo) + sum(header) + sum(payload);
    let checksum = u16::from_be_bytes([fixed[16], fixed[17]]);
    fold(all) == u16::MAX || fold(u64::from(pseudo)) == checksum
}

/// The sum of an address's 16-bit words in network order.
fn sum_of_address(address: &IpKey) -> u32 {
    let (high, low) = address.words();
    if address.is_v4() {
        return sum(&((low >> 32) as u32).to_le_bytes()) as u32;
    }
    (sum(&high.to_le_bytes()) + sum(&low.to_le_bytes())) as u32
}

/// The sum of 16-bit words in network order; an odd last byte is the high byte of a word.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)))
        .sum()
}

/// A ones' complement sum folded to 16 bits.
const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The checksum by RFC 768, over the bytes as sent.
    fn computed(one: &Datagram<'_>) -> u16 {
        let mut bytes = Vec::new();
        for address in [one.source, one.destination] {
            let (high, low) = address.words();
            let all = [high.to_le_bytes(), low.to_le_bytes()].concat();
            bytes.extend(if address.is_v4() { all[12..].to_vec() } else { all });
        }
        let length = 8 + one.payload.len() as u16;
        bytes.extend([0, UDP]);
        for word in [length, one.source_port, one.destination_port, length, 0] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(one.payload);
        match !fold(sum(&bytes)) {
            0 => u16::MAX,
            checksum => checksum,
        }
    }

    proptest! {
        #[test]
        fn only_the_right_one_is_delivered(
            is_v4 in any::<bool>(),
            words in any::<[u64; 4]>(),
            ports in any::<(u16, u16)>(),
            payload in prop::collection::vec(any::<u8>(), 0..200),
            flip in 0_u32..16,
        ) {
            let (source, destination) = if is_v4 {
                (IpKey::v4(words[0] as u32), IpKey::v4(words[2] as u32))
            } else {
                (
                    IpKey::from_words(words[0] | 0x20, words[1]),
                    IpKey::from_words(words[2] | 0x20, words[3]),
                )
            };
            let (source_port, destination_port) = ports;
            let mut one = Datagram {
                source,
                destination,
                source_port,
                destination_port,
                checksum: 0,
                payload: &payload,
            };
            prop_assert_eq!(one.is_delivered(), is_v4);
            one.checksum = computed(&one);
            prop_assert!(one.is_delivered());
            let right = one.checksum;
            one.checksum ^= 1 << flip;
            let addresses = sum_of_address(&source) + sum_of_address(&destination);
            let pseudo = addresses + 17 + 8 + payload.len() as u32;
            let is_other = one.checksum == 0 && is_v4 || one.checksum == fold(u64::from(pseudo));
            prop_assert_eq!(one.is_delivered(), is_other, "right is {}", right);
        }
    }

    proptest! {
        #[test]
        fn a_segment_is_delivered_with_the_right_checksum_only(
            addresses in any::<[u32; 2]>(),
            options in 0_usize..=10,
            payload in prop::collection::vec(any::<u8>(), 0..200),
            flip in 0_u32..16,
        ) {
            let [source, destination] = addresses.map(IpKey::v4);
            let mut header = vec![7; TCP_HEADER + 4 * options];
            header[16..18].copy_from_slice(&[0, 0]);
            let length = header.len() + payload.len();
            let pseudo = sum_of_address(&source) + sum_of_address(&destination) + 6 + length as u32;
            let right = !fold(u64::from(pseudo) + sum(&header) + sum(&payload));
            for (checksum, expected) in [
                (right, true),
                (fold(u64::from(pseudo)), true),
                (right ^ 1 << flip, right ^ 1 << flip == fold(u64::from(pseudo))),
            ] {
                header[16..18].copy_from_slice(&checksum.to_be_bytes());
                let is_delivered = is_segment_delivered(&source, &destination, &header, &payload);
                prop_assert_eq!(is_delivered, expected);
            }
            prop_assert!(!is_segment_delivered(&source, &destination, &header[..19], &[]));
        }
    }

    /// A hand-computed datagram in the manner of RFC 1071: 192.0.2.7:5060 to 198.51.100.1:5060,
    /// "hi".
    #[test]
    fn a_datagram_by_hand() {
        let one = Datagram {
            source: IpKey::v4(u32::from_le_bytes([192, 0, 2, 7])),
            destination: IpKey::v4(u32::from_le_bytes([198, 51, 100, 1])),
            source_port: 5060,
            destination_port: 5060,
            checksum: 0x8512,
            payload: b"hi",
        };
        // c000 + 0207 + c633 + 6401 + 0011 + 000a + 13c4 + 13c4 + 000a + 6869 = 27c51, folded 7c53,
        // inverted 83ac.
        let right = Datagram { checksum: 0x83ac, ..one };
        assert!(right.is_delivered() && !one.is_delivered());
    }
}
