//! The ladder: what a source may still send that offended by evidence which anybody could have sent
//! in its name. Each further offence takes it a step down, until a day without one.
//!
//! The ladder meters tries: requests with credentials, unless all of these echo a nonce that was
//! given to the source and to nobody else, and whatever may hide some (fragments, and messages
//! longer than the sample). So whoever is really there, behind forged packets, gets in with a nonce
//! of its own. Other requests of a stranger have one a second; those of known sources their usual
//! limit.
//!
//! More than 400 lines: nearly half is tests of the scan and of the steps.

use bytemuck::{Pod, Zeroable};

use crate::ip_key::{IpKey, mask};
use crate::limits::gcra::Limit;
use crate::lookup::hash;

const SECOND_NS: u64 = 1_000_000_000;

/// The steps from the top: one try a second, a minute, in 15 minutes, in 6 hours; each with a burst
/// of [`BURST`].
pub const STEPS_NS: [u64; 4] = [SECOND_NS, 60 * SECOND_NS, 900 * SECOND_NS, 21_600 * SECOND_NS];

/// The step below which offences alone take nobody: the last one is for tries for a sprayed user.
pub const LOWEST_BY_OFFENCES: u32 = 2;

/// The last step.
pub const LOWEST: u32 = STEPS_NS.len() as u32 - 1;

/// What each step leaves, in words.
pub const PACES: [&str; STEPS_NS.len()] =
    ["one a second", "one a minute", "one in 15 minutes", "one in 6 hours"];

/// Requests at once, of tries and of others.
pub const BURST: u64 = 4;

/// Widths of IPv6 networks that may be on the ladder, hosts first; an IPv4 source is by its host.
pub const WIDTHS: [u8; 4] = [128, 64, 56, 48];

/// Their masks.
pub const MASKS: [(u64, u64); WIDTHS.len()] = [mask(128), mask(64), mask(56), mask(48)];

/// A source on the ladder. Times in nanoseconds of the filter's clock.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Ladder {
    /// Until when.
    pub until: u64,
    /// When the bucket of tries is full again.
    pub tries: u64,
    /// When that of other requests is.
    pub others: u64,
    /// Packets dropped.
    pub dropped: u64,
    /// The step, a place in [`STEPS_NS`].
    pub step: u32,
    /// 1 if nonces of its own spare nothing but ports with a standing.
    pub strict: u32,
}

const _: () = assert!(size_of::<Ladder>() == 40);

/// What a request is to the ladder.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A password may be tried with it, and by somebody else.
    Try = 0,
    /// A password may be tried, with nonces of its own, at a port without a standing.
    Own = 1,
    /// Anything else.
    Other = 2,
}

impl Ladder {
    /// Charges a request at `now`, of a source that is known good, or a peer, or neither. Returns
    /// whether it goes on.
    #[inline(always)]
    pub fn charge(&mut self, kind: Kind, is_known: bool, now: u64) -> bool {
        let is_try = matches!(kind, Kind::Try) || self.strict != 0 && matches!(kind, Kind::Own);
        if self.until <= now || is_known && !is_try {
            return true;
        }
        let interval = match self.step {
            0 => STEPS_NS[0],
            1 => STEPS_NS[1],
            2 => STEPS_NS[2],
            _ => STEPS_NS[3],
        };
        let interval = if is_try { interval } else { STEPS_NS[0] };
        let limit = Limit { interval, burst: BURST * interval };
        let full_at = if is_try { self.tries } else { self.others };
        match limit.take(full_at, now) {
            Some(full_at) if is_try => self.tries = full_at,
            Some(full_at) => self.others = full_at,
            None => {
                self.dropped += 1;
                return false;
            }
        }
        true
    }

    /// How many tries it has left at once at `now`.
    pub fn left(&self, now: u64) -> u32 {
        let step = self.step.min(LOWEST) as usize;
        let missing = self.tries.saturating_sub(now).div_ceil(STEPS_NS[step]);
        BURST.saturating_sub(missing) as u32
    }

    /// The same source on another step until then. What it has used up of its burst stays so.
    #[must_use]
    pub fn moved(&self, step: u32, until: u64, now: u64) -> Self {
        let step = if step > LOWEST { LOWEST } else { step };
        let fill = |full_at: u64, from: u64, to: u64| {
            // As many packets of the burst as were missing are missing.
            let missing = full_at.saturating_sub(now).div_ceil(from.max(1));
            now + missing.min(BURST) * to
        };
        let place = |step: u32| STEPS_NS[(step & LOWEST) as usize];
        let tries = fill(self.tries, place(self.step), place(step));
        Self { until, tries, step, ..*self }
    }
}

/// Where the nonces of a source's own are kept: under its address, and the [`Digest`] of the nonce.
#[inline(always)]
pub const fn nonce_key(source: &IpKey, nonce: u64, seed: u64) -> u64 {
    let (high, low) = source.words();
    hash::mix(high, low, nonce, seed)
}

