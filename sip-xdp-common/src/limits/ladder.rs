//! The ladder: what a source may still send that offended by evidence which anybody could have sent
//! in its name. Each further offence takes it a step down, until a day without one.
//!
//! The ladder meters tries: requests with credentials, unless all of these echo a nonce that was
//! given to the source and to nobody else, and whatever may hide some (fragments, and messages
//! longer than the sample). So whoever is really there, behind forged packets, gets in with a nonce
//! of its own. Other requests of a stranger have one a second; those of known sources their usual
//! limit.
//!
//! Over TCP each connection has another port, so that no port tells a phone with an old password
//! from the others of its office; and a port where users are accepted, as that of a PBX, is not
//! closed for one more whose password is wrong. So passwords of single users of a source are
//! refused ([`REFUSES_USERS`], [`user_key`]); what may hide whose password it tries is metered.
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
    /// How else it is limited: [`PORTS_SHARE`], [`REFUSES_USERS`], [`STRANGERS_SHARE`].
    pub modes: u32,
}

const _: () = assert!(size_of::<Ladder>() == 40);

/// [`Ladder::modes`]: nonces of its own spare nothing but ports with a standing. Over TCP, all
/// credentials on connections without one are tries.
pub const PORTS_SHARE: u32 = 1;

/// [`Ladder::modes`]: passwords of some users are refused, from all ports and connections.
pub const REFUSES_USERS: u32 = 2;

/// [`Ladder::modes`] of an IPv6 network where somebody good lives: as [`PORTS_SHARE`], for hosts
/// that are not known. Known ones are judged by themselves, but by UDP share its pace for tries
/// with nonces of others.
pub const STRANGERS_SHARE: u32 = 4;

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

/// Whose password a request, or a piece of a stream, tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tries {
    /// It has no credentials.
    Nobody,
    /// That of the user with this [`Digest`].
    User(u64),
    /// It may hide whose.
    Unclear,
}

