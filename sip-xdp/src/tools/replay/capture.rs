//! Capture files: pcap and pcapng, compressed or not, and concatenations of them. Reading ends at
//! the first unreadable part, with a note about position and cause.
//!
//! More than 400 lines: two file formats behind one reader, and 180 lines of tests.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _, stdin};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use pcap_parser::traits::PcapNGPacketBlock as _;
use pcap_parser::{
    Block, LegacyPcapBlock, PcapError, PcapHeader, parse_block_be, parse_block_le,
    parse_pcap_frame, parse_pcap_frame_be, parse_pcap_frame_modified, parse_pcap_header,
};

use super::compression;

/// Maximum record size. libpcap writes none above 256 KiB, except for names and secrets.
const MAX_RECORD: usize = 16 << 20;

/// Read size in bytes.
const CHUNK: usize = 256 << 10;

/// Maximum number of interfaces per section.
const MAX_INTERFACES: usize = 65_536;

const SECOND: u64 = 1_000_000_000;

/// A capture file that can be read more than once.
#[derive(Debug)]
pub struct Input {
    name: String,
    file: File,
    size: u64,
    read: Rc<Cell<u64>>,
}

impl Input {
    /// Opens a file; `-` is standard input. Unseekable input, such as a pipe, is spooled to a
    /// temporary file.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut file = if name == "-" {
            spool(&mut stdin().lock())
                .context("standard input cannot be kept in a temporary file")?
        } else {
            let mut file = File::open(path)
                .with_context(|| format!("{name} cannot be read; check the path"))?;
            let kind =
                file.metadata().with_context(|| format!("{name} cannot be read"))?.file_type();
            if kind.is_dir() {
                bail!("{name} is a directory; name a capture file");
            }
            if kind.is_file() {
                file
            } else {
                spool(&mut file)
                    .with_context(|| format!("{name} cannot be kept in a temporary file"))?
            }
        };
        let size =
            file.seek(io::SeekFrom::End(0)).with_context(|| format!("{name} cannot be read"))?;
        Ok(Self { name, file, size, read: Rc::default() })
    }

    /// Its name, as given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Progress of the last reader, from 0 to 1.
    pub fn progress(&self) -> f64 {
        if self.size == 0 { 1.0 } else { self.read.get() as f64 / self.size as f64 }
    }

    /// Reads it from the start. One reader at a time.
    pub fn packets(&self) -> Result<Capture> {
        let again = || -> io::Result<Counted> {
            let mut file = self.file.try_clone()?;
            file.rewind()?;
            self.read.set(0);
            Ok(Counted { file, read: Rc::clone(&self.read) })
        };
        let file = again().with_context(|| format!("{} cannot be read", self.name))?;
        let no_capture = || format!("{} is no capture that can be read", self.name);
        let (layers, reader) = compression::unpack(Box::new(file)).with_context(no_capture)?;
        Capture::new(reader, &layers).with_context(no_capture)
    }
}

/// Copies all of `from` to an unlinked file.
fn spool(from: &mut impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(from, &mut file)?;
    file.flush()?;
    Ok(file)
}

/// A file that counts the bytes read.
struct Counted {
    file: File,
    read: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read.set(self.read.get() + count as u64);
        Ok(count)
    }
}

/// One packet of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Time in nanoseconds since 1970; that of the previous packet if there is none.
    pub at: u64,
    /// Link type (tcpdump's LINKTYPE numbers).
    pub link: i32,
    /// The captured bytes.
    pub data: &'a [u8],
    /// Length on the wire.
    pub length: u32,
    /// Whether the capture has several interfaces.
    pub is_any: bool,
}

/// The packets of a capture, in order.
pub struct Capture {
    stream: Stream,
    format: Format,
    /// Format of the first file, and number of files.
    kind: &'static str,
    files: u64,
    compression: Option<String>,
    /// Time of the last packet.
    last: u64,
    trouble: Option<String>,
    /// Unsupported records with packets, by kind.
    unread: BTreeMap<&'static str, u64>,
}

/// Packets of an undescribed interface.
const NO_INTERFACE: &str = "of an interface that the file does not describe";

/// Format of the current file.
enum Format {
    Pcap(PcapHeader),
    PcapNg { is_big_endian: bool, interfaces: Vec<Interface> },
}