/// The digest of a nonce, byte by byte (FNV-1a, 64 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub u64);

impl Digest {
    /// Of nothing yet.
    pub const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    /// With one more byte.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, byte: u8) -> Self {
        Self((self.0 ^ byte as u64).wrapping_mul(0x0100_0000_01b3))
    }

    /// Of all bytes.
    pub fn of(bytes: &[u8]) -> Self {
        bytes.iter().fold(Self::EMPTY, |digest, byte| digest.with(*byte))
    }
}

/// Most nonces that are looked at in one request: more are somebody else's.
pub const MAX_NONCES: usize = 4;

/// Reads a request byte by byte, for its credentials and their nonces. It takes rather too much for
/// credentials than too little: a request whose credentials cannot be told is a try.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Scan {
    /// Headers with credentials.
    pub credentials: u32,
    /// Nonces in them.
    pub nonces: u32,
    /// 1 if there is something in them that parsers may take in different ways.
    pub odd: u32,
    /// A state: see the constants.
    state: u32,
    /// A place in the word that is being compared.
    place: u32,
    /// 1 if the line before was one of credentials, which may be continued.
    continues: u32,
    /// The digest of the nonce that is being read.
    digest: u64,
    /// Digests of the nonces.
    pub digests: [u64; MAX_NONCES],
}

/// At the start of a line.
const LINE: u32 = 0;
/// Within a header name that may be that of credentials.
const NAME: u32 = 1;
/// In a line that does not matter.
const SKIP: u32 = 2;
/// Between the parameters of credentials.
const BETWEEN: u32 = 3;
/// Within a parameter's name that may be "nonce".
const WORD: u32 = 4;
/// Within another one.
const OTHER: u32 = 5;
/// Behind "nonce", where an equals sign must follow.
const EQUALS: u32 = 6;
/// Before the nonce.
const BEFORE: u32 = 7;
/// In a nonce in quotes.
const QUOTED: u32 = 8;
/// In a nonce without.
const BARE: u32 = 9;
/// In another string in quotes.
const STRING: u32 = 10;

const HEADER: [u8; 19] = *b"proxy-authorization";
/// Where "authorization" begins in it.
const SHORT: u32 = 6;
const PARAMETER: [u8; 5] = *b"nonce";

impl Default for Scan {
    fn default() -> Self {
        Self::new()
    }
}

impl Scan {
    /// At the start of a message, whose first line is no header.
    pub const fn new() -> Self {
        Self {
            credentials: 0,
            nonces: 0,
            odd: 0,
            state: SKIP,
            place: 0,
            continues: 0,
            digest: 0,
            digests: [0; MAX_NONCES],
        }
    }

    /// Begins with another message. Digests stay: they count only as far as there are nonces, and
    /// begin with each of them.
    #[inline(always)]
    pub fn begin(&mut self) {
        (self.credentials, self.nonces, self.odd) = (0, 0, 0);
        (self.state, self.place, self.continues) = (SKIP, 0, 0);
    }

    /// Reads the next byte.
    #[inline(always)]
    pub fn step(&mut self, byte: u8) {
        let lower = if byte.is_ascii_uppercase() { byte | 0x20 } else { byte };
        let is_blank = byte == b' ' || byte == b'\t';
        if byte == b'\n' || byte == b'\r' {
            if self.state == QUOTED || self.state == BARE {
                self.take_nonce();
            }
            let in_credentials = self.state >= BETWEEN;
            self.continues =
                if self.state == LINE { self.continues } else { in_credentials as u32 };
            self.state = LINE;
            return;
        }
        // Servers differ in what a backslash means, or a zero.
        if self.state >= BETWEEN && (byte == b'\\' || byte == 0) {
            self.odd = 1;
        }
        match self.state {
            LINE if is_blank => self.state = if self.continues != 0 { BETWEEN } else { SKIP },
            LINE => {
                self.state =
                    if lower == HEADER[0] || lower == HEADER[SHORT as usize] { NAME } else { SKIP };
                self.place = if lower == HEADER[0] { 1 } else { SHORT + 1 };
            }
            NAME => self.name(lower, is_blank),
            BETWEEN => self.between(lower),
            WORD | OTHER => self.word(lower, is_blank),
            EQUALS if is_blank => {}
            EQUALS if byte == b'=' => self.state = BEFORE,
            EQUALS => self.between(lower),
            BEFORE if is_blank => {}
            BEFORE => {
                self.state = if byte == b'"' { QUOTED } else { BARE };
                self.digest = Digest::EMPTY.0;
                if byte != b'"' {
                    self.digest = Digest(self.digest).with(byte).0;
                }
            }
            QUOTED if byte == b'"' => self.take_nonce(),
            BARE if is_blank || byte == b',' || byte == b';' => self.take_nonce(),
            QUOTED | BARE => self.digest = Digest(self.digest).with(byte).0,
            STRING if byte == b'"' => self.state = BETWEEN,
            _ => {}
        }
    }

