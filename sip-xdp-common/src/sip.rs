//! Classification of a UDP payload by its start line, as tolerantly as SIP servers parse it.
//!
//! Matching `REGISTER ` at offset 0 is easily evaded. Kamailio ignores letter case and skips
//! blanks, line ends and NULs before the start line; pjsip (Asterisk) also skips any run of blanks
//! behind the method. Whatever any of them takes for a request is a request here: a filter may be
//! more tolerant than the servers behind it, never less. Only the start line counts: source ports
//! and later headers prove nothing.
//!
//! More than 400 lines: 170 of them are tests with spellings of requests.

use crate::packet::reader::Reader;
use crate::verdict::Message;

/// Maximum number of blank bytes skipped before the start line, in steps of eight. Phones send a
/// few at most; a payload with more counts as a request, so that blanks cannot hide one.
pub const MAX_BLANKS: usize = 512;

/// The longest method recognised. The longest registered one has 9 characters; RFC 4475 3.1.1.2 has
/// one of 39.
const MAX_METHOD: usize = 48;

/// Maximum number of blanks skipped between method and URI.
const MAX_GAP: usize = 8;

/// The magic cookie of STUN at offset 4 (RFC 8489, 5), little-endian.
const STUN_COOKIE: u32 = u32::from_le_bytes([0x21, 0x12, 0xa4, 0x42]);

/// Classifies the payload between `start` and `end`. With `first_fragment` the datagram continues
/// elsewhere, and a payload that is too short to classify counts as a request.
#[inline(always)]
pub fn classify<R: Reader>(packet: &R, start: usize, end: usize, first_fragment: bool) -> Message {
    let message = classify_line(packet, start, end);
    if first_fragment && !message.is_request() && !matches!(message, Message::Response) {
        Message::Other
    } else {
        message
    }
}

#[inline(always)]
fn classify_line<R: Reader>(packet: &R, start: usize, end: usize) -> Message {
    if start >= end || is_stun(packet, start, end) {
        return Message::Keepalive;
    }
    match skip_blanks(packet, start, end) {
        Start::Line(at) => start_line(packet, at, end),
        Start::Nothing => Message::Keepalive,
        Start::TooFar => Message::Other,
    }
}

/// Whether the payload is STUN, which shares the port (RFC 5626, 8): the two highest bits are zero,
/// the cookie follows type and length, and the header has 20 bytes.
#[inline(always)]
fn is_stun<R: Reader>(packet: &R, start: usize, end: usize) -> bool {
    start + 20 <= end
        && packet.four(start + 4) == Some(STUN_COOKIE)
        && packet.byte(start).is_some_and(|first| first & 0xc0 == 0)
}

/// The position of the start line.
enum Start {
    Line(usize),
    Nothing,
    TooFar,
}

/// Skips blanks up to the first byte of a start line, eight bytes at a time.
#[inline(always)]
fn skip_blanks<R: Reader>(packet: &R, start: usize, end: usize) -> Start {
    let mut at = start;
    for _ in 0..MAX_BLANKS / 8 {
        if at + 8 > end {
            break;
        }
        match packet.eight(at) {
            Some(word) if all_blank(word) => at = packet.verifier_widen(at + 8),
            _ => break,
        }
    }
    for _ in 0..8 {
        if at >= end {
            return Start::Nothing;
        }
        match packet.byte(at) {
            Some(byte) if is_blank(byte) => at = packet.verifier_widen(at + 1),
            Some(_) => return Start::Line(at),
            None => return Start::Nothing,
        }
    }
    if at >= end { Start::Nothing } else { Start::TooFar }
}

/// Space, tab, CR, LF, NUL and the other control characters; none begins a start line.
#[inline(always)]
const fn is_blank(byte: u8) -> bool {
    byte <= b' '
}

/// Whether all eight bytes are blank: no byte has its high bit set, and none carries into it when
/// 0x5f is added.
#[inline(always)]
const fn all_blank(word: u64) -> bool {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    (((word & !HIGH) + 0x5f5f_5f5f_5f5f_5f5f) | word) & HIGH == 0
}

/// Letters folded to lower case. Other characters may change, but none becomes a letter.
#[inline(always)]
const fn fold(word: u64) -> u64 {
    word | 0x2020_2020_2020_2020
}

