//! Lossless captures by tcpdump.
//!
//! A packet that is dropped in the driver does not reach a capture on the same interface: a capture
//! on the PBX's end of a cable shows what passed the filter, one on the other end what was sent.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::namespace::{Namespace, unique_name};
use crate::process::Process;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

/// One packet of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Time of capture.
    pub at: SystemTime,
    /// Its first bytes, from the link layer on.
    pub data: Vec<u8>,
}

impl Capture {
    /// Starts tcpdump with a filter expression for the first bytes of each packet, and waits until
    /// it captures.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        expression: &str,
        directory: &Path,
    ) -> Result<Self> {
        Self::record(namespace, interface, expression, directory, "512")
    }

    /// As [`Capture::start`], with whole packets.
    pub fn start_whole(
        namespace: &Namespace,
        interface: &str,
        expression: &str,
        directory: &Path,
    ) -> Result<Self> {
        Self::record(namespace, interface, expression, directory, "0")
    }

    fn record(
        namespace: &Namespace,
        interface: &str,
        expression: &str,
        directory: &Path,
        length: &str,
    ) -> Result<Self> {
        // tcpdump's AppArmor profile requires this file name suffix.
        let file = directory.join(format!("{}.pcap", unique_name()));
        let mut command = namespace.command("tcpdump");
        command.args(["-i", interface, "-n", "-p", "-U", "--immediate-mode", "-Z", "root"]);
        command.args(["-B", "65536", "-s", length, "-w"]);
        command.arg(&file).arg(expression);
        let mut process = Process::spawn(format!("tcpdump on {interface}"), &mut command)?;
        process.wait_line(Duration::from_secs(10), |line| line.text.contains("listening on"))?;
        Ok(Self { process, file })
    }

    /// The packets so far, without ending the capture.
    pub fn packets(&self) -> Result<Vec<Packet>> {
        let file =
            fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        parse(&file)
    }

    /// Path of the capture file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the capture; fails if packets were lost.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        // Recent packets may still be on their way to tcpdump.
        std::thread::sleep(Duration::from_millis(200));
        self.process.stop(Signal::SIGINT)?;
        let lines = self.process.lines();
        let lost =
            lines.iter().find_map(|line| line.text.strip_suffix(" packets dropped by kernel"));
        match lost {
            Some("0") => self.packets(),
            Some(lost) => bail!("tcpdump lost {lost} packets"),
            None => bail!("tcpdump did not say whether it lost packets:\n{}", self.process.tail()),
        }
    }
}

/// Parses a capture file as tcpdump writes it here: microseconds, this machine's byte order. An
/// incomplete last packet is left out.
fn parse(file: &[u8]) -> Result<Vec<Packet>> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    let Some((header, mut rest)) = file.split_at_checked(24) else { return Ok(Vec::new()) };
    if word(header, 0) != Some(MAGIC) {
        bail!("not a capture file");
    }
    let mut packets = Vec::new();
    while let Some((record, after)) = rest.split_at_checked(16) {
        let field =
            |index| word(record, index).map(u64::from).context("a record header has four words");
        let at = UNIX_EPOCH + Duration::from_secs(field(0)?) + Duration::from_micros(field(1)?);
        let Some((data, next)) =
            usize::try_from(field(2)?).ok().and_then(|length| after.split_at_checked(length))
        else {
            break;
        };
        packets.push(Packet { at, data: data.to_vec() });
        rest = next;
    }
    Ok(packets)
}

fn word(bytes: &[u8], index: usize) -> Option<u32> {
    bytes.get(index * 4..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_whole_packets_only() {
        let mut file =
            [0xa1b2_c3d4_u32, 0, 0, 0, 0, 0, 7, 500_000, 3, 3].map(u32::to_ne_bytes).concat();
        file.extend(*b"abc");
        let expected =
            [Packet { at: UNIX_EPOCH + Duration::from_millis(7500), data: b"abc".to_vec() }];
        assert_eq!(parse(&file).unwrap(), expected);
        file.extend([8_u32, 0, 4, 4].map(u32::to_ne_bytes).concat());
        file.extend(*b"de");
        assert_eq!(parse(&file).unwrap(), expected);
        assert!(parse(&[0; 24]).is_err());
        assert!(parse(&[]).unwrap().is_empty());
    }
}
