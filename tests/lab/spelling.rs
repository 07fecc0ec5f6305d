//! Unusual spellings of a request that real SIP servers accept: evasions of stricter filters.

/// One spelling.
#[derive(Debug, Clone, Copy)]
pub struct Spelling {
    /// Its name in tables.
    pub name: &'static str,
    /// Rewrites a request of [`crate::sip::Request`] in this spelling.
    pub write: fn(&str) -> String,
}

/// The usual spelling.
pub const PLAIN: Spelling = Spelling { name: "as everybody writes it", write: str::to_owned };

/// All spellings.
pub const SPELLINGS: [Spelling; 15] = [
    PLAIN,
    Spelling { name: "lower case method", write: |text| text.replacen("REGISTER", "register", 1) },
    Spelling { name: "leading CRLF", write: |text| format!("{}{text}", "\r\n".repeat(20)) },
    Spelling { name: "leading NULs", write: |text| format!("\0\0\0\0{text}") },
    Spelling { name: "leading blanks", write: |text| format!(" \t {text}") },
    Spelling { name: "bare LF", write: |text| text.replace("\r\n", "\n") },
    Spelling {
        name: "two spaces before the version",
        write: |text| text.replacen(" SIP/2.0\r\n", "  SIP/2.0\r\n", 1),
    },
    Spelling { name: "sips: in the first line", write: |text| text.replacen(" sip:", " sips:", 1) },
    Spelling { name: "compact headers", write: compact },
    Spelling { name: "odd case, blanks before colons", write: odd_case },
    Spelling { name: "folded Authorization", write: folded },
    Spelling { name: "Authorization behind a CR alone", write: behind_a_return },
    Spelling {
        name: "a backslash at a string's end",
        write: |text| text.replacen(", nonce=", ", opaque=\"\\\", nonce=", 1),
    },
    Spelling {
        name: "a comma behind the scheme",
        write: |text| text.replacen(": Digest ", ": Digest,", 1),
    },
    Spelling {
        name: "CSeq with another method",
        write: |text| text.replacen(" REGISTER\r\n", " OPTIONS\r\n", 1),
    },
];

fn compact(text: &str) -> String {
    const NAMES: [(&str, &str); 6] = [
        ("Via", "v"),
        ("From", "f"),
        ("To", "t"),
        ("Call-ID", "i"),
        ("Contact", "m"),
        ("Content-Length", "l"),
    ];
    let shorter = |text: String, (long, short): (&str, &str)| {
        text.replacen(&format!("\r\n{long}: "), &format!("\r\n{short}: "), 1)
    };
    NAMES.into_iter().fold(text.to_owned(), shorter)
}

/// Alternating capitals in header names, and blanks around colons.
fn odd_case(text: &str) -> String {
    let (start, rest) = text.split_once("\r\n").unwrap_or((text, ""));
    let mut odd = format!("{start}\r\n");
    for line in rest.split_inclusive("\r\n") {
        match line.split_once(':') {
            Some((name, value)) => {
                let mut is_capital = true;
                odd.extend(name.chars().map(|letter| {
                    is_capital = !is_capital;
                    if is_capital {
                        letter.to_ascii_uppercase()
                    } else {
                        letter.to_ascii_lowercase()
                    }
                }));
                odd += &format!(" \t:  {}", value.trim_start_matches(' '));
            }
            None => odd += line,
        }
    }
    odd
}

/// Each parameter of the credentials on its own continuation line.
fn folded(text: &str) -> String {
    let Some((before, rest)) = text.split_once("Authorization: ") else { return text.to_owned() };
    let Some((credentials, after)) = rest.split_once("\r\n") else { return text.to_owned() };
    let credentials = credentials.replace("Digest ", "Digest\r\n ").replace(", ", ",\r\n\t");
    format!("{before}Authorization:\r\n {credentials}\r\n{after}")
}

/// The credentials in the line of To, behind a carriage return.
fn behind_a_return(text: &str) -> String {
    let Some((before, rest)) = text.split_once("\r\nAuthorization:") else {
        return text.to_owned();
    };
    let Some((credentials, after)) = rest.split_once("\r\n") else { return text.to_owned() };
    let Some((first, more)) = before.split_once("\r\nTo: ") else { return text.to_owned() };
    let (to, others) = more.split_once("\r\n").unwrap_or((more, ""));
    format!(
        "{first}\r\nTo: {to};x=1\rAuthorization:{credentials}\r\n{others}{}{after}",
        if others.is_empty() { "" } else { "\r\n" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "REGISTER sip:101@x SIP/2.0\r\nVia: SIP/2.0/UDP x\r\nTo: \
                        <sip:101@x>\r\nCSeq: 1 REGISTER\r\n\
                        Authorization: Digest username=\"101\", nonce=\"a\"\r\n\r\n";

    #[test]
    fn each_differs() {
        for spelling in &SPELLINGS[1..] {
            assert_ne!((spelling.write)(TEXT), TEXT, "{}", spelling.name);
        }
    }

    #[test]
    fn changes_what_it_says() {
        assert!(compact(TEXT).starts_with(
            "REGISTER sip:101@x SIP/2.0\r\nv: SIP/2.0/UDP x\r\nt: <sip:101@x>\r\nCSeq:"
        ));
        assert!(
            odd_case(TEXT).contains("\r\ncSeQ \t:  1 REGISTER\r\naUtHoRiZaTiOn \t:  Digest"),
            "{}",
            odd_case(TEXT)
        );
        assert!(
            behind_a_return(TEXT).ends_with(
                "To: <sip:101@x>;x=1\rAuthorization: Digest username=\"101\", \
                 nonce=\"a\"\r\nCSeq: 1 REGISTER\r\n\r\n"
            ),
            "{}",
            behind_a_return(TEXT)
        );
        assert!(
            folded(TEXT).ends_with(
                "Authorization:\r\n Digest\r\n username=\"101\",\r\n\tnonce=\"a\"\r\n\r\n"
            )
        );
    }
}