/// A pcapng interface description.
#[derive(Debug, Clone, Copy)]
struct Interface {
    link: i32,
    /// Time units per second.
    resolution: u64,
    /// Time offset in seconds.
    offset: i64,
    /// Snapshot length; 0 for unlimited.
    snap: u32,
}

impl Capture {
    fn new(reader: Box<dyn Read>, layers: &[&'static str]) -> Result<Self> {
        let mut stream = Stream { reader, buffer: Vec::new(), start: 0, offset: 0 };
        stream.need(4)?;
        if stream.rest().is_empty() {
            bail!("it is empty");
        }
        let format = match stream.file_begins()? {
            Some(format) => format,
            None => {
                stream.need(24)?;
                match parse_pcap_header(stream.rest()) {
                    Ok((_, header)) => {
                        stream.skip(header.size());
                        Format::Pcap(header)
                    }
                    Err(pcap_parser::nom::Err::Incomplete(_)) => {
                        bail!("it ends within its first 24 bytes");
                    }
                    Err(_) => {
                        let start: Vec<_> = stream
                            .rest()
                            .iter()
                            .take(4)
                            .map(|byte| format!("{byte:02x}"))
                            .collect();
                        bail!(
                            "it begins with {}, and neither pcap nor pcapng does",
                            start.join(" ")
                        );
                    }
                }
            }
        };
        let kind = format.name();
        let compression = (!layers.is_empty()).then(|| layers.join(", "));
        Ok(Self {
            stream,
            format,
            kind,
            files: 1,
            compression,
            last: 0,
            trouble: None,
            unread: BTreeMap::new(),
        })
    }

    /// Format of the file.
    pub fn format(&self) -> &'static str {
        self.kind
    }

    /// Number of concatenated capture files.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// Compression, outermost first.
    pub fn compression(&self) -> Option<&str> {
        self.compression.as_deref()
    }