impl Ladder {
    /// Charges a request at `now`, of a source that is known good, or a peer, or neither. Returns
    /// whether it goes on.
    #[inline(always)]
    pub fn charge(&mut self, kind: Kind, is_known: bool, now: u64) -> bool {
        // Without a branch, of which the verifier would follow both ways for each width.
        let sharing = PORTS_SHARE | STRANGERS_SHARE >> (u32::from(is_known) * STRANGERS_SHARE);
        let shares = self.modes & sharing != 0;
        let is_try = matches!(kind, Kind::Try) || shares && matches!(kind, Kind::Own);
        if self.until <= now || is_known && !is_try {
            return true;
        }
        let interval = STEPS_NS[(self.step & LOWEST) as usize];
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

    /// What a request or segment of this `kind` is where passwords of some users are refused;
    /// nothing if its own is. On the first step of the ladder it is no try as long as it names one
    /// user. What may hide a name is one; but by a connection with a standing (`may_be_piece`),
    /// where segments begin and end anywhere, only on the steps below.
    #[inline(always)]
    pub fn by_user(
        &self,
        kind: Kind,
        tries: Tries,
        may_be_piece: bool,
        is_refused: impl FnOnce(u64) -> bool,
    ) -> Option<Kind> {
        if self.modes & REFUSES_USERS == 0 {
            return Some(kind);
        }
        match tries {
            Tries::Nobody => Some(kind),
            Tries::User(user) if is_refused(user) => None,
            Tries::User(_) if self.step == 0 && self.modes & PORTS_SHARE == 0 => Some(Kind::Other),
            Tries::User(_) => Some(kind),
            Tries::Unclear if may_be_piece && self.step == 0 => Some(kind),
            Tries::Unclear => Some(Kind::Try),
        }
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

/// Where refused users of a source are kept: under its address, and the [`Digest`] of the name.
#[inline(always)]
pub const fn user_key(source: &IpKey, user: u64, seed: u64) -> u64 {
    nonce_key(source, user, !seed)
}

/// The digest of a nonce or of a user's name, byte by byte (FNV-1a, 64 bits).
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
    /// 1 if the value that is being read is a user name, else a nonce. It stands between words that
    /// begin with zero: for four of them side by side the compiler would call `memset`.
    is_user: u32,
    /// User names in them.
    pub users: u32,
    /// 1 if there is something in them that parsers may take in different ways.
    pub odd: u32,
    /// A state: see the constants.
    state: u32,
    /// A place in the word that is being compared.
    place: u32,
    /// 1 if the line before was one of credentials, which may be continued.
    continues: u32,
    /// The digest of the value that is being read.
    digest: u64,
    /// Digest of the last user name.
    pub user: u64,
    /// Digests of the nonces.
    pub digests: [u64; MAX_NONCES],
}

/// At the start of a line. No state is zero.
const LINE: u32 = 1;
/// Within a header name that may be that of credentials.
const NAME: u32 = 2;
/// In a line that does not matter.
const SKIP: u32 = 3;
/// Between the parameters of credentials.
const BETWEEN: u32 = 4;
/// Within a parameter's name that may be "nonce" or "username".
const WORD: u32 = 5;
/// Within another one.
const OTHER: u32 = 6;
/// Behind that name, where an equals sign must follow.
const EQUALS: u32 = 7;
/// Before the value.
const BEFORE: u32 = 8;
/// In another string in quotes.
const STRING: u32 = 9;
/// In a value in quotes.
const QUOTED: u32 = 10;
/// In a value without.
const BARE: u32 = 11;

/// What a byte may be: bits of [`CLASSES`]. 1 is for what servers take in different ways: a
/// backslash, or a zero.
const ODD: u8 = 1;
const BLANK: u8 = 2;
const ALPHANUMERIC: u8 = 4;
const ENDS_LINE: u8 = 8;
const ENDS_QUOTED: u8 = 16;
const ENDS_BARE: u8 = 32;

/// What each byte is.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < classes.len() {
        let byte = at as u8;
        classes[at] = match byte {
            b'\\' | 0 => ODD,
            b'\n' | b'\r' => ENDS_LINE | ENDS_QUOTED | ENDS_BARE,
            b' ' | b'\t' => BLANK | ENDS_BARE,
            b'"' => ENDS_QUOTED,
            b',' | b';' => ENDS_BARE,
            _ if byte.is_ascii_alphanumeric() => ALPHANUMERIC,
            _ => 0,
        };
        at += 1;
    }
    classes
};

/// Zeros behind it, so that a mask bounds a place in it.
const HEADER: [u8; 32] = *b"proxy-authorization\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// Where "authorization" begins in it.
const SHORT: u32 = 6;
/// The parameters that are read, with zeros behind each.
const PARAMETERS: [u8; 32] = *b"nonce\0\0\0\0\0\0\0\0\0\0\0username\0\0\0\0\0\0\0\0";
/// Where the second of them begins.
const USERNAME: usize = 16;