/// The first `length` bytes of a word, for comparing with [`name`].
#[inline(always)]
const fn head(word: u64, length: u32) -> u64 {
    word & (u64::MAX >> (64 - 8 * length))
}

/// A lower-case name of at most eight characters as [`head`] gives it.
const fn name(text: &[u8]) -> u64 {
    let mut word = 0;
    let mut at = text.len();
    while at > 0 {
        at -= 1;
        word = word << 8 | text[at] as u64;
    }
    word
}

/// Length of a start line up to the end of its status code: `SIP/2.0 200`.
pub const STATUS_END: usize = 11;

/// The status code of a response whose start line begins at `at`.
#[inline(always)]
pub fn status<R: Reader>(packet: &R, at: usize) -> Option<u16> {
    let word = packet.eight(at + STATUS_END - 8)?;
    let digit = |n: u32| {
        let digit = ((word >> (40 + 8 * n)) as u8).wrapping_sub(b'0');
        (digit < 10).then_some(u16::from(digit))
    };
    Some(digit(0)? * 100 + digit(1)? * 10 + digit(2)?)
}

/// Classifies a message whose start line begins at `at`.
#[inline(always)]
pub fn start_line<R: Reader>(packet: &R, at: usize, end: usize) -> Message {
    if at + 8 > end {
        return Message::Unparsed;
    }
    let Some(word) = packet.eight(at) else {
        return Message::Unparsed;
    };
    let word = fold(word);
    let (message, length) = if word == name(b"register") {
        (Message::Register, 8)
    } else if head(word, 7) == name(b"sip/2.0") {
        (Message::Response, 7)
    } else if head(word, 6) == name(b"invite") {
        (Message::Invite, 6)
    } else if head(word, 7) == name(b"options") {
        (Message::Options, 7)
    } else if word == name(b"subscrib") && packet.byte(at + 8).is_some_and(|e| e | 0x20 == b'e') {
        (Message::Subscribe, 9)
    } else if head(word, 6) == name(b"notify") {
        (Message::Notify, 6)
    } else if head(word, 7) == name(b"publish") {
        (Message::Publish, 7)
    } else if head(word, 7) == name(b"message") {
        (Message::Message, 7)
    } else if head(word, 3) == name(b"ack") {
        (Message::Ack, 3)
    } else if head(word, 3) == name(b"bye") {
        (Message::Bye, 3)
    } else if head(word, 6) == name(b"cancel") {
        (Message::Cancel, 6)
    } else {
        (Message::Other, 0)
    };
    let behind = at + length;
    if length != 0 && behind < end && packet.byte(behind).is_some_and(is_blank) {
        return message;
    }
    unknown_method(packet, at, end)
}

/// A request with an extension method: a token (RFC 3261, 25.1), blanks, and a URI, which begins
/// with the letter of its scheme. HTTP and SSDP targets begin with `/` and `*`.
#[inline(always)]
fn unknown_method<R: Reader>(packet: &R, at: usize, end: usize) -> Message {
    let mut at = at;
    let mut token = false;
    for _ in 0..MAX_METHOD {
        match packet.byte(at) {
            Some(byte) if at < end && is_token(byte) => {
                token = true;
                at = packet.verifier_widen(at + 1);
            }
            _ => break,
        }
    }
    if !token {
        return Message::Unparsed;
    }
    let mut gap = false;
    for _ in 0..MAX_GAP {
        match packet.byte(at) {
            Some(byte) if at < end && is_blank(byte) => {
                gap = true;
                at = packet.verifier_widen(at + 1);
            }
            _ => break,
        }
    }
    match packet.byte(at) {
        Some(byte) if gap && at < end && (byte | 0x20).is_ascii_lowercase() => Message::Other,
        _ => Message::Unparsed,
    }
}