    #[inline(always)]
    fn name(&mut self, lower: u8, is_blank: bool) {
        let place = self.place as usize;
        if place < HEADER.len() {
            let expected = if place < HEADER.len() { HEADER[place] } else { 0 };
            self.state = if lower == expected { NAME } else { SKIP };
            self.place += 1;
        } else if lower == b':' {
            self.credentials += 1;
            self.state = BETWEEN;
        } else if !is_blank {
            self.state = SKIP;
        }
    }

    #[inline(always)]
    fn between(&mut self, lower: u8) {
        self.state = if lower == b'"' {
            STRING
        } else if lower == PARAMETER[0] {
            WORD
        } else if lower.is_ascii_alphanumeric() {
            OTHER
        } else {
            BETWEEN
        };
        self.place = 1;
    }

    #[inline(always)]
    fn word(&mut self, lower: u8, is_blank: bool) {
        let place = self.place as usize;
        let is_whole = self.state == WORD && place >= PARAMETER.len();
        if lower.is_ascii_alphanumeric() {
            let expected = if place < PARAMETER.len() { PARAMETER[place] } else { 0 };
            if lower != expected {
                self.state = OTHER;
            }
            self.place += 1;
        } else if is_whole && is_blank {
            self.state = EQUALS;
        } else if is_whole && lower == b'=' {
            self.state = BEFORE;
        } else {
            self.between(lower);
        }
    }

    #[inline(always)]
    fn take_nonce(&mut self) {
        let number = self.nonces as usize;
        if number < MAX_NONCES {
            self.digests[number & (MAX_NONCES - 1)] = self.digest;
        }
        self.nonces += 1;
        self.state = BETWEEN;
    }

