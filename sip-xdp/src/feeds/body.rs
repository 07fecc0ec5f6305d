//! The body of a response as text: decompressed if it is undeclared gzip, decoded if it is UTF-16,
//! and refused by name if it is another format.

use std::io::{self, BufReader, Read};

use flate2::read::MultiGzDecoder;

use super::fetch::Capped;

/// Bytes inspected before a body is read.
const HEAD: usize = 64 << 10;

/// Maximum number of layers: gzip twice (by the server, and in the file), and one encoding.
const MOST_LAYERS: usize = 3;

/// Signatures of other formats, which are not decompressed.
const OTHERS: [(&[u8], &str); 15] = [
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
    (b"LZIP", "compressed with lzip"),
    (b"\x1f\x9d", "compressed with compress (.Z)"),
    (b"%PDF-", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
];

/// A reader of the body as text, from its start, and its first bytes.
///
/// # Errors
///
/// If it is not text, or longer than `most` bytes: one line that names the format.
pub(super) fn open<'r>(
    mut reader: Box<dyn Read + Send + 'r>,
    most: u64,
) -> Result<(Vec<u8>, Box<dyn Read + Send + 'r>), String> {
    for _ in 0..=MOST_LAYERS {
        let mut head = Vec::new();
        (&mut reader)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(|error| error.to_string())?;
        let others = OTHERS.iter().find(|(magic, _)| head.starts_with(magic));
        if let Some((_, name)) = others {
            return Err(format!(
                "it is {name}, and not read; name a url that sends plain text or gzip"
            ));
        }
        let utf16 = utf16(&head)?;
        if head.starts_with(b"\xef\xbb\xbf") {
            reader = Box::new(io::Cursor::new(head.split_off(3)).chain(reader));
            continue;
        }
        let whole = Box::new(io::Cursor::new(head.clone()).chain(reader));
        if head.starts_with(b"\x1f\x8b") {
            let unpacked = MultiGzDecoder::new(BufReader::new(whole));
            reader = Box::new(Capped::new(unpacked, most));
        } else if let Some(is_big_endian) = utf16 {
            reader = Box::new(Utf16 {
                inner: BufReader::new(whole),
                is_big_endian,
                high: None,
                ready: Vec::new(),
            });
        } else if is_binary(&head) {
            return Err("it is binary data of an unknown kind, not a list".to_owned());
        } else {
            return Ok((head, whole));
        }
    }
    Err("it is packed too many times".to_owned())
}

/// Whether a body is UTF-16, and its byte order: by its byte order mark, or because it is ASCII
/// with a zero in each pair.
fn utf16(head: &[u8]) -> Result<Option<bool>, String> {
    if head.starts_with(b"\xff\xfe\0\0") || head.starts_with(b"\0\0\xfe\xff") {
        return Err("it is UTF-32, and not read; name a url that sends UTF-8".to_owned());
    }
    if head.starts_with(b"\xff\xfe") {
        return Ok(Some(false));
    }
    if head.starts_with(b"\xfe\xff") {
        return Ok(Some(true));
    }
    let pairs: Vec<_> = head.chunks_exact(2).take(64).collect();
    let all = |zero: usize| {
        pairs.len() >= 4
            && pairs
                .iter()
                .all(|pair| pair[zero] == 0 && pair[1 - zero].is_ascii() && pair[1 - zero] != 0)
    };
    Ok(if all(1) {
        Some(false)
    } else if all(0) {
        Some(true)
    } else {
        None
    })
}

/// Whether it has control characters that no text has.
fn is_binary(head: &[u8]) -> bool {
    let odd = head.iter().filter(|byte| matches!(byte, 0..=8 | 14..=26 | 28..=31 | 127)).count();
    odd * 50 > head.len()
}

/// A decoder from UTF-16 to UTF-8. Invalid units become U+FFFD.
struct Utf16<R> {
    inner: BufReader<R>,
    is_big_endian: bool,
    /// The first half of a surrogate pair.
    high: Option<u16>,
    /// Decoded bytes, reversed.
    ready: Vec<u8>,
}

