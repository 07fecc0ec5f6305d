//! Text that others may have chosen (a user, a start line, a reason that another program gave),
//! made fit for a terminal, a log, and the environment of a program.

use std::fmt::{self, Write as _};

/// Whether a character is more than something to read: a control character (C0, DEL, C1), which may
/// end a line or begin an escape sequence, or one that hides, or that turns around what stands
/// beside it.
fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// One line of text: line ends and tabs become blanks, and everything else that is more than
/// something to read a mark.
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

/// A text of others as a value of a log line, in quotes. What could end the value, or look like
/// another one, is escaped: quotes and backslashes by a backslash, and `=` as `\x3d`, so that no
/// `key=` in it can be taken for the line's own even by a regular expression that is not anchored.
/// [`line`] is for the whole line.
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

/// JSON that can be shown in a terminal: RFC 8259 lets DEL, C1 and what turns lines around stand in
/// a string as they are; here they are escaped, so that whoever reads the JSON gets them all the
/// same.
pub fn json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        // What is below is either escaped already, or not in a string. All that is odd has one unit
        // of UTF-16.
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

    /// Whatever an attacker calls himself: a value ends where its line says, and no key is in it.
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
            // Read as a consumer reads it: a backslash takes the next character along.
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