    /// Why it could not be read to its end, if so.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Unsupported records with packets, by reason.
    pub fn unread(&self) -> &BTreeMap<&'static str, u64> {
        &self.unread
    }

    /// The next packet; `None` at the end, or at damage.
    #[expect(
        clippy::should_implement_trait,
        reason = "a packet lies in the reader's memory until the next one"
    )]
    pub fn next(&mut self) -> Option<Packet<'_>> {
        match self.advance() {
            Ok(Some(found)) => {
                self.last = found.at;
                let data = self.stream.buffer.get(found.from..found.to).unwrap_or_default();
                let is_any = match &self.format {
                    Format::Pcap(_) => matches!(found.link, 113 | 276),
                    Format::PcapNg { interfaces, .. } => {
                        interfaces.len() > 1 || matches!(found.link, 113 | 276)
                    }
                };
                Some(Packet { at: found.at, link: found.link, data, length: found.length, is_any })
            }
            Ok(None) => None,
            Err(error) => {
                self.trouble.get_or_insert(format!("{error:#}"));
                None
            }
        }
    }

    /// Advances to the next packet.
    fn advance(&mut self) -> Result<Option<Found>> {
        if self.trouble.is_some() {
            return Ok(None);
        }
        loop {
            if let Some(format) = self.stream.file_begins()? {
                // A further pcapng section belongs to the same file, unless the file had another
                // format.
                self.files += u64::from(!matches!(
                    (&self.format, &format),
                    (Format::PcapNg { .. }, Format::PcapNg { .. })
                ));
                if !matches!(
                    (&self.format, &format),
                    (Format::PcapNg { .. }, Format::PcapNg { .. })
                ) {
                    self.format = format;
                }
            }
            let at = self.stream.offset;
            let length = match &self.format {
                Format::Pcap(header) => self.stream.record_length(header)?,
                Format::PcapNg { is_big_endian, .. } => self.stream.block_length(*is_big_endian)?,
            };
            let Some(length) = length else {
                return Ok(None);
            };
            if length > MAX_RECORD {
                bail!(
                    "the record at byte {at} claims {length} bytes: the file is damaged from there \
                     on"
                );
            }
            if !self.stream.need(length)? {
                bail!("the file ends in the middle of the record that begins at byte {at}");
            }
            let damaged =
                || format!("the record at byte {at} is damaged, and what follows cannot be found");
            let begins = self.stream.start;
            let record = self.stream.rest().get(..length).unwrap_or_default();
            let found = match &mut self.format {
                Format::Pcap(header) => {
                    let block = pcap_record(header, record).with_context(damaged)?;
                    Some(Found::new(
                        begins,
                        record,
                        block.data,
                        time_of(header, &block),
                        link_of(header.network.0),
                        block.origlen,
                    ))
                }
                Format::PcapNg { is_big_endian, interfaces } => {
                    let parse = if *is_big_endian { parse_block_be } else { parse_block_le };
                    let block = parse(record)
                        .map_err(|_| anyhow::anyhow!("no such block"))
                        .with_context(damaged)?
                        .1;
                    match block {
                        Block::SectionHeader(header) => {
                            *is_big_endian = header.big_endian();
                            interfaces.clear();
                            None
                        }
                        Block::InterfaceDescription(block) => {
                            if interfaces.len() >= MAX_INTERFACES {
                                bail!("the block at byte {at} is about one interface too many");
                            }
                            interfaces.push(Interface {
                                link: block.linktype.0,
                                resolution: resolution(block.if_tsresol),
                                offset: block.if_tsoffset,
                                snap: block.snaplen,
                            });
                            None
                        }
                        Block::EnhancedPacket(block) => {
                            match interfaces.get(block.if_id as usize) {
                                Some(interface) => {
                                    let time = interface.time(block.ts_high, block.ts_low);
                                    let data = block.packet_data();
                                    Some(Found::new(
                                        begins,
                                        record,
                                        data,
                                        time,
                                        interface.link,
                                        block.origlen,
                                    ))
                                }
                                None => {
                                    *self.unread.entry(NO_INTERFACE).or_default() += 1;
                                    None
                                }
                            }
                        }
                        // Simple packets have no time, and belong to the first interface.
                        Block::SimplePacket(block) => match interfaces.first() {
                            Some(interface) => {
                                let kept = if interface.snap == 0 {
                                    usize::MAX
                                } else {
                                    interface.snap as usize
                                };
                                let data = block.packet_data();
                                let data = &data[..data.len().min(kept)];
                                Some(Found::new(
                                    begins,
                                    record,
                                    data,
                                    self.last,
                                    interface.link,
                                    block.origlen,
                                ))
                            }
                            None => {
                                *self.unread.entry(NO_INTERFACE).or_default() += 1;
                                None
                            }
                        },
                        // The packet block of early versions (draft-ietf-opsawg-pcapng, appendix).
                        Block::Unknown(block) if block.block_type == 2 => {
                            match early_packet(record, *is_big_endian, interfaces) {
                                Some((data, time, link, length)) => {
                                    Some(Found::new(begins, record, data, time, link, length))
                                }
                                None => {
                                    *self.unread.entry(NO_INTERFACE).or_default() += 1;
                                    None
                                }
                            }
                        }
                        _ => None,
                    }
                }
            };
            self.stream.skip(length);
            if found.is_some() {
                return Ok(found);
            }
        }
    }
}

/// Position of a packet in the stream's buffer.
struct Found {
    from: usize,
    to: usize,
    at: u64,
    link: i32,
    length: u32,
}

impl Found {
    /// From `data`, which is part of `record`, which starts at `begins`.
    fn new(begins: usize, record: &[u8], data: &[u8], at: u64, link: i32, length: u32) -> Self {
        let from = begins + (data.as_ptr() as usize).saturating_sub(record.as_ptr() as usize);
        Self { from, to: from + data.len(), at, link, length }
    }
}

impl Format {
    fn name(&self) -> &'static str {
        match self {
            Self::Pcap(_) => "pcap",
            Self::PcapNg { .. } => "pcapng",
        }
    }
}

/// The link type of a pcap header's last field, whose upper bits are the length of the frame check
/// sequence (draft-ietf-opsawg-pcap, section 4). That follows the IP packet and is ignored.
fn link_of(network: i32) -> i32 {
    network & 0x03ff_ffff
}

