//! Who a request says it is from: the user of its From header, and its Call-ID. Used to tell one flooding sender from
//! many phones behind one address; nothing here is believed.

/// What tells senders apart inside a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity<'a> {
    /// The user part of the From URI.
    pub user: Option<&'a [u8]>,
    /// The Call-ID.
    pub call_id: Option<&'a [u8]>,
}

/// Reads the identity from the start of a request, which may be cut off anywhere. Header names may be written in any
/// case, in their compact form, and with blanks before the colon (RFC 3261, 7.3.1 and 7.3.3).
pub fn identity(head: &[u8]) -> Identity<'_> {
    let mut found = Identity::default();
    // The last line may be cut off: it counts only if its value is complete, that is, if a line end follows.
    let mut rest = head;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = rest[..end].trim_ascii_end();
        rest = &rest[end + 1..];
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"from") || name.eq_ignore_ascii_case(b"f") {
            found.user = found.user.or_else(|| uri_user(value));
        } else if name.eq_ignore_ascii_case(b"call-id") || name.eq_ignore_ascii_case(b"i") {
            found.call_id = found.call_id.or(Some(value)).filter(|id| !id.is_empty());
        }
    }
    found
}

/// The user part of the `sip:` or `sips:` URI in a From value.
fn uri_user(value: &[u8]) -> Option<&[u8]> {
    let start = value
        .windows(4)
        .position(|w| w.eq_ignore_ascii_case(b"sip:"))
        .map(|at| at + 4)
        .or_else(|| value.windows(5).position(|w| w.eq_ignore_ascii_case(b"sips:")).map(|at| at + 5))?;
    let uri = &value[start..];
    let end = uri.iter().position(|byte| matches!(byte, b'>' | b';' | b' ')).unwrap_or(uri.len());
    let at = uri[..end].iter().position(|byte| *byte == b'@')?;
    let user = uri[..at].split(|byte| *byte == b':').next()?;
    (!user.is_empty()).then_some(user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_long_compact_and_odd_headers() {
        for head in [
            "REGISTER sip:a SIP/2.0\r\nFrom: \"x\" <sip:alice@a>;tag=1\r\nCall-ID: c1\r\n\r\n",
            "REGISTER sip:a SIP/2.0\nf:sip:alice@a;tag=1\ni:c1\n\n",
            "\r\n\r\nregister sip:a SIP/2.0\r\nFROM : <SIPS:alice:pw@a>\r\ncall-id\t: c1 \r\n",
        ] {
            let found = identity(head.as_bytes());
            assert_eq!(found, Identity { user: Some(b"alice"), call_id: Some(b"c1") }, "{head:?}");
        }
    }

    #[test]
    fn what_is_cut_off_does_not_count() {
        let found = identity(b"REGISTER sip:a SIP/2.0\r\nFrom: <sip:alice@a>\r\nCall-ID: c1-and-mo");
        assert_eq!(found, Identity { user: Some(b"alice"), call_id: None });
        assert_eq!(identity(b""), Identity::default());
        assert_eq!(identity(b"From: <sip:example.com>\r\nCall-ID:\r\n"), Identity::default());
    }

    proptest! {
        #[test]
        fn any_bytes_at_all(head in prop::collection::vec(any::<u8>(), 0..600)) {
            let found = identity(&head);
            prop_assert!(found.user.is_none_or(|user| !user.is_empty()));
        }
    }
}
