//! Any bytes as a SIP message. Invariants: parsed parts lie inside it, do not depend on leading
//! blanks, and do not change when more of it is present; kernel and daemon agree on the start line.

use sip_xdp::sip::message::{Credentials, Head, Party, StartLine, uri_user, user_name};
use sip_xdp_common::packet::reader::Bytes;
use sip_xdp_common::sip;
use sip_xdp_common::verdict::Message;

/// Maximum number of credentials per message, and maximum length of a user.
const CREDENTIALS: usize = 4;
const USER: usize = 64;

/// Blanks that may precede a start line.
const BLANKS: &[u8] = b"\r\n \0\t\n";

/// Parses any bytes in every way, and panics if an invariant is violated.
pub fn run(bytes: &[u8]) {
    check_user(bytes);
    if let Some(user) = uri_user(bytes) {
        is_inside(bytes, user);
        assert!(
            !user.is_empty() && !user.iter().any(|byte| b"> \t\r\n;".contains(byte)),
            "a user with delimiters"
        );
        check_user(user);
    }
    let whole = Head::read(bytes);
    if let Some(head) = &whole {
        check_head(bytes, head);
        agrees_with_the_kernel(bytes, head);
    }
    let led = [BLANKS, bytes].concat();
    assert_eq!(Head::read(&led), whole, "blanks before it make a difference");
    for at in cuts(bytes) {
        if let Some(part) = Head::read(&bytes[..at]) {
            is_part_of(&part, whole.as_ref());
        }
    }
}

/// Truncation points: at some line ends, and at one offset that depends on all bytes.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let digest = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let anywhere = (digest >> 16) as usize % (bytes.len() + 1);
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    ends.flat_map(|at| [at, at + 1]).take(24).chain([anywhere, bytes.len() / 2])
}

fn is_inside(bytes: &[u8], part: &[u8]) {
    let (all, part) = (bytes.as_ptr_range(), part.as_ptr_range());
    assert!(
        all.start <= part.start && part.end <= all.end,
        "what was read lies outside of the message"
    );
}

fn check_head(bytes: &[u8], head: &Head<'_>) {
    if let StartLine::Request { method, uri } = head.start {
        is_inside(bytes, method);
        is_inside(bytes, uri);
        assert!(!method.is_empty() && !uri.is_empty());
    }
    for Party { user, tag } in [head.from, head.to] {
        user.into_iter().for_each(check_user);
        user.into_iter().chain(tag).for_each(|part| is_inside(bytes, part));
    }
    let method = head.cseq.map(|(_, method)| method);
    for part in [head.call_id, head.branch, head.agent, method].into_iter().flatten() {
        is_inside(bytes, part);
    }
    let nonces = head.challenges.iter().map(|challenge| challenge.nonce);
    nonces.filter(|nonce| !nonce.is_empty()).for_each(|nonce| is_inside(bytes, nonce));
    assert!(head.credentials.len() <= CREDENTIALS, "{} credentials", head.credentials.len());
    assert!(head.authorized || head.credentials.is_empty());
    for Credentials { username, nonce, response } in &head.credentials {
        check_user(username);
        [username, nonce, response]
            .into_iter()
            .filter(|part| !part.is_empty())
            .for_each(|part| is_inside(bytes, part));
    }
}

/// Users are compared unescaped, and are safe to print.
fn check_user(user: &[u8]) {
    let name = user_name(user);
    assert!(name.chars().count() <= USER && !name.chars().any(char::is_control), "{name:?}");
    let mut plain = Vec::new();
    let mut rest = user;
    while plain.len() < USER {
        rest = match *rest {
            [b'%', high, low, ref behind @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
                plain.push(digit(high) << 4 | digit(low));
                behind
            }
            [byte, ref behind @ ..] => {
                plain.push(byte);
                behind
            }
            [] => break,
        };
    }
    let plain: String =
        String::from_utf8_lossy(&plain).chars().filter(|c| !c.is_control()).collect();
    assert_eq!(name, plain, "{user:?}");
}

/// What is parsed from the start of a message stays when more of it is present.
fn is_part_of(part: &Head<'_>, whole: Option<&Head<'_>>) {
    let no_line = part.from == Party::default()
        && part.to == Party::default()
        && [part.call_id, part.branch, part.agent].iter().all(Option::is_none)
        && part.cseq.is_none()
        && part.challenges.is_empty()
        && part.lifetime().is_none()
        && !part.authorized
        && !part.has_contact
        && !part.complete;
    let Some(whole) = whole else {
        assert!(no_line, "headers of a message that is none");
        return;
    };
    if part.complete {
        assert_eq!(part, whole, "what stands behind the headers matters");
        return;
    }
    assert!(
        part.credentials.len() <= whole.credentials.len(),
        "more credentials than in the whole message"
    );
    assert!(whole.credentials.starts_with(&part.credentials));
    assert!(whole.authorized || !part.authorized);
    assert!(whole.has_contact || !part.has_contact);
    assert!(no_line || part.start == whole.start);
    let stays = |name: &str, part: Option<&[u8]>, whole: Option<&[u8]>| {
        assert!(
            part.is_none() || part == whole,
            "{name} of the part and of the whole message differ"
        );
    };
    stays("the sender", part.from.user, whole.from.user);
    stays("the sender's tag", part.from.tag, whole.from.tag);
    stays("the recipient", part.to.user, whole.to.user);
    stays("the recipient's tag", part.to.tag, whole.to.tag);
    stays("Call-ID", part.call_id, whole.call_id);
    stays("the branch", part.branch, whole.branch);
    stays("User-Agent", part.agent, whole.agent);
    assert!(part.cseq.is_none() || part.cseq == whole.cseq);
    assert!(
        whole.challenges.starts_with(&part.challenges),
        "other challenges than in the whole message"
    );
    assert!(part.expires.is_none() || part.expires == whole.expires);
    assert!(part.contact_expires <= whole.contact_expires);
}

/// Requests that the daemon parses by name are counted by the kernel under that name.
fn agrees_with_the_kernel(bytes: &[u8], head: &Head<'_>) {
    let blanks = bytes.iter().position(|byte| *byte > b' ').unwrap_or_default();
    if blanks > sip::MAX_BLANKS || bytes.len() < blanks + 9 {
        return;
    }
    let kernel = sip::classify(&Bytes(bytes), 0, bytes.len(), false);
    match head.start {
        StartLine::Request { method, .. } => {
            let named = Message::ALL.into_iter().find(|known| {
                !matches!(known, Message::Other)
                    && known.is_request()
                    && known.name().as_bytes().eq_ignore_ascii_case(method)
            });
            assert!(
                named.is_none_or(|named| named == kernel),
                "{named:?} is {kernel:?} to the kernel"
            );
        }
        StartLine::Response(_) if bytes[blanks + 7] <= b' ' => {
            assert_eq!(kernel, Message::Response)
        }
        StartLine::Response(_) => {}
    }
}
