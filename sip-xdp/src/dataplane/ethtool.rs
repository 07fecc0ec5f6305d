//! Driver queries by the ethtool ioctl: driver names, queues, and features, which can also be
//! switched.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Commands (`include/uapi/linux/ethtool.h`).
const GDRVINFO: u32 = 0x03;
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const SFEATURES: u32 = 0x3b;
const GCHANNELS: u32 = 0x3c;

/// The string set of feature names (`ETH_SS_FEATURES`).
const SS_FEATURES: u32 = 4;

/// Length of a name in bytes (`ETH_GSTRING_LEN`).
const NAME: usize = 32;

/// `SIOCETHTOOL` (`include/uapi/linux/sockios.h`).
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Large receive offload: the driver merges packets.
pub(crate) const LRO: &str = "rx-lro";

/// Hardware GRO: the device merges packets, reversibly.
pub(crate) const GRO_HW: &str = "rx-gro-hw";

/// Receive queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Channels {
    /// Queues in use.
    pub(crate) used: u32,
    /// Maximum number of queues.
    pub(crate) most: u32,
}

/// The features of a device, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// Enabled ones.
    pub(crate) on: BTreeSet<String>,
    /// Changeable ones.
    pub(crate) changeable: BTreeSet<String>,
}

/// The driver's name.
pub(crate) fn driver(interface: &str) -> io::Result<String> {
    // `cmd`, then five strings of 32 bytes, of which the driver's name is the first.
    let mut words = [0_u32; 49];
    words[0] = GDRVINFO;
    ethtool(interface, &mut words)?;
    Ok(text(&words[1..9]))
}

/// Receive queues, combined ones included.
pub(crate) fn channels(interface: &str) -> io::Result<Channels> {
    // `cmd`; maxima of rx, tx, other and combined; then the current counts.
    let mut words = [0_u32; 9];
    words[0] = GCHANNELS;
    ethtool(interface, &mut words)?;
    Ok(Channels { used: words[5] + words[8], most: words[1] + words[4] })
}

/// The names of all features, in bit order. They are the kernel's, the same for all devices.
pub(crate) fn feature_names(interface: &str) -> io::Result<Vec<String>> {
    // `cmd`, reserved, the mask of string sets, and the length of the one set.
    let mut info = [GSSET_INFO, 0, 1 << SS_FEATURES, 0, 0];
    ethtool(interface, &mut info)?;
    let count = info[4] as usize;
    let mut words = vec![0_u32; 3 + count * NAME / 4];
    words[..3].copy_from_slice(&[GSTRINGS, SS_FEATURES, count as u32]);
    ethtool(interface, &mut words)?;
    Ok(words[3..].chunks_exact(NAME / 4).map(text).collect())
}

/// The features of a device; `names` are the [`feature_names`].
pub(crate) fn features(interface: &str, names: &[String]) -> io::Result<Features> {
    let blocks = names.len().div_ceil(32);
    // `cmd`, number of blocks; per block: available, requested, active, never changed.
    let mut words = vec![0_u32; 2 + blocks * 4];
    words[..2].copy_from_slice(&[GFEATURES, blocks as u32]);
    ethtool(interface, &mut words)?;
    let chosen = |field: usize| -> BTreeSet<String> {
        let has = |bit: &usize| words[2 + bit / 32 * 4 + field] >> (bit % 32) & 1 == 1;
        (0..names.len()).filter(has).map(|bit| names[bit].clone()).collect()
    };
    Ok(Features { on: chosen(2), changeable: chosen(0) })
}

/// The features of a device, including the query of their names.
pub(crate) fn features_of(interface: &str) -> io::Result<Features> {
    features(interface, &feature_names(interface)?)
}

/// Switches a feature on. Fails if it is off afterwards.
pub(crate) fn switch_on(interface: &str, feature: &str) -> io::Result<()> {
    let names = feature_names(interface)?;
    let bit = names.iter().position(|name| name == feature);
    let bit = bit.ok_or_else(|| io::Error::other("this kernel knows no such offload"))?;
    let blocks = names.len().div_ceil(32);
    // `cmd`, number of blocks; per block: valid mask, requested.
    let mut words = vec![0_u32; 2 + blocks * 2];
    words[..2].copy_from_slice(&[SFEATURES, blocks as u32]);
    words[2 + bit / 32 * 2] = 1 << (bit % 32);
    words[2 + bit / 32 * 2 + 1] = 1 << (bit % 32);
    ethtool(interface, &mut words)?;
    let is_on = features(interface, &names)?.on.contains(feature);
    if is_on { Ok(()) } else { Err(io::Error::other("the driver keeps it off")) }
}

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).chain([0]).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
}

/// The ioctl. All its structures consist of 32-bit words, of which the first is the command.
fn ethtool(interface: &str, words: &mut [u32]) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the kernel reads the name, and reads and writes as many words as the command's
    // structure has, which the caller provided.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &mut request) } {
        -1 => Err(io::Error::last_os_error()),
        // Some commands return a positive number.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_says_what_it_can() {
        // `lo` has no driver and no queues, but responds.
        assert!(channels("lo").is_err());
        assert!(driver("no-such-thing").is_err() && feature_names("no-such-thing").is_err());
        let features = features_of("lo").unwrap();
        assert!(
            features.on.contains("loopback") && !features.changeable.contains("loopback"),
            "{features:?}"
        );
        assert!(!features.on.contains(LRO) && !features.on.contains(GRO_HW));
        assert!(switch_on("lo", "no-such-offload").is_err());
    }
}
