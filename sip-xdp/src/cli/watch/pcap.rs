//! Packets as a pcap file with microsecond times, version 2.4.

use std::fs::File;
use std::io::{self, Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use sip_xdp::api::event_stream::{Line, LinkKind};

/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// LINKTYPE_RAW: IPv4 or IPv6 without a link header.
const RAW: u32 = 101;

/// Snapshot length, above that of any sample.
const LONGEST: u32 = 65_535;

/// A pcap file.
pub(super) struct Capture {
    to: Box<dyn Write>,
    name: String,
    /// Link type of the file, that of its first packet; a pcap file has only one.
    link: Option<u32>,
    written: usize,
    left_out: usize,
}

impl Capture {
    /// Creates the file; `-` is the standard output.
    pub(super) fn create(path: PathBuf) -> Result<Self> {
        let to: Box<dyn Write> = if path == Path::new("-") {
            Box::new(stdout())
        } else {
            Box::new(
                File::create(&path)
                    .with_context(|| format!("{} cannot be written", path.display()))?,
            )
        };
        Ok(Self::to(to, path.display().to_string()))
    }

    fn to(to: Box<dyn Write>, name: String) -> Self {
        Self { to, name, link: None, written: 0, left_out: 0 }
    }

    /// Writes a packet; ignores other lines.
    pub(super) fn take(&mut self, line: &Line) -> Result<io::Result<()>> {
        let Line::Packet(packet) = line else {
            return Ok(Ok(()));
        };
        let data = packet.bytes().context("a packet whose bytes are not hexadecimal")?;
        let link = match packet.link {
            LinkKind::Ip => RAW,
            LinkKind::Ethernet => ETHERNET,
        };
        let length = usize::from(packet.length).max(data.len());
        Ok(self.write(link, packet.time, &data, length as u32))
    }

    fn write(&mut self, link: u32, time: Timestamp, data: &[u8], length: u32) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(data.len() + 40);
        if self.link.is_none() {
            for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, LONGEST, link] {
                bytes.extend(u32::to_le_bytes(word));
            }
            self.link = Some(link);
        }
        if self.link != Some(link) {
            self.left_out += 1;
            return Ok(());
        }
        let (seconds, micros) = (time.as_second() as u32, time.subsec_microsecond() as u32);
        for word in [seconds, micros, data.len() as u32, length] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes.extend(data);
        self.to.write_all(&bytes)?;
        self.written += 1;
        self.to.flush()
    }

    /// A summary of what was written.
    pub(super) fn summary(&self) -> String {
        let other = match self.left_out {
            0 => String::new(),
            count => {
                format!(
                    "; {count} of interfaces with another kind of link were left out, which one \
                     file cannot hold"
                )
            }
        };
        format!("{} packets written to {}{other}", self.written, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sip_xdp::api::event_stream::PacketSample;
    use sip_xdp::bans::event::Event;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn packets_of_one_kind_make_a_file() {
        let shared = Shared::default();
        let mut capture = Capture::to(Box::new(shared.clone()), "x".to_owned());
        let packet = |link, data: &str| {
            Line::Packet(Arc::new(PacketSample {
                time: "1970-01-01T00:00:07.5Z".parse().unwrap(),
                event: "packet".into(),
                kind: None,
                address: None,
                port: None,
                reason: None,
                tier: None,
                dry_run: false,
                interface: None,
                link,
                length: 9,
                data: data.to_owned(),
            }))
        };
        let (ip, ethernet) = (LinkKind::Ip, LinkKind::Ethernet);
        let ban = Line::Event(Arc::new(Event::new("ban")));
        for line in [ban, packet(ip, "0aff"), packet(ethernet, "0aff"), packet(ip, "0aff")] {
            capture.take(&line).unwrap().unwrap();
        }
        let file = shared.0.lock().unwrap();
        assert_eq!(file.len(), 24 + 2 * (16 + 2));
        assert_eq!((&file[..4], file[20]), (&[0xd4, 0xc3, 0xb2, 0xa1][..], RAW as u8));
        let record = [7_u32, 500_000, 2, 9].map(u32::to_le_bytes).concat();
        assert_eq!((&file[24..40], &file[40..42]), (&record[..], &[0x0a, 0xff][..]));
        assert!(
            capture.summary().starts_with("2 packets written to x; 1 of interfaces"),
            "{}",
            capture.summary()
        );
        assert!(capture.take(&packet(ip, "zz")).is_err());
    }
}
