//! The head of a SIP message: start line, and the headers that identify sender, recipient,
//! transaction and credentials.
//!
//! Samples of the kernel may be truncated anywhere and are hostile by assumption. The parser is as
//! tolerant as the servers behind it (blanks, NULs and line ends before the start line, bare line
//! feeds, folded lines, compact header names in any case, blanks before the colon) and copies
//! nothing. SIP parser crates require complete and correct messages; samples often are neither.
//!
//! More than 400 lines: one parser, and 140 lines of tests.

use std::borrow::Cow;

/// Maximum number of credentials per message. A guesser may put decoys first; a sample of 1,472
/// bytes has room for about as many.
const MAX_CREDENTIALS: usize = 40;

/// Maximum number of challenges per response: RFC 8760 has one per algorithm.
const MAX_CHALLENGES: usize = 8;

/// The start line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartLine<'a> {
    /// A request.
    Request {
        /// Method, as written.
        method: &'a [u8],
        /// Request-URI, as written.
        uri: &'a [u8],
    },
    /// A response, with its status code.
    Response(u16),
}

/// A From or To header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Party<'a> {
    /// The user part of the URI, as written.
    pub user: Option<&'a [u8]>,
    /// The tag.
    pub tag: Option<&'a [u8]>,
}

impl Party<'_> {
    /// Fills missing parts from `second`. The first of two headers counts, as for servers.
    fn or(self, second: Self) -> Self {
        Self { user: self.user.or(second.user), tag: self.tag.or(second.tag) }
    }
}

/// Digest credentials of an Authorization or Proxy-Authorization header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credentials<'a> {
    /// The claimed user name.
    pub username: &'a [u8],
    /// The echoed nonce.
    pub nonce: &'a [u8],
    /// The digest response.
    pub response: &'a [u8],
}

/// A Digest challenge of a WWW-Authenticate or Proxy-Authenticate header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Challenge<'a> {
    /// The nonce.
    pub nonce: &'a [u8],
    /// Whether the credentials were right but their nonce was too old (RFC 2617, 3.2.1).
    pub stale: bool,
}

/// The parsed head of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head<'a> {
    /// The first line.
    pub start: StartLine<'a>,
    /// From.
    pub from: Party<'a>,
    /// To.
    pub to: Party<'a>,
    /// Call-ID.
    pub call_id: Option<&'a [u8]>,
    /// CSeq: number and method.
    pub cseq: Option<(u32, &'a [u8])>,
    /// The branch of the topmost Via.
    pub branch: Option<&'a [u8]>,
    /// User-Agent.
    pub agent: Option<&'a [u8]>,
    /// Digest credentials.
    pub credentials: Vec<Credentials<'a>>,
    /// Whether there is an Authorization header of any kind.
    pub authorized: bool,
    /// Whether servers may read its credentials in another way, or see others.
    pub is_ambiguous: bool,
    /// Digest challenges, each possibly with its own nonce (RFC 8760, 2.3).
    pub challenges: Vec<Challenge<'a>>,
    /// The Expires header, in seconds.
    pub expires: Option<u32>,
    /// The longest `expires` parameter of the contacts, in seconds.
    pub contact_expires: Option<u32>,
    /// Whether there is a Contact.
    pub has_contact: bool,
    /// Whether the end of the headers was reached.
    pub complete: bool,
}