    /// What the request is, if `is_own` says which nonces are the source's own.
    #[inline(always)]
    pub fn kind(&self, mut is_own: impl FnMut(u64) -> bool) -> Kind {
        if self.credentials == 0 {
            return Kind::Other;
        }
        let is_unclear =
            self.odd != 0 || self.nonces != self.credentials || self.nonces as usize > MAX_NONCES;
        if is_unclear {
            return Kind::Try;
        }
        let mut all = true;
        for number in 0..MAX_NONCES {
            if number < self.nonces as usize {
                all &= is_own(self.digests[number]);
            }
        }
        if all { Kind::Own } else { Kind::Try }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(text: &str) -> Scan {
        let mut scan = Scan::new();
        text.bytes().for_each(|byte| scan.step(byte));
        scan
    }

    fn is_try(text: &str) -> bool {
        let own = Digest::of(b"own").0;
        scan(text).kind(|nonce| nonce == own) == Kind::Try
    }

    #[test]
    fn tries_are_told_by_their_nonces() {
        let start = "REGISTER sip:x SIP/2.0\r\nVia: y\r\n";
        for (headers, expected) in [
            ("", false),
            ("Authorization: Digest username=\"a\", nonce=\"own\", uri=\"x\"\r\n", false),
            ("Authorization: Digest username=\"a\", nonce=\"other\", uri=\"x\"\r\n", true),
            ("authorization:Digest nonce=own,username=a\r\n", false),
            ("AUTHORIZATION \t: Digest NONCE = \"own\"\r\n", false),
            ("Proxy-Authorization: Digest nonce=\"own\"\n", false),
            ("Proxy-Authorization: Digest cnonce=\"own\", nonce=\"other\"\r\n", true),
            ("Proxy-Authorization: Digest cnonce=\"other\", nonce=\"own\"\r\n", false),
            ("Authorization: Digest username=\"a\",\r\n nonce=\"own\"\r\n", false),
            ("Authorization: Digest username=\"a\",\r\n\tnonce=\"other\"\r\n", true),
            // Several: all must be own.
            (
                "Authorization: Digest nonce=\"own\"\r\nProxy-Authorization: Digest \
                 nonce=\"own\"\r\n",
                false,
            ),
            (
                "Authorization: Digest nonce=\"own\"\r\nProxy-Authorization: Digest \
                 nonce=\"other\"\r\n",
                true,
            ),
            ("Authorization: Digest nonce=\"own\", nonce=\"other\"\r\n", true),
            ("Authorization: Digest nonce=\"own\", realm=\"r\"nonce=\"other\"\r\n", true),
            // What is within a string is none.
            ("Authorization: Digest username=\"nonce=own\", nonce=\"other\"\r\n", true),
            ("Authorization: Digest username=\"x, nonce=\", opaque=\"own\"\r\n", true),
            // Without any, and what parsers read differently.
            ("Authorization: Basic YTpi\r\n", true),
            ("Authorization: Digest username=\"a\\\", nonce=\"own\", x=\"\"\r\n", true),
            ("Authorization: Digest nonce=\"own\r\n", false),
            ("X-Authorization: Digest nonce=\"other\"\r\n", false),
            ("Authorizations: Digest nonce=\"other\"\r\n", false),
            ("Subject: Authorization: Digest nonce=\"other\"\r\n", false),
            // A body that looks like a header is one.
            ("\r\nAuthorization: Digest nonce=\"other\"\r\n", true),
        ] {
            assert_eq!(is_try(&format!("{start}{headers}To: z\r\n\r\n")), expected, "{headers:?}");
        }
        let five = "Authorization: Digest nonce=\"own\"\r\n".repeat(MAX_NONCES + 1);
        assert!(is_try(&format!("{start}{five}\r\n")));
        assert!(
            !is_try("Authorization: Digest nonce=\"other\"\r\n"),
            "the first line is no header"
        );
    }

    proptest! {
        /// Whatever stands before and behind: a nonce of somebody else's makes it a try.
        #[test]
        fn a_foreign_nonce_is_never_missed(
            before in "([A-Za-z-]{1,20}: [ -~]{0,40}\r\n){0,4}",
            name in "(?i)(proxy-)?authorization[ \t]{0,3}:",
            params in "( ?[a-mo-z]{1,9}=\"[^\"\\\\\r\n]{0,20}\",){0,5}",
            nonce in "(?i)[ \t]{0,2}nonce[ \t]{0,2}=[ \t]{0,2}",
            value in "[a-z0-9]{4,40}",
            after in "[ -~\r\n]{0,200}",
        ) {
            let text = format!("INVITE sip:x SIP/2.0\r\n{before}{name} Digest \
                                {params}{nonce}\"{value}\"{after}");
            prop_assert!(is_try(&text), "{}", text);
        }

        #[test]
        fn nothing_upsets_it(bytes in prop::collection::vec(any::<u8>(), 0..1_500)) {
            let mut scan = Scan::new();
            bytes.iter().for_each(|byte| scan.step(*byte));
            let _ = scan.kind(|_| true);
        }
    }

    const START: u64 = 1_000_000 * SECOND_NS;
    const DAY: u64 = 86_400;

    fn passed(ladder: &mut Ladder, kind: Kind, is_known: bool) -> u64 {
        (0..DAY).filter(|n| ladder.charge(kind, is_known, START + n * SECOND_NS)).count() as u64
    }

    #[test]
    fn each_step_has_its_pace_and_a_burst_of_four() {
        for (step, a_day) in [(0, 86_400), (1, 1_443), (2, 99), (3, 7)] {
            let mut ladder = Ladder { until: u64::MAX, step, ..Ladder::default() };
            assert_eq!(passed(&mut ladder, Kind::Try, false), a_day, "step {step}");
            // Others have theirs beside it, and of known sources they are not counted.
            assert_eq!(passed(&mut ladder, Kind::Own, false), DAY);
            assert_eq!(
                (0..9)
                    .filter(|_| ladder.charge(Kind::Other, false, START + DAY * SECOND_NS))
                    .count(),
                4
            );
            assert_eq!(
                (0..9)
                    .filter(|_| ladder.charge(Kind::Other, true, START + DAY * SECOND_NS))
                    .count(),
                9
            );
            assert_eq!(ladder.dropped, DAY - a_day + 5);
            let known = &mut Ladder { until: u64::MAX, step, ..Ladder::default() };
            assert_eq!(
                passed(known, Kind::Try, true),
                a_day,
                "a known source's tries, at step {step}"
            );
            let strict = &mut Ladder { until: u64::MAX, step, strict: 1, ..Ladder::default() };
            assert_eq!(
                passed(strict, Kind::Own, true),
                a_day,
                "tries from strange ports, at step {step}"
            );
        }
        let mut over = Ladder { until: START, step: 3, ..Ladder::default() };
        assert_eq!(passed(&mut over, Kind::Try, false), DAY, "it is over");
    }

    #[test]
    fn a_step_down_gives_nothing_back() {
        let mut ladder = Ladder { until: u64::MAX, step: 0, ..Ladder::default() };
        assert_eq!((0..9).filter(|_| ladder.charge(Kind::Try, false, START)).count(), 4);
        let mut lower = ladder.moved(1, u64::MAX, START);
        assert!(
            !lower.charge(Kind::Try, false, START)
                && !lower.charge(Kind::Try, false, START + 59 * SECOND_NS)
        );
        assert!(lower.charge(Kind::Try, false, START + 60 * SECOND_NS));
        assert_eq!(lower.moved(9, u64::MAX, START).step, LOWEST);
    }
}