/// The packet of an early packet block: interface and drops (16 bits each), time, two lengths,
/// data. `None` if its interface is undescribed.
fn early_packet<'r>(
    record: &'r [u8],
    is_big_endian: bool,
    interfaces: &[Interface],
) -> Option<(&'r [u8], u64, i32, u32)> {
    let word = |at: usize| {
        let bytes = *record.get(at..)?.first_chunk()?;
        Some(if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let first = word(8)?;
    let interface =
        interfaces.get(if is_big_endian { first >> 16 } else { first & 0xffff } as usize)?;
    let time = interface.time(word(12)?, word(16)?);
    let (captured, length) = (word(20)? as usize, word(24)?);
    let room = record.len().saturating_sub(4 + 28);
    Some((record.get(28..28 + captured.min(room))?, time, interface.link, length))
}

/// A pcap record with its header.
fn pcap_record<'r>(header: &PcapHeader, record: &'r [u8]) -> Result<LegacyPcapBlock<'r>> {
    let parse = match (header.is_modified_format(), header.is_bigendian()) {
        (true, _) => parse_pcap_frame_modified,
        (_, true) => parse_pcap_frame_be,
        _ => parse_pcap_frame,
    };
    Ok(parse(record)
        .map_err(|_: pcap_parser::nom::Err<PcapError<&[u8]>>| anyhow::anyhow!("no such record"))?
        .1)
}

/// Time in nanoseconds since 1970.
fn time_of(header: &PcapHeader, block: &LegacyPcapBlock<'_>) -> u64 {
    let unit = if header.is_nanosecond_precision() { 1 } else { 1_000 };
    u64::from(block.ts_sec) * SECOND + u64::from(block.ts_usec) * unit
}

/// Units per second from an interface option: a power of ten, or of two with the highest bit set
/// (draft-ietf-opsawg-pcapng, 4.2). Invalid values count as microseconds, the default.
fn resolution(said: u8) -> u64 {
    let power = u32::from(said & 0x7f);
    let units = if said & 0x80 == 0 { 10_u64.checked_pow(power) } else { 1_u64.checked_shl(power) };
    units.filter(|units| *units != 0).unwrap_or(1_000_000)
}

