//! Lines of any length in bounded memory.

use std::borrow::Cow;
use std::io::{BufRead, ErrorKind};

/// Longer lines are returned in parts, split between words.
const LONGEST: usize = 4_096;

/// A line, or a part of one, without its terminator.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A whole line. Invalid UTF-8 is replaced, and so never part of an address.
    Whole(Cow<'a, str>),
    /// A part of a line; other parts precede or follow.
    Part(Cow<'a, str>),
    /// An overlong word. The rest of the line is skipped.
    TooLong,
}

/// An iterator over lines that end with LF, CRLF, CR, or the end of the list.
pub(in crate::feeds) struct Lines<'r> {
    reader: &'r mut dyn BufRead,
    buffer: Vec<u8>,
    /// Bytes of the buffer already returned.
    given: usize,
    number: u64,
    /// Whether the next part belongs to the last returned line.
    continues: bool,
    /// Whether the last line ended with CR, so that LF may follow.
    after_cr: bool,
}

impl<'r> Lines<'r> {
    pub(super) fn new(reader: &'r mut dyn BufRead) -> Self {
        Self { reader, buffer: Vec::new(), given: 0, number: 0, continues: false, after_cr: false }
    }

    /// The next line, or part of one, with its line number, from 1.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Line<'_>)>, String> {
        self.buffer.drain(..self.given);
        self.given = 0;
        let was_part = std::mem::take(&mut self.continues);
        let (mut is_there, mut is_too_long) = (was_part, false);
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            let Some(first) = chunk.first() else {
                break;
            };
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                self.reader.consume(1);
                continue;
            }
            is_there = true;
            let end = chunk.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &chunk[..end.unwrap_or(chunk.len())];
            let room = if is_too_long {
                part.len()
            } else {
                part.len().min(LONGEST + 1 - self.buffer.len())
            };
            if !is_too_long {
                self.buffer.extend_from_slice(&part[..room]);
            }
            if room == part.len()
                && let Some(end) = end
            {
                self.after_cr = chunk[end] == b'\r';
                self.reader.consume(end + 1);
                break;
            }
            self.reader.consume(room);
            if !is_too_long && self.buffer.len() > LONGEST {
                let is_between = |byte: &u8| matches!(byte, b' ' | b'\t' | b',');
                if let Some(between) = self.buffer.iter().rposition(is_between).filter(|at| *at > 0)
                {
                    self.given = between;
                    self.continues = true;
                    break;
                }
                is_too_long = true;
            }
        }
        if !is_there {
            return Ok(None);
        }
        self.number += u64::from(!was_part);
        if is_too_long {
            self.given = self.buffer.len();
            return Ok(Some((self.number, Line::TooLong)));
        }
        if !self.continues {
            self.given = self.buffer.len();
        }
        let text = String::from_utf8_lossy(&self.buffer[..self.given]);
        let line = if was_part || self.continues { Line::Part(text) } else { Line::Whole(text) };
        Ok(Some((self.number, line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, String)> {
        let mut reader = text;
        let mut lines = Lines::new(&mut reader);
        let mut all = Vec::new();
        while let Some((number, line)) = lines.next().unwrap() {
            let text = match line {
                Line::Whole(text) => text.into_owned(),
                Line::Part(text) => format!("part of {}", text.len()),
                Line::TooLong => "too long".to_owned(),
            };
            all.push((number, text));
        }
        all
    }

    #[test]
    fn all_line_ends() {
        let expected: Vec<_> = (1..).zip(["a", "b", "", "c", "d"].map(str::to_owned)).collect();
        assert_eq!(lines(b"a\nb\r\n\r\nc\rd"), expected);
        assert_eq!(lines(b"a\rb\r\rc\rd\r"), expected);
        assert_eq!(lines(b""), []);
    }

    #[test]
    fn long_lines_come_in_parts_that_end_where_words_do() {
        let long = "12345678 ".repeat(1_000);
        let found = lines(format!("a\n{long}\nb").as_bytes());
        assert_eq!(found[0], (1, "a".to_owned()));
        assert!(
            found[1..4].iter().all(|(number, text)| *number == 2 && text.starts_with("part of")),
            "{found:?}"
        );
        assert_eq!(found.last().unwrap(), &(3, "b".to_owned()));
        let junk = format!("{}\nb", "x".repeat(10_000));
        assert_eq!(lines(junk.as_bytes()), [(1, "too long".to_owned()), (2, "b".to_owned())]);
    }
}
