//! XDP features of drivers, by generic netlink.

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// Flags of `NETDEV_A_DEV_XDP_FEATURES` (`include/uapi/linux/netdev.h`).
const XDP_BASIC: u64 = 1;
const XDP_RX_SG: u64 = 1 << 5;

/// A driver's XDP features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct XdpFeatures {
    /// Native programs.
    pub(super) native: bool,
    /// Multi-buffer packets, such as jumbo frames.
    pub(super) long_packets: bool,
}

/// The XDP features of an interface's driver. `None` if the kernel does not report them: before
/// Linux 6.3.
pub(super) fn xdp_features(index: u32) -> Option<XdpFeatures> {
    // `CTRL_CMD_GETFAMILY` with the attribute `CTRL_ATTR_FAMILY_NAME`; the response has
    // `CTRL_ATTR_FAMILY_ID`.
    let family = ask(libc::GENL_ID_CTRL as u16, 3, 2, b"netdev\0", 1)?;
    let family = u16::from_ne_bytes(family.get(..2)?.try_into().ok()?);
    // `NETDEV_CMD_DEV_GET` with `NETDEV_A_DEV_IFINDEX`; the response has
    // `NETDEV_A_DEV_XDP_FEATURES`.
    let features = ask(family, 1, 1, &index.to_ne_bytes(), 3)?;
    let features = u64::from_ne_bytes(features.get(..8)?.try_into().ok()?);
    Some(XdpFeatures { native: features & XDP_BASIC != 0, long_packets: features & XDP_RX_SG != 0 })
}

/// Sends a generic netlink request with one attribute, and returns an attribute of the response.
fn ask(family: u16, command: u8, attribute: u16, value: &[u8], wanted: u16) -> Option<Vec<u8>> {
    /// The lengths of `struct nlmsghdr` and `struct genlmsghdr`.
    const HEADERS: usize = 16 + 4;
    let mut socket = Socket::new(NETLINK_GENERIC).ok()?;
    socket.bind_auto().ok()?;
    socket.connect(&SocketAddr::new(0, 0)).ok()?;
    let length = HEADERS + 4 + value.len().next_multiple_of(4);
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Sequence number and port id, both 0: this socket sends one request.
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend((4 + value.len() as u16).to_ne_bytes());
    request.extend(attribute.to_ne_bytes());
    request.extend(value);
    request.resize(length, 0);
    socket.send(&request, 0).ok()?;
    let (answer, _) = socket.recv_from_full().ok()?;
    let is_error =
        u16::from_ne_bytes([*answer.get(4)?, *answer.get(5)?]) == libc::NLMSG_ERROR as u16;
    if is_error {
        None
    } else {
        crate::dataplane::attach::clsact::attribute(answer.get(HEADERS..)?, wanted)
            .map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_says_what_it_can() {
        if let Some(features) = xdp_features(1) {
            assert!(!features.native, "{features:?}");
        }
    }
}