impl<'a> Head<'a> {
    /// Parses the start of a message. `None` without a start line.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let begin = bytes.iter().position(|byte| *byte > b' ')?;
        let mut lines = Lines { rest: &bytes[begin..] };
        let (first, whole) = lines.next()?;
        let start = start_line(first)?;
        let mut head = Self {
            start,
            from: Party::default(),
            to: Party::default(),
            call_id: None,
            cseq: None,
            branch: None,
            agent: None,
            credentials: Vec::new(),
            authorized: false,
            is_ambiguous: false,
            challenges: Vec::new(),
            expires: None,
            contact_expires: None,
            has_contact: false,
            complete: false,
        };
        if whole {
            for (line, whole) in lines {
                // A truncated last line is ignored: its value would be wrong.
                if line.is_empty() {
                    head.complete = whole;
                    break;
                }
                // A carriage return alone ends a line for some servers, in some headers, which they
                // copy into their response. What follows it in a request counts as far as it may
                // try a password.
                let goes_on = |one: &u8, next: &u8| *one != b'\r' || *next == b'\n';
                let mut parts = line.chunk_by(goes_on).map(trim);
                if let Some((name, value)) = parts.next().and_then(header) {
                    head.note(name, value, whole);
                }
                let is_response = matches!(start, StartLine::Response(_));
                for (name, value) in parts.filter_map(header) {
                    head.is_ambiguous = true;
                    if is_response {
                        head.note(name, value, whole);
                    } else {
                        head.note_credentials(name, value, whole);
                    }
                }
            }
        }
        Some(head)
    }

    /// Whether a challenge says `stale`.
    pub fn is_stale(&self) -> bool {
        self.challenges.iter().any(|challenge| challenge.stale)
    }

    /// The lifetime of a registration that a response grants, in seconds.
    pub fn lifetime(&self) -> Option<u32> {
        self.contact_expires.or(self.expires)
    }

    /// Notes credentials, if this header has some. Returns whether it is one for them.
    fn note_credentials(&mut self, name: &[u8], value: &'a [u8], whole: bool) -> bool {
        if ![&b"authorization"[..], b"proxy-authorization"]
            .iter()
            .any(|header| name.eq_ignore_ascii_case(header))
        {
            return false;
        }
        self.authorized = true;
        if !whole {
            return true;
        }
        let read = |escapes| credentials(value, escapes);
        // Some servers know escapes in quoted strings (RFC 3261, section 25.1), some do not.
        let (found, other) = (read(true), read(false).filter(|_| value.contains(&b'\\')));
        let differs = other.is_some() && other != found;
        for (one, is_clear) in found.into_iter().chain(other.filter(|_| differs)) {
            self.is_ambiguous |= !is_clear || differs;
            if self.credentials.len() < MAX_CREDENTIALS {
                self.credentials.push(one);
            } else {
                self.is_ambiguous = true;
            }
        }
        true
    }

    fn note(&mut self, name: &[u8], value: &'a [u8], whole: bool) {
        let is = |long: &str, short: &str| {
            name.eq_ignore_ascii_case(long.as_bytes())
                || !short.is_empty() && name.eq_ignore_ascii_case(short.as_bytes())
        };
        if self.note_credentials(name, value, whole) || !whole || value.is_empty() {
            return;
        }
        if is("from", "f") {
            self.from = self.from.or(party(value));
        } else if is("to", "t") {
            self.to = self.to.or(party(value));
        } else if is("call-id", "i") {
            self.call_id = self.call_id.or(Some(value));
        } else if is("cseq", "") {
            self.cseq = self.cseq.or_else(|| cseq(value));
        } else if is("via", "v") {
            let top = value.split(|byte| *byte == b',').next().unwrap_or_default();
            self.branch = self.branch.or_else(|| parameter(top, "branch"));
        } else if is("user-agent", "") {
            self.agent = self.agent.or(Some(value));
        } else if is("www-authenticate", "") || is("proxy-authenticate", "") {
            if self.challenges.len() < MAX_CHALLENGES {
                self.challenges.extend(challenge(value));
            }
        } else if is("expires", "") {
            self.expires = self.expires.or_else(|| number(value));
        } else if is("contact", "m") {
            self.has_contact = true;
            let longest = contacts(value)
                .filter_map(|contact| parameter(contact, "expires").and_then(number))
                .max();
            self.contact_expires = self.contact_expires.max(longest);
        }
    }
}

/// The headers of a message, as far as present, in order: name and value.
pub fn headers(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let begin = bytes.iter().position(|byte| *byte > b' ').unwrap_or(bytes.len());
    let lines = Lines { rest: &bytes[begin..] }.skip(1).take_while(|(line, _)| !line.is_empty());
    lines.filter_map(|(line, _)| header(line))
}

/// The transport that the topmost Via names, as it is written.
pub fn first_via(bytes: &[u8]) -> Option<&[u8]> {
    let is_via = |name: &[u8]| name.eq_ignore_ascii_case(b"via") || name.eq_ignore_ascii_case(b"v");
    let (_, value) = headers(bytes).find(|(name, _)| is_via(name))?;
    // SIP/2.0/UDP, with blanks anywhere between (RFC 3261, section 25.1).
    let behind = value.splitn(3, |byte| *byte == b'/').nth(2).map(trim)?;
    let end = behind.iter().position(|byte| *byte <= b' ').unwrap_or(behind.len());
    Some(&behind[..end])
}