/// A letter in lower case, without a branch: 0x20 is added from A to Z.
#[inline(always)]
const fn lowercase(byte: u8) -> u8 {
    // Both differences are negative, which their high bits show.
    let (from, to) =
        ((b'A' as u32 - 1).wrapping_sub(byte as u32), (byte as u32).wrapping_sub(b'Z' as u32 + 1));
    byte | ((from & to) >> 26 & 0x20) as u8
}

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
            is_user: 0,
            users: 0,
            odd: 0,
            state: SKIP,
            place: 0,
            continues: 0,
            digest: 0,
            user: 0,
            digests: [0; MAX_NONCES],
        }
    }

    /// Begins with another message. Digests stay: they count only as far as there are nonces, and
    /// begin with each of them.
    #[inline(always)]
    pub fn begin(&mut self) {
        (self.credentials, self.nonces, self.users, self.odd) = (0, 0, 0, 0);
        (self.state, self.place, self.continues) = (SKIP, 0, 0);
    }

    /// Begins with a piece of a stream, which may begin with any line of a message.
    #[inline(always)]
    pub fn begin_piece(&mut self) {
        self.begin();
        self.state = LINE;
    }

    /// Reads the next byte. Few branches, and each only once: the verifier follows them all, for
    /// each place that this is called from.
    #[inline(always)]
    pub fn step(&mut self, byte: u8) {
        let lower = lowercase(byte);
        let class = CLASSES[byte as usize];
        let is_blank = class & BLANK != 0;
        if self.state >= BETWEEN {
            self.odd |= u32::from(class & ODD);
        }
        if self.state >= QUOTED {
            let end = if self.state == QUOTED { ENDS_QUOTED } else { ENDS_BARE };
            if class & end != 0 {
                self.take_value();
            } else {
                self.digest = Digest(self.digest).with(byte).0;
            }
            if class & ENDS_LINE == 0 {
                return;
            }
        }
        if class & ENDS_LINE != 0 {
            if self.state != LINE {
                self.continues = (self.state >= BETWEEN) as u32;
            }
            self.state = LINE;
            return;
        }
        let is_between = match self.state {
            LINE if is_blank => {
                self.state = if self.continues != 0 { BETWEEN } else { SKIP };
                false
            }
            LINE => {
                self.state =
                    if lower == HEADER[0] || lower == HEADER[SHORT as usize] { NAME } else { SKIP };
                self.place = if lower == HEADER[0] { 1 } else { SHORT + 1 };
                false
            }
            NAME => {
                self.name(lower, is_blank);
                false
            }
            BETWEEN => true,
            WORD | OTHER => self.word(lower, class),
            EQUALS if byte == b'=' => {
                self.state = BEFORE;
                false
            }
            EQUALS => !is_blank,
            BEFORE if is_blank => false,
            BEFORE => {
                self.digest = Digest::EMPTY.0;
                self.state = QUOTED;
                if byte != b'"' {
                    self.digest = Digest::EMPTY.with(byte).0;
                    self.state = BARE;
                }
                false
            }
            STRING if byte == b'"' => {
                self.state = BETWEEN;
                false
            }
            _ => false,
        };
        if is_between {
            self.between(lower, class);
        }
    }

    #[inline(always)]
    fn name(&mut self, lower: u8, is_blank: bool) {
        let expected = HEADER[self.place as usize & (HEADER.len() - 1)];
        if expected != 0 {
            self.state = if lower == expected { NAME } else { SKIP };
            self.place += 1;
        } else if lower == b':' {
            self.credentials += 1;
            self.state = BETWEEN;
        } else if !is_blank {
            self.state = SKIP;
        }
    }

    /// Begins with a parameter, or a string, or goes on.
    #[inline(always)]
    fn between(&mut self, lower: u8, class: u8) {
        self.is_user = (lower == PARAMETERS[USERNAME]) as u32;
        self.state = if lower == b'"' {
            STRING
        } else if lower == PARAMETERS[0] || lower == PARAMETERS[USERNAME] {
            WORD
        } else if class & ALPHANUMERIC != 0 {
            OTHER
        } else {
            BETWEEN
        };
        self.place = 1;
    }

    /// Goes on in a parameter's name. Returns whether it ends here, and is of no interest.
    #[inline(always)]
    fn word(&mut self, lower: u8, class: u8) -> bool {
        let place = self.is_user as usize * USERNAME + self.place as usize;
        let expected = PARAMETERS[place & (PARAMETERS.len() - 1)];
        let is_whole = self.state == WORD && expected == 0;
        if class & ALPHANUMERIC != 0 {
            if lower != expected {
                self.state = OTHER;
            }
            self.place += 1;
            return false;
        }
        if is_whole && class & BLANK != 0 {
            self.state = EQUALS;
        } else if is_whole && lower == b'=' {
            self.state = BEFORE;
        } else {
            return true;
        }
        false
    }

    /// Further nonces than there is room for overwrite others: they count, and that is enough.
    #[inline(always)]
    fn take_value(&mut self) {
        if self.is_user != 0 {
            self.user = self.digest;
            self.users += 1;
        } else {
            self.digests[self.nonces as usize & (MAX_NONCES - 1)] = self.digest;
            self.nonces += 1;
        }
        self.state = BETWEEN;
    }

    /// Whose password a request, or a piece of a stream, tries: clear if it has one header with
    /// credentials, and one user name in it.
    #[inline(always)]
    pub fn tries(&self) -> Tries {
        if self.credentials == 0 {
            return Tries::Nobody;
        }
        let is_clear = self.odd == 0 && self.credentials == 1 && self.users == 1;
        if is_clear { Tries::User(self.user) } else { Tries::Unclear }
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

    fn tries(piece: &str) -> Tries {
        let mut scan = Scan::new();
        scan.begin_piece();
        piece.bytes().for_each(|byte| scan.step(byte));
        scan.tries()
    }

    #[test]
    fn whose_password_a_piece_tries() {
        let a = Tries::User(Digest::of(b"a").0);
        for (piece, expected) in [
            ("REGISTER sip:x SIP/2.0\r\nVia: username=\"a\"\r\n\r\n", Tries::Nobody),
            ("REGISTER sip:x SIP/2.0\r\nAuthorization: Digest username=\"a\"\r\n\r\n", a),
            ("Authorization: Digest username=\"a\", nonce=\"username\"\r\n", a),
            ("Authorization: Digest nonce=\"x\", username = a\r\n", a),
            ("authorization:digest realm=\"username=b\",USERNAME=a,uri=b\r\n", a),
            ("Proxy-Authorization: Digest\r\n username=\"a\"\r\n", a),
            ("Authorization: Digest username=\"\"\r\n", Tries::User(Digest::EMPTY.0)),
            ("Authorization: Digest nonce=\"x\"\r\n", Tries::Unclear),
            ("Authorization: Digest usernames=\"a\"\r\n", Tries::Unclear),
            ("Authorization: Digest user=\"a\", name=\"a\"\r\n", Tries::Unclear),
            ("Authorization: Digest username*=UTF-8''a\r\n", Tries::Unclear),
            ("Authorization: Digest username=\"a\", username=\"b\"\r\n", Tries::Unclear),
            ("Authorization: Digest username=\"\\a\"\r\n", Tries::Unclear),
            ("Authorization: Basic YTpi\r\n", Tries::Unclear),
        ] {
            assert_eq!(tries(piece), expected, "{piece:?}");
        }
        let twice = "Authorization: Digest username=\"a\"\r\n".repeat(2);
        assert_eq!(tries(&twice), Tries::Unclear);
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

    #[test]
    fn users_are_refused_by_their_names() {
        const ALL: [Option<Kind>; 3] = [Some(Kind::Try), Some(Kind::Own), Some(Kind::Other)];
        let (refused, other) = (Tries::User(1), Tries::User(2));
        for (modes, step, tries, may_be_piece, expected) in [
            (PORTS_SHARE, 0, refused, false, ALL),
            (REFUSES_USERS, 0, refused, false, [None; 3]),
            (REFUSES_USERS, 0, refused, true, [None; 3]),
            (REFUSES_USERS, 0, other, false, [Some(Kind::Other); 3]),
            (REFUSES_USERS, 1, other, false, ALL),
            (PORTS_SHARE | REFUSES_USERS, 0, other, false, ALL),
            (REFUSES_USERS, 0, Tries::Unclear, false, [Some(Kind::Try); 3]),
            (REFUSES_USERS, 0, Tries::Unclear, true, ALL),
            (REFUSES_USERS, 1, Tries::Unclear, true, [Some(Kind::Try); 3]),
            (REFUSES_USERS, 1, Tries::Nobody, false, ALL),
        ] {
            let ladder = Ladder { until: u64::MAX, modes, step, ..Ladder::default() };
            let by_user = |kind| ladder.by_user(kind, tries, may_be_piece, |user| user == 1);
            let all = [Kind::Try, Kind::Own, Kind::Other].map(by_user);
            assert_eq!(all, expected, "{modes} {step} {tries:?} {may_be_piece}");
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
            let strict =
                &mut Ladder { until: u64::MAX, step, modes: PORTS_SHARE, ..Ladder::default() };
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
