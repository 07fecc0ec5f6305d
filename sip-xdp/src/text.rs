//! Sanitised text: strings that others may have chosen (users, start lines, reasons of other
//! programs), made safe for terminals, logs and the environment of programs.

use std::fmt::{self, Write as _};

/// Whether a character is a control character (C0, DEL, C1), which may end a line or begin an
/// escape sequence, or invisible, or changes the direction of text.
fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// One line of text: line ends and tabs become blanks, other such characters a replacement mark.
pub fn line(text: &str) -> String {
    let shown = |c| match c {
        '\n' | '\r' | '\t' => ' ',
        c if is_odd(c) => '\u{fffd}',
        c => c,
    };
    text.chars().map(shown).collect()
}

/// The same for several lines.
pub fn lines(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|one| one.strip_suffix('\n').map_or_else(|| line(one), |one| line(one) + "\n"))
        .collect()
}

/// A string of others as a quoted value of a log line. Quotes and backslashes are escaped with a
/// backslash, and `=` as `\x3d`, so that no `key=` in it is mistaken for a key, even by an
/// unanchored regular expression. [`line`] is for the whole line.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '=' => f.write_str("\\x3d")?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// JSON that is safe for a terminal: RFC 8259 allows DEL, C1 and directional characters in strings;
/// here they are escaped, which preserves them for JSON parsers.
pub fn json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        // Lower characters are escaped already or outside strings. All such characters are one
        // UTF-16 unit.
        if c > '~' && is_odd(c) {
            plain.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}[2J\u{1b}]0;x\u{7}\u{9b}31m\u{202e}b\n\u{7f}\u{2028}";

    #[test]
    fn nothing_odd_is_left() {
        assert_eq!(
            line(HOSTILE),
            "a\u{fffd}[2J\u{fffd}]0;x\u{fffd}\u{fffd}31m\u{fffd}b \u{fffd}\u{fffd}"
        );
        assert_eq!(lines("a\u{1b}\nb\r\n"), "a\u{fffd}\nb \n");
        let usual = "Zoë \"x\" <sip:1@a> 日本 100 %";
        assert_eq!(
            (line(usual), lines(usual), json(usual)),
            (usual.to_owned(), usual.to_owned(), usual.to_owned())
        );
    }

    /// For any attacker-chosen string: the value ends at its quote, and contains no key.
    #[test]
    fn a_value_of_others_is_one_value() {
        for hostile in [
            "101\" ban 192.0.2.9 kind=rejected tier=proven reason=\"",
            "x\\\" ban 192.0.2.9 kind=rejected \\",
            "\\",
            "\"",
            "unban 192.0.2.9 owner=auto",
            "",
        ] {
            let line = format!("ban 203.0.113.7 kind=rejected reason={} for=1s", Quoted(hostile));
            assert_eq!(line.matches("kind=").count(), 1, "{line}");
            assert_eq!(line.matches("owner=").count(), 0, "{line}");
            // As a consumer parses it: a backslash escapes the next character.
            let value = line.split_once("reason=\"").unwrap().1;
            let (mut end, mut characters) = (0, value.char_indices());
            while let Some((at, c)) = characters.next() {
                match c {
                    '\\' => drop(characters.next()),
                    '"' => {
                        end = at;
                        break;
                    }
                    _ => {}
                }
            }
            assert_eq!(&value[end..], "\" for=1s", "{line}");
            let read =
                value[..end].replace("\\x3d", "=").replace("\\\"", "\"").replace("\\\\", "\\");
            assert_eq!(read, hostile, "{line}");
        }
    }

    #[test]
    fn json_says_the_same() {
        let written =
            serde_json::to_string_pretty(&serde_json::json!({ "reason": HOSTILE })).unwrap();
        assert!(written.chars().any(|c| c != '\n' && is_odd(c)), "or there would be nothing to do");
        let plain = json(&written);
        assert!(plain.chars().all(|c| c == '\n' || !is_odd(c)), "{plain:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&plain).unwrap()["reason"], HOSTILE);
    }
}