/// A user name in comparable form (RFC 3261, 19.1.4): unescaped, at most 64 bytes.
pub fn user_name(user: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(user.len().min(64));
    let mut rest = user;
    while let Some((first, behind)) = rest.split_first() {
        let escaped = (*first == b'%').then(|| behind.get(..2)).flatten();
        // Two hex digits; `from_str_radix` would accept a sign as well.
        let digits = escaped.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let value = digits
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &behind[2..] } else { behind };
        if bytes.len() == 64 {
            break;
        }
    }
    match String::from_utf8_lossy(&bytes) {
        // No control characters: they could forge log lines or write to a terminal.
        text if text.chars().any(char::is_control) => {
            text.chars().filter(|c| !c.is_control()).collect()
        }
        Cow::Borrowed(text) => text.to_owned(),
        Cow::Owned(text) => text,
    }
}

/// The URI of a name-addr without its brackets: scheme, and what stands behind the colon.
fn uri_parts(value: &[u8]) -> Option<(&[u8], &[u8])> {
    // A display name before the URI may contain anything.
    let from = value.iter().position(|byte| *byte == b'<').map_or(0, |at| at + 1);
    let uri = &value[from..];
    let end = uri
        .iter()
        .position(|byte| matches!(byte, b'>' | b' ' | b'\t' | b'\r' | b'\n'))
        .unwrap_or(uri.len());
    let uri = &uri[..end];
    let colon = uri.iter().position(|byte| *byte == b':')?;
    let (scheme, rest) = (&uri[..colon], &uri[colon + 1..]);
    let is_known = |known: &&str| scheme.eq_ignore_ascii_case(known.as_bytes());
    ["sip", "sips", "tel"].iter().any(is_known).then_some((scheme, rest))
}

/// The user part of a URI or name-addr: between the scheme and the `@`.
pub fn uri_user(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = uri_parts(value)?;
    let user = if scheme.eq_ignore_ascii_case(b"tel") {
        rest.split(|byte| *byte == b';').next()?
    } else {
        let at = rest.iter().position(|byte| *byte == b'@')?;
        // Without password and user parameters.
        rest[..at].split(|byte| matches!(byte, b':' | b';')).next()?
    };
    (!user.is_empty()).then_some(user)
}

/// The host part of a SIP URI or name-addr in lower case: a name without its last dot, or an
/// address without brackets. Without port, parameters and headers (RFC 3261, 19.1.1).
pub fn uri_host(value: &[u8]) -> Option<String> {
    let (scheme, rest) = uri_parts(value)?;
    if scheme.eq_ignore_ascii_case(b"tel") {
        return None;
    }
    let from = rest.iter().position(|byte| *byte == b'@').map_or(0, |at| at + 1);
    let rest = &rest[from..];
    let host = match rest.strip_prefix(b"[") {
        Some(behind) => behind.split(|byte| *byte == b']').next()?,
        None => rest.split(|byte| matches!(byte, b':' | b';' | b'?')).next()?,
    };
    let host = std::str::from_utf8(host).ok()?.trim_end_matches('.').to_ascii_lowercase();
    // The longest name that DNS has (RFC 1035, 2.3.4).
    let is_host = (1..=253).contains(&host.len())
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    is_host.then_some(host)
}

/// Lines with their continuations (RFC 3261, 7.3.1), and whether each is complete.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = (&'a [u8], bool);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let mut from = 0;
        loop {
            let Some(end) =
                self.rest[from..].iter().position(|byte| *byte == b'\n').map(|at| from + at)
            else {
                let line = self.rest;
                self.rest = &[];
                return Some((trim(line), false));
            };
            let line = trim(&self.rest[..end]);
            match self.rest.get(end + 1) {
                // An empty line ends the headers, whatever follows.
                Some(b' ' | b'\t') if !line.is_empty() => from = end + 1,
                next => {
                    // Without the next byte a continuation cannot be excluded.
                    let whole = next.is_some() || line.is_empty();
                    self.rest = &self.rest[end + 1..];
                    return Some((line, whole));
                }
            }
        }
    }
}

/// Without surrounding blanks and NULs.
fn trim(bytes: &[u8]) -> &[u8] {
    let from = bytes.iter().position(|byte| *byte > b' ').unwrap_or(bytes.len());
    let to = bytes.iter().rposition(|byte| *byte > b' ').map_or(from, |at| at + 1);
    &bytes[from..to]
}

