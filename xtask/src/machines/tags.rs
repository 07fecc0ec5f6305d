//! A VLAN trunk for a machine on a host that may have no VLAN devices: frames of a tap get a tag on
//! their way to the machine's card, and lose it on their way back.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The VLAN that is used.
pub(crate) const VLAN: u16 = 10;

/// The EtherType of a tag (IEEE 802.1Q), and where it stands: after both hardware addresses.
const TAG: [u8; 2] = [0x81, 0x00];
const AT: usize = 12;

/// Tags frames until it is dropped.
pub(crate) struct Tagger {
    stop: Arc<AtomicBool>,
}

impl Tagger {
    /// Makes a tap without tags named `name`, and joins it with the machine's card.
    pub(crate) fn start(name: &str, directory: &Path, number: u8) -> Result<Self> {
        let tap = open_tap(name)?;
        let (ours, card) =
            (directory.join(format!("tags{number}")), directory.join(format!("card{number}")));
        let _ = fs::remove_file(&ours);
        let socket =
            UnixDatagram::bind(&ours).with_context(|| format!("cannot bind {}", ours.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (mut reader, sender) = (tap.try_clone()?, socket.try_clone()?);
        // Ends with the tap, from which reading fails then.
        thread::spawn(move || {
            let mut frame = vec![0; 65_536];
            while let Ok(length) = reader.read(&mut frame) {
                // A machine that is not there yet, or no longer, loses frames, as a cable does.
                let _ = sender.send_to(&tagged(&frame[..length]), &card);
            }
        });
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let stopped = Arc::clone(&stop);
        let mut writer = tap;
        thread::spawn(move || {
            let mut frame = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                let Ok(length) = socket.recv(&mut frame) else { continue };
                if let Some(plain) = untagged(&frame[..length]) {
                    let _ = writer.write_all(&plain);
                }
            }
        });
        Ok(Self { stop })
    }
}

impl Drop for Tagger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(AT.min(frame.len()));
    [addresses, &TAG, &VLAN.to_be_bytes(), rest].concat()
}

/// The frame without our tag; `None` if it has none, or another.
fn untagged(frame: &[u8]) -> Option<Vec<u8>> {
    let (addresses, rest) = frame.split_at_checked(AT)?;
    let [0x81, 0x00, high, low, rest @ ..] = rest else { return None };
    // The upper four bits are a priority.
    (u16::from_be_bytes([*high, *low]) & 0x0fff == VLAN).then(|| [addresses, rest].concat())
}

/// Opens a tap device of this name, which is made by that.
fn open_tap(name: &str) -> Result<File> {
    /// `_IOW('T', 202, int)` of linux/if_tun.h.
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca_u32 as libc::Ioctl;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("cannot open /dev/net/tun")?;
    // SAFETY: all fields of this structure of plain numbers may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq` there, which
    // outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("cannot make the tap {name}"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_goes_on_and_off() {
        let frame: Vec<u8> = (0..60).collect();
        let with = tagged(&frame);
        assert_eq!(with[12..16], [0x81, 0x00, 0, 10]);
        assert_eq!(with.len(), 64);
        assert_eq!(untagged(&with), Some(frame.clone()));
        assert_eq!(untagged(&frame), None, "without a tag");
        let mut other = with;
        other[15] = 11;
        assert_eq!(untagged(&other), None, "another VLAN");
        assert_eq!(untagged(&[0; 8]), None, "shorter than any frame");
    }
}