impl<R: Read> Utf16<R> {
    /// The next two bytes; `None` at the end. An odd last byte is dropped.
    fn unit(&mut self) -> io::Result<Option<u16>> {
        let mut pair = [0; 2];
        match self.inner.read_exact(&mut pair) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(if self.is_big_endian {
            u16::from_be_bytes(pair)
        } else {
            u16::from_le_bytes(pair)
        }))
    }

    fn push(&mut self, character: char) {
        let mut bytes = [0; 4];
        let bytes = character.encode_utf8(&mut bytes).as_bytes();
        self.ready.splice(0..0, bytes.iter().rev().copied());
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            if let Some(byte) = self.ready.pop() {
                buffer[filled] = byte;
                filled += 1;
                continue;
            }
            let Some(unit) = self.unit()? else {
                if self.high.take().is_some() {
                    self.push(char::REPLACEMENT_CHARACTER);
                    continue;
                }
                break;
            };
            let units: Vec<u16> = self.high.take().into_iter().chain([unit]).collect();
            if let [high @ 0xd800..=0xdbff] = units[..] {
                self.high = Some(high);
                continue;
            }
            for character in char::decode_utf16(units) {
                match character.unwrap_or(char::REPLACEMENT_CHARACTER) {
                    // The byte order mark is dropped.
                    '\u{feff}' => {}
                    character => self.push(character),
                }
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn text(bytes: &[u8]) -> Result<String, String> {
        let (_, mut body) = open(Box::new(bytes), 1 << 20)?;
        let mut text = String::new();
        body.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn utf16(text: &str, is_big_endian: bool) -> Vec<u8> {
        let bytes = |unit: u16| if is_big_endian { unit.to_be_bytes() } else { unit.to_le_bytes() };
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn text_in_whatever_it_comes() {
        let long = "192.0.2.1 # \u{fc} \u{1f600}\n".repeat(9_000);
        assert_eq!(text(long.as_bytes()).unwrap(), long);
        assert_eq!(text(&gzip(long.as_bytes())).unwrap(), long);
        assert_eq!(text(&gzip(&gzip(long.as_bytes()))).unwrap(), long);
        assert_eq!(text(&[b"\xef\xbb\xbf", long.as_bytes()].concat()).unwrap(), long);
        for is_big_endian in [false, true] {
            assert_eq!(text(&utf16(&format!("\u{feff}{long}"), is_big_endian)).unwrap(), long);
            assert_eq!(
                text(&gzip(&utf16(&format!("\u{feff}{long}"), is_big_endian))).unwrap(),
                long
            );
            assert_eq!(
                text(&utf16("192.0.2.1\n", is_big_endian)).unwrap(),
                "192.0.2.1\n",
                "without its mark"
            );
        }
        assert_eq!(text(b"").unwrap(), "");
        assert_eq!(
            text(b"\xff\xfe1\0.\0\x00\xd8").unwrap(),
            "1.\u{fffd}",
            "half a character at the end"
        );
    }

    #[test]
    fn other_formats_are_named() {
        for (bytes, expected) in [
            (&b"\xfd7zXZ\0\0\x04"[..], "xz"),
            (b"BZh91AY&SY", "bzip2"),
            (b"\x28\xb5\x2f\xfd\x04", "zstd"),
            (b"PK\x03\x04\x14", "zip"),
            (b"%PDF-1.7", "PDF"),
            (b"\xff\xfe\0\x001\0\0\0", "UTF-32"),
            (b"\x01\x02\x03\x04 \x05 what", "binary"),
        ] {
            for bytes in [bytes.to_vec(), gzip(bytes)] {
                let error = text(&bytes).unwrap_err();
                assert!(error.contains(expected) && !error.contains('\n'), "{error}");
            }
        }
        assert!(
            text(&gzip(&gzip(&gzip(&gzip(b"192.0.2.1"))))).unwrap_err().contains("too many times")
        );
        let packed = gzip("192.0.2.1\n".repeat(1_000).as_bytes());
        assert!(text(&packed[..packed.len() / 2]).unwrap_err().contains("cut off"));
        let bomb = gzip(&vec![b'1'; 2 << 20]);
        assert!(text(&bomb).unwrap_err().contains("more than 1048576 bytes"));
    }
}