fn start_line(line: &[u8]) -> Option<StartLine<'_>> {
    let mut words = line.split(|byte| *byte <= b' ').filter(|word| !word.is_empty());
    let first = words.next()?;
    if first.len() >= 7 && first[..7].eq_ignore_ascii_case(b"SIP/2.0") {
        let status = words.next().and_then(number).filter(|status| (100..700).contains(status))?;
        return Some(StartLine::Response(status as u16));
    }
    let uri = words.next()?;
    let is_token =
        first.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(byte));
    is_token.then_some(StartLine::Request { method: first, uri })
}

fn header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((trim(&line[..colon]), trim(&line[colon + 1..])))
}

fn party(value: &[u8]) -> Party<'_> {
    let value = behind_name(value);
    // Behind the bracket are header parameters; without brackets all parameters are.
    let parameters = value.iter().position(|byte| *byte == b'>').map_or(value, |at| &value[at..]);
    Party { user: uri_user(value), tag: parameter(parameters, "tag") }
}

/// Without a quoted display name.
fn behind_name(value: &[u8]) -> &[u8] {
    if value.first() != Some(&b'"') {
        return value;
    }
    let mut escaped = false;
    for (at, byte) in value.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return trim(&value[at + 1..]),
            _ => {}
        }
    }
    value
}

/// The value of a `;name=value` parameter.
fn parameter<'a>(value: &'a [u8], name: &str) -> Option<&'a [u8]> {
    value.split(|byte| *byte == b';').skip(1).find_map(|part| {
        let equals = part.iter().position(|byte| *byte == b'=')?;
        let found = trim(&part[..equals]).eq_ignore_ascii_case(name.as_bytes());
        let text = trim(&part[equals + 1..]);
        let end =
            text.iter().position(|byte| matches!(byte, b'>' | b',' | b' ')).unwrap_or(text.len());
        (found && end > 0).then(|| unquoted(&text[..end]))
    })
}

fn unquoted(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\"").map_or(text, |text| text.strip_suffix(b"\"").unwrap_or(text))
}

/// The contacts of a header, split at commas outside quotes and brackets.
fn contacts(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut bracket) = (false, false);
    value.split(move |byte| {
        match byte {
            b'"' => quoted = !quoted,
            b'<' if !quoted => bracket = true,
            b'>' if !quoted => bracket = false,
            _ => {}
        }
        *byte == b',' && !quoted && !bracket
    })
}

fn cseq(value: &[u8]) -> Option<(u32, &[u8])> {
    let mut words = value.split(|byte| *byte <= b' ').filter(|word| !word.is_empty());
    Some((number(words.next()?)?, words.next()?))
}

fn number(text: &[u8]) -> Option<u32> {
    let text = trim(text);
    let digits = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    std::str::from_utf8(&text[..digits]).ok()?.parse().ok()
}

/// The parameters of a Digest header: `name=value`, quoted or not, separated by commas. A quote
/// elsewhere than at the start of a value is a character like any other, as servers read it: it
/// hides no comma.
fn digest(value: &[u8], escapes: bool) -> Option<impl Iterator<Item = (&[u8], &[u8])>> {
    let scheme = value.get(..6)?;
    // Some servers take a comma for the blank behind the scheme.
    let ends = value.get(6).is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
    if !scheme.eq_ignore_ascii_case(b"digest") || !ends {
        return None;
    }
    let (mut quoted, mut escaped, mut begins) = (false, false, false);
    let parts = value[6..].split(move |byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted && escapes => escaped = true,
            b'"' if quoted || begins => quoted = !quoted,
            _ => {}
        }
        begins = *byte == b'=' && !quoted || begins && *byte <= b' ';
        *byte == b',' && !quoted
    });
    Some(parts.filter_map(|part| {
        let equals = part.iter().position(|byte| *byte == b'=')?;
        Some((trim(&part[..equals]), unquoted(trim(&part[equals + 1..]))))
    }))
}

/// The credentials of a value, and whether each parameter is there once.
fn credentials(value: &[u8], escapes: bool) -> Option<(Credentials<'_>, bool)> {
    let (mut found, mut is_clear) = (Credentials::default(), true);
    for (name, value) in digest(value, escapes)? {
        let part = if name.eq_ignore_ascii_case(b"username") {
            &mut found.username
        } else if name.eq_ignore_ascii_case(b"nonce") {
            &mut found.nonce
        } else if name.eq_ignore_ascii_case(b"response") {
            &mut found.response
        } else {
            continue;
        };
        is_clear &= part.is_empty();
        *part = value;
    }
    Some((found, is_clear))
}