/// The characters of a token: letters, digits and ``-.!%*_+`'~`` (RFC 3261, 25.1), as a bitmap of
/// the 128 ASCII codes.
#[inline(always)]
const fn is_token(byte: u8) -> bool {
    const fn set(from: u8) -> u64 {
        let extra = b"-.!%*_+`'~";
        let mut bits = 0;
        let mut n = 0;
        while n < 64 {
            let code = from + n;
            let mut is = code.is_ascii_alphanumeric();
            let mut at = 0;
            while at < extra.len() {
                is |= extra[at] == code;
                at += 1;
            }
            if is {
                bits |= 1 << n;
            }
            n += 1;
        }
        bits
    }
    const LOW: u64 = set(0);
    const HIGH: u64 = set(64);
    let bits = if byte & 0x40 == 0 { LOW } else { HIGH };
    byte < 128 && bits >> (byte & 0x3f) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::reader::Bytes;
    use crate::verdict::Message::{
        self, Ack, Bye, Cancel, Invite, Keepalive, Notify, Options, Other, Publish, Register,
        Response, Subscribe, Unparsed,
    };
    use proptest::prelude::*;

    fn kind(payload: &[u8]) -> Message {
        classify(&Bytes(payload), 0, payload.len(), false)
    }

    fn request(line: &str) -> Vec<u8> {
        format!("{line}\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\nContent-Length: 0\r\n\r\n")
            .into_bytes()
    }

    #[test]
    fn every_method_by_name() {
        for (line, message) in [
            ("REGISTER sip:example.com SIP/2.0", Register),
            ("INVITE sip:100@example.com SIP/2.0", Invite),
            ("OPTIONS sip:100@example.com SIP/2.0", Options),
            ("SUBSCRIBE sip:100@example.com SIP/2.0", Subscribe),
            ("NOTIFY sip:100@example.com SIP/2.0", Notify),
            ("PUBLISH sip:100@example.com SIP/2.0", Publish),
            ("MESSAGE sip:100@example.com SIP/2.0", Message::Message),
            ("ACK sip:100@example.com SIP/2.0", Ack),
            ("BYE sip:100@example.com SIP/2.0", Bye),
            ("CANCEL sip:100@example.com SIP/2.0", Cancel),
            ("INFO sip:100@example.com SIP/2.0", Other),
            ("PRACK sip:100@example.com SIP/2.0", Other),
            ("UPDATE sip:100@example.com SIP/2.0", Other),
            ("REFER sip:100@example.com SIP/2.0", Other),
            ("SIP/2.0 200 OK", Response),
            ("sip/2.0 401 Unauthorized", Response),
        ] {
            assert_eq!(kind(&request(line)), message, "{line}");
            assert_eq!(kind(&request(&line.to_lowercase())), message, "{line} in lower case");
        }
    }

    #[test]
    fn variants_that_servers_take() {
        for line in [
            "register sip:example.com SIP/2.0",
            "ReGiStEr sips:example.com SIP/2.0",
            " REGISTER sip:example.com SIP/2.0",
            "\tREGISTER sip:example.com SIP/2.0",
            "\r\n\r\nREGISTER sip:example.com SIP/2.0",
            "\0\0\0\0REGISTER sip:example.com SIP/2.0",
            "\n \0\t\rREGISTER sip:example.com SIP/2.0",
            "REGISTER sip:example.com  SIP/2.0",
            "REGISTER  sip:example.com SIP/2.0",
            "REGISTER\tsip:example.com SIP/2.0",
            "REGISTER 1 SIP/2.0",
        ] {
            assert_eq!(kind(&request(line)), Register, "{line:?}");
        }
        assert_eq!(
            kind(b"REGISTER sip:example.com SIP/2.0\nTo: x\n\n"),
            Register,
            "bare line feeds"
        );
        for blanks in [1, 7, 8, 9, 63, 400, MAX_BLANKS, MAX_BLANKS + 7] {
            let mut payload = b"\r\n".repeat(blanks)[..blanks].to_vec();
            payload.extend(request("REGISTER sip:example.com SIP/2.0"));
            assert_eq!(kind(&payload), Register, "{blanks} blanks");
        }
    }

    #[test]
    fn blanks_cannot_hide_a_request() {
        let mut payload = vec![b' '; 1_200];
        payload.extend(request("REGISTER sip:example.com SIP/2.0"));
        assert_eq!(kind(&payload), Other);
    }

    #[test]
    fn other_methods_and_noise() {
        assert_eq!(kind(&request("REGISTERX sip:example.com SIP/2.0")), Other);
        assert_eq!(kind(&request("INVITED sip:example.com SIP/2.0")), Other);
        assert_eq!(kind(&request("ACKNOWLEDGE sip:example.com SIP/2.0")), Other);
        let torture =
            "!interesting-Method0123456789_*+`.%indeed'~ sip:1_unusual.URI@example.com SIP/2.0";
        assert_eq!(kind(&request(torture)), Other);
        for noise in [
            "GET / HTTP/1.1",
            "M-SEARCH * HTTP/1.1",
            "REGISTER:sip:example.com",
            "hello, world",
            "SIP/2.00 200 OK",
            "SIP/3.0 200 OK",
            "(REGISTER) sip:example.com SIP/2.0",
        ] {
            assert_eq!(kind(&request(noise)), Unparsed, "{noise}");
        }
        assert_eq!(kind(b"REGISTER"), Unparsed, "a method without its separator");
        assert_eq!(kind(b"ACK s"), Unparsed);
        assert_eq!(kind(&[0x80, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), Unparsed, "RTP");
        assert_eq!(kind(&vec![b'A'; 1_000]), Unparsed, "a token without end");
    }

    #[test]
    fn keepalives_are_no_requests() {
        let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        stun.extend([7; 12]);
        for payload in
            [&b""[..], b"\r\n\r\n", b"\r\n", b"\0\0\0\0", b"\0", b" ", b"\n\n\n\n\n\n\n\n\n", &stun]
        {
            assert_eq!(kind(payload), Keepalive, "{payload:?}");
        }
        assert_eq!(kind(&stun[..19]), Unparsed, "a STUN header cut short");
    }

    #[test]
    fn a_first_fragment_that_is_too_short_counts_as_a_request() {
        let whole = request("REGISTER sip:example.com SIP/2.0");
        for (length, message) in [(0, Other), (4, Other), (8, Other), (9, Register), (40, Register)]
        {
            assert_eq!(classify(&Bytes(&whole), 0, length, true), message, "{length} bytes");
        }
        assert_eq!(classify(&Bytes(b"SIP/2.0 200 OK"), 0, 14, true), Response);
    }

    #[test]
    fn the_payload_ends_where_the_header_says() {
        // Bytes behind the end (padding, a wrong length field) are not parsed.
        assert_eq!(classify(&Bytes(b"\r\nREGISTER sip:a SIP/2.0"), 0, 2, false), Keepalive);
        assert_eq!(classify(&Bytes(b"REGISTER sip:a SIP/2.0"), 0, 8, false), Unparsed);
        assert_eq!(classify(&Bytes(b"REGISTER sip:a SIP/2.0"), 0, 9_000, false), Register);
    }

    proptest! {
        #[test]
        fn blank_words_are_recognised_exactly(bytes in prop::array::uniform8(any::<u8>())) {
            let plain = bytes.iter().all(|b| is_blank(*b));
            prop_assert_eq!(all_blank(u64::from_le_bytes(bytes)), plain);
        }

        #[test]
        fn blank_words_are_recognised_exactly_near_the_edge(
            bytes in prop::array::uniform8(0x1d_u8..0x24),
        ) {
            let plain = bytes.iter().all(|b| is_blank(*b));
            prop_assert_eq!(all_blank(u64::from_le_bytes(bytes)), plain);
        }

        #[test]
        fn any_case_and_any_blanks_before_a_method(
            upper in any::<u64>(),
            blanks in "[ \t\r\n\0]{0,200}",
        ) {
            let method: String = "register"
                .chars()
                .enumerate()
                .map(|(n, c)| if upper >> n & 1 == 1 { c.to_ascii_uppercase() } else { c })
                .collect();
            let line = format!("{blanks}{method} sip:example.com SIP/2.0");
            prop_assert_eq!(kind(&request(&line)), Register);
        }

        #[test]
        fn any_bytes_at_all(
            payload in prop::collection::vec(any::<u8>(), 0..700),
            start in 0_usize..800,
            end in 0_usize..800,
            first in any::<bool>(),
        ) {
            let message = classify(&Bytes(&payload), start, end, first);
            prop_assert!(Message::ALL.contains(&message));
        }
    }
}
