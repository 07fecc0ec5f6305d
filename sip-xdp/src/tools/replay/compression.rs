//! Compression of capture files: gzip, zstd, xz and bzip2, nested if need be; and recognition of
//! files that are no captures.

use std::io::{self, BufReader, Cursor, Read};

use anyhow::{Context as _, Result, bail};
use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

/// Read size in bytes.
const CHUNK: usize = 256 << 10;

/// Maximum nesting.
const MOST_LAYERS: usize = 4;

/// Memory limit of xz in bytes: its highest level takes 65 MiB, and a file may ask for 4 GiB.
const XZ_MEMORY: u64 = 512 << 20;

/// Bytes inspected for signatures.
const HEAD: usize = 512;

/// Signatures of other files: offset, bytes, name, and remedy.
const OTHERS: [(usize, &[u8], &str, &str); 14] = [
    (0, b"PK\x03\x04", "a zip archive", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (0, b"Rar!\x1a\x07", "a rar archive", "unpack it first"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it first, with `lz4 -d`"),
    (0, b"LZIP", "compressed with lzip", "unpack it first, with `lzip -d`"),
    (0, b"\x1f\x9d", "compressed with compress", "unpack it first, with `gzip -d`"),
    (257, b"ustar", "a tar archive", "unpack it first"),
    (0, b"snoop\0\0\0", "a capture of Solaris snoop", CONVERT),
    (0, b"GMBU", "a capture of Microsoft Network Monitor", CONVERT),
    (0, b"RTSS", "a capture of Microsoft Network Monitor", CONVERT),
    (0, b"XCP\0", "a capture of NetXRay", CONVERT),
    (0, b"TRSNIFF data", "a capture of Sniffer", CONVERT),
    (0, b"iptrace 2.0", "a capture of AIX iptrace", CONVERT),
    (0, b"\x55\xaa\0\x01", "a capture of an unknown kind", CONVERT),
];

const CONVERT: &str = "convert it, with `editcap -F pcapng FILE NEW`";

/// Decompresses a file, and names the layers, outermost first.
///
/// # Errors
///
/// If its signature is that of a file that is no capture.
pub(super) fn unpack(mut reader: Box<dyn Read>) -> Result<(Vec<&'static str>, Box<dyn Read>)> {
    let mut layers: Vec<&'static str> = Vec::new();
    loop {
        let mut head = Vec::new();
        let cannot = || match layers.last() {
            Some(name) => format!("what is packed in it with {name} cannot be read"),
            None => "it cannot be read".to_owned(),
        };
        (&mut reader).take(HEAD as u64).read_to_end(&mut head).with_context(cannot)?;
        let whole = BufReader::with_capacity(CHUNK, Cursor::new(head.clone()).chain(reader));
        let (name, unpacked): (_, Box<dyn Read>) = match head.as_slice() {
            [0x1f, 0x8b, ..] => ("gzip", Box::new(MultiGzDecoder::new(whole))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", Box::new(zstd::Decoder::with_buffer(whole)?)),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => ("xz", Box::new(xz(whole)?)),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => ("bzip2", Box::new(MultiBzDecoder::new(whole))),
            _ => {
                let is = |(at, magic, ..): &&(usize, &[u8], &str, &str)| {
                    head.get(*at..).is_some_and(|rest| rest.starts_with(magic))
                };
                if let Some((_, _, name, advice)) = OTHERS.iter().find(is) {
                    bail!("it is {name}; {advice}");
                }
                return Ok((layers, Box::new(whole)));
            }
        };
        layers.push(name);
        if layers.len() > MOST_LAYERS {
            bail!("it is packed more than {MOST_LAYERS} times; unpack it first");
        }
        reader = unpacked;
    }
}

fn xz<R: io::BufRead>(reader: R) -> io::Result<liblzma::bufread::XzDecoder<R>> {
    let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(io::Error::from)?;
    Ok(liblzma::bufread::XzDecoder::new_stream(reader, stream))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn text(bytes: Vec<u8>) -> Result<(Vec<&'static str>, String)> {
        let (layers, mut reader) = unpack(Box::new(Cursor::new(bytes)))?;
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        Ok((layers, text))
    }

    fn packed(by: &str, bytes: &[u8]) -> Vec<u8> {
        match by {
            "gzip" => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            "zstd" => zstd::encode_all(bytes, 1).unwrap(),
            "xz" => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            "bzip2" => {
                let mut encoder =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_layer_is_taken_off() {
        let long = "all that is in it\n".repeat(40_000);
        assert_eq!(text(long.clone().into_bytes()).unwrap(), (vec![], long.clone()));
        for name in ["gzip", "zstd", "xz", "bzip2"] {
            let once = packed(name, long.as_bytes());
            assert_eq!(text(once.clone()).unwrap(), (vec![name], long.clone()));
            assert_eq!(text(packed("gzip", &once)).unwrap(), (vec!["gzip", name], long.clone()));
            // Files that were compressed one by one and concatenated.
            let two = [once.clone(), packed(name, b"and more")].concat();
            assert_eq!(text(two).unwrap().1, format!("{long}and more"), "{name}");
            assert!(text(once[..once.len() / 2].to_vec()).is_err(), "{name} is cut off");
        }
        let many = (0..5).fold(b"x".to_vec(), |bytes, _| packed("gzip", &bytes));
        assert!(text(many).unwrap_err().to_string().contains("unpack it first"));
    }

    #[test]
    fn other_files_are_named() {
        for (bytes, expected) in [
            (&b"PK\x03\x04\x14\0"[..], "zip"),
            (b"snoop\0\0\0\0\0\0\x02", "editcap"),
            (b"7z\xbc\xaf\x27\x1c\0", "7z"),
        ] {
            let error = text(bytes.to_vec()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.starts_with("it is a"), "{error}");
        }
    }
}