fn challenge(value: &[u8]) -> Option<Challenge<'_>> {
    let mut found = Challenge::default();
    for (name, value) in digest(value, true)? {
        if name.eq_ignore_ascii_case(b"nonce") {
            found.nonce = value;
        } else if name.eq_ignore_ascii_case(b"stale") {
            found.stale = value.eq_ignore_ascii_case(b"true");
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUESS: &str = "REGISTER sip:198.51.100.1 SIP/2.0\r\n\
        Via: SIP/2.0/UDP 192.0.2.66:5060;branch=z9hG4bK-1;rport, SIP/2.0/UDP \
                         10.0.0.1;branch=other\r\n\
        From: \"a;tag=no\" <sip:100@198.51.100.1;x=y>;tag=31303001\r\nTo: \
                         <sip:100@198.51.100.1>\r\n\
        Call-ID: c1@host\r\nCSeq: 2 REGISTER\r\nUser-Agent: friendly-scanner\r\nContact: \
                         <sip:100@192.0.2.66>;expires=60, \
        \"x, y\" <sip:100@192.0.2.67>;expires=3600\r\nExpires: 20\r\n\
        Authorization: Digest username=\"100\",realm=\"a, \
                         b\",nonce=\"abc\\\"d\",uri=\"sip:x\",response=\"0f\",algorithm=MD5\r\n\
        Content-Length: 0\r\n\r\n";

    #[test]
    fn reads_a_registration() {
        let head = Head::read(GUESS.as_bytes()).unwrap();
        assert_eq!(
            head.start,
            StartLine::Request { method: b"REGISTER", uri: b"sip:198.51.100.1" }
        );
        assert_eq!(head.from, Party { user: Some(b"100"), tag: Some(b"31303001") });
        assert_eq!(head.to, Party { user: Some(b"100"), tag: None });
        assert_eq!((head.call_id, head.cseq), (Some(&b"c1@host"[..]), Some((2, &b"REGISTER"[..]))));
        assert_eq!(
            (head.branch, head.agent),
            (Some(&b"z9hG4bK-1"[..]), Some(&b"friendly-scanner"[..]))
        );
        let credentials = Credentials { username: b"100", nonce: b"abc\\\"d", response: b"0f" };
        assert_eq!(head.credentials, [credentials]);
        assert_eq!(
            (head.contact_expires, head.expires, head.lifetime()),
            (Some(3600), Some(20), Some(3600))
        );
        assert!(head.complete && head.authorized && head.has_contact);
    }

    #[test]
    fn spelling_makes_no_difference() {
        let plain = Head::read(GUESS.as_bytes()).unwrap();
        let compact = GUESS
            .replace("Via:", "v:")
            .replace("From:", "f :")
            .replace("To:", "T:")
            .replace("Call-ID:", "i\t:");
        let folded = GUESS.replace(",nonce", ",\r\n nonce").replace("Call-ID: ", "Call-ID:\r\n\t");
        let leading = format!("\r\n\0\0 \t\r\n{GUESS}");
        for text in [
            compact,
            folded,
            leading,
            GUESS.replace("\r\n", "\n"),
            GUESS.replace("Authorization", "aUTHORIZATION"),
        ] {
            assert_eq!(Head::read(text.as_bytes()).as_ref(), Some(&plain), "{text}");
        }
    }

    #[test]
    fn reads_a_challenge() {
        let text = "SIP/2.0 401 Unauthorized\r\nCSeq: 1 REGISTER\r\nWWW-Authenticate: Digest \
                    realm=\"a\", nonce=\"n1\", \
                    stale=TRUE\r\n\r\n";
        let head = Head::read(text.as_bytes()).unwrap();
        assert_eq!(head.start, StartLine::Response(401));
        assert_eq!(head.challenges, [Challenge { nonce: b"n1", stale: true }]);
        let text = text
            .replace("\r\n\r\n", "\r\nWWW-Authenticate: Digest nonce=\"n2\", realm=\"a\"\r\n\r\n");
        let nonces: Vec<_> =
            Head::read(text.as_bytes()).unwrap().challenges.iter().map(|one| one.nonce).collect();
        assert_eq!(nonces, [b"n1", b"n2"], "one for each algorithm");
        let text = text.replace(
            "CSeq:",
            "From: \"x\r\n WWW-Authenticate: Digest nonce=9\" <sip:a@b>\r\nCSeq:",
        );
        assert_eq!(
            Head::read(text.as_bytes()).unwrap().challenges.len(),
            2,
            "not in a line's midst"
        );
    }

    /// Kamailio ends a value without quotes at the comma, whatever quotes are in it.
    #[test]
    fn a_quote_within_a_value_hides_no_user() {
        for text in [
            "Digest foo=x\", username=\"100\", nonce=\"n\"",
            "Digest foo=x\"y\"\", username = \"100\", nonce=n",
            "Digest \"foo\"=\", \", username=100, nonce=\"n\"",
            "Digest foo=\"a, b\", username=\"100\", nonce=\"n\"",
            "Digest foo=\"a\\\", b\", username=\"100\", nonce=\"n\"",
        ] {
            let (found, _) = credentials(text.as_bytes(), true).unwrap();
            assert_eq!((found.username, found.nonce), (&b"100"[..], &b"n"[..]), "{text}");
        }
    }

    #[test]
    fn truncated_lines_do_not_count() {
        let at = GUESS.find("Authorization").unwrap();
        let head = Head::read(&GUESS.as_bytes()[..at + 60]).unwrap();
        assert!(head.authorized && head.credentials.is_empty() && !head.complete);
        let at = GUESS.find("c1@host").unwrap();
        assert_eq!(Head::read(&GUESS.as_bytes()[..at + 3]).unwrap().call_id, None);
        for text in ["", "\r\n\r\n", "REGISTER", "SIP/2.0", "SIP/2.0 xyz", "(x) y z"] {
            assert_eq!(Head::read(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn the_first_of_two_headers_counts() {
        // As servers parse it: a second header changes nothing.
        let text = GUESS.replace("Call-ID:", "f: <sip:eve@a>;tag=2\r\nTo: nonsense\r\nCall-ID:");
        assert_eq!(Head::read(text.as_bytes()), Head::read(GUESS.as_bytes()));
    }

    #[test]
    fn users_are_compared_as_the_standard_says() {
        for (uri, user) in [
            ("<sip:alice@a>", Some("alice")),
            ("sips:%61lice:secret@a;tag=1", Some("alice")),
            ("\"Bob <sip:eve@a>\" <sip:alice@a>", Some("alice")),
            ("<tel:+4912345;phone-context=x>", Some("+4912345")),
            ("<sip:a>", None),
            ("<mailto:alice@a>", None),
            ("nonsense", None),
        ] {
            assert_eq!(party(uri.as_bytes()).user.map(user_name).as_deref(), user, "{uri}");
        }
        for text in ["%zz%4", "%+4", "%-1", "% 4"] {
            assert_eq!(user_name(text.as_bytes()), text);
        }
        assert_eq!(user_name(b"a%0ab\x1b[2J"), "ab[2J");
        assert_eq!(user_name(&[b'x'; 500]).len(), 64);
    }

    #[test]
    fn hosts_are_compared_without_port_and_case() {
        for (uri, host) in [
            ("sip:PBX.example.com", Some("pbx.example.com")),
            ("sip:100@pbx.example.com.:5060;transport=tcp", Some("pbx.example.com")),
            ("<sips:100:secret@192.0.2.1>;tag=1", Some("192.0.2.1")),
            ("sip:100@[2001:DB8::1]:5060", Some("2001:db8::1")),
            ("sip:pbx?subject=x", Some("pbx")),
            ("sip:a%40b@pbx", Some("pbx")),
            ("tel:+49123", None),
            ("sip:", None),
            ("sip:100@", None),
            ("sip:100@p\"bx", None),
            ("nonsense", None),
        ] {
            assert_eq!(uri_host(uri.as_bytes()).as_deref(), host, "{uri}");
        }
        assert_eq!(uri_host(format!("sip:{}", "x".repeat(254)).as_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_at_all(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            let _ = (Head::read(&bytes), uri_host(&bytes));
        }

        #[test]
        fn any_change_of_a_message(
            at in 0..GUESS.len(),
            byte in any::<u8>(),
            cut in 0..GUESS.len(),
        ) {
            let mut bytes = GUESS.as_bytes().to_vec();
            bytes[at] = byte;
            bytes.truncate(cut);
            if let Some(head) = Head::read(&bytes) {
                prop_assert!(head.credentials.len() <= MAX_CREDENTIALS);
                prop_assert!(head.from.user.is_none_or(|user| user_name(user).len() <= 64 * 3));
            }
        }
    }
}