impl Interface {
    /// Time in nanoseconds since 1970, saturating.
    fn time(&self, high: u32, low: u32) -> u64 {
        let units = u128::from(high) << 32 | u128::from(low);
        let nanos = units * u128::from(SECOND) / u128::from(self.resolution);
        let offset = i128::from(self.offset) * i128::from(SECOND);
        let nanos = i128::try_from(nanos).unwrap_or(i128::MAX).saturating_add(offset).max(0);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// A reader with a buffer for one record.
struct Stream {
    reader: Box<dyn Read>,
    buffer: Vec<u8>,
    /// Start of the unread part of the buffer.
    start: usize,
    /// Its offset in the uncompressed file.
    offset: u64,
}

impl Stream {
    fn rest(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn skip(&mut self, bytes: usize) {
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// Fills the buffer to this number of bytes; returns whether they exist.
    fn need(&mut self, bytes: usize) -> Result<bool> {
        if self.rest().len() >= bytes {
            return Ok(true);
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        while self.buffer.len() < bytes {
            let filled = self.buffer.len();
            self.buffer.resize(filled + CHUNK.max(bytes - filled), 0);
            let read = loop {
                match self.reader.read(&mut self.buffer[filled..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => break read,
                }
            };
            self.buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
            let behind = self.offset + self.buffer.len() as u64;
            if read.with_context(|| format!("behind byte {behind} it cannot be read"))? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a file starts here: at the beginning, or in a concatenation. A pcap header is
    /// consumed, a pcapng section is not. A record can hardly look like one: it would be empty, and
    /// of the year 2055 or 1975.
    fn file_begins(&mut self) -> Result<Option<Format>> {
        if !self.need(4)? {
            return Ok(None);
        }
        match self.word(0, true) {
            0x0a0d_0d0a => {
                self.need(12)?;
                let is_section = self.offset == 0
                    || [self.word(8, true), self.word(8, false)].contains(&0x1a2b_3c4d);
                Ok(is_section
                    .then(|| Format::PcapNg { is_big_endian: false, interfaces: Vec::new() }))
            }
            0xa1b2_c3d4 | 0xd4c3_b2a1 | 0xa1b2_3c4d | 0x4d3c_b2a1 | 0xa1b2_cd34 | 0x34cd_b2a1
                if self.offset > 0
                    && self.need(24)?
                    && self.word(8, true) == 0
                    && self.word(12, true) == 0 =>
            {
                let Ok((_, header)) = parse_pcap_header(self.rest()) else {
                    return Ok(None);
                };
                self.skip(header.size());
                Ok(Some(Format::Pcap(header)))
            }
            _ => Ok(None),
        }
    }

    fn word(&self, at: usize, is_big_endian: bool) -> u32 {
        let bytes =
            self.rest().get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    /// Length of the next record of a pcap file; `None` at the end.
    fn record_length(&mut self, header: &PcapHeader) -> Result<Option<usize>> {
        let head = if header.is_modified_format() { 24 } else { 16 };
        self.header(head)?
            .then(|| Ok(head + self.word(8, header.is_bigendian()) as usize))
            .transpose()
    }

    /// Length of the next block of a pcapng file; `None` at the end.
    fn block_length(&mut self, is_big_endian: bool) -> Result<Option<usize>> {
        if !self.header(12)? {
            return Ok(None);
        }
        // A section declares its own byte order (draft-ietf-opsawg-pcapng, 4.1).
        let is_section = self.word(0, false) == 0x0a0d_0d0a;
        let is_big_endian =
            if is_section { self.word(8, true) == 0x1a2b_3c4d } else { is_big_endian };
        let length = self.word(4, is_big_endian) as usize;
        if length < 12 {
            bail!(
                "the block at byte {} claims {length} bytes: the file is damaged from there on",
                self.offset
            );
        }
        Ok(Some(length))
    }

    /// Whether there is another record, by the length of its header.
    fn header(&mut self, bytes: usize) -> Result<bool> {
        if self.need(bytes)? {
            return Ok(true);
        }
        if self.rest().is_empty() {
            return Ok(false);
        }
        bail!("the file ends in the middle of the record that begins at byte {}", self.offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Time, link type, bytes, length on the wire.
    type Read = (u64, i32, Vec<u8>, u32);

    fn read(bytes: &[u8]) -> Result<(Vec<Read>, Option<String>)> {
        let mut capture = Capture::new(Box::new(io::Cursor::new(bytes.to_vec())), &[])?;
        let mut packets = Vec::new();
        while let Some(packet) = capture.next() {
            packets.push((packet.at, packet.link, packet.data.to_vec(), packet.length));
        }
        Ok((packets, capture.trouble().map(str::to_owned)))
    }

    /// A pcap file of one packet, in either byte order.
    fn pcap(is_big_endian: bool, nanoseconds: bool) -> Vec<u8> {
        let word = |word: u32| if is_big_endian { word.to_be_bytes() } else { word.to_le_bytes() };
        let magic = if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let version = if is_big_endian { [0, 2, 0, 4] } else { [2, 0, 4, 0] };
        [
            word(magic),
            version,
            word(0),
            word(0),
            word(65_535),
            word(113),
            word(7),
            word(5),
            word(3),
            word(9),
        ]
        .concat()
        .into_iter()
        .chain(*b"abc")
        .collect()
    }

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let length = (12 + body.len() as u32).to_le_bytes();
        [&kind.to_le_bytes()[..], &length, body, &length].concat()
    }

    fn pcapng() -> Vec<u8> {
        let section = block(
            0x0a0d_0d0a,
            &[&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat(),
        );
        // Two interfaces: microseconds, and units of 1/1024 s with an offset of 10 s.
        let plain = block(1, &[1, 0, 0, 0, 0, 0, 4, 0]);
        let options =
            [&[9, 0, 1, 0, 0x8a, 0, 0, 0, 14, 0, 8, 0, 10][..], &[0; 7], &[0; 4]].concat();
        let odd = block(1, &[&[101, 0, 0, 0, 0, 0, 4, 0][..], &options].concat());
        let packet = |interface: u32, low: u32| {
            let words = [interface, 0, low, 3, 9].map(u32::to_le_bytes).concat();
            block(6, &[&words[..], b"abc\0"].concat())
        };
        let simple = block(3, &[&3_u32.to_le_bytes()[..], b"xyz\0"].concat());
        [section, plain, odd, packet(0, 2_000_000), packet(1, 512), simple, packet(7, 0)].concat()
    }

    #[test]
    fn both_byte_orders_and_both_units() {
        for is_big_endian in [false, true] {
            for (nanoseconds, at) in [(false, 7 * SECOND + 5_000), (true, 7 * SECOND + 5)] {
                let (packets, trouble) = read(&pcap(is_big_endian, nanoseconds)).unwrap();
                assert_eq!(packets, [(at, 113, b"abc".to_vec(), 9)]);
                assert_eq!(trouble, None);
            }
        }
    }

    #[test]
    fn pcapng_has_interfaces_with_their_own_time() {
        let (packets, trouble) = read(&pcapng()).unwrap();
        let expected = [
            (2 * SECOND, 1, b"abc".to_vec(), 9),
            (10 * SECOND + SECOND / 2, 101, b"abc".to_vec(), 9),
            (10 * SECOND + SECOND / 2, 1, b"xyz".to_vec(), 3),
        ];
        assert_eq!((packets.as_slice(), trouble), (&expected[..], None));
    }

    #[test]
    fn early_packet_blocks() {
        let section = block(
            0x0a0d_0d0a,
            &[&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat(),
        );
        let interface = |link: u8| block(1, &[link, 0, 0, 0, 0, 0, 4, 0]);
        let packet = |interface: u16| {
            let words = [0, 3_000_000, 3, 9].map(u32::to_le_bytes).concat();
            block(2, &[&interface.to_le_bytes()[..], &[9, 0], &words, b"abc\0"].concat())
        };
        let file = [section, interface(1), interface(101), packet(1), packet(7)].concat();
        let mut capture = Capture::new(Box::new(io::Cursor::new(file)), &[]).unwrap();
        let found = capture.next().unwrap();
        assert_eq!(
            (found.at, found.link, found.data, found.length),
            (3 * SECOND, 101, &b"abc"[..], 9)
        );
        assert!(capture.next().is_none() && capture.trouble().is_none());
        assert_eq!(capture.unread().get(NO_INTERFACE), Some(&1));
    }

    #[test]
    fn files_that_were_put_together() {
        let mut of_other_link = pcap(false, true);
        of_other_link[20] = 101;
        let file =
            [pcap(false, false), of_other_link, pcapng(), pcap(true, false), pcap(true, true)]
                .concat();
        let mut capture = Capture::new(Box::new(io::Cursor::new(file)), &[]).unwrap();
        let mut links = Vec::new();
        while let Some(packet) = capture.next() {
            links.push(packet.link);
        }
        assert_eq!((links, capture.trouble()), (vec![113, 101, 1, 101, 1, 113, 113], None));
        assert_eq!((capture.files(), capture.format()), (5, "pcap"));
    }

    #[test]
    fn the_link_type_may_say_how_long_the_checksum_is() {
        let mut file = pcap(false, false);
        file[20..24].copy_from_slice(&0x4400_0001_u32.to_le_bytes());
        assert_eq!(read(&file).unwrap().0[0].1, 1);
    }

    #[test]
    fn truncation_is_reported_with_its_offset() {
        let whole = pcap(false, false);
        assert!(read(&[]).unwrap_err().to_string().contains("empty"));
        assert!(read(&whole[..20]).unwrap_err().to_string().contains("first 24 bytes"));
        assert!(
            read(b"<html>, and a lot more of that")
                .unwrap_err()
                .to_string()
                .contains("3c 68 74 6d")
        );
        assert_eq!(
            read(&whole[..24]).unwrap(),
            (Vec::new(), None),
            "a header alone is an empty capture"
        );
        let (packets, trouble) = read(&whole[..whole.len() - 1]).unwrap();
        assert!(packets.is_empty() && trouble.unwrap().contains("at byte 24"));
        let mut long = whole.clone();
        long.extend([0xff; 16]);
        let (packets, trouble) = read(&long).unwrap();
        assert!(
            packets.len() == 1 && trouble.as_ref().unwrap().contains("byte 43 claims 4294967311"),
            "{trouble:?}"
        );
    }

    proptest! {
        /// For any bytes: the reader ends, with no more packets than fit.
        #[test]
        fn any_bytes_at_all(
            garbage in prop::collection::vec(any::<u8>(), 0..300),
            which in 0..4_usize,
            changes in prop::collection::vec(
                (any::<prop::sample::Index>(), any::<u8>()),
                0..6,
            ),
        ) {
            let mut bytes = match which {
                0 => pcap(false, false),
                1 => pcap(true, true),
                2 => pcapng(),
                _ => Vec::new(),
            };
            for (index, value) in changes.into_iter().filter(|_| which < 3) {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
            bytes.extend(garbage);
            if let Ok((packets, _)) = read(&bytes) {
                prop_assert!(packets.len() * 16 <= bytes.len());
                prop_assert!(packets.iter().all(|packet| packet.2.len() <= bytes.len()));
            }
        }
    }
}
